"""DICOM: one file, or the series of a folder. pydicom parses the headers, imagecodecs decodes compressed voxels.

`headers` finds files, `frames` lists their planes with geometry and scale, `stacks` and `times` arrange planes to a
volume, and `images` reads voxels, picture by picture.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrhdata.io.dicom.frames import Frame, frames_of
from mrhdata.io.dicom.headers import images_of, parsing
from mrhdata.io.dicom.images import picture
from mrhdata.io.dicom.same import without_copies
from mrhdata.io.dicom.stacks import Placed, Stack, choose, line, placed, stacks_of
from mrhdata.volume.assumptions import assume
from mrhdata.volume.box import Box
from mrhdata.volume.construct import from_array
from mrhdata.volume.file_arrays import SLAB_BYTES, FileArray, in_chunks

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

log = logging.getLogger("mrhdata")

OPTIONS = ("dataset",)


def read(path: Path, dataset: str | None = None) -> xr.DataArray:
    """Read a file, or a series of a folder.

    Parameters
    ----------
    path : path
        File, or folder of files.
    dataset : str, optional
        Number, description or UID of the series if there are several. If a series has several stacks of planes, such
        as a localizer, ``/`` and the number of the stack follow: ``"3/2"``.

    Returns
    -------
    volume : xarray.DataArray
        Dims ``t, c, z, y, x`` (those that exist). ``attrs["t_values"]`` has the name of the element that differs
        along ``t``, and its values, if they are not times.

    Raises
    ------
    FormatError
        A file is damaged, there are several series, or planes are missing, duplicate or not evenly spaced.
    """
    stack = choose(_stacks(path), dataset, path)
    with parsing(path):
        volume = placed(stack)
    _warn(volume, path)
    return assume(_volume(volume, path), *volume.assumed)


def contents(path: Path) -> list[str]:
    """Return a line for each stack of planes, with the option of :func:`mrhdata.read` that chooses it."""
    stacks = _stacks(path)
    return [f"dataset={line(stack, stacks)}" for stack in stacks]


def _stacks(path: Path) -> list[Stack]:
    frames = [frame for header in images_of(path) for frame in frames_of(header)]
    return stacks_of(without_copies(frames))


def _volume(volume: Placed, path: Path) -> xr.DataArray:
    planes = _Planes(volume.times.frames)
    first = volume.times.frames[0][0]
    channels = (first.image.channels,) if first.image.channels > 1 else ()
    shape = (*planes.frames.shape, *first.shape, *channels)
    files = list(dict.fromkeys(frame.path for frame in planes.frames.flat))
    data = _lazy(FileArray(shape, planes.dtype, planes, path, files=files), planes.frames.ndim)
    # The file's order: column, row, plane, then time and colours.
    names = ["t", "z", "y", "x"][-planes.frames.ndim - 2 :] + (["c"] if channels else [])
    dims = [d for d in ("x", "y", "z", "t", "c") if d in names]
    attrs: dict[str, Any] = {"t_values": {volume.times.name: volume.times.values}} if "t" in dims else {}
    data = data.transpose([names.index(d) for d in dims])
    return from_array(data, affine=volume.affine, dims=dims, name=path.stem, **attrs)


def _lazy(planes: FileArray, leading: int) -> da.Array:
    """Return a Dask array in slabs of whole planes, each of one time."""
    per_plane = planes.dtype.itemsize * math.prod(planes.shape[leading:])
    count = max(1, SLAB_BYTES // max(1, per_plane))
    # A power of two, so that slabs and shards have common boundaries.
    slab = min(planes.shape[leading - 1], 2 ** (count.bit_length() - 1))
    return in_chunks(planes, (*[1] * (leading - 1), slab, *planes.shape[leading:]))


def _warn(volume: Placed, path: Path) -> None:
    """Log what a user has to know about the values and the axes."""
    frames = [frame for time in volume.times.frames for frame in time]
    if any(frame.image.photometric == "MONOCHROME1" for frame in frames):
        log.warning("%s is MONOCHROME1: the largest values are black. The values are those of the file", path)
    detector = next((name for frame in frames if (name := frame.facts["detector"])), None)
    if detector:
        log.warning("%s states its pixel size at the detector only (%s); pass spacing= for the patient", path, detector)
    times = volume.times
    if times.name == "InstanceNumber":
        log.warning(
            "%s has %d images at each position, which only InstanceNumber distinguishes; it is the order of t",
            path,
            len(times.frames),
        )
    elif len(times.frames) > 1:
        log.info("%s: %s differs along t: %s", path, times.name, times.values)


class _Planes:
    """Reader of boxes of planes."""

    def __init__(self, times: Sequence[Sequence[Frame]]) -> None:
        #: Planes by time and position, or by position for a single time.
        self.frames = np.empty((len(times), len(times[0])), dtype=object)
        self.frames[:] = times
        if len(times) == 1:
            self.frames = self.frames[0]
        self.dtype = np.result_type(*{_dtype(frame) for frame in self.frames.flat})
        #: Bytes in memory while one plane is read, of which a mosaic has many in a picture.
        self.smallest_bytes = max(frame.image.smallest_bytes for frame in self.frames.flat)

    def __call__(self, box: Box) -> np.ndarray:
        out = np.empty(box.shape, self.dtype)
        part = self.frames[box.slices[: self.frames.ndim]]
        within = box.slices[self.frames.ndim :]
        for place, frame, values in zip(np.ndindex(part.shape), part.flat, _pictures(part.flat), strict=True):
            out[place] = _scaled(values, frame, self.dtype)[within]
        return out


def _pictures(frames: Iterable[Frame]) -> Iterator[np.ndarray]:
    """Yield the stored values of planes; the picture of a mosaic is decoded once for its planes."""
    last: tuple[Path, int] | None = None
    values = np.empty(0)
    for frame in frames:
        if (frame.path, frame.index) != last:
            values, last = picture(frame.image, frame.index), (frame.path, frame.index)
        yield values[frame.rows, frame.columns]


def _scaled(values: np.ndarray, frame: Frame, dtype: np.dtype[Any]) -> np.ndarray:
    if (frame.slope, frame.intercept) == (1, 0):
        return values
    if dtype.kind in "iu":
        return values.astype(dtype) * dtype.type(frame.slope) + dtype.type(frame.intercept)
    return values * frame.slope + frame.intercept


def _dtype(frame: Frame) -> np.dtype[Any]:
    """Return the smallest type for the scaled values: integers if slope and intercept are whole."""
    stored = frame.image.dtype
    if (frame.slope, frame.intercept) == (1, 0):
        return stored
    if stored.kind == "f" or frame.slope % 1 or frame.intercept % 1:
        return np.dtype(np.float64)
    bits = min(frame.image.bits, 8 * stored.itemsize)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if stored.kind == "i" else (0, 2**bits - 1)
    ends = sorted(int(value) * int(frame.slope) + int(frame.intercept) for value in (low, high))
    for kind in (stored, np.dtype(np.int16), np.dtype(np.int32), np.dtype(np.int64)):
        limits = np.iinfo(kind)
        if limits.min <= min(*ends, frame.slope, frame.intercept) and max(*ends, frame.intercept) <= limits.max:
            return kind
    return np.dtype(np.float64)
