"""Readers of one volume, box by box: as it is stored, or resampled to another grid."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import dask.array as da
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mrhdata.errors import GridError
from mrhdata.io import omezarr
from mrhdata.io.omezarr.chunks import Chunks, ZarrReader
from mrhdata.volume.box import Box
from mrhdata.volume.construct import SPATIAL
from mrhdata.volume.file_arrays import FileArray, bytes_at_once, format_errors, source_of
from mrhdata.volume.grid import Grid

if TYPE_CHECKING:
    import xarray as xr

#: Voxels along an axis of a tile of an array in memory. Such tiles are views, so their size costs nothing.
_IN_MEMORY_CHUNK = 64
#: The eight corners of a box, as multiples of its lengths.
_CORNERS = np.array(list(np.ndindex(2, 2, 2)))


class VoxelReader(Protocol):
    """Reader of one volume of a tensor source: :class:`VolumeReader` or :class:`ResampledReader`."""

    channels: int
    dtype: np.dtype[Any]
    source: set[str]
    labels: bool
    slow: str | None
    smallest_bytes: int

    @property
    def array(self) -> np.ndarray | None:
        """The voxels of a volume in memory; None for other volumes."""

    @property
    def chunk(self) -> tuple[int, int, int]:
        """Voxels along z, y, x that are read together."""

    def stored(self, box: Box) -> bool:
        """Return whether some voxels of a box were ever written."""

    def whole_chunk(self, box: Box, buffer: np.ndarray | None) -> np.ndarray | None:
        """Return a box that is one stored chunk, without a copy."""

    def into(self, out: np.ndarray, box: Box) -> None:
        """Read a box into an array (C, z, y, x)."""


class VolumeReader:
    """Reader of one volume at its own voxels, box by box as (C, z, y, x).

    Parameters
    ----------
    volume : xarray.DataArray
    flips : tuple of bool
        Axes of z, y, x that are read backwards.

    Attributes
    ----------
    channels : int
    shape : tuple of int
        Voxels along z, y, x.
    source : set of str
        Names of the files or arrays that the voxels come from, also through slicing and arithmetic.
    labels : bool
        Voxels are labels or a mask.
    slow : str or None
        Reason why reading chunk by chunk is slow.
    smallest_bytes : int
        Bytes in memory while the smallest part of the file is read.
    dtype : numpy.dtype
    """

    def __init__(self, volume: xr.DataArray, flips: Sequence[bool] = (False, False, False)) -> None:
        if "t" in volume.dims:
            raise GridError(
                f"{volume.name!r} must have no time axis; got one of {volume.sizes['t']} volumes. Select one with "
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
        self._file = source_of(self._data) if isinstance(self._data, da.Array) else None
        self.source, self.smallest_bytes = _origins(self._data), bytes_at_once(self._data)
        self.labels = volume.attrs.get("kind") in ("labels", "mask")
        self.slow = None
        if isinstance(self._data, da.Array) and self.chunks is None:
            name = None if self._file is None else self._file.path.name
            self.slow = "it is computed by Dask" if name is None else f"{name} is not read chunk by chunk"

    @property
    def array(self) -> np.ndarray | None:
        """The (C, z, y, x) array of a volume in memory, without a copy; None for other volumes."""
        if isinstance(self._data, da.Array) or any(self._flips):
            return None
        absent = tuple(i for i, present in enumerate(self._present) if present == 0)
        return np.expand_dims(np.asarray(self._data), absent)

    @property
    def chunks(self) -> Chunks | None:
        """Stored chunks, if they can be read one by one."""
        part = getattr(self._file, "part", None)
        return part.chunks if isinstance(part, ZarrReader) else None

    @property
    def chunk(self) -> tuple[int, int, int]:
        """Voxels along z, y, x that are read together."""
        if not isinstance(self._data, da.Array):
            return (_IN_MEMORY_CHUNK, _IN_MEMORY_CHUNK, _IN_MEMORY_CHUNK)
        stored = self.chunks.chunk if self.chunks is not None else self._data.chunksize
        axes = [i for i, present in enumerate(self._present) if present != 0]
        lengths = {axis: int(length) for axis, length in zip(axes, stored, strict=True)}
        return (lengths.get(1, 1), lengths.get(2, 1), lengths.get(3, 1))

    def stored(self, box: Box) -> bool:
        """Return whether some voxels of a box were ever written; always True if chunks are not read one by one."""
        if self.chunks is None:
            return True
        box, _ = self._flipped(box)
        return self.chunks.stored(self._key(box))

    def whole_chunk(self, box: Box, buffer: np.ndarray | None) -> np.ndarray | None:
        """Return a box (z, y, x) without a copy, if it is one stored chunk of a volume without channels."""
        chunks = self.chunks
        if self._file is None or chunks is None or len(chunks.shape) != 3 or any(self._flips):
            return None
        for a, b, c, n in zip(box.start, box.stop, chunks.chunk, chunks.shape, strict=True):
            if a % c or b != min(a + c, n):
                return None
        out = None if buffer is None else allocate(buffer, chunks.chunk, chunks.dtype)
        with format_errors(self._file.path):
            values = chunks.read([a // c for a, c in zip(box.start, chunks.chunk, strict=True)], out)
        return values[box.within(box.start)]

    def into(self, out: np.ndarray, box: Box) -> None:
        """Read a box into an array (C, z, y, x)."""
        box, flipped_axes = self._flipped(box)
        target = np.flip(out, tuple(flipped_axes))[self._present]
        key = self._key(box)
        if self._file is not None:
            self._file.into(target, key)
        elif isinstance(self._data, da.Array):
            target[...] = self._data[key.slices].compute(scheduler="synchronous")
        else:
            target[...] = self._data[key.slices]

    def _flipped(self, box: Box) -> tuple[Box, list[int]]:
        """Return the box in the stored array, and the axes of (C, z, y, x) that are read backwards."""
        flipped = [axis for axis, flip in enumerate(self._flips) if flip]
        start, stop = list(box.start), list(box.stop)
        for axis in flipped:
            n = self.shape[axis]
            start[axis], stop[axis] = n - stop[axis], n - start[axis]
        return Box(tuple(start), tuple(stop)), [axis + 1 for axis in flipped]

    def _key(self, box: Box) -> Box:
        """Return the box in the axes that the volume has, channels first."""
        axes = zip((0, *box.start), (self.channels, *box.stop), self._present, strict=True)
        bounds = [(a, b) for a, b, present in axes if present != 0]
        return Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))


class ResampledReader:
    """Reader of a volume at the voxels of another grid: images linearly, labels and masks from the nearest voxel.

    Voxels more than half a voxel outside the volume are 0. A pyramid is read at its coarsest level that is as fine as
    the grid. The methods are those of :class:`VolumeReader`.
    """

    array = None

    def __init__(self, volume: xr.DataArray, grid: Grid) -> None:
        level = omezarr.level_for(volume, grid.spacing)
        self._reader = VolumeReader(level)
        self._order = 0 if self._reader.labels or self._reader.dtype.kind == "b" else 1
        self.channels, self.source = self._reader.channels, self._reader.source
        self.labels, self.slow = self._reader.labels, self._reader.slow
        self.smallest_bytes = self._reader.smallest_bytes
        self.dtype = np.dtype(np.float32) if self._order else self._reader.dtype
        self.shape: tuple[int, ...] = grid.shape
        affine = np.linalg.solve(level.mrh.grid.affine, grid.affine)
        self._matrix, self._shift = affine[:3, :3], affine[:3, 3]
        # A coarser level drops half of an odd last voxel but covers the same extent, so the full volume gives the ends.
        ends = np.array([[-0.5] * 3, np.array(volume.mrh.grid.shape) - 0.5])
        self._first, self._last = level.mrh.grid.index(volume.mrh.grid.world(ends))
        # Boxes of the new grid that need about one stored chunk.
        steps = np.abs(self._matrix).sum(axis=0)
        lengths = np.clip(
            np.asarray(self._reader.chunk) / np.maximum(steps, 1e-9), np.minimum(16, grid.shape), grid.shape
        )
        self.chunk = (int(lengths[0]), int(lengths[1]), int(lengths[2]))

    def whole_chunk(self, box: Box, buffer: np.ndarray | None) -> None:
        """Return None: stored chunks lie on another grid."""

    def stored(self, box: Box) -> bool:
        """Return whether some voxels that a box needs were ever written."""
        source_box, _ = self._needed(box)
        return self._reader.stored(source_box)

    def into(self, out: np.ndarray, box: Box) -> None:
        """Resample a box into an array (C, z, y, x)."""
        low, lengths = np.array(box.start, dtype=np.float64), np.array(box.shape)
        source_box, ends = self._needed(box)
        first = np.array(source_box.start)
        voxels = np.empty((self.channels, *source_box.shape), self._reader.dtype)
        self._reader.into(voxels, source_box)
        shift = self._shift + self._matrix @ low - first
        inside = self._inside(low, lengths, ends)
        for channel, target in zip(voxels, out, strict=True):
            values = channel.astype(np.float32) if self._order else channel
            target[...] = ndimage.affine_transform(
                values, self._matrix, shift, tuple(lengths), order=self._order, mode="nearest"
            )
            if inside is not None:
                target[~inside] = 0

    def _needed(self, box: Box) -> tuple[Box, np.ndarray]:
        """Return the box of the volume that a box of the new grid needs, and its corners in voxels of the volume."""
        low = np.array(box.start, dtype=np.float64)
        ends = (low + _CORNERS * (np.array(box.shape) - 1)) @ self._matrix.T + self._shift
        top = np.array(self._reader.shape) - 1
        first = np.clip(np.floor(ends.min(axis=0)).astype(int), 0, top)
        last = np.clip(np.ceil(ends.max(axis=0)).astype(int), 0, top)
        return Box.of(first, last + 1), ends

    def _inside(self, low: np.ndarray, lengths: np.ndarray, ends: np.ndarray) -> NDArray[np.bool_] | None:
        """Return a mask of the box's voxels that lie in the volume; None if all do."""
        if ((ends >= self._first) & (ends <= self._last)).all():
            return None
        index = np.stack(np.meshgrid(*(a + np.arange(n) for a, n in zip(low, lengths, strict=True)), indexing="ij"), -1)
        points = index @ self._matrix.T + self._shift
        return np.asarray(((points >= self._first) & (points <= self._last)).all(axis=-1))


def allocate(buffer: np.ndarray | None, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """Return an array in the first bytes of a buffer, or a new array without a buffer."""
    if buffer is None:
        return np.empty(shape, dtype)
    array: np.ndarray = buffer[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)
    return array


def _origins(data: Any) -> set[str]:
    """Return the names of the files and arrays that some data come from."""
    if isinstance(data, da.Array):
        graph = data.dask
        roots = [name for name in graph.layers if not graph.dependencies[name]]
        names = [_origins(graph.get(name)) if isinstance(graph.get(name), FileArray) else {name} for name in roots]
        return set().union(*names)
    if isinstance(data, FileArray):
        # Symbolic links and relative paths lead to one name.
        return {os.path.realpath(data.path)}
    while getattr(data, "base", None) is not None:
        data = data.base
    return {f"memory {id(data)}"}
