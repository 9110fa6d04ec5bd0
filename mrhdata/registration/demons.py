"""Deformable registration: greedy diffeomorphic demons driven by the local correlation of two images.

The force of Avants et al. 2008 (Med. Image Anal. 12:26) suits contrasts that are locally linear functions of each
other, with either sign; updates are smoothed, bounded and composed as in Vercauteren et al. 2009 (NeuroImage
45:S61). NumPy and SciPy run on one thread, so the result is the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mrhdata.registration.images import LevelImage, pulled
from mrhdata.registration.transforms import Displacement, Transform, nodes

#: Local variance below this is noise in flat background and exerts no force (values are between 0 and 1).
_FLAT = 1e-4
#: Updates are halved if the correlation does not rise by `_MIN_GAIN` within `_PATIENCE` iterations.
_MIN_GAIN, _PATIENCE = 2e-4, 4

Field = NDArray[np.float32]


@dataclass(frozen=True)
class Deformation:
    """Settings of deformable registration: iterations, window and smoothness.

    Attributes
    ----------
    iterations : tuple of int
        Maximum number of iterations for each level, finest first; the last entry also holds for coarser levels.
    radius : int
        Half edge, in voxels of the level, of the cube in which the correlation is measured.
    fluid, elastic : float
        Standard deviations, in voxels of the level, of the Gaussians that smooth each update and the whole field. An
        `elastic` of 0.7 follows deformations of a few voxels more closely (error of 0.39 instead of 0.55 voxels in the
        digital brain), but shrinks structures whose contrast differs between two subjects or methods, such as the
        pallidum of PD25 on CIT168.
    step : float
        Longest update, in voxels of the level; smooth updates below half a voxel cannot fold.
    """

    iterations: tuple[int, ...] = (40, 80, 100)
    radius: int = 2
    fluid: float = 3.0
    elastic: float = 1.5
    step: float = 0.4


def deform(
    fixed: LevelImage, moving: LevelImage, start: Transform, spacings: list[float], how: Deformation
) -> Displacement:
    """Find the displacement to apply before `start`, with its nodes at the voxels of the finest level.

    Parameters
    ----------
    fixed, moving : Picture
    start : Transform
        Transform from fixed to moving world.
    spacings : list of float
        Spacings of the levels from coarse to fine, mm.
    how : Deformation
    """
    displacement: Displacement | None = None
    for i, spacing in enumerate(spacings):
        fixed_level = fixed.at(spacing)
        moving_level = pulled(moving.at(spacing), fixed_level, start)
        if displacement is None:
            initial = np.zeros((3, *fixed_level.grid.shape), np.float32)
        else:
            initial = _to_voxels(displacement, fixed_level)
        iterations = how.iterations[min(len(spacings) - 1 - i, len(how.iterations) - 1)]
        field = _deform_level(fixed_level, moving_level, initial, iterations, how)
        field_mm = np.einsum("ij,j...->i...", fixed_level.grid.affine[:3, :3], field)
        displacement = Displacement(field_mm.astype(np.float32), fixed_level.grid.affine)
    if displacement is None:
        raise ValueError("spacings must have at least one level; got none")
    return displacement


def _to_voxels(displacement: Displacement, fixed: LevelImage) -> Field:
    """Return a coarser level's displacement at the voxels of this level, in voxels."""
    index = np.moveaxis(displacement.grid.index(nodes(fixed.grid)), -1, 0)
    # Beyond the outermost nodes of the coarser level, the nearest node counts.
    field_mm = np.stack([ndimage.map_coordinates(f, index, order=1, mode="nearest") for f in displacement.field])
    return np.einsum("ij,j...->i...", np.linalg.inv(fixed.grid.affine[:3, :3]), field_mm).astype(np.float32)


def _deform_level(fixed: LevelImage, moving: LevelImage, field: Field, iterations: int, how: Deformation) -> Field:
    voxels = np.indices(fixed.grid.shape, dtype=np.float32)
    # Axes of one voxel are neither moved nor smoothed.
    free = np.array(fixed.grid.shape) > 1
    local = _LocalCorrelation(fixed, how.radius)
    best, best_field, step, waited = -np.inf, field, how.step, 0
    for _ in range(iterations):
        index = voxels + field
        warped = ndimage.map_coordinates(moving.values, index, order=1, mode="nearest")
        mask = fixed.inside & (
            moving.inside.all() or ndimage.map_coordinates(moving.inside.astype(np.float32), index, order=1) > 0.5
        )
        correlation, force = local.force(warped, mask)
        waited = 0 if correlation > best + _MIN_GAIN else waited + 1
        if correlation > best:
            best, best_field = correlation, field
        if waited >= _PATIENCE:
            # Updates of constant length end up oscillating around the optimum: continue with shorter ones.
            step, waited = step / 2, 0
            if step < how.step / 4:
                break
        update = _limit_length(_smooth(force * free[:, None, None, None], how.fluid * free), step)
        updated = voxels + update
        field = np.stack([ndimage.map_coordinates(f, updated, order=1, mode="nearest") for f in field]) + update
        field = _smooth(field, how.elastic * free)
    return best_field


def _smooth(field: Field, sigma: NDArray[np.floating[Any]]) -> Field:
    return np.stack([ndimage.gaussian_filter(f, sigma, mode="nearest", truncate=3) for f in field])


def _limit_length(update: Field, step: float) -> Field:
    """Scale an update so that 99.9 % of its vectors are at most `step` long, and shorten the others to `step`."""
    length = np.sqrt((update**2).sum(axis=0))
    longest = float(np.quantile(length, 0.999)) or float(length.max())
    if longest == 0:
        return update
    scaled = update * np.float32(step / longest)
    return scaled / np.maximum(1, length * np.float32(1 / longest))


class _LocalCorrelation:
    """Correlation in a cube around each voxel, and the force that raises it."""

    def __init__(self, fixed: LevelImage, radius: int) -> None:
        self._size = [2 * radius + 1 if n > 1 else 1 for n in fixed.grid.shape]
        self._fixed = fixed.values
        self._mean = self._cube_mean(fixed.values)
        self._var = np.maximum(self._cube_mean(fixed.values**2) - self._mean**2, 0)

    def _cube_mean(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return ndimage.uniform_filter(values, self._size, mode="nearest")

    def force(self, moving: NDArray[np.float32], mask: NDArray[np.bool_]) -> tuple[float, Field]:
        """Return the mean squared correlation over voxels with contrast, and the force (3, z, y, x)."""
        mean = self._cube_mean(moving)
        var = np.maximum(self._cube_mean(moving**2) - mean**2, 0)
        covariance = self._cube_mean(self._fixed * moving) - self._mean * mean
        contrast = mask & (self._var > _FLAT) & (var > _FLAT)
        squared = np.where(contrast, covariance**2 / np.maximum(self._var * var, _FLAT**2), 0)
        f, m = self._fixed - self._mean, moving - mean
        scale = 2 * covariance / np.maximum(self._var * var, _FLAT**2) * (f - covariance / np.maximum(var, _FLAT) * m)
        scale = np.where(contrast, scale, 0).astype(np.float32)
        slopes = [np.gradient(moving, axis=a) if n > 1 else np.zeros_like(moving) for a, n in enumerate(moving.shape)]
        # Voxels where only one image has contrast count as 0, so that moving structures apart does not pay off.
        counted = mask & ((self._var > _FLAT) | (var > _FLAT))
        return float(squared.sum() / max(1, counted.sum())), scale * np.stack(slopes)
