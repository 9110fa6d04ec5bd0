"""Geometry of images of other programs: units, coordinate transformations, and doubts about levels."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrhdata.errors import FormatError
from mrhdata.io.omezarr.arrays import open_level
from mrhdata.io.omezarr.images import Image
from mrhdata.io.omezarr.transforms import level_matrix
from mrhdata.io.omezarr.units import millimetres, seconds
from mrhdata.volume.assumptions import assume
from mrhdata.volume.construct import DIMS, SPATIAL, UNORIENTED, from_array, place
from mrhdata.volume.grid import Floats
from mrhdata.volume.times import with_times

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

log = logging.getLogger("mrhdata")

#: Voxels by which the extents of two levels may differ, in voxels of the coarser one, and as a fraction.
_EXTENT_VOXELS, _EXTENT_FRACTION = 1.5, 0.01


def placed(data: da.Array, image: Image, level: int, path: Path | str) -> xr.DataArray:
    """Return a level of an image of another program, placed by its coordinate transformations.

    Parameters
    ----------
    data : dask.array.Array
        Voxels in the order of the image's axes.
    image : Image
    level : int
    path : path or URL
        Store that errors name.

    Raises
    ------
    FormatError
        The geometry is not stated, or cannot be that of a volume.
    """
    label = f"{path} (level {level})"
    matrix = level_matrix(image.metadata, image.metadata["datasets"][level], label)
    unstated, factors, unit = _units(image, matrix, label)
    spatial = [i for i, name in enumerate(image.axes) if name in SPATIAL]
    _check_apart(matrix, spatial, label)
    rows = [*spatial, len(image.axes)]
    local = np.diag([*factors, 1.0]) @ matrix[np.ix_(rows, rows)]
    kind = "labels" if _is_labels(image, path, data.dtype.kind) else "image"
    attrs = {"space": "scanner", "kind": kind, "name": image.metadata.get("name") or None}
    steps = local[:-1, :-1]
    if np.array_equal(steps, np.diag(np.diag(steps))) and (np.diag(steps) > 0).all():
        volume = _along_axes(data, image.axes, np.diag(steps), local[:-1, -1], attrs)
    else:
        volume = _turned(data, image.axes, local, attrs, label)
    if unit not in (None, "millimeter"):
        volume.attrs["source_unit"] = unit
    volume = assume(volume, *unstated, "orientation", "space")
    names = [str(c.get("label")) for c in image.ome.get("omero", {}).get("channels", [])]
    if names and len(names) == volume.sizes.get("c"):
        volume = volume.assign_coords(c=names)
    return _with_stated_times(volume, image, matrix, label)


def doubt_of_level(image: Image, level: int, path: Path | str) -> str | None:
    """Return a sentence if the position of a coarser level cannot be relied on, otherwise None.

    Programs write pyramids by the mean or by every second voxel. Their first voxels lie at different places, so a
    coarser level must state where it begins.
    """
    if level == 0:
        return None
    axes = [i for i, name in enumerate(image.axes) if name in SPATIAL]
    datasets = image.metadata["datasets"]
    fine, coarse = (level_matrix(image.metadata, datasets[n], f"{path} (level {n})") for n in (0, level))
    arrays = [open_level(image.group, str(datasets[n]["path"]), path, complete=True) for n in (0, level)]
    if any(array.ndim != len(image.axes) for array in arrays):
        return None
    for axis in axes:
        steps = [float(np.linalg.norm(matrix[axes, axis])) for matrix in (fine, coarse)]
        lengths = [step * array.shape[axis] for step, array in zip(steps, arrays, strict=True)]
        name = image.axes[axis]
        if abs(lengths[0] - lengths[1]) > _EXTENT_VOXELS * max(steps) + _EXTENT_FRACTION * lengths[0]:
            return f"level {level} is {lengths[1]:.6g} long along {name} but level 0 {lengths[0]:.6g}; a scale is wrong"
        direction = fine[axes, axis] / steps[0]
        begin = float(direction @ (coarse - fine)[axes, -1])
        if steps[1] > 1.01 * steps[0] and abs(begin) < 1e-3 * steps[0]:
            off = f"{(steps[1] - steps[0]) / 2:.6g}"
            return f"level {level} does not state where it begins; it may lie {off} (unit of the file) off along {name}"
    return None


def _with_stated_times(volume: xr.DataArray, image: Image, matrix: Floats, label: str) -> xr.DataArray:
    """Return the volume with the times that the image states, in seconds."""
    if "t" not in volume.dims:
        return volume
    axis = image.axes.index("t")
    step, begin = matrix[axis, axis], matrix[axis, -1]
    unit = image.metadata["axes"][axis].get("unit")
    factor = seconds(unit)
    if factor is None:
        if step != 1:
            log.warning(
                "%s: its times are %g apart in the unit %r, which is unknown, so they are left out", label, step, unit
            )
        return volume
    return with_times(volume, step * factor, begin * factor)


def _units(image: Image, matrix: Floats, label: str) -> tuple[list[str], list[float], str | None]:
    """Return what is assumed of lengths, the millimetres per unit of each spatial axis, and the unit if it is one."""
    axes = [(i, axis) for i, axis in enumerate(image.metadata["axes"]) if axis["name"] in SPATIAL]
    if not axes:
        raise FormatError(f"{label} must have at least one of the axes {SPATIAL}; got {image.axes}")
    factors = [millimetres(axis.get("unit")) for _, axis in axes]
    stated = [factor for factor in factors if factor is not None]
    if not stated:
        plain = all(np.linalg.norm(matrix[:-1, i]) == 1 for i, _ in axes)
        return ["unit", *(["spacing"] if plain else [])], [1.0] * len(axes), None
    units = {str(axis["unit"]).lower() for _, axis in axes if millimetres(axis.get("unit")) is not None}
    if len(stated) < len(axes):
        missing = ", ".join(axis["name"] for (_, axis), factor in zip(axes, factors, strict=True) if factor is None)
        if len(set(stated)) > 1:
            raise FormatError(
                f"{label} states the units {sorted(units)} but none for axis {missing}. Add it to the metadata"
            )
        log.warning(
            "%s states no unit for axis %s; that of the others (%s) is used. Pass spacing= and unit= if it is another",
            *(label, missing, *units),
        )
    return [], [stated[0] if factor is None else factor for factor in factors], units.pop() if len(units) == 1 else None


def _check_apart(matrix: Floats, spatial: list[int], label: str) -> None:
    """Raise FormatError if a transformation mixes space with time or channels."""
    others = [i for i in range(len(matrix) - 1) if i not in spatial]
    mixed = matrix[np.ix_(spatial, others)].any() or matrix[np.ix_(others, spatial)].any()
    if mixed or np.count_nonzero(matrix[np.ix_(others, others)]) != len(others):
        raise FormatError(f"{label}: its transformations mix space with time or channels, which a volume cannot hold")


def _along_axes(
    data: da.Array, axes: list[str], steps: Floats, starts: Floats, attrs: Mapping[str, Any]
) -> xr.DataArray:
    """Place an image whose axes lie along the world axes; a missing axis is as thick as the finest other one."""
    names = [name for name in axes if name in SPATIAL]
    spacing, start = np.full(3, steps.min()), np.zeros(3)
    for name, step, first in zip(names, steps, starts, strict=True):
        spacing[SPATIAL.index(name)], start[SPATIAL.index(name)] = step, first
    order = [axes.index(d) for d in DIMS if d in axes]
    # Even an identity transpose would hide the file behind the Dask array.
    data = data if order == list(range(len(axes))) else data.transpose(order)
    return place(data, [axes[i] for i in order], spacing, UNORIENTED, start=start, **attrs)


def _turned(data: da.Array, axes: list[str], matrix: Floats, attrs: Mapping[str, Any], label: str) -> xr.DataArray:
    """Place an image whose transformations turn or shear it."""
    names = [name for name in axes if name in SPATIAL]
    if len(names) != 3:
        raise FormatError(f"{label}: its transformations turn it, which needs the axes {SPATIAL}; got {names}")
    if np.linalg.matrix_rank(matrix[:-1, :-1] / np.linalg.norm(matrix[:-1, :-1])) < 3:
        raise FormatError(f"{label}: its transformations flatten it; got {matrix[:-1, :-1].tolist()}")
    # Rows are positions along the image's axes; z, y, x lie along world Z, Y, X.
    affine = np.eye(4)
    affine[:3] = matrix[[names.index(name) for name in ("x", "y", "z")]]
    volume = from_array(data, affine=affine, dims=axes, **attrs)
    renamed = [d for d in volume.attrs["source_axes"] if d in SPATIAL]
    if renamed != names:
        log.warning(
            "%s: its transformations turn it; its axes %s lie nearest to %s and are named so", label, names, renamed
        )
    return volume


def _is_labels(image: Image, path: Path | str, kind: str) -> bool:
    """Return whether an image holds labels: by its metadata, or whole numbers in a group named ``labels``."""
    parts = (*Path(str(path)).parts, *Path(image.group.path).parts)
    return "image-label" in image.ome or (parts[-2:-1] == ("labels",) and kind in "iu")
