"""Probabilities that are computed from a trunk equal those of one pass, and labels are right on any grid."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mrhdata import models
from mrhdata.inference.labelling import most_probable
from mrhdata.inference.probabilities import StoredProbabilities, TrunkModel
from mrhdata.inference.segmenter import segment
from mrhdata.models.spec import IntensityScale
from mrhdata.registration.resampling import resample
from mrhdata.volume.box import Box
from mrhdata.volume.construct import from_array
from mrhdata.volume.grid import Grid

LABELS = (0, 4, 9, 200)


def half_unet(widths=(4, 8)):
    """A network with a trunk, whose head also corrects."""
    model = models.create("half_unet3d", seed=1, classes=len(LABELS), widths=widths)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.fine.weight.normal_(generator=generator)
    scale = IntensityScale((0.5,), (0.25,))
    target = IntensityScale((0.0,) * len(LABELS), (1.0,) * len(LABELS))
    model.spec = replace(
        model.spec, channels=("image",), inputs=scale, target=target, labels=LABELS, patch=(48, 48, 48)
    )
    return model.eval()


def image(shape, seed=0):
    values = np.random.default_rng(seed).random(shape).astype(np.float32)
    return from_array(values, spacing=(1, 1, 1), name="image")


def one_pass(model, volume):
    """Return the probabilities (C, z, y, x) of the whole volume, which is padded with 0 as the network needs."""
    starts = [max(0, m - n) // 2 for n, m in zip(volume.shape, model.spec.patch, strict=True)]
    sizes = [
        max(-(-n // model.multiple) * model.multiple, m) for n, m in zip(volume.shape, model.spec.patch, strict=True)
    ]
    padded = np.zeros(sizes, np.float32)
    inside = tuple(slice(a, a + n) for a, n in zip(starts, volume.shape, strict=True))
    padded[inside] = volume.values
    with torch.inference_mode():
        scores = model((torch.from_numpy(padded) - 0.5)[None, None] / 0.25)[0]
    return scores[:, *inside].softmax(0).numpy()


def computed(model, volume, memory):
    trunk = TrunkModel(model, {"image": volume}, memory=memory, device="cpu", precision="float32")
    return trunk.probabilities(trunk.values, trunk.features(trunk.values))


@pytest.mark.parametrize("memory", [100_000, 100_000_000])
def test_probabilities_of_a_trunk_equal_one_pass(memory):
    """Also where the trunk runs in pieces, for odd and short lengths, and for boxes at borders and within."""
    model, volume = half_unet(), image((37, 50, 61))
    expected, probabilities = one_pass(model, volume), computed(model, volume, memory)
    assert probabilities.grid.same_as(volume.mrh.grid)
    for box in (Box((0, 0, 0), volume.shape), Box((3, 10, 5), (4, 17, 40)), Box((30, 41, 60), volume.shape)):
        np.testing.assert_allclose(probabilities.read(box), expected[:, *box.slices], atol=2e-5)


def test_labels_of_a_trunk_equal_one_pass():
    model, volume = half_unet(), image((40, 33, 50), seed=2)
    labels = segment(model, volume, progress=False)
    np.testing.assert_array_equal(labels, np.array(LABELS)[one_pass(model, volume).argmax(0)])
    assert len(np.unique(labels)) == len(LABELS)
    assert labels.dtype == np.uint8


def stored(shape=(20, 24, 28), seed=3):
    """Smooth probabilities of four labels."""
    coarse = np.random.default_rng(seed).random((len(LABELS), 4, 5, 6)).astype(np.float32)
    values = torch.nn.functional.interpolate(torch.from_numpy(coarse)[None], shape, mode="trilinear")[0].softmax(0)
    return from_array(values.numpy(), spacing=(1, 1, 1))


def by_resampling(volume, like):
    """Return the most probable labels after resampling each channel; outside the first label is sure."""
    channels = [
        resample(volume.isel(c=i), like, fill=float(i == 0), antialias=False).values for i in range(len(LABELS))
    ]
    return np.array(LABELS)[np.argmax(channels, axis=0)]


def test_labels_follow_flips_crops_and_finer_and_oblique_grids():
    volume = stored()
    probabilities, plain = StoredProbabilities(volume), volume.isel(c=0, drop=True)
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    oblique = plain.mrh.grid.affine.copy()
    oblique[:3, :3] = turn @ oblique[:3, :3]
    likes = [
        plain,
        plain.isel(z=slice(None, None, -1), x=slice(None, None, -1)),
        plain.isel(z=slice(3, -1), y=slice(2, 20, 2)),
        resample(plain, spacing_mm=(0.7, 1.3, 0.4)),
        resample(plain, Grid((25, 20, 30), oblique)),
    ]
    for like in likes:
        labels = most_probable(probabilities, like, LABELS)
        assert labels.mrh.grid.same_as(like.mrh.grid)
        # Interpolation in float32 decides ties differently.
        assert (labels.values != by_resampling(volume, like)).mean() < 1e-3
    assert (most_probable(probabilities, likes[4], LABELS).values == LABELS[0]).any()
    exact = np.array(LABELS)[volume.values.argmax(0)]
    np.testing.assert_array_equal(most_probable(probabilities, likes[1], LABELS), exact[::-1, :, ::-1])


def test_labels_of_a_slice_have_its_axes():
    volume = stored((1, 24, 28))
    plane = volume.isel(c=0, drop=True).isel(z=0)
    labels = most_probable(StoredProbabilities(volume), plane, LABELS)
    assert labels.dims == ("y", "x")
    np.testing.assert_array_equal(labels, np.array(LABELS)[volume.values.argmax(0)[0]])
