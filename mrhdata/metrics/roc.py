"""Scores of binary ranking: ROC and precision-recall curves, their areas, and thresholds."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from mrhdata.errors import DataError
from mrhdata.metrics.image import check_same_shape

Floats = NDArray[np.float64]


def classes(truth: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    """Return which values are positive and the scores, both flat; raise DataError if a class is missing."""
    t, s = check_same_shape(truth, score)
    positive = t.ravel() != 0
    if positive.all() or not positive.any():
        raise DataError(
            f"{positive.sum()} of {positive.size} are positive; a ranking needs both classes: move the threshold"
        )
    return positive, s.ravel()


def auc(truth: ArrayLike, score: ArrayLike) -> float:
    """Return the area under the ROC curve: the probability that a positive scores above a negative; ties count half.

    Parameters
    ----------
    truth : array-like
        Class of each value: positive if not zero.
    score : array-like of the same shape
        Score of each value: higher means more likely positive.

    Examples
    --------
    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    positive, s = classes(truth, score)
    return auc_of_ranks(positive, rankdata(s))


def auc_of_ranks(positive: NDArray[np.bool_], ranks: Floats) -> float:
    """Return the AUC from ranks (1 is lowest, ties share their mean).

    Ranking takes most of the time of an AUC: rank once to compare one score with many truths.

    Examples
    --------
    >>> auc_of_ranks(np.array([False, False, True, True]), np.array([1.0, 3.0, 2.0, 4.0]))
    0.75
    """
    positives = int(positive.sum())
    ordered_pairs = float(ranks[positive].sum()) - positives * (positives + 1) / 2
    return ordered_pairs / (positives * (len(ranks) - positives))


def roc(truth: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Compute the ROC curve: false-positive rate, true-positive rate, and the threshold ``score >= t`` of each point.

    Examples
    --------
    >>> fpr, tpr, threshold = roc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> fpr.tolist(), tpr.tolist()
    ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0])
    """
    positive, s = classes(truth, score)
    order = np.argsort(-s, kind="stable")
    true_positives, false_positives = np.cumsum(positive[order]), np.cumsum(~positive[order])
    last_tie = np.flatnonzero(np.r_[np.diff(s[order]) != 0, True])
    fpr = np.r_[0.0, false_positives[last_tie] / false_positives[-1]]
    tpr = np.r_[0.0, true_positives[last_tie] / true_positives[-1]]
    return fpr, tpr, np.r_[np.inf, s[order][last_tie]]


def average_precision(truth: ArrayLike, score: ArrayLike) -> float:
    """Return the area under the precision-recall curve, as a step function.

    Linear interpolation would be too optimistic between points (Davis and Goadrich 2006, ICML). Equal scores form
    one step. Unlike the AUC, average precision depends on the share of positives, which a random score reaches.

    Parameters
    ----------
    truth, score
        As for :func:`auc`.

    Examples
    --------
    >>> average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.8333
    """
    positive, s = classes(truth, score)
    order = np.argsort(-s, kind="stable")
    last_tie = np.flatnonzero(np.r_[np.diff(s[order]) != 0, True])
    true_positives = np.cumsum(positive[order])[last_tie]
    gain = np.diff(true_positives, prepend=0)
    return float(np.sum(gain * true_positives / (last_tie + 1)) / true_positives[-1])


def sensitivity_at(truth: ArrayLike, score: ArrayLike, specificity: float) -> float:
    """Return the sensitivity at a specificity, interpolated linearly between points of the ROC curve.

    Examples
    --------
    >>> sensitivity_at([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], specificity=0.5)
    1.0
    """
    fpr, tpr, _ = roc(truth, score)
    return float(at_specificity(fpr[None], tpr[None], specificity)[0])


def partial_auc(truth: ArrayLike, score: ArrayLike, specificity: float) -> float:
    """Return the standardised area under the ROC curve above a specificity (McClish 1989, MDM 9:190).

    It is 0.5 for a random score and 1 for a perfect one.

    Examples
    --------
    >>> partial_auc([0, 0, 1, 1], [1, 2, 3, 4], specificity=0.9)
    1.0
    """
    fpr, tpr, _ = roc(truth, score)
    return float(area_above(fpr[None], tpr[None], specificity)[0])


def best_threshold(truth: ArrayLike, score: ArrayLike) -> float:
    """Return the threshold ``score >= t`` with the largest sensitivity + specificity (Youden 1950, Cancer 3:32).

    Use training voxels: a threshold chosen on test voxels makes their scores too good.

    Examples
    --------
    >>> best_threshold([0, 0, 1, 1], [1, 2, 3, 4])
    3.0
    """
    fpr, tpr, thresholds = roc(truth, score)
    return float(thresholds[1:][np.argmax((tpr - fpr)[1:])])


def at_specificity(fpr: Floats, tpr: Floats, specificity: float) -> Floats:
    """Return the sensitivity of ROC curves (n, points) at one specificity: (n,)."""
    max_fpr = 1 - specificity
    return np.array([np.interp(max_fpr, x, y) for x, y in zip(fpr, tpr, strict=True)])


def area_above(fpr: Floats, tpr: Floats, specificity: float) -> Floats:
    """Return the standardised area of ROC curves (n, points) above one specificity: (n,)."""
    max_fpr = 1 - specificity
    end = at_specificity(fpr, tpr, specificity)
    inside = fpr <= max_fpr
    x = np.concatenate([np.where(inside, fpr, max_fpr), np.full((len(fpr), 1), max_fpr)], axis=1)
    y = np.concatenate([np.where(inside, tpr, end[:, None]), end[:, None]], axis=1)
    area = np.sum(np.diff(x, axis=1) * (y[:, 1:] + y[:, :-1]) / 2, axis=1)
    chance_area, perfect_area = max_fpr**2 / 2, max_fpr
    return np.asarray(0.5 * (1 + (area - chance_area) / (perfect_area - chance_area)))
