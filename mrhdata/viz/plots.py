"""Pictures of volumes and scores, as matplotlib figures that no window needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from mrhdata._runtime.atomic import atomic_write
from mrhdata.errors import DataError, FormatError, GridError
from mrhdata.volume.construct import SPATIAL
from mrhdata.volume.grid import length as length_of
from mrhdata.volume.groups import group, mask_on

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

    from mrhdata.analysis.result import Sensitivity
    from mrhdata.training.history import History

#: Plane -> the axis held fixed, the axis drawn upwards, the axis drawn to the right.
_PLANES = {"axial": ("z", "y", "x"), "coronal": ("y", "z", "x"), "sagittal": ("x", "z", "y")}
#: Axes of pictures are thinned to at most this many voxels.
_MOST_VOXELS = 600
#: Colours of labels: the strong ones before the light ones, so that neighbouring ids differ; no grey, which images are.
_COLOURS = [colormaps["tab20"].colors[i + light] for light in (0, 1) for i in (0, 2, 4, 12, 10, 18, 6, 8, 16)]  # type: ignore[attr-defined]
#: Of letters and scale bars, on white as on black.
_INK = "#c60"
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


def slices(
    volumes: Mapping[str, xr.DataArray],
    *,
    at: ArrayLike | None = None,
    percentiles: tuple[float, float] = (1, 99),
    where: xr.DataArray | None = None,
    overlay: bool = False,
) -> Figure:
    """Axial, coronal and sagittal slices of co-registered volumes through one world point.

    Superior and anterior point up, right (or, sagittal, anterior) points right, however the volumes
    are stored; letters beside them say where they point. The grey window goes from one percentile
    of a volume to another; labels have a colour each.

    Parameters
    ----------
    volumes : mapping of str to volume (z, y, x)
    at : (3,) array-like, optional
        World mm; the middle of the first volume by default.
    percentiles : (low, high)
    where : mask volume, optional
        Its voxels set the grey window of the volumes on its grid: noise in the background may be wider than tissue.
    overlay : bool
        Show the later volumes in colour over the first, at its places, instead of beside it.

    Returns
    -------
    figure : matplotlib.figure.Figure

    Raises
    ------
    GridError
        There is nothing to show, a volume has channels or times, or `at` lies outside of the first one.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> v = from_array(np.random.default_rng(0).random((4, 5, 6)), spacing=(1, 1, 1))
    >>> len(slices({"t2": v, "af": v}).axes), len(slices({"t2": v, "af": v}, overlay=True).axes)
    (6, 3)
    """
    # Each volume is computed, and its window found, once for the three planes.
    volumes = {name: volume.compute() for name, volume in group(volumes).items()}
    if not volumes:
        raise GridError("there is no volume to show; give at least one")
    mask = None if where is None else where.compute()
    looks = {
        name: _look(volume, i if overlay else 0, percentiles, mask) for i, (name, volume) in enumerate(volumes.items())
    }
    first = next(iter(volumes.values()))
    grid = first.mrh.grid
    point = grid.world((np.array(grid.shape) - 1) / 2) if at is None else np.asarray(at, dtype=np.float64)
    if point.shape != (3,):
        raise GridError(f"at={point.tolist()}: give a world point X, Y, Z in mm")
    if ((index := grid.index(point)) < -0.5).any() or (index > np.array(grid.shape) - 0.5).any():
        low, high = np.sort(grid.corners().reshape(-1, 3), axis=0)[[0, -1]].round(3).tolist()
        raise GridError(f"at={point.tolist()} lies outside of the first volume, which reaches from {low} to {high} mm")
    columns = [volumes] if overlay else [{name: volume} for name, volume in volumes.items()]
    extent = dict(zip(SPATIAL, grid.shape * grid.spacing, strict=True))
    # Rows as high as what they show, but never too low for the letters.
    wide = max(extent["x"], extent["y"])
    heights = [max(extent[up], 0.2 * wide) for _, up, _ in _PLANES.values()]
    size = (2.9 * len(columns), 1.3 + 2.6 * sum(heights) / wide)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots(len(_PLANES), len(columns), squeeze=False, height_ratios=heights)
    for column, shown in enumerate(columns):
        for row, plane in enumerate(_PLANES):
            for i, (name, volume) in enumerate(shown.items()):
                _panel(axes[row, column], volume, plane, point, looks[name], like=first if i else None, marked=not i)
                if not row and not i:
                    axes[0, column].set_title(" + ".join(shown) if overlay else name, fontsize=10, pad=14)
    return figure


def picture(
    volumes: Mapping[str, xr.DataArray],
    path: str | os.PathLike[str],
    *,
    at: ArrayLike | None = None,
    percentiles: tuple[float, float] = (1, 99),
    overlay: bool = False,
) -> None:
    """Write :func:`slices` of volumes as PNG.

    Volumes are shown at a level that a picture can hold: every other voxel, or fewer, of larger ones;
    of a volume with channels or times the first.

    Raises
    ------
    FormatError
        The path does not end in ``.png``.
    """
    if not str(path).lower().endswith(".png"):
        raise FormatError(f"{path} must end in .png")
    figure = slices(
        {name: _small(volume) for name, volume in volumes.items()}, at=at, percentiles=percentiles, overlay=overlay
    )
    with atomic_write(path) as draft:
        figure.savefig(draft, dpi=150)


def montage(
    image: xr.DataArray,
    truth: xr.DataArray | None,
    found: xr.DataArray,
    path: str | os.PathLike[str],
    *,
    plane: str = "axial",
    count: int = 25,
    names: Mapping[int, str] | None = None,
) -> None:
    """Write slices of an image beside their true and their found labels as PNG, five by five, with a legend.

    Letters and a scale bar stand beside the first slice; they hold for all.

    Parameters
    ----------
    image : volume (z, y, x)
    truth : label volume, optional
    found : label volume, on the grid of the image
    path : path
        Ends in ``.png``.
    plane : {"axial", "coronal", "sagittal"}
    count : int
        Slices, evenly spread over those that hold labels.
    names : mapping of int to str, optional
        What labels are called, for the legend.
    """
    if not str(path).lower().endswith(".png"):
        raise FormatError(f"{path} must end in .png")
    fixed, _, _ = _PLANES[plane]
    parts = {"input": image, **({} if truth is None else {"label": truth.mrh.like(found)}), "prediction": found}
    volumes = {name: _small(volume).compute() for name, volume in parts.items()}
    held = np.flatnonzero((volumes["prediction"] != 0).any([d for d in SPATIAL if d != fixed]).values)
    held = held if len(held) else np.arange(volumes["prediction"].sizes[fixed])
    chosen = held[np.unique(np.linspace(0, len(held) - 1, min(count, len(held))).astype(int))]
    values = np.unique(np.concatenate([np.unique(v) for name, v in volumes.items() if name != "input"]))
    values = values[values != 0]
    for name in list(volumes)[1:]:
        # By rank, so that colours repeat only where there are more labels than colours.
        volumes[name] = volumes[name].copy(data=_ranks(volumes[name].values, values))
    looks = {name: _look(volume, 0, (1, 99)) for name, volume in volumes.items()}
    wide = min(5, len(chosen))
    rows = -(-len(chosen) // wide)
    figure = Figure(figsize=(wide * 1.3 * len(parts), rows * 1.6 + 0.8), layout="constrained", facecolor="black")
    axes = figure.subplots(rows, wide * len(parts), squeeze=False)
    for ax in axes.ravel():
        ax.set_axis_off()
    for number, index in enumerate(chosen):
        for side, (name, volume) in enumerate(volumes.items()):
            ax = axes[number // wide, number % wide * len(parts) + side]
            point = volume.mrh.grid.world([index if d == fixed else 0 for d in SPATIAL])
            _panel(ax, volume, plane, point, looks[name], None, marked=not number and not side)
            if number < wide:
                ax.set_title(name, fontsize=7, color="white", pad=14)
    _legend(figure, values, names or {})
    with atomic_write(path, overwrite=True) as draft:
        figure.savefig(draft, dpi=150)


def _ranks(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """1 for the first of the values and so on; 0 for background."""
    return np.where(labels != 0, np.searchsorted(values, labels) + 1, 0)


def _legend(figure: Figure, values: np.ndarray, names: Mapping[int, str]) -> None:
    """Colours of labels by rank; those beyond the number of colours are counted."""
    said = [f"{value:g} {names.get(int(value), '')}".strip() for value in values[: len(_COLOURS)]]
    handles = [Patch(color=colour, label=text) for colour, text in zip(_COLOURS, said, strict=False)]
    if len(values) > len(_COLOURS):
        handles.append(Patch(alpha=0, label=f"and {len(values) - len(_COLOURS)} more, colours repeat"))
    if handles:
        inches = 0.5 + 0.07 * max(len(str(handle.get_label())) for handle in handles)
        columns = max(1, min(len(handles), int(figure.get_figwidth() / inches)))
        style: dict[str, Any] = {"fontsize": 8, "labelcolor": "white", "frameon": False}
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, **style)


def _small(volume: xr.DataArray) -> xr.DataArray:
    volume = volume.isel({d: 0 for d in ("t", "c") if d in volume.dims})
    missing = [d for d in SPATIAL if d not in volume.dims]
    volume = volume.expand_dims(missing).transpose(*SPATIAL)
    return volume.isel({d: slice(None, None, -(-volume.sizes[d] // _MOST_VOXELS)) for d in SPATIAL})


def _look(
    volume: xr.DataArray, layer: int, percentiles: tuple[float, float], where: xr.DataArray | None = None
) -> dict[str, Any]:
    """How a volume is drawn: colours, window, and how much of what is below shows through."""
    values = volume.values
    if where is not None and where.mrh.grid.same_as(volume.mrh.grid):
        values = values[mask_on(where, volume)]
    if volume.attrs.get("kind") in ("labels", "mask"):
        shown: dict[str, Any] = {
            "cmap": ListedColormap(_COLOURS), "vmin": 0, "vmax": len(_COLOURS) - 1, "labels": True
        }  # fmt: skip
    else:
        low, high = np.nanpercentile(values.astype(np.float32), percentiles)
        shown = {"cmap": "gray" if not layer else "inferno", "vmin": float(low), "vmax": float(high), "labels": False}
    return {**shown, "alpha": 0.45 if layer else 1.0}


def _panel(
    ax: Axes,
    volume: xr.DataArray,
    plane: str,
    point: np.ndarray,
    look: dict[str, Any],
    like: xr.DataArray | None,
    *,
    marked: bool,
) -> None:
    """Draw one slice; where `like` is given, the values of `volume` at its voxels."""
    fixed, up, right = _PLANES[plane]
    shown = volume if like is None else like
    grid = shown.mrh.grid
    if any(d not in volume.dims for d in SPATIAL) or volume.ndim != 3:
        raise GridError(f"slices are shown of volumes with dims z, y, x, not {volume.dims}; select a channel")
    index = int(np.clip(np.rint(grid.index(point)[SPATIAL.index(fixed)]), 0, shown.sizes[fixed] - 1))
    if like is None:
        image = volume.isel({fixed: index}).transpose(up, right).values
    else:
        flat = _at_voxels(volume, like.isel({fixed: slice(index, index + 1)}))
        image = flat.isel({fixed: 0}).transpose(up, right).values
    look = dict(look)
    if look.pop("labels"):
        image = np.where(image > 0, (np.nan_to_num(image) - 1) % len(_COLOURS), np.nan)
    letters = dict(zip(SPATIAL, grid.orientation, strict=True))
    step = dict(zip(SPATIAL, grid.spacing, strict=True))
    # Stored downwards or leftwards: drawn the other way round.
    if letters[up] in "PI":
        image, letters[up] = image[::-1], _OPPOSITE[letters[up]]
    if letters[right] in "LP":
        image, letters[right] = image[:, ::-1], _OPPOSITE[letters[right]]
    height, width = image.shape[0] * step[up], image.shape[1] * step[right]
    ax.imshow(image, origin="lower", extent=(0, width, 0, height), aspect="equal", interpolation="nearest", **look)
    ax.set_axis_off()
    if not marked:
        return
    if "source_axes" not in shown.attrs:
        # A stack without an orientation: its axes point nowhere in the body.
        letters = dict.fromkeys(letters, "")
    _mark(ax, letters[up], letters[right], width)


def _mark(ax: Axes, up: str, right: str, width: float) -> None:
    """Letters and a scale bar beside a slice, where they cover no tissue: the axes are as large as the image."""
    style: dict[str, Any] = {"fontsize": 7, "color": _INK, "textcoords": "offset points", "xycoords": "axes fraction"}
    for letter, across, upwards, ha, va in (
        (up, 0.5, 1, "center", "bottom"),
        (_OPPOSITE.get(up, ""), 0.5, 0, "center", "top"),
        (right, 1, 0.5, "left", "center"),
        (_OPPOSITE.get(right, ""), 0, 0.5, "right", "center"),
    ):
        outwards = (4 * (across - 0.5), 4 * (upwards - 0.5))
        ax.annotate(letter, (across, upwards), outwards, ha=ha, va=va, **style)
    length = round_length(width / 4)
    below = ax.transAxes + ScaledTranslation(0, -4 / 72, ax.figure.dpi_scale_trans)
    bar: dict[str, Any] = {"color": _INK, "linewidth": 2, "solid_capstyle": "butt"}
    ax.plot([0, length / width], [0, 0], transform=below, clip_on=False, **bar)
    # Below the letter, which it would meet in a narrow picture.
    ax.annotate(length_of(length), (0, 0), (0, -10), ha="left", va="top", **style)


def _at_voxels(volume: xr.DataArray, like: xr.DataArray) -> xr.DataArray:
    """Nearest value of `volume` at each voxel of `like`; NaN outside."""
    index = np.rint(volume.mrh.grid.index(like.mrh.grid.world(np.moveaxis(np.indices(like.shape), 0, -1)))).astype(int)
    inside = ((index >= 0) & (index < volume.shape)).all(-1)
    values = np.full(like.shape, np.nan)
    values[inside] = volume.values[tuple(index[inside].T)]
    return like.copy(data=values)


def round_length(length: float) -> float:
    """Largest of 1, 2, 5 times a power of ten that is not longer.

    Examples
    --------
    >>> round_length(0.03)
    0.02
    """
    power = 10.0 ** np.floor(np.log10(length))
    return float(max(m * power for m in (1, 2, 5) if m * power <= length * 1.0001))


def roc_curves(result: Sensitivity, names: list[str]) -> Figure:
    """ROC curves of some of the scored contrasts, AUC in the legend."""
    figure = Figure(figsize=(5.5, 4.6), layout="constrained", facecolor="white")
    ax = figure.subplots()
    auc = result.table.set_index("contrast")["auc"]
    for name in names:
        false_positive, true_positive = result.curves[name]
        ax.plot(false_positive, true_positive, label=f"{name} ({auc[name]:.3f})", linewidth=1.5)
    ax.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle=":")
    ax.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.005))
    ax.legend(fontsize=8, loc="lower right")
    return figure


def threshold_curves(result: Sensitivity, names: list[str]) -> Figure:
    """AUC of some of the scored contrasts over the percentile of the histology that divides the classes."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained", facecolor="white")
    ax = figure.subplots()
    for name in names:
        rows = result.thresholds[result.thresholds["contrast"] == name]
        ax.plot(rows["percentile"], rows["auc"], label=name, linewidth=1.5)
    ax.axhline(0.5, color="0.7", linewidth=0.8, linestyle=":")
    ax.set(xlabel=f"percentile of the histology, positive {result.positive}", ylabel="AUC", xlim=(0, 100))
    ax.legend(fontsize=8)
    return figure


