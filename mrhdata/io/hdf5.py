"""Reader of HDF5 and MATLAB files (v5 to v7.3), one named array at a time.

Neither format has an orientation. HDF5 arrays are plane, row, column unless the file names their axes; MATLAB's are
row, column, plane.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import h5py
import numpy as np

from mrhdata.errors import FormatError
from mrhdata.io.hdf5_axes import BIGDATAVIEWER, AxesOfArray, axes_of
from mrhdata.io.hdf5_sources import check_sources, open_array
from mrhdata.volume.assumptions import assume
from mrhdata.volume.box import Box
from mrhdata.volume.construct import DIMS, SPATIAL, UNORIENTED, place
from mrhdata.volume.file_arrays import FileArray, format_errors, lazy
from mrhdata.volume.times import with_times

if TYPE_CHECKING:
    import xarray as xr


log = logging.getLogger("mrhdata")

#: Classes of MATLAB whose arrays are not numbers, though HDF5 stores numbers.
_NO_NUMBERS = ("char", "cell", "struct", "function_handle", "object")

OPTIONS = ("dataset",)


def read(path: Path, dataset: str | None = None) -> xr.DataArray:
    """Read one array of an HDF5 or MATLAB file; `dataset` names it if there are several."""
    with format_errors(path):
        if path.suffix.lower() == ".mat" and not h5py.is_hdf5(path):
            return _matlab5(path, dataset)
        with h5py.File(path, "r") as file:
            name = _choose(path, _find_arrays(file), dataset)
            check_sources(file, name, path)
            array = file[name]
            _check_written(array, path)
            axes = None if path.suffix.lower() == ".mat" else axes_of(array, path)
            part = Part(path, name, _meant_type(array, name, path))
            shape, dtype, at_once = array.shape, part.dtype or array.dtype, _bytes_at_once(array)
    values = dtype if dtype.fields is None else np.dtype(np.complex128)
    data = lazy(FileArray(shape, values, part, path, name=name, smallest_bytes=at_once), 0)
    label = name.rpartition("/")[2]
    if axes is None:
        # MATLAB stores its first axis fastest.
        return _rows_first(data.transpose(), label)
    return _with_axes(data, axes, label)


def contents(path: Path) -> list[str]:
    """Return a line for each array of numbers, with the option of :func:`mrhdata.read` that chooses it."""
    with format_errors(path):
        if path.suffix.lower() == ".mat" and not h5py.is_hdf5(path):
            shapes = _matlab5_arrays(path)
        else:
            with h5py.File(path, "r") as file:
                shapes = _find_arrays(file)
    return [f"dataset={name!r}: {' x '.join(map(str, shape))}" for name, shape in shapes.items()]


def _with_axes(data: da.Array, axes: AxesOfArray, name: str) -> xr.DataArray:
    """Return a volume of an array with its axes in the order t, c, z, y, x."""
    if axes.shape is not None and axes.shape != data.shape:
        data = data[tuple(slice(0, n) for n in axes.shape)]
    order = [axes.dims.index(d) for d in DIMS if d in axes.dims]
    dims = [axes.dims[i] for i in order]
    listed = [d for d in axes.dims if d in SPATIAL]
    steps = dict(zip(listed, axes.steps or (1.0,) * len(listed), strict=True))
    start = dict(zip(listed, axes.start or (0.0,) * len(listed), strict=True))
    volume = place(
        data if order == sorted(order) else data.transpose(order),
        dims,
        # An absent axis is as thick as the finest of the others.
        [steps.get(d, min(steps.values(), default=1.0)) for d in SPATIAL],
        UNORIENTED,
        space="scanner",
        start=[start.get(d, 0.0) for d in SPATIAL],
        name=name,
    )
    if listed != [d for d in SPATIAL if d in listed] and len(listed) == 3:
        volume = volume.assign_attrs(source_axes=listed)
    if axes.time is not None:
        volume = with_times(volume, *axes.time)
    return assume(volume, *(["spacing"] if axes.steps is None else []), "orientation", "space")


def _meant_type(array: Any, name: str, path: Path) -> np.dtype[Any] | None:
    """Return uint16 for the int16 of BigDataViewer, which keeps unsigned numbers so; None for the stored type."""
    if array.dtype != np.int16 or not BIGDATAVIEWER.fullmatch(name):
        return None
    log.warning("%s: %s is read as uint16, because BigDataViewer stores uint16 as int16", path, name)
    return np.dtype(np.uint16).newbyteorder(array.dtype.byteorder)


def _check_written(array: Any, path: Path) -> None:
    """Raise FormatError if no value of an array is in the file, and warn if some are not; HDF5 reads fill values."""
    if array.is_virtual or array.external or array.chunks is None:
        if not array.is_virtual and array.id.get_storage_size() == 0:
            raise FormatError(f"{path}: {array.name} has a shape, but no values were written; write the file again")
        return
    count = int(np.prod([-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)], dtype=object))
    stored = array.id.get_num_chunks()
    if stored == 0:
        raise FormatError(f"{path}: {array.name} has a shape, but no values were written; write the file again")
    if stored < count:
        log.warning(
            "%s: %d of %d chunks of %s are not in the file, and are read as %s",
            path, count - stored, count, array.name, array.fillvalue,
        )  # fmt: skip


def _bytes_at_once(array: Any) -> int | None:
    """Return the bytes in memory while a compressed chunk is decoded, None for arrays that are read in any parts."""
    if array.chunks is None or not array.id.get_create_plist().get_nfilters():
        return None
    return 2 * math.prod(array.chunks) * array.dtype.itemsize


class Part:
    """Reader of boxes of one array. It opens the file for each box, so that it can be pickled.

    Parameters
    ----------
    path : path
    name : str
        Name of the array.
    dtype : numpy.dtype, optional
        Type that the stored bytes mean, by default the stored one.
    """

    def __init__(self, path: Path, name: str, dtype: np.dtype[Any] | None = None) -> None:
        self._path, self._name, self.dtype = path, name, dtype

    def __call__(self, box: Box) -> np.ndarray:
        """Return the values of a box."""
        with h5py.File(self._path, "r") as file:
            values = open_array(file, self._name)[box.slices]
        if self.dtype is not None:
            values = values.view(self.dtype)
        return values if values.dtype.fields is None else values["real"] + 1j * values["imag"]


def _find_arrays(file: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays that could be volumes, by name."""
    arrays = {}

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or item.ndim not in (2, 3, 4, 5) or min(item.shape) < 1:
            return
        fields = item.dtype.fields
        numbers = item.dtype.kind in "biuf" or (fields is not None and set(fields) == {"real", "imag"})
        # MATLAB stores internal data under names that start with #.
        if numbers and not name.startswith("#") and not _is_text(item.attrs.get("MATLAB_class")):
            arrays[name] = item.shape

    file.visititems(visit)
    return arrays


