"""Recipe of MRH-Net: positions of the published patches, and transfer to another stain."""

import dataclasses

import numpy as np
import pytest
import torch

import mrhdata
from mrhdata.errors import GridError, ModelError
from mrhdata.recipes import mrhnet
from mrhdata.volume.construct import from_array

SHORT_TRANSFER = dataclasses.replace(mrhnet.TRANSFER, epochs=2, batch_size=16, weight_decay=0.5)


def volumes():
    """Return histology in bytes with dark and missing voxels, FA with many fibres in one slice, and a mask."""
    rng = np.random.default_rng(0)
    shape = (41, 5, 50)
    histology = np.where(rng.random(shape) < 0.4, rng.integers(0, 40, shape), 0).astype(np.float32)
    histology[:, 0] = rng.integers(0, 8, shape[::2])
    histology[24, 3, 9] = np.nan
    fa = rng.random(shape).astype(np.float32) * 0.41
    fa[:, 2] = rng.random(shape[::2]) * 0.9
    mask = (rng.random(shape) < 0.8).astype(np.uint8)
    return [from_array(v, spacing=(0.1, 0.1, 0.1)) for v in (histology, fa, mask)]


def positions_by_published_loop(histology, fa, mask):
    """Apply the published rule in plain loops over centres."""
    positions = []
    for y in range(histology.shape[1]):
        stride = 6 if (fa[:, y] > 0.4).sum() > 1000 else 8
        for z in range(1, histology.shape[0] - 1, stride):
            for x in range(1, histology.shape[2] - 1, stride):
                patch = histology[z - 1 : z + 2, y, x - 1 : x + 2]
                if np.isnan(patch).any() or patch.sum() < 30 or (patch != 0).sum() < 4 or not mask[z, y, x]:
                    continue
                positions.append((z - 1, y, x - 1))
    return positions


def test_published_positions_match_the_published_loop():
    """Both strides occur, each rule drops some positions, and `patches` accepts the positions."""
    histology, fa, mask = volumes()
    positions = mrhnet.published_positions(histology, fa, mask)
    expected = positions_by_published_loop(histology.values, fa.values, mask.values)
    assert sorted(map(tuple, positions.tolist())) == sorted(expected)
    assert {6, 12} & set(positions[positions[:, 1] == 2][:, 0].tolist())
    assert not (positions[positions[:, 1] != 2] % 8)[:, [0, 2]].any()
    everything = from_array(np.ones(mask.shape), spacing=(0.1, 0.1, 0.1))
    assert len(mrhnet.published_positions(histology, fa, everything)) > len(positions)
    assert len(mrhnet.published_positions(histology, fa, mask, white=100)) > len(positions)
    dataset = mrhdata.patches(fa, histology, shape=mrhnet.PATCH, plane="coronal", sampler=positions)
    assert len(dataset) == len(positions)


def test_published_positions_require_one_grid():
    """A mask on another grid raises GridError."""
    histology, fa, mask = volumes()
    with pytest.raises(GridError):
        mrhnet.published_positions(histology, fa, mask.isel(z=slice(1, None)))


def linear_stain_patches(inputs, target, weights, offset):
    """Return training and validation patches of a stain that is linear in the inputs."""
    stain = target.copy(data=(offset + sum(w * v.values for w, v in zip(weights, inputs.values(), strict=True))))
    cut = [slice(0, 6), slice(7, 10)]
    return [
        mrhdata.patches(
            {k: v.isel(y=c) for k, v in inputs.items()}, stain.isel(y=c), shape=3, stride=2, plane="coronal"
        )
        for c in cut
    ]


def layer_parameters(model):
    """Return the parameters of each layer as one vector."""
    by_layer = {}
    for name, value in model.named_parameters():
        by_layer.setdefault(name.rpartition(".")[0], []).append(value.detach().flatten().clone())
    return {name: torch.cat(values) for name, values in by_layer.items()}


def test_transfer_replaces_two_layers_and_keeps_the_input_scales(trained):
    """All other weights are equal, the trained network is unchanged, and the new target has its own scale."""
    model, _, inputs, target = trained
    before = layer_parameters(model)
    copy = mrhnet.transfer(model, seed=3)
    changed = {name for name, values in layer_parameters(copy).items() if not torch.equal(values, before[name])}
    assert changed == {"conv4", "conv5"}
    train, validation = linear_stain_patches({k: 5 + 3 * v for k, v in inputs.items()}, target, (1.0, 2.0), -7.0)
    mrhdata.fit(copy, train, validation, SHORT_TRANSFER, progress=False)
    assert copy.spec.inputs == model.spec.inputs
    assert copy.spec.target != model.spec.target
    assert copy.spec.target.offset[0] == pytest.approx(-7 + 3 * (5 + 1.5), rel=0.02)
    assert all(torch.equal(values, before[name]) for name, values in layer_parameters(model).items())
    again, other = mrhnet.transfer(model, seed=3), mrhnet.transfer(model, seed=4)
    assert torch.equal(again.conv4.weight, mrhnet.transfer(model, seed=3).conv4.weight)
    assert not torch.equal(again.conv4.weight, other.conv4.weight)


@pytest.mark.parametrize("freeze", [False, True])
def test_fit_after_transfer_changes_all_or_the_last_three_layers(trained, freeze):
    """Fitting changes all layers, or with `frozen` (as in the paper) only the last three, despite weight decay."""
    model, _, inputs, target = trained
    copy = mrhnet.transfer(model)
    before = layer_parameters(copy)
    settings = mrhnet.frozen(SHORT_TRANSFER, blocks=1) if freeze else SHORT_TRANSFER
    mrhdata.fit(copy, *linear_stain_patches(inputs, target, (1.0, 2.0), 0.0), settings, progress=False)
    changed = {name for name, values in layer_parameters(copy).items() if not torch.equal(values, before[name])}
    assert changed == ({"conv_loop2.0", "conv4", "conv5"} if freeze else set(before))
    assert all(p.requires_grad for p in copy.parameters())


def test_transfer_refuses_untrained_networks_and_other_channels(trained):
    """An untrained network, and patches whose channels differ from the stored scales, raise ModelError."""
    model, _, inputs, target = trained
    with pytest.raises(ModelError, match="must be a trained mrhnet"):
        mrhnet.transfer(mrhdata.models.create("mrhnet", in_channels=2, loop_blocks=1))
    train, validation = linear_stain_patches(dict(reversed(inputs.items())), target, (1.0, 2.0), 0.0)
    with pytest.raises(ModelError, match="keeps the input scales of"):
        mrhdata.fit(mrhnet.transfer(model), train, validation, SHORT_TRANSFER, progress=False)
