from . import (
    analysis,
    bench,
    datasets,
    degrade,
    errors,
    inference,
    io,
    metrics,
    models,
    patching,
    phantom,
    preprocessing,
    recipes,
    registration,
    synthesis,
    training,
    viz,
    volume,
)
from .analysis import sensitivity
from .datasets import fetch, open_catalog
from .inference import detect, predict, segment
from .io import convert, read, verify, write
from .patching import patches, samplers
from .registration import register, resample
from .training import fit
from .volume import from_array

__version__: str

__all__ = [
    "__version__",
    "analysis",
    "bench",
    "convert",
    "datasets",
    "degrade",
    "detect",
    "errors",
    "fetch",
    "fit",
    "from_array",
    "inference",
    "io",
    "metrics",
    "models",
    "open_catalog",
    "patches",
    "patching",
    "phantom",
    "predict",
    "preprocessing",
    "read",
    "recipes",
    "register",
    "registration",
    "resample",
    "samplers",
    "segment",
    "sensitivity",
    "synthesis",
    "training",
    "verify",
    "viz",
    "volume",
    "write",
]
