"""NRRD and MetaImage (MHA, MHD), whose world is LPS and whose first axis is x; they are written by SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from mrhdata.errors import FormatError
from mrhdata.io import metaimage, nrrd
from mrhdata.io.stored_types import stored_values
from mrhdata.io.voxel_layout import open_layout
from mrhdata.volume.construct import SPATIAL
from mrhdata.volume.file_arrays import format_errors

if TYPE_CHECKING:
    import xarray as xr

#: Signs that convert between RAS+ and ITK's world: left, posterior, superior.
_LPS = (-1, -1, 1)

#: Types that the formats hold; MINC has no integers of 64 bits.
_MINC_TYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64")
_TYPES = (*_MINC_TYPES, "int64", "uint64")

# ITK prints warnings about damaged files to stderr; the error that follows says the same.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


OPTIONS: tuple[str, ...] = ()


def read(path: Path) -> xr.DataArray:
    """Read NRRD or MetaImage.

    ITK reads neither: it trusts their headers, ends the process at some, and names the axes by their number only.
    """
    layout_of = metaimage.layout_of if path.suffix.lower() in (".mha", ".mhd") else nrrd.layout_of
    with format_errors(path):
        layout = layout_of(path)
    return open_layout(layout)


def write(volume: xr.DataArray, path: Path) -> None:
    """Write NRRD or MHA, compressed."""
    write_image(volume, path, to_itk_world=_LPS)


def write_image(volume: xr.DataArray, path: Path, to_itk_world: tuple[int, int, int]) -> None:
    """Write through SimpleITK; `to_itk_world` contains the signs that convert RAS+ to the format's world."""
    if "t" in volume.dims:
        raise FormatError(f"{path.suffix} files are written without a time axis; write .nii.gz or .zarr")
    order = [d for d in volume.attrs.get("source_axes", []) if d in SPATIAL][::-1] or list(SPATIAL)
    channels = ["c"] if "c" in volume.dims else []
    data, affine = volume.mrh.in_order([*order, *channels])
    values = stored_values(data, volume.attrs["kind"], path.suffix, _MINC_TYPES if path.suffix == ".mnc" else _TYPES)
    affine = np.diag([*to_itk_world, 1.0]) @ affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = (affine[:3, :3] / spacing)[:, ::-1]
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-5):
        raise FormatError(f"{path.suffix} files cannot hold the shear of this affine; write .nii.gz or .zarr")
    try:
        image = sitk.GetImageFromArray(np.ascontiguousarray(values), isVector=bool(channels))
        image.SetSpacing(spacing[::-1].tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        image.SetDirection(direction.ravel().tolist())
        sitk.WriteImage(image, str(path), useCompression=True)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise FormatError(f"{path.suffix} cannot hold {values.dtype} values of shape {values.shape}") from error
