"""Peaks of a score volume, each standing for one object: a maximum among all voxels within a radius.

Voxels are ordered by their value and, where values are equal, by their index. A peak is first in that order
within its ball, so what is a peak depends on its ball alone, and a volume gives the same peaks in parts as
in one. NumPy and SciPy only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, maximum_filter

from mrhdata.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Standard deviations at which the smoothing kernel ends.
_TRUNCATED = 3.0


@dataclass(frozen=True)
class Peaks:
    """What counts as a peak.

    Attributes
    ----------
    threshold : float
        Least smoothed score.
    radius_mm : float
        Of the ball in which a peak is the highest: of two objects nearer than this one is found.
    smooth_mm : float
        Standard deviation of the Gaussian that scores are smoothed by before; 0 for none.
    """

    threshold: float = 0.5
    radius_mm: float = 0.006
    smooth_mm: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.threshold) and self.radius_mm > 0 and self.smooth_mm >= 0):
            raise DataError(
                "peaks need a finite threshold, a radius above 0 mm and a width of 0 mm or more, not "
                f"{self.threshold}, {self.radius_mm} and {self.smooth_mm}"
            )

    def ball(self, spacing: Sequence[float]) -> tuple[int, int, int]:
        """Voxels from a ball's centre to its border, along z, y, x."""
        z, y, x = (int(self.radius_mm / s + 1e-9) for s in spacing)
        return (z, y, x)

    def halo(self, spacing: Sequence[float]) -> tuple[int, int, int]:
        """Voxels about a voxel that decide whether it is a peak, along z, y, x."""
        z, y, x = (b + k for b, k in zip(self.ball(spacing), self._kernel(spacing), strict=True))
        return (z, y, x)

    def _kernel(self, spacing: Sequence[float]) -> list[int]:
        return [int(_TRUNCATED * self.smooth_mm / s + 0.5) for s in spacing]


@dataclass(frozen=True)
class PeakTable:
    """Peaks of a box, in the order of their voxels.

    Attributes
    ----------
    voxel : (n, 3) int array
        Of the highest scores, z, y, x, from the box's core on.
    shift : (n, 3) float array
        From there to the centroids of the scores about them, in voxels.
    score : (n,) float array
        Smoothed.
    size : (n,) float array
        Voxels of the ball whose score is at least half of the peak's.
    """

    voxel: Ints
    shift: Floats
    score: Floats
    size: Floats

    @property
    def centre(self) -> Floats:
        """Centroids, in voxels: (n, 3)."""
        return self.voxel + self.shift


