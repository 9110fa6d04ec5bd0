import numpy as np
import pytest
import torch
from scipy import ndimage

from mrhdata.synthesis import FREESURFER, SynthesisConfig
from mrhdata.synthesis.contrast import draw_contrast
from mrhdata.synthesis.draws import Draws
from mrhdata.synthesis.surroundings import draw_brain, draw_way, merge


def ball(radius=12.0, size=48):
    at = torch.arange(size) - (size - 1) / 2
    return (at[:, None, None] ** 2 + at[:, None] ** 2 + at**2) < radius**2


@pytest.mark.parametrize("margin", [-2.0, 0.0, 3.0])
def test_the_edge_lies_at_its_margin(margin):
    """The radius of a ball changes by the margin, up to its curvature."""
    config = SynthesisConfig.exact(strip_margin_mm=(margin, margin), strip_smoothness_mm=(1.5, 1.5))
    kept = draw_brain(ball(), (1.0, 1.0, 1.0), config, Draws(0))
    radius = (float(kept.sum()) * 3 / (4 * np.pi)) ** (1 / 3)
    assert radius == pytest.approx(12 + margin, abs=0.6)


def test_margins_are_millimetres():
    """Voxels of 2 mm: the same ball on half as many."""
    config = SynthesisConfig.exact(strip_margin_mm=(4.0, 4.0), strip_smoothness_mm=(3.0, 3.0))
    kept = draw_brain(ball(8.0, 32), (2.0, 2.0, 2.0), config, Draws(0))
    radius = 2 * (float(kept.sum()) * 3 / (4 * np.pi)) ** (1 / 3)
    assert radius == pytest.approx(20, abs=1)


def test_holes_are_closed():
    """A hole of 3 voxels within the brain is kept."""
    brain = ball()
    brain[23:26, 23:26, 23:26] = False
    config = SynthesisConfig.exact(strip_smoothness_mm=(3.0, 3.0))
    assert bool(draw_brain(brain, (1.0, 1.0, 1.0), config, Draws(0))[24, 24, 24])
    plain = draw_brain(brain, (1.0, 1.0, 1.0), SynthesisConfig.exact(), Draws(0))
    assert torch.equal(plain, brain)


def test_removed_surroundings_are_black(labels, synthesizer_of):
    """Outside of the edge there is nothing; brain voxels away from it keep their values."""
    options = {"strip_margin_mm": (1.0, 1.0), "strip_smoothness_mm": (1.0, 1.0), "modalities": ("t1w",)}
    whole = {"shape": (48, 48, 48), "position": (0, 0, 0)}
    image, _ = synthesizer_of(surroundings={"removed": 1.0}, **options).sample(0, **whole)
    brain = np.isin(labels, (3, 42, 2, 41, 12, 51))
    far = ndimage.distance_transform_edt(~brain) > 3
    assert float(image[0][torch.from_numpy(far)].max()) == 0
    assert float(image[0][torch.from_numpy(brain)].min()) > 0


def test_patches_without_brain_keep_their_surroundings(synthesizer_of):
    """A patch of skin and bone is not empty."""
    synthesizer = synthesizer_of(surroundings={"removed": 1.0})
    image, labels = synthesizer.sample(0, (4, 20, 20), position=(5, 10, 10))
    assert set(labels.unique().tolist()) == {511, 515}
    assert float(image.std()) > 0


def test_labels_depend_only_on_what_is_removed(synthesizer_of):
    """Tissue that is removed becomes background; other surroundings do not change labels."""
    samples = {
        way: synthesizer_of(surroundings={way: 1.0}).sample(0, (40, 40, 40)) for way in ("drawn", "merged", "removed")
    }
    drawn, removed = samples["drawn"][1], samples["removed"][1]
    assert torch.equal(drawn, samples["merged"][1])
    black = samples["removed"][0][0] == 0
    assert bool((removed[black] == 0).all())
    kept = removed != 0
    assert bool(kept.any())
    assert torch.equal(removed[kept], drawn[kept])
    assert bool((drawn[~kept] != 0).any())


def test_merged_surroundings_have_three_values():
    """One of them is air; the brain keeps its own."""
    config = SynthesisConfig()
    contrast = draw_contrast(FREESURFER, config, 1.0, Draws(0))
    merged = merge(contrast, FREESURFER, Draws(1))
    inside = FREESURFER.class_in_brain
    assert torch.equal(merged.means[inside], contrast.means[inside])
    assert len(merged.means[~inside].unique()) == 3
    assert float(merged.means[0]) == float(contrast.means[0])


def test_shares_of_ways():
    """Frequencies follow the shares, which need not sum to 1."""
    config = SynthesisConfig(surroundings={"drawn": 3.0, "removed": 1.0})
    ways = [draw_way(config, Draws(seed)) for seed in range(400)]
    assert ways.count("removed") / 400 == pytest.approx(0.25, abs=0.06)
    assert "merged" not in ways
