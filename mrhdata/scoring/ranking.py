"""How well a score ranks positives above negatives."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrhdata.errors import DataError
from mrhdata.scoring.image import check_same_shape

Floats = NDArray[np.float64]


def _classes(truth: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
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
    pairs, positives, negatives = block_pairs(truth, score, np.zeros(np.size(truth), dtype=np.int64))
    return float(pairs[0, 0] / (positives[0] * negatives[0]))


def roc(truth: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """ROC curve: false-positive rate, true-positive rate, and the threshold ``score >= t`` of each point.

    Examples
    --------
    >>> fpr, tpr, threshold = roc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> fpr.tolist(), tpr.tolist()
    ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0])
    """
    positive, s = _classes(truth, score)
    order = np.argsort(-s, kind="stable")
    hits, misses = np.cumsum(positive[order]), np.cumsum(~positive[order])
    last = np.flatnonzero(np.r_[np.diff(s[order]) != 0, True])
    thresholds = np.r_[np.inf, s[order][last]]
    return np.r_[0.0, misses[last] / misses[-1]], np.r_[0.0, hits[last] / hits[-1]], thresholds


def block_pairs(truth: ArrayLike, score: ArrayLike, block: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Count ranked pairs between blocks, from which the AUC of any resampling of blocks follows.

    With ``w`` the number of times that each block is drawn, the AUC of that sample is exactly
    ``w @ pairs @ w / ((w @ positives) * (w @ negatives))``, without ranking it again.

    Parameters
    ----------
    truth, score : array-like, n values
    block : (n,) int array-like
        Block of each value, 0 to b - 1.

    Returns
    -------
    pairs : (b, b) array
        ``pairs[i, j]``: positives of block i that score above negatives of block j, ties half.
    positives, negatives : (b,) arrays
        How many of each a block holds.

    Examples
    --------
    >>> pairs, positives, negatives = block_pairs([1, 0, 1, 0], [3, 1, 2, 2], [0, 0, 1, 1])
    >>> pairs.tolist()
    [[1.0, 1.0], [1.0, 0.5]]
    """
    positive, s = _classes(truth, score)
    blocks = np.asarray(block).ravel()
    count = int(blocks.max()) + 1
    positives = np.bincount(blocks[positive], minlength=count).astype(np.float64)
    negatives = np.bincount(blocks[~positive], minlength=count).astype(np.float64)
    high, high_block = s[positive], blocks[positive]
    low, low_block = s[~positive], blocks[~positive]
    order = np.lexsort((low, low_block))
    starts = np.searchsorted(low_block[order], np.arange(count + 1))
    pairs = np.zeros((count, count))
    for j in range(count):
        mine = low[order[starts[j] : starts[j + 1]]]
        below = np.searchsorted(mine, high, side="left") + np.searchsorted(mine, high, side="right")
        pairs[:, j] = np.bincount(high_block, weights=below / 2, minlength=count)
    return pairs, positives, negatives
