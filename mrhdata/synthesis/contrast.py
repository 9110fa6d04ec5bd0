"""Mean and spread of each generation class, from the prior of a modality to uniform random."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mrhdata.synthesis.config import SynthesisConfig
from mrhdata.synthesis.draws import Draws
from mrhdata.synthesis.priors import PRIORS
from mrhdata.synthesis.structures import Anatomy

#: Place of a tissue between cortex (0) and white matter (1) in tissue-like contrasts. Ours: wider than T1w, T2w and PD.
_BETWEEN = {
    "grey": (-0.1, 0.1),
    "striatum": (-0.25, 0.45),
    "thalamus": (-0.1, 0.7),
    "pallidum": (-0.2, 1.1),
    "brain stem": (0.3, 1.1),
    "white": (0.95, 1.05),
}
#: Difference between fluid spaces in tissue-like contrasts.
_FLUID_DIFFERENCE = 0.03


@dataclass(frozen=True)
class Contrast:
    """Intensities of one sample.

    Attributes
    ----------
    means, spreads : (classes,) tensor
        Mean and standard deviation of each generation class; the background is the first.
    blank : float
        Value of voxels without data: 0, or what stands for 0 in a map of signed values such as QSM.
    """

    means: Tensor
    spreads: Tensor
    blank: float


def draw_contrast(anatomy: Anatomy, config: SynthesisConfig, width: float, draws: Draws) -> Contrast:
    """Draw intensities: `width` moves them from the prior of a modality (0) to uniform random numbers (1).

    Examples
    --------
    >>> from mrhdata.synthesis.structures import FREESURFER
    >>> contrast = draw_contrast(FREESURFER, SynthesisConfig(modalities=("t1w",)), 0.0, Draws(0))
    >>> cortex, white = (FREESURFER.class_names.index(f"cerebral {n}") for n in ("cortex", "white matter"))
    >>> bool(contrast.means[cortex] < contrast.means[white])
    True
    """
    prior_means, prior_spreads = _draw_prior(anatomy, draws.choice(config.modalities), draws)
    count = len(anatomy.class_names)
    means = torch.lerp(prior_means, _draw_any(anatomy, config, draws), width)
    spreads = torch.lerp(prior_spreads, draws.uniforms(config.spreads, count), width)
    if draws.chance(width * config.merge_probability):
        means = _merge(means, config, draws)
    blank = float(prior_means[0])
    if draws.chance(config.black_air_probability):
        means[0], spreads[0] = blank, 0.0
    return Contrast(means.clamp(min=0), spreads, blank)


def _draw_prior(anatomy: Anatomy, modality: str, draws: Draws) -> tuple[Tensor, Tensor]:
    """Return means and spreads of the classes from the prior of a modality."""
    prior = torch.tensor([PRIORS[modality][tissue] for tissue in anatomy.class_tissues])
    means, deviations, spreads = prior.unbind(1)
    scatter = draws.uniforms((-1.7, 1.7), len(means))  # uniform, of deviation 1 (1.7 is the root of 3)
    return means + scatter * deviations, spreads * draws.uniforms((0.5, 1.5), len(means))


def _draw_any(anatomy: Anatomy, config: SynthesisConfig, draws: Draws) -> Tensor:
    """Return uniform means; in tissue-like contrasts nuclei lie between cortex and white matter."""
    means = draws.uniforms(config.means, len(anatomy.class_names))
    fluid, cortex, white = draws.uniforms(config.means, 3).tolist()
    share = draws.uniforms((0.0, 1.0), len(means)).tolist()
    if not draws.chance(config.tissue_probability):
        return means
    for index, tissue in enumerate(anatomy.class_tissues):
        if tissue in _BETWEEN:
            low, high = _BETWEEN[tissue]
            means[index] = cortex + (white - cortex) * (low + (high - low) * share[index])
        elif tissue == "csf":
            means[index] = fluid + _FLUID_DIFFERENCE * (2 * share[index] - 1)
    return means


def _merge(means: Tensor, config: SynthesisConfig, draws: Draws) -> Tensor:
    """Give a random share of the classes the mean of another one."""
    count = len(means)
    chosen = draws.uniforms((0.0, 1.0), count) < draws.uniform(config.merge_share)
    sources = (draws.uniforms((0.0, 1.0), count) * count).long()
    return torch.where(chosen, means[sources], means)