def _is_text(matlab_class: Any) -> bool:
    name = matlab_class.decode("ascii", "replace") if isinstance(matlab_class, bytes) else matlab_class
    return name in _NO_NUMBERS


def _matlab5_arrays(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays of a file of version 5 that could be volumes, by name."""
    import scipy.io

    numbers = {"double", "single", "logical", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))}
    shapes = {name: shape for name, shape, kind in scipy.io.whosmat(path) if kind in numbers and len(shape) <= 5}
    return {name: shape for name, shape in shapes.items() if sorted(shape)[-2] > 1}


def _matlab5(path: Path, dataset: str | None) -> xr.DataArray:
    import scipy.io

    name = _choose(path, _matlab5_arrays(path), dataset)
    values = scipy.io.loadmat(path, variable_names=[name])[name]
    # Version 5 cannot be read in parts, so the array stays in memory.
    return _rows_first(da.from_array(values, chunks=-1), name)


def _rows_first(data: Any, name: str) -> xr.DataArray:
    """Return a volume of an array of rows, columns and planes."""
    dims = ("y", "x", "z", "t", "c")[: data.ndim]
    order = [dims.index(d) for d in DIMS if d in dims]
    ordered = [dims[i] for i in order]
    volume = place(data.transpose(order), ordered, (1, 1, 1), UNORIENTED, space="scanner", name=name)
    listed = [d for d in dims if d in SPATIAL]
    volume = volume.assign_attrs(source_axes=listed if len(listed) == 3 else list(ordered))
    return assume(volume, "spacing", "orientation", "space")


def _choose(path: Path, shapes: dict[str, tuple[int, ...]], dataset: str | None) -> str:
    listed = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:20]) or "none"
    if dataset is not None:
        name = dataset.strip("/")
        if name not in shapes:
            raise FormatError(f"{path} has no array of numbers {dataset!r} with 2 to 5 axes; it has {listed}")
        return name
    if len(shapes) != 1:
        raise FormatError(
            f"{path} must hold exactly one array of numbers with 2 to 5 axes; choose with dataset=: {listed}"
        )
    return next(iter(shapes))
