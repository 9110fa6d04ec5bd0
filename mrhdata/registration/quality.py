"""How good a registration is, as volumes and numbers: volume change, local likeness, landmarks, where to trust it."""

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

#: Volume changes beyond these are foldings or tears rather than tissue.
_JACOBIANS = (0.2, 5.0)
_BINS = 8
#: Voxels from which the levels of grey of a local mutual information are taken.
_SAMPLE = 1_000_000


def jacobian(transform: Transform, like: xr.DataArray) -> xr.DataArray:
    """Local volume change: the determinant of the transform's derivative, on the grid of `like`, lazily.

    1 keeps volume, 2 means that a fixed voxel covers twice its volume of the moving space, 0 and less that it folds.

    Parameters
    ----------
    transform : Transform
    like : volume
        Of the transform's source space.

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

    return describe(_mapped(block, like, np.float32), name="jacobian", units="1", modality="registration")


def covered(transform: Transform, like: xr.DataArray, moving: xr.DataArray) -> xr.DataArray:
    """Mask on the grid of `like`: 1 where a voxel comes from within `moving`, lazily."""
    grid, other = like.mrh.grid, moving.mrh.grid

    def block(index: Floats) -> NDArray[np.uint8]:
        where = other.index(transform.points(grid.world(index)))
        return ((where >= -0.5) & (where <= np.array(other.shape) - 0.5)).all(axis=-1).astype(np.uint8)

    return describe(_mapped(block, like, np.uint8).assign_attrs(kind="mask"), name="covered")


def local_correlation(fixed: xr.DataArray, moved: xr.DataArray, radius: int = 3) -> xr.DataArray:
    """Squared correlation of two volumes on one grid in the cube around each voxel, lazily; 0 where either is flat.

    Parameters
    ----------
    fixed, moved : volume
        `moved` as :func:`mrhdata.resample` has laid it on `fixed`; one channel each.
    radius : int
        Half edge of the cube, voxels.

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
        spread_a, spread_b = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2
        both = mean(a * b) - mean(a) * mean(b)
        flat = (spread_a <= 1e-9 * np.abs(a).max() ** 2) | (spread_b <= 1e-9 * np.abs(b).max() ** 2)
        return np.where(flat, 0, both**2 / np.where(flat, 1, spread_a * spread_b)).clip(0, 1).astype(np.float32)

    return _local(block, fixed, moved, radius, "local_correlation", "1")


def local_information(fixed: xr.DataArray, moved: xr.DataArray, radius: int = 4) -> xr.DataArray:
    """Mutual information of two volumes on one grid in the cube around each voxel, in bits, lazily.

    Of eight levels of grey, equally frequent in each volume; small cubes overstate it, by about 49 / (2 n ln 2) bits
    for n voxels (Miller 1955).

    Parameters
    ----------
    fixed, moved : volume
        As for :func:`local_correlation`.
    radius : int
        Half edge of the cube, voxels.
    """
    edges = [_levels_of_grey(v) for v in (fixed, moved)]

    def block(a: Floats, b: Floats) -> NDArray[np.float32]:
        grey, other = np.digitize(a, edges[0]), np.digitize(b, edges[1])

        def entropy(labels: NDArray[Any], count: int) -> Floats:
            total = np.zeros(labels.shape)
            for i in range(count):
                p = ndimage.uniform_filter((labels == i).astype(np.float64), 2 * radius + 1, mode="nearest")
                total -= np.where(p > 0, p * np.log2(np.maximum(p, 1e-12)), 0)
            return total

        both = entropy(grey * _BINS + other, _BINS**2)
        return np.maximum(entropy(grey, _BINS) + entropy(other, _BINS) - both, 0).astype(np.float32)

    return _local(block, fixed, moved, radius, "local_information", "bit")


