"""Steps by name, so that a network's folder can say what its volumes went through, and nothing there is code.

`PREPARE` turns a group of volumes into what the network was trained on, `FINISH` turns its labels into those
that are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from mrhdata.errors import DataError, ModelError
from mrhdata.preprocessing import intensity, regrid
from mrhdata.volume.construct import SPATIAL

if TYPE_CHECKING:
    import xarray as xr

Group = dict[str, "xr.DataArray"]
Steps = Sequence[tuple[str, Mapping[str, Any]]]


def _each(change: Callable[..., xr.DataArray]) -> Callable[..., Group]:
    """A step for each volume by itself; ``only`` names those that it is for, ``but`` those that it is not for."""

    def step(group: Group, only: Sequence[str] | None = None, but: Sequence[str] = (), **settings: Any) -> Group:
        chosen = [name for name in group if (only is None or name in only) and name not in but]
        return {name: change(v, **settings) if name in chosen else v for name, v in group.items()}

    return step


def _upright(group: Group, spacing_mm: Sequence[float]) -> Group:
    """Onto the upright grid of the first volume."""
    return regrid.on_grid(group, regrid.upright(_first(group).mrh.grid, spacing_mm))


def _extent(group: Group, shape: Sequence[int]) -> Group:
    """Cut or filled up with 0."""
    return regrid.on_grid(group, regrid.fitted(_first(group).mrh.grid, shape))


def _location(group: Group, most_mm: float = 50.0) -> Group:
    """Three more volumes: millimetres along x, y, z from the middle of what is not 0, cut off on both sides.

    In levels of 0 to 255, as :func:`~mrhdata.preprocessing.intensity.window` has them (segDGM_CNN, 2017).
    """
    first = _first(group)
    inside = np.argwhere(np.asarray(first.data) != 0)
    if not len(inside):
        raise DataError(f"{first.name} holds nothing but 0, so it has no middle")
    added = {}
    for axis, name in ((2, "x"), (1, "y"), (0, "z")):
        away = (np.arange(first.shape[axis]) - inside[:, axis].mean()) * first.mrh.spacing[axis]
        shape = [-1 if a == axis else 1 for a in range(3)]
        values = np.broadcast_to(away.astype(np.float32).reshape(shape), first.shape)
        located = first.copy(data=np.ascontiguousarray(values)).rename(name)
        added[name] = intensity.window(located, -most_mm, most_mm)
    return group | added


def _largest(labels: xr.DataArray, connectivity: int = 1) -> xr.DataArray:
    """The largest connected part of each label; its other parts become background.

    Neighbours share a face (1), an edge (2) or a corner (3).
    """
    values = labels.values.copy()
    touching = ndimage.generate_binary_structure(3, connectivity)
    for label, box in enumerate(ndimage.find_objects(values), start=1):
        if box is None:
            continue
        part = values[box]
        parts, count = ndimage.label(part == label, touching)
        if count > 1:
            part[(parts > 0) & (parts != 1 + np.bincount(parts.ravel())[1:].argmax())] = 0
    return labels.copy(data=values)


PREPARE: dict[str, Callable[..., Group]] = {
    "normalise": _each(intensity.normalise),
    "window": _each(intensity.window),
    "ppm": _each(intensity.in_ppm),
    "upright": _upright,
    "extent": _extent,
    "location": _location,
}
FINISH: dict[str, Callable[..., xr.DataArray]] = {"largest": _largest}


def prepared(group: Mapping[str, xr.DataArray], steps: Steps) -> Group:
    """Volumes after steps of `PREPARE`.

    Raises
    ------
    ModelError
        There is no such step, or it has no such setting.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> v = from_array(np.arange(8.0).reshape(2, 2, 2), spacing=(1, 1, 1))
    >>> float(prepared({"t1w": v}, [("normalise", {"how": "minmax"})])["t1w"].max())
    1.0
    """
    found = {name: _three_axes(volume) for name, volume in group.items()}
    for name, settings in steps:
        found = _run(PREPARE, name, settings, found)
    return found


def finished(labels: xr.DataArray, steps: Steps) -> xr.DataArray:
    """Labels after steps of `FINISH`."""
    for name, settings in steps:
        labels = _run(FINISH, name, settings, labels)
    return labels


def _run(table: Mapping[str, Callable[..., Any]], name: str, settings: Mapping[str, Any], given: Any) -> Any:
    if name not in table:
        raise ModelError(f"there is no step called {name!r}; there are {', '.join(table)}")
    try:
        return table[name](given, **settings)
    except TypeError as error:
        raise ModelError(f"the step {name} does not take {dict(settings)} ({error})") from error


def _three_axes(volume: xr.DataArray) -> xr.DataArray:
    """With all three spatial axes."""
    missing = {d: 1 for d in SPATIAL if d not in volume.dims}
    return volume.expand_dims(missing).transpose(..., *SPATIAL) if missing else volume


def _first(group: Group) -> xr.DataArray:
    return next(iter(group.values()))
