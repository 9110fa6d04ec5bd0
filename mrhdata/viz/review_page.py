"""Pictures of places in a volume, side by side as one PNG, or as a page on which a person judges them.

Each place is shown in three planes through it, true to length: rows run down and columns to the right, as in Fiji
and napari. Pixels are the nearest voxels as they were measured; beyond the volume it is black.
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
from mrhdata.analysis.review import KINDS, VERDICTS
from mrhdata.errors import DataError, FormatError
from mrhdata.inference.box_reader import BoxReader
from mrhdata.io.cell_tables import WORLD
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
#: The same by number: fixed, down, right.
_AXES = [tuple(SPATIAL.index(axis) for axis in (fixed, *shown)) for fixed, shown in PLANES.items()]
#: Pixels along the edge of a picture at most, so that a page of 200 places stays below 10 MB.
_MOST_PIXELS = 97
#: Percentiles of what a place shows that are drawn black and white: a cell is a small part of its surroundings.
_BLACK, _WHITE = 1, 99.5
#: How far ticks at a picture's edges reach inward at most, as a part of it: they point at its centre, cover no cell
#: there, and are the scale.
_REACH = 0.15
#: Places beside each other in a montage, and the pixels between two and under each.
_WIDE, _GAP, _CAPTION = 4, 6, 15


@dataclass(frozen=True)
class Pictures:
    """Places of a volume in three planes.

    Attributes
    ----------
    planes : (n, 3, p, p) uint8 array
        Of each place the planes of constant z, y and x, as :data:`PLANES` has them.
    grey : (n, 2) array
        Values that are black and white.
    width_mm : float
        Of a picture.
    """

    planes: NDArray[np.uint8]
    grey: Floats
    width_mm: float

    @property
    def tick_mm(self) -> float:
        """Length of the ticks at their edges: a round one."""
        return round_length(_REACH * self.width_mm)

    @property
    def ticks(self) -> Floats:
        """Four lines (x, y) from the edges of a picture towards its centre, in pixels."""
        side = self.planes.shape[-1]
        reach = self.tick_mm / self.width_mm
        lines = [[[0, 0.5], [reach, 0.5]], [[1 - reach, 0.5], [1, 0.5]]]
        return side * np.array(lines + [[[y, x] for x, y in line] for line in lines])

    def joined(self, number: int) -> NDArray[np.uint8]:
        """The three planes of a place beside each other, (p, 3 p)."""
        return np.concatenate(list(self.planes[number]), axis=1)


def render_places(
    volume: xr.DataArray, places: pd.DataFrame, width_mm: float = 0.08, *, memory: int | str = "500 MB"
) -> Pictures:
    """Cut pictures of places out of a volume of any size.

    Only the stored chunks that the planes of a place touch are read, each once where the memory allows.

    Parameters
    ----------
    volume : volume (z, y, x)
    places : DataFrame
        With ``X, Y, Z`` in mm, as of :func:`mrhdata.analysis.review.examples`.
    width_mm : float
        Of a picture. A pixel is as large as the finest voxel edge, or larger where that makes more than 97.
    memory : int or str
        Bytes of decoded chunks.

    Returns
    -------
    pictures : Pictures
        Black and white are percentiles 1 and 99.5 of what a place shows within the volume, for each place anew.

    Raises
    ------
    DataError
        The volume has channels or times; the width is less than three voxels.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> v = from_array(np.arange(1000.0).reshape(10, 10, 10), spacing=(0.005, 0.002, 0.002))
    >>> made = render_places(v, pd.DataFrame({"X": [0.01], "Y": [0.01], "Z": [0.02]}), width_mm=0.01)
    >>> made.planes.shape, round(made.width_mm, 3), made.grey.round().tolist()
    ((1, 3, 5, 5), 0.01, [[342.0, 571.0]])
    """
    if volume.dims != SPATIAL:
        raise DataError(f"pictures are made of volumes with the axes z, y, x, not {volume.dims}; select a channel")
    grid = volume.mrh.grid
    if not width_mm >= 3 * grid.spacing.min():
        raise DataError(f"a picture of {width_mm} mm holds no three voxels of {grid.spacing.min():.4g} mm; widen it")
    step = max(float(grid.spacing.min()), width_mm / _MOST_PIXELS)
    reach = int(width_mm / step / 2 + 1e-9)
    pixels = np.arange(-reach, reach + 1) * step
    planes = np.zeros((len(places), 3, len(pixels), len(pixels)), np.uint8)
    grey = np.full((len(places), 2), np.nan)
    centres = grid.index(places[WORLD].to_numpy(np.float64)).reshape(-1, 3)
    # Places between two voxels show the same one, whatever the last bit is.
    index = np.floor(centres[:, :, None] + pixels / grid.spacing[:, None] + 0.5 + 1e-6).astype(np.int64)
    last = np.array(grid.shape)[:, None] - 1
    inside = (index >= 0) & (index <= last)
    for i, cut in enumerate(_cut(volume, np.clip(index, 0, last), parse_memory(memory))):
        seen = [inside[i, a][:, None] & inside[i, b] & inside[i, c, reach] for c, a, b in _AXES]
        values = np.concatenate([plane[part] for plane, part in zip(cut, seen, strict=True)])
        values = values[np.isfinite(values)]
        if values.size:
            grey[i] = np.percentile(values, [_BLACK, _WHITE])
            shades = (np.stack(cut) - grey[i, 0]) / (np.ptp(grey[i]) or 1.0)
            planes[i] = np.where(seen, np.rint(255 * np.nan_to_num(np.clip(shades, 0, 1))), 0)
    return Pictures(planes, grey, len(pixels) * step)


def _cut(volume: xr.DataArray, index: Ints, memory: int) -> Iterator[list[Floats]]:
    """The three planes of each place (n, axis, pixel) within the volume."""
    if not len(index):
        return
    middle = index.shape[2] // 2
    boxes: list[list[Box]] = []
    for place in index:
        low, high = place.min(axis=1), place.max(axis=1) + 1
        for fixed, *_ in _AXES:
            a, b = low.copy(), high.copy()
            a[fixed], b[fixed] = place[fixed, middle], place[fixed, middle] + 1
            boxes.append([Box.of(a, b)])
    sweep = BoxReader(one_grid({str(volume.name): volume}, (1, 1, 1), None, False), memory)
    found: list[Floats] = []
    for number, values in enumerate(sweep.read(boxes)):
        i, (fixed, down, right) = number // 3, _AXES[number % 3]
        rows = [index[i, a] - index[i, a].min() for a in (down, right)]
        found.append(np.take(values[0, 0], 0, axis=fixed)[np.ix_(*rows)].astype(np.float64))
        if len(found) == 3:
            yield found
            found = []


def montage_png(path: str | os.PathLike[str], volume: xr.DataArray, places: pd.DataFrame, **cutting: Any) -> None:
    """Write pictures of places as one PNG, each with its number, kind and score.

    Parameters
    ----------
    path : path
        Ends in ``.png``.
    volume, places
        As for :func:`render_places`; places of :func:`mrhdata.analysis.review.examples`.
    cutting
        Further settings of :func:`render_places`.

    Raises
    ------
    DataError, FormatError
        There is no place; the path does not end in ``.png``.
    """
    if not str(path).lower().endswith(".png"):
        raise FormatError(f"{path} must end in .png")
    _check_places(places)
    made = render_places(volume, places, **cutting)
    side = made.planes.shape[-1]
    wide = min(_WIDE, len(places))
    across, downward = 3 * side + _GAP, side + _CAPTION
    height, width = -(-len(places) // wide) * downward + _CAPTION, wide * across + _GAP
    canvas = np.full((height, width), 24, np.uint8)
    figure = Figure(figsize=(width / 50, height / 50))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    style: dict[str, Any] = {"color": "white", "fontsize": 8, "va": "center"}
    ticks, between = [], []
    for i, (kind, score) in enumerate(zip(places["kind"], places["score"], strict=True)):
        left, top = _GAP + i % wide * across, _CAPTION + i // wide * downward
        canvas[top : top + side, left : left + 3 * side] = made.joined(i)
        # Pixels are about their whole coordinates.
        corners = [np.array([left + plane * side - 0.5, top - 0.5]) for plane in range(3)]
        ticks += [corner + line for corner in corners for line in made.ticks]
        between += [[corner, corner + np.array([0, side])] for corner in corners[1:]]
        words = f"{i + 1}  {kind}" + ("" if np.isnan(score) else f"  {score:.2f}")
        ax.text(left, top + side + _CAPTION / 2, words, **style)
    ax.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.add_collection(LineCollection(between, colors="0.5", linewidths=1))
    ax.add_collection(LineCollection(ticks, colors="#f80", linewidths=1))
    about = f"planes of constant z, y and x; ticks are {length_of(made.tick_mm)} long"
    ax.text(_GAP, _CAPTION / 2, about, **style)
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
    """Write a self-contained page on which a person judges places: cell, no cell, or unsure.

    The browser keeps the verdicts under a key of the page's places until they are saved as ``verdicts.csv``, for
    :func:`mrhdata.analysis.review.read_decisions`.

    Parameters
    ----------
    path : path
        Of the HTML file.
    volume, places
        As for :func:`montage_png`.
    title : str, optional
    overwrite : bool
        Replace what is there.
    cutting
        Further settings of :func:`render_places`.

    Raises
    ------
    DataError
        There is no place to judge.

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
    made = render_places(volume, places, **cutting)
    content = hashlib.sha256("\n".join(places["id"] + places["kind"]).encode()).hexdigest()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    html = template.render(
        title=title or f"Review of {'a volume' if volume.name is None else volume.name}",
        key=f"mrhdata-review-{content[:16]}",
        cards=list(_cards(volume, places, made)),
        kinds={kind: KINDS[kind] for kind in KINDS if (places["kind"] == kind).any()},
        verdicts=VERDICTS,
        side=made.planes.shape[-1],
        ticks=made.ticks.round(2).reshape(-1, 4).tolist(),
        tick=length_of(made.tick_mm),
        width=_three_figures(made.width_mm),
    )
    with atomic_write(path, overwrite=overwrite) as draft:
        draft.write_text(html, encoding="utf-8")