def find_peaks(
    scores: NDArray[Any],
    spacing: Sequence[float],
    peaks: Peaks,
    *,
    halo: bool = False,
    outside: NDArray[np.bool_] | None = None,
) -> PeakTable:
    """Find the peaks of a box of scores.

    Parameters
    ----------
    scores : (z, y, x) array
    spacing : (3,) sequence of float
        Millimetres along z, y, x.
    peaks : Peaks
    halo : bool
        The box has :meth:`Peaks.halo` voxels about a core on each side; peaks of the core alone are found, and
        counted from it. Otherwise the box is a whole volume.
    outside : (z, y, x) bool array, optional
        Voxels of the box that are no peaks and hide none, such as those beyond the volume.

    Raises
    ------
    DataError
        Scores are not finite.

    Examples
    --------
    Two cells of which one is brighter, and one that lies too near to it:

    >>> row = np.zeros((1, 1, 12))
    >>> row[0, 0, [2, 3, 4, 5, 9]] = [0.6, 0.9, 0.6, 0.7, 0.8]
    >>> found = find_peaks(row, (1, 1, 1), Peaks(0.5, radius_mm=3))
    >>> found.voxel[:, 2].tolist(), found.score.tolist(), found.centre[:, 2].round(2).tolist()
    ([3, 9], [0.9, 0.8], [3.5, 9.0])
    """
    if not np.isfinite(scores).all():
        raise DataError("scores are not finite; fill or mask the volume before")
    margin = peaks.halo(spacing)
    given = np.asarray(scores, np.float32)
    if not halo:
        given = np.pad(given, [(n, n) for n in margin], mode="edge")
        beyond = np.pad(np.zeros(scores.shape, bool), [(n, n) for n in margin], constant_values=True)
        outside = beyond if outside is None else beyond | np.pad(outside, [(n, n) for n in margin])
    kernel, ball = peaks._kernel(spacing), peaks.ball(spacing)
    # SciPy rounds each output by itself, so boxes that overlap hold equal values.
    smooth = given
    if peaks.smooth_mm:
        sigma = [peaks.smooth_mm / s for s in spacing]
        smooth = gaussian_filter(given, sigma, mode="nearest", radius=kernel)
    inner = tuple(slice(k, n - k) for k, n in zip(kernel, smooth.shape, strict=True))
    smooth = np.ascontiguousarray(smooth[inner])
    if outside is not None:
        smooth[outside[inner]] = -np.inf
    offsets = _ball(ball, spacing, peaks.radius_mm)
    voxel = _highest(smooth, peaks.threshold, ball, offsets)
    around = smooth[tuple((voxel[:, None] + offsets).transpose(2, 0, 1))].astype(np.float64)
    top = smooth[tuple(voxel.T)].astype(np.float64)
    high = around >= 0.5 * top[:, None]
    weight = np.where(high, around - 0.5 * np.maximum(top, 0)[:, None], 0.0)
    total = weight.sum(axis=1, keepdims=True)
    # Row by row: a product of matrices would round by how many peaks there are.
    moment = np.stack([(weight * offset).sum(axis=1) for offset in offsets.T], axis=1)
    shift = np.divide(moment, total, out=np.zeros((len(voxel), 3)), where=total > 0)
    return PeakTable(voxel - ball, shift, top, high.sum(axis=1).astype(np.float64))


def _ball(lengths: Sequence[int], spacing: Sequence[float], radius: float) -> Ints:
    """Offsets of the voxels within a radius, in order: (n, 3)."""
    every = np.array(list(itertools.product(*(range(-n, n + 1) for n in lengths))), dtype=np.int64)
    return every[np.linalg.norm(every * np.asarray(spacing), axis=1) <= radius * (1 + 1e-9)]


def _highest(values: NDArray[np.float32], threshold: float, ball: Sequence[int], offsets: Ints) -> Ints:
    """Voxels of the core that come first within their ball."""
    core = tuple(slice(b, n - b) for b, n in zip(ball, values.shape, strict=True))
    # Few voxels are highest among their nearest; only those are compared with the whole ball.
    near = np.zeros((3, 3, 3), bool)
    near[tuple(offsets[(np.abs(offsets) <= 1).all(axis=1)].T + 1)] = True
    highest = maximum_filter(values, **({"size": 3} if near.all() else {"footprint": near}), mode="nearest")
    candidates = np.zeros(values.shape, bool)
    candidates[core] = (values == highest)[core]
    candidates &= values >= threshold
    places = np.argwhere(candidates)
    kept = np.empty(len(places), bool)
    for rows in np.array_split(np.arange(len(places)), max(1, len(places) * len(offsets) // 10**7)):
        around = values[tuple((places[rows, None] + offsets).transpose(2, 0, 1))]
        kept[rows] = values[tuple(places[rows].T)] >= around.max(axis=1)
    return _first_of_equal(values, places[kept], offsets)


def _first_of_equal(values: NDArray[np.float32], places: Ints, offsets: Ints) -> Ints:
    """Without those that have an equal voxel earlier in their ball."""
    if not len(places):
        return places
    earlier = offsets[: len(offsets) // 2]
    kept = np.ones(len(places), bool)
    own = values[tuple(places.T)]
    for offset in earlier:
        kept &= values[tuple((places + offset).T)] != own
    return places[kept]
