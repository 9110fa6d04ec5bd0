"""Voxels of one subject, cut into tiles that are decoded once and shared by all patches over them.

A *stream* is what becomes one tensor of a patch: volumes stacked on channels, on one grid. Its *tiles*
are its stored chunks, joined where they are smaller than a patch. Volumes in memory are views.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from mrhdata.errors import DataError, GridError
from mrhdata.io.omezarr.chunks import Chunks, ZarrReader
from mrhdata.volume.box import Box
from mrhdata.volume.construct import SPATIAL
from mrhdata.volume.file_arrays import FileArray, format_errors, source_of
from mrhdata.volume.grid import Grid

if TYPE_CHECKING:
    import xarray as xr

Ints = NDArray[np.int64]

#: Voxels along an axis of a tile of an array in memory: it is a view, so the size costs nothing.
_VIEW = 64
#: Patches of no more values than this are gathered many at a time, from blocks with the channels last.
SMALL = 4096
#: Whole numbers that float32 holds exactly.
_MOST_LABELS = 2**24


class VoxelReader(Protocol):
    """What a stream reads from: :class:`VolumeReader`, or a volume resampled to the stream's grid."""

    channels: int
    dtype: np.dtype[Any]
    source: set[str]
    labels: bool
    slow: str | None

    @property
    def array(self) -> np.ndarray | None:
        """The voxels where they are in memory."""

    @property
    def chunk(self) -> tuple[int, int, int]:
        """Voxels along z, y, x that are read together."""

    def stored(self, box: Box) -> bool:
        """Whether some voxels of a box were ever written."""

    def whole_chunk(self, box: Box, room: np.ndarray | None) -> np.ndarray | None:
        """A box that is one stored chunk, without a copy."""

    def into(self, out: np.ndarray, box: Box) -> None:
        """Read a box into an array (C, z, y, x)."""


class VolumeReader:
    """One volume of a stream, read box by box as (C, z, y, x).

    Parameters
    ----------
    volume : xarray.DataArray
    flips : tuple of bool
        Along which of z, y, x it is read backwards.

    Attributes
    ----------
    channels : int
    shape : tuple of int
        Along z, y, x.
    source : set of str
        Names of the files or arrays that the voxels come from, also through slicing and arithmetic.
    labels : bool
        Voxels are labels or a mask.
    slow : str or None
        Why reading chunk by chunk is slow.
    dtype : numpy.dtype
    """

    def __init__(self, volume: xr.DataArray, flips: Sequence[bool] = (False, False, False)) -> None:
        if "t" in volume.dims:
            raise GridError(
                f"{volume.name!r} has a time axis of {volume.sizes['t']}; take one time first, by "
                "volume.isel(t=0) or mrhdata convert --time 0"
            )
        dims = [d for d in ("c", *SPATIAL) if d in volume.dims]
        volume = volume if list(volume.dims) == dims else volume.transpose(*dims)
        self._present = tuple(slice(None) if d in dims else 0 for d in ("c", *SPATIAL))
        self._flips = tuple(flips)
        self.channels = volume.sizes.get("c", 1)
        self.shape: tuple[int, ...] = tuple(volume.sizes.get(d, 1) for d in SPATIAL)
        self.dtype = np.dtype(volume.dtype)
        self._data = volume.data
        self._source = source_of(self._data) if isinstance(self._data, da.Array) else None
        self.source = _origins(self._data)
        self.labels = volume.attrs.get("kind") in ("labels", "mask")
        self.slow = None
        if isinstance(self._data, da.Array) and self.chunks is None:
            name = None if self._source is None else self._source.path.name
            self.slow = "it is computed by Dask" if name is None else f"{name} is not read chunk by chunk"

    @property
    def array(self) -> np.ndarray | None:
        """The (C, z, y, x) array of a volume in memory, no copy."""
        if isinstance(self._data, da.Array) or any(self._flips):
            return None
        absent = tuple(i for i, present in enumerate(self._present) if present == 0)
        return np.expand_dims(np.asarray(self._data), absent)

    @property
    def chunks(self) -> Chunks | None:
        """Stored chunks, where they can be read one by one."""
        part = getattr(self._source, "part", None)
        return part.chunks if isinstance(part, ZarrReader) else None

    @property
    def chunk(self) -> tuple[int, int, int]:
        """Voxels along z, y, x that are read together."""
        if not isinstance(self._data, da.Array):
            return (_VIEW, _VIEW, _VIEW)
        stored = self.chunks.chunk if self.chunks is not None else self._data.chunksize
        axes = [i for i, present in enumerate(self._present) if present != 0]
        lengths = {axis: int(length) for axis, length in zip(axes, stored, strict=True)}
        return (lengths.get(1, 1), lengths.get(2, 1), lengths.get(3, 1))

    def stored(self, box: Box) -> bool:
        """Whether some voxels of a box were ever written: of a store, chunk by chunk; all of another volume."""
        if self.chunks is None:
            return True
        box, _ = self._flipped(box)
        return self.chunks.stored(self._key(box))

    def whole_chunk(self, box: Box, room: np.ndarray | None) -> np.ndarray | None:
        """The box (z, y, x) without a copy, where it is one stored chunk of a volume without channels."""
        chunks = self.chunks
        if self._source is None or chunks is None or len(chunks.shape) != 3 or any(self._flips):
            return None
        for a, b, c, n in zip(box.start, box.stop, chunks.chunk, chunks.shape, strict=True):
            if a % c or b != min(a + c, n):
                return None
        out = None if room is None else _shaped(room, chunks.chunk, chunks.dtype)
        with format_errors(self._source.path):
            values = chunks.read([a // c for a, c in zip(box.start, chunks.chunk, strict=True)], out)
        return values[box.within(box.start)]

    def into(self, out: np.ndarray, box: Box) -> None:
        """Read a box into an array (C, z, y, x)."""
        box, turned = self._flipped(box)
        target = np.flip(out, tuple(turned))[self._present]
        key = self._key(box)
        if self._source is not None:
            self._source.into(target, key)
        elif isinstance(self._data, da.Array):
            target[...] = self._data[key.slices].compute(scheduler="synchronous")
        else:
            target[...] = self._data[key.slices]

    def _flipped(self, box: Box) -> tuple[Box, list[int]]:
        """Where a box lies in an array that is read backwards, and which axes of (C, z, y, x) that turns."""
        flipped = [axis for axis, flip in enumerate(self._flips) if flip]
        start, stop = list(box.start), list(box.stop)
        for axis in flipped:
            n = self.shape[axis]
            start[axis], stop[axis] = n - stop[axis], n - start[axis]
        return Box(tuple(start), tuple(stop)), [axis + 1 for axis in flipped]

    def _key(self, box: Box) -> Box:
        """Return the box in the axes that the volume has, channels first."""
        rows = zip((0, *box.start), (self.channels, *box.stop), self._present, strict=True)
        bounds = [(a, b) for a, b, present in rows if present != 0]
        return Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))


