"""Resampling to other grids, through transforms: lazy, block by block, reading only the chunks that a block needs."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mrhdata.errors import DataError, GridError
from mrhdata.registration.transforms import Transform
from mrhdata.volume.checks import check_volume
from mrhdata.volume.construct import SPATIAL, place
from mrhdata.volume.grid import Floats, Grid

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

#: Default shape of the blocks that are resampled at once.
_BLOCK = (64, 128, 128)
#: Number of voxels whose source points are computed at once.
_SLAB_VOXELS = 500_000
#: Margin of a block for B-spline interpolation: the pole of the cubic prefilter to the power of 12 is 1e-7.
_SPLINE_HALO = 12
#: Standard deviations after which a Gaussian is cut off.
_TRUNCATE = 3.0
_CORNERS = np.array(list(np.ndindex(2, 2, 2)))


def resample(
    volume: xr.DataArray,
    like: xr.DataArray | Grid | None = None,
    transform: Transform | None = None,
    *,
    spacing_mm: float | Sequence[float] | None = None,
    order: int = 1,
    fill: float = 0,
    antialias: bool = True,
    chunks: int | Sequence[int] | None = None,
) -> xr.DataArray:
    """Resample a volume to another grid or spacing, optionally through a transform.

    The result is lazy and may have any size: a block reads only the chunks of `volume` that its voxels come
    from. Voxels are mapped in world space, so grids may be oblique, reversed or of another spacing.

    Parameters
    ----------
    volume : volume
        Volume to resample. Images are interpolated, and NaN stays NaN. Labels, masks and bool always use nearest
        neighbour, for any `order`, so labels are never mixed.
    like : volume or Grid, optional
        Grid of the result; by default the extent of `volume` at `spacing_mm`.
    transform : Transform, optional
        Transform from the space of `like` to the space of `volume`, as :func:`mrhdata.register` returns it. Without
        it, both must be in the same space.
    spacing_mm : float or (3,) floats, optional
        New spacing along z, y, x, instead of `like`.
    order : {0, 1, 3}
        Interpolation: nearest neighbour, linear or cubic B-spline.
    fill : float
        Value of voxels that are more than half a voxel outside `volume`.
    antialias : bool
        Whether to smooth images before making them coarser. The Gaussian matches the difference in voxel size
        along each axis of `volume` (Cardoso et al. 2015, MICCAI: variance ``(r^2 - 1) / (8 ln 2)`` voxels for a
        ratio r of spacings). Only the affine part of the transform affects r. Labels are not smoothed.
    chunks : int or (3,) ints, optional
        Shape along z, y, x of the blocks of the result.

    Returns
    -------
    volume : lazy volume
        Float32 for images (float64 and complex are kept), the dtype of `volume` for labels and masks.

    Raises
    ------
    GridError
        Neither or both of `like` and `spacing_mm` are passed, or the spaces do not match.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> fine = from_array(np.arange(8.0).reshape(1, 1, 8), spacing=(1, 1, 1))
    >>> resample(fine, fine.isel(x=slice(1, 4))).values.ravel().tolist()
    [1.0, 2.0, 3.0]
    >>> resample(fine, spacing_mm=(1, 1, 2)).mrh.grid.shape
    (1, 1, 4)
    """
    transform = transform or Transform()
    check_volume("volume", volume)
    if like is not None and not isinstance(like, Grid):
        check_volume("like", like, "or a Grid")
    grid, space = _target_grid(volume, like, spacing_mm, transform)
    if order not in (0, 1, 3):
        raise GridError(f"order must be 0 (nearest), 1 (linear) or 3 (cubic B-spline); got {order}")
    source = _as_dask(volume)
    nearest = order == 0 or volume.attrs.get("kind") in ("labels", "mask") or volume.dtype.kind == "b"
    dtype = volume.dtype if nearest else np.result_type(volume.dtype, np.float32) if _is_wide(volume) else np.float32
    plan = _Plan(
        transform.between(grid, volume.mrh.grid),
        (0 if nearest else order),
        _blur(transform.between(grid, volume.mrh.grid).affine()) if antialias and not nearest else np.zeros(3),
        np.dtype(dtype),
        _convert_fill(fill, np.dtype(dtype)),
        volume.mrh.grid.shape,
    )
    data = _build_graph(source, plan, _block_lengths(grid, chunks))
    result = _to_volume(data, volume, grid, space)
    if like is None or isinstance(like, Grid):
        return result
    # The coordinates equal those of `like` bit by bit, so that arithmetic with `like` keeps every voxel.
    return result.mrh.like(like.expand_dims([d for d in SPATIAL if d not in like.dims]))


def _target_grid(volume: xr.DataArray, like: Any, spacing_mm: Any, transform: Transform) -> tuple[Grid, str]:
    """Return the grid of the result and the name of its space."""
    if (like is None) == (spacing_mm is None):
        raise GridError(
            "pass either like (a volume or a Grid; --like) or spacing_mm (--spacing-mm), not both or neither"
        )
    source_space = volume.mrh.space
    if transform.target not in (None, source_space):
        raise GridError(
            f"the transform must map to the space of the volume, {source_space!r}; got one to {transform.target!r}. "
            "Try transform.inverse()."
        )
    if like is None:
        return coarsened(volume.mrh.grid, spacing_mm), transform.source or source_space
    if isinstance(like, Grid):
        grid, space = like, transform.source or source_space
    else:
        grid, space = like.mrh.grid, like.mrh.space
    if transform.source not in (None, space):
        raise GridError(
            f"the transform must map from the space of like, {space!r}; got one from {transform.source!r}. "
            "Pass another transform or like."
        )
    if not transform.steps and space != source_space:
        raise GridError(
            f"volume and like must be in one space; got {source_space!r} and {space!r}. Register one to the other and "
            "pass transform=."
        )
    return grid, space


def coarsened(grid: Grid, spacing_mm: float | Sequence[float]) -> Grid:
    """Return a grid of the same extent at another spacing; its last voxels may extend beyond the edge.

    Examples
    --------
    >>> coarsened(Grid((4, 4, 4), np.eye(4)), 2).world([0, 0, 0]).tolist()
    [0.5, 0.5, 0.5]
    """
    spacing = np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), (3,))
    if not (np.isfinite(spacing) & (spacing > 0)).all():
        raise GridError(f"spacing_mm must be one positive number or three along z, y, x; got {spacing_mm}")
    ratio = spacing / grid.spacing
    shape = np.maximum(1, np.ceil(np.array(grid.shape) / ratio - 1e-6)).astype(int)
    step = np.diag([*ratio, 1.0])
    step[:3, 3] = (ratio - 1) / 2
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), grid.affine @ step)


def _is_wide(volume: xr.DataArray) -> bool:
    return volume.dtype.kind == "c" or volume.dtype == np.float64


def _convert_fill(fill: float, dtype: np.dtype[Any]) -> Any:
    if dtype.kind in "iub" and not (np.isfinite(fill) and np.asarray(int(fill)).astype(dtype) == fill):
        raise DataError(f"fill must be a value of type {dtype}, like the volume; got fill={fill}")
    return np.asarray(fill).astype(dtype)[()]


def _blur(matrix: Floats) -> Floats:
    """Return the standard deviation (3,), in source voxels, that compensates for larger voxels of the result."""
    squared_ratio = (matrix[:3, :3] ** 2).sum(axis=1)
    return np.asarray(np.sqrt(np.maximum(squared_ratio - 1, 0) / (8 * np.log(2))))


def _as_dask(volume: xr.DataArray) -> da.Array:
    """Return the data as (t, c, z, y, x), with a volume in memory as one chunk."""
    import dask.array as da

    missing = [d for d in ("t", "c", *SPATIAL) if d not in volume.dims]
    data = volume.expand_dims(missing).transpose("t", "c", *SPATIAL).data
    return data if isinstance(data, da.Array) else da.from_array(np.asarray(data), chunks=-1, name=False)


def _block_lengths(grid: Grid, chunks: Any) -> tuple[tuple[int, ...], ...]:
    import dask.array as da

    if chunks is None:
        chunks = _BLOCK
    return da.core.normalize_chunks(tuple(np.broadcast_to(chunks, 3).tolist()), shape=grid.shape)


@dataclass(frozen=True)
class _Plan:
    """Settings shared by all blocks."""

    transform: Transform  # index of the result to index of the source
    order: int
    blur: Floats
    dtype: np.dtype[Any]
    fill: Any
    shape: tuple[int, int, int]  # of the source

    def needs(self, start: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Return the first and last source voxel that a block depends on; None if it is outside the source."""
        low, high = self.transform.reach(start + _CORNERS * (lengths - 1))
        top = np.array(self.shape) - 1
        if (high < -0.5 - 1e-6).any() or (low > top + 0.5 + 1e-6).any():
            return None
        halo = np.ceil(_TRUNCATE * self.blur).astype(int) + (_SPLINE_HALO if self.order == 3 else 1)
        first = np.clip(np.floor(low).astype(int) - halo, 0, top)
        last = np.clip(np.ceil(high).astype(int) + halo, 0, top)
        return first, last


