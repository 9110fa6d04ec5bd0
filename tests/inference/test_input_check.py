"""Inputs that resemble those of training, and inputs that do not."""

import numpy as np
import pytest

import mrhdata
from mrhdata.inference.input_check import check_inputs
from mrhdata.models.spec import IntensityScale, ModelSpec
from mrhdata.volume.construct import from_array

SPEC = ModelSpec(
    "mrhnet", channels=("a", "b"), spacing_mm=(0.2, 0.2, 0.2), inputs=IntensityScale((100.0, 5.0), (20.0, 1.0))
)


def volume(mean, sd, spacing=0.2, seed=0):
    """A volume of normal noise."""
    data = np.random.default_rng(seed).normal(mean, sd, (24, 24, 24)).astype(np.float32)
    return mrhdata.volume.from_array(data, spacing=(spacing,) * 3)


def test_similar_inputs_have_no_reasons():
    """Another brain, 1.5 times as bright, with an empty border; and networks that preprocess, or have no scales."""
    brain = volume(150, 30)
    brain[:, :, :12] = 0
    assert check_inputs(SPEC, {"a": brain, "b": volume(5, 1)}) == []
    prepared = ModelSpec("unet3d", inputs=IntensityScale((0.0,), (1.0,)), prepare=(("normalise", {}),))
    assert check_inputs(prepared, {"a": volume(1e6, 1)}) == []
    assert check_inputs(ModelSpec("untrained"), {"a": brain}) == []


@pytest.mark.parametrize(
    ("a", "b", "starts"),
    [
        (volume(100, 20, 0.4), volume(5, 1, 0.4), ["a has voxels of 0.4", "b has voxels of 0.4"]),
        (volume(0.1, 0.02), volume(5, 1), ["a goes from"]),
        (volume(100, 20), volume(5, 0.1), ["b goes from"]),
        (volume(100, 20), volume(100, 20), ["b goes from"]),
    ],
)
def test_different_inputs_are_named(a, b, starts):
    """Another spacing, unit or contrast, and swapped channels."""
    reasons = check_inputs(SPEC, {"a": a, "b": b})
    assert [reason.startswith(s) for reason, s in zip(reasons, starts, strict=True)] == [True] * len(starts)


def test_channels_of_one_volume_have_their_own_scales():
    """Offsets follow the channels, not the volumes."""
    both = np.stack([volume(100, 20).values, volume(5, 1).values])
    stack = mrhdata.volume.from_array(both, dims=("c", "z", "y", "x"), spacing=(0.2,) * 3)
    assert check_inputs(SPEC, {"a": stack}) == []
    assert len(check_inputs(SPEC, {"a": stack.isel(c=[1, 0])})) == 2


def test_channels_in_another_order_are_not_compared():
    """Prediction refuses them anyway."""
    rng = np.random.default_rng(0)
    spec = ModelSpec("mrhnet", channels=("a", "b"), inputs=IntensityScale((0.0, 100.0), (1.0, 1.0)))
    a, b = (from_array(rng.normal(m, 1, (20, 20, 20)), spacing=(1, 1, 1)) for m in (0, 100))
    assert check_inputs(spec, {"a": a, "b": b}) == []
    assert check_inputs(spec, {"b": b, "a": a}) == []
    assert len(check_inputs(spec, {"a": b, "b": a})) == 2
