import dataclasses

import pytest
import torch

from mrhdata.errors import ParameterError
from mrhdata.synthesis import SynthesisConfig

SHAPE = (24, 24, 24)
RANDOM = {"random_share": 1.0, "contrast_width": (1.0, 1.0)}
#: Option -> the other options that it needs, and two values that give different samples.
EFFECTS = {
    "rotation_degrees": ({}, 0.0, 30.0),
    "scaling": ({}, 0.0, 0.3),
    "shearing": ({}, 0.0, 0.3),
    "translation_mm": ({}, 0.0, 9.0),
    "elastic_mm": ({"elastic_node_mm": (12.0, 12.0)}, 0.0, 3.0),
    "elastic_node_mm": ({"elastic_mm": 3.0}, (8.0, 8.0), (30.0, 30.0)),
    "flip_probability": ({}, 0.0, 1.0),
    "swap_sides": ({"flip_probability": 1.0}, True, False),
    "brain_share": ({}, 0.0, 1.0),
    "neck_probability": ({"neck_mm": (0.0, 0.0)}, 0.0, 1.0),
    "neck_mm": ({"neck_probability": 1.0}, (0.0, 0.0), (9.0, 9.0)),
    "view_probability": ({"view_share": (0.5, 0.5)}, 0.0, 1.0),
    "view_share": ({"view_probability": 1.0}, (0.3, 0.3), (0.9, 0.9)),
    "partial_edge_probability": ({"view_probability": 1.0, "view_share": (0.5, 0.5)}, 0.0, 1.0),
    "random_share": ({"contrast_width": (1.0, 1.0)}, 0.0, 1.0),
    "contrast_width": ({"random_share": 1.0}, (0.0, 0.0), (1.0, 1.0)),
    "modalities": ({}, ("t1w",), ("t2w",)),
    "means": (RANDOM, (0.1, 0.2), (0.2, 0.9)),
    "spreads": (RANDOM | {"texture": (1.0, 1.0)}, (0.0, 0.0), (0.1, 0.1)),
    "tissue_probability": (RANDOM, 0.0, 1.0),
    "merge_probability": (RANDOM | {"merge_share": (0.9, 0.9)}, 0.0, 1.0),
    "merge_share": (RANDOM | {"merge_probability": 1.0}, (0.0, 0.0), (0.9, 0.9)),
    "cluster_probability": ({}, 0.0, 1.0),
    "cluster_offset": ({"cluster_probability": 1.0}, (0.0, 0.0), (2.0, 2.0)),
    "cluster_mm": ({"cluster_probability": 1.0}, (3.0, 3.0), (9.0, 9.0)),
    "variation": ({}, (0.0, 0.0), (1.0, 1.0)),
    "variation_mm": ({"variation": (1.0, 1.0)}, (6.0, 6.0), (20.0, 20.0)),
    "texture": ({}, (0.0, 0.0), (1.0, 1.0)),
    "partial_volume": ({}, (0.0, 0.0), (0.7, 0.7)),
    "smoothing_probability": ({}, 0.0, 1.0),
    "smoothing_mm": ({"smoothing_probability": 1.0}, (1.0, 1.0), (3.0, 3.0)),
    "surroundings": ({}, {"drawn": 1.0}, {"removed": 1.0}),
    "strip_margin_mm": ({"surroundings": {"removed": 1.0}}, (-2.0, -2.0), (3.0, 3.0)),
    "strip_smoothness_mm": ({"surroundings": {"removed": 1.0}}, (1.0, 1.0), (4.0, 4.0)),
    "strip_roughness_mm": ({"surroundings": {"removed": 1.0}}, 0.0, 2.0),
    "black_air_probability": (RANDOM | {"brain_share": 0.0, "translation_mm": 16.0}, 0.0, 1.0),
    "bias": ({}, 0.0, 0.5),
    "bias_node_mm": ({"bias": 0.5}, (20.0, 20.0), (90.0, 90.0)),
    "gamma": ({}, 0.0, 0.5),
    "noise": ({}, 0.0, 0.1),
    "rician_probability": ({"noise": 0.3}, 0.0, 1.0),
    "correlated_probability": ({"noise": 0.1}, 0.0, 1.0),
    "correlation_mm": ({"noise": 0.1, "correlated_probability": 1.0}, (0.6, 0.6), (1.5, 1.5)),
    "motion_probability": ({}, 0.0, 1.0),
    "motion_mm": ({"motion_probability": 1.0}, 0.0, 3.0),
    "ringing_probability": ({}, 0.0, 1.0),
    "ringing_share": ({"ringing_probability": 1.0}, (0.3, 0.3), (0.8, 0.8)),
    "slice_probability": ({}, 0.0, 1.0),
    "slice_mm": ({"slice_probability": 1.0}, (2.0, 2.0), (6.0, 6.0)),
    "coarse_probability": ({}, 0.0, 1.0),
    "coarse_mm": ({"coarse_probability": 1.0}, (1.5, 1.5), (3.0, 3.0)),
    "slice_fill": ({"slice_probability": 1.0, "slice_mm": (6.0, 6.0)}, (0.3, 0.3), (1.0, 1.0)),
    "nearest_probability": ({"slice_probability": 1.0, "slice_mm": (5.0, 5.0)}, 0.0, 1.0),
}
#: Ranges that the plain config sets to 0, and the options here need.
NEEDED = {
    "slice_mm": (3.0, 3.0),
    "coarse_mm": (2.0, 2.0),
    "strip_smoothness_mm": (2.0, 2.0),
}
GEOMETRY = {
    *("rotation_degrees", "scaling", "shearing", "translation_mm", "elastic_mm", "elastic_node_mm", "swap_sides"),
    *("brain_share", "neck_probability", "neck_mm", "view_probability", "view_share", "partial_edge_probability"),
}
#: Options that change where the image shows anything, and with it the labels.
REMOVAL = {"surroundings", "strip_margin_mm", "strip_smoothness_mm", "strip_roughness_mm", "flip_probability"}


