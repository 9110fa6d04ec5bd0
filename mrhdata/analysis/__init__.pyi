from . import (
    contrasts,
    polynomial,
    region_counts,
    result,
    review,
    robustness,
    rows,
    scores,
    voxel_table,
)
from .contrasts import Fit, sensitivity
from .result import Sensitivity

__all__ = [
    "Fit",
    "Sensitivity",
    "contrasts",
    "polynomial",
    "region_counts",
    "result",
    "review",
    "robustness",
    "rows",
    "scores",
    "sensitivity",
    "voxel_table",
]
