"""Image scores: SSIM against its definition, resolution of known band limits, detection of invented detail."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mrhdata.degrade import PUBLISHED, Area, Degradation, Gaussian, Zoom
from mrhdata.errors import DataError, GridError
from mrhdata.metrics.consistency import residuals
from mrhdata.metrics.fourier import fourier_correlation
from mrhdata.metrics.image import error_map, ms_ssim, normalize_for_scoring, psnr, restoration_scores, ssim


def coloured_noise(spectrum, shape, seed):
    """Return noise whose amplitude spectrum is a function of the frequency in cycles per pixel."""
    white = np.fft.fftn(np.random.default_rng(seed).standard_normal(shape))
    radius = np.sqrt(sum(np.meshgrid(*(np.fft.fftfreq(n) ** 2 for n in shape), indexing="ij")))
    return np.fft.ifftn(white * spectrum(radius)).real


def windows(image, size):
    """Return every window of a plane as a row."""
    return np.lib.stride_tricks.sliding_window_view(image, (size, size)).reshape(-1, size * size)


def gaussian_window():
    """Return the 11 x 11 Gaussian weights with a standard deviation of 1.5 pixels of the SSIM paper."""
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    return np.outer(line, line).ravel() / line.sum() ** 2


@pytest.mark.parametrize("gaussian", [None, 1.5])
def test_ssim_agrees_with_its_definition(gaussian):
    """Weighted means and (co)variances of each window give the same score, for a data range of 1 and of 255."""
    rng = np.random.default_rng(0)
    x = gaussian_filter(rng.random((40, 30)), 1)
    y = x + rng.normal(0, 0.05, x.shape)
    size, weights = (7, np.full(49, 1 / 49)) if gaussian is None else (11, gaussian_window())
    a, b = windows(x, size), windows(y, size)
    ma, mb = a @ weights, b @ weights
    unbiased = 49 / 48 if gaussian is None else 1
    va, vb, cov = (
        unbiased * ((p * q) @ weights - m * n) for p, q, m, n in ((a, a, ma, ma), (b, b, mb, mb), (a, b, ma, mb))
    )
    local = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    assert ssim(x, y, gaussian=gaussian) == pytest.approx(local.mean(), abs=1e-12)
    assert ssim(255 * x, 255 * y, data_range=255, gaussian=gaussian) == pytest.approx(local.mean(), abs=1e-12)
    # Windows do not cross planes.
    stack = [np.stack([v, v[::-1]]) for v in (x, y)]
    assert ssim(*stack, gaussian=gaussian) == pytest.approx(local.mean(), abs=1e-12)


def test_ms_ssim_agrees_with_its_definition():
    """The product has contrast and structure of four scales and the SSIM of the fifth, with published exponents."""
    rng = np.random.default_rng(1)
    x = gaussian_filter(rng.random((200, 180)), 2)
    y = gaussian_filter(x, 1) + rng.normal(0, 0.01, x.shape)
    expected, weights, (p, q) = 1.0, gaussian_window(), (x, y)
    for scale, exponent in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        a, b = windows(p, 11), windows(q, 11)
        ma, mb = a @ weights, b @ weights
        va, vb, cov = (a * a) @ weights - ma**2, (b * b) @ weights - mb**2, (a * b) @ weights - ma * mb
        local = (2 * cov + 9e-4) / (va + vb + 9e-4)
        if scale == 4:
            local = local * (2 * ma * mb + 1e-4) / (ma**2 + mb**2 + 1e-4)
        expected *= local.mean() ** exponent
        p, q = (v[: len(v) // 2 * 2, : v.shape[1] // 2 * 2] for v in (p, q))
        p, q = (v.reshape(len(v) // 2, 2, -1, 2).mean((1, 3)) for v in (p, q))
    assert ms_ssim(x, y) == pytest.approx(expected, abs=1e-12)
    assert ms_ssim(np.stack([x, x]), np.stack([y, x])) == pytest.approx((expected + 1) / 2)


def test_matched_images_have_the_least_squared_error():
    """Any other gain or offset lowers PSNR; restoration() does not depend on gain and offset."""
    rng = np.random.default_rng(2)
    truth = rng.random((64, 64))
    prediction = truth + rng.normal(0, 0.2, truth.shape)
    t, p = normalize_for_scoring(truth, prediction)
    best = psnr(t, p)
    assert all(psnr(t, gain * p + offset) < best for gain, offset in ((0.98, 0), (1.02, 0), (1, 0.01), (1, -0.01)))
    psnrs, ssims = restoration_scores(np.stack([truth, truth]), np.stack([prediction, 30 - 4 * prediction]))
    np.testing.assert_allclose(psnrs, best)
    assert ssims[0] == pytest.approx(ssims[1])
    assert np.ptp(np.percentile(t, [0.1, 99.9])) == pytest.approx(1)


def test_error_map_is_signed_or_local_rmse():
    """Without a width the map is signed; with one it recovers the local standard deviation of the error."""
    rng = np.random.default_rng(3)
    truth = rng.random((100, 100))
    prediction = truth + np.where(np.arange(100) < 50, 0.1, 0.3) * rng.standard_normal((100, 100))
    np.testing.assert_array_equal(error_map(truth, prediction), prediction - truth)
    local = error_map(truth, prediction, width=8)
    assert local[50, 10] == pytest.approx(0.1, rel=0.15)
    assert local[50, 90] == pytest.approx(0.3, rel=0.15)


@pytest.mark.parametrize(("shape", "limit"), [((256, 256), 0.125), ((256, 200), 0.3), ((48, 64, 64), 0.2)])
def test_resolution_of_a_known_band_limit(shape, limit):
    """Two images share detail up to a frequency and have independent noise above: the resolution is that frequency."""
    shared = coloured_noise(lambda f: f <= limit, shape, 0)
    images = [shared + coloured_noise(lambda f: f > limit, shape, seed) for seed in (1, 2)]
    curve = fourier_correlation(*images, spacing=4.0)
    # The window mixes neighbouring rings.
    ring = curve.frequency[0]
    assert 1 / curve.resolution() == pytest.approx(limit / 4, abs=1.5 * ring)
    assert curve.correlation[curve.frequency < limit / 4 - 2 * ring].min() > 0.97
    assert np.abs(curve.correlation[curve.frequency > limit / 4 + 2 * ring]).mean() < 0.12


def test_resolution_thresholds_of_noisy_pairs_and_of_the_truth_agree():
    """The correlation is S / (S + N) between two noisy images, and the root of it against the truth.

    So a correlation of 1/7 between noisy images corresponds to 0.5 between their sum and the truth.
    """
    signal = [coloured_noise(lambda f: np.exp(-12 * f), (256, 256), seed) for seed in range(6)]
    noisy = [
        [s + 0.1 * coloured_noise(np.ones_like, (256, 256), 50 * i + k) for k in (10, 20)] for i, s in enumerate(signal)
    ]
    first, second = (np.stack([pair[k] for pair in noisy]) for k in (0, 1))
    between_noisy = fourier_correlation(first, second, planes=True)
    power = np.exp(-24 * between_noisy.frequency)
    np.testing.assert_allclose(between_noisy.correlation[4:], (power / (power + 0.01))[4:], atol=0.08)
    # A correlation of 1/7 means S / N = 1/6.
    assert 1 / between_noisy.resolution() == pytest.approx(np.log(6 / 0.01) / 24, rel=0.06)
    against_truth = fourier_correlation(np.stack(signal), first + second, planes=True)
    assert against_truth.resolution(0.5) == pytest.approx(between_noisy.resolution(1 / 7), rel=0.06)


def test_rings_count_every_coefficient_once():
    """Counts over rings up to the Nyquist frequency are those of the full transform."""
    for shape in ((16, 16), (15, 12), (8, 9, 10)):
        curve = fourier_correlation(*np.random.default_rng(0).random((2, *shape)))
        radius = np.rint(
            max(shape) * np.sqrt(sum(np.meshgrid(*(np.fft.fftfreq(n) ** 2 for n in shape), indexing="ij")))
        )
        assert curve.count.tolist() == [(radius == k).sum() for k in range(1, max(shape) // 2 + 1)]


def test_residuals_detect_invented_detail():
    """The truth explains the measurement; a truth with one more blob, or an image with the noise kept, does not."""
    rng = np.random.default_rng(4)
    truth = 0.2 + 0.6 * gaussian_filter(rng.random((256, 256)), 4) / 0.6
    scan = Degradation((Gaussian(0.1), Zoom(4)))
    low = scan(truth, 1)
    of_truth = residuals(low, *scan.moments(truth, 2))
    assert of_truth.spread == pytest.approx(1, abs=0.05)
    assert abs(of_truth.bias) < 0.06
    assert of_truth.beyond_3 < 0.01
    assert abs(of_truth.structure) < 0.06
    assert of_truth.worst < 4
    y, x = np.mgrid[:256, :256]
    invented = truth + 0.2 * np.exp(-((y - 100) ** 2 + (x - 60) ** 2) / (2 * 10**2))
    of_invented = residuals(low, *scan.moments(invented, 2))
    assert of_invented.worst > 6
    index = np.unravel_index(gaussian_filter(of_invented.map, 2).argmin(), of_invented.map.shape)
    np.testing.assert_allclose(index, (25, 15), atol=2)
    of_noise_kept = residuals(low, *scan.moments(np.kron(low, np.ones((4, 4))), 2))
    assert of_noise_kept.spread < 0.8


def test_residuals_reject_a_degradation_without_noise():
    """Residuals are in standard deviations of the noise, which is 0."""
    scan, truth = Degradation((Area(4),)), np.random.default_rng(0).random((64, 64))
    with pytest.raises(DataError, match="compare values"):
        residuals(scan(truth, 0), *scan.moments(truth, 0))


def test_residuals_hold_for_the_published_noise():
    """The truth explains a measurement whose noise depends on intensity and is clipped."""
    truth = np.clip(gaussian_filter(np.random.default_rng(5).random((3, 256, 256)), (0, 3, 3)) * 4 - 1.5, 0, 1)
    scan = PUBLISHED["em_AG_D_sameas_preprint"]
    result = residuals(scan(truth, 0), *scan.moments(truth, 1))
    assert result.spread == pytest.approx(1, abs=0.05)
    assert abs(result.bias) < 0.05


def test_image_scores_reject_invalid_input():
    """Errors for small planes, missing planes and a constant truth contain the numbers."""
    with pytest.raises(GridError, match=r"\(6, 40\).*7 pixels"):
        ssim(np.ones((6, 40)), np.ones((6, 40)))
    with pytest.raises(GridError, match=r"\(10, 10\).*11 pixels"):
        ms_ssim(np.ones((160, 160)), np.ones((160, 160)))
    with pytest.raises(GridError, match=r"\(9,\)"):
        restoration_scores(np.ones(9), np.ones(9))
    with pytest.raises(GridError, match=r"\(2, 2, 8, 8\).*planes=True"):
        fourier_correlation(np.ones((2, 2, 8, 8)), np.ones((2, 2, 8, 8)))
    with pytest.raises(DataError, match=r"truth is 0\.3 everywhere"):
        normalize_for_scoring(np.full((9, 9), 0.3), np.eye(9))
    with pytest.raises(GridError, match="squares of 8"):
        residuals(np.ones((4, 9)), np.ones((4, 9)), np.ones((4, 9)))
