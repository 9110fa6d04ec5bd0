"""Predicted Dice: its features, its model, its refusals, and the contrast in which a network is shown a volume."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from mrhdata import models
from mrhdata.errors import DataError, ModelError
from mrhdata.inference import segmenter
from mrhdata.inference.contrast import CONTRASTS, SAME, best_view, change_contrast
from mrhdata.inference.probabilities import TrunkModel
from mrhdata.inference.quality import (
    SegmentationQuality,
    coarse_labels,
    extent,
    label_features,
    quality_of,
    require_quality,
)
from mrhdata.models.quality import TERMS, QualityModel
from mrhdata.models.spec import IntensityScale
from mrhdata.volume.construct import from_array

LABELS = (0, 5, 9)
#: Weights of a model whose prediction is the symmetry.
SYMMETRY_ONLY = tuple(tuple(1.0 if term == 2 else 0.0 for term in range(TERMS)) for _ in LABELS[1:])


class Bright(torch.nn.Module):
    """A network with a trunk that knows T1w-like images: 5 from 0.3 to 0.7, 9 above, mean values of 2 x 2 x 2 voxels.

    Dark voxels on the left are noise for it: they get 5 or 9 by their place, so that its labels of a mirrored image
    differ.
    """

    ndim, in_channels, multiple = 3, 1, 2
    trunk_stride, trunk_channels, correction_reach = 2, 3, 0

    def trunk(self, x):
        y = torch.nn.functional.avg_pool3d(x, 2)
        place = torch.linspace(-1, 1, y.shape[-1], device=y.device).expand_as(y)
        return torch.cat([y, (y < 0.3) * (y > 0.1) * (place > 0), torch.ones_like(y)], 1).float()

    def answer(self, y):
        value, strange, _ = y[:, :1], y[:, 1:2], y[:, 2:]
        high = (value >= 0.7).float()
        middle = ((value >= 0.3) & (value < 0.7)).float()
        return 20 * torch.cat([1 - high - middle - strange, torch.maximum(middle, strange), high], 1)

    def scores(self, y, x):
        return torch.nn.functional.interpolate(self.answer(y), scale_factor=2)


def network(**changes):
    model = Bright().eval()
    one = IntensityScale((0.0,), (1.0,))
    model.spec = replace(
        models.create("half_unet3d").spec,
        name="bright",
        labels=LABELS,
        inputs=one,
        channels=("image",),
        patch=(8, 8, 8),
    )
    model.spec = replace(model.spec, **changes)
    return model


def image(inverted=False):
    """A cube of 9 in a larger one of 5, about the middle; inverted, 9 is dark."""
    values = np.zeros((16, 16, 16), np.float32)
    values[2:14, 2:14, 2:14] = 0.5
    values[4:12, 4:12, 4:12] = 0.9
    if inverted:
        values = np.where(values > 0, 1.08 - values, 0).astype(np.float32)
    return from_array(values, spacing=(1, 1, 2), name="image")


def trunk_of(model, volume):
    return TrunkModel(model, {"image": volume}, memory=10**9, device="cpu", precision="float32")


def features_of(trunk, values):
    return trunk.features(values), trunk.features(np.ascontiguousarray(values[..., ::-1]))


@pytest.fixture
def traced(monkeypatch):
    """The receptive field of the test's network, which cannot be traced layer by layer, is that of its pooling."""
    from mrhdata.inference import probabilities

    pool = torch.nn.Sequential(torch.nn.AvgPool3d(2), torch.nn.Conv3d(1, 3, 1))
    field = probabilities.receptive_field_of(pool, 1)
    monkeypatch.setattr(probabilities, "receptive_field_of", lambda *_: field)


def test_features_of_a_symmetric_volume(traced):
    trunk = trunk_of(network(), image())
    measured = label_features(trunk.network, *features_of(trunk, trunk.values))
    np.testing.assert_allclose(measured.symmetry, 1)
    np.testing.assert_allclose(measured.certainty, 1, atol=1e-3)
    np.testing.assert_array_equal(measured.voxels, [12**3 - 8**3, 8**3])
    np.testing.assert_array_equal(measured.extents, [12, 12, 12])


def test_features_of_a_volume_that_the_network_contradicts_itself_on(traced):
    """Half of it gets a label on one side only, so the mirrored labels lie elsewhere."""
    values = np.full((16, 16, 16), 0.2, np.float32)
    trunk = trunk_of(network(), from_array(values, spacing=(1, 1, 1), name="image"))
    measured = label_features(trunk.network, *features_of(trunk, trunk.values))
    np.testing.assert_array_equal(measured.symmetry, [0, 0])
    np.testing.assert_array_equal(measured.voxels, [16**3 / 2, 0])
    labels = coarse_labels(trunk.network, trunk.features(trunk.values))
    assert set(np.unique(labels)) == {0, 1}


def test_extent_leaves_out_single_voxels():
    masses = np.zeros(100)
    masses[20:60] = 50
    masses[99] = 1
    assert extent(masses) == 40
    assert extent(np.zeros(4)) == 0