class TensorSource:
    """Volumes on one grid, stacked on channels, as tiles.

    Parameters
    ----------
    parts : sequence of Part or Resampled
    channels : list of str
    grid : Grid
    shape : sequence of int
        Of a patch, z, y, x.
    about : tuple of Grid and shape, optional
        Grid and patch shape of the volume whose voxels positions count; patches of this stream have
        their centres at the same world points, to the nearest voxel. Its own where None.
    exact : bool
        Keep types that are wider than float32.

    Attributes
    ----------
    chunk : tuple of int
        Voxels that are stored together.
    tile, tiles : tuple of int
        Voxels of a tile along z, y, x (fewer at the edge), and the number of tiles.
    small : bool
        Patches are gathered many at a time; tiles then have the channels last.
    """

    def __init__(
        self,
        parts: Sequence[VoxelReader],
        channels: list[str],
        grid: Grid,
        shape: Sequence[int],
        about: tuple[Grid, Sequence[int]] | None = None,
        exact: bool = False,
    ) -> None:
        self.channels, self.grid, self._parts = channels, grid, list(parts)
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self._about = about
        dtype = np.result_type(*[p.dtype for p in parts])
        # Patches are float32: what is wider is rounded when it is read, not when it is cut.
        narrow = dtype.itemsize <= 4 and dtype.kind in "buif"
        self.dtype = dtype if exact or narrow else np.dtype(np.float32)
        # Labels are names: rounded, two become one.
        self._names = not exact and dtype.kind in "iu" and dtype.itemsize >= 4 and all(p.labels for p in parts)
        self.small = len(channels) * int(np.prod(self.shape)) <= SMALL
        chunk = np.max([p.chunk for p in parts], axis=0)
        self.chunk = _three(int(n) for n in chunk)
        joined = chunk * -(-np.asarray(self.shape) // chunk)
        self.tile = _three(int(min(n, t)) for n, t in zip(grid.shape, joined, strict=True))
        self.tiles = _three(-(-n // t) for n, t in zip(grid.shape, self.tile, strict=True))
        array = parts[0].array if len(parts) == 1 else None
        self._view = array if array is not None and array.dtype == self.dtype and not self.small else None

    def cells(self, positions: Ints) -> Ints:
        """Number of the tile that holds each position, as one integer: (n,)."""
        numbers = np.clip(positions, 0, None) // self.tile
        return np.asarray(np.ravel_multi_index(tuple(numbers.T), self.tiles), dtype=np.int64)

    @property
    def labels(self) -> bool:
        """Whether the voxels are labels or a mask."""
        return all(part.labels for part in self._parts)

    @property
    def slow(self) -> str | None:
        """Why reading chunk by chunk is slow, None where it is not."""
        return next((part.slow for part in self._parts if part.slow is not None), None)

    def stored(self, box: Box) -> bool:
        """Return whether some voxels of a box were ever written."""
        return any(part.stored(box) for part in self._parts)

    @property
    def origins(self) -> set[str]:
        """Files and arrays that the voxels come from."""
        return set().union(*(part.source for part in self._parts))

    def starts(self, positions: Ints) -> Ints:
        """First voxel in this stream of patches at positions of the first one: (n, 3)."""
        if self._about is None:
            return positions
        grid, shape = self._about
        if grid.same_as(self.grid):
            return np.asarray(positions + (np.array(shape) - self.shape) // 2, dtype=np.int64)
        centres = self.grid.index(grid.world(positions + (np.array(shape) - 1) / 2))
        return np.floor(centres - (np.array(self.shape) - 1) / 2 + 0.5).astype(np.int64)

    def holds(self, starts: Ints) -> NDArray[np.bool_]:
        """Which patches, by their first voxels in this stream, lie within the volume: (n,)."""
        return np.asarray(((starts >= 0) & (starts + self.shape <= self.grid.shape)).all(axis=1))

    def join(self) -> None:
        """Make small patches' tiles one: everything stays in memory, and one gather serves all."""
        if self.small:
            self.tile, self.tiles = self.grid.shape, (1, 1, 1)

    @property
    def voxel_bytes(self) -> int:
        """Bytes of a voxel in memory; 0 where tiles are views of what is there already."""
        return 0 if self._view is not None else self.dtype.itemsize * len(self.channels)

    def sizes(self, tiles: Ints) -> Ints:
        """Bytes that tiles take, given by their numbers (n, 3)."""
        # A stored chunk is decoded whole, also at the edge.
        high = np.asarray(self.grid.shape) if self.tile != self.chunk else np.array(self.tiles) * self.tile
        low = tiles * self.tile
        return np.asarray(np.prod(np.minimum(high, low + self.tile) - low, axis=1) * self.voxel_bytes)

    def read(self, tile: Sequence[int], room: np.ndarray | None = None) -> np.ndarray:
        """One tile, (C, z, y, x), or (z, y, x, C) where patches are small; within `room` if that is given."""
        low = tuple([i * t for i, t in zip(tile, self.tile, strict=True)])
        high = tuple([min(n, b + t) for n, b, t in zip(self.grid.shape, low, self.tile, strict=True)])
        return self.box(Box(low, high), room)

    def box(self, box: Box, room: np.ndarray | None = None) -> np.ndarray:
        """Voxels of a box within the grid, in the axes of a tile.

        Raises
        ------
        DataError
            Labels that float32 patches cannot tell apart.
        """
        found = self._box(box, room)
        if self._names and found.size and max(int(found.max()), -int(found.min())) > _MOST_LABELS:
            raise DataError(
                f"the labels of {', '.join(self.channels)} go up to {int(found.max())}, and patches tell labels apart "
                f"up to {_MOST_LABELS}; number them anew, as numpy.unique(labels, return_inverse=True) does"
            )
        return found

    def _box(self, box: Box, room: np.ndarray | None) -> np.ndarray:
        if self._view is not None:
            return self._view[(slice(None), *box.slices)]
        single = len(self._parts) == 1 and self._parts[0].dtype == self.dtype
        whole = self._parts[0].whole_chunk(box, room) if single else None
        if whole is not None:
            return whole[..., None] if self.small else whole[None]
        lengths = box.shape
        if self.small:
            out = _shaped(room, (*lengths, len(self.channels)), self.dtype)
            first = np.moveaxis(out, -1, 0)
        else:
            out = first = _shaped(room, (len(self.channels), *lengths), self.dtype)
        for part, target in self._targets(first):
            part.into(target, box)
        return out

    def voxels(self, box: Box) -> np.ndarray:
        """Return the voxels of a box within the grid, (C, z, y, x)."""
        values = self.box(box)
        return np.moveaxis(values, -1, 0) if self.small else values

    def _targets(self, out: np.ndarray) -> Iterator[tuple[VoxelReader, np.ndarray]]:
        at = 0
        for part in self._parts:
            yield part, out[at : at + part.channels]
            at += part.channels


def _shaped(room: np.ndarray | None, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """An array at the beginning of some bytes, or of its own where there are none."""
    if room is None:
        return np.empty(shape, dtype)
    array: np.ndarray = room[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)
    return array


def _origins(data: Any) -> set[str]:
    """Files and arrays at the root of some data."""
    if isinstance(data, da.Array):
        graph = data.dask
        roots = [name for name in graph.layers if not graph.dependencies[name]]
        found = [_origins(graph.get(name)) if isinstance(graph.get(name), FileArray) else {name} for name in roots]
        return set().union(*found)
    if isinstance(data, FileArray):
        # By whatever way to it.
        return {os.path.realpath(data.path)}
    while getattr(data, "base", None) is not None:
        data = data.base
    return {f"memory {id(data)}"}


def _three(lengths: Iterable[int]) -> tuple[int, int, int]:
    z, y, x = lengths
    return (z, y, x)
