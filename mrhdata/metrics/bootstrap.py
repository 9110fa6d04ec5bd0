"""Confidence intervals by block bootstrap: neighbouring voxels are not independent samples, whole blocks nearly are.

Every statistic here follows from sums over blocks, so a thousand resamplings cost one matrix product. See
Kuensch 1989, Ann. Statist. 17:1217.
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

#: Number of histogram bins for scores.
_BINS = 1024


@dataclass(frozen=True)
class Bootstrap:
    """Settings of a block bootstrap: number of resamplings, confidence level, random seed."""

    replicates: int = 1000
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval.

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
    """Return the percentile interval of bootstrap replicates; NaN replicates are left out.

    Examples
    --------
    >>> interval(2.0, np.arange(101) / 25, level=0.9)
    Interval(estimate=2.0, low=0.2, high=3.8)
    """
    values = np.asarray(replicates, dtype=np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        raise DataError("all bootstrap replicates are NaN; use more or larger blocks")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate), float(low), float(high))


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Return the confidence interval of a proportion of independent trials (Wilson 1927, JASA 22:209).

    It also holds for few trials, and if none or all of them succeed.

    Examples
    --------
    >>> str(wilson_interval(8, 10)), str(wilson_interval(0, 10))
    ('0.800 [0.490, 0.943]', '0.000 [0.000, 0.278]')
    """
    if not 0 <= successes <= trials or trials == 0:
        raise DataError(f"successes must be 0 to trials, and trials 1 or more; got {successes} of {trials}")
    share = successes / trials
    z2 = float(norm.ppf((1 + level) / 2)) ** 2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half_width = np.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    return Interval(share, max(0.0, float(centre - half_width)), min(1.0, float(centre + half_width)))


def p_value(replicates: ArrayLike) -> float:
    """Return the two-sided p-value of a difference from its bootstrap replicates.

    Examples
    --------
    >>> p_value(np.arange(99) - 9.5)
    0.22
    """
    values = np.asarray(replicates, dtype=np.float64)
    values = values[np.isfinite(values)]
    smaller_tail = min(int((values <= 0).sum()), int((values >= 0).sum()))
    return min(1.0, 2 * (smaller_tail + 1) / (values.size + 1))


