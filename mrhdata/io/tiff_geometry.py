"""Geometry of TIFF images: orientation of rows and columns, levels of pyramids, and the volume that they make."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from mrhdata.io.tiff_checks import ORIENTATIONS
from mrhdata.io.tiff_metadata import Header
from mrhdata.volume.assumptions import assume
from mrhdata.volume.box import Box
from mrhdata.volume.construct import DIMS, SPATIAL, UNORIENTED, place
from mrhdata.volume.file_arrays import SLAB_BYTES, FileArray, in_chunks
from mrhdata.volume.times import with_times

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

#: Bytes in memory per decoded byte of a compressed plane, strip or tile: the encoded bytes, the decoded ones, a copy.
DECODING = 3
#: Voxels along each axis by which a level is compared with the finest one.
_SAMPLE = 16


@dataclass(frozen=True)
class Placement:
    """Place of a level among the voxels of the finest one.

    Attributes
    ----------
    factors : tuple
        Voxels of the finest level per voxel, along z, y, x.
    starts : tuple
        Position of the centre of the first voxel in voxels of the finest level, along z, y, x.
    """

    factors: tuple[float, ...] = (1, 1, 1)
    starts: tuple[float, ...] = (0, 0, 0)


def lazy_planes(array: FileArray, dims: Sequence[str]) -> da.Array:
    """Return a lazy array in slabs of planes of one time and channel; samples of a pixel stay together."""
    chunks = list(array.shape)
    for axis, dim in enumerate(dims):
        if dim in ("t", "c") and axis < len(dims) - 3:
            chunks[axis] = 1
    if "z" in dims:
        axis = list(dims).index("z")
        plane = array.dtype.itemsize * math.prod(chunks) // max(1, chunks[axis])
        # A power of two, so that slabs and shards have common boundaries.
        planes = 2 ** (max(1, SLAB_BYTES // max(1, plane)).bit_length() - 1)
        chunks[axis] = min(chunks[axis], planes)
    return in_chunks(array, tuple(chunks))


def turned_dims(dims: Sequence[str], header: Header, orientation: int) -> tuple[list[str], Header]:
    """Return the dims of the stored axes and the header of an image whose rows may run along x."""
    if not ORIENTATIONS[orientation][0]:
        return list(dims), header
    z, y, x = header.steps
    return [{"y": "x", "x": "y"}.get(d, d) for d in dims], replace(header, steps=(z, x, y))


def backward_dims(orientation: int) -> set[str]:
    """Return the dims, named by :func:`turned_dims`, along which rows or columns are stored backwards."""
    along_x, rows, columns = ORIENTATIONS[orientation]
    row, column = ("x", "y") if along_x else ("y", "x")
    return ({row} if rows else set()) | ({column} if columns else set())


def turned_data(data: da.Array, dims: Sequence[str], backward: set[str]) -> da.Array:
    """Return the data with rows and columns in the order in which they are seen."""
    return data[tuple(slice(None, None, -1 if d in backward else None) for d in dims)] if backward else data


def palette_of(colormap: np.ndarray | None) -> np.ndarray:
    """Return the colours of a palette, a row each, in 8 bits if they have no more."""
    if colormap is None:
        raise ValueError("its values are indices of colours, but it has no palette")
    colours = np.ascontiguousarray(np.asarray(colormap, dtype=np.uint16).T)
    for factor in (257, 256):
        if not (colours % factor).any():
            return (colours // factor).astype(np.uint8)
    return colours


def in_colour(data: da.Array, palette: np.ndarray) -> da.Array:
    """Return the colours of indices of a palette, along a last axis."""
    array: Any = data
    meta = np.empty((0,) * (data.ndim + 1), palette.dtype)
    chunks = (*data.chunks, (palette.shape[1],))
    return array.map_blocks(palette.__getitem__, dtype=palette.dtype, chunks=chunks, new_axis=data.ndim, meta=meta)


def placement(
    dims: Sequence[str],
    shapes: tuple[Sequence[int], Sequence[int]],
    readers: tuple[Callable[[Box], Any], Callable[[Box], Any]],
    backward: set[str],
) -> Placement:
    """Return the place of a level of a pyramid.

    Parameters
    ----------
    dims : sequence of str
        Dims of the stored axes.
    shapes : pair of shapes
        Shapes of the finest level and of this one.
    readers : pair of callables
        Readers of boxes of the finest level and of this one.
    backward : set of str
        Dims along which the image will be reversed.

    Raises
    ------
    ValueError
        The levels differ in their times or channels.
    """
    fine, coarse = shapes
    if any(n != m for d, n, m in zip(dims, fine, coarse, strict=True) if d not in SPATIAL):
        raise ValueError(f"levels must have equal times and channels; got {tuple(fine)} and {tuple(coarse)}")
    factors = [_factor(n, m) if d in SPATIAL and n > m else 1 for d, n, m in zip(dims, fine, coarse, strict=True)]
    strided = _is_strided(coarse, factors, readers)
    starts = {}
    for d, n, m, factor in zip(dims, fine, coarse, factors, strict=True):
        start = 0.0 if strided else (factor - 1) / 2
        starts[d] = (n - 1) - (start + (m - 1) * factor) if d in backward else start
    by_dim = dict(zip(dims, factors, strict=True))
    return Placement(tuple(by_dim.get(d, 1) for d in SPATIAL), tuple(starts.get(d, 0.0) for d in SPATIAL))


def _factor(fine: int, coarse: int) -> float:
    """Return the factor between two sizes: a power of two or an integer if rounded division gives the size.

    Examples
    --------
    >>> _factor(1000, 32), _factor(1000, 31), _factor(90, 30), _factor(100, 40)
    (32, 32, 3, 2.5)
    """
    ratio = fine / coarse
    for factor in (2 ** round(math.log2(ratio)), round(ratio)):
        if fine // factor <= coarse <= math.ceil(fine / factor):
            return factor
    return ratio


def _is_strided(
    shape: Sequence[int], factors: Sequence[float], readers: tuple[Callable[[Box], Any], Callable[[Box], Any]]
) -> bool:
    """Return whether a level has every nth voxel of the finest level rather than the mean of each n.

    Files do not state it: Bio-Formats takes every nth voxel, QuPath and slide scanners take the mean. Voxels in the
    middle of the image decide.
    """
    if any(factor != int(factor) for factor in factors):
        return False
    steps = [int(factor) for factor in factors]
    # The last voxel of an axis may be the mean of fewer voxels.
    first = [max(0, (n - _SAMPLE) // 2) for n in shape]
    last = [max(a, min(n - (s > 1), a + _SAMPLE)) for n, s, a in zip(shape, steps, first, strict=True)]
    boxes = [Box(tuple(np.multiply(first, s).tolist()), tuple(np.multiply(last, s).tolist())) for s in (steps, 1)]
    fine, coarse = (np.asarray(read(box), dtype=np.float64) for read, box in zip(readers, boxes, strict=True))
    blocks = fine.reshape([k for n, s in zip(coarse.shape, steps, strict=True) for k in (n, s)])
    means = blocks.mean(axis=tuple(range(1, blocks.ndim, 2)))
    corners = fine[tuple(slice(None, None, s) for s in steps)]
    return bool(np.abs(coarse - corners).sum() < np.abs(coarse - means).sum())


def make_volume(
    data: da.Array,
    dims: Sequence[str],
    header: Header,
    path: Path,
    name: str,
    level: Placement = Placement(),
) -> xr.DataArray:
    """Return the volume of an image whose axes are `dims`, in any order.

    A voxel size that is not stated is 1 mm, and listed as assumed.
    """
    order = [list(dims).index(d) for d in DIMS if d in dims]
    if order != list(range(len(dims))):
        data, dims = data.transpose(order), [dims[i] for i in order]
    make = _oriented if header.attrs else _unoriented
    volume = make(data, dims, header, path, level).rename(name)
    volume = volume if header.time_step is None else with_times(volume, header.time_step)
    names = header.channels
    return volume.assign_coords(c=names) if names and volume.sizes.get("c") == len(names) else volume


def _oriented(data: da.Array, dims: Sequence[str], header: Header, path: Path, level: Placement) -> xr.DataArray:
    """Return a volume with the affine and the attributes that mrhdata stored."""
    attrs = {"space": "scanner"} | header.attrs
    axes = attrs.pop("source_axes", None)
    matrix = np.asarray(attrs.pop("affine"), dtype=np.float64)
    fine = np.linalg.norm(matrix[:3, :3], axis=0)
    matrix[:3, :3] /= fine
    start = np.multiply(fine, level.starts)
    volume = place(data, dims, np.multiply(fine, level.factors), matrix, start=start, **attrs)
    return volume if axes is None else volume.assign_attrs(source_axes=axes)


def _unoriented(data: da.Array, dims: Sequence[str], header: Header, path: Path, level: Placement) -> xr.DataArray:
    """Return a volume whose axes are plane, row and column."""
    stated = {d: step for d, step in zip(SPATIAL, header.steps, strict=True) if step is not None and d in dims}
    missing = [d for d in SPATIAL if d in dims and d not in stated]
    steps = {d: stated.get(d, 1.0) for d in SPATIAL if d in dims}
    # An absent axis is one voxel thick, as thick as the finest of the others.
    fine = np.array([steps.get(d, min(steps.values())) for d in SPATIAL])
    start = np.array([0.0 if d in missing else begin for d, begin in zip(SPATIAL, level.starts, strict=True)])
    if not np.array_equal(start, level.starts):
        log.warning("%s: this level begins at %s voxels of the finest; pass origin=", path, level.starts)
    if missing and stated:
        log.info("%s states a voxel size along %s, but not along %s", path, ", ".join(stated), ", ".join(missing))
    steps_of_level, begin = np.multiply(fine, level.factors), np.multiply(fine, start)
    volume = place(data, dims, steps_of_level, UNORIENTED, start=begin, space="scanner")
    return assume(volume, "orientation", "space", *(["spacing"] if missing else []))
