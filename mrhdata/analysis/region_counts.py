"""Cell counts and densities in the regions of a label volume."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mrhdata.errors import DataError, FormatError, GridError
from mrhdata.io.cell_tables import CELL, WORLD
from mrhdata.registration.transforms import Transform
from mrhdata.volume.assumptions import GEOMETRY, warn_of_assumed
from mrhdata.volume.box import Box
from mrhdata.volume.construct import SPATIAL

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

Ints = NDArray[np.int64]

#: Voxels of the label volume that are read at once.
_READ_VOXELS = 16_000_000
#: Label of points in no region.
_OUTSIDE = 0


@dataclass(frozen=True)
class Region:
    """Name of a label, and the label of the region that contains it."""

    name: str
    parent: int | None = None


def read_ontology(path: str | os.PathLike[str]) -> dict[int, Region]:
    """Read names and parents of labels.

    Parameters
    ----------
    path : path
        JSON file: the structure graph of the Allen Institute (``id``, ``name``, ``parent_structure_id``,
        ``children``; nested, or as a list), BrainGlobe's ``structures.json``, or only names,
        ``{"1": "left", "2": "right"}``.

    Returns
    -------
    ontology : dict of int to Region

    Raises
    ------
    FormatError
        If the file is missing, damaged, or not an ontology.

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
        raise FormatError(f"{path} does not exist. Check the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content = content["msg"] if isinstance(content, dict) and "msg" in content else content
        if isinstance(content, dict) and "id" not in content:
            return {int(label): Region(str(name)) for label, name in content.items()}
        return _unique(_flatten(content if isinstance(content, list) else [content]))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        raise FormatError(
            f"{path} is not an ontology ({type(error).__name__}: {error}). Pass Allen's structure graph as JSON, or "
            '{"label": "name"}'
        ) from error


def _flatten(entries: list[Any]) -> Iterator[tuple[int, Region]]:
    """Yield structures in the order of the file, each before its children."""
    stack: list[tuple[Any, Any]] = [(entry, None) for entry in reversed(entries)]
    while stack:
        entry, outer = stack.pop()
        label = _label(entry["id"])
        parent = (
            entry["parent_structure_id"] if "parent_structure_id" in entry else _parent_by_path(entry, label, outer)
        )
        yield label, Region(str(entry["name"]), None if parent is None else _label(parent))
        stack += [(child, label) for child in reversed(entry.get("children", []))]


def _parent_by_path(entry: Mapping[str, Any], label: int, outer: int | None) -> int | None:
    """Return the parent in the path from the root, as a list (BrainGlobe) or as ``/997/8/`` (Allen)."""
    path = entry.get("structure_id_path")
    if not path:
        return outer
    labels = [_label(item) for item in (path.strip("/").split("/") if isinstance(path, str) else path)]
    if labels[-1] != label:
        raise ValueError(f"structure_id_path of {label} must end with {label}; it ends with {labels[-1]}")
    return labels[-2] if len(labels) > 1 else None


def _label(value: Any) -> int:
    if int(value) != float(value):
        raise ValueError(f"a label must be a whole number; got {value!r}")
    return int(value)


def _unique(structures: Iterable[tuple[int, Region]]) -> dict[int, Region]:
    """Return structures by label; raise ValueError if a label has two of them."""
    regions: dict[int, Region] = {}
    for label, region in structures:
        if regions.setdefault(label, region) != region:
            raise ValueError(f"label {label} is {regions[label].name!r} and {region.name!r}")
    return regions


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
        Table of cells with ``X, Y, Z`` in mm (see :mod:`mrhdata.io.cell_tables`). If it has a column ``type``, only
        rows of type 2 count.
    regions : volume
        Label volume of any grid and size; it is read in parts. Label 0 belongs to no region. Left and right are
        counted separately if their labels differ.
    names : mapping of int to str or Region, optional
        Names and parents of labels, as from :func:`read_ontology`. The count and the volume of a region include
        those of all regions within it.
    transform : Transform, optional
        Transform of points from the space of the cells to the space of `regions`.
        ``mrhdata.register(brain, atlas)`` returns the opposite direction, from the atlas to the brain: pass its
        ``inverse()``, or register the atlas to the brain.

    Returns
    -------
    table : DataFrame
        One row per region with voxels: ``region``, ``count``, ``volume_mm3``, ``density_per_mm3``. With `names`
        also ``name``, ``parent`` (0 without one) and ``own_count`` (without the regions within it), in the order
        of the names. The first row, region 0, counts the cells outside all regions or outside the volume; its
        volume is NaN.

    Raises
    ------
    DataError
        If cells have no world points, values of `regions` are not labels, or parents form a circle.
    GridError
        If the volume has times or channels, or the transform leads to another space.

    Notes
    -----
    A cell belongs to the voxel with the nearest centre. Volumes are measured in the label volume, so with a
    transform densities are per mm^3 of the atlas, not of the brain.

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
        raise DataError("cells must have X, Y, Z in mm. Read them with like=, the volume of the detection")
    real = cells[cells["type"] == CELL] if "type" in cells else cells
    if len(cells) and not len(real):
        log.warning("none of %d rows has type %d, a cell; drop the column type to count all rows", len(cells), CELL)
    labels = _spatial(regions)
    warn_of_assumed({"regions": regions}, "count", *GEOMETRY)
    index = _voxel_index(real[WORLD].to_numpy(dtype=np.float64), regions, transform)
    voxels: Counter[Any] = Counter()
    label_of_cell = np.full(len(real), _OUTSIDE, dtype=np.int64)
    for box in _boxes(labels):
        part = _read(labels, box)
        voxels.update(pd.Series(part.ravel()).value_counts().to_dict())
        _look_up(label_of_cell, index, part, box)
    voxel_mm3 = float(abs(np.linalg.det(regions.mrh.grid.affine[:3, :3])))
    tallies = {"count": Counter(label_of_cell.tolist()), "voxels": voxels}
    own = pd.DataFrame({name: pd.Series(tally, dtype=np.int64) for name, tally in tallies.items()})
    return _table(own.fillna(0).astype(np.int64), voxel_mm3, names)


def regions_at(points_mm: ArrayLike, regions: xr.DataArray, transform: Transform | None = None) -> Ints:
    """Return the region of each point.

    Parameters
    ----------
    points_mm : (n, 3) array-like
        World X, Y, Z in mm.
    regions, transform
        As for :func:`count`. Only parts of the volume with points in them are read.

    Returns
    -------
    labels : (n,) int array
        Label of each point; 0 outside all regions and outside the volume.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> labels = from_array(np.array([[[7, 8]]]), spacing=(1, 1, 1), kind="labels")
    >>> regions_at([[0.4, 0, 0], [0.6, 0, 0], [1.6, 0, 0]], labels).tolist()
    [7, 8, 0]
    """
    labels = _spatial(regions)
    warn_of_assumed({"regions": regions}, "regions_at", *GEOMETRY)
    index = _voxel_index(np.asarray(points_mm, dtype=np.float64).reshape(-1, 3), regions, transform)
    label_of_point = np.full(len(index), _OUTSIDE, dtype=np.int64)
    for box in _boxes(labels):
        if _inside(index, box).any():
            _look_up(label_of_point, index, _read(labels, box), box)
    return label_of_point


def _voxel_index(
    points: NDArray[np.float64], regions: xr.DataArray, transform: Transform | None
) -> NDArray[np.float64]:
    """Return the nearest voxel z, y, x of each point as floats, because integers could overflow far away.

    Halves are rounded up.
    """
    if transform is not None:
        if transform.target not in (None, regions.mrh.space):
            raise GridError(
                f"the transform must lead to the space of the regions, {regions.mrh.space!r}; got "
                f"{transform.target!r}. Try transform.inverse()"
            )
        points = transform.points(points)
    if not np.isfinite(points).all():
        count = int((~np.isfinite(points)).any(axis=1).sum())
        raise DataError(f"points must be finite; {count} of {len(points)} cells are not. Leave them out")
    return np.floor(regions.mrh.grid.index(points) + 0.5)


def _spatial(regions: xr.DataArray) -> xr.DataArray:
    """Return the volume with the dims z, y, x only."""
    others = [d for d in regions.dims if d not in SPATIAL]
    for d in others:
        if regions.sizes[d] != 1:
            raise GridError(f"regions must have length 1 along {d!r}; got {regions.sizes[d]}. Select one first")
    single = regions.isel(dict.fromkeys(others, 0), drop=True)
    return single.expand_dims([d for d in SPATIAL if d not in single.dims]).transpose(*SPATIAL)


def _boxes(labels: xr.DataArray) -> Iterator[Box]:
    """Divide the volume into boxes of whole chunks that are read at once."""
    chunks = labels.data.chunksize if labels.chunks is not None else (1, 1, 1)
    return Box((0,) * labels.ndim, labels.shape).pieces(chunks, _READ_VOXELS)


def _read(labels: xr.DataArray, box: Box) -> NDArray[Any]:
    part = np.asarray(labels[box.slices].data)
    if part.dtype.kind == "f":
        fractions = part[part != np.rint(part)]
        if fractions.size:
            raise DataError(f"labels of regions must be integers; got {fractions[0]:g}. Pass a label volume")
    return part.astype(np.int64, copy=False)


def _inside(index: NDArray[np.float64], box: Box) -> NDArray[np.bool_]:
    return np.asarray(((index >= box.start) & (index < box.stop)).all(axis=1))


def _look_up(label_of_point: Ints, index: NDArray[np.float64], part: NDArray[Any], box: Box) -> None:
    """Write the labels of the points within a box into `label_of_point`."""
    inside = _inside(index, box)
    z, y, x = (index[inside] - box.start).astype(np.int64).T
    label_of_point[inside] = part[z, y, x]


def _table(own: pd.DataFrame, voxel_mm3: float, names: Mapping[int, str | Region] | None) -> pd.DataFrame:
    """Build the rows of regions from the counts and voxels of each label."""
    known = {int(k): v if isinstance(v, Region) else Region(str(v)) for k, v in (names or {}).items()}
    outside = int(own["count"].get(_OUTSIDE, 0))
    own = own.drop(index=_OUTSIDE, errors="ignore")
    lines = [(ancestor, label) for label in own.index for ancestor in _ancestors(label, known)]
    sums = own.loc[[label for _, label in lines]].groupby([ancestor for ancestor, _ in lines]).sum()
    order = [k for k in known if k in sums.index] + [k for k in sums.index if k not in known]
    sums = sums.loc[order]
    volume = np.r_[np.nan, sums["voxels"] * voxel_mm3]
    counts = np.r_[outside, sums["count"]].astype(np.int64)
    table = pd.DataFrame({"region": np.array([_OUTSIDE, *order], dtype=np.int64)})
    if names is not None:
        entries = {k: Region(str(k)) for k in order} | known | {_OUTSIDE: Region("outside")}
        table["name"] = [entries[k].name for k in table["region"]]
        table["parent"] = [entries[k].parent or 0 for k in table["region"]]
        table["own_count"] = np.r_[outside, own["count"].reindex(order, fill_value=0)].astype(np.int64)
    return table.assign(count=counts, volume_mm3=volume, density_per_mm3=counts / volume)


def _ancestors(label: int, names: Mapping[int, Region]) -> Iterator[int]:
    """Yield a label, its parent, the parent of that, and so on."""
    visited: set[int] = set()
    current: int | None = label
    while current:
        if current in visited:
            raise DataError(f"region {current} is part of itself through its parents. Correct the ontology")
        visited.add(current)
        yield current
        current = names[current].parent if current in names else None
