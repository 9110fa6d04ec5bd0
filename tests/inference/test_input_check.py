"""Inputs that resemble those of training, and inputs that do not."""

import numpy as np
import pytest
from scipy import ndimage

import mrhdata
from mrhdata.errors import DataError, GridError
from mrhdata.inference.input_check import check_geometry, check_inputs
from mrhdata.models.spec import IntensityScale, ModelSpec
from mrhdata.training import TrainingConfig
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


def textured(seed=0, change=lambda values: values):
    """Return a volume of smooth blobs on noise, after a change of its values."""
    rng = np.random.default_rng(seed)
    blobs = ndimage.gaussian_filter(rng.normal(0, 1, (32, 64, 64)), 3) * 20
    return from_array(change(blobs + rng.normal(0, 0.2, blobs.shape)).astype(np.float32), spacing=(1, 1, 1), name="t1w")


@pytest.fixture(scope="module")
def trained():
    """A network that learned from two textured volumes."""
    subjects = [mrhdata.patches(textured(seed), textured(seed), shape=8, stride=8) for seed in range(2)]
    model = mrhdata.models.create("unet3d", widths=(2, 4), classes=1)
    mrhdata.fit(model, *subjects, TrainingConfig(epochs=1, batch_size=8), progress=False)
    return model


def test_a_volume_of_the_same_kind_is_predicted(trained, caplog):
    predicted = mrhdata.predict(trained, textured(5), progress=False)
    assert "resemble" not in caplog.text
    assert predicted.attrs["unfamiliar"] < 0.25


@pytest.mark.parametrize(
    "change",
    [
        lambda values: 1000 * values,
        lambda values: np.round(values / 2),
        lambda values: np.random.default_rng(0).normal(0, 1, values.shape),
        np.zeros_like,
    ],
    ids=["unit", "labels", "noise", "empty"],
)
def test_a_volume_of_another_kind_is_refused(trained, change, tmp_path, caplog):
    """Nothing is written; with force there is a warning."""
    volume, out = textured(5, change), tmp_path / "map.zarr"
    with pytest.raises(DataError, match=r"t1w must resemble the volumes .* force=True"):
        mrhdata.predict(trained, volume, out, progress=False)
    assert not any(tmp_path.iterdir())
    with caplog.at_level("WARNING", "mrhdata"):
        predicted = mrhdata.predict(trained, volume, out, force=True, progress=False)
    assert predicted.attrs["unfamiliar"] >= 0.5
    assert "t1w must resemble the volumes" in caplog.text


def test_half_a_volume_is_a_warning(trained, caplog):
    """A third of the boxes is noise."""
    mixed = textured(5)
    mixed.values[:, :, 52:] = np.random.default_rng(0).normal(0, 9, mixed.values[:, :, 52:].shape)
    with caplog.at_level("WARNING", "mrhdata"):
        mrhdata.predict(trained, mixed, progress=False)
    assert "sampled boxes do not" in caplog.text


def test_a_prepared_volume_is_compared_too():
    """Preparation makes scales alike, not noise; the network of the phantom head refuses noise, and reads the head."""
    network = mrhdata.models.load("phantom-tissue")
    noise = from_array(
        np.random.default_rng(0).normal(100, 20, (8, 96, 96)).astype(np.float32), spacing=(2, 2, 2), name="t1w"
    )
    with pytest.raises(DataError, match="t1w must resemble"):
        mrhdata.segment(network, noise, progress=False)
    labels = mrhdata.segment(network, noise, force=True, progress=False)
    assert set(np.unique(labels)) <= {0, 1, 2, 3}
    assert labels.attrs["unfamiliar"] >= 0.5


@pytest.mark.parametrize("name", ["phantom-tissue", "phantom-nuclei"])
def test_networks_of_phantoms_refuse_a_real_head(shared, name):
    head = mrhdata.read(shared / "human-t1-whole" / "bet.nii.gz")
    with pytest.raises(DataError, match="must resemble the volumes that the network"):
        mrhdata.segment(mrhdata.models.load(name), head, progress=False)


def test_a_volume_in_a_wrong_unit_is_refused_before_it_is_resampled():
    """100 um that count as 100 mm would be resampled to a million times as many voxels."""
    values = np.zeros((80, 90, 100), np.uint8)
    spec = ModelSpec("unet", prepare=(("upright", {"spacing_mm": [1.0, 1.0, 1.0]}),))
    check_geometry(spec, {"t1w": from_array(values, spacing=(1, 1, 1))})
    with pytest.raises(
        GridError, match=r"t1w must be at most 3 m long; got 10 m, with voxels of 100 x 100 x 100 mm\. "
    ):
        check_geometry(spec, {"t1w": from_array(values, spacing=(100, 100, 100))})
