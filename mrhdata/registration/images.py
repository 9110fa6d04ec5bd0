"""Images for registration: one channel in memory, scaled to 0 to 1, at the spacing of a level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mrhdata.errors import DataError, GridError
from mrhdata.registration.resampling import coarsened, resample, smoothed
from mrhdata.registration.transforms import Transform, nodes
from mrhdata.volume.grid import Floats, Grid

if TYPE_CHECKING:
    import xarray as xr

#: Percentiles that become 0 and 1, so that a few very bright voxels do not compress the range of the others.
_LOW, _HIGH = 0.5, 99.8
#: Maximum number of voxels of the finest level, unless the caller passes a spacing.
_MAX_VOXELS = 1_500_000
#: Minimum number of voxels along the longest axis of the coarsest level.
_COARSEST = 24


@dataclass(frozen=True, eq=False)
class LevelImage:
    """Float32 values (z, y, x) from 0 to 1 on a grid, and a mask of the voxels that count."""

    values: NDArray[np.float32]
    grid: Grid
    inside: NDArray[np.bool_]

    def at(self, spacing_mm: float) -> LevelImage:
        """Return the image at a spacing, or at its own along axes where that is coarser."""
        spacing = np.maximum(self.grid.spacing, spacing_mm)
        if (spacing <= 1.01 * self.grid.spacing).all():
            return self
        ratio = spacing / self.grid.spacing
        sigma = np.sqrt(np.maximum(ratio**2 - 1, 0) / (8 * np.log(2)))
        grid = coarsened(self.grid, spacing.tolist())
        index = np.moveaxis(self.grid.index(nodes(grid)), -1, 0)
        values = ndimage.map_coordinates(smoothed(self.values, sigma), index, order=1, mode="nearest")
        share = ndimage.map_coordinates(smoothed(self.inside.astype(np.float32), sigma), index, order=1, mode="nearest")
        return LevelImage(values.astype(np.float32), grid, share >= 0.5)

    def thick(self, least: int = 4) -> LevelImage:
        """Return the image with at least `least` voxels along each axis, which ITK needs.

        Edge voxels are repeated; the added ones do not count.
        """
        missing = np.maximum(least - np.array(self.grid.shape), 0)
        if not missing.any():
            return self
        pads = np.stack([missing // 2, missing - missing // 2], axis=1)
        affine = self.grid.affine.copy()
        affine[:3, 3] = self.grid.world(-pads[:, 0])
        values = np.pad(self.values, pads, mode="edge")
        return LevelImage(values, Grid(values.shape, affine), np.pad(self.inside, pads))

    def foreground(self) -> NDArray[np.bool_]:
        """Return a mask of the voxels that count and are above Otsu's threshold (1979, IEEE Trans. SMC 9:62)."""
        counts, edges = np.histogram(self.values[self.inside], bins=128, range=(0, 1))
        share = np.cumsum(counts) / counts.sum()
        mean = np.cumsum(counts * (edges[:-1] + edges[1:]) / 2) / counts.sum()
        between = (mean[-1] * share - mean) ** 2 / np.maximum(share * (1 - share), 1e-12)
        return np.asarray(self.inside & (self.values > edges[1 + int(np.argmax(between[:-1]))]))

    def centre(self) -> Floats:
        """Return the centroid of the foreground as a world point (3,), or the grid centre without a foreground."""
        index = np.argwhere(self.foreground())
        return self.grid.world(index.mean(axis=0) if len(index) else (np.array(self.grid.shape) - 1) / 2)


