"""What training makes small: for values, and for classes of which each voxel has one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as f

from mrhdata.models.spec import IGNORE_INDEX

#: Losses whose target is the number of a class.
OF_CLASSES = ("cross-entropy", "dice", "dice+cross-entropy")
LOSSES = ("mse", "mae", "ms-ssim+mae", *OF_CLASSES)
#: Of five scales (Wang et al. 2003), and of structure against absolute error (Zhao et al. 2017, IEEE TCI 3:47).
_SCALES, _STRUCTURE = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333), 0.84


def loss(name: str, answer: Tensor | tuple[Tensor, ...], target: Tensor) -> Tensor:
    """One number for the answers of a batch.

    Parameters
    ----------
    name : str
        One of `LOSSES`.
    answer : (B, C, z, y, x) tensor, or a tuple of them
        Values, or scores of classes before the softmax. Of several, finest first, each coarser one counts
        half as much as the one before (deep supervision, Lee et al. 2015, AISTATS).
    target : (B, C, z, y, x) tensor
        Values, or (B, 1, z, y, x) numbers of classes, `IGNORE_INDEX` where the answer does not matter. Answers
        that reach further are cut to it, about one centre.

    Examples
    --------
    >>> scores = torch.tensor([[0.0, 9.0], [9.0, 0.0]]).reshape(1, 2, 1, 1, 2)
    >>> good, bad = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> [round(float(loss("dice+cross-entropy", scores, t.reshape(1, 1, 1, 1, 2))), 2) for t in (good, bad)]
    [0.0, 10.0]
    """
    if isinstance(answer, tuple):
        parts = [0.5**i * loss(name, level, coarser(target, level.shape[2:])) for i, level in enumerate(answer)]
        return torch.stack(parts).sum() / sum(0.5**i for i in range(len(parts)))
    answer = centre(answer, target.shape[2:]).float()
    if name == "mse":
        return f.mse_loss(answer, target)
    if name == "mae":
        return f.l1_loss(answer, target)
    if name == "ms-ssim+mae":
        return _STRUCTURE * (1 - _structure(answer, target)) + (1 - _STRUCTURE) * f.l1_loss(answer, target)
    classes = target[:, 0].long()
    found = answer.new_zeros(())
    if "cross-entropy" in name:
        voxels = (classes != IGNORE_INDEX).sum().clamp(min=1)
        found = found + f.cross_entropy(answer, classes, ignore_index=IGNORE_INDEX, reduction="sum") / voxels
    if "dice" in name:
        found = found + _dice(answer, classes)
    return found


def _dice(answer: Tensor, classes: Tensor) -> Tensor:
    """One less the mean soft Dice of the classes in the batch (Milletari et al. 2016, 3DV), background included."""
    known = (classes != IGNORE_INDEX).unsqueeze(1)
    truth = f.one_hot(classes.clamp(min=0), answer.shape[1]).movedim(-1, 1) * known
    share = answer.softmax(1) * known
    axes = [0, *range(2, answer.ndim)]
    both, sizes = (share * truth).sum(axes), share.sum(axes) + truth.sum(axes)
    present = truth.sum(axes) > 0
    dice = (2 * both + 1e-5) / (sizes + 1e-5)
    # Classes that the batch does not hold would only be taught to be small.
    return 1 - dice[present].mean() if present.any() else answer.new_zeros(())


def _structure(answer: Tensor, target: Tensor) -> Tensor:
    """Multi-scale structural similarity of planes, at as many scales as they have pixels for.

    The range from black to white is that of the target's batch.
    """
    x, y = (v.flatten(0, 2).unsqueeze(1) for v in (answer, target))
    wide = (y.amax() - y.amin()).clamp(min=1e-6)
    found = x.new_ones(len(x))
    scales = max(1, min(len(_SCALES), (min(x.shape[-2:]) // 11).bit_length()))
    weights = x.new_tensor(_SCALES[:scales]) / sum(_SCALES[:scales])
    for scale, weight in enumerate(weights):
        mx, my = _windowed(x), _windowed(y)
        vx, vy = _windowed(x * x) - mx * mx, _windowed(y * y) - my * my
        both = _windowed(x * y) - mx * my
        a, b = (0.01 * wide) ** 2, (0.03 * wide) ** 2
        like = (2 * both + b) / (vx + vy + b)
        if scale == scales - 1:
            like = like * (2 * mx * my + a) / (mx * mx + my * my + a)
        found = found * like.mean((1, 2, 3)).clamp(min=1e-4) ** weight
        x, y = f.avg_pool2d(x, 2), f.avg_pool2d(y, 2)
    return found.mean()


def _windowed(x: Tensor) -> Tensor:
    """Means under a Gaussian of width 1.5 pixels, 11 across."""
    away = torch.arange(-5, 6, dtype=x.dtype)
    weights = torch.exp(-0.5 * (away / 1.5) ** 2)
    weights = weights / weights.sum()
    return f.conv2d(f.conv2d(x, weights.reshape(1, 1, -1, 1)), weights.reshape(1, 1, 1, -1))


def centre(answer: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The middle of (B, C, ...), of a shape."""
    for axis, n in enumerate(shape, start=2):
        answer = answer.narrow(axis, (answer.shape[axis] - n) // 2, n)
    return answer


def coarser(target: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Every so many voxels of (B, C, ...), as many as a shape has."""
    steps = [max(1, n // m) for n, m in zip(target.shape[2:], shape, strict=True)]
    return target[(slice(None), slice(None), *(slice(None, m * s, s) for m, s in zip(shape, steps, strict=True)))]
