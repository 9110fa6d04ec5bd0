"""NRRD and MetaImage (MHA, MHD) through SimpleITK, whose world is LPS and whose first axis is x."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from mrhdata.errors import FormatError
from mrhdata.volume.box import Box
from mrhdata.volume.construct import SPATIAL, from_array
from mrhdata.volume.file_arrays import FileArray, RawReader, check_length, format_errors, lazy

if TYPE_CHECKING:
    import xarray as xr

    from mrhdata.volume.grid import Floats

#: Signs that convert between RAS+ and ITK's world: left, posterior, superior.
_LPS = (-1, -1, 1)

# ITK prints warnings about damaged files to stderr; the error that follows says the same.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


OPTIONS: tuple[str, ...] = ()


def read(path: Path) -> xr.DataArray:
    """Read NRRD or MetaImage."""
    reader = _reader(path)
    with format_errors(path):
        reader.ReadImageInformation()
    size, components = reader.GetSize(), reader.GetNumberOfComponents()
    if len(size) not in (2, 3, 4):
        raise FormatError(f"{path} must have 2 to 4 axes, besides channels; got {len(size)}")
    dtype = pixel_dtype(reader, path)
    shape = (*(1,) * (3 - len(size)), *size[::-1], *((components,) if components > 1 else ()))
    raw = _raw(path, shape, dtype)
    reader_of_boxes = _SlabReader(path, len(size)) if raw is None else raw
    in_slabs = raw is not None or (path.suffix.lower() in (".mha", ".mhd") and not _compressed(path) and len(size) == 3)
    data = lazy(FileArray(shape, dtype, reader_of_boxes, path), 0 if in_slabs else None)
    # The header lists the fastest axis first.
    dims = ("x", "y", "z", "t")[: max(3, len(size))]
    order = [len(dims) - 1 - i for i in range(len(dims))]
    channels = components > 1
    data = data.transpose(*order, *([len(dims)] if channels else []))
    names = (*dims, "c") if channels else dims
    return from_array(data, affine=world(reader), dims=names, name=path.name.split(".")[0])


def pixel_dtype(reader: Any, path: Path) -> Any:
    """Return the NumPy type of the voxels; raise FormatError for complex pixels and others without one."""
    ndim = len(reader.GetSize())
    try:
        return sitk.extra._get_numpy_dtype(sitk.Image([1] * ndim, reader.GetPixelID(), reader.GetNumberOfComponents()))
    except (RuntimeError, KeyError) as error:
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        raise FormatError(f"{path} holds {kind} pixels, which cannot be read; convert them to numbers first") from error


def _reader(path: Path) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    return reader


class _SlabReader:
    """Reader of boxes, which reads whole planes of a file."""

    def __init__(self, path: Path, ndim: int) -> None:
        self._path, self._ndim = path, ndim

    def __call__(self, box: Box) -> np.ndarray:
        reader = _reader(self._path)
        if self._ndim == 2:
            return sitk.GetArrayFromImage(reader.Execute())[None][box.slices]
        reader.ReadImageInformation()
        first, last = box.start[0], box.stop[0]
        if self._ndim != 3 or last - first == reader.GetSize()[2]:
            return sitk.GetArrayFromImage(reader.Execute())[box.slices]
        reader.SetExtractIndex([0, 0, first])
        reader.SetExtractSize([*reader.GetSize()[:2], last - first])
        return sitk.GetArrayFromImage(reader.Execute())[(slice(None), *box.slices[1:])]


def _compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return b"compresseddata = true" in file.read(4096).lower()


def _raw(path: Path, shape: tuple[int, ...], dtype: Any) -> RawReader | None:
    """Return the reader of an uncompressed NRRD with header and voxels in one file; ITK would read all for each box."""
    if path.suffix.lower() != ".nrrd":
        return None
    with path.open("rb") as file:
        head, ended, _ = file.read(64_000).partition(b"\n\n")
    fields = dict(line.split(b": ", 1) for line in head.splitlines() if b": " in line and not line.startswith(b"#"))
    detached = {b"data file", b"datafile", b"byte skip", b"byteskip", b"line skip", b"lineskip"}
    if not ended or fields.get(b"encoding", b"").strip() != b"raw" or detached & fields.keys():
        return None
    # ITK moves a last axis of colours or vectors to the front, so files with one are left to ITK.
    if fields.get(b"sizes", b"").split() != [str(n).encode() for n in shape[::-1]]:
        return None
    stored = np.dtype(dtype).newbyteorder(">" if fields.get(b"endian", b"").strip() == b"big" else "<")
    offset = len(head) + 2
    check_length(path, offset + stored.itemsize * int(np.prod(shape, dtype=object)))
    return RawReader(path, offset, shape, stored)


def world(reader: Any) -> Floats:
    """Return the affine of an ITK image or reader, from indices in the header's order to RAS+ mm."""
    ndim = len(reader.GetSize())
    direction = np.eye(3)
    n = min(ndim, 3)
    direction[:n, :n] = np.reshape(reader.GetDirection(), (ndim, ndim))[:n, :n]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array([*reader.GetSpacing(), 1.0][:3])
    affine[:3, 3] = [*reader.GetOrigin(), 0.0][:3]
    return np.diag([*_LPS, 1.0]) @ affine


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
    values = np.asarray(data)
    values = (
        values.astype(np.uint8) if values.dtype == bool else values.astype(values.dtype.newbyteorder("="), copy=False)
    )
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
