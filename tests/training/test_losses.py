"""Losses of classes: what is ignored does not count, what is right is small."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from mrhdata.metrics.image import ms_ssim
from mrhdata.models.spec import IGNORE_INDEX
from mrhdata.training.losses import OF_CLASSES, loss


@pytest.fixture
def scores():
    """(1, 3, 2, 3, 4) scores and their classes."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 3, (1, 1, 2, 3, 4), generator=generator)
    return torch.randn((1, 3, 2, 3, 4), generator=generator), classes.float()


@pytest.mark.parametrize("name", OF_CLASSES)
def test_voxels_that_are_ignored_do_not_count(name, scores):
    """Their scores may be anything, and have no gradient."""
    answer, classes = scores
    classes[..., 0] = IGNORE_INDEX
    other = answer.clone()
    other[..., 0] += 50 * torch.randn(other[..., 0].shape, generator=torch.Generator().manual_seed(1))
    assert loss(name, answer, classes) == pytest.approx(loss(name, other, classes).item(), rel=1e-5)
    free = answer.clone().requires_grad_(True)
    loss(name, free, classes).backward()
    assert not free.grad[..., 0].any()
    assert free.grad[..., 1:].any()


@pytest.mark.parametrize("name", OF_CLASSES)
def test_the_truth_is_best(name, scores):
    """Sure and right is near 0; sure and wrong is larger than unsure."""
    _, classes = scores
    right = 20 * torch.nn.functional.one_hot(classes[:, 0].long(), 3).movedim(-1, 1).float()
    wrong, unsure = right.roll(1, 1), torch.zeros_like(right)
    best, middle, worst = (loss(name, a, classes).item() for a in (right, unsure, wrong))
    assert best < 1e-3 < middle < worst


def test_nothing_known_is_no_loss(scores):
    """Finite, and 0."""
    answer, classes = scores
    assert [loss(n, answer, torch.full_like(classes, IGNORE_INDEX)).item() for n in OF_CLASSES] == [0, 0, 0]


def test_cross_entropy_is_pytorchs(scores):
    """Mean over voxels."""
    answer, classes = scores
    expected = torch.nn.functional.cross_entropy(answer, classes[:, 0].long())
    assert loss("cross-entropy", answer, classes).item() == pytest.approx(expected.item())


def test_coarser_levels_count_half(scores):
    """And are compared with every other voxel."""
    answer, classes = scores
    classes = classes.repeat(1, 1, 2, 2, 2)
    fine = answer.repeat(1, 1, 2, 2, 2)
    together = loss("cross-entropy", (fine, answer), classes)
    coarse = loss("cross-entropy", answer, classes[:, :, ::2, ::2, ::2])
    assert together.item() == pytest.approx((2 * loss("cross-entropy", fine, classes) + coarse).item() / 3)


def test_larger_answers_are_cut_about_the_centre(scores):
    """As the networks of patches give them where a border is repeated."""
    answer, classes = scores
    padded = torch.nn.functional.pad(answer, (2, 2, 1, 1, 3, 3), value=7.0)
    assert loss("dice", padded, classes) == loss("dice", answer, classes)


def test_structure_is_that_of_the_score():
    """The loss of structure and absolute error is made of what `scoring.image` measures."""
    rng = np.random.default_rng(0)
    truth = gaussian_filter(rng.random((192, 200)), 2)
    truth = (truth - truth.min()) / np.ptp(truth)
    answer = truth + rng.normal(0, 0.1, truth.shape)
    planes = [torch.from_numpy(v).float().reshape(1, 1, 1, *v.shape) for v in (answer, truth)]
    expected = 0.84 * (1 - ms_ssim(truth, answer)) + 0.16 * np.abs(truth - answer).mean()
    assert loss("ms-ssim+mae", *planes).item() == pytest.approx(expected, rel=1e-3)
