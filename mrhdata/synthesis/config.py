"""Every range of the synthesis, with its source."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mrhdata._runtime.arguments import check_choice
from mrhdata.errors import ParameterError
from mrhdata.synthesis.priors import PRIORS

Range = tuple[float, float]
#: Ways to draw the tissues around the brain.
SURROUNDINGS = ("drawn", "merged", "removed")
#: Fields of artefacts, which an eased config scales.
_ARTEFACTS = (
    *("bias", "gamma", "noise", "motion_probability", "ringing_probability", "correlated_probability"),
    *("slice_probability", "coarse_probability", "smoothing_probability", "cluster_probability", "view_probability"),
)


@dataclass(frozen=True)
class SynthesisConfig:
    """Ranges of random choices. A pair is a range (low, high); a single number is a largest value.

    Sources are SynthSeg (Billot et al. 2023, Medical Image Analysis 86:102789; ranges of its code), nnU-Net (Isensee
    et al. 2021, Nature Methods 18:203; its augmentation), and "ours": chosen by looking at contact sheets next to real
    images. Intensities are fractions of the range 0 to 1; SynthSeg's are divided by 255.

    Attributes
    ----------
    rotation_degrees : float
        Largest rotation about each axis. SynthSeg: 15.
    scaling : float
        Largest relative change of size along each axis. SynthSeg: 0.15.
    shearing : float
        Largest shear coefficient. SynthSeg: 0.012.
    translation_mm : float
        Largest shift of a patch from its place along each axis. Ours (SynthSeg crops at random).
    elastic_mm : float
        Largest standard deviation of displacements; it is limited to a quarter of the distance of the nodes, so that
        tissue rarely folds. SynthSeg: 3 (it integrates velocities of this deviation).
    elastic_node_mm : range
        Distance between independent displacements. SynthSeg: 25; the range is ours.
    flip_probability : float
        Probability of a mirror image along x. SynthSeg: 0.5.
    swap_sides : bool
        Whether a mirror image exchanges labels named left and right, so that names stay true. SynthSeg: yes.
    brain_share : float
        Share of patches whose centre is a brain voxel; the others lie anywhere in the map. Ours.
    neck_probability, neck_mm : float, range
        Probability that the field of view ends below the brain, and the distance between the two. Ours.
    view_probability, view_share : float, range
        Probability that the field of view is a slab within the patch, and its share of one axis. Ours.
    partial_edge_probability : float
        Probability that a slab ends within voxels, as one does that was resampled. Ours.
    random_share : float
        Share of samples of random contrast; the others follow the prior of a modality. Ours.
    contrast_width : range
        Width of random contrasts: 0 is the prior of a modality, 1 draws from `means` and `spreads`. In between, each
        intensity is moved from the one to the other by this fraction. SynthSeg: 1.
    modalities : tuple of str
        Modalities whose priors are drawn, listed in `PRIORS`. Ours.
    means : range
        Mean of a class at a width of 1. SynthSeg: 25 to 225 of 255.
    spreads : range
        Standard deviation within a class at a width of 1. SynthSeg: 5 to 25 of 255.
    tissue_probability : float
        Probability, at a width of 1, that nuclei lie between cortex and white matter as in most MRI contrasts, and
        fluid spaces are alike. Ours.
    merge_probability, merge_share : float, range
        Probability, times the contrast width, that classes take the intensity of another, and the share of those
        classes. Ours.
    cluster_probability, cluster_offset, cluster_mm : float, range, range
        Probability that classes fall into three clusters, the deviation of the clusters' means in spreads of the class,
        and the size of a cluster. Ours.
    variation, variation_mm : range, range
        Deviation of smooth variation within a class, in its spreads, and its wavelength. Ours.
    texture : range
        Deviation of fine texture within a class, in its spreads. SynthSeg: 1.
    partial_volume : range
        Standard deviation of the blur that mixes tissues at borders, in painted voxels (those of the map or finer).
        Ours; SynthSeg blurs by its resolution.
    smoothing_probability, smoothing_mm : float, range
        Probability that the image was smoothed, as an average of subjects is, and the deviation of the blur. Ours.
    surroundings : mapping of str to float
        Shares of samples whose tissues around the brain are "drawn", "merged" into three classes, or "removed". Ours.
    strip_margin_mm : range
        Distance by which the edge of a stripped brain lies outside of the brain. Ours.
    strip_smoothness_mm : range
        Width of the sulci and holes that the edge closes. Ours.
    strip_roughness_mm : float
        Standard deviation of that distance along the edge. Ours.
    black_air_probability : float
        Probability that air is black before noise; otherwise its mean is drawn as that of a class. Ours.
    bias : float
        Largest standard deviation of the logarithm of the bias field. SynthSeg: 0.5.
    bias_node_mm : range
        Distance between independent values of the field. SynthSeg: 40; the range is ours.
    gamma : float
        Standard deviation of the logarithm of the exponent of intensities. SynthSeg: 0.5; ours is smaller, because
        means are random already. nnU-Net: exponents of 0.7 to 1.5.
    noise : float
        Largest standard deviation of noise, times the square of a uniform number: most images have little. Ours;
        nnU-Net: variance up to 0.1 of standardised images.
    rician_probability : float
        Probability that noise is Rician, as of magnitude images, instead of Gaussian. Ours.
    correlated_probability, correlation_mm : float, range
        Probability that noise is correlated, and the deviation of its blur. Ours.
    motion_probability, motion_mm : float, float
        Probability of motion during the acquisition, and the largest shift along each axis. Ours.
    ringing_probability, ringing_share : float, range
        Probability of a truncated k-space along one axis, and the share of frequencies that remain. Ours.
    slice_probability, slice_mm : float, range
        Probability of thick slices along one axis, and their distance. SynthSeg: 1 to 8 mm; 7 is ours.
    coarse_probability, coarse_mm : float, range
        Probability of coarse voxels along all axes if slices are not thick, and their size. SynthSeg: up to 4 mm.
    slice_fill : range
        Thickness of a slice as a share of the distance between slices; less than 1 leaves gaps. Ours.
    nearest_probability : float
        Probability that slices are repeated, instead of interpolated, on the grid of the output. Ours.

    Examples
    --------
    >>> SynthesisConfig(random_share=0.2, modalities=("t1w",)).rotation_degrees
    15.0
    """

    rotation_degrees: float = 15.0
    scaling: float = 0.15
    shearing: float = 0.012
    translation_mm: float = 8.0
    elastic_mm: float = 3.0
    elastic_node_mm: Range = (14.0, 40.0)
    flip_probability: float = 0.5
    swap_sides: bool = True
    brain_share: float = 0.85
    neck_probability: float = 0.3
    neck_mm: Range = (0.0, 60.0)
    view_probability: float = 0.1
    view_share: Range = (0.4, 0.9)
    partial_edge_probability: float = 0.5
    random_share: float = 1.0
    contrast_width: Range = (1.0, 1.0)
    modalities: tuple[str, ...] = ("t1w", "t2w", "pd", "flair", "gre")
    means: Range = (25 / 255, 225 / 255)
    spreads: Range = (5 / 255, 25 / 255)
    tissue_probability: float = 0.5
    merge_probability: float = 0.3
    merge_share: Range = (0.1, 0.5)
    cluster_probability: float = 0.5
    cluster_offset: Range = (0.2, 1.2)
    cluster_mm: Range = (4.0, 12.0)
    variation: Range = (0.0, 0.8)
    variation_mm: Range = (12.0, 40.0)
    texture: Range = (0.1, 1.0)
    partial_volume: Range = (0.35, 0.8)
    smoothing_probability: float = 0.1
    smoothing_mm: Range = (0.8, 3.0)
    surroundings: Mapping[str, float] = field(default_factory=lambda: {"drawn": 0.45, "merged": 0.2, "removed": 0.35})
    strip_margin_mm: Range = (-1.0, 4.0)
    strip_smoothness_mm: Range = (1.0, 5.0)
    strip_roughness_mm: float = 0.7
    black_air_probability: float = 0.9
    bias: float = 0.5
    bias_node_mm: Range = (30.0, 80.0)
    gamma: float = 0.3
    noise: float = 0.08
    rician_probability: float = 0.6
    correlated_probability: float = 0.25
    correlation_mm: Range = (0.5, 1.2)
    motion_probability: float = 0.1
    motion_mm: float = 3.0
    ringing_probability: float = 0.15
    ringing_share: Range = (0.45, 0.8)
    slice_probability: float = 0.35
    slice_mm: Range = (1.0, 7.0)
    coarse_probability: float = 0.25
    coarse_mm: Range = (1.0, 4.0)
    slice_fill: Range = (0.7, 1.0)
    nearest_probability: float = 0.1

    def __post_init__(self) -> None:
        for name, value in self._items():
            if isinstance(value, tuple) and name != "modalities":
                check_range(name, value)
                if name.endswith("_width"):
                    check_number(name, value[1])
            elif isinstance(value, int | float):
                check_number(name, value)
        for modality in self.modalities or ("",):
            check_choice("modalities", modality, sorted(PRIORS))
        for way in self.surroundings:
            check_choice("surroundings", way, SURROUNDINGS)
        if not sum(self.surroundings.values()) > 0 or min(self.surroundings.values()) < 0:
            raise ParameterError(
                f"surroundings must have a share above 0, and none below; got {dict(self.surroundings)}. Raise one."
            )

    def _items(self) -> list[tuple[str, Any]]:
        return [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]

    def scaled(self, factor: float) -> SynthesisConfig:
        """Return the same ranges with every length in mm multiplied by a factor, such as 0.07 for mice.

        Examples
        --------
        >>> SynthesisConfig().scaled(0.1).slice_mm
        (0.1, 0.7)
        """
        lengths = {name: value for name, value in self._items() if name.endswith("_mm")}
        scaled: dict[str, Any] = {
            name: tuple(factor * v for v in value) if isinstance(value, tuple) else factor * value
            for name, value in lengths.items()
        }
        return dataclasses.replace(self, **scaled)

    def eased(self, artefact_share: float) -> SynthesisConfig:
        """Return a config whose artefacts are a share as strong or as frequent, for the begin of a training.

        Deformations, contrasts and the tissues around the brain stay.

        Examples
        --------
        >>> SynthesisConfig().eased(0.1).slice_probability
        0.035
        """
        check_number("artefact_share", artefact_share)
        weaker: dict[str, Any] = {name: artefact_share * getattr(self, name) for name in _ARTEFACTS}
        weaker |= {name: tuple(artefact_share * v for v in getattr(self, name)) for name in ("variation", "texture")}
        return dataclasses.replace(self, **weaker)

    @classmethod
    def exact(cls, **changes: Any) -> SynthesisConfig:
        """Return a config that draws nothing but the prior's intensities, with the fields in `changes` set.

        Examples
        --------
        >>> SynthesisConfig.exact(noise=0.1).bias
        0.0
        """
        ranges = ("partial_volume", "variation", "texture", "strip_margin_mm", "strip_smoothness_mm", "contrast_width")
        plain = dict.fromkeys(ranges, (0.0, 0.0))
        numbers = {f.name: 0.0 for f in dataclasses.fields(cls) if isinstance(f.default, float)}
        always = {"brain_share": 1.0, "black_air_probability": 1.0, "surroundings": {"drawn": 1.0}}
        values: dict[str, Any] = numbers | plain | always | changes
        return cls(**values)


def check_range(name: str, value: tuple[float, ...]) -> None:
    """Raise if a range is not a pair of finite numbers, low before high.

    Examples
    --------
    >>> check_range("means", (0.1, 0.9))
    """
    if len(value) != 2 or not all(map(math.isfinite, value)) or value[0] > value[1]:
        raise ParameterError(f"{name} must be a range (low, high); got {value}. Put the smaller number first.")


def check_number(name: str, value: float) -> None:
    """Raise if a number is negative, not finite, or a probability above 1.

    Examples
    --------
    >>> check_number("noise", 0.1)
    """
    limited = name.endswith(("_probability", "_share", "_width"))
    if not 0 <= value <= (1 if limited else 1e9):
        expected = "from 0 to 1" if limited else "0 or more"
        raise ParameterError(f"{name} must be {expected}; got {value}. Pass a number in that range.")
