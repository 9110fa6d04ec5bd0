"""Files as lazy arrays: the one place where a reading library meets Dask."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from mrhdata.errors import DataError, FormatError
from mrhdata.volume.box import Box

if TYPE_CHECKING:
    import xarray as xr

#: Slabs are cut to at most this size where a format can be read in parts. Larger ones would be mapped
#: anew by the allocator each time, which costs as much as reading them.
SLAB_BYTES = 8_000_000

#: What a reading library raises for a damaged file: each has exceptions of its own, and lets through
#: those of zlib, struct, expat and NumPy.
DAMAGE = Exception


class FileArray:
    """An array-like whose parts are read from a file when asked for.

    Parameters
    ----------
    shape, dtype
        Of the values that `part` returns.
    part : callable
        Takes a :class:`~mrhdata.volume.box.Box` within the shape, and returns its values.
    path : path
        Named in the error when the file turns out to be damaged.
    name : str
        Of the array, where the file holds several.
    files : sequence of path
        What is read, where that is not the path itself.
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
    ) -> None:
        self.shape = shape
        # Files may be big-endian; PyTorch and some of SciPy take native order only.
        self.dtype = np.dtype(dtype).newbyteorder("=")
        self.ndim = len(shape)
        #: What reads a part, and the file that is named in errors.
        self.part, self.path = part, path
        self.name, self.files = name, [Path(file) for file in files] or [path]

    def __getitem__(self, key: Any) -> np.ndarray:
        box, inside = _box(key, self.shape)
        with format_errors(self.path):
            return self._read(box)[inside]

    def into(self, out: np.ndarray, box: Box) -> None:
        """Read a box into an array of its shape, without a copy where the reader can do so."""
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
            raise ValueError(f"values of shape {values.shape} where {box.shape} were expected")
        return values


def _box(key: Any, shape: tuple[int, ...]) -> tuple[Box, tuple[Any, ...]]:
    """Smallest box that holds what `key` asks for, and the key within it."""
    keys = key if isinstance(key, tuple) else (key,)
    keys = (*keys, *(slice(None),) * (len(shape) - len(keys)))
    bounds: list[tuple[int, int]] = []
    inside: list[Any] = []
    for wanted, n in zip(keys, shape, strict=True):
        if not isinstance(wanted, slice):
            index = int(wanted) % n
            bounds.append((index, index + 1))
            inside.append(0)
            continue
        indices = range(*wanted.indices(n))
        low, high = (min(indices[0], indices[-1]), max(indices[0], indices[-1]) + 1) if indices else (0, 0)
        bounds.append((low, high))
        inside.append(slice(None, None, wanted.step))
    return Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds)), tuple(inside)


