"""Geometry that a file does not state and that a default replaces: ``attrs["assumed"]``.

Readers call :func:`assume` for each property that they took by default. Options of :func:`mrhdata.read` that state a
property remove it again (:mod:`mrhdata.volume.overrides`), and every format that mrhdata writes stores the rest.
A step whose result such a default decides raises an error (:func:`require_stated`), or logs a warning
(:func:`warn_of_assumed`) if the result is right for volumes of one origin.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mrhdata.errors import GridError

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

#: Property -> sentence about its default, with the option that states it.
DEFAULTS = {
    "spacing": "the file states no voxel size, so 1 mm is used; pass spacing= and unit= (--spacing, --unit)",
    "unit": "the file states no unit of length, so mm is used; pass unit= (--unit)",
    "orientation": "the file states no orientation, so its axes are assumed as stored; pass axes= (--orientation)",
    "space": "the file names no world space, so it is called 'scanner'; pass space= (--space)",
    "values": "the file states no scale of values that this reader can be sure of; compare the range",
}

#: Properties that set lengths, and those that set world positions.
LENGTHS = ("spacing", "unit")
GEOMETRY = (*LENGTHS, "orientation")


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
        raise GridError(f"{label}: {reasons[0]} to mrhdata.read, or correct the file with mrhdata convert")


def warn_of_assumed(volumes: Mapping[str, xr.DataArray], step: str, *names: str) -> None:
    """Log a warning for each volume of which one of `names` was assumed, for a step whose result it may decide.

    Parameters
    ----------
    volumes : mapping of volumes
        Volumes by the name in the warning.
    step : str
        Step that uses the property, such as ``"patches(grids='resample')"``.
    *names : str
        Properties, keys of `DEFAULTS`.
    """
    for label, volume in volumes.items():
        reasons = sentences(volume, names)
        if reasons:
            log.warning("%s of %s: %s", label, step, "; ".join(reasons))


def geometry_attrs(volume: xr.DataArray) -> dict[str, Any]:
    """Return the attributes of a volume that tell what is known of its geometry, for a result on its grid."""
    listed = [name for name in assumed(volume) if name != "values"]
    kept = {key: volume.attrs[key] for key in ("source_axes",) if key in volume.attrs}
    return kept | ({"assumed": listed} if listed else {})


def _replace(volume: xr.DataArray, names: set[str]) -> xr.DataArray:
    attrs = {key: value for key, value in volume.attrs.items() if key != "assumed"}
    listed = [name for name in DEFAULTS if name in names]
    result = volume.copy(deep=False)
    result.attrs = attrs | ({"assumed": listed} if listed else {})
    return result
