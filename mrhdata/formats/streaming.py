"""A volume to the levels of an OME-Zarr pyramid in one pass, within a budget of memory.

The finest level is written in blocks of whole shards. While a block is in memory it is halved, and the
halves are kept until the block of the next level that needs them is complete; where the budget does
not allow that, or the run is a resumed one, the finer level is read back instead. Every finished block
is noted, so that a run that was killed goes on behind the last one.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import zarr

from mrhdata.formats._lazy import source_of
from mrhdata.formats.pyramid import Level, halve

if TYPE_CHECKING:
    import xarray as xr

#: Share of the budget for one block: there is the block, the next one, its parts before they are
#: joined, the encoded shards and the halves.
_BLOCK_SHARE = 1 / 6
_HALVES_SHARE = 1 / 4

Box = tuple[slice, ...]
Done = Callable[[int, int, int], None]


def boxes(level: Level, itemsize: int, limit: int) -> list[Box]:
    """Blocks of whole shards, each of at most `limit` bytes where one shard is; planes are kept whole first."""
    size = list(level.shards)
    # Grown from the last axis: rows, then planes; never deeper than one shard, and one time.
    for axis in reversed(range(len(size))):
        if level.dims[axis] in ("t", "z"):
            continue
        rest = math.prod(size[:axis] + size[axis + 1 :]) * itemsize
        shards = max(1, limit // (rest * level.shards[axis]))
        size[axis] = min(shards * level.shards[axis], math.ceil(level.shape[axis] / level.shards[axis]) * size[axis])
    starts = itertools.product(*(range(0, n, s) for n, s in zip(level.shape, size, strict=True)))
    return [
        tuple(slice(a, min(a + s, n)) for a, s, n in zip(start, size, level.shape, strict=True)) for start in starts
    ]


class Writer:
    """Writes the levels of one volume to arrays that exist.

    Parameters
    ----------
    volume : xarray.DataArray
        Its axes run forward.
    levels : list of Level
    paths : list of path
        Of the arrays.
    kind : str
        ``"image"`` levels are means, others modes.
    memory : int
        Bytes for everything that is held at once.
    """

    def __init__(
        self, volume: xr.DataArray, levels: list[Level], paths: Sequence[Path], kind: str, memory: int
    ) -> None:
        self.data = da.asarray(volume.data)
        if self.data.dtype == bool:
            self.data = self.data.astype(np.uint8)
        self.levels, self.paths, self.kind = levels, list(paths), kind
        itemsize = self.data.dtype.itemsize
        if self.data.npartitions == 1:
            # A source that cannot be read in parts is read once.
            self.data = da.from_array(self.data.compute(scheduler="threads"), chunks=-1)
        self.boxes = [boxes(level, itemsize, int(memory * _BLOCK_SHARE)) for level in levels]
        self._halves: dict[tuple[int, int], np.ndarray] = {}
        self._halves_limit = memory * _HALVES_SHARE

    def bytes_of(self, level: int, index: int) -> int:
        """Bytes of one block."""
        return math.prod(s.stop - s.start for s in self.boxes[level][index]) * self.data.dtype.itemsize

    def total_bytes(self) -> int:
        """Bytes of all blocks of all levels."""
        return sum(math.prod(level.shape) for level in self.levels) * self.data.dtype.itemsize

    def run(self, finished: set[tuple[int, int]], done: Done) -> None:
        """Write every block that is not in `finished`; `done` is told level, index and bytes of each."""
        finished = set(finished)
        pending = [[i for i in range(len(b)) if (n, i) not in finished] for n, b in enumerate(self.boxes)]
        with ThreadPoolExecutor(os.cpu_count()) as threads, ThreadPoolExecutor(1) as ahead:
            arrays = [open_array(path) for path in self.paths]
            for index, block in self._finest(pending[0], ahead, threads):
                self._write(0, index, block, arrays[0])
                self._keep_half(0, index, block, threads)
                finished.add((0, index))
                done(0, index, block.nbytes)
                del block
                self._coarser(1, arrays, pending, finished, done, threads)
            for level in range(1, len(self.levels)):
                self._coarser(level, arrays, pending, finished, done, threads)

    def write_one(self, level: int, index: int) -> None:
        """Write one block, of a coarser level from the finer one in the store."""
        block = (
            self.data[self.boxes[0][index]].compute(scheduler="threads")
            if level == 0
            else self._from_finer(level, index, open_array(self.paths[level - 1]), None)
        )
        self._write(level, index, block, open_array(self.paths[level]))

    def _fill(self, block: np.ndarray, box: Box, threads: ThreadPoolExecutor) -> None:
        """Read a part of the volume, straight from its file where it is one as it is."""
        source = source_of(self.data)
        if source is None:
            target: Any = block
            da.store([self.data[box]], [target], lock=False, scheduler="threads")
            return
        deep = self.data.chunksize[0]

        def read(first: int) -> None:
            last = min(first - first % deep + deep, box[0].stop)
            source.into(block[first - box[0].start : last - box[0].start], (slice(first, last), *box[1:]))

        starts = [box[0].start, *range(box[0].start - box[0].start % deep + deep, box[0].stop, deep)]
        list(threads.map(read, starts))

    def _finest(
        self, pending: list[int], ahead: ThreadPoolExecutor, threads: ThreadPoolExecutor
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Blocks of the volume in order; the next one is read while one is written."""
        # Two buffers in turn: fresh ones of this size would be mapped anew for every block.
        largest = max((self.bytes_of(0, index) for index in pending), default=0)
        buffers = [np.empty(largest, np.uint8) for _ in pending[:2]]

        def read(index: int) -> np.ndarray:
            box = self.boxes[0][index]
            buffers.append(buffers.pop(0))
            part = buffers[-1][: self.bytes_of(0, index)].view(self.data.dtype)
            block = part.reshape([s.stop - s.start for s in box])
            self._fill(block, box, threads)
            return block

        coming: Future[np.ndarray] | None = ahead.submit(read, pending[0]) if pending else None
        for place, index in enumerate(pending):
            assert coming is not None
            block = coming.result()
            coming = ahead.submit(read, pending[place + 1]) if place + 1 < len(pending) else None
            yield index, block
            del block

    def _coarser(
        self,
        level: int,
        arrays: list[Any],
        pending: list[list[int]],
        finished: set[tuple[int, int]],
        done: Done,
        threads: ThreadPoolExecutor,
    ) -> None:
        """Write the next blocks of a level, and of those above it, whose finer blocks are finished."""
        if level == len(self.levels):
            return
        while pending[level]:
            index = pending[level][0]
            if any((level - 1, i) not in finished for i in self._sources(level, index)):
                return
            block = self._from_finer(level, index, arrays[level - 1], threads)
            self._write(level, index, block, arrays[level])
            pending[level].pop(0)
            finished.add((level, index))
            self._forget_halves(level, finished)
            self._keep_half(level, index, block, threads)
            done(level, index, block.nbytes)
            self._coarser(level + 1, arrays, pending, finished, done, threads)

    def _write(self, level: int, index: int, block: np.ndarray, array: Any) -> None:
        """Write a block over what a run that was killed may have left of it."""
        box, shards = self.boxes[level][index], self.levels[level].shards
        # A shard at the array's edge is read before it is written, and a torn one cannot be.
        for place in itertools.product(
            *(range(s.start // n, -(-s.stop // n)) for s, n in zip(box, shards, strict=True))
        ):
            self.paths[level].joinpath("c", *map(str, place)).unlink(missing_ok=True)
        array[box] = block

    def _source(self, level: int, index: int) -> Box:
        """What a block stands for in the finer level."""
        here = self.levels[level]
        return tuple(
            slice(2 * s.start, 2 * s.stop) if d in here.halved else s
            for d, s in zip(here.dims, self.boxes[level][index], strict=True)
        )

    def _sources(self, level: int, index: int) -> list[int]:
        """Blocks of the finer level that a block is made from."""
        source = self._source(level, index)
        return [i for i, box in enumerate(self.boxes[level - 1]) if _overlap(box, source) is not None]

    def _from_finer(self, level: int, index: int, finer: Any, threads: ThreadPoolExecutor | None) -> np.ndarray:
        here, target = self.levels[level], self.boxes[level][index]
        out = np.empty([s.stop - s.start for s in target], dtype=self.data.dtype)
        axes = [here.dims.index(d) for d in here.halved]
        source = self._source(level, index)
        for i in self._sources(level, index):
            box = self.boxes[level - 1][i]
            # Blocks begin at whole shards, which are even, so halves meet without a gap.
            common = _overlap(box, source)
            assert common is not None
            half = self._halves.get((level - 1, i))
            if half is None:
                half, base = halve(np.asarray(finer[common]), axes, self.kind, threads), _halved(common, axes)
            else:
                base = _halved(box, axes)
            inside = _overlap(tuple(slice(b.start, b.start + n) for b, n in zip(base, half.shape, strict=True)), target)
            if inside is not None:
                out[_within(inside, target)] = half[_within(inside, base)]
        return out

    def _keep_half(self, level: int, index: int, block: np.ndarray, threads: ThreadPoolExecutor) -> None:
        if level + 1 == len(self.levels):
            return
        coarser = self.levels[level + 1]
        held = sum(half.nbytes for half in self._halves.values())
        if held + block.nbytes / 2 ** len(coarser.halved) > self._halves_limit:
            return
        axes = [coarser.dims.index(d) for d in coarser.halved]
        self._halves[level, index] = halve(block, axes, self.kind, threads)

    def _forget_halves(self, level: int, finished: set[tuple[int, int]]) -> None:
        """Drop the halves that no unfinished block of this level needs."""
        for key in [key for key in self._halves if key[0] == level - 1]:
            box = self.boxes[level - 1][key[1]]
            users = (i for i in range(len(self.boxes[level])) if _overlap(self._source(level, i), box) is not None)
            if all((level, i) in finished for i in users):
                del self._halves[key]


def open_array(path: Path) -> Any:
    """The array, decoded and encoded by zarrs, which is faster than zarr-python.

    It is not handed on to readers: after a fork, zarrs hangs.
    """
    import zarrs  # noqa: F401  (registers the pipeline)

    array = zarr.open_array(path, mode="r+")
    # One thread to a shard, so that its chunks lie in the same order every time; other shards are
    # encoded beside it. Set while the array is made, not while it is opened: zarr-python would take the
    # number for all its own threads.
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1}):
        return zarr.Array(zarr.AsyncArray(metadata=array.metadata, store_path=array.store_path))


def _overlap(a: Box, b: Box) -> Box | None:
    common = tuple(slice(max(p.start, q.start), min(p.stop, q.stop)) for p, q in zip(a, b, strict=True))
    return common if all(s.start < s.stop for s in common) else None


def _halved(box: Box, axes: Sequence[int]) -> Box:
    return tuple(slice(s.start // 2, s.stop // 2) if i in axes else s for i, s in enumerate(box))


def _within(box: Box, outer: Box) -> Box:
    return tuple(slice(s.start - o.start, s.stop - o.start) for s, o in zip(box, outer, strict=True))
