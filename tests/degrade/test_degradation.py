"""Degradation steps against their formulas, equal results for NumPy, Dask and torch, and fits to known pairs."""

import dask.array as da
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from mrhdata.degrade import (
    PUBLISHED,
    Area,
    Between,
    Blur,
    Charging,
    Clip,
    Degradation,
    Gain,
    Gaussian,
    IntensityGaussian,
    KeepMax,
    LineShift,
    Points,
    Poisson,
    SaltPepper,
    Speckle,
    Stretch,
    Triangle,
    Zoom,
    fit_degradation,
    scan_speedup,
)
from mrhdata.errors import DataError, GridError


def smooth_image(shape=(128, 128), seed=0, width=2):
    """Return smooth random values from 0.2 to 0.8."""
    values = gaussian_filter(np.random.default_rng(seed).random(shape), (0,) * (len(shape) - 2) + (width, width))
    return 0.2 + 0.6 * (values - values.min()) / np.ptp(values)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_degradations_repeat_and_differ_by_seed_and_plane(name):
    """The size is a quarter; the same seed repeats, another seed or plane has other noise."""
    image = np.stack([smooth_image()] * 2)
    low = PUBLISHED[name](image, 3)
    assert low.shape == ((2, 128, 128) if name in ("micro_crappify", "speckle_crap") else (2, 32, 32))
    np.testing.assert_array_equal(low, PUBLISHED[name](image, 3))
    is_random = name not in ("em_downsampleonly", "fluo_downsampleonly", "no_crap", "pssr2_blur")
    assert is_random == (not np.array_equal(low[0], low[1]))
    assert is_random == (not np.array_equal(low, PUBLISHED[name](image, 4)))