def _three_figures(mm: float) -> str:
    return length_of(float(f"{mm:.3g}"))


def _check_places(places: pd.DataFrame) -> None:
    if not len(places):
        raise DataError("there is no place to judge: nothing was found, and nothing is marked")


def _cards(volume: xr.DataArray, places: pd.DataFrame, made: Pictures) -> Iterator[dict[str, Any]]:
    """What the page shows and keeps of each place."""
    import imagecodecs

    grid = volume.mrh.grid
    digits = max(0, int(np.ceil(-np.log10(grid.spacing.min()))) + 1)
    voxels = grid.index(places[WORLD].to_numpy(np.float64)).reshape(-1, 3)
    for i, row in enumerate(places.to_dict("records")):
        png = imagecodecs.png_encode(np.ascontiguousarray(made.joined(i)), level=9)
        apart = row["apart_mm"]
        yield {
            **{name: row[name] for name in ("id", "kind", "drawn", *WORLD)},
            "score": None if np.isnan(row["score"]) else row["score"],
            "png": base64.b64encode(png).decode("ascii"),
            "mm": ", ".join(f"{row[name]:.{digits}f}" for name in WORLD),
            "voxel": ", ".join(f"{value:.1f}" for value in voxels[i]),
            "apart": _three_figures(apart) if np.isfinite(apart) else None,
            "to": "mark" if row["kind"] in ("false positive", "double") else "detection",
            "grey": " to ".join(f"{value:.5g}" for value in made.grey[i]) if np.isfinite(made.grey[i, 0]) else None,
        }
