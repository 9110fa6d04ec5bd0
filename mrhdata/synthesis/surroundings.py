"""Tissues around the brain: drawn, merged into a few classes, or removed as by skull-stripping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mrhdata.synthesis.axes import blur, smooth_field
from mrhdata.synthesis.config import SynthesisConfig
from mrhdata.synthesis.contrast import Contrast
from mrhdata.synthesis.draws import Draws
from mrhdata.synthesis.structures import Anatomy

#: Number of intensities of merged surroundings; the first is that of air.
_MERGED = 3
#: Distance between independent values of the roughness of a stripped edge, in widths of its blur.
_ROUGHNESS_NODE = 5.0


def draw_way(config: SynthesisConfig, draws: Draws) -> str:
    """Draw "drawn", "merged" or "removed" by their shares.

    Examples
    --------
    >>> draw_way(SynthesisConfig(surroundings={"removed": 1.0}), Draws(0))
    'removed'
    """
    left = draws.uniform((0.0, 1.0)) * sum(config.surroundings.values())
    for way, share in config.surroundings.items():
        left -= share
        if left < 0:
            return way
    return "drawn"


def merge(contrast: Contrast, anatomy: Anatomy, draws: Draws) -> Contrast:
    """Give each class outside of the brain one of three means, of which one is that of air.

    Examples
    --------
    >>> from mrhdata.synthesis.structures import FREESURFER
    >>> size = len(FREESURFER.class_names)
    >>> contrast = Contrast(torch.linspace(0, 1, size), torch.zeros(size), 0.0)
    >>> len(merge(contrast, FREESURFER, Draws(0)).means[~FREESURFER.class_in_brain].unique())
    3
    """
    count = len(contrast.means)
    means = torch.cat([contrast.means[:1], draws.uniforms((0.05, 0.9), _MERGED - 1)])
    merged = means[(draws.uniforms((0.0, _MERGED), count)).long()]
    outside = ~anatomy.class_in_brain
    outside[0] = False
    return replace(contrast, means=torch.where(outside, merged, contrast.means))


def draw_brain(brain: Tensor, spacing_mm: Sequence[float], config: SynthesisConfig, draws: Draws) -> Tensor:
    """Return the voxels (z, y, x) that skull-stripping keeps: the brain with a smooth, uneven edge.

    The brain is blurred by a Gaussian and cut at the value that it has at a distance from a straight edge. So holes
    and sulci narrower than the blur are closed, as by the usual programs.

    Examples
    --------
    >>> brain = torch.zeros(20, 20, 20, dtype=torch.bool)
    >>> brain[5:15, 5:15, 5:15] = True
    >>> config = SynthesisConfig.exact(strip_margin_mm=(2, 2), strip_smoothness_mm=(1, 1))
    >>> int(draw_brain(brain, (1, 1, 1), config, Draws(0))[:, 10, 10].sum())
    14
    """
    margin, width = draws.uniform(config.strip_margin_mm), draws.uniform(config.strip_smoothness_mm)
    if not width:
        return brain
    nodes = [_ROUGHNESS_NODE * width / step for step in spacing_mm]
    distance = margin + config.strip_roughness_mm * smooth_field(brain.shape, nodes, draws)[0]
    cut = torch.special.erfc(distance / (width * math.sqrt(2))) / 2
    return blur(brain.float(), [width / step for step in spacing_mm]) > cut
