"""Deformable registration: greedy diffeomorphic demons driven by the local correlation of two pictures.

The force is that of Avants et al. 2008 (Med. Image Anal. 12:26), which fits contrasts that are locally
linear to each other, whatever their sign; updates are smoothed, bounded and composed as in Vercauteren et al.
2009 (NeuroImage 45:S61). NumPy and SciPy on one thread: the result is the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mrhdata.registration.images import Picture, pulled
from mrhdata.registration.transforms import Displacement, Transform, nodes

#: Local variance below this is noise of flat background, and pulls nowhere (values run from 0 to 1).
_FLAT = 1e-4
#: Updates become half as long when the correlation has not gained so much over so many iterations.
_GAIN, _PATIENCE = 2e-4, 4

Field = NDArray[np.float32]


@dataclass(frozen=True)
class Deformation:
    """How stiff the tissue is.

    Attributes
    ----------
    iterations : tuple of int
        At most, for each level from the finest to coarser ones; the last holds for all that are coarser still.
    radius : int
        Half edge, in voxels of the level, of the cube in which the correlation is measured.
    fluid, elastic : float
        Standard deviation, in voxels of the level, of the Gaussians that smooth each update and the sum
        of all. An `elastic` of 0.7 follows bends of a few voxels more closely (0.39 instead of 0.55 voxels off in the
        digital brain), but squeezes away structures whose contrast differs between two subjects or methods, such as the
        pallidum of PD25 on CIT168.
    step : float
        Longest update, in voxels of the level; smooth ones below half a voxel cannot fold.
    """

    iterations: tuple[int, ...] = (40, 80, 100)
    radius: int = 2
    fluid: float = 3.0
    elastic: float = 1.5
    step: float = 0.4


def deform(fixed: Picture, moving: Picture, start: Transform, spacings: list[float], how: Deformation) -> Displacement:
    """The displacement to go before `start`, with its nodes at the voxels of the finest level.

    Parameters
    ----------
    fixed, moving : Picture
    start : Transform
        From fixed to moving world.
    spacings : list of float
        Levels from coarse to fine, mm.
    how : Deformation
    """
    found: Displacement | None = None
    for i, spacing in enumerate(spacings):
        here = fixed.at(spacing)
        loose = pulled(moving.at(spacing), here, start)
        begin = np.zeros((3, *here.grid.shape), np.float32) if found is None else _voxels(found, here)
        rounds = how.iterations[min(len(spacings) - 1 - i, len(how.iterations) - 1)]
        field = _level(here, loose, begin, rounds, how)
        world = np.einsum("ij,j...->i...", here.grid.affine[:3, :3], field)
        found = Displacement(world.astype(np.float32), here.grid.affine)
    if found is None:
        raise ValueError("there is no level")
    return found


def _voxels(found: Displacement, here: Picture) -> Field:
    """A coarser level's displacement at the voxels of this one, in voxels."""
    index = np.moveaxis(found.grid.index(nodes(here.grid)), -1, 0)
    # Beyond the outermost nodes of the coarser level, the nearest holds.
    world = np.stack([ndimage.map_coordinates(f, index, order=1, mode="nearest") for f in found.field])
    return np.einsum("ij,j...->i...", np.linalg.inv(here.grid.affine[:3, :3]), world).astype(np.float32)


def _level(fixed: Picture, moving: Picture, field: Field, rounds: int, how: Deformation) -> Field:
    places = np.indices(fixed.grid.shape, dtype=np.float32)
    # Axes of one voxel neither move nor are smoothed.
    free = np.array(fixed.grid.shape) > 1
    local = _Local(fixed, how.radius)
    best, best_field, step, waited = -np.inf, field, how.step, 0
    for _ in range(rounds):
        where = places + field
        warped = ndimage.map_coordinates(moving.values, where, order=1, mode="nearest")
        counts = fixed.inside & (
            moving.inside.all() or ndimage.map_coordinates(moving.inside.astype(np.float32), where, order=1) > 0.5
        )
        correlation, force = local.force(warped, counts)
        waited = 0 if correlation > best + _GAIN else waited + 1
        if correlation > best:
            best, best_field = correlation, field
        if waited >= _PATIENCE:
            # Updates of one length end by swinging around the optimum: go on with shorter ones.
            step, waited = step / 2, 0
            if step < how.step / 4:
                break
        update = _bounded(_smooth(force * free[:, None, None, None], how.fluid * free), step)
        moved = places + update
        field = np.stack([ndimage.map_coordinates(f, moved, order=1, mode="nearest") for f in field]) + update
        field = _smooth(field, how.elastic * free)
    return best_field


def _smooth(field: Field, sigma: NDArray[np.floating[Any]]) -> Field:
    return np.stack([ndimage.gaussian_filter(f, sigma, mode="nearest", truncate=3) for f in field])


def _bounded(update: Field, step: float) -> Field:
    """Scaled so that all but the longest thousandth are no longer than `step`; those are cut to it."""
    length = np.sqrt((update**2).sum(axis=0))
    most = float(np.quantile(length, 0.999)) or float(length.max())
    if most == 0:
        return update
    scaled = update * np.float32(step / most)
    return scaled / np.maximum(1, length * np.float32(1 / most))


class _Local:
    """Correlation in a cube around each voxel, and the force that raises it."""

    def __init__(self, fixed: Picture, radius: int) -> None:
        self._size = [2 * radius + 1 if n > 1 else 1 for n in fixed.grid.shape]
        self._f = fixed.values
        self._mean = self._box(fixed.values)
        self._var = np.maximum(self._box(fixed.values**2) - self._mean**2, 0)

    def _box(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return ndimage.uniform_filter(values, self._size, mode="nearest")

    def force(self, m: NDArray[np.float32], counts: NDArray[np.bool_]) -> tuple[float, Field]:
        """Mean squared correlation where there is contrast, and the force (3, z, y, x)."""
        mean = self._box(m)
        var = np.maximum(self._box(m**2) - mean**2, 0)
        both = self._box(self._f * m) - self._mean * mean
        rough = counts & (self._var > _FLAT) & (var > _FLAT)
        square = np.where(rough, both**2 / np.maximum(self._var * var, _FLAT**2), 0)
        f, g = self._f - self._mean, m - mean
        scale = 2 * both / np.maximum(self._var * var, _FLAT**2) * (f - both / np.maximum(var, _FLAT) * g)
        scale = np.where(rough, scale, 0).astype(np.float32)
        slopes = [np.gradient(m, axis=a) if n > 1 else np.zeros_like(m) for a, n in enumerate(m.shape)]
        # Where only one of the two has contrast they do not fit at all: counted, so that fleeing is no gain.
        seen = counts & ((self._var > _FLAT) | (var > _FLAT))
        return float(square.sum() / max(1, seen.sum())), scale * np.stack(slopes)
