"""Segmentation losses ignore unknown voxels and are smallest for the truth."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from mrhdata.metrics.image import ms_ssim
from mrhdata.models.spec import IGNORE_INDEX
from mrhdata.training.losses import OF_CLASSES, loss


@pytest.fixture
def scores():
    """Random scores (1, 3, 2, 3, 4) and class numbers."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 3, (1, 1, 2, 3, 4), generator=generator)
    return torch.randn((1, 3, 2, 3, 4), generator=generator), classes.float()


@pytest.mark.parametrize("name", OF_CLASSES)
def test_ignored_voxels_do_not_count(name, scores):
    """The loss does not depend on their scores, which have no gradient."""
    prediction, classes = scores
    classes[..., 0] = IGNORE_INDEX
    other = prediction.clone()
    other[..., 0] += 50 * torch.randn(other[..., 0].shape, generator=torch.Generator().manual_seed(1))
    assert loss(name, prediction, classes) == pytest.approx(loss(name, other, classes).item(), rel=1e-5)
    variable = prediction.clone().requires_grad_(True)
    loss(name, variable, classes).backward()
    assert not variable.grad[..., 0].any()
    assert variable.grad[..., 1:].any()


@pytest.mark.parametrize("name", OF_CLASSES)
def test_truth_has_the_smallest_loss(name, scores):
    """Confident and right is near 0; confident and wrong is larger than undecided."""
    _, classes = scores
    right = 20 * torch.nn.functional.one_hot(classes[:, 0].long(), 3).movedim(-1, 1).float()
    wrong, undecided = right.roll(1, 1), torch.zeros_like(right)
    best, middle, worst = (loss(name, a, classes).item() for a in (right, undecided, wrong))
    assert best < 1e-3 < middle < worst


def test_loss_is_zero_if_all_voxels_are_ignored(scores):
    """Not NaN."""
    prediction, classes = scores
    assert [loss(n, prediction, torch.full_like(classes, IGNORE_INDEX)).item() for n in OF_CLASSES] == [0, 0, 0]


def test_dice_equals_that_of_one_hot_labels(scores):
    """By the definition, over classes in the batch; a sliver counts little if voxels are added."""
    prediction, classes = scores
    classes = classes.clone()
    classes[0, 0, 0, 0, 0] = IGNORE_INDEX
    known = (classes != IGNORE_INDEX).float()
    truth = torch.nn.functional.one_hot(classes[:, 0].clamp(min=0).long(), prediction.shape[1]).movedim(-1, 1) * known
    probability = prediction.softmax(1) * known
    axes = (0, 2, 3, 4)
    for smoothing in (1e-5, 10.0):
        sizes = probability.sum(axes) + truth.sum(axes) + smoothing
        dice = (2 * (probability * truth).sum(axes) + smoothing) / sizes
        expected = 1 - dice[truth.sum(axes) > 0].mean()
        assert loss("dice", prediction, classes, smoothing).item() == pytest.approx(expected.item(), rel=1e-5)


def test_cross_entropy_equals_that_of_pytorch(scores):
    """The mean over voxels."""
    prediction, classes = scores
    expected = torch.nn.functional.cross_entropy(prediction, classes[:, 0].long())
    assert loss("cross-entropy", prediction, classes).item() == pytest.approx(expected.item())


def test_coarser_levels_have_half_the_weight(scores):
    """They are compared with every second voxel."""
    prediction, classes = scores
    classes = classes.repeat(1, 1, 2, 2, 2)
    fine = prediction.repeat(1, 1, 2, 2, 2)
    together = loss("cross-entropy", (fine, prediction), classes)
    coarse = loss("cross-entropy", prediction, classes[:, :, ::2, ::2, ::2])
    assert together.item() == pytest.approx((2 * loss("cross-entropy", fine, classes) + coarse).item() / 3)


def test_larger_predictions_are_cropped_about_the_centre(scores):
    """Networks that repeat the border of patches return such predictions."""
    prediction, classes = scores
    padded = torch.nn.functional.pad(prediction, (2, 2, 1, 1, 3, 3), value=7.0)
    assert loss("dice", padded, classes) == loss("dice", prediction, classes)


def test_structure_loss_equals_the_metric():
    """The loss combines MS-SSIM, as in `mrhdata.metrics.image`, and the absolute error."""
    rng = np.random.default_rng(0)
    truth = gaussian_filter(rng.random((192, 200)), 2)
    truth = (truth - truth.min()) / np.ptp(truth)
    prediction = truth + rng.normal(0, 0.1, truth.shape)
    planes = [torch.from_numpy(v).float().reshape(1, 1, 1, *v.shape) for v in (prediction, truth)]
    expected = 0.84 * (1 - ms_ssim(truth, prediction)) + 0.16 * np.abs(truth - prediction).mean()
    assert loss("ms-ssim+mae", *planes).item() == pytest.approx(expected, rel=1e-3)
