"""Intervals by block bootstrap: neighbouring voxels are no independent samples, whole blocks nearly are.

Blocks are drawn with replacement; every statistic here follows from sums over blocks, so a thousand
resamplings cost one matrix product. See Kuensch 1989, Ann. Statist. 17:1217.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from scipy.stats import t as t_distribution

from mrhdata.errors import DataError
from mrhdata.metrics.image import check_same_shape
from mrhdata.metrics.roc import area_above, at_specificity, classes

Floats = NDArray[np.float64]

#: Bins that scores are counted in.
_BINS = 1024


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


def wilson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Interval of a share of independent trials (Wilson 1927, JASA 22:209), also for few and for all or none.

    Examples
    --------
    >>> str(wilson(8, 10)), str(wilson(0, 10))
    ('0.800 [0.490, 0.943]', '0.000 [0.000, 0.278]')
    """
    if not 0 <= successes <= trials or trials == 0:
        raise DataError(f"{successes} of {trials} is no share; there is one trial or more")
    share, z2 = successes / trials, float(norm.ppf((1 + level) / 2)) ** 2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = np.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    return Interval(share, max(0.0, float(middle - half)), min(1.0, float(middle + half)))


def chance(replicates: ArrayLike) -> float:
    """Two-sided chance that a difference whose resamplings these are is none.

    Examples
    --------
    >>> chance(np.arange(99) - 9.5)
    0.22
    """
    values = np.asarray(replicates, dtype=np.float64)
    values = values[np.isfinite(values)]
    side = min(int((values <= 0).sum()), int((values >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (values.size + 1))


def holm(p: ArrayLike) -> Floats:
    """Chances adjusted for their number (Holm 1979, Scand. J. Stat. 6:65).

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values)
    steps = np.maximum.accumulate(values[order] * (len(values) - np.arange(len(values))))
    out = np.empty_like(values)
    out[order] = np.minimum(steps, 1.0)
    return out


def draw_blocks(count: int, bootstrap: Bootstrap, widening: float = 1.0) -> Floats:
    """How much each block counts in each resampling: (replicates, count), rows summing to `count`.

    Parameters
    ----------
    count : int
        Of blocks.
    bootstrap : Bootstrap
    widening : float
        How much wider intervals are than those of independent blocks.

    Notes
    -----
    Weights are gamma distributed, the Bayesian bootstrap (Rubin 1981, Ann. Statist. 9:130) where nothing is
    widened: their spread is what makes intervals wide. That of few blocks is that of a t interval
    (Hesterberg 2015, Am. Stat. 69:371, section 5.3).

    Examples
    --------
    >>> draw_blocks(5, Bootstrap(replicates=3)).sum(axis=1).round(9).tolist()
    [5.0, 5.0, 5.0]
    """
    if count < 2:
        raise DataError(f"there is {count} block; an interval needs several: use smaller blocks")
    tail = (1 - bootstrap.level) / 2
    few = np.sqrt(count / (count - 1)) * t_distribution.ppf(tail, count - 1) / norm.ppf(tail)
    spread = (few * widening) ** 2
    weights = np.random.default_rng(bootstrap.seed).gamma(1 / spread, size=(bootstrap.replicates, count))
    return np.asarray(weights * count / weights.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class RocReplicates:
    """Statistics of the ROC curve of each resampling; NaN where one has only one class."""

    auc: Floats
    sensitivity: Floats
    partial_auc: Floats


def roc_replicates(
    truth: ArrayLike, score: ArrayLike, block: ArrayLike, draws: Floats, specificity: float = 0.9
) -> RocReplicates:
    """ROC statistics of each resampling of blocks.

    Parameters
    ----------
    truth, score : array-like, n values
    block : (n,) ints, 0 to b - 1
    draws : (replicates, b) array
        From :func:`draw_blocks`.
    specificity : float
        Where sensitivity is taken, and above which the partial area is.

    Notes
    -----
    Scores are counted in 1024 bins of about equal numbers: with more values than that, an AUC is off by
    some 1e-5.
    """
    positive, s = classes(truth, score)
    edges = np.unique(np.quantile(s, np.linspace(0, 1, _BINS + 1)[1:-1], method="higher"))
    # The highest bin first.
    place = len(edges) - np.searchsorted(edges, s, side="right")
    flat = np.asarray(block).ravel() * (len(edges) + 1) + place
    size = draws.shape[1] * (len(edges) + 1)
    rates = []
    for chosen in (~positive, positive):
        counts = np.bincount(flat[chosen], minlength=size).reshape(draws.shape[1], -1)
        found = np.cumsum(draws @ counts, axis=1)
        total = found[:, -1:]
        rate = np.divide(found, total, out=np.full_like(found, np.nan), where=total > 0)
        rates.append(np.concatenate([np.zeros((len(rate), 1)), rate], axis=1))
    fpr, tpr = rates
    area = np.sum(np.diff(fpr, axis=1) * (tpr[:, 1:] + tpr[:, :-1]) / 2, axis=1)
    return RocReplicates(area, at_specificity(fpr, tpr, specificity), area_above(fpr, tpr, specificity))


def error_replicates(truth: ArrayLike, prediction: ArrayLike, block: ArrayLike, draws: Floats) -> tuple[Floats, Floats]:
    """R2 and RMSE of each resampling of blocks; arguments as for :func:`roc_replicates`."""
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


def share_replicates(hits: ArrayLike, among: ArrayLike, block: ArrayLike, draws: Floats) -> Floats:
    """Share of the values `among` (0 or 1) that are `hits`, in each resampling of blocks; NaN where none is among.

    Examples
    --------
    >>> share_replicates([1, 0, 1, 1], [1, 1, 1, 0], [0, 0, 1, 1], np.array([[1.0, 1.0], [2.0, 0.0]])).round(2).tolist()
    [0.67, 0.5]
    """
    hit, weight, blocks = np.ravel(hits), np.ravel(among), np.ravel(block)
    found, n = (draws @ np.bincount(blocks, weights=w, minlength=draws.shape[1]) for w in (hit * weight, weight))
    return np.divide(found, n, out=np.full_like(n, np.nan), where=n > 0)
