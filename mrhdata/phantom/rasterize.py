"""Rasterisation of spots, tubes and ellipsoids on any box of voxels of a brain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Image = NDArray[np.float32]


class Canvas:
    """Box of voxels on which emitters are painted; overlapping emitters keep the larger brightness.

    Parameters
    ----------
    start, shape : (3,) sequence of int
        First voxel and number of voxels along z, y, x.
    spacing_um : float
        Spacing of the isotropic grid. Shapes are in um, with the centre of voxel 0 at 0.
    """

    def __init__(self, start: Sequence[int], shape: Sequence[int], spacing_um: float) -> None:
        self.spacing = spacing_um
        self.axes = np.ix_(*((np.arange(n) + s) * spacing_um for s, n in zip(start, shape, strict=True)))
        self.low = np.array(start) * spacing_um
        self.high = (np.array(start) + np.array(shape) - 1) * spacing_um
        self.image: Image = np.zeros(shape, dtype=np.float32)

    def gaussians(self, rows: Floats) -> None:
        """Paint Gaussian spots, cut at three standard deviations.

        Rows are z, y, x, standard deviation (um) and brightness.
        """
        reach = 3 * rows[:, 3:4]
        for row in rows[self._intersects(rows[:, :3] - reach, rows[:, :3] + reach)]:
            centre, sigma = row[:3], row[3]
            region, offset = self._region(centre - 3 * sigma, centre + 3 * sigma, centre)
            z, y, x = (np.exp(-0.5 * (o / sigma) ** 2).astype(np.float32) for o in offset)
            self._paint(region, np.float32(row[4]) * z * y * x)

    def capsules(self, pieces: Floats) -> None:
        """Paint tubes with round ends, (n, 2, 5): z, y, x, radius (um) and brightness of both ends."""
        margin = pieces[..., 3].max(axis=1)[:, None] + self.spacing
        low, high = pieces[..., :3].min(axis=1) - margin, pieces[..., :3].max(axis=1) + margin
        for n in np.flatnonzero(self._intersects(low, high)):
            self._capsule(pieces[n], *self._region(low[n], high[n], pieces[n, 0, :3]))

    def _capsule(self, ends: Floats, region: tuple[slice, ...], offset: Sequence[Floats]) -> None:
        axis = ends[1, :3] - ends[0, :3]
        t = sum(o * a for o, a in zip(offset, axis, strict=True)) / max(float(axis @ axis), 1e-12)
        t = np.clip(t, 0, 1)
        distance = np.sqrt(sum((o - t * a) ** 2 for o, a in zip(offset, axis, strict=True)))
        radius, brightness = (ends[0, k] + t * (ends[1, k] - ends[0, k]) for k in (3, 4))
        self._paint(region, brightness * self._coverage(radius - distance))

    def ellipsoid(self, centre: Floats, radii: Floats, turn: Floats, brightness: float, hollow: float) -> None:
        """Paint an ellipsoid whose core is darker by the share `hollow`; columns of `turn` are its axes."""
        reach = radii.max() + self.spacing
        if not self._intersects(centre - reach, centre + reach):
            return
        region, offset = self._region(centre - reach, centre + reach, centre)
        squares = (sum(o * turn[k, axis] for k, o in enumerate(offset)) ** 2 / radii[axis] ** 2 for axis in range(3))
        radius, size = np.sqrt(sum(squares)), float(np.cbrt(radii.prod()))
        core = self._coverage(size * (0.55 - radius))
        self._paint(region, brightness * self._coverage(size * (1 - radius)) * (1 - hollow * core))

    def _intersects(self, low: Floats, high: Floats) -> NDArray[np.bool_]:
        """Return which boxes between corners (..., 3), in um, intersect the canvas."""
        return np.asarray(((low <= self.high) & (high >= self.low)).all(axis=-1))

    def _coverage(self, signed_um: Floats) -> Floats:
        """Return the share of each voxel inside a surface, from the distance of its centre inside the surface."""
        return np.clip(0.5 + signed_um / self.spacing, 0, 1)

    def _region(self, low: Floats, high: Floats, origin: Floats) -> tuple[tuple[slice, ...], list[Floats]]:
        """Return slices of the canvas between two corners, and the offsets of their voxels from `origin`."""
        first = np.clip(np.ceil((low - self.low) / self.spacing), 0, self.image.shape).astype(int)
        last = np.clip(np.floor((high - self.low) / self.spacing) + 1, first, self.image.shape).astype(int)
        region = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        offsets = [axis.ravel()[s] - o for axis, s, o in zip(self.axes, region, origin, strict=True)]
        return region, list(np.ix_(*offsets))

    def _paint(self, region: tuple[slice, ...], light: NDArray[np.floating]) -> None:
        np.maximum(self.image[region], light, out=self.image[region], casting="same_kind")
