import pytest
import torch

from mrhdata.synthesis import FREESURFER, PRIORS, SynthesisConfig
from mrhdata.synthesis.contrast import draw_contrast
from mrhdata.synthesis.draws import Draws


def means(width, seeds=range(300), **changes):
    """Means (seeds, classes) of many samples."""
    config = SynthesisConfig(black_air_probability=1.0, **changes)
    return torch.stack([draw_contrast(FREESURFER, config, width, Draws(seed)).means for seed in seeds])


@pytest.mark.parametrize("modality", PRIORS)
def test_a_width_of_zero_draws_from_the_prior(modality):
    """Mean and deviation over samples are those of the tissue."""
    drawn = means(0.0, modalities=(modality,))
    for index, tissue in enumerate(FREESURFER.class_tissues):
        prior = PRIORS[modality][tissue]
        if prior.mean > 2 * prior.deviation:
            assert float(drawn[:, index].mean()) == pytest.approx(prior.mean, abs=4 * prior.deviation / 300**0.5 + 1e-6)
            assert float(drawn[:, index].std()) == pytest.approx(prior.deviation, rel=0.15, abs=1e-6)


def test_a_width_of_one_is_uniform():
    """Means fill the range evenly, and classes do not correlate."""
    drawn = means(1.0, tissue_probability=0.0, merge_probability=0.0)[:, 1:]
    low, high = SynthesisConfig().means
    assert low <= float(drawn.min()) <= float(drawn.max()) <= high
    assert float(drawn.mean()) == pytest.approx((low + high) / 2, abs=0.01)
    assert float(drawn.std()) == pytest.approx((high - low) / 12**0.5, rel=0.03)
    correlation = torch.corrcoef(drawn.T).fill_diagonal_(0)
    assert float(correlation.abs().max()) < 0.25


def test_the_width_grows_gradually():
    """Distances from the prior are proportional to the width."""
    options = {"seeds": range(20), "merge_probability": 0.0}
    start = means(0.0, **options)
    half, whole = ((means(width, **options) - start).abs().mean() for width in (0.5, 1.0))
    assert float(half / whole) == pytest.approx(0.5, abs=0.01)


def test_nuclei_of_tissue_like_contrasts_lie_near_cortex_and_white_matter():
    """The thalamus correlates with both; in other contrasts with neither."""
    names = FREESURFER.class_names
    thalamus, cortex, white = (names.index(n) for n in ("thalamus", "cerebral cortex", "cerebral white matter"))

    def correlation(probability):
        drawn = means(1.0, tissue_probability=probability, merge_probability=0.0)
        between = (drawn[:, cortex] + drawn[:, white]) / 2
        return float(torch.corrcoef(torch.stack([drawn[:, thalamus], between]))[0, 1])

    assert correlation(1.0) > 0.7
    assert abs(correlation(0.0)) < 0.2


def test_merged_classes_share_their_mean():
    """A share of 0.5 leaves fewer different means."""
    options = {"tissue_probability": 0.0, "merge_share": (0.5, 0.5), "seeds": range(20)}
    counts = [len(row.unique()) for row in means(1.0, merge_probability=1.0, **options)]
    plain = [len(row.unique()) for row in means(1.0, merge_probability=0.0, **options)]
    assert sum(counts) < 0.85 * sum(plain)
