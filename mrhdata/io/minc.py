"""MINC 1 and 2: read through nibabel, MINC 2 written through SimpleITK.

nibabel applies the per-slice scaling and keeps the axes in file order; a time axis comes first.
SimpleITK's MINC reader and writer use MINC's own RAS world and do not convert it to LPS (version
2.5), so origin and direction pass through unchanged here, unlike in :mod:`mrhdata.io.itk`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrhdata.errors import FormatError
from mrhdata.io.itk import write_image
from mrhdata.io.nibabel_images import from_image, open_image

if TYPE_CHECKING:
    import xarray as xr


OPTIONS: tuple[str, ...] = ()


def read(path: Path) -> xr.DataArray:
    """Read MINC 1 or 2."""
    image = open_image(path)
    _widen_valid_range(image.dataobj.minc_file)
    volume = from_image(image, path, ("t", "z", "y", "x") if len(image.shape) == 4 else ("z", "y", "x"))
    # MINC lists the slowest axis first; source_axes has the fastest first, as in NIfTI and NRRD.
    extra = [d for d in volume.attrs["source_axes"] if d == "t"]
    spatial = [d for d in volume.attrs["source_axes"] if d != "t"]
    return volume.assign_attrs(source_axes=[*spatial[::-1], *extra])


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
