"""Lazy Dask arrays of files, and errors of damaged files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from mrhdata.errors import DataError, FormatError, ParameterError
from mrhdata.volume.box import Box
from mrhdata.volume.kinds import TOLERANCE

if TYPE_CHECKING:
    import xarray as xr

#: Largest slab in bytes of formats that can be read in parts. For larger ones the allocator would map new
#: memory each time, which takes as long as reading them.
SLAB_BYTES = 8_000_000

#: Exceptions that libraries raise for damaged files: each has its own, and passes on those of zlib, struct,
#: expat and NumPy.
DAMAGE = Exception


class FileArray:
    """An array-like whose boxes are read from a file when they are indexed.

    Parameters
    ----------
    shape, dtype
        Shape and type of the values that `part` returns.
    part : callable
        Reader that takes a :class:`~mrhdata.volume.box.Box` within the shape and returns its values.
    path : path
        Path that errors about a damaged file name.
    name : str
        Name of the array if the file contains several.
    files : sequence of path
        Files that are read, by default `path`.
    smallest_bytes : int, optional
        Bytes in memory while the smallest box is read, such as a whole compressed plane; by default the attribute
        of that name of `part`, or None if nothing is known.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        part: Callable[[Box], Any],
        path: Path,
        *,
        name: str = "",
        files: Sequence[Path | str] = (),
        smallest_bytes: int | None = None,
    ) -> None:
        self.shape = shape
        # Files may be big-endian; PyTorch and parts of SciPy need native order.
        self.dtype = np.dtype(dtype).newbyteorder("=")
        self.ndim = len(shape)
        #: Reader of boxes, and the file that errors name.
        self.part, self.path = part, path
        self.name, self.files = name, [Path(file) for file in files] or [path]
        self._smallest_bytes = smallest_bytes

    @property
    def smallest_bytes(self) -> int | None:
        """Bytes in memory while the smallest box is read; None if nothing is known."""
        return getattr(self.part, "smallest_bytes", None) if self._smallest_bytes is None else self._smallest_bytes

    def __getitem__(self, key: Any) -> np.ndarray:
        box, relative_key = _bounding_box(key, self.shape)
        with format_errors(self.path):
            return self._read(box)[relative_key]

    def into(self, out: np.ndarray, box: Box) -> None:
        """Read a box into an array of its shape, without a copy if the reader supports it."""
        direct = getattr(self.part, "into", None)
        if direct is not None and out.dtype == self.dtype:
            with format_errors(self.path):
                direct(out, box)
        else:
            with format_errors(self.path):
                out[...] = self._read(box)

    def _read(self, box: Box) -> np.ndarray:
        values = np.asarray(self.part(box), dtype=self.dtype)
        if values.shape != box.shape:
            raise ValueError(f"values must have shape {box.shape}; got {values.shape}")
        return values


def _bounding_box(key: Any, shape: tuple[int, ...]) -> tuple[Box, tuple[Any, ...]]:
    """Return the smallest box that contains the voxels of a key, and the key relative to it."""
    keys = key if isinstance(key, tuple) else (key,)
    keys = (*keys, *(slice(None),) * (len(shape) - len(keys)))
    bounds: list[tuple[int, int]] = []
    relative: list[Any] = []
    for item, n in zip(keys, shape, strict=True):
        if not isinstance(item, slice):
            index = int(item) % n
            bounds.append((index, index + 1))
            relative.append(0)
            continue
        indices = range(*item.indices(n))
        low, high = (min(indices[0], indices[-1]), max(indices[0], indices[-1]) + 1) if indices else (0, 0)
        bounds.append((low, high))
        relative.append(slice(None, None, item.step))
    return Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds)), tuple(relative)


