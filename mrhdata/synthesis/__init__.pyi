from . import (
    artefacts,
    axes,
    config,
    contrast,
    draws,
    geometry,
    grids,
    intensity,
    label_map,
    mixed_patches,
    patches,
    priors,
    resolution,
    structures,
    surroundings,
    synthesizer,
)
from .config import SynthesisConfig
from .label_map import LabelMap
from .mixed_patches import MixedPatches
from .patches import SyntheticPatches
from .priors import PRIORS
from .structures import FREESURFER, Anatomy, Structure
from .synthesizer import Synthesizer

__all__ = [
    "FREESURFER",
    "PRIORS",
    "Anatomy",
    "LabelMap",
    "MixedPatches",
    "Structure",
    "SynthesisConfig",
    "Synthesizer",
    "SyntheticPatches",
    "artefacts",
    "axes",
    "config",
    "contrast",
    "draws",
    "geometry",
    "grids",
    "intensity",
    "label_map",
    "mixed_patches",
    "patches",
    "priors",
    "resolution",
    "structures",
    "surroundings",
    "synthesizer",
]