def landmark_errors(transform: Transform, fixed_points: ArrayLike, moving_points: ArrayLike) -> Floats:
    """Target registration error: how far each mapped landmark lies from its partner, (n,) mm.

    Parameters
    ----------
    transform : Transform
    fixed_points, moving_points : (n, 3) array-like
        World mm of the transform's source and target space; the same landmark in the same row.

    Examples
    --------
    >>> landmark_errors(Transform(), [[0, 0, 0]], [[3, 4, 0]]).tolist()
    [5.0]
    """
    mapped, there = transform.points(fixed_points), np.asarray(moving_points, dtype=np.float64)
    if mapped.shape != there.shape or mapped.ndim != 2:
        raise GridError(f"landmarks come in pairs of (n, 3) points, not {mapped.shape} and {there.shape}")
    return np.asarray(np.linalg.norm(mapped - there, axis=1))


def validity(
    transform: Transform,
    fixed: xr.DataArray,
    moving: xr.DataArray,
    *,
    jacobians: tuple[float, float] = _JACOBIANS,
    least: float | None = None,
    radius: int = 3,
) -> xr.DataArray:
    """Mask of the fixed voxels at which a registration may be trusted: weights for :func:`mrhdata.patches`, lazily.

    1 where a voxel comes from within `moving`, volume changes stay between `jacobians`, and, where `least` is given,
    the local squared correlation is at least that.

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
    kept = {"affine": fixed.attrs["affine"], "space": fixed.mrh.space, "kind": "mask"}
    return valid.astype(np.uint8).assign_attrs(kept).rename("valid")


def _mapped(block: Any, like: xr.DataArray, dtype: Any) -> xr.DataArray:
    """A volume whose voxels follow from their indices."""
    import dask.array as da

    from mrhdata.registration.resampling import resample

    # Only its geometry and its blocks are used.
    flat = _blank(like)
    shell = resample(flat, flat)

    def at(block_info: Any = None) -> NDArray[Any]:
        spans = block_info[None]["array-location"]
        index = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in spans), indexing="ij"), axis=-1)
        return block(index.astype(np.float64))

    data = da.map_blocks(at, chunks=shell.data.chunks, dtype=dtype, meta=np.empty((0, 0, 0), dtype))
    return shell.copy(data=data)


def _blank(like: xr.DataArray) -> xr.DataArray:
    flat = like.isel({d: 0 for d in ("t", "c") if d in like.dims}, drop=True)
    return flat.expand_dims([d for d in SPATIAL if d not in flat.dims]).transpose(*SPATIAL).assign_attrs(kind="image")


def _local(block: Any, fixed: xr.DataArray, moved: xr.DataArray, radius: int, name: str, units: str) -> xr.DataArray:
    import dask.array as da

    if radius < 1:
        raise GridError(f"radius is 1 voxel or more, not {radius}")
    for volume in (fixed, moved):
        if volume.ndim != 3:
            raise GridError(f"a local score needs volumes of z, y and x alone, not {volume.dims}; choose with isel")
    moved = moved.mrh.like(fixed)
    pair = [da.asarray(v.astype(np.float64).data).rechunk(_chunks(fixed)) for v in (fixed, moved)]
    data = da.map_overlap(
        block, *pair, depth=radius, boundary="nearest", dtype=np.float32, meta=np.empty((0, 0, 0), np.float32)
    )
    return describe(fixed.copy(data=data).assign_attrs(kind="image"), name=name, units=units, modality="registration")


def _chunks(volume: xr.DataArray) -> tuple[int, ...]:
    return tuple(min(128, n) for n in volume.shape)


def _levels_of_grey(volume: xr.DataArray) -> Floats:
    stride = max(1, int(np.ceil((volume.size / _SAMPLE) ** (1 / 3))))
    values = np.asarray(volume.data[::stride, ::stride, ::stride], dtype=np.float64)
    values = values[np.isfinite(values)]
    if not values.size or values.min() == values.max():
        raise DataError(f"{volume.name!r} has no contrast, so nothing can be learnt from it; check the volume")
    return np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1])