def model_of(ranges=((1, 100),) * 3):
    return QualityModel(SYMMETRY_ONLY, ranges, 0.05)


def test_quality_is_in_mm_and_only_of_labels_with_voxels(traced):
    trunk = trunk_of(network(quality=model_of()), image())
    values = np.minimum(trunk.values, 0.5)
    quality = quality_of(trunk.network, *features_of(trunk, values), trunk.spacing_mm)
    assert quality.dice == {5: 1.0}
    assert quality.extents_mm == (12, 12, 24)
    assert quality.unusual == []


def test_the_contrast_with_the_highest_prediction_is_chosen(traced):
    """Inverted, the labels of the inverted volume are those of the volume."""
    model = network(quality=model_of(), contrasts=tuple(CONTRASTS))
    plain, turned = best_view(trunk_of(model, image())), best_view(trunk_of(model, image(inverted=True)))
    assert plain.contrast == SAME
    assert turned.contrast == "inverted"
    trunk = trunk_of(model, image())
    np.testing.assert_array_equal(
        coarse_labels(trunk.network, turned.features), coarse_labels(trunk.network, plain.features)
    )


@pytest.mark.parametrize("inverted", [False, True])
def test_an_alternative_labels_volumes_that_it_knows_better(traced, monkeypatch, inverted):
    """The network knows T1w-like images; the alternative, which knows all, is named where it labels."""
    other = network(quality=model_of(), contrasts=tuple(CONTRASTS))
    monkeypatch.setattr(segmenter, "load", {"all-contrasts": other}.__getitem__)
    model = network(quality=model_of(), alternatives=("all-contrasts",))
    labels = segmenter.segment(model, image(inverted), force=True)
    assert labels.attrs["quality"].get("network") == ("all-contrasts" if inverted else None)
    np.testing.assert_array_equal(labels, segmenter.segment(model, image(), force=True))


def test_an_alternative_with_other_labels_is_refused(traced, monkeypatch):
    """Else the numbers of labels would mean other structures in some volumes."""
    other = network(quality=model_of(), labels=(0, 5, 8))
    monkeypatch.setattr(segmenter, "load", lambda name: other)
    model = network(quality=model_of(), alternatives=("other",))
    with pytest.raises(ModelError, match="other must have the labels and preparation of bright"):
        segmenter.segment(model, image(inverted=True), force=True)


def test_contrasts_keep_air_and_the_range():
    values = np.linspace(0, 1, 1001, dtype=np.float32)
    for name in CONTRASTS:
        changed = change_contrast(values, name)
        assert changed.dtype == np.float32
        assert (changed[values <= 0.08] == values[values <= 0.08]).all()
        assert changed.min() >= 0
        assert changed.max() <= 1 + 1e-6
    with pytest.raises(ModelError, match="a contrast must be one of as it is, inverted"):
        change_contrast(values, "upside down")


def quality(dice, extents=(140, 170, 130)):
    return SegmentationQuality({5: dice}, 0.04, extents, ((120, 150), (150, 180), (110, 140)))


def test_low_predictions_are_refused_and_doubtful_ones_warned_of(caplog):
    names = {5: "putamen"}
    with caplog.at_level(logging.WARNING):
        require_quality(quality(0.9), names, force=False)
    assert not caplog.records
    require_quality(quality(0.5), names, force=False)
    assert "the predicted Dice of its labels is 0.50 (lowest: putamen 0.50). Look at the labels" in caplog.text
    with pytest.raises(
        DataError, match=r"of a kind that the network knows; .* is 0\.20 .*pass force=True \(--force\)$"
    ):
        require_quality(quality(0.2), names, force=False)
    require_quality(quality(0.2), names, force=True)
    assert "is 0.20" in caplog.text


def test_parts_of_a_brain_are_warned_of_and_other_sizes_refused(caplog):
    require_quality(quality(0.9, (140, 170, 65)), {}, force=False)
    assert "65 mm along x (110 to 140 mm)" in caplog.text
    with pytest.raises(DataError, match="must be of a kind that the network knows"):
        require_quality(quality(0.9, (8, 15, 11)), {}, force=False)


def test_model_predicts_dice_from_certainty_and_symmetry():
    """Labels of few volumes, or without voxels, get 0."""
    rng = np.random.default_rng(0)
    certainty, symmetry = rng.random((2, 60, 3))
    truth = 0.2 * certainty + 0.6 * symmetry * certainty
    truth[5:, 2], certainty[5:, 2] = np.nan, 0
    truth[0] = np.nan
    model = QualityModel.fit(certainty, symmetry, truth, [[10, 20, 30], [12, 18, 33]])
    assert model.error < 0.03
    assert model.extents_mm == ((10, 12), (18, 20), (30, 33))
    predicted = model.predict([0.9, 0.0, 0.9], [0.8, 0.0, 0.8])
    assert predicted[0] == pytest.approx(0.2 * 0.9 + 0.6 * 0.72, abs=0.05)
    assert predicted[1:].tolist() == [0, 0]
