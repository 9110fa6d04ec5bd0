"""Quality of a registration: volume change, local similarity, landmark errors and a mask of validity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from mrhdata.errors import DataError, GridError
from mrhdata.registration.transforms import Transform
from mrhdata.volume.construct import SPATIAL, describe
from mrhdata.volume.grid import Floats

if TYPE_CHECKING:
    import xarray as xr

#: Volume changes outside this range are folds or tears rather than tissue.
_JACOBIANS = (0.2, 5.0)
_BINS = 8
#: Number of voxels that the grey levels of local mutual information are computed from.
_SAMPLE_SIZE = 1_000_000


def jacobian(transform: Transform, like: xr.DataArray) -> xr.DataArray:
    """Compute the local volume change lazily: the determinant of the transform's derivative, on the grid of `like`.

    A value of 1 means that the volume is preserved, 2 that a fixed voxel covers twice its volume in the moving space,
    and 0 or less that the transform folds.

    Parameters
    ----------
    transform : Transform
    like : volume
        Volume in the transform's source space.

    Examples
    --------
    >>> from mrhdata.registration.transforms import Affine
    >>> from mrhdata.volume.construct import from_array
    >>> like = from_array(np.zeros((2, 2, 2)), spacing=(1, 1, 1))
    >>> jacobian(Transform([Affine(np.diag([2, 1, 1, 1]))]), like).values.mean().round(6).item()
    2.0
    """
    grid = like.mrh.grid
    half = 0.5 * grid.spacing.min()

    def block(index: Floats) -> NDArray[np.float32]:
        points = grid.world(index)
        slopes = [(transform.points(points + half * e) - transform.points(points - half * e)) for e in np.eye(3)]
        return np.linalg.det(np.stack(slopes, axis=-1) / (2 * half)).astype(np.float32)

    return describe(_map_indices(block, like, np.float32), name="jacobian", units="1", modality="registration")


def covered(transform: Transform, like: xr.DataArray, moving: xr.DataArray) -> xr.DataArray:
    """Return a lazy mask on the grid of `like` of the voxels that map to a point inside `moving`."""
    grid, moving_grid = like.mrh.grid, moving.mrh.grid

    def block(index: Floats) -> NDArray[np.uint8]:
        moving_index = moving_grid.index(transform.points(grid.world(index)))
        inside = (moving_index >= -0.5) & (moving_index <= np.array(moving_grid.shape) - 0.5)
        return inside.all(axis=-1).astype(np.uint8)

    return describe(_map_indices(block, like, np.uint8).assign_attrs(kind="mask"), name="covered")


def local_correlation(fixed: xr.DataArray, moved: xr.DataArray, radius: int = 3) -> xr.DataArray:
    """Compute the squared correlation of two volumes in the cube around each voxel, lazily; 0 if either is flat.

    Parameters
    ----------
    fixed, moved : volume
        Volumes of one channel on one grid; :func:`mrhdata.resample` aligns `moved` with `fixed`.
    radius : int
        Half edge of the cube, in voxels.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> a = from_array(np.random.default_rng(0).random((6, 6, 6)), spacing=(1, 1, 1))
    >>> local_correlation(a, 3 - 2 * a).values.min().round(4).item()
    1.0
    """

    def block(a: Floats, b: Floats) -> NDArray[np.float32]:
        def mean(v: Floats) -> Floats:
            return np.asarray(ndimage.uniform_filter(v, 2 * radius + 1, mode="nearest"))

        a, b = a - np.nanmean(a), b - np.nanmean(b)
        variance_a, variance_b = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2
        covariance = mean(a * b) - mean(a) * mean(b)
        flat = (variance_a <= 1e-9 * np.abs(a).max() ** 2) | (variance_b <= 1e-9 * np.abs(b).max() ** 2)
        squared = np.where(flat, 0, covariance**2 / np.where(flat, 1, variance_a * variance_b))
        return squared.clip(0, 1).astype(np.float32)

    return _map_neighbourhoods(block, fixed, moved, radius, "local_correlation", "1")


def local_information(fixed: xr.DataArray, moved: xr.DataArray, radius: int = 4) -> xr.DataArray:
    """Compute the mutual information of two volumes in the cube around each voxel, in bits, lazily.

    Each volume is quantised to eight equally frequent grey levels. Small cubes overestimate mutual information, by
    about 49 / (2 n ln 2) bits for n voxels (Miller 1955).

    Parameters
    ----------
    fixed, moved : volume
        As for :func:`local_correlation`.
    radius : int
        Half edge of the cube, in voxels.
    """
    edges = [_grey_level_edges(v) for v in (fixed, moved)]

    def block(a: Floats, b: Floats) -> NDArray[np.float32]:
        levels_a, levels_b = np.digitize(a, edges[0]), np.digitize(b, edges[1])

        def entropy(labels: NDArray[Any], count: int) -> Floats:
            total = np.zeros(labels.shape)
            for i in range(count):
                p = ndimage.uniform_filter((labels == i).astype(np.float64), 2 * radius + 1, mode="nearest")
                total -= np.where(p > 0, p * np.log2(np.maximum(p, 1e-12)), 0)
            return total

        joint = entropy(levels_a * _BINS + levels_b, _BINS**2)
        return np.maximum(entropy(levels_a, _BINS) + entropy(levels_b, _BINS) - joint, 0).astype(np.float32)

    return _map_neighbourhoods(block, fixed, moved, radius, "local_information", "bit")


def landmark_errors(transform: Transform, fixed_points: ArrayLike, moving_points: ArrayLike) -> Floats:
    """Compute target registration errors (n,) in mm: the distance of each mapped landmark from its counterpart.

    Parameters
    ----------
    transform : Transform
    fixed_points, moving_points : (n, 3) array-like
        Landmarks in world mm of the transform's source and target space, in the same order.

    Examples
    --------
    >>> landmark_errors(Transform(), [[0, 0, 0]], [[3, 4, 0]]).tolist()
    [5.0]
    """
    mapped, targets = transform.points(fixed_points), np.asarray(moving_points, dtype=np.float64)
    if mapped.shape != targets.shape or mapped.ndim != 2:
        raise GridError(f"landmarks must be two arrays of one shape (n, 3); got {mapped.shape} and {targets.shape}")
    return np.asarray(np.linalg.norm(mapped - targets, axis=1))


def validity(
    transform: Transform,
    fixed: xr.DataArray,
    moving: xr.DataArray,
    *,
    jacobians: tuple[float, float] = _JACOBIANS,
    least: float | None = None,
    radius: int = 3,
) -> xr.DataArray:
    """Return a lazy mask of fixed voxels with a trustworthy registration, to use as weights in :func:`mrhdata.patches`.

    A voxel is valid if it maps to a point inside `moving`, its volume change is between `jacobians` and, if `least`
    is passed, its local squared correlation is at least `least`.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> v = from_array(np.random.default_rng(0).random((4, 4, 4)), spacing=(1, 1, 1))
    >>> int(validity(Transform(), v, v.isel(x=slice(0, 2))).sum())
    32
    """
    from mrhdata.registration.resampling import resample

    change = jacobian(transform, fixed)
    valid = (covered(transform, fixed, moving) > 0) & (change >= jacobians[0]) & (change <= jacobians[1])
    if least is not None:
        valid = valid & (local_correlation(fixed, resample(moving, fixed, transform), radius) >= least)
    attrs = {"affine": fixed.attrs["affine"], "space": fixed.mrh.space, "kind": "mask"}
    return valid.astype(np.uint8).assign_attrs(attrs).rename("valid")


def _map_indices(block: Any, like: xr.DataArray, dtype: Any) -> xr.DataArray:
    """Return a lazy volume on the grid of `like`, computed from voxel indices (..., 3)."""
    import dask.array as da

    from mrhdata.registration.resampling import resample

    # Only the geometry and the chunks of the template are used.
    image = _first_image(like)
    template = resample(image, image)

    def from_indices(block_info: Any = None) -> NDArray[Any]:
        ranges = block_info[None]["array-location"]
        index = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in ranges), indexing="ij"), axis=-1)
        return block(index.astype(np.float64))

    data = da.map_blocks(from_indices, chunks=template.data.chunks, dtype=dtype, meta=np.empty((0, 0, 0), dtype))
    return template.copy(data=data)


def _first_image(like: xr.DataArray) -> xr.DataArray:
    image = like.isel({d: 0 for d in ("t", "c") if d in like.dims}, drop=True)
    return image.expand_dims([d for d in SPATIAL if d not in image.dims]).transpose(*SPATIAL).assign_attrs(kind="image")


def _map_neighbourhoods(
    block: Any, fixed: xr.DataArray, moved: xr.DataArray, radius: int, name: str, units: str
) -> xr.DataArray:
    """Return a lazy volume computed by `block` from blocks of both volumes with a margin of `radius` voxels."""
    import dask.array as da

    if radius < 1:
        raise GridError(f"radius must be at least 1 voxel; got {radius}")
    for volume in (fixed, moved):
        if volume.ndim != 3:
            raise GridError(f"volumes must have the axes z, y, x; got {volume.dims}. Select one image with isel.")
    moved = moved.mrh.like(fixed)
    pair = [da.asarray(v.astype(np.float64).data).rechunk(_chunks(fixed)) for v in (fixed, moved)]
    data = da.map_overlap(
        block, *pair, depth=radius, boundary="nearest", dtype=np.float32, meta=np.empty((0, 0, 0), np.float32)
    )
    return describe(fixed.copy(data=data).assign_attrs(kind="image"), name=name, units=units, modality="registration")


def _chunks(volume: xr.DataArray) -> tuple[int, ...]:
    return tuple(min(128, n) for n in volume.shape)


def _grey_level_edges(volume: xr.DataArray) -> Floats:
    stride = max(1, int(np.ceil((volume.size / _SAMPLE_SIZE) ** (1 / 3))))
    values = np.asarray(volume.data[::stride, ::stride, ::stride], dtype=np.float64)
    values = values[np.isfinite(values)]
    if not values.size or values.min() == values.max():
        raise DataError(f"{volume.name!r} has no contrast, so mutual information cannot be computed; check the volume")
    return np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1])
