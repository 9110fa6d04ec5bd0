"""Check for invented detail: a restored image, degraded again, must agree with the measurement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mrhdata.errors import DataError, GridError
from mrhdata.metrics.image import Floats, check_same_shape

#: Lower bound of a pixel's noise variance, as a share of the mean variance.
_MIN_RELATIVE_VARIANCE = 1e-3


@dataclass(frozen=True)
class Residuals:
    """Residuals of the measurement, in standard deviations of its noise.

    Attributes
    ----------
    map : (..., y, x) array
        ``(measured - expected) / deviation`` of each pixel.
    bias, spread : float
        Mean and standard deviation: 0 and 1 for an image that explains the measurement. A spread below 1 means
        that the image has kept the noise, above 1 that it misses or adds detail.
    beyond_3 : float
        Share of pixels with an absolute residual above 3; 0.0027 for Gaussian noise.
    structure : float
        Correlation of neighbours along y and x: 0 for independent noise, above 0 if residuals have structure.
    worst : float
        Largest absolute mean over a square of `square` pixels, in standard deviations of such a mean. Some of a
        thousand squares exceed 3.5 by chance.
    """

    map: Floats
    bias: float
    spread: float
    beyond_3: float
    structure: float
    worst: float


def residuals(measured: ArrayLike, expected: ArrayLike, variance: ArrayLike, *, square: int = 8) -> Residuals:
    """Compare a measurement with the restored image degraded again.

    Parameters
    ----------
    measured : (..., y, x) array-like
        Measured image at low resolution.
    expected, variance : (..., y, x) array-like
        Mean and variance of the degraded restored image, from ``Degradation.moments(restored, seed)``.
    square : int
        Side of the squares in which `worst` looks for a local misfit, in pixels.

    Notes
    -----
    Only detail that leaves a trace at low resolution is checked; finer detail can be invented unnoticed. The mean
    and variance of n draws are themselves uncertain, which raises the spread of the ground truth to
    ``sqrt((n + 1) (n - 1) / (n (n - 3)))``: 1.02 for 64 draws.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> truth = np.full((64, 64), 0.5)
    >>> result = residuals(truth + rng.normal(0, 0.1, truth.shape), truth, np.full(truth.shape, 0.01))
    >>> round(result.spread, 1), bool(result.worst < 4)
    (1.0, True)
    """
    low, mean = check_same_shape(measured, expected)
    _, noise = check_same_shape(measured, variance)
    if low.ndim < 2 or min(low.shape[-2:]) < max(square, 2):
        raise GridError(f"planes of {low.shape} are smaller than squares of {square} pixels; use smaller squares")
    if (noise < 0).any() or not noise.any():
        raise DataError("the noise variance is 0 everywhere or negative; without noise, compare values directly")
    z = (low - mean) / np.sqrt(np.maximum(noise, _MIN_RELATIVE_VARIANCE * noise.mean()))
    centred = z - z.mean()
    covariances = np.mean(centred[..., 1:, :] * centred[..., :-1, :]), np.mean(centred[..., 1:] * centred[..., :-1])
    return Residuals(
        map=z,
        bias=float(z.mean()),
        spread=float(z.std()),
        beyond_3=float(np.mean(np.abs(z) > 3)),
        structure=float(np.mean(covariances) / (z.var() or 1.0)),
        worst=float(np.abs(_square_means(z, square)).max() * square),
    )


def _square_means(values: Floats, side: int) -> Floats:
    """Return the means of squares; incomplete squares at the ends are left out."""
    rows, columns = values.shape[-2] // side, values.shape[-1] // side
    whole_squares = values[..., : rows * side, : columns * side]
    return np.asarray(whole_squares.reshape(-1, rows, side, columns, side).mean(axis=(2, 4)))
