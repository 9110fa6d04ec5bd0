"""Loss functions for regression and segmentation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as f

from mrhdata.models.spec import IGNORE_INDEX

#: Losses for segmentation, whose target is a class number.
OF_CLASSES = ("cross-entropy", "dice", "dice+cross-entropy")
LOSSES = ("mse", "mae", "ms-ssim+mae", *OF_CLASSES)
#: Weights of five scales (Wang et al. 2003), and of structure against absolute error (Zhao et al. 2017, IEEE TCI 3:47).
_SCALE_WEIGHTS, _STRUCTURE_WEIGHT = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333), 0.84


def loss(name: str, answer: Tensor | tuple[Tensor, ...], target: Tensor, dice_smoothing: float = 1e-5) -> Tensor:
    """Return the loss of the predictions of a batch.

    Parameters
    ----------
    name : str
        One of `LOSSES`.
    answer : (B, C, z, y, x) tensor, or a tuple of them
        Predicted values, or class scores before the softmax. In a tuple, finest first, each coarser level has half
        the weight of the previous one (deep supervision, Lee et al. 2015, AISTATS).
    target : (B, C, z, y, x) tensor
        True values, or class numbers (B, 1, z, y, x) with `IGNORE_INDEX` for ignored voxels. Larger predictions are
        cropped to its shape about the centre.
    dice_smoothing : float
        Voxels that are added to both terms of the Dice loss.

    Examples
    --------
    >>> scores = torch.tensor([[0.0, 9.0], [9.0, 0.0]]).reshape(1, 2, 1, 1, 2)
    >>> good, bad = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> [round(float(loss("dice+cross-entropy", scores, t.reshape(1, 1, 1, 1, 2))), 2) for t in (good, bad)]
    [0.0, 10.0]
    """
    if isinstance(answer, tuple):
        parts = [
            0.5**i * loss(name, level, coarser(target, level.shape[2:]), dice_smoothing)
            for i, level in enumerate(answer)
        ]
        return torch.stack(parts).sum() / sum(0.5**i for i in range(len(parts)))
    answer = centre(answer, target.shape[2:]).float()
    if name == "mse":
        return f.mse_loss(answer, target)
    if name == "mae":
        return f.l1_loss(answer, target)
    if name == "ms-ssim+mae":
        structure = 1 - _ms_ssim(answer, target)
        return _STRUCTURE_WEIGHT * structure + (1 - _STRUCTURE_WEIGHT) * f.l1_loss(answer, target)
    classes = target[:, 0].long()
    total = answer.new_zeros(())
    if "cross-entropy" in name:
        voxels = (classes != IGNORE_INDEX).sum().clamp(min=1)
        total = total + f.cross_entropy(answer, classes, ignore_index=IGNORE_INDEX, reduction="sum") / voxels
    if "dice" in name:
        total = total + _dice_loss(answer, classes, dice_smoothing)
    return total


def _dice_loss(answer: Tensor, classes: Tensor, smoothing: float) -> Tensor:
    """Return 1 minus the mean soft Dice of the classes in the batch (Milletari et al. 2016, 3DV), with background."""
    known = classes != IGNORE_INDEX
    # Voxels in rows: without a second tensor of the size of the scores, which one-hot labels would be.
    probability = answer.movedim(1, -1)[known].softmax(1)
    true = classes[known]
    voxels = torch.bincount(true, minlength=answer.shape[1])
    common = answer.new_zeros(answer.shape[1]).index_add(0, true, probability.gather(1, true[:, None])[:, 0])
    dice = (2 * common + smoothing) / (probability.sum(0) + voxels + smoothing)
    present = voxels > 0
    # Classes absent from the batch are left out: their Dice would only push their probability to 0.
    return 1 - dice[present].mean() if present.any() else answer.new_zeros(())


def _ms_ssim(answer: Tensor, target: Tensor) -> Tensor:
    """Return the multi-scale structural similarity of planes, at as many scales as their size allows.

    The dynamic range is that of the target's batch.
    """
    x, y = (v.flatten(0, 2).unsqueeze(1) for v in (answer, target))
    dynamic_range = (y.amax() - y.amin()).clamp(min=1e-6)
    product = x.new_ones(len(x))
    scales = max(1, min(len(_SCALE_WEIGHTS), (min(x.shape[-2:]) // 11).bit_length()))
    weights = x.new_tensor(_SCALE_WEIGHTS[:scales]) / sum(_SCALE_WEIGHTS[:scales])
    for scale, weight in enumerate(weights):
        mean_x, mean_y = _gaussian_mean(x), _gaussian_mean(y)
        var_x, var_y = _gaussian_mean(x * x) - mean_x * mean_x, _gaussian_mean(y * y) - mean_y * mean_y
        covariance = _gaussian_mean(x * y) - mean_x * mean_y
        c1, c2 = (0.01 * dynamic_range) ** 2, (0.03 * dynamic_range) ** 2
        similarity = (2 * covariance + c2) / (var_x + var_y + c2)
        if scale == scales - 1:
            similarity = similarity * (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
        product = product * similarity.mean((1, 2, 3)).clamp(min=1e-4) ** weight
        x, y = f.avg_pool2d(x, 2), f.avg_pool2d(y, 2)
    return product.mean()


def _gaussian_mean(x: Tensor) -> Tensor:
    """Return local means under a Gaussian with a standard deviation of 1.5 pixels, 11 pixels wide."""
    distance = torch.arange(-5, 6, dtype=x.dtype)
    weights = torch.exp(-0.5 * (distance / 1.5) ** 2)
    weights = weights / weights.sum()
    return f.conv2d(f.conv2d(x, weights.reshape(1, 1, -1, 1)), weights.reshape(1, 1, 1, -1))


def centre(answer: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Crop (B, C, ...) to a shape about the centre."""
    for axis, n in enumerate(shape, start=2):
        answer = answer.narrow(axis, (answer.shape[axis] - n) // 2, n)
    return answer


def coarser(target: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Subsample (B, C, ...) to a shape by taking every n-th voxel."""
    steps = [max(1, n // m) for n, m in zip(target.shape[2:], shape, strict=True)]
    return target[(slice(None), slice(None), *(slice(None, m * s, s) for m, s in zip(shape, steps, strict=True)))]
