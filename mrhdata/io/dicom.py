"""DICOM series through SimpleITK (GDCM): a folder of slices, or one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from mrhdata.errors import FormatError
from mrhdata.io.itk import pixel_dtype, world
from mrhdata.volume.box import Box
from mrhdata.volume.construct import from_array
from mrhdata.volume.file_arrays import FileArray, format_errors, lazy

if TYPE_CHECKING:
    import xarray as xr

#: Deviation from even steps that slices may have, as a fraction of their mean distance.
_MAX_DEVIATION = 0.01


OPTIONS = ("dataset",)


def read(path: Path, dataset: str | None = None) -> xr.DataArray:
    """Read one file or the series of a folder; `dataset` is the UID of the series if there are several."""
    names = [str(path)] if path.is_file() else _series(path, dataset)
    readers = [_read_header(name) for name in names]
    first = readers[0]
    size = first.GetSize()
    if len(size) not in (2, 3) or (len(names) > 1 and len(size) == 3 and size[2] != 1):
        raise FormatError(f"{names[0]} must be a plane of a series, or one volume; got size {size}")
    mismatched = [n for n, r in zip(names, readers, strict=True) if r.GetSize() != size]
    if mismatched:
        raise FormatError(f"{mismatched[0]} has another size than {names[0]}; the series mixes images")
    dtypes = {np.dtype(pixel_dtype(reader, path)) for reader in readers}
    components = first.GetNumberOfComponents()
    affine = _affine(readers, path)
    depth = len(names) if len(names) > 1 else (size[2] if len(size) == 3 else 1)
    shape = (depth, size[1], size[0], *((components,) if components > 1 else ()))
    slices = FileArray(shape, np.result_type(*dtypes), _SliceReader(names), path, files=names)
    data = lazy(slices, 0 if len(names) > 1 else None)
    dims = ("x", "y", "z", "c")[: len(shape)]
    return from_array(data.transpose(2, 1, 0, *range(3, len(shape))), affine=affine, dims=dims, name=path.stem)


def holds(path: Path) -> bool:
    """Return whether a file begins like DICOM."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _series(folder: Path, dataset: str | None) -> list[str]:
    series = list(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))
    if not series:
        raise FormatError(f"{folder} holds no DICOM series that can be read")
    if dataset is None and len(series) > 1:
        raise FormatError(f"{folder} holds {len(series)} series; choose one with dataset=: {', '.join(series)}")
    if dataset is not None and dataset not in series:
        raise FormatError(f"{folder} has no series {dataset}; it has {', '.join(series)}")
    return list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), dataset or series[0]))


def _read_header(name: str) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(name)
    with format_errors(name):
        reader.ReadImageInformation()
    return reader


def _affine(readers: list[Any], path: Path) -> np.ndarray:
    """Return the affine of the first slice, with the step between slices from their positions."""
    affine = world(readers[0])
    if len(readers) == 1:
        return affine
    origins = np.array([world(reader)[:3, 3] for reader in readers])
    step = (origins[-1] - origins[0]) / (len(origins) - 1)
    deviation = np.linalg.norm(np.diff(origins, axis=0) - step, axis=1).max()
    if not deviation <= _MAX_DEVIATION * np.linalg.norm(step):
        raise FormatError(
            f"{path}: slices lie {np.linalg.norm(step):.4g} mm apart on average but deviate by up to "
            f"{deviation:.3g} mm; some are missing, or several series are mixed"
        )
    affine[:3, 2] = step
    return affine


class _SliceReader:
    """Reader of boxes of a series with one file per plane, or of one file with all planes."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def __call__(self, box: Box) -> np.ndarray:
        if len(self._names) == 1:
            values = sitk.GetArrayFromImage(sitk.ReadImage(self._names[0], imageIO="GDCMImageIO"))
            volume = values if values.ndim >= box.ndim else values[None]
            return volume[box.slices]
        planes = []
        for name in self._names[box.slices[0]]:
            values = sitk.GetArrayFromImage(sitk.ReadImage(name, imageIO="GDCMImageIO"))
            planes.append((values[0] if values.ndim == box.ndim else values)[box.slices[1:]])
        return np.stack(planes)