def bars(table: pd.DataFrame, label: str, value: str) -> Figure:
    """A bar per row, largest first, with its interval where ``<value>_low`` and ``<value>_high`` are there.

    Examples
    --------
    >>> import pandas as pd
    >>> len(bars(pd.DataFrame({"contrast": ["t2", "mtr"], "share": [0.3, 0.7]}), "contrast", "share").axes)
    1
    """
    shown = table.dropna(subset=[value]).sort_values(value)
    figure = Figure(figsize=(5.5, 0.8 + 0.25 * max(1, len(shown))), layout="constrained", facecolor="white")
    ax = figure.subplots()
    ends = None
    if f"{value}_low" in shown:
        ends = np.abs(shown[[f"{value}_low", f"{value}_high"]].to_numpy().T - shown[value].to_numpy())
    ax.barh(shown[label].astype(str), shown[value], xerr=ends, color="0.6", ecolor="0.2", error_kw={"linewidth": 1})
    ax.axvline(0, color="0.3", linewidth=0.8)
    ax.set(xlabel=value.replace("_", " "))
    ax.tick_params(axis="y", labelsize=8)
    return figure


def training_curve(history: History) -> Figure:
    """Loss and validation RMSE of each epoch; the dotted line is the epoch with the lowest validation loss.

    Parameters
    ----------
    history : History
        From :func:`mrhdata.fit`.

    Returns
    -------
    figure : matplotlib.figure.Figure
        The loss in the target's scaled units, the RMSE in its own.

    Raises
    ------
    DataError
        No epoch was run.

    Examples
    --------
    >>> from mrhdata.training.loop import History
    >>> history = History(training=[0.5, 0.3], validation=[0.6, 0.4], rmse=[12.0, 9.8], best_epoch=1)
    >>> [ax.get_ylabel() for ax in training_curve(history).axes]
    ['loss', 'validation RMSE']
    """
    if not history.validation:
        raise DataError("the history holds no epoch, so there is no curve to draw; train for one or more")
    figure = Figure(figsize=(8.0, 3.4), layout="constrained", facecolor="white")
    losses, errors = figure.subplots(1, 2)
    epochs = np.arange(1, len(history.validation) + 1)
    # Dots, since a single epoch makes no line.
    losses.plot(epochs, history.training, ".-", label="training", linewidth=1.5)
    losses.plot(epochs, history.validation, ".-", label="validation", linewidth=1.5)
    losses.legend(fontsize=8)
    errors.plot(epochs, history.rmse, ".-", color="C1", linewidth=1.5)
    for ax, label in ((losses, "loss"), (errors, "validation RMSE")):
        ax.axvline(history.best_epoch + 1, color="0.7", linewidth=0.8, linestyle=":")
        ax.set(xlabel="epoch", ylabel=label, ylim=(0, None), xlim=(0.5, len(epochs) + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure
