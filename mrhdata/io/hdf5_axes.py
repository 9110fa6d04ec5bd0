"""Names and steps of the axes of HDF5 arrays, as the programs that write them store them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mrhdata.errors import FormatError
from mrhdata.volume.construct import DIMS, SPATIAL
from mrhdata.volume.overrides import TO_MM, unit_name
from mrhdata.volume.times import TO_SECONDS

log = logging.getLogger("mrhdata")

#: Attributes for the voxel size along the array's axes -> their unit in mm.
_SPACING_ATTRIBUTES = {"element_size_um": 1e-3, "resolution": 1e-6}
#: Label of an axis -> its name.
_LABELS = {
    **{dim: dim for dim in DIMS},
    **{"time": "t", "channel": "c", "channels": "c", "depth": "z", "plane": "z", "height": "y", "row": "y"},
    **{"width": "x", "column": "x"},
}
#: Array of BigDataViewer, with time, setup and level; array of Imaris, with its channel.
BIGDATAVIEWER = re.compile(r"t\d{5,}/s\d{2,}/\d+/cells")
IMARIS = re.compile(r"(DataSet/ResolutionLevel \d+/TimePoint \d+/Channel \d+)/Data")


@dataclass(frozen=True)
class AxesOfArray:
    """Axes of an array.

    Attributes
    ----------
    dims : tuple of str
        Names in the array's order.
    steps : tuple of float, optional
        Voxel size in mm along the spatial axes in the array's order, if the file states it.
    start : tuple of float
        Position in mm of the first voxel along the spatial axes.
    time : tuple of float, optional
        Seconds between two times, and the first time.
    shape : tuple of int, optional
        Lengths without padding, if the file states them.
    """

    dims: tuple[str, ...]
    steps: tuple[float, ...] | None = None
    start: tuple[float, ...] | None = None
    time: tuple[float, float] | None = None
    shape: tuple[int, ...] | None = None


def axes_of(array: Any, path: Path) -> AxesOfArray:
    """Return the axes of an open HDF5 array.

    Raises
    ------
    FormatError
        The file names axes that a volume cannot have.
    """
    attributes = dict(array.attrs)
    name = array.name.strip("/")
    if IMARIS.fullmatch(name):
        return _of_imaris(array)
    if "axistags" in attributes:
        axes = AxesOfArray(_tagged(attributes["axistags"], array.ndim, path))
    else:
        axes = _labelled(array) or AxesOfArray(_by_number(array.ndim, path))
    return _with_attributes(axes, attributes)


def _tagged(text: Any, ndim: int, path: Path) -> tuple[str, ...]:
    """Return the axes of ilastik's ``axistags``."""
    try:
        content = json.loads(text)
        keys = tuple(str(axis["key"]).lower() for axis in content["axes"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise FormatError(f"{path}: the attribute axistags must be a list of axes as ilastik writes it") from None
    if len(keys) != ndim or len(set(keys)) < ndim or not set(keys) <= set(DIMS):
        raise FormatError(f"{path}: axistags must name {ndim} different axes of {', '.join(DIMS)}; got {keys}")
    return keys


def _labelled(array: Any) -> AxesOfArray | None:
    """Return the axes of an array whose dimensions have labels or scales that are known."""
    labels = [dim.label or (dim.keys()[0] if len(dim) else "") for dim in array.dims]
    dims = tuple(_LABELS.get(label.rpartition("/")[2].lower(), "") for label in labels)
    if "" in dims or len(set(dims)) < len(dims):
        return None
    scales = {dim: _scale(array.dims[i]) for i, dim in enumerate(dims)}
    spatial = [_length(scales[d]) for d in dims if d in SPATIAL]
    steps = None if None in spatial else tuple(step for step in spatial if step is not None)
    return AxesOfArray(dims, steps, time=_seconds(scales.get("t")))


def _scale(dim: Any) -> tuple[float, float, str] | None:
    """Return step, start and unit of a dimension's scale, if it is regular."""
    if not len(dim) or dim[0].ndim != 1 or not 2 <= dim[0].size <= 10**6 or dim[0].dtype.kind not in "iuf":
        return None
    values = np.asarray(dim[0][:], dtype=np.float64)
    step = (values[-1] - values[0]) / (values.size - 1)
    if not step > 0 or np.abs(np.diff(values) - step).max() > 1e-3 * step:
        return None
    unit = dim[0].attrs.get("units", b"")
    return step, float(values[0]), unit.decode() if isinstance(unit, bytes) else str(unit)


def _length(scale: tuple[float, float, str] | None) -> float | None:
    unit = unit_name(scale[2]) if scale is not None else None
    return scale[0] * TO_MM[unit] if scale is not None and unit is not None else None


def _seconds(scale: tuple[float, float, str] | None) -> tuple[float, float] | None:
    factor = TO_SECONDS.get(scale[2].lower()) if scale is not None else None
    return (scale[0] * factor, scale[1] * factor) if scale is not None and factor is not None else None


def _by_number(ndim: int, path: Path) -> tuple[str, ...]:
    """Return the last names of t, c, z, y, x."""
    dims = DIMS[len(DIMS) - ndim :]
    if ndim > 3:
        log.warning(
            "%s does not name its %d axes, so they are read as %s; name them with dimension labels", path, ndim, dims
        )
    return dims


def _with_attributes(axes: AxesOfArray, attributes: Mapping[str, Any]) -> AxesOfArray:
    """Return the axes with the voxel size of an attribute, and the position if the file has one in the same unit."""
    count = sum(dim in SPATIAL for dim in axes.dims)
    for key, mm in _SPACING_ATTRIBUTES.items():
        steps = _numbers(attributes.get(key), count)
        if steps is not None and (steps > 0).all():
            offset = _numbers(attributes.get("offset"), count) if key == "resolution" else None
            start = None if offset is None else tuple((offset * mm).tolist())
            return replace(axes, steps=tuple((steps * mm).tolist()), start=start)
    return axes


def _numbers(value: Any, count: int) -> np.ndarray | None:
    """Return an attribute of `count` finite numbers, otherwise None."""
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None


def _of_imaris(array: Any) -> AxesOfArray:
    """Return the axes of Imaris, which pads arrays to whole chunks and stores numbers as text."""
    image = array.file.get("DataSetInfo/Image")
    sizes = [_text_number(array.parent.attrs, f"ImageSize{axis}") for axis in "ZYX"]
    if None in sizes or not all(1 <= int(size or 0) <= n for size, n in zip(sizes, array.shape, strict=True)):
        raise FormatError(f"{array.file.filename}: Imaris must state ImageSizeX, Y and Z within the array")
    shape = tuple(int(size or 0) for size in sizes)
    if image is None:
        return AxesOfArray(SPATIAL, shape=shape)
    unit = unit_name(_text(image.attrs.get("Unit", "")))
    low, high = ([_text_number(image.attrs, f"Ext{end}{i}") for i in (2, 1, 0)] for end in ("Min", "Max"))
    if unit is None or None in low or None in high:
        return AxesOfArray(SPATIAL, shape=shape)
    steps = tuple(((b or 0.0) - (a or 0.0)) / n * TO_MM[unit] for a, b, n in zip(low, high, shape, strict=True))
    return AxesOfArray(SPATIAL, steps if min(steps) > 0 else None, shape=shape)


def _text(value: Any) -> str:
    """Return an attribute of Imaris, an array of characters, as text."""
    return b"".join(np.atleast_1d(value).astype("S1")).decode("ascii", "replace") if value is not None else ""


def _text_number(attributes: Any, name: str) -> float | None:
    try:
        number = float(_text(attributes.get(name)))
    except ValueError:
        return None
    return number if np.isfinite(number) else None
