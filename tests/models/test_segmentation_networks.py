"""Segmentation networks: published parameter counts, and equal labels for patches and whole volumes."""

import numpy as np
import pytest
import torch
from torch import nn

from mrhdata import models
from mrhdata.errors import ModelError
from mrhdata.models.receptive_field import receptive_field_of

COUNTS = {"0_0": 71_987, "1_0": 192_211, "2_0": 199_219, "3_0": 21_043, "4_0": 532_435}


def parameters(model, kinds=nn.Module):
    """Return the number of parameters of all layers of some kinds."""
    return sum(
        p.numel() for m in model.modules() if isinstance(m, kinds) for p in m.parameters(recurse=kinds is nn.Module)
    )


@pytest.mark.parametrize("variant", COUNTS)
def test_tissue_networks_have_the_published_parameters(variant):
    """Counts are those of the slides for three classes; the published names are aliases."""
    model = models.create(f"model_{variant}", classes=3)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[variant]
    assert model.spec.name == f"tissue2d_{variant}"


@pytest.mark.parametrize(
    ("name", "convolutions", "field"), [("fcn3d", 781_036, (19, 19, 19)), ("fcn3d_aniso", 912_436, (7, 19, 19))]
)
def test_deep_grey_networks_have_the_published_convolutions(name, convolutions, field):
    """Counts are those of eleven classes; PReLU slopes are per channel here, so their count differs."""
    model = models.create(name).eval()
    count = sum(p.numel() for m in model.modules() if isinstance(m, nn.Conv3d) for p in m.parameters())
    assert count == convolutions
    assert receptive_field_of(model, model.in_channels).lengths == field


@pytest.mark.parametrize(("name", "patch"), [("fcn3d", (21, 27, 27)), ("fcn3d_aniso", (9, 27, 27))])
def test_published_patch_has_the_published_output_shape(name, patch):
    """The output of both networks is (3, 9, 9)."""
    model = models.create(name).eval()
    assert model(torch.zeros(1, model.in_channels, *patch)).shape == (1, 11, 3, 9, 9)


@pytest.mark.parametrize("name", ["fcn3d", "fcn3d_aniso"])
def test_larger_box_gives_the_same_output_as_its_patches(name):
    """Training on larger boxes optimises the same function."""
    model = models.create(name, seed=1).eval()
    z, y, x = model.margin
    box = torch.randn(1, model.in_channels, 2 * z + 4, 2 * y + 3, 2 * x + 5)
    with torch.inference_mode():
        whole = model(box)
        part = model(box[:, :, 1 : 2 * z + 4, 1 : 2 * y + 2, 2 : 2 * x + 4])
    torch.testing.assert_close(whole[:, :, 1:4, 1:2, 2:4], part, rtol=1e-4, atol=1e-4)


def test_replicated_border_gives_an_output_for_every_voxel():
    """Away from the border the output is that of valid convolutions."""
    valid = models.create("fcn3d", seed=2).eval()
    whole = models.create("fcn3d", border="replicate").eval()
    whole.load_state_dict(valid.state_dict())
    box = torch.randn(1, 1, 20, 21, 22)
    with torch.inference_mode():
        full, inner = whole(box), valid(box)
    assert full.shape[2:] == box.shape[2:]
    torch.testing.assert_close(full[:, :, 9:-9, 9:-9, 9:-9], inner, rtol=1e-4, atol=1e-4)


def test_deep_supervision_returns_several_levels_during_training():
    """The finest level is first; in evaluation mode there is one output."""
    model = models.create("unet3d", widths=(4, 8, 12, 16), supervision=True, classes=3)
    x = torch.randn(2, 1, 16, 16, 16)
    levels = model(x)
    assert [tuple(level.shape) for level in levels] == [(2, 3, 16, 16, 16), (2, 3, 8, 8, 8)]
    assert model.eval()(x).shape == (2, 3, 16, 16, 16)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("tissue2d", {"kernel": 4}),
        ("tissue2d", {"widths": (4, 4), "dilations": (1,)}),
        ("tissue2d", {"activation": "swish"}),
        ("unet3d", {"strides": (2,)}),
        ("fcn3d", {"border": "zeros"}),
    ],
)
def test_invalid_settings_raise_a_model_error(name, config):
    """Kernels are even, lengths differ, or names are unknown."""
    with pytest.raises(ModelError):
        models.create(name, **config)


def test_tissue_network_with_other_widths_kernel_dilation_dropout_and_activation():
    """The receptive field shows that the dilations are used."""
    model = models.create(
        "tissue2d", widths=(3, 5), kernel=5, dilations=(1, 2), dropout=0.1, activation="elu", classes=4
    )
    assert receptive_field_of(model.eval(), 1).lengths == (13, 13)
    assert np.isfinite(model(torch.randn(1, 1, 9, 9)).detach().numpy()).all()
