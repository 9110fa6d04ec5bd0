"""From classes to values: clusters, smooth variation, texture, mixed voxels, and the scale of the output."""

from __future__ import annotations

import math

from torch import Tensor

from mrhdata.synthesis.axes import blur, smooth_field
from mrhdata.synthesis.config import Range, SynthesisConfig
from mrhdata.synthesis.contrast import Contrast
from mrhdata.synthesis.draws import Draws
from mrhdata.synthesis.grids import Grids

#: Values of a field of deviation 1 that divide it into three equal parts.
_TERCILE = 0.43
#: Quantiles that become black and white.
_BLACK, _WHITE = 0.005, 0.998
#: Step between the voxels that measure quantiles; a prime, so that they lie in all rows and columns.
_STEP = 7


def paint(classes: Tensor, contrast: Contrast, grids: Grids, config: SynthesisConfig, draws: Draws) -> Tensor:
    """Return an image (z, y, x) of classes, before artefacts.

    Each class has its mean, or those of three clusters; smooth variation and fine texture are multiples of its spread.
    A blur mixes classes at their borders; a smoothed image is blurred more.

    Examples
    --------
    >>> import torch
    >>> classes = torch.tensor([[[0, 1, 1]]])
    >>> grids = Grids((1, 1, 3), (1.0, 1.0, 1.0), (1, 1, 1))
    >>> contrast = Contrast(torch.tensor([0.0, 0.7]), torch.zeros(2), 0.0)
    >>> paint(classes, contrast, grids, SynthesisConfig.exact(), Draws(0))
    tensor([[[0.0000, 0.7000, 0.7000]]])
    """
    table, parts = _draw_table(contrast, grids, config, draws)
    flat = classes.reshape(-1).int()
    rows = flat if parts is None else flat * table.shape[1] + parts.reshape(-1)
    image = table.reshape(-1).index_select(0, rows).reshape(classes.shape)
    pattern = _draw_pattern(grids, config, draws)
    if pattern is not None:
        image = image + pattern * contrast.spreads.to(classes.device).index_select(0, flat).reshape(classes.shape)
    width, smoothing_mm = draws.uniform(config.partial_volume), draws.uniform(config.smoothing_mm)
    if not draws.chance(config.smoothing_probability):
        smoothing_mm = 0.0
    return blur(image, [math.hypot(width, smoothing_mm / step) for step in grids.fine_mm])


def _draw_table(
    contrast: Contrast, grids: Grids, config: SynthesisConfig, draws: Draws
) -> tuple[Tensor, Tensor | None]:
    """Return the means of each class's clusters (classes, clusters) and the cluster of each voxel."""
    if not draws.chance(config.cluster_probability):
        return contrast.means.to(draws.device)[:, None], None
    field = _draw_field(grids, config.cluster_mm, draws)
    parts = (field > -_TERCILE).int() + (field > _TERCILE).int()
    offsets = draws.uniform(config.cluster_offset) * draws.uniforms((-1.7, 1.7), 3 * len(contrast.means))
    table = contrast.means[:, None] + offsets.reshape(-1, 3) * contrast.spreads[:, None]
    return table.clamp(min=0).to(draws.device), parts


def _draw_pattern(grids: Grids, config: SynthesisConfig, draws: Draws) -> Tensor | None:
    """Return variation and texture (z, y, x) as multiples of a spread."""
    variation, texture = draws.uniform(config.variation), draws.uniform(config.texture)
    parts = []
    if variation:
        parts.append(variation * _draw_field(grids, config.variation_mm, draws))
    if texture:
        parts.append(texture * draws.normals(*grids.fine_shape))
    return sum(parts[1:], parts[0]) if parts else None


def _draw_field(grids: Grids, node_mm: Range, draws: Draws) -> Tensor:
    node = draws.uniform(node_mm)
    return smooth_field(grids.fine_shape, [node / step for step in grids.fine_mm], draws)[0]


def scale(image: Tensor, config: SynthesisConfig, draws: Draws) -> Tensor:
    """Return an image from 0 to 1, raised to a random exponent.

    Quantiles become black and white. They are measured on every seventh voxel.

    Examples
    --------
    >>> import torch
    >>> image = torch.arange(8000.0).reshape(20, 20, 20)
    >>> scaled = scale(image, SynthesisConfig.exact(), Draws(0))
    >>> scaled.min().item(), scaled.max().item()
    (0.0, 1.0)
    """
    values = image.reshape(-1)[::_STEP]
    black, white = (values.kthvalue(1 + round(q * (len(values) - 1))).values for q in (_BLACK, _WHITE))
    image = ((image - black) / (white - black).clamp(min=1e-6)).clamp_(0, 1)
    exponent = math.exp(config.gamma * draws.normal())
    return image if exponent == 1 else image.pow_(exponent)
