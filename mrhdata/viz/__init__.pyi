from . import (
    neuroglancer,
    plots,
    report,
    review_page,
)
from .plots import montage, picture, slices

__all__ = [
    "montage",
    "neuroglancer",
    "picture",
    "plots",
    "report",
    "review_page",
    "slices",
]