def _build_graph(source: da.Array, plan: _Plan, blocks: tuple[tuple[int, ...], ...]) -> da.Array:
    """Return a lazy array with one task per block, which depends only on the source chunks that it needs."""
    import dask.array as da
    from dask._task_spec import DataNode, List, Task, TaskRef
    from dask.highlevelgraph import HighLevelGraph

    name = f"resample-{uuid.uuid4().hex}"
    # The plan has its own key, so that a large displacement is sent to each worker once.
    tasks: dict[Any, Any] = {f"{name}-plan": DataNode(f"{name}-plan", plan)}
    chunk_edges = [np.cumsum((0, *lengths)) for lengths in source.chunks]
    block_edges = [np.cumsum((0, *lengths)) for lengths in blocks]
    for block in np.ndindex(*(len(b) for b in blocks)):
        start = np.array([edges[i] for edges, i in zip(block_edges, block, strict=True)])
        lengths = np.array([b[i] for b, i in zip(blocks, block, strict=True)])
        box = plan.needs(start, lengths)
        needed = [] if box is None else _chunks_within(chunk_edges[2:], *box)
        corners = [np.array([edges[i] for edges, i in zip(chunk_edges[2:], chunk, strict=True)]) for chunk in needed]
        for t, c in np.ndindex(*source.numblocks[:2]):
            key = (name, t, c, *block)
            chunks = List(*(TaskRef((source.name, t, c, *chunk)) for chunk in needed))
            shape = (source.chunks[0][t], source.chunks[1][c], *lengths.tolist())
            tasks[key] = Task(key, _resample_block, TaskRef(f"{name}-plan"), start, shape, box, corners, chunks)
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=[source])  # type: ignore[list-item]
    return da.Array(graph, name, (*source.chunks[:2], *blocks), dtype=plan.dtype)