class RawReader:
    """Parts of an uncompressed C-ordered array within a file, read without mapping it into memory.

    A mapped file would count against the memory budget for as long as it is open.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: Any) -> None:
        self._path, self._shape, self._dtype = path, shape, np.dtype(dtype)
        #: Bytes of the file that hold the array.
        self.first = offset
        self.last = offset + self._dtype.itemsize * int(np.prod(shape, dtype=object))

    def at(self, path: Path) -> RawReader:
        """The same array in another file."""
        return RawReader(path, self.first, self._shape, self._dtype)

    def __call__(self, box: Box) -> np.ndarray:
        """The values of a box."""
        out = np.empty(box.shape, dtype=self._dtype)
        self.into(out, box)
        return out

    def into(self, out: np.ndarray, box: Box) -> None:
        """Read a box into an array of its shape."""
        shape, places = (*self._shape, 1), (*box.slices, slice(0, 1))
        row = int(np.prod(shape[2:])) * self._dtype.itemsize
        planes, rows = places[0], places[1]
        # As much as lies in one piece is read at once: all planes, or the rows of one.
        whole = (rows.start, rows.stop) == (0, shape[1])
        rest = all((s.start, s.stop) == (0, n) for s, n in zip(places[2:], shape[2:], strict=True))
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
                    target[...] = values[(slice(None), slice(None), *places[2:])].reshape(target.shape)


def check_length(path: Path, needed: int) -> None:
    """An uncompressed file must be as long as its header says: better now than hours later."""
    there = os.stat(path).st_size
    if there < needed:
        raise FormatError(
            f"{path} is truncated: its header asks for {needed} bytes and there are {there}; copy it again"
        )


@contextmanager
def format_errors(path: Path | str) -> Iterator[None]:
    """What a library raises within the block becomes our error, which names the file."""
    try:
        yield
    except FormatError:
        raise
    except DAMAGE as error:
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise FormatError(
            f"{path} cannot be read: it is damaged, truncated or not what its name says ({detail})"
        ) from error


def lazy(slices: FileArray, slowest: int | None) -> da.Array:
    """Dask array over a file: slabs along axis `slowest`, or one block where None."""
    chunks = list(slices.shape)
    if slowest is not None:
        per_step = slices.dtype.itemsize * int(np.prod(slices.shape)) // max(1, slices.shape[slowest])
        fitting = max(1, SLAB_BYTES // max(1, per_step))
        # A power of two, so that slabs end where shards do.
        chunks[slowest] = min(slices.shape[slowest], 2 ** (fitting.bit_length() - 1))
    return in_chunks(slices, tuple(chunks))


def source_of(data: da.Array) -> FileArray | None:
    """The file behind a Dask array, if the array is that file as it is."""
    found = data.dask.get(f"original-{data.name}") if len(data.dask.layers) <= 2 else None
    return found if isinstance(found, FileArray) and found.shape == data.shape else None


#: What readers put above a file. What it does is told by the volume's axes and type.
_ABOVE_FILES = ("original-array-", "array-", "transpose-", "rounded-")


def file_of(data: da.Array) -> FileArray | None:
    """The file behind a Dask array that a reader made: as it is, its axes in another order, or rounded."""
    if not all(name.startswith(_ABOVE_FILES) for name in data.dask.layers):
        return None
    roots = [data.dask.get(name) for name in data.dask.layers if name.startswith("original-array-")]
    return roots[0] if len(roots) == 1 and isinstance(roots[0], FileArray) else None


def in_chunks(slices: FileArray, chunks: tuple[int, ...]) -> da.Array:
    """Dask array over a file, in chunks of a given shape."""
    meta = np.empty((0,) * slices.ndim, dtype=slices.dtype)
    return da.from_array(slices, chunks=chunks, meta=meta, name=False, fancy=False)


def magnitude(volume: xr.DataArray) -> xr.DataArray:
    """Absolute value of a complex volume."""
    return volume.copy(data=da.absolute(da.asarray(volume.data)))


def as_integers(volume: xr.DataArray, path: Path | str) -> xr.DataArray:
    """Labels and masks as integers; scaled files give them back as floating point."""
    if volume.dtype.kind in "iu":
        return volume
    kind = volume.attrs["kind"]
    dtype = np.dtype(np.uint8 if kind == "mask" else np.int32)

    def rounded(block: np.ndarray) -> np.ndarray:
        whole = np.rint(block)
        # NaN fails this comparison too, as it should.
        if not (np.abs(block - whole) < 1e-3).all():
            worst = np.nanmax(np.abs(block - whole))
            raise DataError(
                f"{path} is no label volume: values lie up to {worst:.3g} from whole numbers; kind='image'?"
            )
        if kind == "mask":
            return (whole != 0).astype(dtype)
        ends = np.iinfo(np.int32)
        if block.size and not (ends.min <= whole.min() and whole.max() <= ends.max):
            raise DataError(
                f"{path} is no label volume: its values reach from {whole.min():.6g} to {whole.max():.6g}, and labels "
                f"lie between {ends.min} and {ends.max}; kind='image'?"
            )
        return whole.astype(dtype)

    data = da.asarray(volume.data).map_blocks(rounded, dtype=dtype, meta=np.empty((0,) * volume.ndim, dtype))
    return volume.copy(data=data)
