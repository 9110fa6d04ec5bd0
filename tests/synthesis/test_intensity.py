import pytest
import torch

from mrhdata.synthesis import SynthesisConfig
from mrhdata.synthesis.contrast import Contrast
from mrhdata.synthesis.draws import Draws
from mrhdata.synthesis.grids import Grids
from mrhdata.synthesis.intensity import paint, scale

SHAPE = (32, 32, 32)
GRIDS = Grids(SHAPE, (1.0, 1.0, 1.0), (1, 1, 1))


def two_classes():
    return (torch.arange(32) >= 16).to(torch.uint8).expand(SHAPE)


def contrast(spread=0.05):
    return Contrast(torch.tensor([0.2, 0.8]), torch.tensor([spread, 0.0]), 0.0)


def test_classes_have_their_means():
    """Nothing but the table."""
    image = paint(two_classes(), contrast(), GRIDS, SynthesisConfig.exact(), Draws(0))
    assert torch.equal(image, torch.tensor([0.2, 0.8])[two_classes().int()])


def test_borders_are_mixed():
    """A blur of 0.7 voxels: the two voxels at the border lie between the means, others do not."""
    config = SynthesisConfig.exact(partial_volume=(0.7, 0.7))
    line = paint(two_classes(), contrast(), GRIDS, config, Draws(0))[0, 0]
    assert 0.25 < float(line[15]) < 0.5 < float(line[16]) < 0.75
    torch.testing.assert_close(line[:11], torch.full((11,), 0.2), atol=1e-4, rtol=0)


def test_texture_has_the_spread_of_its_class():
    """Only the first class has one."""
    config = SynthesisConfig.exact(texture=(1.0, 1.0))
    image = paint(two_classes(), contrast(0.05), GRIDS, config, Draws(0))
    assert float(image[..., :16].std()) == pytest.approx(0.05, rel=0.05)
    assert float(image[..., 16:].diff(dim=0).abs().max()) == 0


def test_clusters_are_three_connected_values():
    """Within a class; most neighbours have the same."""
    config = SynthesisConfig.exact(cluster_probability=1.0, cluster_offset=(1.0, 1.0), cluster_mm=(8.0, 8.0))
    image = paint(two_classes(), contrast(), GRIDS, config, Draws(0))[..., :16]
    values, counts = image.unique(return_counts=True)
    assert len(values) == 3
    assert float(counts.min() / counts.sum()) > 0.1
    assert float((image[1:] == image[:-1]).float().mean()) > 0.75


def test_variation_is_smooth():
    """Neighbours are nearly equal, distant voxels are not."""
    config = SynthesisConfig.exact(variation=(1.0, 1.0), variation_mm=(12.0, 12.0))
    image = paint(two_classes(), contrast(), GRIDS, config, Draws(0))[..., :16]
    assert float(image.diff(dim=0).abs().max()) < 0.03 < float(image.std())


def test_scale_uses_the_whole_range():
    """Quantiles of 0.5 % and 99.8 % become 0 and 1."""
    image = torch.randn(40, 40, 40, generator=torch.Generator().manual_seed(0)) * 30 + 100
    scaled = scale(image, SynthesisConfig.exact(), Draws(0))
    assert float((scaled == 0).float().mean()) == pytest.approx(0.005, abs=0.002)
    assert float((scaled == 1).float().mean()) == pytest.approx(0.002, abs=0.002)


def test_gamma_keeps_the_order():
    """A power of values from 0 to 1, whose logarithm has the deviation of the config."""
    ramp = torch.linspace(0, 1, 1000).reshape(10, 10, 10)
    config = SynthesisConfig.exact(gamma=0.3)
    exponents = []
    for seed in range(200):
        scaled = scale(ramp, config, Draws(seed)).flatten()
        assert bool((scaled.diff() >= 0).all())
        plain = scale(ramp, SynthesisConfig.exact(), Draws(seed)).flatten()
        exponents.append(float((scaled[500].log() / plain[500].log()).log()))
    assert float(torch.tensor(exponents).std()) == pytest.approx(0.3, rel=0.15)


def test_a_constant_image_is_black():
    """The range of its values is empty, and nothing is divided by it."""
    assert float(scale(torch.full((4, 4, 4), 0.7), SynthesisConfig(), Draws(0)).abs().max()) == 0
