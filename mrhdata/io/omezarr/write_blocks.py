"""Blocks of whole shards in which a volume is written, and sources of their voxels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import dask.array as da
import numpy as np

from mrhdata._runtime.memory import reading_threads
from mrhdata.io.omezarr.pyramid import Level
from mrhdata.volume.box import Box
from mrhdata.volume.file_arrays import bytes_at_once, is_read_whole, source_of

if TYPE_CHECKING:
    import xarray as xr


class WriteBlocks(Sequence[Box]):
    """Blocks of whole shards that cover one level, each of at most `limit` bytes or one shard.

    Rows are kept whole first, then planes; a block is never deeper than one shard. If planes are divided,
    blocks that differ only in z follow each other.

    Examples
    --------
    >>> level = Level(("z", "y"), (5, 6), (2, 4), (2, 4), (1, 1, 1), (0, 0, 0))
    >>> blocks = WriteBlocks(level, itemsize=1, limit=8)
    >>> len(blocks), blocks[1], blocks.over(Box((1, 0), (3, 5)))
    (6, Box(start=(2, 0), stop=(4, 4)), [0, 1, 3, 4])
    """

    def __init__(self, level: Level, itemsize: int, limit: int) -> None:
        self.shape, size = level.shape, list(level.shards)
        # A block has one time and the depth of one shard.
        for axis in reversed(range(len(size))):
            if level.dims[axis] in ("t", "z"):
                continue
            rest = math.prod(size[:axis] + size[axis + 1 :]) * itemsize
            shards = max(1, limit // (rest * level.shards[axis]))
            longest = math.ceil(level.shape[axis] / level.shards[axis])
            size[axis] = min(shards, longest) * level.shards[axis]
        self.size = tuple(size)
        self._counts = [math.ceil(n / s) for n, s in zip(self.shape, size, strict=True)]
        # z runs fastest.
        self._axes = sorted(range(len(size)), key=lambda axis: level.dims[axis] == "z")

    def __len__(self) -> int:
        return math.prod(self._counts)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        position = [0] * len(self.size)
        for axis in reversed(self._axes):
            index, position[axis] = divmod(index, self._counts[axis])
        rows = list(zip(position, self.size, self.shape, strict=True))
        return Box(tuple(i * s for i, s, _ in rows), tuple(min((i + 1) * s, n) for i, s, n in rows))

    def over(self, box: Box) -> list[int]:
        """Return the indices of the blocks that a box overlaps, in order."""
        rows = zip(box.start, box.stop, self.size, self._counts, strict=True)
        ranges = [range(a // n, min(-(-b // n), count)) for a, b, n, count in rows]
        indices = []
        for position in itertools.product(*(ranges[axis] for axis in self._axes)):
            index = 0
            for axis, i in zip(self._axes, position, strict=True):
                index = index * self._counts[axis] + i
            indices.append(index)
        return indices


class BlockSource(Protocol):
    """Source of the voxels of the finest level."""

    dtype: np.dtype[Any]

    def blocks(self, boxes: Sequence[Box]) -> Iterator[np.ndarray | None]:
        """Yield the voxels of boxes, or None if all are 0. An array is valid until the next but one is yielded."""


class BlockSubset(Sequence[Box]):
    """Some of the blocks of a level."""

    def __init__(self, blocks: WriteBlocks, numbers: Sequence[int]) -> None:
        self._blocks, self._numbers = blocks, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        return self._blocks[self._numbers[index]]


class DoubleBuffer:
    """Two alternating buffers, because the system would map new memory for every new array of this size.

    An array is valid until the next but one is taken.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._buffers = [np.empty(0, dtype), np.empty(0, dtype)]

    def take(self, shape: Sequence[int]) -> np.ndarray:
        """Return an array with arbitrary values."""
        self._buffers.reverse()
        size = math.prod(shape)
        if self._buffers[0].size < size:
            self._buffers[0] = np.empty(size, self._buffers[0].dtype)
        return self._buffers[0][:size].reshape(shape)


def _only_chunk(data: da.Array) -> np.ndarray:
    """Return the values of an array of one chunk; `compute` would return a copy of them."""
    return np.asarray(data.to_delayed().item().compute(scheduler="threads"))


class VolumeBlocks:
    """Blocks of a volume; the next block is read while the current one is used.

    Parameters
    ----------
    volume : xarray.DataArray
        Volume whose axes run forward.
    memory : int, optional
        Budget in bytes; fewer threads read if the smallest part of the source takes much of it.
    """

    def __init__(self, volume: xr.DataArray, memory: int | None = None) -> None:
        self.data = da.asarray(volume.data)
        self._threads = reading_threads(bytes_at_once(self.data), memory)
        whole = is_read_whole(self.data)
        if self.data.dtype == bool:
            self.data = self.data.astype(np.uint8)
        # A source that cannot be read in parts is read once, as a whole.
        self._whole = _only_chunk(self.data) if whole else None
        self.dtype = self.data.dtype

    def blocks(self, boxes: Sequence[Box]) -> Iterator[np.ndarray]:
        """Yield the voxels of boxes."""
        if not len(boxes):
            return
        buffers = DoubleBuffer(self.dtype)
        with ThreadPoolExecutor(self._threads) as threads, ThreadPoolExecutor(1) as ahead:

            def read(box: Box) -> np.ndarray:
                block = buffers.take(box.shape)
                self._fill(block, box, threads)
                return block

            pending = ahead.submit(read, boxes[0])
            for index in range(len(boxes)):
                block = pending.result()
                if index + 1 < len(boxes):
                    pending = ahead.submit(read, boxes[index + 1])
                yield block
                del block

    def _fill(self, block: np.ndarray, box: Box, threads: ThreadPoolExecutor) -> None:
        """Read a box of the volume, directly from its file if the volume is an unchanged file."""
        if self._whole is not None:
            block[...] = self._whole[box.slices]
            return
        source = source_of(self.data)
        if source is None:
            target: Any = block
            part = self.data[box.slices]
            da.store([part], [target], lock=False, scheduler="threads", num_workers=self._threads)
            return
        depth = self.data.chunksize[0]
        start, stop = box.start[0], box.stop[0]

        def read(first: int) -> None:
            last = min(first - first % depth + depth, stop)
            slab = Box((first, *box.start[1:]), (last, *box.stop[1:]))
            source.into(block[first - start : last - start], slab)

        starts = [start, *range(start - start % depth + depth, stop, depth)]
        list(threads.map(read, starts))
