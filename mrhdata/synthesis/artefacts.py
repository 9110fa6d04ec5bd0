"""Artefacts of the acquisition: bias field, motion, ringing, noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mrhdata.synthesis import axes
from mrhdata.synthesis.config import SynthesisConfig
from mrhdata.synthesis.draws import Draws

#: Most places of the head during one acquisition.
_MOST_PLACES = 3
#: Share of the lowest frequencies that the first place fills at least; without it the whole image would shift.
_FIRST_SHARE = 0.08


def add_bias(image: Tensor, spacing_mm: Sequence[float], config: SynthesisConfig, draws: Draws) -> Tensor:
    """Multiply by a smooth field whose logarithm has a random deviation.

    Examples
    --------
    >>> image = torch.ones(8, 8, 8)
    >>> bool((add_bias(image, (1, 1, 1), SynthesisConfig.exact(bias=0.5), Draws(0)) > 0).all())
    True
    """
    deviation, node = draws.uniform((0.0, config.bias)), draws.uniform(config.bias_node_mm)
    if not deviation:
        return image
    field = axes.smooth_field(image.shape, [node / step for step in spacing_mm], draws)[0]
    return image * (deviation * field).exp_()


def add_motion(image: Tensor, spacing_mm: Sequence[float], config: SynthesisConfig, draws: Draws) -> Tensor:
    """Return an image whose k-space was filled while the head moved, from low to high frequencies along one axis.

    Movements are shifts; rotations are left out, because they would take as long as all other steps together.

    Examples
    --------
    >>> config = SynthesisConfig.exact(motion_probability=1.0, motion_mm=2.0)
    >>> add_motion(torch.rand(8, 8, 8), (1, 1, 1), config, Draws(0)).shape
    torch.Size([8, 8, 8])
    """
    if not draws.chance(config.motion_probability):
        return image
    axis, places = draws.integer(3), 2 + draws.integer(_MOST_PLACES - 1)
    size = image.shape[axis]
    ends = torch.cat([draws.uniforms((_FIRST_SHARE, 1.0), places - 1).sort().values, torch.ones(1)])
    frequency = torch.arange(size) / size
    place = (frequency[:, None] >= ends[:-1]).sum(1)
    result = torch.zeros_like(image)
    for index in range(places):
        moved = image if not index else _shift(image, spacing_mm, config, draws)
        result = result + axes.apply(moved, axes.keep_frequencies((place == index).float()), axis)
    return result


def _shift(image: Tensor, spacing_mm: Sequence[float], config: SynthesisConfig, draws: Draws) -> Tensor:
    for axis, shift in enumerate(draws.uniforms((-config.motion_mm, config.motion_mm), 3).tolist()):
        size = image.shape[axis]
        image = axes.apply(image, axes.linear(size, torch.arange(size) + shift / spacing_mm[axis]), axis)
    return image


def add_ringing(image: Tensor, config: SynthesisConfig, draws: Draws) -> Tensor:
    """Remove the high frequencies along one axis, which rings next to edges (Gibbs).

    Examples
    --------
    >>> edge = (torch.arange(32) > 15).float().expand(32, 32, 32)
    >>> config = SynthesisConfig.exact(ringing_probability=1.0, ringing_share=(0.5, 0.5))
    >>> max(float(add_ringing(edge, config, Draws(seed)).max()) for seed in range(9)) > 1.05
    True
    """
    if not draws.chance(config.ringing_probability):
        return image
    axis = draws.integer(3)
    size = image.shape[axis]
    limit = max(1.0, draws.uniform(config.ringing_share) * size)
    return axes.apply(image, axes.keep_frequencies((torch.arange(size) < limit).float()), axis)


def add_noise(image: Tensor, spacing_mm: Sequence[float], config: SynthesisConfig, draws: Draws) -> Tensor:
    """Add Gaussian or Rician noise, independent between voxels or correlated.

    Values below 0 become 0, because the values of voxels without data would otherwise lie above black air.

    Examples
    --------
    >>> config = SynthesisConfig.exact(noise=0.1, rician_probability=1.0)
    >>> float(add_noise(torch.zeros(8, 8, 8), (1, 1, 1), config, Draws(0)).min()) > 0
    True
    """
    deviation = config.noise * draws.uniform((0.0, 1.0)) ** 2  # most images have little noise
    rician = draws.chance(config.rician_probability)
    width = draws.uniform(config.correlation_mm) if draws.chance(config.correlated_probability) else 0.0
    if not deviation:
        return image
    real = image + deviation * _noise(image.shape, spacing_mm, width, draws)
    return (
        torch.hypot(real, deviation * _noise(image.shape, spacing_mm, width, draws)) if rician else real.clamp_(min=0)
    )


def _noise(shape: Sequence[int], spacing_mm: Sequence[float], width: float, draws: Draws) -> Tensor:
    """Return noise of deviation 1, blurred by a width in mm."""
    noise = draws.normals(*shape)
    if not width:
        return noise
    noise = axes.blur(noise, [width / step for step in spacing_mm])
    return noise / noise.std(correction=0).clamp(min=1e-6)
