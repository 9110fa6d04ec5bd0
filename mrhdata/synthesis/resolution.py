"""Resolution: slices of a thickness, acquired from a fine image and interpolated to the grid of the output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mrhdata.synthesis import axes
from mrhdata.synthesis.artefacts import add_noise
from mrhdata.synthesis.config import SynthesisConfig
from mrhdata.synthesis.draws import Draws
from mrhdata.synthesis.grids import Grids


def acquire(image: Tensor, grids: Grids, config: SynthesisConfig, draws: Draws) -> Tensor:
    """Return an image on the grid of the output, acquired at a random resolution, with noise.

    Parameters
    ----------
    image : (z, y, x) tensor
        Image on the painted grid.
    grids : Grids
    config : SynthesisConfig
    draws : Draws

    Examples
    --------
    >>> image = torch.arange(9.0).reshape(9, 1, 1)
    >>> grids = Grids((3, 1, 1), (3.0, 1.0, 1.0), (3, 1, 1))
    >>> acquire(image, grids, SynthesisConfig.exact(), Draws(0)).flatten()
    tensor([1., 4., 7.])
    """
    steps = _draw_steps(grids.spacing_mm, config, draws)
    repeated = draws.chance(config.nearest_probability)
    back: list[Tensor | None] = [None, None, None]
    for axis, (step, of_output, factor) in enumerate(zip(steps, grids.spacing_mm, grids.factors, strict=True)):
        if step > of_output:
            matrix, back[axis] = _draw_slices(image.shape[axis], step / of_output, factor, repeated, config, draws)
            image = axes.apply(image, matrix, axis)
        elif factor > 1:
            image = axes.apply(image, _average(image.shape[axis], factor), axis)
    image = add_noise(image, steps, config, draws)
    for axis, interpolation in enumerate(back):
        image = image if interpolation is None else axes.apply(image, interpolation, axis)
    return image


def _draw_steps(spacing_mm: Sequence[float], config: SynthesisConfig, draws: Draws) -> list[float]:
    """Return the distance of acquired samples along each axis, at least that of the output."""
    axis, thick = draws.integer(3), draws.chance(config.slice_probability)
    coarse = draws.chance(config.coarse_probability)
    distance, size = draws.uniform(config.slice_mm), draws.uniform(config.coarse_mm)
    if thick:
        return [max(step, distance) if k == axis else step for k, step in enumerate(spacing_mm)]
    return [max(step, size) for step in spacing_mm] if coarse else list(spacing_mm)


def _draw_slices(
    size: int, step: float, factor: int, repeated: bool, config: SynthesisConfig, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Return the matrix of slices, a step of output voxels apart, and the matrix back to the output."""
    count = size // factor
    centres = torch.arange(-draws.uniform((0.0, step)), count - 1 + step, step)
    thickness = draws.uniform(config.slice_fill) * step * factor
    # Index of a fine voxel from that of an output voxel, both at their centres.
    fine = (centres * factor + (factor - 1) / 2).clamp(0, size - 1)
    matrix = axes.slices(size, fine, max(thickness, 1.0), box=draws.chance(0.5))
    positions = (torch.arange(count) - centres[0]) / step
    interpolate = axes.nearest if repeated else axes.linear
    return matrix, interpolate(len(centres), positions)


def _average(size: int, factor: int) -> Tensor:
    """Return the matrix of means of runs of voxels."""
    centres = torch.arange(size // factor) * factor + (factor - 1) / 2
    return axes.slices(size, centres, float(factor), box=True)
