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
    patches,
    priors,
    resolution,
    structures,
    surroundings,
    synthesizer,
)
from .config import SynthesisConfig
from .label_map import LabelMap
from .patches import SyntheticPatches
from .priors import PRIORS
from .structures import FREESURFER, Anatomy, Structure
from .synthesizer import Synthesizer

__all__ = [
    "FREESURFER",
    "PRIORS",
    "Anatomy",
    "LabelMap",
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
    "patches",
    "priors",
    "resolution",
    "structures",
    "surroundings",
    "synthesizer",
]
