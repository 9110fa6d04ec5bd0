"""A degradation from a few pairs that were really acquired twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar, nnls

from mrhdata.degrade.degradation import Degradation
from mrhdata.degrade.steps import (
    Area,
    Blur,
    Clip,
    Floats,
    Gain,
    IntensityGaussian,
    Points,
    Reduction,
    Step,
    Triangle,
    Zoom,
)
from mrhdata.errors import DataError, GridError

#: Ways to get from many pixels to few, and the widest blur before it, in shares of the factor.
_KINDS: dict[str, type[Reduction]] = {"area": Area, "points": Points, "triangle": Triangle, "zoom": Zoom}
_WIDEST = 1.5
#: Bins of intensity that noise is measured in.
_BINS = 24


@dataclass(frozen=True)
class Fitted:
    """What was found, for values from 0 to 1.

    Attributes
    ----------
    kind : str
        ``area``, ``points``, ``triangle`` or ``zoom``.
    factor : int
    width : float
        Of the blur before the reduction, in pixels of the high resolution.
    gain, offset : float
        ``low = offset + gain * reduced``.
    noise_offset, noise_slope : float
        Variance of the low resolution's noise: ``noise_offset + noise_slope * low``.
    misfit : dict of str to float
        Root mean square of what each kind leaves unexplained: kinds nearly alike cannot be told apart.
    """

    kind: str
    factor: int
    width: float
    gain: float
    offset: float
    noise_offset: float
    noise_slope: float
    misfit: dict[str, float]

    @property
    def degradation(self) -> Degradation:
        """Steps that make such low resolution of high resolution."""
        noise = IntensityGaussian(self.noise_slope, self.noise_offset)
        return Degradation(
            (*_reduction(self.kind, self.factor, self.width), Gain(self.gain, self.offset), noise, Clip())
        )


def fit_degradation(real_low: ArrayLike, real_high: ArrayLike, *, white: float | None = None) -> Fitted:
    """Blur, reduction, contrast and noise that turn high-resolution images into their low-resolution partners.

    For each kind of reduction the blur with the least squared misfit is searched, gain and offset by least
    squares; what is left is noise, whose variance is a line over the intensity, fitted to bins of it.

    Parameters
    ----------
    real_low : (..., y, x) array-like
    real_high : (..., factor * y, factor * x) array-like
        The same places, registered. Its noise is taken for detail, which widens the blur that is found;
        average or denoise a noisy one first.
    white : float, optional
        Value that counts as 1; without it 1 for floats and the type's largest for integers.

    Examples
    --------
    >>> from mrhdata.degrade import Blur, Gain, Points
    >>> from scipy.ndimage import gaussian_filter
    >>> high = gaussian_filter(np.random.default_rng(0).random((128, 128)), 2)
    >>> low = Degradation((Blur(1.5), Points(4), Gain(0.8, 0.1)))(high, seed=1)
    >>> found = fit_degradation(low, high)
    >>> found.kind, round(found.width, 2), round(found.gain, 2), round(found.offset, 2)
    ('points', 1.5, 0.8, 0.1)
    """
    low, high = _planes(real_low, white), _planes(real_high, white)
    factor = high.shape[1] // low.shape[1]
    if len(low) != len(high) or factor < 1 or high.shape[1:] != (factor * low.shape[1], factor * low.shape[2]):
        raise GridError(
            f"low resolution of {low.shape} and high resolution of {high.shape} planes, rows and columns are no pairs; "
            "high is a whole number of times low along y and x: crop or resample it"
        )
    if np.ptp(low) == 0 or np.ptp(high) == 0:
        raise DataError("one side of the pairs is constant and tells nothing; use images with content")
    widths = {kind: _best_width(low, high, kind, factor) for kind in _KINDS}
    misfit = {kind: _explain(low, high, kind, factor, width)[0] for kind, width in widths.items()}
    kind = min(misfit, key=lambda k: misfit[k])
    _, gain, offset, expected = _explain(low, high, kind, factor, widths[kind])
    noise_offset, noise_slope = _noise(low - expected, expected)
    return Fitted(kind, factor, widths[kind], gain, offset, noise_offset, noise_slope, misfit)


def _planes(image: ArrayLike, white: float | None) -> Floats:
    values = np.asarray(image)
    if white is None:
        white = float(np.iinfo(values.dtype).max) if np.issubdtype(values.dtype, np.integer) else 1.0
    if values.ndim < 2 or not values.size or not np.isfinite(values).all():
        raise DataError(f"an image of shape {values.shape} is not (..., y, x) of finite values; select and mask first")
    return np.asarray(values.reshape(-1, *values.shape[-2:]) / white, dtype=np.float64)


def _reduction(kind: str, factor: int, width: float) -> tuple[Step, ...]:
    return Blur(width), _KINDS[kind](factor)


def _explain(low: Floats, high: Floats, kind: str, factor: int, width: float) -> tuple[float, float, float, Floats]:
    """Misfit, gain, offset and the low resolution that they give."""
    reduced = Degradation(_reduction(kind, factor, width))(high, 0)
    centred = reduced - reduced.mean()
    gain = float((centred * low).sum() / max(float((centred**2).sum()), 1e-300))
    offset = float(low.mean() - gain * reduced.mean())
    expected = offset + gain * reduced
    return float(np.sqrt(np.mean((low - expected) ** 2))), gain, offset, expected


def _best_width(low: Floats, high: Floats, kind: str, factor: int) -> float:
    found = minimize_scalar(
        lambda width: _explain(low, high, kind, factor, float(width))[0],
        bounds=(0.0, _WIDEST * factor),
        method="bounded",
        options={"xatol": 0.01},
    )
    return float(found.x)


def _noise(left: Floats, expected: Floats) -> tuple[float, float]:
    """Offset and slope of the noise's variance over intensity; neither is below 0."""
    order = np.argsort(expected, axis=None)
    bins = np.array_split(order, min(_BINS, max(2, order.size // 50)))
    mean = np.array([expected.flat[b].mean() for b in bins])
    variance = np.array([left.flat[b].var() for b in bins])
    # Clipping takes noise away near black and white.
    spread = 2.5 * np.sqrt(variance)
    whole = (mean - spread > 0) & (mean + spread < 1)
    if whole.sum() < 3:
        whole[:] = True
    # A variance is known to a share of itself.
    weight = 1 / np.maximum(variance[whole], 1e-12)
    (offset, slope), _ = nnls(np.stack([weight, weight * np.maximum(mean[whole], 0)], axis=1), weight * variance[whole])
    return float(offset), float(slope)
