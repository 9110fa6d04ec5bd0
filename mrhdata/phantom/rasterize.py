"""Shapes painted on a box of voxels, wherever the box lies in the brain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Image = NDArray[np.float32]


class Canvas:
    """A box of voxels on which emitters are painted; where two meet, the brighter is seen.

    Parameters
    ----------
    start, shape : (3,) sequence of int
        First voxel and voxels along z, y, x.
    spacing_um : float
        Of the isotropic grid; shapes are given in um, with the centre of voxel 0 at 0.
    """

    def __init__(self, start: Sequence[int], shape: Sequence[int], spacing_um: float) -> None:
        self.spacing = spacing_um
        self.axes = np.ix_(*((np.arange(n) + s) * spacing_um for s, n in zip(start, shape, strict=True)))
        self.low = np.array(start) * spacing_um
        self.high = (np.array(start) + np.array(shape) - 1) * spacing_um
        self.image: Image = np.zeros(shape, dtype=np.float32)

    def gaussians(self, rows: Floats) -> None:
        """Round spots, cut at three standard deviations; rows are z, y, x, standard deviation, brightness."""
        reach = 3 * rows[:, 3:4]
        for row in rows[self._met(rows[:, :3] - reach, rows[:, :3] + reach)]:
            centre, sigma = row[:3], row[3]
            part, offset = self._near(centre - 3 * sigma, centre + 3 * sigma, centre)
            z, y, x = (np.exp(-0.5 * (o / sigma) ** 2).astype(np.float32) for o in offset)
            self._paint(part, np.float32(row[4]) * z * y * x)

    def capsules(self, pieces: Floats) -> None:
        """Tubes, (n, 2, 5): z, y, x, radius, brightness of both ends."""
        margin = pieces[..., 3].max(axis=1)[:, None] + self.spacing
        low, high = pieces[..., :3].min(axis=1) - margin, pieces[..., :3].max(axis=1) + margin
        for n in np.flatnonzero(self._met(low, high)):
            self._capsule(pieces[n], *self._near(low[n], high[n], pieces[n, 0, :3]))

    def _capsule(self, ends: Floats, part: tuple[slice, ...], offset: Sequence[Floats]) -> None:
        along = ends[1, :3] - ends[0, :3]
        t = sum(o * a for o, a in zip(offset, along, strict=True)) / max(float(along @ along), 1e-12)
        t = np.clip(t, 0, 1)
        beside = np.sqrt(sum((o - t * a) ** 2 for o, a in zip(offset, along, strict=True)))
        radius, bright = (ends[0, k] + t * (ends[1, k] - ends[0, k]) for k in (3, 4))
        self._paint(part, bright * self._share(radius - beside))

    def ellipsoid(self, centre: Floats, radii: Floats, turn: Floats, brightness: float, hollow: float) -> None:
        """A body with a share `hollow` less in its inner half; columns of `turn` are its axes."""
        reach = radii.max() + self.spacing
        if not self._met(centre - reach, centre + reach):
            return
        part, offset = self._near(centre - reach, centre + reach, centre)
        squares = (sum(o * turn[k, axis] for k, o in enumerate(offset)) ** 2 / radii[axis] ** 2 for axis in range(3))
        depth, size = np.sqrt(sum(squares)), float(np.cbrt(radii.prod()))
        inner = self._share(size * (0.55 - depth))
        self._paint(part, brightness * self._share(size * (1 - depth)) * (1 - hollow * inner))

    def _met(self, low: Floats, high: Floats) -> NDArray[np.bool_]:
        """Which boxes between corners (..., 3), um, meet this one."""
        return np.asarray(((low <= self.high) & (high >= self.low)).all(axis=-1))

    def _share(self, inside: Floats) -> Floats:
        """Share of a voxel that lies within a surface, by its distance inside it, um."""
        return np.clip(0.5 + inside / self.spacing, 0, 1)

    def _near(self, low: Floats, high: Floats, origin: Floats) -> tuple[tuple[slice, ...], list[Floats]]:
        """The part of the box between two corners, and the offsets of its voxels along each axis."""
        first = np.clip(np.ceil((low - self.low) / self.spacing), 0, self.image.shape).astype(int)
        last = np.clip(np.floor((high - self.low) / self.spacing) + 1, first, self.image.shape).astype(int)
        part = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        along = [axis.ravel()[p] - o for axis, p, o in zip(self.axes, part, origin, strict=True)]
        return part, list(np.ix_(*along))

    def _paint(self, part: tuple[slice, ...], light: NDArray[np.floating]) -> None:
        np.maximum(self.image[part], light, out=self.image[part], casting="same_kind")