def holm_adjust(p: ArrayLike) -> Floats:
    """Adjust p-values for multiple comparisons (Holm 1979, Scand. J. Stat. 6:65).

    Examples
    --------
    >>> holm_adjust([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values)
    adjusted = np.maximum.accumulate(values[order] * (len(values) - np.arange(len(values))))
    out = np.empty_like(values)
    out[order] = np.minimum(adjusted, 1.0)
    return out


def draw_blocks(count: int, bootstrap: Bootstrap, widening: float = 1.0) -> Floats:
    """Draw the weight of each block in each resampling: (replicates, count), every row with the sum `count`.

    Parameters
    ----------
    count : int
        Number of blocks.
    bootstrap : Bootstrap
        Number of resamplings, confidence level and seed.
    widening : float
        Width of the intervals relative to those of independent blocks.

    Notes
    -----
    Weights are gamma distributed: the Bayesian bootstrap (Rubin 1981, Ann. Statist. 9:130) if `widening` is 1 and
    there are many blocks. A larger spread of the weights widens the intervals; for few blocks they become as wide
    as t intervals (Hesterberg 2015, Am. Stat. 69:371, section 5.3).

    Examples
    --------
    >>> draw_blocks(5, Bootstrap(replicates=3)).sum(axis=1).round(9).tolist()
    [5.0, 5.0, 5.0]
    """
    if count < 2:
        raise DataError(f"an interval needs 2 blocks or more; got {count}. Use smaller blocks.")
    tail = (1 - bootstrap.level) / 2
    small_sample = np.sqrt(count / (count - 1)) * t_distribution.ppf(tail, count - 1) / norm.ppf(tail)
    variance = (small_sample * widening) ** 2
    weights = np.random.default_rng(bootstrap.seed).gamma(1 / variance, size=(bootstrap.replicates, count))
    return np.asarray(weights * count / weights.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class RocReplicates:
    """Statistics of the ROC curve of each resampling; NaN if a resampling has only one class."""

    auc: Floats
    sensitivity: Floats
    partial_auc: Floats


def roc_replicates(
    truth: ArrayLike, score: ArrayLike, block: ArrayLike, draws: Floats, specificity: float = 0.9
) -> RocReplicates:
    """Compute ROC statistics of each resampling of blocks.

    Parameters
    ----------
    truth, score : array-like, n values
        Class (positive if not zero) and score of each value.
    block : (n,) ints, 0 to b - 1
        Block of each value.
    draws : (replicates, b) array
        Weights from :func:`draw_blocks`.
    specificity : float
        Specificity of the sensitivity, and lower end of the partial area.

    Notes
    -----
    Scores are binned into 1024 quantiles: with more than 1024 distinct scores, the error of an AUC is about 1e-5.
    """
    positive, s = classes(truth, score)
    edges = np.unique(np.quantile(s, np.linspace(0, 1, _BINS + 1)[1:-1], method="higher"))
    # Bin 0 has the highest scores, so that cumulative counts run along the ROC curve.
    bins = len(edges) - np.searchsorted(edges, s, side="right")
    block_and_bin = np.asarray(block).ravel() * (len(edges) + 1) + bins
    size = draws.shape[1] * (len(edges) + 1)
    rates = []
    for in_class in (~positive, positive):
        counts = np.bincount(block_and_bin[in_class], minlength=size).reshape(draws.shape[1], -1)
        above_threshold = np.cumsum(draws @ counts, axis=1)
        total = above_threshold[:, -1:]
        rate = np.divide(above_threshold, total, out=np.full_like(above_threshold, np.nan), where=total > 0)
        rates.append(np.concatenate([np.zeros((len(rate), 1)), rate], axis=1))
    fpr, tpr = rates
    area = np.sum(np.diff(fpr, axis=1) * (tpr[:, 1:] + tpr[:, :-1]) / 2, axis=1)
    return RocReplicates(area, at_specificity(fpr, tpr, specificity), area_above(fpr, tpr, specificity))


def error_replicates(truth: ArrayLike, prediction: ArrayLike, block: ArrayLike, draws: Floats) -> tuple[Floats, Floats]:
    """Compute R2 and RMSE of each resampling of blocks; arguments as for :func:`roc_replicates`."""
    t, p = check_same_shape(np.ravel(truth), np.ravel(prediction))
    blocks = np.asarray(block).ravel()
    # Centring avoids cancellation in the sums of squares.
    centred = t - t.mean()
    sums = [np.bincount(blocks, weights=w, minlength=draws.shape[1]) for w in (centred, centred**2, (t - p) ** 2)]
    n = draws @ np.bincount(blocks, minlength=draws.shape[1])
    total, squares, errors = (draws @ s for s in sums)
    spread = squares - np.divide(total**2, n, out=np.zeros_like(n), where=n > 0)
    r2 = 1 - np.divide(errors, spread, out=np.full_like(n, np.nan), where=spread > 0)
    return r2, np.sqrt(np.divide(errors, n, out=np.full_like(n, np.nan), where=n > 0))


def share_replicates(hits: ArrayLike, among: ArrayLike, block: ArrayLike, draws: Floats) -> Floats:
    """Compute the share of the values `among` (0 or 1) that are `hits` in each resampling; NaN if `among` is all 0.

    Examples
    --------
    >>> share_replicates([1, 0, 1, 1], [1, 1, 1, 0], [0, 0, 1, 1], np.array([[1.0, 1.0], [2.0, 0.0]])).round(2).tolist()
    [0.67, 0.5]
    """
    hit, weight, blocks = np.ravel(hits), np.ravel(among), np.ravel(block)
    successes, n = (draws @ np.bincount(blocks, weights=w, minlength=draws.shape[1]) for w in (hit * weight, weight))
    return np.divide(successes, n, out=np.full_like(n, np.nan), where=n > 0)