def test_every_option_is_tested():
    """A new option needs a row."""
    assert {f.name for f in dataclasses.fields(SynthesisConfig)} == set(EFFECTS)


@pytest.mark.parametrize("name", EFFECTS)
def test_an_option_has_an_effect(synthesizer_of, name):
    """Two values give different samples; only those of the geometry and of stripping change labels."""
    needs, one, other = EFFECTS[name]
    base = NEEDED | needs
    samples = [
        [synthesizer_of(**(base | {name: value})).sample(seed, SHAPE) for seed in range(8)] for value in (one, other)
    ]
    images, labels = ([not torch.equal(a[k], b[k]) for a, b in zip(*samples, strict=True)] for k in range(2))
    assert any(labels) if name in GEOMETRY else any(images)
    if name not in GEOMETRY | REMOVAL:
        assert not any(labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"means": (0.9, 0.1)}, r"means must be a range \(low, high\); got \(0.9, 0.1\). Put the smaller number first"),
        ({"means": (0.9,)}, "means must be a range"),
        ({"means": (0.1, float("nan"))}, "means must be a range"),
        ({"noise": -0.1}, "noise must be 0 or more; got -0.1. Pass"),
        ({"noise": float("inf")}, "noise must be 0 or more; got inf"),
        ({"contrast_width": (0.0, 1.5)}, "contrast_width must be from 0 to 1; got 1.5"),
        ({"random_share": 1.5}, "random_share must be from 0 to 1; got 1.5"),
        ({"merge_probability": 2}, "merge_probability must be from 0 to 1; got 2"),
        ({"modalities": ("t1",)}, "modalities must be one of .*; got 't1'"),
        ({"modalities": ()}, "modalities must be one of"),
        ({"surroundings": {"gone": 1.0}}, "surroundings must be one of drawn, merged, removed; got 'gone'"),
        ({"surroundings": {"drawn": 0.0}}, "surroundings must have a share above 0"),
    ],
)
def test_bad_options(changes, message):
    """Each message has the expected value, the actual one and the remedy."""
    with pytest.raises(ParameterError, match=message):
        SynthesisConfig(**changes)


def test_eased_artefacts():
    """Strengths and probabilities of artefacts are multiplied; geometry and contrasts stay."""
    config, eased = SynthesisConfig(), SynthesisConfig().eased(0.5)
    changed = {f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(eased, f.name)}
    assert eased.noise == config.noise / 2
    assert eased.variation == (0.0, config.variation[1] / 2)
    assert not changed & (GEOMETRY - {"view_probability"} | {"random_share", "modalities", "means", "surroundings"})
    assert {"bias", "gamma", "slice_probability", "coarse_probability", "cluster_probability"} <= changed
    assert config.eased(1.0) == config


def test_scaled_lengths():
    """Lengths are multiplied; angles and probabilities stay."""
    config = SynthesisConfig().scaled(0.5)
    assert config.translation_mm == 4.0
    assert config.slice_mm == (0.5, 3.5)
    assert config.rotation_degrees == 15.0
    assert config.partial_volume == SynthesisConfig().partial_volume
