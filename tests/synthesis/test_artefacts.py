import math

import numpy as np
import pytest
import torch

from mrhdata.synthesis import SynthesisConfig, artefacts
from mrhdata.synthesis.draws import Draws
from mrhdata.synthesis.grids import Grids
from mrhdata.synthesis.resolution import acquire

MM = (1.0, 1.0, 1.0)


def step(size=32):
    """An image of two halves, 0 and 1, along each axis."""
    half = (torch.arange(size) >= size // 2).float()
    return half[:, None, None] * half[:, None] * half


def test_bias_is_smooth_and_positive():
    """Its logarithm has about the drawn deviation, and neighbours are nearly equal."""
    config = SynthesisConfig.exact(bias=0.5, bias_node_mm=(30.0, 30.0))
    fields = torch.stack([artefacts.add_bias(torch.ones(32, 32, 32), MM, config, Draws(n)).log() for n in range(40)])
    # Deviations are uniform up to 0.5: their root mean square is 0.5 / sqrt(3).
    assert float(fields.std()) == pytest.approx(0.5 / math.sqrt(3), rel=0.3)
    assert float(fields.diff(dim=1).abs().max()) < 0.15


@pytest.mark.parametrize("rician", [0.0, 1.0])
def test_noise_has_its_deviation(rician):
    """Gaussian noise has mean 0; the Rician mean of black air is the deviation times the root of pi / 2."""
    config = SynthesisConfig.exact(noise=0.1, rician_probability=rician)
    draws = Draws(1)
    deviation = 0.1 * Draws(1).uniform((0.0, 1.0)) ** 2
    noisy = artefacts.add_noise(torch.full((32, 32, 32), 0.0 if rician else 0.5), MM, config, draws)
    if rician:
        assert float(noisy.min()) >= 0
        assert float(noisy.mean()) == pytest.approx(deviation * math.sqrt(math.pi / 2), rel=0.02)
    else:
        assert float(noisy.std()) == pytest.approx(deviation, rel=0.02)


def test_gaussian_noise_is_not_negative():
    """Black air has half of a normal distribution."""
    noisy = artefacts.add_noise(torch.zeros(32, 32, 32), MM, SynthesisConfig.exact(noise=0.1), Draws(1))
    assert float(noisy.min()) == 0
    assert float((noisy == 0).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_correlated_noise_keeps_its_deviation():
    """Neighbours correlate."""
    config = SynthesisConfig.exact(noise=0.1, correlated_probability=1.0, correlation_mm=(1.0, 1.0))
    noisy = artefacts.add_noise(torch.full((32, 32, 32), 0.5), MM, config, Draws(1))
    assert float(noisy.std()) == pytest.approx(0.1 * Draws(1).uniform((0.0, 1.0)) ** 2, rel=0.02)
    assert np.corrcoef(noisy[1:].flatten(), noisy[:-1].flatten())[0, 1] > 0.6


def test_ringing_overshoots_next_to_edges():
    """By about 9 % of the step (Gibbs), and by less far from the edge."""
    config = SynthesisConfig.exact(ringing_probability=1.0, ringing_share=(0.4, 0.4))
    ringing = artefacts.add_ringing(step(64), config, Draws(0)) - step(64)
    assert 0.05 < float(ringing.abs().amax()) < 0.6
    assert float((step(64) + ringing).max()) == pytest.approx(1.09, abs=0.03)
    assert float(ringing.sum()) == pytest.approx(0, abs=0.05)


def test_motion_without_movement_is_the_identity():
    """All places are the same; with movement the sum of the image hardly changes."""
    image = torch.nn.functional.pad(torch.rand(20, 20, 20), [6] * 6)
    still = artefacts.add_motion(image, MM, SynthesisConfig.exact(motion_probability=1.0), Draws(0))
    torch.testing.assert_close(still, image, atol=1e-5, rtol=0)
    config = SynthesisConfig.exact(motion_probability=1.0, motion_mm=3.0)
    moved = artefacts.add_motion(image, MM, config, Draws(0))
    assert float((moved - image).abs().max()) > 0.05
    assert float(moved.sum()) == pytest.approx(float(image.sum()), rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_thick_slices_keep_a_ramp(seed):
    """Profiles are symmetric and interpolation is linear, so a ramp stays a ramp away from the edge."""
    ramp = torch.arange(60.0)
    image = ramp[:, None, None] + ramp[:, None] + ramp
    config = SynthesisConfig.exact(slice_probability=1.0, slice_mm=(2.0, 7.0), slice_fill=(0.7, 1.0))
    result = acquire(image, Grids((60, 60, 60), MM, (1, 1, 1)), config, Draws(seed))
    inner = (slice(14, -14),) * 3
    torch.testing.assert_close(result[inner], image[inner], atol=0.6, rtol=0)


def test_thick_slices_smooth_one_axis_only():
    """Differences across slices shrink; those within a slice stay."""
    image = torch.rand(42, 42, 42)
    config = SynthesisConfig.exact(slice_probability=1.0, slice_mm=(6.0, 6.0), slice_fill=(1.0, 1.0))
    result = acquire(image, Grids((42, 42, 42), MM, (1, 1, 1)), config, Draws(0))
    roughness = [float(result.diff(dim=axis).std() / image.diff(dim=axis).std()) for axis in range(3)]
    assert sorted(roughness)[0] < 0.15 < 0.25 < sorted(roughness)[1]


def test_slices_thinner_than_the_output_change_nothing():
    """Distances of 1 mm at an output of 1 mm, and of 1 mm at 3 mm."""
    image = torch.rand(9, 9, 9)
    config = SynthesisConfig.exact(slice_probability=1.0, slice_mm=(1.0, 1.0))
    assert torch.equal(acquire(image, Grids((9, 9, 9), MM, (1, 1, 1)), config, Draws(0)), image)
    assert torch.equal(acquire(image, Grids((9, 9, 9), (3.0, 3.0, 3.0), (1, 1, 1)), config, Draws(0)), image)
