"""How well a score ranks positives above negatives."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from mrhdata.errors import DataError
from mrhdata.metrics.image import check_same_shape

Floats = NDArray[np.float64]


def classes(truth: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    """Which values are positive, and the scores, both flat; there are some of each class."""
    t, s = check_same_shape(truth, score)
    positive = t.ravel() != 0
    if positive.all() or not positive.any():
        raise DataError(
            f"{positive.sum()} of {positive.size} are positive; a ranking needs both classes: move the threshold"
        )
    return positive, s.ravel()


def auc(truth: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half.

    Parameters
    ----------
    truth : array-like
        Positive where not zero.
    score : array-like of the same shape
        Higher means more likely positive.

    Examples
    --------
    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    positive, s = classes(truth, score)
    return auc_of_ranks(positive, rankdata(s))


def auc_of_ranks(positive: NDArray[np.bool_], ranks: Floats) -> float:
    """The same from ranks (1 is lowest, ties share their mean), for one score and many truths: ranking is most of it.

    Examples
    --------
    >>> auc_of_ranks(np.array([False, False, True, True]), np.array([1.0, 3.0, 2.0, 4.0]))
    0.75
    """
    many = int(positive.sum())
    above = float(ranks[positive].sum()) - many * (many + 1) / 2
    return above / (many * (len(ranks) - many))


def roc(truth: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """ROC curve: false-positive rate, true-positive rate, and the threshold ``score >= t`` of each point.

    Examples
    --------
    >>> fpr, tpr, threshold = roc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> fpr.tolist(), tpr.tolist()
    ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0])
    """
    positive, s = classes(truth, score)
    order = np.argsort(-s, kind="stable")
    hits, misses = np.cumsum(positive[order]), np.cumsum(~positive[order])
    last = np.flatnonzero(np.r_[np.diff(s[order]) != 0, True])
    thresholds = np.r_[np.inf, s[order][last]]
    return np.r_[0.0, misses[last] / misses[-1]], np.r_[0.0, hits[last] / hits[-1]], thresholds


def average_precision(truth: ArrayLike, score: ArrayLike) -> float:
    """Area under the curve of precision against recall, in steps: each gain of recall at the precision it comes with.

    Steps, not slopes, which are too good between points (Davis and Goadrich 2006, ICML). Equal scores are taken
    together. Unlike the area under the ROC curve it depends on how many are positive: chance reaches their share.

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
    last = np.flatnonzero(np.r_[np.diff(s[order]) != 0, True])
    hits = np.cumsum(positive[order])[last]
    return float(np.sum(np.diff(hits, prepend=0) * hits / (last + 1)) / hits[-1])


def sensitivity_at(truth: ArrayLike, score: ArrayLike, specificity: float) -> float:
    """Sensitivity where the ROC curve has a specificity, on the line between its points.

    Examples
    --------
    >>> sensitivity_at([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], specificity=0.5)
    1.0
    """
    fpr, tpr, _ = roc(truth, score)
    return float(at_specificity(fpr[None], tpr[None], specificity)[0])


def partial_auc(truth: ArrayLike, score: ArrayLike, specificity: float) -> float:
    """Area under the ROC curve above a specificity, from 0.5 (chance) to 1 (perfect): McClish 1989, MDM 9:190.

    Examples
    --------
    >>> partial_auc([0, 0, 1, 1], [1, 2, 3, 4], specificity=0.9)
    1.0
    """
    fpr, tpr, _ = roc(truth, score)
    return float(area_above(fpr[None], tpr[None], specificity)[0])


def best_threshold(truth: ArrayLike, score: ArrayLike) -> float:
    """The threshold ``score >= t`` of the largest sensitivity + specificity (Youden 1950, Cancer 3:32).

    To be found on training voxels: on those that are scored it flatters.

    Examples
    --------
    >>> best_threshold([0, 0, 1, 1], [1, 2, 3, 4])
    3.0
    """
    fpr, tpr, thresholds = roc(truth, score)
    return float(thresholds[1:][np.argmax((tpr - fpr)[1:])])


def at_specificity(fpr: Floats, tpr: Floats, specificity: float) -> Floats:
    """Sensitivity of curves (n, points) at one specificity: (n,)."""
    limit = 1 - specificity
    return np.array([np.interp(limit, x, y) for x, y in zip(fpr, tpr, strict=True)])


def area_above(fpr: Floats, tpr: Floats, specificity: float) -> Floats:
    """Standardised area of curves (n, points) above one specificity: (n,)."""
    limit = 1 - specificity
    end = at_specificity(fpr, tpr, specificity)
    inside = fpr <= limit
    x = np.concatenate([np.where(inside, fpr, limit), np.full((len(fpr), 1), limit)], axis=1)
    y = np.concatenate([np.where(inside, tpr, end[:, None]), end[:, None]], axis=1)
    area = np.sum(np.diff(x, axis=1) * (y[:, 1:] + y[:, :-1]) / 2, axis=1)
    chance, most = limit**2 / 2, limit
    return np.asarray(0.5 * (1 + (area - chance) / (most - chance)))
