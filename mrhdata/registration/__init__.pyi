from . import (
    demons,
    images,
    initialize,
    itk,
    linear,
    pipeline,
    quality,
    resampling,
    sections,
    simulate,
    transforms,
)
from .demons import Deformation
from .pipeline import register
from .resampling import resample
from .sections import register_section
from .transforms import Affine, Displacement, Transform

__all__ = [
    "Affine",
    "Deformation",
    "Displacement",
    "Transform",
    "demons",
    "images",
    "initialize",
    "itk",
    "linear",
    "pipeline",
    "quality",
    "register",
    "register_section",
    "resample",
    "resampling",
    "sections",
    "simulate",
    "transforms",
]
