from . import (
    accessor,
    assumptions,
    box,
    checks,
    construct,
    dtypes,
    file_arrays,
    geometry,
    grid,
    groups,
    kinds,
    overrides,
    packed,
    selection,
)
from .box import Box
from .construct import describe, from_array
from .geometry import Geometry
from .grid import Grid
from .groups import group, stack

__all__ = [
    "Box",
    "Geometry",
    "Grid",
    "accessor",
    "assumptions",
    "box",
    "checks",
    "construct",
    "describe",
    "dtypes",
    "file_arrays",
    "from_array",
    "geometry",
    "grid",
    "group",
    "groups",
    "kinds",
    "overrides",
    "packed",
    "selection",
    "stack",
]
