"""Mutual information and partial correlation.

As in :mod:`mrhdata.metrics.bootstrap`, every statistic follows from sums over blocks.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import qr

from mrhdata.metrics.image import check_same_shape

Floats = NDArray[np.float64]

#: Largest number of quantile bins of each measurement.
_MAX_BINS = 32
#: A column adds nothing if the others explain all but this share of its variance.
_DEPENDENCE_TOLERANCE = 1e-8


def mutual_information(truth: ArrayLike, values: ArrayLike) -> float:
    """Return the mutual information in bits, from up to 32 quantile bins of each measurement.

    Monotone transforms of either measurement do not change it. The bias of finite counts is subtracted (Miller
    1955), which assumes independent values: correlated neighbours leave some bias.

    Examples
    --------
    >>> x = np.arange(40_000)
    >>> round(mutual_information(x, -x), 2)
    4.98
    """
    block = np.zeros(np.size(truth), dtype=np.int64)
    return float(information_replicates(truth, values, block, np.ones((1, 1)))[0])


def information_replicates(truth: ArrayLike, values: ArrayLike, block: ArrayLike, draws: Floats) -> Floats:
    """Return the mutual information of each resampling of blocks, in bits: (replicates,)."""
    t, v = check_same_shape(np.ravel(truth), np.ravel(values))
    rows, columns = _bin_numbers(t), _bin_numbers(v)
    shape = (rows.max() + 1, columns.max() + 1)
    flat = (np.asarray(block).ravel() * shape[0] + rows) * shape[1] + columns
    counts = np.bincount(flat, minlength=draws.shape[1] * shape[0] * shape[1]).reshape(draws.shape[1], -1)
    joint = (draws @ counts).reshape(len(draws), *shape)
    n = joint.sum(axis=(1, 2))
    shared = _entropy(joint.sum(axis=2), n) + _entropy(joint.sum(axis=1), n) - _entropy(joint.reshape(len(n), -1), n)
    return np.asarray(shared - (shape[0] - 1) * (shape[1] - 1) / (2 * n * np.log(2)))


def _bin_numbers(values: Floats) -> NDArray[np.int64]:
    # With n values, n ** (1 / 3) bins keep enough values in each.
    bins = int(np.clip(round(len(values) ** (1 / 3)), 2, _MAX_BINS))
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1], method="higher"))
    return np.searchsorted(edges, values, side="right").astype(np.int64)


def _entropy(counts: Floats, n: Floats) -> Floats:
    share = counts / n[:, None]
    return np.asarray(-np.sum(share * np.log2(share, out=np.zeros_like(share), where=share > 0), axis=1))


def partial_correlation(truth: ArrayLike, columns: ArrayLike) -> Floats:
    """Return the correlation of each column with the truth, given all other columns: (p,).

    Parameters
    ----------
    truth : (n,) array-like
        True values.
    columns : (n, p) array-like
        Measurements. A column that is a linear combination of the others has a partial correlation of 0.

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
    """Return the partial correlations of each resampling of blocks: (replicates, p)."""
    t, x = np.asarray(truth, dtype=np.float64), np.asarray(columns, dtype=np.float64)
    spread = x.std(axis=0)
    z = (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    basis, is_independent = _independent_columns(z)
    out = np.zeros((len(draws), x.shape[1]))
    if not is_independent.any():
        return out
    joined = np.column_stack([np.ones(len(t)), (t - t.mean()) / (t.std() or 1.0), z[:, basis]])
    moments = _moments(joined, np.asarray(block).ravel(), draws)
    n = moments[:, 0, 0]
    means = moments[:, 0, 1:] / n[:, None]
    covariance = moments[:, 1:, 1:] / n[:, None, None] - means[:, :, None] * means[:, None, :]
    # Keeps the covariance invertible if the columns explain the truth completely.
    covariance[:, 0, 0] += _DEPENDENCE_TOLERANCE
    precision = np.linalg.pinv(covariance, hermitian=True)
    diagonal = np.sqrt(np.maximum(np.einsum("rii->ri", precision), 0))
    scale = diagonal[:, :1] * diagonal[:, 1:]
    correlations = np.divide(-precision[:, 0, 1:], scale, out=np.zeros_like(scale), where=scale > 0)
    out[:, basis] = np.where(is_independent[basis], correlations, 0.0)
    return out


def _moments(values: Floats, block: NDArray[np.int64], draws: Floats) -> Floats:
    """Return the sums of products of all columns over each resampling: (replicates, p, p)."""
    order = np.argsort(block, kind="stable")
    ends = np.searchsorted(block[order], np.arange(draws.shape[1] + 1))
    sums = np.empty((draws.shape[1], values.shape[1] ** 2))
    for i, (start, stop) in enumerate(itertools.pairwise(ends)):
        rows = values[order[start:stop]]
        sums[i] = (rows.T @ rows).ravel()
    return np.asarray((draws @ sums).reshape(len(draws), values.shape[1], values.shape[1]))


def _independent_columns(z: Floats) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return a basis of the columns, and which columns are not linear combinations of all others."""
    covariance = z.T @ z / len(z)
    r, order = qr(covariance, pivoting=True, mode="r")
    rank = int((np.abs(np.diag(r)) > _DEPENDENCE_TOLERANCE).sum())
    basis = np.sort(order[:rank])
    values, vectors = np.linalg.eigh(covariance)
    # A column with weight in the null space depends linearly on others.
    null = vectors[:, values < _DEPENDENCE_TOLERANCE * values.max(initial=1.0)]
    return basis, np.asarray((null**2).sum(axis=1) < _DEPENDENCE_TOLERANCE) & (z.std(axis=0) > 0)
