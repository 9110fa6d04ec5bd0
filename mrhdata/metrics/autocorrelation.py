"""Spatial autocorrelation of voxels, and division into blocks large enough to be nearly independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrhdata.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Correlation at which the range ends.
_RANGE_CORRELATION = 0.1
#: Lags are no longer computed after the correlation has fallen to this.
_MIN_CORRELATION = 0.05


@dataclass(frozen=True)
class Autocorrelation:
    """Autocorrelation of voxel values along each axis.

    Attributes
    ----------
    step : tuple of int
        Distance between neighbouring positions along each axis, in voxels.
    correlation : tuple of (k,) array
        Correlation at lags of 0, 1, ... steps along each axis, until it is small.
    """

    step: tuple[int, ...]
    correlation: tuple[Floats, ...]

    @property
    def range(self) -> float:
        """Largest distance, over the axes, at which the correlation falls to 0.1, in voxels."""
        return max(step * _range_in_steps(rho) for step, rho in zip(self.step, self.correlation, strict=True))

    def widening(self, lengths: Sequence[float]) -> float:
        """Return the true standard error of the mean over the one estimated from blocks of these lengths.

        Blocks cut correlations at their faces. Along each axis they capture only the share
        ``sum((1 - h / length) rho(h)) / sum(rho(h))`` of the variance of the mean (Kuensch 1989,
        Ann. Statist. 17:1217).

        Examples
        --------
        >>> round(Autocorrelation((1,), (np.array([1.0, 0.5, 0.05]),)).widening([10]), 3)
        1.03
        """
        captured = 1.0
        for edge, step, rho in zip(lengths, self.step, self.correlation, strict=True):
            distance = step * np.arange(len(rho))
            both_sides = np.where(distance > 0, 2.0, 1.0) * rho
            captured *= float((np.maximum(0, 1 - distance / edge) * both_sides).sum() / both_sides.sum())
        return float(1 / np.sqrt(captured))


def autocorrelation(values: ArrayLike, place: ArrayLike) -> Autocorrelation:
    """Measure the autocorrelation of values along each axis.

    Parameters
    ----------
    values : (n,) array-like
        Values of the voxels.
    place : (n, d) int array-like
        Voxel index of each value, on a lattice that may have gaps.

    Examples
    --------
    >>> waves = np.repeat(np.random.default_rng(0).normal(size=500), 10)
    >>> 8 < autocorrelation(waves, np.arange(5000)[:, None]).range < 11
    True
    """
    v, index = np.asarray(values, dtype=np.float64), np.asarray(place)
    index = (index - index.min(axis=0)).astype(np.int64)
    steps = tuple(_lattice_step(coordinates) for coordinates in index.T)
    index = index // np.array(steps)
    grid = np.full(tuple(index.max(axis=0) + 1), np.nan)
    grid[tuple(index.T)] = (v - v.mean()) / (v.std() or 1.0)
    return Autocorrelation(steps, tuple(_first_axis_correlation(np.moveaxis(grid, i, 0)) for i in range(grid.ndim)))


def _lattice_step(coordinates: Ints) -> int:
    """Return the spacing k of a lattice that has only every k-th position."""
    gaps = np.diff(np.unique(coordinates))
    return int(np.gcd.reduce(gaps)) if len(gaps) else 1


def _first_axis_correlation(grid: Floats) -> Floats:
    """Return the correlation at lags of 0, 1, ... steps along the first axis; NaN marks gaps."""
    known = np.isfinite(grid)
    values = np.where(known, grid, 0.0)
    correlations = [1.0]
    for lag in range(1, len(grid) // 2):
        pairs = int((known[lag:] & known[:-lag]).sum())
        if pairs == 0 or correlations[-1] <= _MIN_CORRELATION:
            break
        correlations.append(max(0.0, float((values[lag:] * values[:-lag]).sum()) / pairs))
    return np.array(correlations)


def _range_in_steps(rho: Floats) -> float:
    below = np.flatnonzero(rho <= _RANGE_CORRELATION)
    if not len(below):
        return float(len(rho))
    i = int(below[0])
    return float(i - 1 + (rho[i - 1] - _RANGE_CORRELATION) / (rho[i - 1] - rho[i]))


def cubic_blocks(place: ArrayLike, edge: int) -> tuple[Ints, tuple[float, ...]]:
    """Divide voxels into nearly cubic blocks by cutting every axis into equal parts.

    Parameters
    ----------
    place : (n, d) int array-like
        Voxel indices.
    edge : int
        Desired length of a block along every axis, in voxels.

    Returns
    -------
    number : (n,) ints
        Block of each voxel, 0 to b - 1.
    lengths : tuple of float
        Length of the blocks along each axis, in voxels.

    Examples
    --------
    >>> number, lengths = cubic_blocks([[0, 0], [0, 4], [4, 1], [1, 1]], edge=2)
    >>> number.tolist(), lengths
    ([0, 1, 2, 0], (2.5, 2.5))
    """
    if edge < 1:
        raise DataError(f"edge must be 1 voxel or more; got {edge}. Pass a longer edge.")
    index = np.asarray(place)
    index = index - index.min(axis=0)
    extent = index.max(axis=0) + 1
    counts = np.maximum(1, np.rint(extent / edge).astype(np.int64))
    number = np.ravel_multi_index(tuple((index * counts // extent).T), tuple(counts))
    return np.unique(number, return_inverse=True)[1], tuple((extent / counts).tolist())
