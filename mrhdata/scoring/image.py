"""How well predicted values agree with true ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrhdata.errors import DataError, GridError

Floats = NDArray[np.float64]


def check_same_shape(truth: ArrayLike, prediction: ArrayLike) -> tuple[Floats, Floats]:
    """Both as float64 arrays of one shape, without NaN."""
    t, p = np.asarray(truth, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    if t.shape != p.shape:
        raise GridError(f"truth has shape {t.shape} and prediction {p.shape}; select the same voxels of both")
    if t.size == 0:
        raise DataError("there is nothing to score; check that the mask is not empty")
    bad = int((~np.isfinite(t)).sum() + (~np.isfinite(p)).sum())
    if bad:
        raise DataError(f"{bad} of {t.size} pairs of values are not finite; mask them out first")
    return t, p


def rmse(truth: ArrayLike, prediction: ArrayLike, *, parameters: int = 0) -> float:
    """Root of the mean squared error.

    Parameters
    ----------
    truth, prediction : array-like of one shape
    parameters : int
        Number of fitted parameters p: the sum is divided by the residual degrees of freedom n - p,
        as regression software reports it. 0 for held-out values.

    Examples
    --------
    >>> rmse([0, 0, 0, 0], [1, 1, 1, 1]), rmse([0, 0, 0, 0], [1, 1, 1, 1], parameters=3)
    (1.0, 2.0)
    """
    t, p = check_same_shape(truth, prediction)
    if parameters >= t.size:
        raise DataError(f"{t.size} values leave no degree of freedom for {parameters} parameters; use more values")
    return float(np.sqrt(((t - p) ** 2).sum() / (t.size - parameters)))


def r2(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Coefficient of determination, ``1 - SSE / SST``: 1 is perfect, 0 as good as the mean, below 0 worse.

    Examples
    --------
    >>> r2([1, 2, 3], [1, 2, 3]), r2([1, 2, 3], [2, 2, 2]), r2([1, 2, 3], [3, 2, 1])
    (1.0, 0.0, -3.0)
    """
    t, p = check_same_shape(truth, prediction)
    total = ((t - t.mean()) ** 2).sum()
    if total == 0:
        raise DataError(f"all {t.size} true values are {t.flat[0]:g}; R2 needs values that differ")
    return float(1 - ((t - p) ** 2).sum() / total)
