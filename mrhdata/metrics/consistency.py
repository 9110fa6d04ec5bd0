"""Whether a restored image has made something up: degraded again, it must give what was measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mrhdata.errors import DataError, GridError
from mrhdata.metrics.image import Floats, check_same_shape

#: A pixel whose noise has a smaller share of the mean variance than this is taken to have this much.
_LEAST = 1e-3


@dataclass(frozen=True)
class Residuals:
    """What is left of the measurement, in standard deviations of its noise.

    Attributes
    ----------
    map : (..., y, x) array
        ``(measured - expected) / deviation`` of each pixel.
    bias, spread : float
        Mean and standard deviation: 0 and 1 for an image that explains the measurement. A spread below 1 has
        kept the noise, above 1 misses or adds detail.
    beyond_3 : float
        Share of pixels beyond 3; 0.0027 for Gaussian noise.
    structure : float
        Correlation of neighbours along y and x: 0 for noise alone where pixels are independent; above,
        something has a shape.
    worst : float
        Largest mean of a square of `square` pixels, in its own standard deviations, which some of a thousand
        squares exceed 3.5 by chance.
    """

    map: Floats
    bias: float
    spread: float
    beyond_3: float
    structure: float
    worst: float


def residuals(measured: ArrayLike, expected: ArrayLike, variance: ArrayLike, *, square: int = 8) -> Residuals:
    """How well a restoration, degraded again, agrees with the low resolution it was made of.

    Parameters
    ----------
    measured : (..., y, x) array-like
        The low resolution.
    expected, variance : (..., y, x) array-like
        Mean and variance of what the degradation makes of the restored image, from
        ``Degradation.moments(restored, seed)``.
    square : int
        Pixels along the sides of the squares in which a local misfit is looked for.

    Notes
    -----
    It sees what leaves a trace at low resolution. Detail finer than that can be made up unseen. A mean and a
    variance of n draws are uncertain themselves, which widens the spread of the truth to
    ``sqrt((n + 1) (n - 1) / (n (n - 3)))``: 1.02 for 64 draws.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> truth = np.full((64, 64), 0.5)
    >>> found = residuals(truth + rng.normal(0, 0.1, truth.shape), truth, np.full(truth.shape, 0.01))
    >>> round(found.spread, 1), bool(found.worst < 4)
    (1.0, True)
    """
    low, mean = check_same_shape(measured, expected)
    _, noise = check_same_shape(measured, variance)
    if low.ndim < 2 or min(low.shape[-2:]) < max(square, 2):
        raise GridError(f"planes of {low.shape} are smaller than squares of {square} pixels; use smaller squares")
    if (noise < 0).any() or not noise.any():
        raise DataError("the noise's variance is 0 all over or negative; without noise, compare values themselves")
    z = (low - mean) / np.sqrt(np.maximum(noise, _LEAST * noise.mean()))
    around = z - z.mean()
    along = np.mean(around[..., 1:, :] * around[..., :-1, :]), np.mean(around[..., 1:] * around[..., :-1])
    return Residuals(
        map=z,
        bias=float(z.mean()),
        spread=float(z.std()),
        beyond_3=float(np.mean(np.abs(z) > 3)),
        structure=float(np.mean(along) / (z.var() or 1.0)),
        worst=float(np.abs(_squares(z, square)).max() * square),
    )


def _squares(values: Floats, side: int) -> Floats:
    """Means of squares; what is over at the ends is left out."""
    rows, columns = values.shape[-2] // side, values.shape[-1] // side
    kept = values[..., : rows * side, : columns * side]
    return np.asarray(kept.reshape(-1, rows, side, columns, side).mean(axis=(2, 4)))
