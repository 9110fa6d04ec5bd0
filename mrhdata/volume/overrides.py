"""Headers that lie, put right: the geometry that a caller states in place of the file's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mrhdata.errors import GridError
from mrhdata.volume.construct import SPATIAL, from_array

if TYPE_CHECKING:
    import xarray as xr

    from mrhdata.volume.grid import Floats

#: Unit -> millimetres.
TO_MM = {"m": 1e3, "cm": 10.0, "mm": 1.0, "um": 1e-3, "nm": 1e-6, "angstrom": 1e-7}

#: Names that files use for them.
UNITS = {
    **{unit: unit for unit in TO_MM},
    **{"meter": "m", "metre": "m", "centimeter": "cm", "millimeter": "mm", "millimetre": "mm"},
    **{
        "micrometer": "um",
        "micrometre": "um",
        "micron": "um",
        "microns": "um",
        "µm": "um",
        "μm": "um",
        "\\u00b5m": "um",
    },
    **{"nanometer": "nm", "nanometre": "nm", "å": "angstrom"},
}

_DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


def corrected(
    volume: xr.DataArray,
    *,
    axes: str | None = None,
    unit: str | None = None,
    spacing: Sequence[float] | float | None = None,
    origin: Sequence[float] | None = None,
) -> xr.DataArray:
    """Place a volume by what the caller says, where that differs from its file; see :func:`mrhdata.read`."""
    if axes is None and unit is None and spacing is None and origin is None:
        return volume
    order = file_axes(volume)
    extra = [str(d) for d in volume.dims if d not in SPATIAL]
    data, affine = volume.mrh.in_order([*extra, *order])
    stated = volume.attrs.get("source_unit", "mm")
    scale = _factor(unit or "mm")
    # The numbers in the file, read in the caller's unit; in the file's own where none is given.
    affine = np.diag([*[_factor(unit or stated) / _factor(stated)] * 3, 1.0]) @ affine
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / steps
    start = affine[:3, 3]
    if axes is not None:
        # An origin belongs to the axes that it was written for.
        directions, start = _directions(axes), np.zeros(3)
    if spacing is not None:
        steps = _three(spacing, "spacing", order) * scale
        if (steps <= 0).any():
            raise GridError(f"spacing={spacing!r} must be positive along every axis")
    if origin is not None:
        start = _three(origin, "origin", ["X", "Y", "Z"]) * scale
    placed = np.eye(4)
    placed[:3, :3], placed[:3, 3] = directions * steps, start
    return _replaced(volume, data, placed, [*extra, *order], oriented=axes is not None)


def _replaced(volume: xr.DataArray, data: Any, affine: Floats, dims: list[str], oriented: bool) -> xr.DataArray:
    """The volume with another affine; what was no stack with an orientation becomes none."""
    replaced = ("affine", "space", "source_axes", "source_unit", "spacing_stated")
    attrs = {k: v for k, v in volume.attrs.items() if k not in replaced}
    result = from_array(data, affine=affine, dims=dims, space=volume.mrh.space, **attrs).rename(volume.name)
    if not oriented and "source_axes" not in volume.attrs:
        result.attrs.pop("source_axes")
    if "c" in volume.coords:
        result = result.assign_coords(c=volume.coords["c"])
    return result.isel({d: 0 for d in SPATIAL if d not in volume.dims and result.sizes[d] == 1})


def file_axes(volume: xr.DataArray) -> list[str]:
    """The spatial axes in the order in which the volume's file lists them."""
    listed = [d for d in volume.attrs.get("source_axes", SPATIAL) if d in SPATIAL]
    return [*(d for d in SPATIAL if d not in listed), *listed]


def _directions(axes: str) -> Floats:
    letters = axes.upper()
    rows = [_DIRECTIONS[letter][0] for letter in letters if letter in _DIRECTIONS]
    if len(letters) != 3 or sorted(rows) != [0, 1, 2]:
        raise GridError(
            f"axes={axes!r}: give three letters, one each of R/L, A/P and S/I, that say where the file's axes point"
        )
    directions = np.zeros((3, 3))
    for column, letter in enumerate(letters):
        row, sign = _DIRECTIONS[letter]
        directions[row, column] = sign
    return directions


def _factor(unit: str) -> float:
    name = UNITS.get(unit, UNITS.get(unit.lower(), ""))
    if name not in TO_MM:
        raise GridError(f"unit={unit!r} is not known; known are {', '.join(TO_MM)}")
    return TO_MM[name]


def _three(values: Sequence[float] | float, what: str, order: Sequence[str]) -> Floats:
    try:
        numbers = np.asarray(values, dtype=np.float64)
        numbers = np.full(3, float(numbers)) if numbers.ndim == 0 and what == "spacing" else numbers
    except (TypeError, ValueError) as error:
        raise GridError(f"{what}={values!r} is not three numbers") from error
    if numbers.shape != (3,) or not np.isfinite(numbers).all():
        raise GridError(f"{what}={values!r}: give three numbers, along {', '.join(order)}")
    return numbers
