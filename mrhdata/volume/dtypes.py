"""Types of voxel values."""

from __future__ import annotations

from typing import Any

import numpy as np


def full_scale(dtype: np.dtype[Any]) -> float:
    """Return the value that stands for 1: 1 for floats, and the type's largest value for integers."""
    return float(np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 1.0
