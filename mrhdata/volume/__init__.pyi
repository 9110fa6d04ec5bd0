from . import (
    accessor,
    construct,
    dtypes,
    file_arrays,
    grid,
    overrides,
)
from .construct import Geometry, describe, from_array, group, stack
from .grid import Grid

__all__ = [
    "Geometry",
    "Grid",
    "accessor",
    "construct",
    "describe",
    "dtypes",
    "file_arrays",
    "from_array",
    "grid",
    "group",
    "overrides",
    "stack",
]
