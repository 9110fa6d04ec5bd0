"""Published training sets: MATLAB files of patches instead of volumes (Liang et al. 2022, ``traindata.mat``).

Their arrays are 3 x 3 x channels x patches. The patches are coronal: rows run along the left-right axis and
columns along the dorso-ventral one; the authors cut them from volumes of 200 x 128 x 280 voxels (left-right,
dorso-ventral, slices). MATLAB stores the first axis fastest, so the dims in the file are (patch, channel, z, x);
y is added as an axis of length 1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import h5py
import numpy as np

from mrhdata._runtime.atomic import atomic_write
from mrhdata.errors import FormatError, GridError
from mrhdata.io.hdf5 import Part
from mrhdata.volume.construct import from_array
from mrhdata.volume.file_arrays import FileArray, format_errors, lazy

if TYPE_CHECKING:
    import xarray as xr

#: NumPy type -> name of MATLAB's type.
_CLASSES = {
    "f8": "double",
    "f4": "single",
    **{f"{k}{n}": f"{w}{8 * n}" for k, w in (("i", "int"), ("u", "uint")) for n in (1, 2, 4, 8)},
}

#: MATLAB expects this header before the HDF5 content.
_HEADER = b"MATLAB 7.3 MAT-file, written by mrhdata HDF5 schema 1.00 .".ljust(124) + b"\x00\x02IM"

#: Patches that are written at once.
_BATCH = 1024


def read_patches(path: str | os.PathLike[str]) -> dict[str, da.Array]:
    """Read the patches of a MATLAB file, lazily if its version is 7.3.

    Parameters
    ----------
    path : path
        File such as ``traindata.mat`` (`data` and `label`) or ``testdataPatch_mouse.mat`` (`data` and `fa`).

    Returns
    -------
    patches : dict of str to Dask array (n, C, z, 1, x)
        All arrays of numbers in the file, by name; patch i of one array belongs to patch i of the others.

    Raises
    ------
    FormatError
        The file is missing or damaged, or its arrays are not patches.

    Examples
    --------
    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/traindata.mat"
    >>> write_patches({"data": np.zeros((5, 67, 3, 1, 3)), "label": np.zeros((5, 1, 3, 1, 3))}, path)
    >>> {name: patches.shape for name, patches in read_patches(path).items()}
    {'data': (5, 67, 3, 1, 3), 'label': (5, 1, 3, 1, 3)}
    """
    path = Path(path)
    if not path.is_file():
        raise FormatError(f"{path} does not exist; check the path")
    with format_errors(path):
        stored = _hdf5(path) if h5py.is_hdf5(path) else _matlab5(path)
    planes = {name: _with_four_axes(array) for name, array in stored.items()}
    shapes = {name: array.shape for name, array in planes.items()}
    if {len(s) for s in shapes.values()} != {4} or len({(n, *plane) for n, _, *plane in shapes.values()}) != 1:
        raise FormatError(f"{path} must contain arrays with equal numbers of patches of equal size; got {shapes}")
    return {name: array[:, :, :, None] for name, array in planes.items()}


def write_patches(patches: Mapping[str, Any], path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write coronal patches as the authors' training code reads them: MATLAB 7.3, 3 x 3 x channels x patches.

    Parameters
    ----------
    patches : mapping of str to NumPy or Dask array (n, C, z, 1, x)
        Patches such as ``dict(zip(("data", "label"), p.to_dask()))`` of coronal :func:`mrhdata.patches`.
    path : path
        Path that ends in ``.mat``; the file appears when it is complete.
    overwrite : bool
        Whether to replace an existing file.

    Raises
    ------
    FormatError
        Arrays are not coronal patches or have a type that MATLAB lacks, or the file exists.
    """
    for name, array in patches.items():
        if array.ndim != 5 or array.shape[3] != 1 or len(array) != len(next(iter(patches.values()))):
            shapes = {key: value.shape for key, value in patches.items()}
            raise FormatError(
                f"patches must be arrays (n, C, z, 1, x) with equal n; got {shapes}. Cut them with plane='coronal'"
            )
        if array.dtype.str[1:] not in _CLASSES:
            raise FormatError(f"MATLAB has no {array.dtype} arrays ({name!r}); convert them to float32 first")
    with atomic_write(path, overwrite=overwrite) as draft:
        with h5py.File(draft, "w", userblock_size=512) as file:
            for name, array in patches.items():
                planes = array[:, :, :, 0]
                stored = file.create_dataset(name, planes.shape, planes.dtype)
                stored.attrs["MATLAB_class"] = np.bytes_(_CLASSES[array.dtype.str[1:]])
                for first in range(0, len(planes), _BATCH):
                    stored[first : first + _BATCH] = np.asarray(planes[first : first + _BATCH])
        with draft.open("r+b") as plain:
            plain.write(_HEADER)


def as_volume(patches: Any, channels: Sequence[str] | None = None) -> xr.DataArray:
    """Return patches concatenated along y as a volume, from which :func:`mrhdata.patches` cuts them again.

    Parameters
    ----------
    patches : NumPy or Dask array (n, C, z, 1, x)
    channels : sequence of str, length C, optional
        Names of the channels, such as :data:`mrhdata.models.matlab.CHANNELS`; ``c1``, ``c2``, ... by default.

    Returns
    -------
    volume : xarray.DataArray
        Volume (c, z, y, x) with one y per patch; its space is ``patches``, and its millimetres are arbitrary.

    Raises
    ------
    GridError
        `patches` is not an array of coronal patches, or the number of names does not match.

    Examples
    --------
    The training set of the authors, for :func:`mrhdata.fit`:

    >>> import mrhdata
    >>> inputs, target = np.random.rand(5, 67, 3, 1, 3), np.random.rand(5, 1, 3, 1, 3)
    >>> p = mrhdata.patches(as_volume(inputs), as_volume(target), shape=3, plane="coronal")
    >>> len(p), tuple(p[0][0].shape)
    (5, (67, 3, 1, 3))
    """
    if patches.ndim != 5 or patches.shape[3] != 1:
        raise GridError(
            f"patches must have the shape (n, C, z, 1, x); got {patches.shape}. Read them with read_patches"
        )
    names = [f"c{i + 1}" for i in range(patches.shape[1])] if channels is None else list(channels)
    if len(names) != patches.shape[1]:
        raise GridError(f"channels must have one name for each of {patches.shape[1]} channels; got {len(names)}")
    rows = patches[:, :, :, 0].transpose(1, 2, 0, 3)  # (C, z, n, x)
    return from_array(rows, spacing=(1, 1, 1), space="patches").assign_coords(c=names)


def _hdf5(path: Path) -> dict[str, da.Array]:
    with h5py.File(path, "r") as file:
        datasets = {
            name: item for name, item in file.items() if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu"
        }
        slices = {
            name: FileArray(item.shape, item.dtype, Part(path, name), path, name=name)
            for name, item in datasets.items()
        }
    return {name: lazy(array, 0) for name, array in slices.items()}


def _matlab5(path: Path) -> dict[str, da.Array]:
    """Read an older file into memory; such files cannot be read in parts."""
    import scipy.io

    arrays = {name: values for name, values in scipy.io.loadmat(path).items() if isinstance(values, np.ndarray)}
    return {name: da.from_array(v.transpose(), chunks=-1) for name, v in arrays.items() if v.dtype.kind in "fiu"}


def _with_four_axes(array: da.Array) -> da.Array:
    """Return the array with the trailing axes of length 1 that MATLAB drops, for a single patch or channel."""
    return array.reshape(*(1,) * (4 - array.ndim), *array.shape)
