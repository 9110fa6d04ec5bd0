"""Profiles of training volumes: boxes of the same kind are near, others are far, and reasons name the difference."""

import numpy as np
import pytest

from mrhdata.errors import ModelError
from mrhdata.models.profile import BOX_EDGE, FEATURES, InputProfile, box_starts, features_of
from mrhdata.models.spec import IntensityScale, ModelSpec, spec_from


def boxes(seed, number=60, channels=1):
    """Return smooth boxes with a little noise."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(-1, 1, 8)
    smooth = ramp[:, None, None] + rng.normal(0, 0.3, (number, channels, 1, 8, 8)).mean((3, 4), keepdims=True)
    return smooth + rng.normal(0, 0.1, (number, channels, 8, 8, 8))


@pytest.fixture(scope="module")
def profile():
    return InputProfile.measure(boxes(0), np.repeat(np.arange(3), 20))


def test_boxes_of_another_subject_are_familiar(profile):
    assert (profile.distances(boxes(1)) > profile.limit).mean() < 0.05


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda b: b + 2, "mean"),
        (lambda b: 3 * b, "deviation"),
        (lambda b: b + np.random.default_rng(0).normal(0, 1, b.shape), "roughness along y"),
        (lambda b: b.swapaxes(2, 4), "roughness along x"),
        (lambda b: np.round(b), "repeated values"),
        (lambda b: np.exp(3 * b), "skewness"),
    ],
)
def test_changed_boxes_are_unfamiliar(profile, change, name):
    """The difference is among the first reasons."""
    other = change(boxes(1))
    assert (profile.distances(other) > profile.limit).mean() > 0.9
    assert name in [row[0] for row in profile.differences(other)[:4]]


def test_a_channel_is_named():
    """The second of two channels differs."""
    both = boxes(0, channels=2)
    other = boxes(1, channels=2)
    other[:, 1] += 5
    name, channel, value, known = InputProfile.measure(both).differences(other)[0]
    assert (name, channel) == ("mean", 1)
    assert value > known + 3


def test_constant_and_broken_boxes_are_left_out():
    """A box without variation, and one with NaN, have no features; few boxes have no profile."""
    some = boxes(0, 4)
    some[0], some[1, 0, 0, 0, 0] = 3, np.nan
    assert features_of(some).shape == (2, len(FEATURES))
    assert features_of(some[:1]).shape == (0, len(FEATURES))
    assert InputProfile.measure(boxes(0, 31)) is None


@pytest.mark.parametrize("shape", [(64, 64, 64), (5, 300, 300), (1, 16, 16), (30, 500, 40)])
def test_boxes_are_spread_over_a_volume(shape):
    """They lie within it, are no more than wanted, and reach both ends of an axis that they fill."""
    edges = np.minimum(shape, BOX_EDGE)
    starts = box_starts(shape, edges)
    assert 1 <= len(starts) <= 64
    assert (starts >= 0).all()
    assert (starts + edges <= shape).all()
    assert len(np.unique(starts, axis=0)) == len(starts)


def test_spec_keeps_the_profile(profile):
    """As JSON has it, with lists for tuples."""
    import json
    from dataclasses import asdict

    spec = ModelSpec("unet3d", inputs=IntensityScale((0.0,), (1.0,)), profile=profile)
    assert spec_from(json.loads(json.dumps(asdict(spec)))).profile == profile


@pytest.mark.parametrize(
    "change",
    [
        {"boxes": [[1.0]]},
        {"boxes": []},
        {"deviation": [0.0] * len(FEATURES)},
        {"limit": "far"},
        {"box": [8, 8]},
    ],
)
def test_a_damaged_profile_is_refused(profile, change):
    from dataclasses import asdict

    content = {"name": "unet3d", "profile": asdict(profile) | change}
    with pytest.raises(ModelError, match="profile of a network must be a mapping"):
        spec_from(content)
