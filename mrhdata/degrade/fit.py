"""Estimation of a degradation from a few real pairs of low and high resolution."""

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

#: Candidate reductions by name.
_KINDS: dict[str, type[Reduction]] = {"area": Area, "points": Points, "triangle": Triangle, "zoom": Zoom}
#: Largest candidate width of the blur, in multiples of the factor.
_MAX_BLUR = 1.5
#: Number of intensity bins in which the noise variance is measured.
_BINS = 24


@dataclass(frozen=True)
class FittedDegradation:
    """Parameters of a fitted degradation, for values from 0 to 1.

    Attributes
    ----------
    kind : str
        Reduction: ``area``, ``points``, ``triangle`` or ``zoom``.
    factor : int
        Pixels of the high resolution per pixel of the low one, along y and x.
    width : float
        Standard deviation of the blur before the reduction, in pixels of the high resolution.
    gain, offset : float
        Contrast and brightness: ``low = offset + gain * reduced``.
    noise_offset, noise_slope : float
        Noise variance of the low resolution: ``noise_offset + noise_slope * low``.
    misfit : dict of str to float
        Root mean squared residual of each kind. Kinds with nearly equal misfits cannot be distinguished.
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
        """Degradation that turns high resolution into low resolution."""
        noise = IntensityGaussian(self.noise_slope, self.noise_offset)
        return Degradation(
            (*_reduction_steps(self.kind, self.factor, self.width), Gain(self.gain, self.offset), noise, Clip())
        )


def fit_degradation(real_low: ArrayLike, real_high: ArrayLike, *, white: float | None = None) -> FittedDegradation:
    """Fit blur, reduction, contrast and noise that turn high-resolution images into their low-resolution partners.

    For each kind of reduction, the blur width is searched for the least squared misfit, with gain and offset by
    linear least squares. The residuals of the best kind are noise: a line is fitted to their variance in bins of
    intensity.

    Parameters
    ----------
    real_low : (..., y, x) array-like
        Low-resolution images.
    real_high : (..., factor * y, factor * x) array-like
        Registered high-resolution images of the same regions. Their noise counts as detail and widens the fitted
        blur; average or denoise noisy images first.
    white : float, optional
        Value that counts as 1. By default 1 for floats and the largest value of the type for integers.

    Examples
    --------
    >>> from mrhdata.degrade import Blur, Gain, Points
    >>> from scipy.ndimage import gaussian_filter
    >>> high = gaussian_filter(np.random.default_rng(0).random((128, 128)), 2)
    >>> low = Degradation((Blur(1.5), Points(4), Gain(0.8, 0.1)))(high, seed=1)
    >>> fit = fit_degradation(low, high)
    >>> fit.kind, round(fit.width, 2), round(fit.gain, 2), round(fit.offset, 2)
    ('points', 1.5, 0.8, 0.1)
    """
    low, high = _scaled_planes(real_low, white), _scaled_planes(real_high, white)
    factor = high.shape[1] // low.shape[1]
    if len(low) != len(high) or factor < 1 or high.shape[1:] != (factor * low.shape[1], factor * low.shape[2]):
        raise GridError(
            f"real_high must have the planes of real_low and a whole multiple of its rows and columns; got {low.shape} "
            f"and {high.shape}. Crop or resample it."
        )
    if np.ptp(low) == 0 or np.ptp(high) == 0:
        raise DataError("real_low and real_high must not be constant; use images with contrast")
    widths = {kind: _best_width(low, high, kind, factor) for kind in _KINDS}
    misfit = {kind: _fit_contrast(low, high, kind, factor, width)[0] for kind, width in widths.items()}
    kind = min(misfit, key=lambda k: misfit[k])
    _, gain, offset, expected = _fit_contrast(low, high, kind, factor, widths[kind])
    noise_offset, noise_slope = _fit_noise(low - expected, expected)
    return FittedDegradation(kind, factor, widths[kind], gain, offset, noise_offset, noise_slope, misfit)


def _scaled_planes(image: ArrayLike, white: float | None) -> Floats:
    values = np.asarray(image)
    if white is None:
        white = float(np.iinfo(values.dtype).max) if np.issubdtype(values.dtype, np.integer) else 1.0
    if values.ndim < 2 or not values.size or not np.isfinite(values).all():
        raise DataError(
            f"images must be (..., y, x) with finite values; got the shape {values.shape} and "
            f"{(~np.isfinite(values)).sum()} values that are not finite. Select planes and mask them first."
        )
    return np.asarray(values.reshape(-1, *values.shape[-2:]) / white, dtype=np.float64)


def _reduction_steps(kind: str, factor: int, width: float) -> tuple[Step, ...]:
    return Blur(width), _KINDS[kind](factor)


def _fit_contrast(
    low: Floats, high: Floats, kind: str, factor: int, width: float
) -> tuple[float, float, float, Floats]:
    """Return misfit, gain, offset and the expected low resolution."""
    reduced = Degradation(_reduction_steps(kind, factor, width))(high, 0)
    centred = reduced - reduced.mean()
    gain = float((centred * low).sum() / max(float((centred**2).sum()), 1e-300))
    offset = float(low.mean() - gain * reduced.mean())
    expected = offset + gain * reduced
    return float(np.sqrt(np.mean((low - expected) ** 2))), gain, offset, expected


def _best_width(low: Floats, high: Floats, kind: str, factor: int) -> float:
    result = minimize_scalar(
        lambda width: _fit_contrast(low, high, kind, factor, float(width))[0],
        bounds=(0.0, _MAX_BLUR * factor),
        method="bounded",
        options={"xatol": 0.01},
    )
    return float(result.x)


def _fit_noise(residuals: Floats, expected: Floats) -> tuple[float, float]:
    """Fit a line to the noise variance over intensity; return its offset and slope, neither below 0."""
    order = np.argsort(expected, axis=None)
    bins = np.array_split(order, min(_BINS, max(2, order.size // 50)))
    mean = np.array([expected.flat[b].mean() for b in bins])
    variance = np.array([residuals.flat[b].var() for b in bins])
    # Clipping removes noise near black and white, so only bins at a distance from both are used.
    margin = 2.5 * np.sqrt(variance)
    unclipped = (mean - margin > 0) & (mean + margin < 1)
    if unclipped.sum() < 3:
        unclipped[:] = True
    # The standard error of a variance is proportional to the variance.
    weight = 1 / np.maximum(variance[unclipped], 1e-12)
    design = np.stack([weight, weight * np.maximum(mean[unclipped], 0)], axis=1)
    (offset, slope), _ = nnls(design, weight * variance[unclipped])
    return float(offset), float(slope)
