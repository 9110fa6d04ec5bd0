"""Processing steps by name, so that a model folder can list the steps of its volumes without containing code.

`PREPARE` steps turn a group of volumes into the inputs of the network; `FINISH` steps clean up its labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from mrhdata.errors import DataError, ModelError
from mrhdata.preprocessing import intensity, regrid
from mrhdata.preprocessing.refinement import refine
from mrhdata.volume.construct import SPATIAL

if TYPE_CHECKING:
    import xarray as xr

Group = dict[str, "xr.DataArray"]
Steps = Sequence[tuple[str, Mapping[str, Any]]]


def _for_each(change: Callable[..., xr.DataArray]) -> Callable[..., Group]:
    """Return a step that changes each volume separately; ``only`` selects volumes by name, ``but`` excludes them."""

    def step(group: Group, only: Sequence[str] | None = None, but: Sequence[str] = (), **settings: Any) -> Group:
        selected = [name for name in group if (only is None or name in only) and name not in but]
        return {name: change(v, **settings) if name in selected else v for name, v in group.items()}

    return step


def _upright(group: Group, spacing_mm: Sequence[float]) -> Group:
    """Resample to the upright grid of the first volume."""
    return regrid.resample_group(group, regrid.upright(_first(group).mrh.grid, spacing_mm))


def _extent(group: Group, shape: Sequence[int]) -> Group:
    """Crop, or pad with 0, to a shape."""
    return regrid.resample_group(group, regrid.crop_or_pad(_first(group).mrh.grid, shape))


def _location(group: Group, most_mm: float = 50.0) -> Group:
    """Add three volumes: distances along x, y, z from the centroid of the non-zero voxels, clipped at `most_mm`.

    They have levels of 0 to 255, as in :func:`~mrhdata.preprocessing.intensity.window` (segDGM_CNN, 2017).
    """
    first = _first(group)
    inside = np.argwhere(np.asarray(first.data) != 0)
    if not len(inside):
        raise DataError(f"{first.name} must have voxels that are not 0; the step location starts at their centroid")
    locations = {}
    for axis, name in ((2, "x"), (1, "y"), (0, "z")):
        distance_mm = (np.arange(first.shape[axis]) - inside[:, axis].mean()) * first.mrh.spacing[axis]
        shape = [-1 if a == axis else 1 for a in range(3)]
        values = np.broadcast_to(distance_mm.astype(np.float32).reshape(shape), first.shape)
        location = first.copy(data=np.ascontiguousarray(values)).rename(name)
        locations[name] = intensity.window(location, -most_mm, most_mm)
    return group | locations


def _largest(labels: xr.DataArray, connectivity: int = 1) -> xr.DataArray:
    """Keep the largest connected component of each label; its other components become background.

    `connectivity`: neighbours share a face (1), at least an edge (2) or at least a corner (3).
    """
    values = labels.values.copy()
    neighbourhood = ndimage.generate_binary_structure(3, connectivity)
    for label, box in enumerate(ndimage.find_objects(values), start=1):
        if box is None:
            continue
        crop = values[box]
        components, count = ndimage.label(crop == label, neighbourhood)
        if count > 1:
            largest = 1 + np.bincount(components.ravel())[1:].argmax()
            crop[(components > 0) & (components != largest)] = 0
    return labels.copy(data=values)


PREPARE: dict[str, Callable[..., Group]] = {
    "normalise": _for_each(intensity.normalise),
    "window": _for_each(intensity.window),
    "ppm": _for_each(intensity.to_ppm),
    "upright": _upright,
    "extent": _extent,
    "location": _location,
}
FINISH: dict[str, Callable[..., xr.DataArray]] = {"largest": _largest, "refine": refine}
#: Steps of `FINISH` that also take the image.
_WITH_IMAGE = ("refine",)


def prepare(group: Mapping[str, xr.DataArray], steps: Steps) -> Group:
    """Apply steps of `PREPARE` to a group of volumes.

    Raises
    ------
    ModelError
        A step or one of its settings is unknown.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> v = from_array(np.arange(8.0).reshape(2, 2, 2), spacing=(1, 1, 1))
    >>> float(prepare({"t1w": v}, [("normalise", {"how": "minmax"})])["t1w"].max())
    1.0
    """
    volumes = {name: _with_three_axes(volume) for name, volume in group.items()}
    for name, settings in steps:
        volumes = _run_step(PREPARE, name, settings, volumes)
    return volumes


def finish(labels: xr.DataArray, steps: Steps, image: xr.DataArray) -> xr.DataArray:
    """Apply steps of `FINISH` to the labels of an image on the same grid."""
    for name, settings in steps:
        extra = {"image": image} if name in _WITH_IMAGE else {}
        labels = _run_step(FINISH, name, {**settings, **extra}, labels)
    return labels


def _run_step(table: Mapping[str, Callable[..., Any]], name: str, settings: Mapping[str, Any], data: Any) -> Any:
    if name not in table:
        raise ModelError(f"a step must be one of {', '.join(table)}; got {name!r}")
    try:
        return table[name](data, **settings)
    except TypeError as error:
        raise ModelError(f"the step {name} cannot run with {dict(settings)} ({error})") from error


def _with_three_axes(volume: xr.DataArray) -> xr.DataArray:
    """Return the volume with all three spatial axes."""
    missing = {d: 1 for d in SPATIAL if d not in volume.dims}
    return volume.expand_dims(missing).transpose(..., *SPATIAL) if missing else volume


def _first(group: Group) -> xr.DataArray:
    return next(iter(group.values()))
