"""Scores of predicted values and images: RMSE, R2, PSNR, SSIM."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter, uniform_filter

from mrhdata.errors import DataError, GridError

Floats = NDArray[np.float64]

#: Exponents of the five scales, finest first (Wang et al. 2003, section 3.2).
_MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def check_same_shape(truth: ArrayLike, prediction: ArrayLike) -> tuple[Floats, Floats]:
    """Return both as float64 arrays after checking that shapes agree and all values are finite."""
    t, p = np.asarray(truth, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    if t.shape != p.shape:
        raise GridError(f"truth has shape {t.shape} and prediction {p.shape}; select the same voxels of both")
    if t.size == 0:
        raise DataError("there is nothing to score; check that the mask is not empty")
    not_finite = int((~np.isfinite(t)).sum() + (~np.isfinite(p)).sum())
    if not_finite:
        raise DataError(f"{not_finite} of {t.size} pairs of values are not finite; mask them out first")
    return t, p


def rmse(truth: ArrayLike, prediction: ArrayLike, *, parameters: int = 0) -> float:
    """Return the root mean squared error.

    Parameters
    ----------
    truth, prediction : array-like of one shape
        True and predicted values.
    parameters : int
        Number of fitted parameters p. The sum is divided by the residual degrees of freedom n - p, as in regression
        software. Use 0 for held-out values.

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
    """Return the coefficient of determination, ``1 - SSE / SST``: 1 is perfect, 0 as good as the mean, below 0 worse.

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


def psnr(truth: ArrayLike, prediction: ArrayLike, *, data_range: float = 1.0) -> float:
    """Return the peak signal-to-noise ratio in dB, ``20 log10(data_range / rmse)``; infinite if both are equal.

    Parameters
    ----------
    truth, prediction : array-like of one shape
        True and predicted values.
    data_range : float
        Difference between white and black, 255 for 8 bits.

    Examples
    --------
    >>> psnr([0.0, 0.5], [0.1, 0.4])
    20.0
    """
    error = rmse(truth, prediction)
    return float(20 * np.log10(data_range / error)) if error else float("inf")


def ssim(truth: ArrayLike, prediction: ArrayLike, *, data_range: float = 1.0, gaussian: float | None = None) -> float:
    """Return the structural similarity (Wang et al. 2004, IEEE TIP 13:600), the mean over planes: 1 is perfect.

    Parameters
    ----------
    truth, prediction : (..., y, x) array-like of one shape
        True and predicted planes.
    data_range : float
        Difference between white and black.
    gaussian : float, optional
        Standard deviation of a Gaussian window, truncated at 3.5 standard deviations; the paper uses 1.5. The
        default is a uniform window of 7 x 7 pixels with unbiased variances, as in scikit-image. Pixels whose window
        leaves the plane do not count.

    Examples
    --------
    >>> image = np.random.default_rng(0).random((32, 32))
    >>> ssim(image, image), round(ssim(image, 1 - image), 2)
    (1.0, -0.98)
    """
    t, p = check_same_shape(truth, prediction)
    return float(np.mean(_similarity(t, p, data_range, gaussian)[0]))


def ms_ssim(truth: ArrayLike, prediction: ArrayLike, *, data_range: float = 1.0) -> float:
    """Return the multi-scale structural similarity (Wang et al. 2003, Asilomar 37:1398), the mean over planes.

    It multiplies contrast and structure at five scales, each half the one before, and luminance at the coarsest.
    Windows are Gaussian with a standard deviation of 1.5 pixels. Scales at which a plane is anticorrelated count
    as 0.

    Parameters
    ----------
    truth, prediction : (..., y, x) array-like of one shape
        True and predicted planes, with 176 pixels or more along y and x.
    data_range : float
        Difference between white and black.

    Examples
    --------
    >>> image = np.random.default_rng(0).random((176, 176))
    >>> ms_ssim(image, image), ms_ssim(image, 1 - image)
    (1.0, 0.0)
    """
    t, p = check_same_shape(truth, prediction)
    out = np.ones(t.shape[:-2])
    for scale, weight in enumerate(_MS_WEIGHTS):
        full, structure = _similarity(t, p, data_range, 1.5)
        last = scale == len(_MS_WEIGHTS) - 1
        out *= np.maximum((full if last else structure).mean(axis=(-2, -1)), 0) ** weight
        t, p = _downsample(t), _downsample(p)
    return float(out.mean())


def _downsample(planes: Floats) -> Floats:
    """Return the means of 2 x 2 pixels."""
    even = planes[..., : planes.shape[-2] // 2 * 2, : planes.shape[-1] // 2 * 2]
    rows = even[..., ::2, :] + even[..., 1::2, :]
    return np.asarray(rows[..., ::2] + rows[..., 1::2]) / 4


def _similarity(t: Floats, p: Floats, data_range: float, gaussian: float | None) -> tuple[Floats, Floats]:
    """Return the SSIM of each pixel whose window lies within the plane, and its factor without luminance."""
    edge = 3 if gaussian is None else int(3.5 * gaussian + 0.5)
    if t.ndim < 2 or min(t.shape[-2:]) <= 2 * edge:
        raise GridError(f"planes of {t.shape} are smaller than the window of {2 * edge + 1} pixels; use larger planes")

    def mean(values: Floats) -> Floats:
        if gaussian is None:
            out = uniform_filter(values, 7, axes=(-2, -1))
        else:
            out = gaussian_filter(values, gaussian, truncate=3.5, axes=(-2, -1))
        return np.asarray(out[..., edge:-edge, edge:-edge])

    unbiased = 49 / 48 if gaussian is None else 1.0
    mean_t, mean_p = mean(t), mean(p)
    var_t, var_p = (unbiased * (mean(v * v) - m * m) for v, m in ((t, mean_t), (p, mean_p)))
    covariance = unbiased * (mean(t * p) - mean_t * mean_p)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    structure = (2 * covariance + c2) / (var_t + var_p + c2)
    return structure * (2 * mean_t * mean_p + c1) / (mean_t**2 + mean_p**2 + c1), structure


def normalize_for_scoring(truth: ArrayLike, prediction: ArrayLike) -> tuple[Floats, Floats]:
    """Normalise both as in published scores of restoration, which ignore gain and offset.

    The truth is scaled so that the range from its 0.1 to its 99.9 percentile becomes 1, both means are subtracted,
    and the prediction is scaled for the least squared error (Weigert et al. 2018, Nat. Methods 15:1090; Fang et al.
    2021, Nat. Methods 18:406).

    Parameters
    ----------
    truth, prediction : array-like of one shape
        One true and one predicted image; percentiles and means are taken over all pixels.

    Examples
    --------
    >>> truth = np.random.default_rng(0).random((16, 16))
    >>> t, p = normalize_for_scoring(truth, 7 - 3 * truth)
    >>> bool(np.abs(t - p).max() < 1e-12)
    True
    """
    t, p = check_same_shape(truth, prediction)
    low, high = np.percentile(t, [0.1, 99.9])
    if high == low:
        raise DataError(f"the truth is {low:g} everywhere, which leaves no range for scoring; use images with contrast")
    t, p = (t - t.mean()) / (high - low), p - p.mean()
    return t, p * ((t * p).mean() / (p.var() or 1.0))


def restoration_scores(truth: ArrayLike, prediction: ArrayLike) -> tuple[Floats, Floats]:
    """Compute PSNR and SSIM of each plane, normalised by :func:`normalize_for_scoring`, with a data range of 1.

    Parameters
    ----------
    truth, prediction : (..., y, x) array-like of one shape
        True and predicted planes.

    Returns
    -------
    psnr, ssim : (...) arrays
        Scores of each plane. Publications report their means.

    Examples
    --------
    >>> truth = np.random.default_rng(0).random((2, 32, 32))
    >>> p, s = restoration_scores(truth, 1 + 2 * truth)
    >>> p.shape, s.round(6).tolist()
    ((2,), [1.0, 1.0])
    """
    t, p = check_same_shape(truth, prediction)
    pairs = [normalize_for_scoring(*pair) for pair in zip(_planes(t), _planes(p), strict=True)]
    scores = np.array([(psnr(*pair), ssim(*pair)) for pair in pairs])
    return scores[:, 0].reshape(t.shape[:-2]), scores[:, 1].reshape(t.shape[:-2])


def _planes(values: Floats) -> Floats:
    if values.ndim < 2:
        raise GridError(f"planes must be (..., y, x); got an array of shape {values.shape}. Add the missing axis.")
    return values.reshape(-1, *values.shape[-2:])


def error_map(truth: ArrayLike, prediction: ArrayLike, *, width: float = 0.0) -> Floats:
    """Return ``prediction - truth``, or with a `width` the local root mean squared error.

    Parameters
    ----------
    truth, prediction : (..., y, x) array-like of one shape
        True and predicted planes.
    width : float
        Standard deviation of the Gaussian neighbourhood in the plane, in pixels.

    Examples
    --------
    >>> error_map([[1.0, 2.0]], [[1.5, 2.0]]).tolist()
    [[0.5, 0.0]]
    """
    t, p = check_same_shape(truth, prediction)
    return np.sqrt(gaussian_filter((p - t) ** 2, width, axes=(-2, -1))) if width else p - t
