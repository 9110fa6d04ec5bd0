"""Numbers and their types."""

from __future__ import annotations

from typing import Any

import numpy as np


def full_scale(dtype: np.dtype[Any]) -> float:
    """The value that counts as 1: 1 for floats, and the type's largest for integers."""
    return float(np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 1.0
