"""Intervals by block bootstrap: neighbouring voxels are no independent samples, whole blocks nearly are.

Blocks are drawn with replacement; every statistic here follows from sums over blocks, so a thousand
resamplings cost one matrix product. See Kuensch 1989, Ann. Statist. 17:1217.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrhdata.errors import DataError
from mrhdata.scoring.image import check_same_shape
from mrhdata.scoring.ranking import block_pairs

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bootstrap:
    """How often blocks are drawn, the level of the intervals, and the seed."""

    replicates: int = 1000
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval around it.

    Examples
    --------
    >>> str(Interval(0.9, 0.85, 0.94))
    '0.900 [0.850, 0.940]'
    """

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(estimate: float, replicates: ArrayLike, level: float = 0.95) -> Interval:
    """Percentile interval of bootstrap replicates; those without a value (one class only) are left out.

    Examples
    --------
    >>> interval(2.0, np.arange(101) / 25, level=0.9)
    Interval(estimate=2.0, low=0.2, high=3.8)
    """
    values = np.asarray(replicates, dtype=np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        raise DataError("no resampling has a value; use more or larger blocks")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate), float(low), float(high))


def draw_blocks(count: int, bootstrap: Bootstrap) -> Floats:
    """How often each block is drawn in each resampling: (replicates, count), rows summing to `count`.

    Examples
    --------
    >>> draw_blocks(5, Bootstrap(replicates=3)).sum(axis=1).tolist()
    [5.0, 5.0, 5.0]
    """
    if count < 2:
        raise DataError(f"there is {count} block; an interval needs several: use smaller blocks")
    rng = np.random.default_rng(bootstrap.seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=bootstrap.replicates).astype(np.float64)


def auc_replicates(truth: ArrayLike, score: ArrayLike, block: ArrayLike, draws: Floats) -> Floats:
    """AUC of each resampling of blocks; NaN where one has only one class.

    Parameters
    ----------
    truth, score : array-like, n values
    block : (n,) ints, 0 to b - 1
    draws : (replicates, b) array
        From :func:`draw_blocks`.
    """
    pairs, positives, negatives = block_pairs(truth, score, block)
    ranked = np.einsum("ri,ri->r", draws @ pairs, draws)
    possible = (draws @ positives) * (draws @ negatives)
    return np.divide(ranked, possible, out=np.full(len(draws), np.nan), where=possible > 0)


def error_replicates(truth: ArrayLike, prediction: ArrayLike, block: ArrayLike, draws: Floats) -> tuple[Floats, Floats]:
    """R2 and RMSE of each resampling of blocks; arguments as for :func:`auc_replicates`."""
    t, p = check_same_shape(np.ravel(truth), np.ravel(prediction))
    blocks = np.asarray(block).ravel()
    # Centred, so that the sums of squares do not cancel.
    centred = t - t.mean()
    sums = [np.bincount(blocks, weights=w, minlength=draws.shape[1]) for w in (centred, centred**2, (t - p) ** 2)]
    n = draws @ np.bincount(blocks, minlength=draws.shape[1])
    total, squares, errors = (draws @ s for s in sums)
    spread = squares - np.divide(total**2, n, out=np.zeros_like(n), where=n > 0)
    r2 = 1 - np.divide(errors, spread, out=np.full_like(n, np.nan), where=spread > 0)
    return r2, np.sqrt(np.divide(errors, n, out=np.full_like(n, np.nan), where=n > 0))
