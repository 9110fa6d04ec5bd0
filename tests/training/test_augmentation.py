"""Augmentation transforms image and labels together, about one centre, in millimetres."""

import numpy as np
import pytest
import torch

from mrhdata.training.augmentation import Augmentation, _transform

NO_SHADING = {"gain": 0.0, "offset": 0.0, "gamma": 0.0, "noise": 0.0, "share": 1.0}


def ball(shape, spacing, radius):
    """Mask (4, 1, z, y, x) of a ball about the centre; spacing and radius in mm."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    distance = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")))
    return torch.from_numpy((distance < radius).astype(np.float32)).expand(4, 1, *shape).contiguous()


def test_image_and_labels_move_together():
    """A bright labelled ball is still bright where it is labelled."""
    y = ball((12, 40, 40), (3, 1, 1), 12)
    x, moved = Augmentation(**NO_SHADING)(y.clone(), y, (3.0, 1.0, 1.0), torch.Generator().manual_seed(0))
    assert ((x > 0.5).float() - moved).abs().mean() < 0.01
    assert (moved - y).abs().sum() > 0


def test_rotations_are_in_millimetres():
    """A ball stays a ball on voxels of 3 x 1 x 1 mm, which a rotation in voxels would shear."""
    y = ball((16, 48, 48), (3, 1, 1), 15)
    rotate = Augmentation(degrees=40, zoom=0, stretch=0, **NO_SHADING)
    _, moved = rotate(y, y, (3.0, 1.0, 1.0), torch.Generator().manual_seed(3))
    dice = 2 * (moved * y).sum() / (moved.sum() + y.sum())
    assert dice > 0.95
    _, sheared = rotate(y, y, (1.0, 1.0, 1.0), torch.Generator().manual_seed(3))
    assert 2 * (sheared * y).sum() / (sheared.sum() + y.sum()) < dice - 0.05


def test_smaller_target_moves_about_the_same_centre():
    """The transformed core equals the core of the transformed whole."""
    generator = torch.Generator().manual_seed(5)
    whole = (torch.rand((2, 1, 15, 15, 15), generator=generator) > 0.5).float()
    matrix = torch.tensor([[[1.0, 0.2, 0], [-0.2, 1.0, 0], [0, 0, 1.0]]]).repeat(2, 1, 1)
    core_of_whole = _transform(whole, matrix, (1, 1, 1), "nearest")[:, :, 5:10, 5:10, 5:10]
    core = _transform(whole[:, :, 5:10, 5:10, 5:10], matrix, (1, 1, 1), "nearest")
    assert (core[:, :, 1:-1, 1:-1, 1:-1] == core_of_whole[:, :, 1:-1, 1:-1, 1:-1]).all()


def test_planes_rotate_only_within_their_plane():
    """The flat axis keeps its voxels."""
    y = torch.zeros(3, 1, 1, 20, 20)
    y[:, :, :, 5:15, 8:12] = 1
    x, moved = Augmentation(**NO_SHADING)(y, y, (9.0, 1.0, 1.0), torch.Generator().manual_seed(1))
    assert x.shape == y.shape
    assert 20 < moved[0].sum() < 60


def test_augmentation_is_deterministic_for_a_seed():
    """The same seed gives the same batch, another seed another one."""
    x, y = torch.rand(2, 2, 4, 8, 8), torch.ones(2, 1, 4, 8, 8)
    first, again = (Augmentation()(x, y, (1, 1, 1), torch.Generator().manual_seed(7))[0] for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, Augmentation()(x, y, (1, 1, 1), torch.Generator().manual_seed(8))[0])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flip_mirrors_half_of_the_patches_along_its_axis(axis):
    """In both tensors, and along no other axis."""
    x = torch.arange(64.0).reshape(1, 1, 4, 4, 4).repeat(40, 1, 1, 1, 1)
    flip = Augmentation(degrees=0, zoom=0, stretch=0, **NO_SHADING | {"share": 0.0}, flip=(axis,))
    a, b = flip(x, x.clone(), (1, 1, 1), torch.Generator().manual_seed(0))
    mirrored = [bool((row == x[0].flip(1 + axis)).all()) for row in b]
    assert 5 < sum(mirrored) < 35
    assert all(bool((row == x[0]).all()) != m for row, m in zip(b, mirrored, strict=True))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_device_changes_nothing_but_the_noise(device):
    """Draws come from one generator on the processor, so that a run may move from one device to another."""
    x = torch.rand(4, 2, 6, 7, 8, generator=torch.Generator().manual_seed(0))
    augment = Augmentation(noise=0.0, flip=(2,))
    a, b = augment(x, (x[:, :1] > 0.5).float(), (3.0, 1.0, 1.0), torch.Generator().manual_seed(1))
    moved = augment(
        x.to(device), (x[:, :1] > 0.5).float().to(device), (3.0, 1.0, 1.0), torch.Generator().manual_seed(1)
    )
    assert moved[0].device.type == device
    torch.testing.assert_close(moved[0].cpu(), a)
    assert (moved[1].cpu() == b).float().mean() > 0.999