def _chunks_within(edges: list[NDArray[Any]], first: NDArray[Any], last: NDArray[Any]) -> list[tuple[int, ...]]:
    """Return the indices of the chunks that overlap a box."""
    ranges = []
    for axis_edges, low, high in zip(edges, first, last, strict=True):
        ends = (int(np.searchsorted(axis_edges, i, side="right")) + k for i, k in ((low, -1), (high, 0)))
        ranges.append(range(*ends))
    return [(z, y, x) for z in ranges[0] for y in ranges[1] for x in ranges[2]]


def _resample_block(
    plan: _Plan,
    start: NDArray[Any],
    shape: tuple[int, ...],
    box: tuple[NDArray[Any], NDArray[Any]] | None,
    corners: list[NDArray[Any]],
    chunks: list[NDArray[Any]],
) -> NDArray[Any]:
    """Compute one block (t, c, z, y, x) from the chunks that overlap `box`, given their first voxels."""
    out = np.full(shape, plan.fill, dtype=plan.dtype)
    if box is None:
        return out
    first, last = box
    voxels = np.empty((*shape[:2], *(last - first + 1)), dtype=chunks[0].dtype)
    for corner, chunk in zip(corners, chunks, strict=True):
        low, high = np.maximum(first, corner), np.minimum(last + 1, corner + chunk.shape[2:])
        voxels[_slices(low - first, high - first)] = chunk[_slices(low - corner, high - corner)]
    interpolators = {(t, c): _Interpolator(voxels[t, c], plan) for t, c in np.ndindex(*shape[:2])}
    # Source points take several copies of 24 bytes per voxel, so they are computed slab by slab.
    step = max(1, _SLAB_VOXELS // (shape[3] * shape[4]))
    for z in range(0, shape[2], step):
        lengths = (min(step, shape[2] - z), *shape[3:])
        index = np.moveaxis(np.indices(lengths), 0, -1).reshape(-1, 3) + start + np.array([z, 0, 0])
        source_index = plan.transform.points(index)
        inside = np.all((source_index >= -0.5) & (source_index <= np.array(plan.shape) - 0.5), axis=1)
        source_index = (source_index[inside] - first).T
        for (t, c), interpolator in interpolators.items():
            out[t, c, z : z + step].reshape(-1)[inside] = interpolator.at(source_index)
    return out


def _slices(low: NDArray[Any], high: NDArray[Any]) -> Any:
    return (..., *(slice(a, b) for a, b in zip(low, high, strict=True)))


class _Interpolator:
    """Interpolation of an array between its voxels."""

    def __init__(self, voxels: NDArray[Any], plan: _Plan) -> None:
        self._plan, self._missing, self._voxels = plan, None, voxels
        if plan.order == 0:
            return
        values = smoothed(voxels.astype(plan.dtype), plan.blur)
        missing = ~np.isfinite(values)
        if missing.any():
            # The spline filter would spread a single NaN over the whole array.
            self._missing, values = missing.astype(np.float32), np.where(missing, 0, values)
        if plan.order == 3:
            # Mirrored at the border, like ITK's B-splines.
            values = ndimage.spline_filter(values, 3, np.result_type(plan.dtype, np.float64), mode="mirror")
        self._voxels = values

    def at(self, index: Floats) -> NDArray[Any]:
        """Return values (n,) at indices (3, n)."""
        order, dtype = self._plan.order, self._plan.dtype
        if order == 0:
            # Without SciPy, whose conversion to float64 would change large integers.
            top = np.array(self._voxels.shape)[:, None] - 1
            return self._voxels[tuple(np.clip(np.floor(index + 0.5).astype(np.int64), 0, top))]
        mode = "mirror" if order == 3 else "nearest"
        values = ndimage.map_coordinates(self._voxels, index, order=order, mode=mode, prefilter=False, output=dtype)
        if self._missing is None:
            return values
        missing_share = ndimage.map_coordinates(self._missing, index, order=1, mode="nearest")
        return np.where(missing_share > 1e-3, np.nan, values).astype(dtype)


def smoothed(values: NDArray[Any], sigma: Floats) -> NDArray[Any]:
    """Smooth with a Gaussian of `sigma` (3,) voxels, ignoring non-finite voxels; NaN where most weight is on them."""
    if not (sigma > 0).any():
        return values
    if values.dtype.kind == "c":
        real, imaginary = smoothed(values.real, sigma), smoothed(values.imag, sigma)
        return np.asarray(real + 1j * imaginary, dtype=values.dtype)
    missing = ~np.isfinite(values)
    blurred = ndimage.gaussian_filter(np.where(missing, 0, values), sigma, mode="nearest", truncate=_TRUNCATE)
    if not missing.any():
        return np.asarray(blurred)
    weight = ndimage.gaussian_filter((~missing).astype(values.dtype), sigma, mode="nearest", truncate=_TRUNCATE)
    return np.where(weight > 0.5, blurred / np.maximum(weight, 1e-6), np.nan).astype(values.dtype)


def _to_volume(data: da.Array, volume: xr.DataArray, grid: Grid, space: str) -> xr.DataArray:
    """Return the data as a volume on `grid` with the channels and attributes of `volume`."""
    dims = [d for d in ("t", "c") if d in volume.dims] + list(SPATIAL)
    data = data[tuple(slice(None) if d in dims else 0 for d in ("t", "c", *SPATIAL))]
    attrs = {k: v for k, v in volume.attrs.items() if k not in ("affine", "space", "kind", "source_axes")}
    axes = np.eye(4)
    axes[:3, :3] = grid.affine[:3, :3] / grid.spacing
    axes[:3, 3] = grid.affine[:3, 3]
    kind, name = volume.attrs.get("kind", "image"), None if volume.name is None else str(volume.name)
    result = place(data, dims, grid.spacing, axes, space=space, kind=kind, name=name, **attrs)
    return result.assign_coords({d: volume.coords[d] for d in ("t", "c") if d in volume.dims and d in volume.coords})
