"""How far neighbouring voxels are alike, and blocks large enough to be independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrhdata.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Voxels are counted as alike while their correlation is above this.
_ALIKE = 0.1
#: Correlations are followed until they fall to this.
_LEAST = 0.05


@dataclass(frozen=True)
class Likeness:
    """How alike voxels are by their distance along each axis.

    Attributes
    ----------
    step : tuple of int
        Distance from one position to the next, along each axis.
    correlation : tuple of (k,) array
        At 0, 1, ... steps, until it is small.
    """

    step: tuple[int, ...]
    correlation: tuple[Floats, ...]

    @property
    def range(self) -> float:
        """Distance at which the correlation falls to 0.1, along the axis where it reaches farthest."""
        return max(step * _crossing(rho) for step, rho in zip(self.step, self.correlation, strict=True))

    def widening(self, lengths: Sequence[float]) -> float:
        """How much wider the mean's error is than independent blocks of these lengths make it look.

        Blocks cut what is alike at their faces: of the variance of the mean they see the part
        ``sum((1 - h / length) rho(h)) / sum(rho(h))`` along each axis (Kuensch 1989, Ann. Statist. 17:1217).

        Examples
        --------
        >>> round(Likeness((1,), (np.array([1.0, 0.5, 0.05]),)).widening([10]), 3)
        1.03
        """
        seen = 1.0
        for edge, step, rho in zip(lengths, self.step, self.correlation, strict=True):
            away = step * np.arange(len(rho))
            sides = np.where(away > 0, 2.0, 1.0) * rho
            seen *= float((np.maximum(0, 1 - away / edge) * sides).sum() / sides.sum())
        return float(1 / np.sqrt(seen))


def likeness(values: ArrayLike, place: ArrayLike) -> Likeness:
    """Measure how alike values are by their distance.

    Parameters
    ----------
    values : (n,) array-like
    place : (n, d) int array-like
        Where each is, on a lattice; not all of it need be there.

    Examples
    --------
    >>> waves = np.repeat(np.random.default_rng(0).normal(size=500), 10)
    >>> 8 < likeness(waves, np.arange(5000)[:, None]).range < 11
    True
    """
    v, at = np.asarray(values, dtype=np.float64), np.asarray(place)
    at = (at - at.min(axis=0)).astype(np.int64)
    steps = tuple(_step(axis) for axis in at.T)
    at = at // np.array(steps)
    grid = np.full(tuple(at.max(axis=0) + 1), np.nan)
    grid[tuple(at.T)] = (v - v.mean()) / (v.std() or 1.0)
    return Likeness(steps, tuple(_along(np.moveaxis(grid, axis, 0)) for axis in range(at.shape[1])))


def _step(axis: Ints) -> int:
    """Of a lattice that has only every k-th position."""
    gaps = np.diff(np.unique(axis))
    return int(np.gcd.reduce(gaps)) if len(gaps) else 1


def _along(grid: Floats) -> Floats:
    known = np.isfinite(grid)
    values = np.where(known, grid, 0.0)
    found = [1.0]
    for lag in range(1, len(grid) // 2):
        pairs = int((known[lag:] & known[:-lag]).sum())
        if pairs == 0 or found[-1] <= _LEAST:
            break
        found.append(max(0.0, float((values[lag:] * values[:-lag]).sum()) / pairs))
    return np.array(found)


def _crossing(rho: Floats) -> float:
    below = np.flatnonzero(rho <= _ALIKE)
    if not len(below):
        return float(len(rho))
    i = int(below[0])
    return float(i - 1 + (rho[i - 1] - _ALIKE) / (rho[i - 1] - rho[i]))


def cubes(place: ArrayLike, edge: int) -> tuple[Ints, tuple[float, ...]]:
    """Divide places into blocks that are as nearly cubes of an edge as equal parts of every axis can be.

    Returns
    -------
    number : (n,) ints
        Of the block in which each place lies, 0 to b - 1.
    lengths : tuple of float
        Of blocks along each axis.

    Examples
    --------
    >>> number, lengths = cubes([[0, 0], [0, 4], [4, 1], [1, 1]], edge=2)
    >>> number.tolist(), lengths
    ([0, 1, 2, 0], (2.5, 2.5))
    """
    if edge < 1:
        raise DataError(f"blocks are at least one voxel long, not {edge}")
    at = np.asarray(place)
    at = at - at.min(axis=0)
    extent = at.max(axis=0) + 1
    counts = np.maximum(1, np.rint(extent / edge).astype(np.int64))
    number = np.ravel_multi_index(tuple((at * counts // extent).T), tuple(counts))
    return np.unique(number, return_inverse=True)[1], tuple((extent / counts).tolist())
