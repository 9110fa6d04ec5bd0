"""Find the peaks of a score volume: the maxima among all voxels within a radius, one for each object.

Voxels are ordered by value and, for equal values, by index. A peak comes first in that order within its ball. It
therefore depends on no voxel outside its ball, and a volume has the same peaks in parts as in one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, maximum_filter

from mrhdata.errors import DataError, ParameterError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Radius of the smoothing kernel, in standard deviations.
_TRUNCATE = 3.0


@dataclass(frozen=True)
class Peaks:
    """Criteria for a peak.

    Attributes
    ----------
    threshold : float
        Smallest smoothed score of a peak.
    radius_mm : float
        Radius of the ball in which a peak is the maximum; of two objects nearer than this, one is found.
    smooth_mm : float
        Standard deviation of the Gaussian that smooths the scores first; 0 for none.
    """

    threshold: float = 0.5
    radius_mm: float = 0.006
    smooth_mm: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.threshold) and self.radius_mm > 0 and self.smooth_mm >= 0):
            raise ParameterError(
                "threshold must be finite, radius_mm above 0 and smooth_mm 0 or more; got "
                f"{self.threshold}, {self.radius_mm} and {self.smooth_mm}"
            )

    def ball(self, spacing: Sequence[float]) -> tuple[int, int, int]:
        """Return the voxels from the centre of a ball to its border, along z, y, x."""
        z, y, x = (int(self.radius_mm / s + 1e-9) for s in spacing)
        return (z, y, x)

    def halo(self, spacing: Sequence[float]) -> tuple[int, int, int]:
        """Return the voxels around a voxel that decide whether it is a peak, along z, y, x."""
        z, y, x = (b + k for b, k in zip(self.ball(spacing), self._kernel(spacing), strict=True))
        return (z, y, x)

    def _kernel(self, spacing: Sequence[float]) -> list[int]:
        return [int(_TRUNCATE * self.smooth_mm / s + 0.5) for s in spacing]


@dataclass(frozen=True)
class PeakTable:
    """Peaks of a box, in the order of their voxels.

    Attributes
    ----------
    voxel : (n, 3) int array
        Index (z, y, x) of the highest score, counted from the core of the box.
    shift : (n, 3) float array
        Vector from there to the centroid of the scores around it, in voxels.
    score : (n,) float array
        Smoothed score.
    size : (n,) float array
        Number of voxels in the ball whose score is at least half the peak's.
    """

    voxel: Ints
    shift: Floats
    score: Floats
    size: Floats

    @property
    def centre(self) -> Floats:
        """Centroids (n, 3), in voxels."""
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
        Scores.
    spacing : (3,) sequence of float
        Voxel size along z, y, x, in mm.
    peaks : Peaks
        Criteria for a peak.
    halo : bool
        Whether the box is a core with a margin of :meth:`Peaks.halo` voxels on each side. Then only peaks in the core
        are returned, and voxels are counted from it. Otherwise the box is a whole volume.
    outside : (z, y, x) bool array, optional
        Voxels of the box that cannot be peaks and suppress none, such as those beyond the volume.

    Returns
    -------
    table : PeakTable
        Peaks in the order of their voxels.

    Raises
    ------
    DataError
        If scores are not finite.

    Examples
    --------
    Two cells, and a dimmer one too near to the brighter of them:

    >>> row = np.zeros((1, 1, 12))
    >>> row[0, 0, [2, 3, 4, 5, 9]] = [0.6, 0.9, 0.6, 0.7, 0.8]
    >>> table = find_peaks(row, (1, 1, 1), Peaks(0.5, radius_mm=3))
    >>> table.voxel[:, 2].tolist(), table.score.tolist(), table.centre[:, 2].round(2).tolist()
    ([3, 9], [0.9, 0.8], [3.5, 9.0])
    """
    if not np.isfinite(scores).all():
        raise DataError("scores are not finite. Fill or mask the volume first")
    margin = peaks.halo(spacing)
    padded = np.asarray(scores, np.float32)
    if not halo:
        padded = np.pad(padded, [(n, n) for n in margin], mode="edge")
        beyond = np.pad(np.zeros(scores.shape, bool), [(n, n) for n in margin], constant_values=True)
        outside = beyond if outside is None else beyond | np.pad(outside, [(n, n) for n in margin])
    kernel, ball = peaks._kernel(spacing), peaks.ball(spacing)
    # SciPy rounds each output independently, so overlapping boxes hold equal values.
    smooth = padded
    if peaks.smooth_mm:
        sigma = [peaks.smooth_mm / s for s in spacing]
        smooth = gaussian_filter(padded, sigma, mode="nearest", radius=kernel)
    inner = tuple(slice(k, n - k) for k, n in zip(kernel, smooth.shape, strict=True))
    smooth = np.ascontiguousarray(smooth[inner])
    if outside is not None:
        smooth[outside[inner]] = -np.inf
    offsets = _ball_offsets(ball, spacing, peaks.radius_mm)
    voxel = _find_maxima(smooth, peaks.threshold, ball, offsets)
    around = smooth[tuple((voxel[:, None] + offsets).transpose(2, 0, 1))].astype(np.float64)
    top = smooth[tuple(voxel.T)].astype(np.float64)
    high = around >= 0.5 * top[:, None]
    weight = np.where(high, around - 0.5 * np.maximum(top, 0)[:, None], 0.0)
    total = weight.sum(axis=1, keepdims=True)
    # Row by row, since the rounding of a matrix product depends on the number of peaks.
    moment = np.stack([(weight * offset).sum(axis=1) for offset in offsets.T], axis=1)
    shift = np.divide(moment, total, out=np.zeros((len(voxel), 3)), where=total > 0)
    return PeakTable(voxel - ball, shift, top, high.sum(axis=1).astype(np.float64))


