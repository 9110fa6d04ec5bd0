"""Pictures of volumes and scores, as matplotlib figures that no window needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from mrhdata.errors import GridError
from mrhdata.volume import SPATIAL, group

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

    from mrhdata.contrasts import Sensitivity

#: Plane -> the axis held fixed, the axis drawn upwards, the axis drawn to the right.
_PLANES = {"axial": ("z", "y", "x"), "coronal": ("y", "z", "x"), "sagittal": ("x", "z", "y")}
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


def slices(
    volumes: Mapping[str, xr.DataArray], *, at: ArrayLike | None = None, percentiles: tuple[float, float] = (1, 99)
) -> Figure:
    """Axial, coronal and sagittal slices of co-registered volumes through one world point.

    Superior and anterior point up, right (or, sagittal, anterior) points right, however the volumes
    are stored; letters at the edges say where they point. The grey window goes from one percentile
    of a volume to another.

    Parameters
    ----------
    volumes : mapping of str to volume (z, y, x)
    at : (3,) array-like, optional
        World mm; the middle of the first volume by default.
    percentiles : (low, high)

    Returns
    -------
    figure : matplotlib.figure.Figure

    Examples
    --------
    >>> from mrhdata.volume import from_array
    >>> v = from_array(np.random.default_rng(0).random((4, 5, 6)), spacing=(1, 1, 1))
    >>> len(slices({"t2": v, "af": v}).axes)
    6
    """
    volumes = group(volumes)
    if not volumes:
        raise GridError("there is no volume to show; give at least one")
    first = next(iter(volumes.values())).mrh.grid
    point = first.world((np.array(first.shape) - 1) / 2) if at is None else np.asarray(at, dtype=np.float64)
    extent = dict(zip(SPATIAL, first.shape * first.spacing, strict=True))
    # Rows as high as what they show, but never too low for the letters.
    wide = max(extent["x"], extent["y"])
    heights = [max(extent[up], 0.2 * wide) for _, up, _ in _PLANES.values()]
    size = (2.6 * len(volumes), 0.4 + 2.6 * sum(heights) / wide)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots(len(_PLANES), len(volumes), squeeze=False, height_ratios=heights)
    for column, (name, volume) in enumerate(volumes.items()):
        values = volume.astype(np.float32).compute()
        low, high = np.nanpercentile(values, percentiles)
        for row, plane in enumerate(_PLANES):
            _panel(axes[row, column], values, plane, point, (float(low), float(high)))
        axes[0, column].set_title(name, fontsize=10)
    return figure


def _panel(ax: Axes, volume: xr.DataArray, plane: str, point: np.ndarray, window: tuple[float, float]) -> None:
    fixed, up, right = _PLANES[plane]
    grid = volume.mrh.grid
    if any(d not in volume.dims for d in SPATIAL) or volume.ndim != 3:
        raise GridError(f"slices are shown of volumes with dims z, y, x, not {volume.dims}; select a channel")
    index = int(np.clip(np.rint(grid.index(point)[SPATIAL.index(fixed)]), 0, volume.sizes[fixed] - 1))
    image = volume.isel({fixed: index}).transpose(up, right).values
    letters = dict(zip(SPATIAL, grid.orientation, strict=True))
    step = dict(zip(SPATIAL, grid.spacing, strict=True))
    # Stored downwards or leftwards: drawn the other way round.
    if letters[up] in "PI":
        image, letters[up] = image[::-1], _OPPOSITE[letters[up]]
    if letters[right] in "LP":
        image, letters[right] = image[:, ::-1], _OPPOSITE[letters[right]]
    height, width = image.shape[0] * step[up], image.shape[1] * step[right]
    ax.imshow(
        image, cmap="gray", origin="lower", vmin=window[0], vmax=window[1], extent=(0, width, 0, height), aspect="equal"
    )
    ax.set_axis_off()
    # Inside the picture, where they cover no title and no neighbour.
    style: dict[str, Any] = {"fontsize": 7, "color": "#f80", "ha": "center", "va": "center"}
    for letter, across, upwards in (
        (letters[up], 0.5, 0.96),
        (_OPPOSITE[letters[up]], 0.5, 0.04),
        (letters[right], 0.97, 0.5),
        (_OPPOSITE[letters[right]], 0.03, 0.5),
    ):
        ax.text(across * width, upwards * height, letter, **style)
    length, left, low = _round_length(width / 4), 0.03 * width, 0.04 * height
    ax.plot([left, left + length], [low, low], color="#f80", linewidth=2, solid_capstyle="butt")
    ax.text(left, low * 1.5, _in_words(length), **(style | {"ha": "left", "va": "bottom"}))


def _round_length(length: float) -> float:
    """Largest of 1, 2, 5 times a power of ten that is not longer."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(max(m * power for m in (1, 2, 5) if m * power <= length * 1.0001))


def _in_words(mm: float) -> str:
    """Length in nm, um or mm, whichever reads best.

    Examples
    --------
    >>> _in_words(2.0), _in_words(0.05), _in_words(1e-5)
    ('2 mm', '50 um', '10 nm')
    """
    for factor, unit in ((1.0, "mm"), (1e3, "um")):
        if mm * factor >= 1:
            return f"{mm * factor:g} {unit}"
    return f"{round(mm * 1e6, 3):g} nm"


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
