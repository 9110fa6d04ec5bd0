from . import (
    autocorrelation,
    bootstrap,
    consistency,
    detection,
    fourier,
    image,
    information,
    matching,
    overlap,
    roc,
)

__all__ = [
    "autocorrelation",
    "bootstrap",
    "consistency",
    "detection",
    "fourier",
    "image",
    "information",
    "matching",
    "overlap",
    "roc",
]
