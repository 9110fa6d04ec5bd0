"""Figures of volumes and scores, drawn by matplotlib without a display."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from mrhdata._runtime.atomic import atomic_write
from mrhdata.errors import DataError, FormatError, GridError
from mrhdata.volume.assumptions import assumed
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
#: Maximum number of voxels along an axis of a picture; larger volumes are thinned.
_MOST_VOXELS = 600
#: Colours of labels: strong before light ones, so that neighbouring ids differ; no grey, the colour of images.
_COLOURS = [colormaps["tab20"].colors[i + light] for light in (0, 1) for i in (0, 2, 4, 12, 10, 18, 6, 8, 16)]  # type: ignore[attr-defined]
#: Colour of letters and scale bars, visible on white and on black.
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
    """Plot axial, coronal and sagittal slices of co-registered volumes through one world point.

    Superior and anterior point up, right (or, in sagittal slices, anterior) points right, for any storage order;
    letters at the edges name the directions. Each label has its own colour.

    Parameters
    ----------
    volumes : mapping of str to volume (z, y, x)
    at : (3,) array-like, optional
        World point X, Y, Z in mm; the middle of the first volume by default.
    percentiles : (low, high)
        Percentiles of a volume that are drawn black and white.
    where : mask volume, optional
        Voxels that set the grey windows of the volumes on its grid, because background noise may have a wider range
        than tissue.
    overlay : bool
        Whether to show the later volumes in colour over the first instead of in columns of their own.

    Returns
    -------
    figure : matplotlib.figure.Figure

    Raises
    ------
    GridError
        If `volumes` is empty, a volume has channels or times, or `at` lies outside of the first volume.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> v = from_array(np.random.default_rng(0).random((4, 5, 6)), spacing=(1, 1, 1))
    >>> len(slices({"t2": v, "af": v}).axes), len(slices({"t2": v, "af": v}, overlay=True).axes)
    (6, 3)
    """
    # Each volume and its grey window are computed once for the three planes.
    volumes = {name: volume.compute() for name, volume in group(volumes).items()}
    if not volumes:
        raise GridError("volumes is empty. Pass at least one")
    mask = None if where is None else where.compute()
    styles = {
        name: _style(volume, i if overlay else 0, percentiles, mask) for i, (name, volume) in enumerate(volumes.items())
    }
    first = next(iter(volumes.values()))
    grid = first.mrh.grid
    point = grid.world((np.array(grid.shape) - 1) / 2) if at is None else np.asarray(at, dtype=np.float64)
    if point.shape != (3,):
        raise GridError(f"at must be a world point X, Y, Z in mm; got {point.tolist()}")
    if ((index := grid.index(point)) < -0.5).any() or (index > np.array(grid.shape) - 0.5).any():
        low, high = np.sort(grid.corners().reshape(-1, 3), axis=0)[[0, -1]].round(3).tolist()
        raise GridError(f"at must lie in the first volume, which extends from {low} to {high} mm; got {point.tolist()}")
    columns = [volumes] if overlay else [{name: volume} for name, volume in volumes.items()]
    extent = dict(zip(SPATIAL, grid.shape * grid.spacing, strict=True))
    # Rows are as high as their slices, but high enough for the letters.
    wide = max(extent["x"], extent["y"])
    heights = [max(extent[up], 0.2 * wide) for _, up, _ in _PLANES.values()]
    size = (2.9 * len(columns), 1.3 + 2.6 * sum(heights) / wide)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots(len(_PLANES), len(columns), squeeze=False, height_ratios=heights)
    for column, layers in enumerate(columns):
        for row, plane in enumerate(_PLANES):
            for i, (name, volume) in enumerate(layers.items()):
                like = first if i else None
                _draw_slice(axes[row, column], volume, plane, point, styles[name], like, annotate=not i)
                if not row and not i:
                    axes[0, column].set_title(" + ".join(layers) if overlay else name, fontsize=10, pad=14)
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

    Volumes with more than 600 voxels along an axis are thinned to every second voxel or fewer; volumes with channels
    or times show the first.

    Raises
    ------
    FormatError
        If the path does not end in ``.png``.
    """
    if not str(path).lower().endswith(".png"):
        raise FormatError(f"path must end in .png; got {path}")
    figure = slices(
        {name: _thin(volume) for name, volume in volumes.items()}, at=at, percentiles=percentiles, overlay=overlay
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
    """Write slices of an image with its true and predicted labels as PNG, five per row, with a legend.

    Letters and scale bar of the first slice apply to all.

    Parameters
    ----------
    image : volume (z, y, x)
        Image to show.
    truth : label volume, optional
        Ground truth.
    found : label volume
        Predicted labels on the grid of the image.
    path : path
        Path of the PNG.
    plane : {"axial", "coronal", "sagittal"}
        Plane of the slices.
    count : int
        Number of slices, evenly spread over those with predicted labels.
    names : mapping of int to str, optional
        Names of labels, for the legend.
    """
    if not str(path).lower().endswith(".png"):
        raise FormatError(f"path must end in .png; got {path}")
    fixed, _, _ = _PLANES[plane]
    parts = {"input": image, **({} if truth is None else {"label": truth.mrh.like(found)}), "prediction": found}
    volumes = {name: _thin(volume).compute() for name, volume in parts.items()}
    labelled = np.flatnonzero((volumes["prediction"] != 0).any([d for d in SPATIAL if d != fixed]).values)
    labelled = labelled if len(labelled) else np.arange(volumes["prediction"].sizes[fixed])
    indices = labelled[np.unique(np.linspace(0, len(labelled) - 1, min(count, len(labelled))).astype(int))]
    present = np.concatenate([np.unique(v) for name, v in volumes.items() if name != "input"])
    # Named labels keep their colours in pictures that lack some of them.
    values = np.unique(np.concatenate([present, np.array([*(names or {})], present.dtype)]))
    values = values[values != 0]
    for name in list(volumes)[1:]:
        # Labels get colours by rank, so that colours repeat only if there are more labels than colours.
        volumes[name] = volumes[name].copy(data=_ranks(volumes[name].values, values))
    styles = {name: _style(volume, 0, (1, 99)) for name, volume in volumes.items()}
    wide = min(5, len(indices))
    rows = -(-len(indices) // wide)
    figure = Figure(figsize=(wide * 1.3 * len(parts), rows * 1.6 + 0.8), layout="constrained", facecolor="black")
    axes = figure.subplots(rows, wide * len(parts), squeeze=False)
    for ax in axes.ravel():
        ax.set_axis_off()
    for number, index in enumerate(indices):
        for side, (name, volume) in enumerate(volumes.items()):
            ax = axes[number // wide, number % wide * len(parts) + side]
            point = volume.mrh.grid.world([index if d == fixed else 0 for d in SPATIAL])
            _draw_slice(ax, volume, plane, point, styles[name], None, annotate=not number and not side)
            if number < wide:
                ax.set_title(name, fontsize=7, color="white", pad=14)
    _add_legend(figure, values, names or {})
    with atomic_write(path, overwrite=True) as draft:
        figure.savefig(draft, dpi=150)


def label_colours(labels: Iterable[int]) -> dict[int, str]:
    """Return the colours of labels, as hexadecimal RGB, which montages give them.

    Examples
    --------
    >>> label_colours([3, 1])
    {1: '#1f77b4', 3: '#ff7f0e'}
    """
    values = sorted(set(labels) - {0})
    return {value: to_hex(_COLOURS[rank % len(_COLOURS)]) for rank, value in enumerate(values)}


def _ranks(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the rank of each label among the sorted values, from 1; 0 for background."""
    return np.where(labels != 0, np.searchsorted(values, labels) + 1, 0)


def _add_legend(figure: Figure, values: np.ndarray, names: Mapping[int, str]) -> None:
    """Add a legend of label colours, with the number of labels that do not fit."""
    texts = [f"{value:g} {names.get(int(value), '')}".strip() for value in values[: len(_COLOURS)]]
    handles = [Patch(color=colour, label=text) for colour, text in zip(_COLOURS, texts, strict=False)]
    if len(values) > len(_COLOURS):
        handles.append(Patch(alpha=0, label=f"and {len(values) - len(_COLOURS)} more, colours repeat"))
    if handles:
        inches = 0.5 + 0.07 * max(len(str(handle.get_label())) for handle in handles)
        columns = max(1, min(len(handles), int(figure.get_figwidth() / inches)))
        style: dict[str, Any] = {"fontsize": 8, "labelcolor": "white", "frameon": False}
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, **style)


def _thin(volume: xr.DataArray) -> xr.DataArray:
    """Return the first channel and time of a volume with at most 600 voxels along each axis."""
    volume = volume.isel({d: 0 for d in ("t", "c") if d in volume.dims})
    missing = [d for d in SPATIAL if d not in volume.dims]
    volume = volume.expand_dims(missing).transpose(*SPATIAL)
    return volume.isel({d: slice(None, None, -(-volume.sizes[d] // _MOST_VOXELS)) for d in SPATIAL})


def _style(
    volume: xr.DataArray, layer: int, percentiles: tuple[float, float], where: xr.DataArray | None = None
) -> dict[str, Any]:
    """Return the colour map, the grey window and the opacity of a volume."""
    values = volume.values
    if where is not None and where.mrh.grid.same_as(volume.mrh.grid):
        values = values[mask_on(where, volume)]
    if volume.attrs.get("kind") in ("labels", "mask"):
        style: dict[str, Any] = {
            "cmap": ListedColormap(_COLOURS), "vmin": 0, "vmax": len(_COLOURS) - 1, "labels": True
        }  # fmt: skip
    else:
        low, high = np.nanpercentile(values.astype(np.float32), percentiles)
        style = {"cmap": "gray" if not layer else "inferno", "vmin": float(low), "vmax": float(high), "labels": False}
    return {**style, "alpha": 0.45 if layer else 1.0}


def _draw_slice(
    ax: Axes,
    volume: xr.DataArray,
    plane: str,
    point: np.ndarray,
    style: dict[str, Any],
    like: xr.DataArray | None,
    *,
    annotate: bool,
) -> None:
    """Draw one slice of `volume` on its own grid, or on the grid of `like`."""
    fixed, up, right = _PLANES[plane]
    target = volume if like is None else like
    grid = target.mrh.grid
    if any(d not in volume.dims for d in SPATIAL) or volume.ndim != 3:
        raise GridError(f"a volume must have the dims z, y, x; got {volume.dims}. Select a channel")
    index = int(np.clip(np.rint(grid.index(point)[SPATIAL.index(fixed)]), 0, target.sizes[fixed] - 1))
    if like is None:
        image = volume.isel({fixed: index}).transpose(up, right).values
    else:
        flat = _at_voxels(volume, like.isel({fixed: slice(index, index + 1)}))
        image = flat.isel({fixed: 0}).transpose(up, right).values
    style = dict(style)
    if style.pop("labels"):
        image = np.where(image > 0, (np.nan_to_num(image) - 1) % len(_COLOURS), np.nan)
    letters = dict(zip(SPATIAL, grid.orientation, strict=True))
    step = dict(zip(SPATIAL, grid.spacing, strict=True))
    # Axes that are stored downwards or leftwards are flipped.
    if letters[up] in "PI":
        image, letters[up] = image[::-1], _OPPOSITE[letters[up]]
    if letters[right] in "LP":
        image, letters[right] = image[:, ::-1], _OPPOSITE[letters[right]]
    height, width = image.shape[0] * step[up], image.shape[1] * step[right]
    ax.imshow(image, origin="lower", extent=(0, width, 0, height), aspect="equal", interpolation="nearest", **style)
    ax.set_axis_off()
    if not annotate:
        return
    if "source_axes" not in target.attrs or "orientation" in assumed(target):
        # The axes of a stack without an orientation have no anatomical direction.
        letters = dict.fromkeys(letters, "")
    _annotate(ax, letters[up], letters[right], width)


def _annotate(ax: Axes, up: str, right: str, width: float) -> None:
    """Add letters and a scale bar outside of a slice, because the axes are as large as the image."""
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
    # The length is below the letter, because they would overlap in a narrow picture.
    ax.annotate(length_of(length), (0, 0), (0, -10), ha="left", va="top", **style)


def _at_voxels(volume: xr.DataArray, like: xr.DataArray) -> xr.DataArray:
    """Return the nearest value of `volume` at each voxel of `like`; NaN outside."""
    index = np.rint(volume.mrh.grid.index(like.mrh.grid.world(np.moveaxis(np.indices(like.shape), 0, -1)))).astype(int)
    inside = ((index >= 0) & (index < volume.shape)).all(-1)
    values = np.full(like.shape, np.nan)
    values[inside] = volume.values[tuple(index[inside].T)]
    return like.copy(data=values)


def round_length(length: float) -> float:
    """Round down to 1, 2 or 5 times a power of ten.

    Examples
    --------
    >>> round_length(0.03)
    0.02
    """
    power = 10.0 ** np.floor(np.log10(length))
    return float(max(m * power for m in (1, 2, 5) if m * power <= length * 1.0001))


def roc_curves(result: Sensitivity, names: list[str]) -> Figure:
    """Plot ROC curves of some of the scored contrasts, with the AUC in the legend."""
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
    """Plot the AUC of some of the scored contrasts against the percentile that divides the classes."""
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
    """Plot one bar per row, largest first, with intervals if the table has ``<value>_low`` and ``<value>_high``.

    Examples
    --------
    >>> import pandas as pd
    >>> len(bars(pd.DataFrame({"contrast": ["t2", "mtr"], "share": [0.3, 0.7]}), "contrast", "share").axes)
    1
    """
    rows = table.dropna(subset=[value]).sort_values(value)
    figure = Figure(figsize=(5.5, 0.8 + 0.25 * max(1, len(rows))), layout="constrained", facecolor="white")
    ax = figure.subplots()
    errors = None
    if f"{value}_low" in rows:
        errors = np.abs(rows[[f"{value}_low", f"{value}_high"]].to_numpy().T - rows[value].to_numpy())
    ax.barh(rows[label].astype(str), rows[value], xerr=errors, color="0.6", ecolor="0.2", error_kw={"linewidth": 1})
    ax.axvline(0, color="0.3", linewidth=0.8)
    ax.set(xlabel=value.replace("_", " "))
    ax.tick_params(axis="y", labelsize=8)
    return figure


def training_curve(history: History) -> Figure:
    """Plot loss and validation RMSE by epoch; a dotted line marks the epoch with the lowest validation loss.

    Parameters
    ----------
    history : History
        Training history from :func:`mrhdata.fit`.

    Returns
    -------
    figure : matplotlib.figure.Figure
        Figure with the loss in scaled units and the RMSE in the target's units.

    Raises
    ------
    DataError
        If the history has no epoch.

    Examples
    --------
    >>> from mrhdata.training.loop import History
    >>> history = History(training=[0.5, 0.3], validation=[0.6, 0.4], rmse=[12.0, 9.8], best_epoch=1)
    >>> [ax.get_ylabel() for ax in training_curve(history).axes]
    ['loss', 'validation RMSE']
    """
    if not history.validation:
        raise DataError("the history has no epoch to plot. Train for at least one")
    figure = Figure(figsize=(8.0, 3.4), layout="constrained", facecolor="white")
    losses, errors = figure.subplots(1, 2)
    epochs = np.arange(1, len(history.validation) + 1)
    # Dots show a single epoch, which has no line.
    losses.plot(epochs, history.training, ".-", label="training", linewidth=1.5)
    losses.plot(epochs, history.validation, ".-", label="validation", linewidth=1.5)
    losses.legend(fontsize=8)
    errors.plot(epochs, history.rmse, ".-", color="C1", linewidth=1.5)
    for ax, label in ((losses, "loss"), (errors, "validation RMSE")):
        ax.axvline(history.best_epoch + 1, color="0.7", linewidth=0.8, linestyle=":")
        ax.set(xlabel="epoch", ylabel=label, ylim=(0, None), xlim=(0.5, len(epochs) + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure
