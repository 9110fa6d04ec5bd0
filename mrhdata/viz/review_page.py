"""Pictures of places in a volume, as one PNG or as a page on which a person reviews them.

Each place is shown in three planes through it with isotropic pixels: rows run down and columns to the right, as in
Fiji and napari. Pixels are the nearest voxels without interpolation, black outside the volume.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mrhdata._runtime.atomic import atomic_write, check_target
from mrhdata._runtime.memory import parse_memory
from mrhdata.analysis.review import DECISIONS, KINDS
from mrhdata.errors import DataError, FormatError
from mrhdata.io.cell_tables import WORLD
from mrhdata.patching.box_reader import BoxReader
from mrhdata.patching.sources import one_grid
from mrhdata.viz.plots import round_length
from mrhdata.volume.box import Box
from mrhdata.volume.construct import SPATIAL
from mrhdata.volume.grid import length as length_of

if TYPE_CHECKING:
    import xarray as xr

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Axis held fixed -> the axis that runs down, the axis that runs to the right.
PLANES = {"z": ("y", "x"), "y": ("z", "x"), "x": ("z", "y")}
#: The same as axis numbers: fixed, down, right.
_AXES = [tuple(SPATIAL.index(axis) for axis in (fixed, *shown)) for fixed, shown in PLANES.items()]
#: Maximum edge of a picture in pixels, so that a page of 200 places stays below 10 MB.
_MOST_PIXELS = 97
#: Percentiles that are drawn black and white; the upper one is high because a cell fills a small part of a picture.
_BLACK, _WHITE = 1, 99.5
#: Maximum length of the ticks as a fraction of a picture. They point at the centre without covering the cell, and are
#: the scale bar.
_TICK_FRACTION = 0.15
#: Places per row of a montage, gap between two in pixels, and height of a caption in pixels.
_COLUMNS, _GAP, _CAPTION = 4, 6, 15


@dataclass(frozen=True)
class Pictures:
    """Places of a volume in three planes.

    Attributes
    ----------
    planes : (n, 3, p, p) uint8 array
        Planes of constant z, y and x of each place, with the axes of :data:`PLANES`.
    grey : (n, 2) array
        Values that are drawn black and white.
    width_mm : float
        Width of a picture in mm.
    """

    planes: NDArray[np.uint8]
    grey: Floats
    width_mm: float

    @property
    def tick_mm(self) -> float:
        """Length of the ticks at the edges, a round number."""
        return round_length(_TICK_FRACTION * self.width_mm)

    @property
    def ticks(self) -> Floats:
        """Four lines (x, y) in pixels, from the edges of a picture towards its centre."""
        side = self.planes.shape[-1]
        reach = self.tick_mm / self.width_mm
        lines = [[[0, 0.5], [reach, 0.5]], [[1 - reach, 0.5], [1, 0.5]]]
        return side * np.array(lines + [[[y, x] for x, y in line] for line in lines])

    def joined(self, number: int) -> NDArray[np.uint8]:
        """Return the three planes of a place side by side, (p, 3 p)."""
        return np.concatenate(list(self.planes[number]), axis=1)


def render_places(
    volume: xr.DataArray, places: pd.DataFrame, width_mm: float = 0.08, *, memory: int | str = "500 MB"
) -> Pictures:
    """Render pictures of places in a volume of any size.

    Only stored chunks that the planes touch are read, each once if the memory allows.

    Parameters
    ----------
    volume : volume (z, y, x)
        Volume to show.
    places : DataFrame
        Points with ``X, Y, Z`` in mm, as from :func:`mrhdata.analysis.review.examples`.
    width_mm : float
        Width of a picture. A pixel has the finest voxel spacing, or more if that makes over 97 pixels.
    memory : int or str
        Memory for decoded chunks, in bytes or as in ``"500 MB"``.

    Returns
    -------
    pictures : Pictures
        Pictures with grey windows from percentiles 1 to 99.5 of each place.

    Raises
    ------
    DataError
        If the volume has channels or times, or the width is less than three voxels.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> v = from_array(np.arange(1000.0).reshape(10, 10, 10), spacing=(0.005, 0.002, 0.002))
    >>> pictures = render_places(v, pd.DataFrame({"X": [0.01], "Y": [0.01], "Z": [0.02]}), width_mm=0.01)
    >>> pictures.planes.shape, round(pictures.width_mm, 3), pictures.grey.round().tolist()
    ((1, 3, 5, 5), 0.01, [[342.0, 571.0]])
    """
    if volume.dims != SPATIAL:
        raise DataError(f"the volume must have the dims z, y, x; got {volume.dims}. Select a channel")
    grid = volume.mrh.grid
    if not width_mm >= 3 * grid.spacing.min():
        raise DataError(f"width_mm must be at least three voxels of {grid.spacing.min():.4g} mm; got {width_mm}")
    step = max(float(grid.spacing.min()), width_mm / _MOST_PIXELS)
    reach = int(width_mm / step / 2 + 1e-9)
    pixels = np.arange(-reach, reach + 1) * step
    planes = np.zeros((len(places), 3, len(pixels), len(pixels)), np.uint8)
    grey = np.full((len(places), 2), np.nan)
    centres = grid.index(places[WORLD].to_numpy(np.float64)).reshape(-1, 3)
    # The small offset makes places between two voxels independent of rounding errors.
    index = np.floor(centres[:, :, None] + pixels / grid.spacing[:, None] + 0.5 + 1e-6).astype(np.int64)
    last = np.array(grid.shape)[:, None] - 1
    inside = (index >= 0) & (index <= last)
    for i, slices in enumerate(_read_planes(volume, np.clip(index, 0, last), parse_memory(memory))):
        masks = [inside[i, a][:, None] & inside[i, b] & inside[i, c, reach] for c, a, b in _AXES]
        values = np.concatenate([plane[mask] for plane, mask in zip(slices, masks, strict=True)])
        values = values[np.isfinite(values)]
        if values.size:
            grey[i] = np.percentile(values, [_BLACK, _WHITE])
            shades = (np.stack(slices) - grey[i, 0]) / (np.ptp(grey[i]) or 1.0)
            planes[i] = np.where(masks, np.rint(255 * np.nan_to_num(np.clip(shades, 0, 1))), 0)
    return Pictures(planes, grey, len(pixels) * step)


def _read_planes(volume: xr.DataArray, index: Ints, memory: int) -> Iterator[list[Floats]]:
    """Yield the three planes of each place, whose voxel indices are (n, axis, pixel) and inside the volume."""
    if not len(index):
        return
    middle = index.shape[2] // 2
    boxes: list[list[Box]] = []
    for voxels in index:
        low, high = voxels.min(axis=1), voxels.max(axis=1) + 1
        for fixed, *_ in _AXES:
            start, stop = low.copy(), high.copy()
            start[fixed], stop[fixed] = voxels[fixed, middle], voxels[fixed, middle] + 1
            boxes.append([Box.of(start, stop)])
    reader = BoxReader(one_grid({str(volume.name): volume}, (1, 1, 1), None, False), memory)
    planes: list[Floats] = []
    for number, values in enumerate(reader.read(boxes)):
        i, (fixed, down, right) = number // 3, _AXES[number % 3]
        rows = [index[i, a] - index[i, a].min() for a in (down, right)]
        planes.append(np.take(values[0, 0], 0, axis=fixed)[np.ix_(*rows)].astype(np.float64))
        if len(planes) == 3:
            yield planes
            planes = []


def montage_png(path: str | os.PathLike[str], volume: xr.DataArray, places: pd.DataFrame, **cutting: Any) -> None:
    """Write pictures of places as one PNG, each with its number, kind and score.

    Parameters
    ----------
    path : path
        Path of the PNG.
    volume, places
        As for :func:`render_places`; `places` come from :func:`mrhdata.analysis.review.examples`.
    cutting
        Further options of :func:`render_places`.

    Raises
    ------
    DataError, FormatError
        If `places` is empty, or the path does not end in ``.png``.
    """
    if not str(path).lower().endswith(".png"):
        raise FormatError(f"path must end in .png; got {path}")
    _check_places(places)
    pictures = render_places(volume, places, **cutting)
    side = pictures.planes.shape[-1]
    wide = min(_COLUMNS, len(places))
    across, downward = 3 * side + _GAP, side + _CAPTION
    height, width = -(-len(places) // wide) * downward + _CAPTION, wide * across + _GAP
    canvas = np.full((height, width), 24, np.uint8)
    figure = Figure(figsize=(width / 50, height / 50))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    style: dict[str, Any] = {"color": "white", "fontsize": 8, "va": "center"}
    ticks, borders = [], []
    for i, (kind, score) in enumerate(zip(places["kind"], places["score"], strict=True)):
        left, top = _GAP + i % wide * across, _CAPTION + i // wide * downward
        canvas[top : top + side, left : left + 3 * side] = pictures.joined(i)
        # Integer coordinates are the centres of pixels.
        corners = [np.array([left + plane * side - 0.5, top - 0.5]) for plane in range(3)]
        ticks += [corner + line for corner in corners for line in pictures.ticks]
        borders += [[corner, corner + np.array([0, side])] for corner in corners[1:]]
        caption = f"{i + 1}  {kind}" + ("" if np.isnan(score) else f"  {score:.2f}")
        ax.text(left, top + side + _CAPTION / 2, caption, **style)
    ax.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.add_collection(LineCollection(borders, colors="0.5", linewidths=1))
    ax.add_collection(LineCollection(ticks, colors="#f80", linewidths=1))
    title = f"planes of constant z, y and x; ticks are {length_of(pictures.tick_mm)} long"
    ax.text(_GAP, _CAPTION / 2, title, **style)
    with atomic_write(path) as draft:
        figure.savefig(draft, dpi=100)


def write_review(
    path: str | os.PathLike[str],
    volume: xr.DataArray,
    places: pd.DataFrame,
    *,
    title: str | None = None,
    overwrite: bool = True,
    **cutting: Any,
) -> None:
    """Write a self-contained page on which a person decides for each place: cell, no cell, or unsure.

    The browser stores the decisions for this list of places. The button of the page saves them as ``decisions.csv``
    for :func:`mrhdata.analysis.review.read_decisions`.

    Parameters
    ----------
    path : path
        Path of the HTML file.
    volume, places
        As for :func:`montage_png`.
    title : str, optional
        Title of the page; "Review of" and the name of the volume by default.
    overwrite : bool
        Whether to replace an existing file.
    cutting
        Further options of :func:`render_places`.

    Raises
    ------
    DataError
        If `places` is empty.

    Examples
    --------
    >>> import tempfile
    >>> from mrhdata.analysis.review import examples
    >>> from mrhdata.volume.construct import from_array
    >>> v = from_array(np.random.default_rng(0).random((9, 9, 9)), spacing=(0.002,) * 3, name="<signal>")
    >>> path = Path(tempfile.mkdtemp()) / "review.html"
    >>> cells = pd.DataFrame({"X": [0.008], "Y": [0.01], "Z": [0.006], "score": [0.7]})
    >>> write_review(path, v, examples(cells), width_mm=0.01)
    >>> "Review of &lt;signal&gt;" in path.read_text(), "<signal>" in path.read_text()
    (True, False)
    """
    check_target(Path(path), overwrite)
    _check_places(places)
    pictures = render_places(volume, places, **cutting)
    content = hashlib.sha256("\n".join(places["id"] + places["kind"]).encode()).hexdigest()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    html = template.render(
        title=title or f"Review of {'a volume' if volume.name is None else volume.name}",
        key=f"mrhdata-review-{content[:16]}",
        cards=list(_cards(volume, places, pictures)),
        kinds={kind: KINDS[kind] for kind in KINDS if (places["kind"] == kind).any()},
        decisions=DECISIONS,
        side=pictures.planes.shape[-1],
        ticks=pictures.ticks.round(2).reshape(-1, 4).tolist(),
        tick=length_of(pictures.tick_mm),
        width=_three_digits(pictures.width_mm),
    )
    with atomic_write(path, overwrite=overwrite) as draft:
        draft.write_text(html, encoding="utf-8")


def _distance(mm: float, voxel_mm: float) -> str:
    """Return a distance in words; below a hundredth of a voxel it is rounding."""
    return "at the same place" if mm < voxel_mm / 100 else f"{_three_digits(mm)} away"


def _three_digits(mm: float) -> str:
    return length_of(float(f"{mm:.3g}"))


def _check_places(places: pd.DataFrame) -> None:
    if not len(places):
        raise DataError("places is empty, because there are neither detections nor annotations to review")


def _cards(volume: xr.DataArray, places: pd.DataFrame, pictures: Pictures) -> Iterator[dict[str, Any]]:
    """Yield the fields that the page shows and saves for each place."""
    import imagecodecs

    grid = volume.mrh.grid
    digits = max(0, int(np.ceil(-np.log10(grid.spacing.min()))) + 1)
    voxels = grid.index(places[WORLD].to_numpy(np.float64)).reshape(-1, 3)
    for i, row in enumerate(places.to_dict("records")):
        png = imagecodecs.png_encode(np.ascontiguousarray(pictures.joined(i)), level=9)
        apart = row["apart_mm"]
        yield {
            **{name: row[name] for name in ("id", "kind", "drawn", *WORLD)},
            "score": None if np.isnan(row["score"]) else row["score"],
            "png": base64.b64encode(png).decode("ascii"),
            "mm": ", ".join(f"{row[name]:.{digits}f}" for name in WORLD),
            "voxel": ", ".join(f"{value:.1f}" for value in voxels[i]),
            "apart": _distance(apart, float(grid.spacing.min())) if np.isfinite(apart) else None,
            "to": "annotation" if row["kind"] in ("false positive", "double") else "detection",
            "grey": _format_window(pictures.grey[i]),
        }


def _format_window(grey: Floats) -> str | None:
    return " to ".join(f"{value:.5g}" for value in grey) if np.isfinite(grey[0]) else None
