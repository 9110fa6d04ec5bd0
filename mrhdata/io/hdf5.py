"""Reader of HDF5 and MATLAB files (v5 to v7.3), one named array at a time.

Neither format has an orientation. HDF5 arrays are plane, row, column; MATLAB's are row, column, plane.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import h5py
import numpy as np

from mrhdata.errors import FormatError
from mrhdata.volume.assumptions import assume
from mrhdata.volume.box import Box
from mrhdata.volume.construct import DIMS, SPATIAL, UNORIENTED, from_array, place
from mrhdata.volume.file_arrays import FileArray, format_errors, lazy

if TYPE_CHECKING:
    import xarray as xr


#: Attributes for the voxel size along the array's axes -> their unit in mm.
_SPACING_ATTRIBUTES = {"element_size_um": 1e-3, "resolution": 1e-6}


OPTIONS = ("dataset",)


def read(path: Path, dataset: str | None = None) -> xr.DataArray:
    """Read one array of an HDF5 or MATLAB file; `dataset` names it if there are several."""
    with format_errors(path):
        if path.suffix.lower() == ".mat" and not h5py.is_hdf5(path):
            return _matlab5(path, dataset)
        with h5py.File(path, "r") as file:
            arrays = _find_arrays(file)
            name = _choose(path, {n: shape for n, (shape, _, _) in arrays.items()}, dataset)
            shape, dtype, attributes = arrays[name]
    values = dtype if dtype.fields is None else np.dtype(np.complex128)
    data = lazy(FileArray(shape, values, Part(path, name), path, name=name), 0)
    label = name.rpartition("/")[2]
    if path.suffix.lower() == ".mat":
        # MATLAB stores its first axis fastest.
        return _rows_first(data.transpose(), label)
    steps = next(
        (np.asarray(attributes[key], dtype=float) * mm for key, mm in _SPACING_ATTRIBUTES.items() if key in attributes),
        None,
    )
    if steps is None or steps.shape != (min(3, len(shape)),):
        volume = from_array(data, spacing=[1.0] * min(3, len(shape)), name=label)
        return assume(volume, "spacing", "orientation", "space")
    return assume(from_array(data, spacing=steps, name=label), "orientation", "space")


class Part:
    """Reader of boxes of one array. It opens the file for each box, so that it can be pickled."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name

    def __call__(self, box: Box) -> np.ndarray:
        """Return the values of a box."""
        with h5py.File(self._path, "r") as file:
            values = file[self._name][box.slices]
        return values if values.dtype.fields is None else values["real"] + 1j * values["imag"]


def _find_arrays(file: Any) -> dict[str, tuple[tuple[int, ...], np.dtype, dict[str, Any]]]:
    """Return shape, type and attributes of the arrays that could be volumes, by name."""
    arrays = {}

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or item.ndim not in (2, 3, 4, 5) or min(item.shape) < 1:
            return
        fields = item.dtype.fields
        numbers = item.dtype.kind in "biuf" or (fields is not None and set(fields) == {"real", "imag"})
        # MATLAB stores internal data under names that start with #.
        if numbers and not name.startswith("#"):
            arrays[name] = (item.shape, item.dtype, dict(item.attrs))

    file.visititems(visit)
    return arrays


def _matlab5(path: Path, dataset: str | None) -> xr.DataArray:
    import scipy.io

    numbers = {"double", "single", "logical", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))}
    shapes = {name: shape for name, shape, kind in scipy.io.whosmat(path) if kind in numbers and len(shape) <= 5}
    name = _choose(path, {n: s for n, s in shapes.items() if sorted(s)[-2] > 1}, dataset)
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