def _ball_offsets(lengths: Sequence[int], spacing: Sequence[float], radius: float) -> Ints:
    """Return the offsets (n, 3) of the voxels within a radius, in order."""
    offsets = np.array(list(itertools.product(*(range(-n, n + 1) for n in lengths))), dtype=np.int64)
    return offsets[np.linalg.norm(offsets * np.asarray(spacing), axis=1) <= radius * (1 + 1e-9)]


def _find_maxima(values: NDArray[np.float32], threshold: float, ball: Sequence[int], offsets: Ints) -> Ints:
    """Return the voxels of the core that come first within their ball."""
    core = tuple(slice(b, n - b) for b, n in zip(ball, values.shape, strict=True))
    # Only the few voxels that are maxima of their nearest neighbours are compared with the whole ball.
    neighbours = np.zeros((3, 3, 3), bool)
    neighbours[tuple(offsets[(np.abs(offsets) <= 1).all(axis=1)].T + 1)] = True
    footprint: Any = {"size": 3} if neighbours.all() else {"footprint": neighbours}
    highest = maximum_filter(values, **footprint, mode="nearest")
    candidates = np.zeros(values.shape, bool)
    candidates[core] = (values == highest)[core]
    candidates &= values >= threshold
    voxels = np.argwhere(candidates)
    is_maximum = np.empty(len(voxels), bool)
    for rows in np.array_split(np.arange(len(voxels)), max(1, len(voxels) * len(offsets) // 10**7)):
        around = values[tuple((voxels[rows, None] + offsets).transpose(2, 0, 1))]
        is_maximum[rows] = values[tuple(voxels[rows].T)] >= around.max(axis=1)
    return _first_of_equal(values, voxels[is_maximum], offsets)


def _first_of_equal(values: NDArray[np.float32], voxels: Ints, offsets: Ints) -> Ints:
    """Remove the voxels that have an equal one earlier in their ball."""
    if not len(voxels):
        return voxels
    earlier = offsets[: len(offsets) // 2]
    is_first = np.ones(len(voxels), bool)
    own = values[tuple(voxels.T)]
    for offset in earlier:
        is_first &= values[tuple((voxels + offset).T)] != own
    return voxels[is_first]
