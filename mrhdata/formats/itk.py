"""NRRD and MetaImage (MHA, MHD) through SimpleITK, which is LPS and indexes x fastest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from mrhdata.errors import FormatError
from mrhdata.formats._lazy import DAMAGE, Slices, damaged, lazy
from mrhdata.volume import from_array

if TYPE_CHECKING:
    import xarray as xr

    from mrhdata.grid import Floats

#: ITK's world is left, posterior, superior.
_LPS = (-1, -1, 1)

# ITK prints warnings about damaged files to stderr; ours is the error that follows.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def read(path: Path) -> xr.DataArray:
    """Read NRRD or MetaImage."""
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except DAMAGE as error:
        raise damaged(path, error) from error
    size, components = reader.GetSize(), reader.GetNumberOfComponents()
    if len(size) not in (2, 3):
        raise FormatError(f"{path} has {len(size)} axes; NRRD and MetaImage are read with 2 or 3, and channels")
    # Complex and other pixels without a NumPy type have none in this table.
    try:
        dtype = sitk.extra._get_numpy_dtype(sitk.Image([1] * len(size), reader.GetPixelID(), components))
    except (RuntimeError, KeyError) as error:
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        raise FormatError(f"{path} holds {kind} pixels, which cannot be read; convert them to numbers first") from error
    shape = (*((1,) if len(size) == 2 else ()), *size[::-1], *((components,) if components > 1 else ()))
    data = lazy(Slices(shape, dtype, _Part(path, len(size)), path), 0 if _streams(path, reader) else None)
    dims = ("z", "y", "x", "c") if components > 1 else ("z", "y", "x")
    return from_array(data, affine=_affine(reader), dims=dims, name=path.name.split(".")[0])


def _reader(path: Path) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    return reader


class _Part:
    """Reads the planes that a key asks for."""

    def __init__(self, path: Path, ndim: int) -> None:
        self._path, self._ndim = path, ndim

    def __call__(self, key: tuple[slice, ...]) -> np.ndarray:
        reader = _reader(self._path)
        if self._ndim == 2:
            return sitk.GetArrayFromImage(reader.Execute())[None][key]
        reader.ReadImageInformation()
        first, last, _ = key[0].indices(reader.GetSize()[2])
        if last - first < reader.GetSize()[2]:
            reader.SetExtractIndex([0, 0, first])
            reader.SetExtractSize([*reader.GetSize()[:2], last - first])
        return sitk.GetArrayFromImage(reader.Execute())[(slice(None), *key[1:])]


def _streams(path: Path, reader: Any) -> bool:
    """Whether planes can be read alone: uncompressed MetaImage; ITK reads all of any other file."""
    if path.suffix.lower() not in (".mha", ".mhd") or len(reader.GetSize()) != 3:
        return False
    with path.open("rb") as file:
        return b"CompressedData = True" not in file.read(4096)


def _affine(reader: Any) -> Floats:
    """Array index (z, y, x) to RAS+ mm."""
    ndim = len(reader.GetSize())
    direction = np.eye(3)
    direction[:ndim, :ndim] = np.reshape(reader.GetDirection(), (ndim, ndim))
    spacing = np.array([*reader.GetSpacing(), 1.0][:3])
    affine = np.eye(4)
    affine[:3, :3] = (direction * spacing)[:, ::-1]
    affine[:3, 3] = [*reader.GetOrigin(), 0.0][:3]
    return np.diag([*_LPS, 1.0]) @ affine


def write(volume: xr.DataArray, path: Path) -> None:
    """Write NRRD or MHA, compressed."""
    write_image(volume, path, to_itk_world=_LPS)


def write_image(volume: xr.DataArray, path: Path, to_itk_world: tuple[int, int, int]) -> None:
    """Write through SimpleITK; `to_itk_world` are the signs that turn RAS+ into the format's world."""
    if "t" in volume.dims:
        raise FormatError(f"{path.suffix} files are written without a time axis; write .nii.gz or .zarr")
    source = volume.attrs.get("source_axes", [])
    order = [d for d in source if d in "zyx"] or ["z", "y", "x"]
    channels = ["c"] if "c" in volume.dims else []
    data, affine = volume.mrh.in_order([*order, *channels])
    values = np.asarray(data)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.dtype.kind == "c":
        raise FormatError(f"{path.suffix} files are not written with {values.dtype} values; take their magnitude first")
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
