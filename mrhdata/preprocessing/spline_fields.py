"""Smooth fields: fitted to the means of coarse cells, evaluated block by block as tensor splines.

A field that varies slowly is known from few numbers. The volume is read once, block by block, for the
means of its cells; the field is a product of cubic B-splines along the axes (de Boor 1978, A Practical
Guide to Splines, ch. IX and XVII), so a block of it costs one small matrix product per axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import compute
from dask.delayed import delayed
from scipy.interpolate import BSpline

from mrhdata.volume.construct import SPATIAL, describe, nonzero
from mrhdata.volume.grid import Floats

_ORDER = 3
#: Sums of so many blocks are added at once, so that those of a large volume never pile up.
_FAN_IN = 16
#: A block of the field is made in pieces of about this many multiplications: they stay in the processor's cache,
#: and OpenBLAS starts no threads for them, which would fight with Dask's own (measured: 1 ms became 18).
_PIECE_PRODUCTS = 2**18


@dataclass(frozen=True)
class Cells:
    """Means of the boxes of voxels that a volume is cut into.

    Attributes
    ----------
    dims : tuple of str
        Those of the volume.
    factors : tuple of int
        Voxels of a cell along each of `dims`; the last cell along an axis holds what is left.
    means : array by `dims`
        Over the voxels that are finite and in the mask; NaN where there are none.
    share : array by `dims`
        How much of a cell these voxels are, 0 to 1.
    """

    dims: tuple[str, ...]
    factors: tuple[int, ...]
    means: Floats
    share: Floats


def factors_for(volume: xr.DataArray, dims: Sequence[str], cells: int) -> tuple[int, ...]:
    """Voxels of a cell along each axis, so that there are at most `cells` along `dims`; 1 along others."""
    return tuple(-(-n // cells) if d in dims else 1 for d, n in volume.sizes.items())


def coarse_cells(volume: xr.DataArray, factors: Sequence[int], mask: xr.DataArray | None = None) -> Cells:
    """Means over cells of a volume, which is read once, block by block.

    Memory holds the blocks being read and the cells, whatever the size of the volume. Sums are kept in
    double precision, so how the volume is chunked shows in the last bits at most, for integers not at all.

    Parameters
    ----------
    volume : volume
    factors : sequence of int
        Voxels of a cell along each axis of `volume`.
    mask : volume, optional
        With the spatial axes of `volume`; voxels where it is 0 are left out.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> v = from_array(np.array([[1.0, 2.0, 3.0, np.nan, 7.0]]), spacing=(1, 1))
    >>> cells = coarse_cells(v, (1, 2))
    >>> cells.means.tolist(), cells.share.tolist()
    ([[1.5, 3.0, 7.0]], [[1.0, 0.5, 1.0]])
    """
    values = da.asarray(volume.data)
    starts = product(*(np.cumsum([0, *sizes[:-1]]).tolist() for sizes in values.chunks))
    masks: Any = [None] * values.npartitions
    if mask is not None:
        inside = da.broadcast_to(da.asarray(mask.data), values.shape).rechunk(values.chunks)
        masks = inside.to_delayed().ravel()
    add_up, sums_of = delayed(_add_up, pure=False), delayed(_sums, pure=False)
    parts = [
        sums_of(block, inside, start, tuple(factors))
        for block, inside, start in zip(values.to_delayed().ravel(), masks, starts, strict=True)
    ]
    while len(parts) > 1:
        parts = [add_up(parts[i : i + _FAN_IN]) for i in range(0, len(parts), _FAN_IN)]
    _, (total, count) = compute(parts[0])[0]
    voxels = [np.diff([*range(0, n, f), n]) for n, f in zip(values.shape, factors, strict=True)]
    means = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return Cells(tuple(map(str, volume.dims)), tuple(factors), means, count / math.prod(np.ix_(*voxels)))


Part = tuple[tuple[int, ...], Floats]


def _sums(block: np.ndarray, mask: np.ndarray | None, start: Sequence[int], factors: Sequence[int]) -> Part:
    """First cell of a block, and the sums and counts (2, ...) of its voxels in each of its cells."""
    good = np.isfinite(block)
    if mask is not None:
        good &= nonzero(mask)
    edges = [
        [0, *range(-first % factor or factor, n, factor), n]
        for first, factor, n in zip(start, factors, block.shape, strict=True)
    ]
    whole = bool(good.all())
    sums = _by_cell(block if whole else np.where(good, block, 0), edges)
    count = math.prod(np.ix_(*(np.diff(e) for e in edges))) if whole else _by_cell(good, edges)
    return tuple(first // factor for first, factor in zip(start, factors, strict=True)), np.stack([sums, count])


def _by_cell(values: np.ndarray, edges: Sequence[Sequence[int]]) -> Floats:
    for axis, ends in enumerate(edges):
        if len(ends) <= values.shape[axis]:
            # Three times faster than np.add.reduceat, which walks along the wrong axis.
            cells = [values[(slice(None),) * axis + (slice(a, b),)] for a, b in pairwise(ends)]
            values = np.stack([cell.sum(axis, dtype=np.float64) for cell in cells], axis)
    return values.astype(np.float64, copy=False)


def _add_up(parts: Sequence[Part]) -> Part:
    """Sums over the smallest box of cells that holds all parts."""
    low = np.min([corner for corner, _ in parts], axis=0)
    high = np.max([np.add(corner, sums.shape[1:]) for corner, sums in parts], axis=0)
    total = np.zeros((2, *(high - low)))
    for corner, sums in parts:
        where = [slice(a, a + n) for a, n in zip(np.subtract(corner, low), sums.shape[1:], strict=True)]
        total[(slice(None), *where)] += sums
    return tuple(low.tolist()), total


def basis(place: Floats, spans: int) -> Floats:
    """Cubic B-splines at `place`, where 0 is the start of the first span and 1 the end of the last: (n, spans + 3).

    Each row sums to 1; beyond the ends the outer polynomials go on.

    Examples
    --------
    >>> basis(np.array([0.0, 0.5, 1.0]), 1).round(3).tolist()
    [[0.167, 0.667, 0.167, 0.0], [0.021, 0.479, 0.479, 0.021], [0.0, 0.167, 0.667, 0.167]]
    """
    knots = np.arange(-_ORDER, spans + _ORDER + 1, dtype=np.float64)
    return BSpline(knots, np.eye(spans + _ORDER), _ORDER, extrapolate=True)(np.asarray(place) * spans)


def centres(cells: Cells, dim: str) -> Floats:
    """Where cells lie along an axis: 0 is the middle of the first, 1 that of the last."""
    n = cells.means.shape[cells.dims.index(dim)]
    return np.linspace(0, 1, n) if n > 1 else np.zeros(1)


def fit_each(cells: Cells, fit: Callable[[Floats, Floats], Floats]) -> Floats:
    """Lattices of all images along t and c, fitted one by one."""
    outer = tuple(n for d, n in zip(cells.dims, cells.means.shape, strict=True) if d not in SPATIAL)
    lattices = [fit(cells.means[i], cells.share[i]) for i in np.ndindex(outer)]
    return np.stack(lattices).reshape(outer + lattices[0].shape)


def contract(values: Floats, matrices: Sequence[Floats]) -> Floats:
    """Multiply the first axes by a matrix each: (n, k) makes n of k.

    Examples
    --------
    >>> contract(np.array([[1.0, 2.0], [3.0, 4.0]]), [np.array([[1.0, 1.0]]), np.array([[0.0, 1.0]])]).tolist()
    [[6.0]]
    """
    for axis, matrix in enumerate(matrices):
        shape = values.shape
        # One small product for each index of the axes before.
        stacked = values.reshape(math.prod(shape[:axis]), shape[axis], -1)
        values = (matrix @ stacked).reshape(*shape[:axis], len(matrix), *shape[axis + 1 :])
    return values


def evaluate(lattice: Floats, cells: Cells, source: xr.DataArray, volume: xr.DataArray) -> xr.DataArray:
    """Exponential of a spline at every voxel of `volume`, lazy and in its chunks.

    Parameters
    ----------
    lattice : array by ``cells.dims``
        Coefficients. Along a spatial axis there are spans + 3 of them, or one where the field does not
        vary; along ``t`` and ``c`` one for each image.
    cells : Cells
        Of `source`; the spans reach from the middle of the first cell to that of the last.
    source, volume : volume
        What the field was fitted on, and where it is wanted; one affine, so that distances along their
        axes are the same. The field goes on for one cell beyond the outer centres, and then stays.

    Returns
    -------
    field : volume, float32
        With the axes of `source` on the grid of `volume`.
    """
    template = volume.isel({d: 0 for d in volume.dims if d not in cells.dims}, drop=True)
    chunks = da.asarray(template.data).chunks
    rows = [
        da.from_array(_rows(dim, n, cells, source, template), chunks=(sizes, -1))
        for dim, n, sizes in zip(cells.dims, lattice.shape, chunks, strict=True)
    ]
    free, bound = range(len(rows)), range(len(rows), 2 * len(rows))
    pairs = [p for row, i, k in zip(rows, free, bound, strict=True) for p in (row, (i, k))]
    data = da.blockwise(_block, tuple(free), *pairs, lattice=lattice, concatenate=True, dtype=np.float32)
    field = xr.DataArray(data, dims=template.dims, coords=template.coords)
    return describe(field.assign_attrs(affine=volume.attrs["affine"], space=volume.mrh.space, kind="image"), units="1")


def divide(volume: xr.DataArray, field: xr.DataArray, dark: float = 0.0) -> xr.DataArray:
    """Volume less `dark` over field, lazy, float32, with the attributes of `volume`."""
    image = volume.copy(data=da.asarray(volume.data)).astype(np.float32)
    corrected = (image - np.float32(dark) if dark else image) / field
    corrected = corrected.transpose(*volume.dims).rename(volume.name)
    corrected.attrs = dict(volume.attrs)
    return corrected


def _rows(dim: str, n: int, cells: Cells, source: xr.DataArray, volume: xr.DataArray) -> Floats:
    """Weights of the `n` coefficients along an axis, for each of the volume's indices: (length, n)."""
    length, count = volume.sizes[dim], cells.means.shape[cells.dims.index(dim)]
    if dim not in SPATIAL:
        return np.eye(length)
    if n == 1:
        return np.ones((length, 1))
    factor = cells.factors[cells.dims.index(dim)]
    along = source.coords[dim].values
    step = (along[-1] - along[0]) / (along.size - 1)
    cell = (volume.coords[dim].values - along[0]) / step / factor - (factor - 1) / (2 * factor)
    return basis(np.clip(cell, -1, count) / (count - 1), n - _ORDER)


def _block(*rows: Floats, lattice: Floats) -> np.ndarray:
    """One block of the field: `lattice` contracted with the rows of each axis."""
    shape = tuple(len(r) for r in rows)
    values = contract(lattice, rows[:-1])
    lines, last = values.reshape(-1, values.shape[-1]), rows[-1].T
    out = np.empty((len(lines), shape[-1]), dtype=np.float32)
    step = max(1, _PIECE_PRODUCTS // max(1, last.size))
    for i in range(0, len(lines), step):
        # In double precision, then rounded: the order in which a product is summed depends on the block.
        out[i : i + step] = lines[i : i + step] @ last
        np.exp(out[i : i + step], out=out[i : i + step])
    return out.reshape(shape)
