"""MINC 1 and 2: read through nibabel, MINC 2 written through SimpleITK.

nibabel applies the per-slice scaling and keeps the axes in file order, which the file names.
SimpleITK's MINC reader and writer use MINC's own RAS world and do not convert it to LPS (version
2.5), so origin and direction pass through unchanged here, unlike in :mod:`mrhdata.io.itk`.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.minc2 import Minc2File

from mrhdata.errors import FormatError
from mrhdata.io.itk import write_image
from mrhdata.io.nibabel_images import from_image, open_image
from mrhdata.volume.assumptions import assume
from mrhdata.volume.construct import SPATIAL
from mrhdata.volume.overrides import TO_MM, unit_name
from mrhdata.volume.times import TO_SECONDS, with_times

if TYPE_CHECKING:
    import xarray as xr

#: Name of a MINC dimension -> axis.
_DIMS = {"xspace": "x", "yspace": "y", "zspace": "z", "time": "t", "vector_dimension": "c"}
#: Attribute `spacetype` of a dimension -> space.
_SPACES = {"native": "scanner", "talairach": "Talairach"}

#: Bytes of a scaled value, which is a 64-bit number.
_SCALED_BYTES = 8

OPTIONS: tuple[str, ...] = ()


def read(path: Path) -> xr.DataArray:
    """Read MINC 1 or 2."""
    image = _open(path)
    file = image.dataobj.minc_file
    names = [_text(name) for name in file._dim_names]
    unknown = [name for name in names if name not in _DIMS]
    if unknown:
        raise FormatError(f"{path} must have axes of {', '.join(_DIMS)}; got {', '.join(names)}")
    axes = dict(zip(names, file._dims, strict=True))
    spatial = [axis for name, axis in axes.items() if name.endswith("space")]
    unit, factor, unstated = _lengths(spatial)
    spaces = {_text(getattr(axis, "spacetype", "")).strip("_ \0") for axis in spatial} - {""}
    space = _SPACES.get(spaces.pop()) if len(spaces) == 1 else None
    volume = from_image(
        image,
        path,
        tuple(_DIMS[name] for name in names),
        affine=np.diag([factor] * 3 + [1.0]) @ image.affine,
        reopen=functools.partial(_open, path),
        smallest_bytes=_bytes_at_once(file),
        space=space or "scanner",
        **({"source_unit": unit} if unit != "mm" else {}),
    )
    volume = _with_times(volume, axes.get("time"))
    # MINC lists the slowest axis first; source_axes has the fastest first, as in NIfTI and NRRD.
    listed = volume.attrs["source_axes"]
    reordered = [*(d for d in listed[::-1] if d in SPATIAL), *(d for d in listed if d not in SPATIAL)]
    return assume(volume.assign_attrs(source_axes=reordered), *unstated, *([] if space else ["space"]))


def _open(path: Path) -> Any:
    image = open_image(path)
    _widen_valid_range(image.dataobj.minc_file)
    return image


def _bytes_at_once(file: Any) -> int:
    """Return the bytes in memory while one plane is read: the decoded chunks, and the stored and scaled values.

    HDF5 decodes whole chunks of MINC 2. nibabel reads all values of MINC 1 whenever it opens a file.
    """
    shape, stored = file.get_data_shape(), file.get_data_dtype().itemsize
    chunks = getattr(file._image, "chunks", None)
    decoded = 2 * math.prod(chunks) if chunks else 0 if isinstance(file, Minc2File) else math.prod(shape)
    return stored * decoded + (stored + 2 * _SCALED_BYTES) * math.prod(shape[1:])


def _lengths(axes: list[Any]) -> tuple[str, float, list[str]]:
    """Return the unit of the axes, millimetres per unit, and properties that are assumed; MINC means mm by default."""
    units = {_text(getattr(axis, "units", b"mm")) or "mm" for axis in axes}
    unit = unit_name(units.pop()) if len(units) == 1 else None
    unstated = [] if all(hasattr(axis, "step") for axis in axes) else ["spacing"]
    return unit or "mm", TO_MM[unit or "mm"], unstated if unit else ["unit", *unstated]


def _with_times(volume: xr.DataArray, axis: Any) -> xr.DataArray:
    """Return a series with its times, if the time axis has a step in a known unit."""
    seconds = TO_SECONDS.get(_text(getattr(axis, "units", "")).lower())
    if seconds is None or not hasattr(axis, "step"):
        return volume
    return with_times(volume, float(axis.step) * seconds, float(getattr(axis, "start", 0.0)) * seconds)


def _text(value: Any) -> str:
    return (value.decode("latin-1") if isinstance(value, bytes) else str(value)).rstrip("\0")


def _widen_valid_range(file: Any) -> None:
    """Work around nibabel: for a constant integer image the valid range is empty and scaling divides by zero (NaN)."""
    if file.get_data_dtype().kind not in "iu":
        return
    low, high = file._get_valid_range()
    if low == high:
        file._get_valid_range = lambda: (low, low + 1)


def write(volume: xr.DataArray, path: Path) -> None:
    """Write MINC 2."""
    if "c" in volume.dims:
        raise FormatError(".mnc files are written without channels; write .nii.gz or .zarr, or a file for each")
    write_image(volume, path, to_itk_world=(1, 1, 1))