def picture(volume: xr.DataArray, mask: xr.DataArray | None, spacing_mm: float, what: str) -> LevelImage:
    """Load a volume at a spacing, or at its own along axes where that is coarser.

    Parameters
    ----------
    volume : volume
    mask : volume or None
        Mask of the voxels that count, in the space of `volume`.
    spacing_mm : float
    what : str
        Name of the volume in error messages.

    Raises
    ------
    DataError
        The volume has several channels, holds labels or complex numbers, or has no contrast.
    GridError
        The mask is in another space.
    """
    if volume.attrs.get("kind") == "labels":
        raise DataError(f"{what} must be an image; got labels. Register the image, then resample the labels.")
    if any(volume.sizes.get(d, 1) > 1 for d in ("t", "c")):
        raise DataError(f"{what} must have one channel; got {dict(volume.sizes)}. Select one, such as with isel(c=0).")
    if volume.dtype.kind == "c":
        raise DataError(f"{what} must be real; got {volume.dtype}. Register its magnitude.")
    grid = coarsened(volume.mrh.grid, np.maximum(volume.mrh.spacing, spacing_mm).tolist())
    image = volume.astype(np.float32).assign_attrs(kind="image")
    values = np.asarray(resample(image, grid, fill=np.nan).squeeze([d for d in ("t", "c") if d in volume.dims]).data)
    inside = np.isfinite(values) & _resample_mask(mask, grid, what, volume.mrh.space)
    if not inside.any():
        raise DataError(f"{what} has no finite voxel inside its mask; check both")
    low, high = np.percentile(values[inside], [_LOW, _HIGH])
    if not high > low:
        low, high = values[inside].min(), values[inside].max()
    if not high > low:
        raise DataError(f"{what} must have contrast to be registered; got {low:g} everywhere")
    scaled = np.clip((np.nan_to_num(values, nan=low) - low) / (high - low), 0, 1)
    return LevelImage(scaled.astype(np.float32), grid, inside)


def pulled(moving: LevelImage, fixed: LevelImage, start: Transform) -> LevelImage:
    """Resample the moving image to the grid of the fixed one through `start`."""
    index = np.moveaxis(moving.grid.index(start.points(nodes(fixed.grid))), -1, 0)
    values = ndimage.map_coordinates(moving.values, index, order=1, mode="nearest")
    inside = ndimage.map_coordinates(moving.inside.astype(np.uint8), index, order=0, mode="constant")
    return LevelImage(values, fixed.grid, inside.astype(bool))


def _resample_mask(mask: xr.DataArray | None, grid: Grid, what: str, space: str) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(grid.shape, dtype=bool)
    if mask.mrh.space != space:
        raise GridError(f"the mask of {what} must be in the space {space!r}; got {mask.mrh.space!r}")
    spatial = mask.squeeze([d for d in ("t", "c") if d in mask.dims])
    return np.asarray(resample((spatial > 0).assign_attrs(spatial.attrs | {"kind": "mask"}), grid).data).astype(bool)


def finest(fixed: xr.DataArray, moving: xr.DataArray, spacing_mm: float | None) -> float:
    """Return the spacing of the last level: `spacing_mm`, or that of the coarser volume, limited by `_MAX_VOXELS`."""
    if spacing_mm is not None:
        if not spacing_mm > 0:
            raise GridError(f"spacing_mm must be a positive number; got {spacing_mm}")
        return float(spacing_mm)
    grid = fixed.mrh.grid
    spacing = max(float(grid.spacing.min()), float(moving.mrh.spacing.min()))
    extent = np.array(grid.shape) * grid.spacing
    while np.prod(np.maximum(1, extent / np.maximum(spacing, grid.spacing))) > _MAX_VOXELS:
        spacing *= 1.1
    return spacing


def levels(grid: Grid, spacing_mm: float) -> list[float]:
    """Return the spacings of all levels from coarse to fine; each is half the previous one.

    Examples
    --------
    >>> levels(Grid((100, 100, 100), np.eye(4)), 1.0)
    [4.0, 2.0, 1.0]
    """
    spacings = [spacing_mm]
    while (np.array(grid.shape) * grid.spacing).max() / (2 * spacings[0]) >= _COARSEST:
        spacings.insert(0, 2 * spacings[0])
    return spacings