class RawReader:
    """Reader of boxes of an uncompressed C-ordered array within a file, without memory mapping.

    A mapped file would count towards the memory budget as long as it is open.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: Any) -> None:
        self._path, self._shape, self._dtype = path, shape, np.dtype(dtype)
        #: First byte of the array in the file, and the byte after its last.
        self.first = offset
        self.last = offset + self._dtype.itemsize * int(np.prod(shape, dtype=object))

    def at(self, path: Path) -> RawReader:
        """Return the reader of an equal array in another file."""
        return RawReader(path, self.first, self._shape, self._dtype)

    def __call__(self, box: Box) -> np.ndarray:
        """Return the values of a box."""
        out = np.empty(box.shape, dtype=self._dtype)
        self.into(out, box)
        return out

    def into(self, out: np.ndarray, box: Box) -> None:
        """Read a box into an array of its shape."""
        shape, slices = (*self._shape, 1), (*box.slices, slice(0, 1))
        row = int(np.prod(shape[2:])) * self._dtype.itemsize
        planes, rows = slices[0], slices[1]
        # Contiguous bytes are read at once: all planes, or the rows of one plane.
        whole = (rows.start, rows.stop) == (0, shape[1])
        rest = all((s.start, s.stop) == (0, n) for s, n in zip(slices[2:], shape[2:], strict=True))
        direct = rest and out.flags.c_contiguous and out.dtype == self._dtype
        lengths = (rows.stop - rows.start, *shape[2:])
        with self._path.open("rb") as file:
            for first, last in (
                [(planes.start, planes.stop)] if whole else [(i, i + 1) for i in range(planes.start, planes.stop)]
            ):
                file.seek(self.first + (first * shape[1] + rows.start) * row)
                target = out[first - planes.start : last - planes.start]
                values = target if direct else np.empty((last - first, *lengths), dtype=self._dtype)
                plain: Any = values.reshape(-1).view(np.uint8)
                memory = memoryview(plain)
                if file.readinto(memory) != memory.nbytes:
                    raise EOFError("the file ends before its last voxel")
                if not direct:
                    target[...] = values[(slice(None), slice(None), *slices[2:])].reshape(target.shape)


def check_length(path: Path, needed: int) -> None:
    """Raise FormatError if an uncompressed file is shorter than its header says, before hours of work."""
    size = os.stat(path).st_size
    if size < needed:
        raise FormatError(f"{path} is truncated: it must have {needed} bytes; got {size}. Copy it again")


@contextmanager
def format_errors(path: Path | str) -> Iterator[None]:
    """Raise exceptions of libraries as FormatError that names the file."""
    try:
        yield
    except (FormatError, ParameterError):
        raise
    except DAMAGE as error:
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise FormatError(
            f"{path} cannot be read: it is damaged, truncated or of another format than its name says ({detail})"
        ) from error


def lazy(slices: FileArray, slowest: int | None) -> da.Array:
    """Return a Dask array of a file, in slabs along axis `slowest`, or in one block for None."""
    chunks = list(slices.shape)
    if slowest is not None:
        per_step = slices.dtype.itemsize * int(np.prod(slices.shape)) // max(1, slices.shape[slowest])
        steps = max(1, SLAB_BYTES // max(1, per_step))
        # A power of two, so that slabs and shards have common boundaries.
        chunks[slowest] = min(slices.shape[slowest], 2 ** (steps.bit_length() - 1))
    return in_chunks(slices, tuple(chunks))


def source_of(data: da.Array) -> FileArray | None:
    """Return the file of a Dask array that is the unchanged file, otherwise None."""
    file = data.dask.get(f"original-{data.name}") if len(data.dask.layers) <= 2 else None
    return file if isinstance(file, FileArray) and file.shape == data.shape else None


#: Layers of Dask graphs that readers add to a file. The volume's axes and type record their effect.
_READER_LAYERS = ("original-array-", "array-", "transpose-", "rounded-")


def file_of(data: da.Array) -> FileArray | None:
    """Return the file of a Dask array made by a reader: unchanged, with its axes reordered, or rounded."""
    if not all(name.startswith(_READER_LAYERS) for name in data.dask.layers):
        return None
    files = _files_below(data)
    return files[0] if len(files) == 1 else None


def bytes_at_once(data: Any) -> int:
    """Return the bytes in memory while the smallest part of an array is read, also of one computed from a file.

    It is 0 if no file is read, or if parts of any size can be read.
    """
    if not isinstance(data, da.Array):
        return 0
    whole = int(data.nbytes) if data.nbytes > SLAB_BYTES and file_of(data) is not None and is_read_whole(data) else 0
    known = [file.smallest_bytes for file in _files_below(data) if file.smallest_bytes is not None]
    return max(known, default=whole)


def _files_below(data: da.Array) -> list[FileArray]:
    """Return the files that an array is read or computed from."""
    roots = [data.dask.get(name) for name in data.dask.layers if name.startswith("original-array-")]
    return [root for root in roots if isinstance(root, FileArray)]


def is_read_whole(data: da.Array) -> bool:
    """Return whether a file must be read as a whole: it is one Dask chunk, and its reader says of no smaller part."""
    file = file_of(data)
    known = None if file is None else file.smallest_bytes
    return data.npartitions == 1 and (known is None or known >= data.nbytes)


def in_chunks(slices: FileArray, chunks: tuple[int, ...]) -> da.Array:
    """Return a Dask array of a file, in chunks of a given shape."""
    meta = np.empty((0,) * slices.ndim, dtype=slices.dtype)
    return da.from_array(slices, chunks=chunks, meta=meta, name=False, fancy=False)


def magnitude(volume: xr.DataArray) -> xr.DataArray:
    """Return the absolute value of a complex volume."""
    return volume.copy(data=da.absolute(da.asarray(volume.data)))


def as_integers(volume: xr.DataArray, path: Path | str) -> xr.DataArray:
    """Return labels and masks as integers; scaled files contain them as floating point."""
    if volume.dtype.kind in "iu":
        return volume
    is_mask = volume.attrs["kind"] == "mask"
    dtype = np.dtype(np.uint8 if is_mask else np.int32)

    def rounded(block: np.ndarray) -> np.ndarray:
        whole = _whole_numbers(block, path)
        if is_mask:
            return (whole != 0).astype(dtype)
        _check_label_range(whole, path)
        return whole.astype(dtype)

    data = da.asarray(volume.data).map_blocks(rounded, dtype=dtype, meta=np.empty((0,) * volume.ndim, dtype))
    return volume.copy(data=data)


def _whole_numbers(block: np.ndarray, path: Path | str) -> np.ndarray:
    whole = np.rint(block)
    # NaN fails this comparison too.
    if not (np.abs(block - whole) < TOLERANCE).all():
        deviation = np.nanmax(np.abs(block - whole))
        raise DataError(
            f"labels of {path} must be whole numbers; got values that deviate by up to {deviation:.3g}. "
            "Pass kind='image' if they are not labels"
        )
    return whole


def _check_label_range(whole: np.ndarray, path: Path | str) -> None:
    """Raise DataError if labels exceed int32, or the numbers that their type distinguishes."""
    low, high = (float(whole.min()), float(whole.max())) if whole.size else (0.0, 0.0)
    limits = np.iinfo(np.int32)
    if not limits.min <= low <= high <= limits.max:
        raise DataError(
            f"labels of {path} must lie between {limits.min} and {limits.max}; got {low:.6g} to {high:.6g}. "
            "Pass kind='image' if they are not labels"
        )
    # Above, neighbouring numbers have one value: single precision stores 576073732 as 576073728.
    exact = 2 ** (np.finfo(whole.dtype).nmant + 1)
    if max(-low, high) >= exact:
        raise DataError(
            f"labels of {path} must lie below {exact}, because {whole.dtype} rounds larger ones; got {low:.0f} to "
            f"{high:.0f}. Use the original labels, or pass kind='image' if they are not labels"
        )
