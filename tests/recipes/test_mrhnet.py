"""MRH-Net's recipe: published places of patches, and transfer to another stain."""

import dataclasses

import numpy as np
import pytest
import torch

import mrhdata
from mrhdata.errors import GridError, ModelError
from mrhdata.recipes import mrhnet
from mrhdata.volume.construct import from_array

FEW = dataclasses.replace(mrhnet.TRANSFER, epochs=2, batch_size=16, weight_decay=0.5)


def volumes():
    """Histology in bytes with dark and missing places, FA with one slice of many fibres, and a mask."""
    rng = np.random.default_rng(0)
    shape = (41, 5, 50)
    histology = np.where(rng.random(shape) < 0.4, rng.integers(0, 40, shape), 0).astype(np.float32)
    histology[:, 0] = rng.integers(0, 8, shape[::2])
    histology[24, 3, 9] = np.nan
    fa = rng.random(shape).astype(np.float32) * 0.41
    fa[:, 2] = rng.random(shape[::2]) * 0.9
    mask = (rng.random(shape) < 0.8).astype(np.uint8)
    return [from_array(v, spacing=(0.1, 0.1, 0.1)) for v in (histology, fa, mask)]


def by_the_published_loop(histology, fa, mask):
    """The published rule in plain loops, over centres, as it is written down."""
    found = []
    for y in range(histology.shape[1]):
        stride = 6 if (fa[:, y] > 0.4).sum() > 1000 else 8
        for z in range(1, histology.shape[0] - 1, stride):
            for x in range(1, histology.shape[2] - 1, stride):
                patch = histology[z - 1 : z + 2, y, x - 1 : x + 2]
                if np.isnan(patch).any() or patch.sum() < 30 or (patch != 0).sum() < 4 or not mask[z, y, x]:
                    continue
                found.append((z - 1, y, x - 1))
    return found


def test_published_positions_are_those_of_the_published_loop():
    """Both strides occur, each rule drops some, and the positions are what patches takes."""
    histology, fa, mask = volumes()
    got = mrhnet.published_positions(histology, fa, mask)
    expected = by_the_published_loop(histology.values, fa.values, mask.values)
    assert sorted(map(tuple, got.tolist())) == sorted(expected)
    assert {6, 12} & set(got[got[:, 1] == 2][:, 0].tolist())
    assert not (got[got[:, 1] != 2] % 8)[:, [0, 2]].any()
    everything = from_array(np.ones(mask.shape), spacing=(0.1, 0.1, 0.1))
    assert len(mrhnet.published_positions(histology, fa, everything)) > len(got)
    assert len(mrhnet.published_positions(histology, fa, mask, white=100)) > len(got)
    taken = mrhdata.patches(fa, histology, shape=mrhnet.PATCH, plane="coronal", sampler=got)
    assert len(taken) == len(got)


def test_published_positions_need_one_grid():
    """A mask of another grid is refused."""
    histology, fa, mask = volumes()
    with pytest.raises(GridError):
        mrhnet.published_positions(histology, fa, mask.isel(z=slice(1, None)))


def linear(inputs, target, weights, offset):
    """Patches of a stain that is linear in the trained network's inputs."""
    stain = target.copy(data=(offset + sum(w * v.values for w, v in zip(weights, inputs.values(), strict=True))))
    cut = [slice(0, 6), slice(7, 10)]
    return [
        mrhdata.patches(
            {k: v.isel(y=c) for k, v in inputs.items()}, stain.isel(y=c), shape=3, stride=2, plane="coronal"
        )
        for c in cut
    ]


def layers(model):
    """Name of each layer and its parameters as one vector."""
    found = {}
    for name, value in model.named_parameters():
        found.setdefault(name.rpartition(".")[0], []).append(value.detach().flatten().clone())
    return {name: torch.cat(values) for name, values in found.items()}


def test_transfer_replaces_two_layers_and_keeps_the_input_scales(trained):
    """All other weights are the same; the given network is untouched; the new target has its own scale."""
    model, _, inputs, target = trained
    before = layers(model)
    ready = mrhnet.transfer(model, seed=3)
    changed = {name for name, values in layers(ready).items() if not torch.equal(values, before[name])}
    assert changed == {"conv4", "conv5"}
    train, held = linear({k: 5 + 3 * v for k, v in inputs.items()}, target, (1.0, 2.0), -7.0)
    mrhdata.fit(ready, train, held, FEW, progress=False)
    assert ready.spec.inputs == model.spec.inputs
    assert ready.spec.target != model.spec.target
    assert ready.spec.target.offset[0] == pytest.approx(-7 + 3 * (5 + 1.5), rel=0.02)
    assert all(torch.equal(values, before[name]) for name, values in layers(model).items())
    again, other = mrhnet.transfer(model, seed=3), mrhnet.transfer(model, seed=4)
    assert torch.equal(again.conv4.weight, mrhnet.transfer(model, seed=3).conv4.weight)
    assert not torch.equal(again.conv4.weight, other.conv4.weight)


@pytest.mark.parametrize("freeze", [False, True])
def test_what_transfer_trains(trained, freeze):
    """All layers, or (the paper's version) the last three convolutions and no other, whatever the weight decay."""
    model, _, inputs, target = trained
    ready = mrhnet.transfer(model)
    before = layers(ready)
    settings = mrhnet.frozen(FEW, blocks=1) if freeze else FEW
    mrhdata.fit(ready, *linear(inputs, target, (1.0, 2.0), 0.0), settings, progress=False)
    changed = {name for name, values in layers(ready).items() if not torch.equal(values, before[name])}
    assert changed == ({"conv_loop2.0", "conv4", "conv5"} if freeze else set(before))
    assert all(p.requires_grad for p in ready.parameters())


def test_what_cannot_be_transferred(trained):
    """A network that was not trained; patches of other channels than the scales that it keeps."""
    model, _, inputs, target = trained
    with pytest.raises(ModelError, match="takes a trained mrhnet"):
        mrhnet.transfer(mrhdata.models.create("mrhnet", in_channels=2, loop_blocks=1))
    train, held = linear(dict(reversed(inputs.items())), target, (1.0, 2.0), 0.0)
    with pytest.raises(ModelError, match="keeps the input scales of"):
        mrhdata.fit(mrhnet.transfer(model), train, held, FEW, progress=False)
