"""Volumes on other grids, through transforms: lazily, block by block, each from the chunks that it needs."""

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
from mrhdata.volume.construct import SPATIAL, place
from mrhdata.volume.grid import Floats, Grid

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

#: Edge of the blocks that are resampled at once, where the caller does not say.
_BLOCK = (64, 128, 128)
#: Voxels whose places are worked out at once.
_SLAB_VOXELS = 500_000
#: Voxels around a block that B-spline interpolation sees: the pole of the cubic prefilter to this power is 1e-7.
_SPLINE_HALO = 12
#: A Gaussian ends after so many standard deviations.
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
    """Carry a volume to another grid, through a transform or where it lies.

    The result is lazy and its size does not matter: a block of it needs the chunks of `volume` that its
    voxels come from and no others. Voxels are placed in world space, so grids may be oblique, reversed or
    of other spacing.

    Parameters
    ----------
    volume : volume
        Images are interpolated (NaN in, NaN out). Labels, masks and bool are taken from the nearest voxel,
        whatever `order` says, and are never mixed.
    like : volume or Grid, optional
        Whose voxels to fill; the extent of `volume` at `spacing_mm` where None.
    transform : Transform, optional
        From the space of `like` to the space of `volume`, as :func:`mrhdata.register` returns it;
        both must be in one space without it.
    spacing_mm : float or (3,) floats, optional
        New spacing along z, y, x, instead of `like`.
    order : {0, 1, 3}
        Nearest, linear or cubic B-spline.
    fill : float
        Value of voxels farther than half a voxel outside `volume`.
    antialias : bool
        Before images are made coarser, smooth them with the Gaussian whose width makes up for the
        difference of the two voxel sizes along each axis of `volume` (Cardoso et al. 2015, MICCAI:
        variance ``(r^2 - 1) / (8 ln 2)`` voxels for a ratio r of spacings). Only the affine part of the
        transform counts for r. Labels are not smoothed.
    chunks : int or (3,) ints, optional
        Voxels along z, y, x of a block of the result.

    Returns
    -------
    volume : lazy volume
        Float32 for images (float64 and complex stay), the type of `volume` for labels and masks.

    Raises
    ------
    GridError
        Neither or both of `like` and `spacing_mm` are given, or the spaces do not fit.

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
    grid, space = _goal(volume, like, spacing_mm, transform)
    if order not in (0, 1, 3):
        raise GridError(f"order is 0 (nearest), 1 (linear) or 3 (cubic B-spline), not {order}")
    source = _chunked(volume)
    exact = order == 0 or volume.attrs.get("kind") in ("labels", "mask") or volume.dtype.kind == "b"
    dtype = volume.dtype if exact else np.result_type(volume.dtype, np.float32) if _wide(volume) else np.float32
    plan = _Plan(
        transform.between(grid, volume.mrh.grid),
        (0 if exact else order),
        _blur(transform.between(grid, volume.mrh.grid).affine()) if antialias and not exact else np.zeros(3),
        np.dtype(dtype),
        _checked_fill(fill, np.dtype(dtype)),
        volume.mrh.grid.shape,
    )
    data = _graph(source, plan, _block_lengths(grid, like, chunks))
    result = _placed(data, volume, grid, space)
    if like is None or isinstance(like, Grid):
        return result
    # Equal to the last bit, so that arithmetic with `like` keeps every voxel.
    return result.mrh.like(like.expand_dims([d for d in SPATIAL if d not in like.dims]))


def _goal(volume: xr.DataArray, like: Any, spacing_mm: Any, transform: Transform) -> tuple[Grid, str]:
    """The grid to fill and the name of its space."""
    if (like is None) == (spacing_mm is None):
        raise GridError(
            "give either like (a volume or a Grid; --like) or spacing_mm (--spacing-mm), not both or neither"
        )
    own = volume.mrh.space
    if transform.target not in (None, own):
        raise GridError(
            f"the transform leads to {transform.target!r} and the volume lies in {own!r}; use transform.inverse()?"
        )
    if like is None:
        return coarsened(volume.mrh.grid, spacing_mm), transform.source or own
    grid, space = (like, transform.source or own) if isinstance(like, Grid) else (like.mrh.grid, like.mrh.space)
    if transform.source not in (None, space):
        raise GridError(f"the transform starts from {transform.source!r} and like lies in {space!r}; give it its like")
    if not transform.steps and space != own:
        raise GridError(f"spaces differ: {own!r} and {space!r}; register one to the other and give transform=")
    return grid, space


def coarsened(grid: Grid, spacing_mm: float | Sequence[float]) -> Grid:
    """The same box of voxels, from edge to edge, at another spacing; the last voxels may reach over the edge.

    Examples
    --------
    >>> coarsened(Grid((4, 4, 4), np.eye(4)), 2).world([0, 0, 0]).tolist()
    [0.5, 0.5, 0.5]
    """
    wanted = np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), (3,))
    if not (np.isfinite(wanted) & (wanted > 0)).all():
        raise GridError(f"spacing_mm is one positive number or three along z, y, x, not {spacing_mm}")
    ratio = wanted / grid.spacing
    shape = np.maximum(1, np.ceil(np.array(grid.shape) / ratio - 1e-6)).astype(int)
    step = np.diag([*ratio, 1.0])
    step[:3, 3] = (ratio - 1) / 2
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), grid.affine @ step)


def _wide(volume: xr.DataArray) -> bool:
    return volume.dtype.kind == "c" or volume.dtype == np.float64


def _checked_fill(fill: float, dtype: np.dtype[Any]) -> Any:
    if dtype.kind in "iub" and not (np.isfinite(fill) and np.asarray(int(fill)).astype(dtype) == fill):
        raise DataError(f"fill={fill} is no {dtype}; give a value that the volume can hold")
    return np.asarray(fill).astype(dtype)[()]


def _blur(matrix: Floats) -> Floats:
    """Standard deviation (3,), in voxels of the source, that makes up for larger voxels of the result."""
    ratio2 = (matrix[:3, :3] ** 2).sum(axis=1)
    return np.asarray(np.sqrt(np.maximum(ratio2 - 1, 0) / (8 * np.log(2))))


def _chunked(volume: xr.DataArray) -> da.Array:
    """Data as (t, c, z, y, x), a whole volume in memory as one chunk."""
    import dask.array as da

    missing = [d for d in ("t", "c", *SPATIAL) if d not in volume.dims]
    data = volume.expand_dims(missing).transpose("t", "c", *SPATIAL).data
    return data if isinstance(data, da.Array) else da.from_array(np.asarray(data), chunks=-1, name=False)


def _block_lengths(grid: Grid, like: Any, chunks: Any) -> tuple[tuple[int, ...], ...]:
    import dask.array as da

    if chunks is None:
        chunks = _BLOCK
    return da.core.normalize_chunks(tuple(np.broadcast_to(chunks, 3).tolist()), shape=grid.shape)


@dataclass(frozen=True)
class _Plan:
    """How one block is made: everything but its place and its voxels."""

    transform: Transform  # index of the result to index of the source
    order: int
    blur: Floats
    dtype: np.dtype[Any]
    fill: Any
    shape: tuple[int, int, int]  # of the source

    def needs(self, start: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """First and last voxel of the source that a block depends on; None where it lies outside."""
        low, high = self.transform.reach(start + _CORNERS * (lengths - 1))
        top = np.array(self.shape) - 1
        if (high < -0.5 - 1e-6).any() or (low > top + 0.5 + 1e-6).any():
            return None
        halo = np.ceil(_TRUNCATE * self.blur).astype(int) + (_SPLINE_HALO if self.order == 3 else 1)
        first = np.clip(np.floor(low).astype(int) - halo, 0, top)
        last = np.clip(np.ceil(high).astype(int) + halo, 0, top)
        return first, last


def _graph(source: da.Array, plan: _Plan, blocks: tuple[tuple[int, ...], ...]) -> da.Array:
    """One task for each block, fed with the chunks of the source that it needs."""
    import dask.array as da
    from dask._task_spec import DataNode, List, Task, TaskRef
    from dask.highlevelgraph import HighLevelGraph

    name = f"resample-{uuid.uuid4().hex}"
    # A key of its own, so that a large displacement is sent to each worker once.
    tasks: dict[Any, Any] = {f"{name}-plan": DataNode(f"{name}-plan", plan)}
    ends = [np.cumsum((0, *lengths)) for lengths in source.chunks]
    starts = [np.cumsum((0, *lengths)) for lengths in blocks]
    for block in np.ndindex(*(len(b) for b in blocks)):
        start = np.array([s[i] for s, i in zip(starts, block, strict=True)])
        lengths = np.array([b[i] for b, i in zip(blocks, block, strict=True)])
        box = plan.needs(start, lengths)
        near = [] if box is None else _chunks_within(ends[2:], *box)
        places = [np.array([e[i] for e, i in zip(ends[2:], chunk, strict=True)]) for chunk in near]
        for t, c in np.ndindex(*source.numblocks[:2]):
            key = (name, t, c, *block)
            parts = List(*(TaskRef((source.name, t, c, *chunk)) for chunk in near))
            channels = (source.chunks[0][t], source.chunks[1][c])
            tasks[key] = Task(
                key, _resampled, TaskRef(f"{name}-plan"), start, (*channels, *lengths.tolist()), box, places, parts
            )
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=[source])  # type: ignore[list-item]
    return da.Array(graph, name, (*source.chunks[:2], *blocks), dtype=plan.dtype)


def _chunks_within(ends: list[NDArray[Any]], first: NDArray[Any], last: NDArray[Any]) -> list[tuple[int, ...]]:
    """Indices of the chunks that hold part of a box."""
    ranges = []
    for edge, low, high in zip(ends, first, last, strict=True):
        ranges.append(range(*(int(np.searchsorted(edge, i, side="right")) + k for i, k in ((low, -1), (high, 0)))))
    return [(z, y, x) for z in ranges[0] for y in ranges[1] for x in ranges[2]]


def _resampled(
    plan: _Plan,
    start: NDArray[Any],
    shape: tuple[int, ...],
    box: tuple[NDArray[Any], NDArray[Any]] | None,
    places: list[NDArray[Any]],
    parts: list[NDArray[Any]],
) -> NDArray[Any]:
    """One block (t, c, z, y, x)."""
    out = np.full(shape, plan.fill, dtype=plan.dtype)
    if box is None:
        return out
    first, last = box
    voxels = np.empty((*shape[:2], *(last - first + 1)), dtype=parts[0].dtype)
    for place_, part in zip(places, parts, strict=True):
        low, high = np.maximum(first, place_), np.minimum(last + 1, place_ + part.shape[2:])
        voxels[_part(low - first, high - first)] = part[_part(low - place_, high - place_)]
    found = {(t, c): _Source(voxels[t, c], plan) for t, c in np.ndindex(*shape[:2])}
    # Places take 24 bytes a voxel, several times over: slab by slab.
    step = max(1, _SLAB_VOXELS // (shape[3] * shape[4]))
    for z in range(0, shape[2], step):
        lengths = (min(step, shape[2] - z), *shape[3:])
        index = np.moveaxis(np.indices(lengths), 0, -1).reshape(-1, 3) + start + np.array([z, 0, 0])
        where = plan.transform.points(index)
        inside = np.all((where >= -0.5) & (where <= np.array(plan.shape) - 0.5), axis=1)
        where = (where[inside] - first).T
        for (t, c), source in found.items():
            out[t, c, z : z + step].reshape(-1)[inside] = source.at(where)
    return out


def _part(low: NDArray[Any], high: NDArray[Any]) -> Any:
    return (..., *(slice(a, b) for a, b in zip(low, high, strict=True)))


class _Source:
    """An array made ready to be read between its voxels."""

    def __init__(self, voxels: NDArray[Any], plan: _Plan) -> None:
        self._plan, self._missing, self._voxels = plan, None, voxels
        if plan.order == 0:
            return
        values = smoothed(voxels.astype(plan.dtype), plan.blur)
        missing = ~np.isfinite(values)
        if missing.any():
            # B-splines would spread one NaN over everything.
            self._missing, values = missing.astype(np.float32), np.where(missing, 0, values)
        if plan.order == 3:
            # ITK's B-splines mirror, too.
            values = ndimage.spline_filter(values, 3, np.result_type(plan.dtype, np.float64), mode="mirror")
        self._voxels = values

    def at(self, where: Floats) -> NDArray[Any]:
        """Values (n,) at indices (3, n)."""
        order, dtype = self._plan.order, self._plan.dtype
        if order == 0:
            # Not through SciPy, whose float64 would change large integers.
            top = np.array(self._voxels.shape)[:, None] - 1
            return self._voxels[tuple(np.clip(np.floor(where + 0.5).astype(np.int64), 0, top))]
        how: Any = {"order": order, "mode": "mirror" if order == 3 else "nearest", "prefilter": False, "output": dtype}
        values = ndimage.map_coordinates(self._voxels, where, **how)
        if self._missing is None:
            return values
        spoilt = ndimage.map_coordinates(self._missing, where, order=1, mode="nearest")
        return np.where(spoilt > 1e-3, np.nan, values).astype(dtype)


def smoothed(values: NDArray[Any], sigma: Floats) -> NDArray[Any]:
    """Gaussian of `sigma` (3,) voxels; what is not finite takes no part and stays NaN where it is the majority."""
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


def _placed(data: da.Array, volume: xr.DataArray, grid: Grid, space: str) -> xr.DataArray:
    """The result as a volume with the channels and the attrs of what it was made of."""
    dims = [d for d in ("t", "c") if d in volume.dims] + list(SPATIAL)
    data = data[tuple(slice(None) if d in dims else 0 for d in ("t", "c", *SPATIAL))]
    attrs = {k: v for k, v in volume.attrs.items() if k not in ("affine", "space", "kind", "source_axes")}
    axes = np.eye(4)
    axes[:3, :3] = grid.affine[:3, :3] / grid.spacing
    axes[:3, 3] = grid.affine[:3, 3]
    kind, name = volume.attrs.get("kind", "image"), None if volume.name is None else str(volume.name)
    placed = place(data, dims, grid.spacing, axes, space=space, kind=kind, name=name, **attrs)
    return placed.assign_coords({d: volume.coords[d] for d in ("t", "c") if d in volume.dims and d in volume.coords})
