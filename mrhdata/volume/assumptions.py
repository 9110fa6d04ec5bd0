"""Geometry that a file does not state and that a default replaces: ``attrs["assumed"]``.

Readers call :func:`assume` for each property that they took by default. Options of :func:`mrhdata.read` that state a
property remove it again (:mod:`mrhdata.volume.overrides`), and every format that mrhdata writes stores the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mrhdata.errors import GridError

if TYPE_CHECKING:
    import xarray as xr

#: Property -> sentence about its default, with the option that states it.
DEFAULTS = {
    "spacing": "the file states no voxel size, so 1 mm is used; pass spacing= and unit=",
    "unit": "the file states no unit of length, so mm is used; pass unit=",
    "orientation": "the file states no orientation, so its axes are assumed as stored; pass axes=",
    "space": "the file names no world space, so it is called 'scanner'; pass space=",
    "values": "the file states no scale of values that this reader can be sure of; compare the range",
}


def assume(volume: xr.DataArray, *names: str) -> xr.DataArray:
    """Return the volume with properties added to those that its file did not state.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> import numpy as np
    >>> assumed(assume(from_array(np.zeros((2, 2, 2)), spacing=(1, 1, 1)), "unit", "spacing"))
    ('spacing', 'unit')
    """
    return _replace(volume, {*assumed(volume), *names})


def stated(volume: xr.DataArray, *names: str) -> xr.DataArray:
    """Return the volume with properties removed from those that its file did not state."""
    return _replace(volume, set(assumed(volume)) - set(names))


def assumed(volume: xr.DataArray) -> tuple[str, ...]:
    """Return the properties that the volume's file did not state, in the order of `DEFAULTS`."""
    return tuple(name for name in DEFAULTS if name in volume.attrs.get("assumed", ()))


def sentences(volume: xr.DataArray, names: Iterable[str] = tuple(DEFAULTS)) -> list[str]:
    """Return a sentence for each of `names` that was assumed."""
    return [DEFAULTS[name] for name in assumed(volume) if name in names]


def require_stated(volume: xr.DataArray, label: str, *names: str) -> None:
    """Raise GridError if one of `names` was assumed, for a step whose result it decides."""
    reasons = sentences(volume, names)
    if reasons:
        raise GridError(f"{label}: {reasons[0]} of mrhdata.read, or correct the file")


def _replace(volume: xr.DataArray, names: set[str]) -> xr.DataArray:
    attrs = {key: value for key, value in volume.attrs.items() if key != "assumed"}
    listed = [name for name in DEFAULTS if name in names]
    result = volume.copy(deep=False)
    result.attrs = attrs | ({"assumed": listed} if listed else {})
    return result
