"""Cells counted in the regions of a label volume: how many there are, and how many in a mm^3."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mrhdata.errors import DataError, FormatError, GridError
from mrhdata.io.cell_tables import CELL, WORLD
from mrhdata.registration.transforms import Transform
from mrhdata.volume.box import Box
from mrhdata.volume.construct import SPATIAL

if TYPE_CHECKING:
    import xarray as xr

Ints = NDArray[np.int64]

#: Voxels of the label volume that are read at once.
_READ = 16_000_000
#: What lies in no region.
_OUTSIDE = 0


@dataclass(frozen=True)
class Region:
    """What an ontology says of a label: its name, and the label that it is a part of."""

    name: str
    parent: int | None = None


def read_ontology(path: str | os.PathLike[str]) -> dict[int, Region]:
    """Read names and parents of labels.

    Parameters
    ----------
    path : path
        JSON: the structure graph of the Allen Institute (``id``, ``name``, ``parent_structure_id``, ``children``
        within each other, or as a list), or names alone, ``{"1": "left", "2": "right"}``.

    Raises
    ------
    FormatError
        The file is missing, damaged, or no ontology.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "ontology.json"
    >>> _ = file.write_text('{"msg": [{"id": 8, "name": "grey", "children": [{"id": 567, "name": "Cerebrum"}]}]}')
    >>> read_ontology(file)[567]
    Region(name='Cerebrum', parent=8)
    """
    path = Path(path)
    if not path.is_file():
        raise FormatError(f"{path} does not exist; check the path")
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        held = held["msg"] if isinstance(held, dict) and "msg" in held else held
        if isinstance(held, dict) and "id" not in held:
            return {int(label): Region(str(name)) for label, name in held.items()}
        return dict(_flattened(held if isinstance(held, list) else [held]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(
            f"{path} is no ontology ({type(error).__name__}: {error}); give Allen's structure graph as JSON, or "
            '{"label": "name"}'
        ) from error


def _flattened(entries: list[Any]) -> Iterator[tuple[int, Region]]:
    """Structures in the order in which they stand, each before what is within it."""
    waiting: list[tuple[Any, Any]] = [(entry, None) for entry in reversed(entries)]
    while waiting:
        entry, above = waiting.pop()
        label, parent = int(entry["id"]), entry.get("parent_structure_id", above)
        yield label, Region(str(entry["name"]), None if parent is None else int(parent))
        waiting += [(child, label) for child in reversed(entry.get("children", []))]


def count(
    cells: pd.DataFrame,
    regions: xr.DataArray,
    names: Mapping[int, str | Region] | None = None,
    transform: Transform | None = None,
) -> pd.DataFrame:
    """Count cells in regions.

    Parameters
    ----------
    cells : DataFrame
        Table of cells with ``X, Y, Z`` (see :mod:`mrhdata.io.cell_tables`). Where it has a column ``type``, only rows
        of type 2 are cells.
    regions : volume
        Labels, of any grid and size: read tile by tile. 0 is no region. Left and right are apart where they have
        labels of their own.
    names : mapping of int to str or Region, optional
        What labels are called, and what they are parts of: counts and volumes of a region are then those of all
        that is within it. From :func:`read_ontology`.
    transform : Transform, optional
        From the world of the cells to that of `regions`: the way in which points go. What
        ``mrhdata.register(brain, atlas)`` returns leads the other way, from the atlas to the brain; give its
        ``inverse()``, or register the atlas to the brain.

    Returns
    -------
    table : DataFrame
        A row per region that has voxels: ``region``, ``count``, ``volume_mm3``, ``density_per_mm3``. With `names`
        also ``name``, ``parent`` (0 for none) and ``own_count`` (of the label itself), in the order of the names.
        The first row, region 0, holds the cells in no region, also beyond the volume; it has no volume.

    Raises
    ------
    DataError
        Cells have no world points, regions are no labels, or parents go in a circle.
    GridError
        The volume has times or channels, or the transform leads to another space.

    Notes
    -----
    A cell belongs to the voxel whose centre is nearest. Volumes are those of the label volume: densities through
    a transform are per mm^3 of the atlas, not of the brain.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> labels = from_array(np.array([[[1, 1, 2, 0]]]), spacing=(0.5, 0.5, 0.5), kind="labels")
    >>> cells = pd.DataFrame({"X": [0.1, 0.4, 0.9, 7.0], "Y": 0.0, "Z": 0.0})
    >>> names = {1: Region("left", 3), 2: Region("right", 3), 3: Region("both")}
    >>> count(cells, labels, names)[["name", "count", "volume_mm3", "density_per_mm3"]]
          name  count  volume_mm3  density_per_mm3
    0  outside      1         NaN              NaN
    1     left      2       0.250              8.0
    2    right      1       0.125              8.0
    3     both      3       0.375              8.0
    """
    if not set(WORLD) <= set(cells.columns):
        raise DataError("the cells have no X, Y, Z in mm; read them with like=, the volume that they were found in")
    real = cells[cells["type"] == CELL] if "type" in cells else cells
    labels = _labels(regions)
    where = _where(real[WORLD].to_numpy(dtype=np.float64), regions, transform)
    voxels: Counter[Any] = Counter()
    found = np.full(len(real), _OUTSIDE, dtype=np.int64)
    for box in _boxes(labels):
        part = _read(labels, box)
        voxels.update(pd.Series(part.ravel()).value_counts().to_dict())
        _look_up(found, where, part, box)
    voxel_mm3 = float(abs(np.linalg.det(regions.mrh.grid.affine[:3, :3])))
    tallies = {"count": Counter(found.tolist()), "voxels": voxels}
    own = pd.DataFrame({name: pd.Series(tally, dtype=np.int64) for name, tally in tallies.items()})
    return _table(own.fillna(0).astype(np.int64), voxel_mm3, names)


def regions_at(points_mm: ArrayLike, regions: xr.DataArray, transform: Transform | None = None) -> Ints:
    """Region of each point; 0 for what lies in none or beyond the volume.

    Parameters
    ----------
    points_mm : (n, 3) array-like
        World X, Y, Z.
    regions, transform
        As for :func:`count`. Only tiles with points in them are read.

    Returns
    -------
    labels : (n,) int array

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> labels = from_array(np.array([[[7, 8]]]), spacing=(1, 1, 1), kind="labels")
    >>> regions_at([[0.4, 0, 0], [0.6, 0, 0], [1.6, 0, 0]], labels).tolist()
    [7, 8, 0]
    """
    labels = _labels(regions)
    where = _where(np.asarray(points_mm, dtype=np.float64).reshape(-1, 3), regions, transform)
    found = np.full(len(where), _OUTSIDE, dtype=np.int64)
    for box in _boxes(labels):
        if _inside(where, box).any():
            _look_up(found, where, _read(labels, box), box)
    return found


def _where(points: NDArray[np.float64], regions: xr.DataArray, transform: Transform | None) -> NDArray[np.float64]:
    """Nearest voxel z, y, x of each point; halves go up. Floats, since points may lie far away."""
    if transform is not None:
        if transform.target not in (None, regions.mrh.space):
            raise GridError(
                f"the transform leads to {transform.target!r} and the regions lie in {regions.mrh.space!r}; "
                "use transform.inverse()?"
            )
        points = transform.points(points)
    if not np.isfinite(points).all():
        bad = int((~np.isfinite(points)).any(axis=1).sum())
        raise DataError(f"{bad} of {len(points)} cells have no finite place; leave them out")
    return np.floor(regions.mrh.grid.index(points) + 0.5)


def _labels(regions: xr.DataArray) -> xr.DataArray:
    """As z, y, x alone."""
    others = [d for d in regions.dims if d not in SPATIAL]
    for d in others:
        if regions.sizes[d] != 1:
            raise GridError(f"the regions have {regions.sizes[d]} along {d!r}; select one first")
    single = regions.isel(dict.fromkeys(others, 0), drop=True)
    return single.expand_dims([d for d in SPATIAL if d not in single.dims]).transpose(*SPATIAL)


def _boxes(labels: xr.DataArray) -> Iterator[Box]:
    """Parts of whole chunks, within what is read at once."""
    chunks = labels.data.chunksize if labels.chunks is not None else (1, 1, 1)
    return Box((0,) * labels.ndim, labels.shape).pieces(chunks, _READ)


def _read(labels: xr.DataArray, box: Box) -> NDArray[Any]:
    part = np.asarray(labels[box.slices].data)
    if part.dtype.kind == "f":
        odd = part[part != np.rint(part)]
        if odd.size:
            raise DataError(f"the regions hold {odd[0]:g}, which is no label; give a label volume")
    return part.astype(np.int64, copy=False)


def _inside(where: NDArray[np.float64], box: Box) -> NDArray[np.bool_]:
    return np.asarray(((where >= box.start) & (where < box.stop)).all(axis=1))


def _look_up(found: Ints, where: NDArray[np.float64], part: NDArray[Any], box: Box) -> None:
    """Write the labels of the points within a box."""
    here = _inside(where, box)
    z, y, x = (where[here] - box.start).astype(np.int64).T
    found[here] = part[z, y, x]


def _table(own: pd.DataFrame, voxel_mm3: float, names: Mapping[int, str | Region] | None) -> pd.DataFrame:
    """Rows of regions from counts and voxels of labels."""
    known = {int(k): v if isinstance(v, Region) else Region(str(v)) for k, v in (names or {}).items()}
    outside = int(own["count"].get(_OUTSIDE, 0))
    own = own.drop(index=_OUTSIDE, errors="ignore")
    lines = [(above, label) for label in own.index for above in _upward(label, known)]
    sums = own.loc[[label for _, label in lines]].groupby([above for above, _ in lines]).sum()
    order = [k for k in known if k in sums.index] + [k for k in sums.index if k not in known]
    sums = sums.loc[order]
    volume = np.r_[np.nan, sums["voxels"] * voxel_mm3]
    counts = np.r_[outside, sums["count"]].astype(np.int64)
    table = pd.DataFrame({"region": np.array([_OUTSIDE, *order], dtype=np.int64)})
    if names is not None:
        nameless = {k: Region(str(k)) for k in order} | known | {_OUTSIDE: Region("outside")}
        table["name"] = [nameless[k].name for k in table["region"]]
        table["parent"] = [nameless[k].parent or 0 for k in table["region"]]
        table["own_count"] = np.r_[outside, own["count"].reindex(order, fill_value=0)].astype(np.int64)
    return table.assign(count=counts, volume_mm3=volume, density_per_mm3=counts / volume)


def _upward(label: int, names: Mapping[int, Region]) -> Iterator[int]:
    """A label, what it is a part of, and so on."""
    seen: set[int] = set()
    above: int | None = label
    while above:
        if above in seen:
            raise DataError(f"region {above} is a part of itself by way of its parents; correct the ontology")
        seen.add(above)
        yield above
        above = names[above].parent if above in names else None
