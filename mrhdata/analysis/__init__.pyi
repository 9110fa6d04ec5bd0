from . import (
    contrasts,
    polynomial,
    region_counts,
    review,
    robustness,
    rows,
    voxel_table,
)
from .contrasts import Fit, Sensitivity, sensitivity

__all__ = [
    "Fit",
    "Sensitivity",
    "contrasts",
    "polynomial",
    "region_counts",
    "review",
    "robustness",
    "rows",
    "sensitivity",
    "voxel_table",
]
