import numpy as np
import pytest
import torch
from scipy import fft, ndimage

from mrhdata.synthesis import axes
from mrhdata.synthesis.draws import Draws


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("channels", [(), (2,)])
def test_products_along_an_axis(axis, channels):
    """The same as a tensor product of NumPy."""
    image, matrix = torch.rand(*channels, 3, 4, 5), torch.rand(6, 3 + axis)
    expected = np.moveaxis(np.tensordot(matrix, image, (1, len(channels) + axis)), 0, len(channels) + axis)
    np.testing.assert_allclose(axes.apply(image, matrix, axis), expected, rtol=1e-5)


def test_blur_equals_scipy_away_from_the_edge():
    """Standard deviations of 1 and 2 voxels; constants stay constant up to the edge."""
    image = torch.rand(40, 40, 40)
    expected = ndimage.gaussian_filter(image.numpy(), (1, 0, 2), truncate=8)
    inner = (slice(16, -16),) * 3
    np.testing.assert_allclose(axes.blur(image, (1, 0, 2))[inner], expected[inner], atol=1e-5)
    assert torch.allclose(axes.blur(torch.ones(5, 6, 7), (1, 2, 3)), torch.ones(5, 6, 7))


@pytest.mark.parametrize("box", [True, False])
def test_profiles_have_their_width(box):
    """The variance of a profile is that of a box, or of a Gaussian of the same width at half maximum."""
    weights = axes.slices(101, torch.tensor([50.0]), 9.0, box=box)[0].double()
    at = torch.arange(101).double() - 50
    variance = 9**2 / 12 if box else (9 / axes.FWHM) ** 2
    assert float(weights.sum()) == pytest.approx(1)
    assert float((weights * at**2).sum()) == pytest.approx(variance, rel=0.02)


def test_interpolation_equals_numpy():
    """Between voxels, on them, and beyond the edge."""
    values, positions = np.random.default_rng(0).random(9), np.linspace(-2, 11, 50)
    matrix = axes.linear(9, torch.from_numpy(positions)).numpy()
    np.testing.assert_allclose(matrix @ values, np.interp(positions, np.arange(9), values), atol=1e-6)
    nearest = axes.nearest(9, torch.from_numpy(positions)).numpy()
    np.testing.assert_allclose(nearest @ values, values[np.clip(np.rint(positions), 0, 8).astype(int)], atol=1e-6)


@pytest.mark.parametrize(("size", "node"), [(1, 4.0), (2, 1.0), (64, 7.3), (5, 40.0)])
def test_splines_sum_to_one(size, node):
    """A field of equal nodes is constant."""
    assert torch.allclose(axes.spline(size, node).sum(1), torch.ones(size), atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 31, 64])
def test_cosines_equal_scipy(size):
    """The orthonormal transform, whose product with all weights 1 is the identity."""
    expected = fft.dct(np.eye(size), axis=0, norm="ortho")
    np.testing.assert_allclose(axes.cosines(size), expected, atol=1e-6)
    np.testing.assert_allclose(axes.keep_frequencies(torch.ones(size)), np.eye(size), atol=1e-5)


def test_smooth_fields_have_deviation_one_and_their_wavelength():
    """Over many fields; neighbours are nearly equal, and voxels two nodes apart hardly correlate."""
    fields = torch.stack([axes.smooth_field((24, 24, 24), (6, 6, 6), Draws(seed))[0] for seed in range(60)])
    assert float(fields.mean()) == pytest.approx(0, abs=0.05)
    assert float(fields.std()) == pytest.approx(1, abs=0.05)
    assert float((fields[:, 1:] * fields[:, :-1]).mean()) > 0.95
    assert abs(float((fields[:, 18:] * fields[:, :-18]).mean())) < 0.1
