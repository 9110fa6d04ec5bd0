"""What two measurements share: mutual information, and what one adds to the others.

As for :mod:`mrhdata.metrics.bootstrap` every statistic follows from sums over blocks.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import qr

from mrhdata.metrics.image import check_same_shape

Floats = NDArray[np.float64]

#: Most bins of about equal numbers that either measurement is counted in.
_BINS = 32
#: A column of which the others explain all but this part of the variance adds nothing.
_ALIKE = 1e-8


def mutual_information(truth: ArrayLike, values: ArrayLike) -> float:
    """Mutual information in bits, of values in up to 32 bins of equal numbers; no monotone change of either matters.

    The bias that finite counts give is taken off (Miller 1955), for independent values: neighbours that
    are alike leave some.

    Examples
    --------
    >>> x = np.arange(40_000)
    >>> round(mutual_information(x, -x), 2)
    4.98
    """
    block = np.zeros(np.size(truth), dtype=np.int64)
    return float(information_replicates(truth, values, block, np.ones((1, 1)))[0])


def information_replicates(truth: ArrayLike, values: ArrayLike, block: ArrayLike, draws: Floats) -> Floats:
    """Mutual information of each resampling of blocks, in bits: (replicates,)."""
    t, v = check_same_shape(np.ravel(truth), np.ravel(values))
    rows, columns = _binned(t), _binned(v)
    shape = (rows.max() + 1, columns.max() + 1)
    flat = (np.asarray(block).ravel() * shape[0] + rows) * shape[1] + columns
    counts = np.bincount(flat, minlength=draws.shape[1] * shape[0] * shape[1]).reshape(draws.shape[1], -1)
    joint = (draws @ counts).reshape(len(draws), *shape)
    n = joint.sum(axis=(1, 2))
    entropy = _entropy(joint.sum(axis=2), n) + _entropy(joint.sum(axis=1), n) - _entropy(joint.reshape(len(n), -1), n)
    return np.asarray(entropy - (shape[0] - 1) * (shape[1] - 1) / (2 * n * np.log(2)))


def _binned(values: Floats) -> NDArray[np.int64]:
    # Few values fill few bins.
    bins = int(np.clip(round(len(values) ** (1 / 3)), 2, _BINS))
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1], method="higher"))
    return np.searchsorted(edges, values, side="right").astype(np.int64)


def _entropy(counts: Floats, n: Floats) -> Floats:
    share = counts / n[:, None]
    return np.asarray(-np.sum(share * np.log2(share, out=np.zeros_like(share), where=share > 0), axis=1))


def partial_correlation(truth: ArrayLike, columns: ArrayLike) -> Floats:
    """Correlation of each column with the truth when all other columns are known: what it adds, (p,).

    Parameters
    ----------
    truth : (n,) array-like
    columns : (n, p) array-like
        A column that the others give exactly adds nothing: 0.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> a, b = rng.normal(size=(2, 5000))
    >>> partial_correlation(a + b, np.stack([a, b, a], axis=1)).round(2).tolist()
    [0.0, 1.0, 0.0]
    """
    block = np.zeros(np.size(truth), dtype=np.int64)
    return np.asarray(partial_replicates(truth, columns, block, np.ones((1, 1)))[0])


def partial_replicates(truth: ArrayLike, columns: ArrayLike, block: ArrayLike, draws: Floats) -> Floats:
    """Partial correlations of each resampling of blocks: (replicates, p)."""
    t, x = np.asarray(truth, dtype=np.float64), np.asarray(columns, dtype=np.float64)
    spread = x.std(axis=0)
    z = (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    independent, alone = _independent(z)
    out = np.zeros((len(draws), x.shape[1]))
    if not alone.any():
        return out
    joined = np.column_stack([np.ones(len(t)), (t - t.mean()) / (t.std() or 1.0), z[:, independent]])
    moments = _moments(joined, np.asarray(block).ravel(), draws)
    n = moments[:, 0, 0]
    means = moments[:, 0, 1:] / n[:, None]
    covariance = moments[:, 1:, 1:] / n[:, None, None] - means[:, :, None] * means[:, None, :]
    # What is left of a truth that columns explain in full has no direction.
    covariance[:, 0, 0] += _ALIKE
    precision = np.linalg.pinv(covariance, hermitian=True)
    diagonal = np.sqrt(np.maximum(np.einsum("rii->ri", precision), 0))
    scale = diagonal[:, :1] * diagonal[:, 1:]
    found = np.divide(-precision[:, 0, 1:], scale, out=np.zeros_like(scale), where=scale > 0)
    out[:, independent] = np.where(alone[independent], found, 0.0)
    return out


def _moments(values: Floats, block: NDArray[np.int64], draws: Floats) -> Floats:
    """Sums of products of all columns over each resampling: (replicates, p, p)."""
    order = np.argsort(block, kind="stable")
    ends = np.searchsorted(block[order], np.arange(draws.shape[1] + 1))
    sums = np.empty((draws.shape[1], values.shape[1] ** 2))
    for i, (a, b) in enumerate(itertools.pairwise(ends)):
        part = values[order[a:b]]
        sums[i] = (part.T @ part).ravel()
    return np.asarray((draws @ sums).reshape(len(draws), values.shape[1], values.shape[1]))


def _independent(z: Floats) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Columns none of which the others of them give, and which of all columns are not given by the rest."""
    covariance = z.T @ z / len(z)
    r, order = qr(covariance, pivoting=True, mode="r")
    rank = int((np.abs(np.diag(r)) > _ALIKE).sum())
    kept = np.sort(order[:rank])
    values, vectors = np.linalg.eigh(covariance)
    # A column takes part in a dependence where it has weight in the null space.
    null = vectors[:, values < _ALIKE * values.max(initial=1.0)]
    return kept, np.asarray((null**2).sum(axis=1) < _ALIKE) & (z.std(axis=0) > 0)
