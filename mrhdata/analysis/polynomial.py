"""Polynomial fits by least squares."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrhdata.errors import DataError

Floats = NDArray[np.float64]


def polynomial(x: ArrayLike, truth: ArrayLike, degree: int, fitting: NDArray[np.bool_]) -> tuple[Floats, int]:
    """Fit a polynomial to some rows; return its values for all rows and its number of parameters.

    Parameters
    ----------
    x : (n, p) array-like
        Columns to fit.
    truth : (n,) array-like
        Values to predict.
    degree : int
        1 linear, 2 with all squares and products, and so on.
    fitting : (n,) bool array
        Rows to fit on.

    Examples
    --------
    >>> x = np.arange(6.0)[:, None]
    >>> values, parameters = polynomial(x, x[:, 0] ** 2, 2, np.arange(6) < 4)
    >>> values.round(6).tolist(), parameters
    ([0.0, 1.0, 4.0, 9.0, 16.0, 25.0], 3)
    """
    columns, target = np.asarray(x, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    # Columns are standardised, because powers of raw scanner counts would lose all precision.
    centre, scale = columns[fitting].mean(axis=0), columns[fitting].std(axis=0)
    terms = _terms((columns - centre) / np.where(scale > 0, scale, 1.0), degree)
    if fitting.sum() <= terms.shape[1]:
        raise DataError(f"{fitting.sum()} training rows cannot fit {terms.shape[1]} parameters. Use more rows")
    coefficients = np.linalg.lstsq(terms[fitting], target[fitting], rcond=None)[0]
    return terms @ coefficients, terms.shape[1]


def _terms(x: Floats, degree: int) -> Floats:
    """Return all products of up to `degree` columns, the constant first."""
    columns = [np.ones(len(x))]
    for d in range(1, degree + 1):
        for factors in itertools.combinations_with_replacement(range(x.shape[1]), d):
            columns.append(np.prod(x[:, factors], axis=1))
    return np.stack(columns, axis=1)
