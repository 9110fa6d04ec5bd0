"""Voxels behind a text header: where they lie in which files, how they are encoded, and what their axes are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from mrhdata.errors import FormatError
from mrhdata.volume.assumptions import assume
from mrhdata.volume.box import Box
from mrhdata.volume.construct import SPATIAL, from_array
from mrhdata.volume.file_arrays import FileArray, RawReader, check_length, lazy
from mrhdata.volume.packed import PackedReader
from mrhdata.volume.times import with_times

if TYPE_CHECKING:
    import xarray as xr

    from mrhdata.volume.grid import Floats

#: Encodings of text, which are read as a whole.
_TEXT = ("ascii", "hex")
#: Bytes of a number in a list of texts and one of integers.
_NUMBER_BYTES = 90


@dataclass(frozen=True)
class VoxelLayout:
    """Files, encoding, axes and geometry of the voxels of one image.

    Attributes
    ----------
    path : path
        File of the header.
    files : sequence of path
        Files of the voxels, each with an equal part of them.
    skip : int
        Bytes in front of the voxels of each file, or of its compressed stream; -1 if the voxels end the file.
    unpacked_skip : int
        Bytes in front of the voxels in the unpacked stream.
    encoding : {"raw", "gzip", "zlib", "bzip2", "ascii", "hex"}
    shape : tuple of int
        Lengths of the axes, the fastest first.
    dtype : numpy.dtype
        Stored type, with its byte order.
    dims : tuple of str
        Names of the axes, the fastest first; three are spatial.
    affine : (4, 4) array
        Matrix from the index along the spatial axes, in their order, to world mm, RAS+.
    assumed : sequence of str
        Properties that the header does not state.
    time : tuple of float, optional
        Seconds between two times, and the first time.
    channels : sequence of str, optional
        Names of the channels.
    attrs : dict
        Attributes of the volume.
    """

    path: Path
    files: Sequence[Path]
    skip: int
    encoding: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dims: tuple[str, ...]
    affine: Floats
    unpacked_skip: int = 0
    assumed: Sequence[str] = ()
    time: tuple[float, float] | None = None
    channels: Sequence[str] | None = None
    attrs: dict[str, Any] = field(default_factory=dict)


def open_layout(layout: VoxelLayout) -> xr.DataArray:
    """Return the lazy volume of a layout.

    Raises
    ------
    FormatError
        A file is shorter than its voxels, or the axes are not those of a volume.
    """
    shape, dims = layout.shape[::-1], layout.dims[::-1]
    if len(set(dims)) < len(dims) or sum(d in SPATIAL for d in dims) != 3:
        raise FormatError(f"{layout.path} must have 2 or 3 spatial axes, one of time and one of channels; got {dims}")
    reader = _reader(layout, shape)
    data: da.Array = lazy(FileArray(shape, layout.dtype, reader, layout.path, files=layout.files), _slowest(layout))
    # The affine follows the header, which lists the fastest axis first.
    order = range(len(dims))[::-1]
    data, names = data.transpose(*order), dims[::-1]
    keep = [i for i, d in enumerate(names) if d in SPATIAL or data.shape[i] > 1]
    if len(keep) < len(names):
        data = data[tuple(slice(None) if i in keep else 0 for i in range(len(names)))]
    kept = [names[i] for i in keep]
    volume = from_array(data, affine=layout.affine, dims=kept, name=layout.path.name.split(".")[0], **layout.attrs)
    if layout.time is not None:
        volume = with_times(volume, *layout.time)
    if layout.channels is not None and volume.sizes.get("c") == len(layout.channels):
        volume = volume.assign_coords(c=list(layout.channels))
    return assume(volume, *layout.assumed) if layout.assumed else volume


def _slowest(layout: VoxelLayout) -> int | None:
    return 0 if layout.encoding == "raw" else None


def _reader(layout: VoxelLayout, shape: tuple[int, ...]) -> Callable[[Box], np.ndarray]:
    """Return the reader of the voxels; each file is checked for its length."""
    count = int(np.prod(shape, dtype=object))
    if len(layout.files) == 1:
        return _file_reader(layout, layout.files[0], shape)
    if count % len(layout.files) or layout.encoding in _TEXT:
        raise FormatError(
            f"{layout.path} must name files of equal parts of its {count} voxels, raw or compressed; got "
            f"{len(layout.files)} files"
        )
    part = (count // len(layout.files),)
    return _JoinedReader([_file_reader(layout, file, part) for file in layout.files], part[0], shape, layout.dtype)


def _file_reader(layout: VoxelLayout, file: Path, shape: tuple[int, ...]) -> Callable[[Box], np.ndarray]:
    size = int(np.prod(shape, dtype=object)) * layout.dtype.itemsize
    if layout.encoding in _TEXT:
        return _TextReader(file, layout.skip, shape, layout.dtype, layout.encoding)
    if layout.encoding == "raw":
        skip = layout.skip + layout.unpacked_skip if layout.skip >= 0 else file.stat().st_size - size
        check_length(file, max(0, skip) + size)
        return RawReader(file, skip, shape, layout.dtype)
    start, offset = max(0, layout.skip), layout.unpacked_skip
    return PackedReader(file, layout.encoding, shape, layout.dtype, start=start, offset=offset, order="C")


class _JoinedReader:
    """Reader of boxes of an array of which each file holds an equal part."""

    def __init__(self, parts: Sequence[Any], length: int, shape: tuple[int, ...], dtype: Any) -> None:
        self._parts, self._length, self._shape, self._dtype = parts, length, shape, dtype

    def __call__(self, box: Box) -> np.ndarray:
        """Return the values of a box; the planes that contain it are read."""
        plane = int(np.prod(self._shape[1:], dtype=object))
        first, last = box.start[0] * plane, box.stop[0] * plane
        out = np.empty(last - first, dtype=self._dtype)
        for i in range(first // self._length, -(-last // self._length)):
            start = i * self._length
            low, high = max(first, start), min(last, start + self._length)
            out[low - first : high - first] = self._parts[i](Box((low - start,), (high - start,)))
        return out.reshape(-1, *self._shape[1:])[(slice(None), *box.slices[1:])]


class _TextReader:
    """Reader of boxes of an array that is stored as text: numbers, or hexadecimal bytes."""

    def __init__(self, path: Path, skip: int, shape: tuple[int, ...], dtype: np.dtype[Any], encoding: str) -> None:
        self._path, self._skip, self._shape, self._dtype, self._encoding = path, max(0, skip), shape, dtype, encoding
        count = int(np.prod(shape, dtype=object))
        # Each number takes a digit and a space, and each byte two hexadecimal digits.
        check_length(path, self._skip + 2 * count * (dtype.itemsize if encoding == "hex" else 1) - 1)
        #: Bytes in memory while the text is read, whole; hexadecimal text is held twice, and then its bytes.
        self.smallest_bytes = 2 * path.stat().st_size + count * (dtype.itemsize if encoding == "hex" else _NUMBER_BYTES)

    def __call__(self, box: Box) -> np.ndarray:
        """Return the values of a box; the whole file is read."""
        with self._path.open("rb") as file:
            file.seek(self._skip)
            text = file.read()
        if self._encoding == "hex":
            values = np.frombuffer(bytes.fromhex(text.decode("ascii")), self._dtype)
        else:
            values = np.array(text.split(), dtype=np.float64 if self._dtype.kind == "f" else object)
            values = (values if self._dtype.kind == "f" else np.array([int(v) for v in values])).astype(self._dtype)
        return values[: int(np.prod(self._shape))].reshape(self._shape)[box.slices]
