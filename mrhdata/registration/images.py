"""What a registration looks at: one channel in memory, scaled from 0 to 1, at a spacing that suits its level."""

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

#: Percentiles that become 0 and 1: a few hot voxels are no reason to squeeze the rest.
_LOW, _HIGH = 0.5, 99.8
#: Voxels of the finest level, unless the caller gives a spacing.
_VOXELS = 1_500_000
#: A level is half as fine as the next one, down to so many voxels along the longest axis.
_COARSEST = 24


@dataclass(frozen=True, eq=False)
class Picture:
    """Values (z, y, x) float32 from 0 to 1 on a grid, and which of them count."""

    values: NDArray[np.float32]
    grid: Grid
    inside: NDArray[np.bool_]

    def at(self, spacing_mm: float) -> Picture:
        """The same, no finer than a spacing along any axis."""
        steps = np.maximum(self.grid.spacing, spacing_mm)
        if (steps <= 1.01 * self.grid.spacing).all():
            return self
        ratio = steps / self.grid.spacing
        sigma = np.sqrt(np.maximum(ratio**2 - 1, 0) / (8 * np.log(2)))
        grid = coarsened(self.grid, steps.tolist())
        index = self.grid.index(nodes(grid))
        where = np.moveaxis(index, -1, 0)
        values = ndimage.map_coordinates(smoothed(self.values, sigma), where, order=1, mode="nearest")
        share = ndimage.map_coordinates(smoothed(self.inside.astype(np.float32), sigma), where, order=1, mode="nearest")
        return Picture(values.astype(np.float32), grid, share >= 0.5)

    def thick(self, least: int = 4) -> Picture:
        """The same with edges, which do not count, repeated to so many voxels along each axis: ITK takes no fewer."""
        lacking = np.maximum(least - np.array(self.grid.shape), 0)
        if not lacking.any():
            return self
        pads = np.stack([lacking // 2, lacking - lacking // 2], axis=1)
        affine = self.grid.affine.copy()
        affine[:3, 3] = self.grid.world(-pads[:, 0])
        values = np.pad(self.values, pads, mode="edge")
        return Picture(values, Grid(values.shape, affine), np.pad(self.inside, pads))

    def foreground(self) -> NDArray[np.bool_]:
        """Voxels that count and are brighter than Otsu's threshold (1979, IEEE Trans. SMC 9:62)."""
        counts, edges = np.histogram(self.values[self.inside], bins=128, range=(0, 1))
        share = np.cumsum(counts) / counts.sum()
        mean = np.cumsum(counts * (edges[:-1] + edges[1:]) / 2) / counts.sum()
        between = (mean[-1] * share - mean) ** 2 / np.maximum(share * (1 - share), 1e-12)
        return np.asarray(self.inside & (self.values > edges[1 + int(np.argmax(between[:-1]))]))

    def centre(self) -> Floats:
        """World point (3,) in the middle of the foreground."""
        places = np.argwhere(self.foreground())
        return self.grid.world(places.mean(axis=0) if len(places) else (np.array(self.grid.shape) - 1) / 2)


def picture(volume: xr.DataArray, mask: xr.DataArray | None, spacing_mm: float, what: str) -> Picture:
    """Look at a volume at a spacing, or at its own where that is coarser.

    Raises
    ------
    DataError
        It has several channels, is a label volume, or holds no contrast.
    GridError
        The mask lies elsewhere.
    """
    if volume.attrs.get("kind") == "labels":
        raise DataError(f"{what} holds labels, which have no brightness; register its image, then resample the labels")
    if any(volume.sizes.get(d, 1) > 1 for d in ("t", "c")):
        raise DataError(f"{what} has the axes {dict(volume.sizes)}; choose one channel with isel, such as isel(c=0)")
    if volume.dtype.kind == "c":
        raise DataError(f"{what} is complex; register its magnitude")
    grid = coarsened(volume.mrh.grid, np.maximum(volume.mrh.spacing, spacing_mm).tolist())
    image = volume.astype(np.float32).assign_attrs(kind="image")
    values = np.asarray(resample(image, grid, fill=np.nan).squeeze([d for d in ("t", "c") if d in volume.dims]).data)
    inside = np.isfinite(values) & _within(mask, grid, what, volume.mrh.space)
    if not inside.any():
        raise DataError(f"{what} has no finite voxel inside its mask; check both")
    low, high = np.percentile(values[inside], [_LOW, _HIGH])
    if not high > low:
        low, high = values[inside].min(), values[inside].max()
    if not high > low:
        raise DataError(f"{what} is {low:g} everywhere; there is nothing to register")
    scaled = np.clip((np.nan_to_num(values, nan=low) - low) / (high - low), 0, 1)
    return Picture(scaled.astype(np.float32), grid, inside)


def pulled(moving: Picture, fixed: Picture, start: Transform) -> Picture:
    """The moving picture at the voxels of the fixed one, as `start` has it."""
    where = np.moveaxis(moving.grid.index(start.points(nodes(fixed.grid))), -1, 0)
    values = ndimage.map_coordinates(moving.values, where, order=1, mode="nearest")
    inside = ndimage.map_coordinates(moving.inside.astype(np.uint8), where, order=0, mode="constant")
    return Picture(values, fixed.grid, inside.astype(bool))


def _within(mask: xr.DataArray | None, grid: Grid, what: str, space: str) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(grid.shape, dtype=bool)
    if mask.mrh.space != space:
        raise GridError(f"the mask of {what} lies in {mask.mrh.space!r} and {what} in {space!r}; give one in its space")
    flat = mask.squeeze([d for d in ("t", "c") if d in mask.dims])
    return np.asarray(resample((flat > 0).assign_attrs(flat.attrs | {"kind": "mask"}), grid).data).astype(bool)


def finest(fixed: xr.DataArray, moving: xr.DataArray, spacing_mm: float | None) -> float:
    """Spacing of the last level: what was asked for, or that of the coarser volume within `_VOXELS`."""
    if spacing_mm is not None:
        if not spacing_mm > 0:
            raise GridError(f"spacing_mm is a positive number, not {spacing_mm}")
        return float(spacing_mm)
    grid = fixed.mrh.grid
    spacing = max(float(grid.spacing.min()), float(moving.mrh.spacing.min()))
    extent = np.array(grid.shape) * grid.spacing
    while np.prod(np.maximum(1, extent / np.maximum(spacing, grid.spacing))) > _VOXELS:
        spacing *= 1.1
    return spacing


def levels(grid: Grid, spacing_mm: float) -> list[float]:
    """Spacings from coarse to fine, halved each time.

    Examples
    --------
    >>> levels(Grid((100, 100, 100), np.eye(4)), 1.0)
    [4.0, 2.0, 1.0]
    """
    found = [spacing_mm]
    while (np.array(grid.shape) * grid.spacing).max() / (2 * found[0]) >= _COARSEST:
        found.insert(0, 2 * found[0])
    return found
