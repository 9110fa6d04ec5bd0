"""Correction of wrong headers: geometry from options that replaces that of the file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mrhdata.errors import ParameterError
from mrhdata.volume.assumptions import stated
from mrhdata.volume.construct import SPATIAL, from_array

if TYPE_CHECKING:
    import xarray as xr

    from mrhdata.volume.grid import Floats

#: Unit -> millimetres.
TO_MM = {"m": 1e3, "cm": 10.0, "mm": 1.0, "um": 1e-3, "nm": 1e-6, "angstrom": 1e-7}

#: Name that files use -> unit.
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


def unit_name(text: str) -> str | None:
    """Return the unit of length that a file names, singular or plural; None if it is not known.

    Examples
    --------
    >>> unit_name("Microns"), unit_name("mm"), unit_name("pixel")
    ('um', 'mm', None)
    """
    name = text.strip().lower()
    return UNITS.get(name) or UNITS.get(name.removesuffix("s"))


def corrected(
    volume: xr.DataArray,
    *,
    axes: str | None = None,
    unit: str | None = None,
    spacing: Sequence[float] | float | None = None,
    origin: Sequence[float] | None = None,
) -> xr.DataArray:
    """Return the volume with the geometry of the options in place of its file's; see :func:`mrhdata.read`."""
    if axes is None and unit is None and spacing is None and origin is None:
        return volume
    order = file_axes(volume)
    extra = [str(d) for d in volume.dims if d not in SPATIAL]
    data, affine = volume.mrh.in_order([*extra, *order])
    file_unit = volume.attrs.get("source_unit", "mm")
    scale = _factor(unit or "mm")
    # The numbers in the file, in the unit of the option, by default in that of the file.
    affine = np.diag([*[_factor(unit or file_unit) / _factor(file_unit)] * 3, 1.0]) @ affine
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / steps
    start = affine[:3, 3]
    if axes is not None:
        # The file's origin is valid only for the file's axes.
        directions, start = _directions(axes), np.zeros(3)
    if spacing is not None:
        steps = _three(spacing, "spacing", order) * scale
        if (steps <= 0).any():
            raise ParameterError(f"spacing must be positive along every axis; got {spacing!r}")
    if origin is not None:
        start = _three(origin, "origin", ["X", "Y", "Z"]) * scale
    matrix = np.eye(4)
    matrix[:3, :3] = directions * steps
    matrix[:3, 3] = start
    options = {"orientation": axes, "unit": unit, "spacing": spacing}
    result = _replace_affine(volume, data, matrix, [*extra, *order], oriented=axes is not None)
    # Spacing without a unit is in millimetres, as the documentation of the option says.
    named = [name for name, value in options.items() if value is not None]
    return stated(result, *named, *(["unit"] if spacing is not None else []))


def _replace_affine(volume: xr.DataArray, data: Any, affine: Floats, dims: list[str], oriented: bool) -> xr.DataArray:
    """Return the volume with another affine. A volume without orientation gets one only if `oriented`."""
    replaced = ("affine", "space", "source_axes", "source_unit")
    attrs = {k: v for k, v in volume.attrs.items() if k not in replaced}
    result = from_array(data, affine=affine, dims=dims, space=volume.mrh.space, **attrs).rename(volume.name)
    if not oriented and "source_axes" not in volume.attrs:
        result.attrs.pop("source_axes")
    result = result.assign_coords({d: volume.coords[d] for d in ("t", "c") if d in volume.coords})
    return result.isel({d: 0 for d in SPATIAL if d not in volume.dims and result.sizes[d] == 1})


def file_axes(volume: xr.DataArray) -> list[str]:
    """Return the spatial axes in the order of the volume's file."""
    listed = [d for d in volume.attrs.get("source_axes", SPATIAL) if d in SPATIAL]
    return [*(d for d in SPATIAL if d not in listed), *listed]


def _directions(axes: str) -> Floats:
    letters = axes.upper()
    rows = [_DIRECTIONS[letter][0] for letter in letters if letter in _DIRECTIONS]
    if len(letters) != 3 or sorted(rows) != [0, 1, 2]:
        raise ParameterError(
            f"axes must be three letters, one each of R or L, A or P, S or I, for the directions of the file's axes; "
            f"got {axes!r}"
        )
    directions = np.zeros((3, 3))
    for column, letter in enumerate(letters):
        row, sign = _DIRECTIONS[letter]
        directions[row, column] = sign
    return directions


def _factor(unit: str) -> float:
    name = UNITS.get(unit, UNITS.get(unit.lower(), ""))
    if name not in TO_MM:
        raise ParameterError(f"unit must be one of {', '.join(TO_MM)}; got {unit!r}")
    return TO_MM[name]


def _three(values: Sequence[float] | float, name: str, order: Sequence[str]) -> Floats:
    try:
        numbers = np.asarray(values, dtype=np.float64)
        numbers = np.full(3, float(numbers)) if numbers.ndim == 0 and name == "spacing" else numbers
    except (TypeError, ValueError) as error:
        raise ParameterError(
            f"{name} must be three finite numbers, along {', '.join(order)}; got {values!r}"
        ) from error
    if numbers.shape != (3,) or not np.isfinite(numbers).all():
        raise ParameterError(f"{name} must be three finite numbers, along {', '.join(order)}; got {values!r}")
    return numbers
