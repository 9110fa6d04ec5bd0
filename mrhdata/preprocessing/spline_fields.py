"""Smooth fields: fitted to the means of coarse bins, evaluated block by block as tensor-product splines.

Few numbers describe a slowly varying field. The volume is read once, block by block, to average its
coarse bins; the field is a product of cubic B-splines along the axes (de Boor 1978, A Practical Guide to
Splines, ch. IX and XVII), so one block of it costs one small matrix product per axis.
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

from mrhdata.volume.construct import SPATIAL, describe
from mrhdata.volume.grid import Floats
from mrhdata.volume.groups import nonzero

_ORDER = 3
#: Number of partial sums added at once, so that those of a large volume never pile up in memory.
_FAN_IN = 16
#: Multiplications per piece of a block: a piece stays in the processor's cache, and OpenBLAS starts no threads for it,
#: which would compete with Dask's own (measured: 18 ms instead of 1 ms).
_PIECE_PRODUCTS = 2**18


@dataclass(frozen=True)
class CoarseBins:
    """Means over the coarse bins of a volume.

    Attributes
    ----------
    dims : tuple of str
        Dimensions of the volume.
    factors : tuple of int
        Voxels per bin along each of `dims`; the last bin along an axis may be smaller.
    means : array by `dims`
        Mean of the finite voxels inside the mask; NaN for bins without any.
    share : array by `dims`
        Share of a bin's voxels that are finite and inside the mask, 0 to 1.
    """

    dims: tuple[str, ...]
    factors: tuple[int, ...]
    means: Floats
    share: Floats


def factors_for(volume: xr.DataArray, dims: Sequence[str], cells: int) -> tuple[int, ...]:
    """Return the voxels per bin along each axis: at most `cells` bins along `dims`, 1 voxel along other axes."""
    return tuple(-(-n // cells) if d in dims else 1 for d, n in volume.sizes.items())


def coarse_means(volume: xr.DataArray, factors: Sequence[int], mask: xr.DataArray | None = None) -> CoarseBins:
    """Average a volume over coarse bins, reading it once, block by block.

    Memory holds only the bins and the blocks being read, for volumes of any size. Sums are in double precision,
    so the chunking changes the last bits at most, and nothing for integers.

    Parameters
    ----------
    volume : volume
    factors : sequence of int
        Voxels per bin along each axis of `volume`.
    mask : volume, optional
        Mask with the spatial axes of `volume`; voxels where it is 0 are ignored.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> v = from_array(np.array([[1.0, 2.0, 3.0, np.nan, 7.0]]), spacing=(1, 1))
    >>> bins = coarse_means(v, (1, 2))
    >>> bins.means.tolist(), bins.share.tolist()
    ([[1.5, 3.0, 7.0]], [[1.0, 0.5, 1.0]])
    """
    values = da.asarray(volume.data)
    starts = product(*(np.cumsum([0, *sizes[:-1]]).tolist() for sizes in values.chunks))
    masks: Any = [None] * values.npartitions
    if mask is not None:
        inside = da.broadcast_to(da.asarray(mask.data), values.shape).rechunk(values.chunks)
        masks = inside.to_delayed().ravel()
    merge, sum_block = delayed(_merge_sums, pure=False), delayed(_sum_block, pure=False)
    sums = [
        sum_block(block, block_mask, start, tuple(factors))
        for block, block_mask, start in zip(values.to_delayed().ravel(), masks, starts, strict=True)
    ]
    while len(sums) > 1:
        sums = [merge(sums[i : i + _FAN_IN]) for i in range(0, len(sums), _FAN_IN)]
    _, (total, count) = compute(sums[0])[0]
    voxels = [np.diff([*range(0, n, f), n]) for n, f in zip(values.shape, factors, strict=True)]
    means = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return CoarseBins(tuple(map(str, volume.dims)), tuple(factors), means, count / math.prod(np.ix_(*voxels)))


_BinSums = tuple[tuple[int, ...], Floats]


def _sum_block(block: np.ndarray, mask: np.ndarray | None, start: Sequence[int], factors: Sequence[int]) -> _BinSums:
    """Return the first bin of a block, and the sums and counts (2, ...) of its voxels in each bin."""
    valid = np.isfinite(block)
    if mask is not None:
        valid &= nonzero(mask)
    edges = [
        [0, *range(-first % factor or factor, n, factor), n]
        for first, factor, n in zip(start, factors, block.shape, strict=True)
    ]
    all_valid = bool(valid.all())
    sums = _sum_bins(block if all_valid else np.where(valid, block, 0), edges)
    count = math.prod(np.ix_(*(np.diff(e) for e in edges))) if all_valid else _sum_bins(valid, edges)
    return tuple(first // factor for first, factor in zip(start, factors, strict=True)), np.stack([sums, count])


def _sum_bins(values: np.ndarray, edges: Sequence[Sequence[int]]) -> Floats:
    for axis, axis_edges in enumerate(edges):
        if len(axis_edges) <= values.shape[axis]:
            # Three times faster than np.add.reduceat, which iterates along the wrong axis.
            bins = [values[(slice(None),) * axis + (slice(a, b),)] for a, b in pairwise(axis_edges)]
            values = np.stack([voxels.sum(axis, dtype=np.float64) for voxels in bins], axis)
    return values.astype(np.float64, copy=False)


def _merge_sums(blocks: Sequence[_BinSums]) -> _BinSums:
    """Add sums over the smallest box of bins that contains all blocks."""
    low = np.min([corner for corner, _ in blocks], axis=0)
    high = np.max([np.add(corner, sums.shape[1:]) for corner, sums in blocks], axis=0)
    total = np.zeros((2, *(high - low)))
    for corner, sums in blocks:
        box = [slice(a, a + n) for a, n in zip(np.subtract(corner, low), sums.shape[1:], strict=True)]
        total[(slice(None), *box)] += sums
    return tuple(low.tolist()), total


def basis(place: Floats, spans: int) -> Floats:
    """Evaluate cubic B-splines at `place`: (n, spans + 3). 0 is the start of the first span, 1 the end of the last.

    Each row sums to 1; the outer polynomials are extrapolated beyond the ends.

    Examples
    --------
    >>> basis(np.array([0.0, 0.5, 1.0]), 1).round(3).tolist()
    [[0.167, 0.667, 0.167, 0.0], [0.021, 0.479, 0.479, 0.021], [0.0, 0.167, 0.667, 0.167]]
    """
    knots = np.arange(-_ORDER, spans + _ORDER + 1, dtype=np.float64)
    return BSpline(knots, np.eye(spans + _ORDER), _ORDER, extrapolate=True)(np.asarray(place) * spans)


def centres(cells: CoarseBins, dim: str) -> Floats:
    """Return the centres of bins along an axis: 0 for the first, 1 for the last."""
    n = cells.means.shape[cells.dims.index(dim)]
    return np.linspace(0, 1, n) if n > 1 else np.zeros(1)


def fit_each(cells: CoarseBins, fit: Callable[[Floats, Floats], Floats]) -> Floats:
    """Fit each image along t and c separately; return all lattices."""
    image_shape = tuple(n for d, n in zip(cells.dims, cells.means.shape, strict=True) if d not in SPATIAL)
    lattices = [fit(cells.means[i], cells.share[i]) for i in np.ndindex(image_shape)]
    return np.stack(lattices).reshape(image_shape + lattices[0].shape)


def contract(values: Floats, matrices: Sequence[Floats]) -> Floats:
    """Multiply each of the first axes by a matrix: (n, k) turns k values into n.

    Examples
    --------
    >>> contract(np.array([[1.0, 2.0], [3.0, 4.0]]), [np.array([[1.0, 1.0]]), np.array([[0.0, 1.0]])]).tolist()
    [[6.0]]
    """
    for axis, matrix in enumerate(matrices):
        shape = values.shape
        # One small product for each index of the preceding axes.
        stacked = values.reshape(math.prod(shape[:axis]), shape[axis], -1)
        values = (matrix @ stacked).reshape(*shape[:axis], len(matrix), *shape[axis + 1 :])
    return values


def evaluate(lattice: Floats, cells: CoarseBins, source: xr.DataArray, volume: xr.DataArray) -> xr.DataArray:
    """Evaluate the exponential of a spline at every voxel of `volume`, lazily and in its chunks.

    Parameters
    ----------
    lattice : array by ``cells.dims``
        Coefficients: spans + 3 along a spatial axis, or one if the field does not vary along it; one for each
        image along ``t`` and ``c``.
    cells : Cells
        Coarse bins of `source`; the spans reach from the centre of the first bin to that of the last.
    source, volume : volume
        The volume that the field was fitted on, and the volume to evaluate it for. They have the same affine, so
        that distances along their axes agree. The field is extrapolated for one bin beyond the outer centres and
        is constant from there.

    Returns
    -------
    field : volume, float32
        Field with the axes of `source` on the grid of `volume`.
    """
    template = volume.isel({d: 0 for d in volume.dims if d not in cells.dims}, drop=True)
    chunks = da.asarray(template.data).chunks
    weights = [
        da.from_array(_spline_weights(dim, n, cells, source, template), chunks=(sizes, -1))
        for dim, n, sizes in zip(cells.dims, lattice.shape, chunks, strict=True)
    ]
    voxel_axes, lattice_axes = range(len(weights)), range(len(weights), 2 * len(weights))
    operands = [p for row, i, k in zip(weights, voxel_axes, lattice_axes, strict=True) for p in (row, (i, k))]
    data = da.blockwise(
        _evaluate_block, tuple(voxel_axes), *operands, lattice=lattice, concatenate=True, dtype=np.float32
    )
    field = xr.DataArray(data, dims=template.dims, coords=template.coords)
    return describe(field.assign_attrs(affine=volume.attrs["affine"], space=volume.mrh.space, kind="image"), units="1")


def divide(volume: xr.DataArray, field: xr.DataArray, dark: float = 0.0) -> xr.DataArray:
    """Subtract `dark` from a volume and divide by `field`: lazy, float32, with the attributes of `volume`."""
    image = volume.copy(data=da.asarray(volume.data)).astype(np.float32)
    corrected = (image - np.float32(dark) if dark else image) / field
    corrected = corrected.transpose(*volume.dims).rename(volume.name)
    corrected.attrs = dict(volume.attrs)
    return corrected


def _spline_weights(dim: str, n: int, bins: CoarseBins, source: xr.DataArray, volume: xr.DataArray) -> Floats:
    """Return the weights (length, n) of the `n` coefficients along an axis at each index of the volume."""
    length, count = volume.sizes[dim], bins.means.shape[bins.dims.index(dim)]
    if dim not in SPATIAL:
        return np.eye(length)
    if n == 1:
        return np.ones((length, 1))
    factor = bins.factors[bins.dims.index(dim)]
    positions = source.coords[dim].values
    spacing = (positions[-1] - positions[0]) / (positions.size - 1)
    bin_index = (volume.coords[dim].values - positions[0]) / spacing / factor - (factor - 1) / (2 * factor)
    return basis(np.clip(bin_index, -1, count) / (count - 1), n - _ORDER)


def _evaluate_block(*weights: Floats, lattice: Floats) -> np.ndarray:
    """Return one block of the field: `lattice` contracted with the weights of each axis."""
    shape = tuple(len(w) for w in weights)
    values = contract(lattice, weights[:-1])
    lines, last = values.reshape(-1, values.shape[-1]), weights[-1].T
    out = np.empty((len(lines), shape[-1]), dtype=np.float32)
    step = max(1, _PIECE_PRODUCTS // max(1, last.size))
    for i in range(0, len(lines), step):
        # In double precision, then rounded: the order of summation in a product depends on the block.
        out[i : i + step] = lines[i : i + step] @ last
        np.exp(out[i : i + step], out=out[i : i + step])
    return out.reshape(shape)