def test_published_em_degradation_agrees_with_its_formula():
    """Noise of variance 0.05 G3(x), clipping and zoom of order 1, with the same random numbers."""
    x = smooth_image()
    noise = np.random.default_rng((7, 0)).standard_normal(x.shape)
    noisy = np.clip(x + np.sqrt(0.05 * gaussian_filter(x, 3, mode="nearest")) * noise, 0, 1)
    np.testing.assert_allclose(PUBLISHED["em_AG_D_sameas_preprint"](x, 7), zoom(noisy, 0.25, order=1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_numpy_dask_and_torch_give_the_same_result(dtype):
    """The dtype is kept, and Dask chunks do not change the result."""
    image = (smooth_image((2, 3, 64, 64)) * (1 if dtype == np.float32 else np.iinfo(dtype).max)).astype(dtype)
    scan = PUBLISHED["em_AG_D_sameas_preprint"]
    low = scan(image, 5)
    assert low.dtype == dtype
    np.testing.assert_array_equal(scan(image, np.array([5])), low)
    for chunks in ((1, 2, 64, 64), (2, 3, 10, 20)):
        lazy = scan(da.from_array(image, chunks=chunks), 5)
        assert (lazy.shape, lazy.dtype) == (low.shape, low.dtype)
        np.testing.assert_array_equal(lazy.compute(scheduler="threads"), low)
    if dtype != np.uint16:
        tensor = scan(torch.from_numpy(image), 5)
        assert torch.equal(tensor, torch.from_numpy(low))


def test_noise_steps_have_the_variance_of_their_formulas():
    """Every noise step on flat grey has the expected mean and variance."""
    rng, grey = np.random.default_rng(0), np.full((400, 400), 0.4)
    expected = {
        Gaussian(0.1): 0.01,
        IntensityGaussian(0.05, 0.002, width=3): 0.022,
        Poisson(100): 0.4 / 100,
        Poisson(100, mix=0.5): 0.1 / 100,
        Speckle(0.1): 0.0016,
        # 0.5 % of the pixels are white and 0.5 % black.
        SaltPepper(0.005, 0.005): 0.005 * 0.6**2 + 0.005 * 0.4**2,
    }
    for step, variance in expected.items():
        noisy = step(grey, rng)
        assert noisy.var() == pytest.approx(variance, rel=0.06), step
        assert noisy.mean() == pytest.approx(0.4, abs=0.003), step
    assert Poisson()(np.array([[0.0, 0.25, 0.5, 1.0]]), rng).ravel() % 0.25 == pytest.approx(0)


def test_deterministic_steps_by_hand():
    """Gain, clipping, stretch and the restored maximum agree with values computed by hand."""
    rng, x = np.random.default_rng(0), np.array([[-1.0, 0.5], [1.0, 3.0]])
    assert Gain(2, 0.5)(x, rng).tolist() == [[-1.5, 1.5], [2.5, 6.5]]
    assert Clip()(x, rng).tolist() == [[0, 0.5], [1, 1]]
    assert Stretch()(x, rng).tolist() == [[0, 0.375], [0.5, 1]]
    assert Stretch()(np.ones((2, 2)), rng).tolist() == [[0, 0], [0, 0]]
    assert KeepMax((Gain(0.1),))(x, rng) == pytest.approx(x)


def test_reductions_agree_with_their_definitions():
    """Area and Points agree with values computed by hand, Triangle with Pillow; only averaging reduces noise."""
    rng, x = np.random.default_rng(0), np.arange(64.0).reshape(8, 8)
    assert Area(4)(x, rng).tolist() == [[13.5, 17.5], [45.5, 49.5]]
    assert Points(4)(x, rng).tolist() == [[18, 22], [50, 54]]
    smooth = smooth_image((64, 48))
    pillow = Image.fromarray(smooth.astype(np.float32)).resize((12, 16), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(Triangle(4)(smooth, rng), np.asarray(pillow), atol=1e-6)
    noise = rng.standard_normal((512, 512))
    assert Area(4)(noise, rng).std() == pytest.approx(0.25, rel=0.03)
    assert Points(4)(noise, rng).std() == pytest.approx(1.0, rel=0.03)
    assert 0.6 < Zoom(4)(noise, rng).std() < 0.9
    # All reductions drop incomplete pixels at the end.
    assert {step(4)(np.ones((251, 255)), rng).shape for step in (Area, Points, Triangle, Zoom)} == {(62, 63)}


def test_zoom_has_no_black_last_row_and_column():
    """Zoom keeps the last row of 248 pixels, which SciPy's default mode loses; for other sizes both modes agree."""
    rng = np.random.default_rng(0)
    assert Zoom(4)(np.ones((248, 248)), rng).min() > 0.999
    scipy_default = Zoom(4, mode="constant")
    for size in (128, 250, 256, 512):
        np.testing.assert_allclose(scipy_default(np.eye(size), rng), Zoom(4)(np.eye(size), rng), atol=1e-9)


def test_line_shifts_are_independent_for_jitter_and_a_walk_for_drift():
    """A ramp along x measures the shift of each line."""
    ramp = np.tile(np.arange(400.0), (4000, 1))
    shift = {
        name: (step(ramp, np.random.default_rng(1)) - ramp)[:, 200]
        for name, step in (("jitter", LineShift(jitter=2.0)), ("drift", LineShift(drift=0.5)))
    }
    assert shift["jitter"].std() == pytest.approx(2, rel=0.05)
    assert abs(np.corrcoef(shift["jitter"][1:], shift["jitter"][:-1])[0, 1]) < 0.05
    assert np.diff(shift["drift"]).std() == pytest.approx(0.5, rel=0.05)
    assert np.corrcoef(shift["drift"][1:], shift["drift"][:-1])[0, 1] > 0.95


def test_charging_jumps_and_decays_along_some_lines():
    """The share of charged lines is the rate; along a line a jump decays exponentially."""
    stripes = Charging(0.3, rate=0.2, length=20)(np.zeros((3000, 300)), np.random.default_rng(2))
    charged = np.abs(stripes).max(axis=1) > 0
    assert charged.mean() == pytest.approx(0.2, abs=0.025)
    line = stripes[np.flatnonzero(charged)[0]]
    start = int(np.flatnonzero(line)[0])
    np.testing.assert_allclose(line[start + 1 :] / line[start:-1], np.exp(-1 / 20))


def test_between_is_drawn_uniformly_for_each_plane():
    """The noise levels of 300 planes cover the range evenly."""
    noisy = Degradation((Gaussian(Between(0.1, 0.3)),))(np.zeros((300, 40, 40)), 0)
    levels = noisy.std(axis=(1, 2))
    assert 0.09 < levels.min() < 0.12
    assert 0.28 < levels.max() < 0.32
    assert levels.mean() == pytest.approx(0.2, abs=0.01)


def test_moments_agree_with_the_noise_model():
    """For grey with intensity noise and Area(4), the mean is unchanged and the variance a sixteenth."""
    scan = Degradation((IntensityGaussian(0.05), Area(4)))
    mean, variance = scan.moments(np.full((1, 64, 64), 0.4), 0, draws=400)
    assert mean.mean() == pytest.approx(0.4, abs=1e-3)
    assert variance.mean() == pytest.approx(0.05 * 0.4 / 16, rel=0.02)
    mean_of_8_bits, _ = scan.moments(np.full((1, 64, 64), 102, np.uint8), 0, draws=400)
    np.testing.assert_allclose(mean_of_8_bits, mean * 255)
    with pytest.raises(DataError, match="got 1"):
        scan.moments(np.zeros((4, 4)), 0, draws=1)


@pytest.mark.parametrize("reduction", [Area, Points, Zoom])
def test_fit_degradation_recovers_known_parameters(reduction):
    """Kind, blur, contrast and noise are recovered from four pairs of 8 bits."""
    high = np.rint(255 * smooth_image((4, 256, 256), width=3)).astype(np.uint8)
    noise = IntensityGaussian(0.004, 0.0003)
    low = Degradation((Blur(1.5), reduction(4), Gain(0.8, 0.1), noise))(high, 1)
    fit = fit_degradation(low, high)
    assert (fit.kind, fit.factor) == (reduction.__name__.lower(), 4)
    assert fit.width == pytest.approx(1.5, abs=0.15)
    assert fit.gain == pytest.approx(0.8, abs=0.01)
    assert fit.offset == pytest.approx(0.1, abs=0.006)
    # The line over intensity is determined best in the middle of the range.
    assert fit.noise_offset + 0.5 * fit.noise_slope == pytest.approx(0.0023, rel=0.05)
    assert fit.noise_slope == pytest.approx(0.004, rel=0.25)
    # The fitted degradation differs from the low resolution only by independent noise.
    again = fit.degradation(high, 2)
    assert again.dtype == np.uint8
    difference = (again.astype(float) - low) / 255
    assert difference.var() == pytest.approx(2 * 0.0023, rel=0.1)


def test_misfits_of_indistinguishable_kinds_are_equal():
    """The triangle is identified on sharp images; after a blur it equals the area kind with a wider blur."""
    high = smooth_image((4, 256, 256), width=1)
    sharp = fit_degradation(Degradation((Triangle(4), Gaussian(0.01)))(high, 0), high)
    assert sharp.kind == "triangle"
    assert sharp.width < 0.6
    blurred = fit_degradation(Degradation((Blur(2.0), Triangle(4), Gaussian(0.01)))(high, 0), high)
    assert blurred.misfit["area"] == pytest.approx(blurred.misfit["triangle"], rel=0.01)


def test_scan_speedup_agrees_with_its_formula():
    """Line overhead and a longer dwell time reduce the speed-up below the ratio of pixels."""
    assert scan_speedup(16, 1000, 1.0, 0.0) == 16
    for share in (0.05, 0.1, 0.3):
        expected = 1 / ((1 - share) / 16 + share / 4)
        assert scan_speedup(16, 1000, 2.0, 2000 * share / (1 - share)) == pytest.approx(expected)
    assert scan_speedup(16, 1000, 1.0, 0.0, low_dwell_us=4.0) == 4
    with pytest.raises(DataError, match=r"pixel_ratio.*got 0\.5"):
        scan_speedup(0.5, 1000, 1.0, 0.0)


def test_degradations_and_fits_reject_invalid_images():
    """Errors for missing axes, shapes that do not pair, constants and NaN contain the numbers."""
    with pytest.raises(GridError, match=r"\(5,\)"):
        Degradation(())(np.zeros(5), 0)
    with pytest.raises(GridError, match=r"\(1, 16, 16\).*\(1, 60, 64\)"):
        fit_degradation(np.eye(16), np.ones((60, 64)))
    with pytest.raises(DataError, match="constant"):
        fit_degradation(np.ones((16, 16)), np.ones((64, 64)))
    with pytest.raises(DataError, match="finite"):
        fit_degradation(np.full((16, 16), np.nan), np.ones((64, 64)))
