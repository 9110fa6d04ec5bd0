"""Writer of the levels of an OME-Zarr pyramid in one pass, within a memory budget.

The finest level is written in blocks of whole shards. A block in memory is halved, and the halves are
kept until the block of the next level that needs them is complete. If the budget does not allow that,
or in a resumed run, the finer level is read back instead. Every finished block is recorded, so that an
interrupted run resumes after the last one.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from mrhdata.io.omezarr.pyramid import Level, halve
from mrhdata.io.omezarr.write_blocks import BlockSource, BlockSubset, WriteBlocks
from mrhdata.volume.box import Box

#: Share of the budget for one block. Memory also holds the next block, its parts before they are
#: joined, the encoded shards and the halves.
_BLOCK_SHARE = 1 / 6
_HALVES_SHARE = 1 / 4
#: Bytes of a finer level that are read back at once.
_PIECE_BYTES = 8_000_000

#: Callback for a finished block: level, index, bytes, and whether it contains voxels other than 0.
Done = Callable[[int, int, int, bool], None]


@dataclass
class _State:
    """State of one run: finished blocks, the callback, and the next block of every level."""

    finished: dict[tuple[int, int], bool]
    done: Done
    next: list[int]


class Writer:
    """Writer of the levels of one volume to existing arrays.

    Parameters
    ----------
    finest : BlockSource
        Source of the voxels of the finest level.
    levels : list of Level
    paths : list of path
        Paths of the arrays.
    kind : str
        Kind of the volume: ``"image"`` is downsampled by the mean, others by the most frequent value.
    memory : int
        Bytes for everything that is kept in memory.
    limit : int, optional
        Bytes of a block of the finest level, twice that of the others; a sixth of the memory by default.
    encoders : int
        Threads that encode one shard. With more than one, equal voxels may give different files.
    """

    def __init__(
        self,
        finest: BlockSource,
        levels: list[Level],
        paths: Sequence[Path],
        kind: str,
        memory: int,
        limit: int | None = None,
        encoders: int = 1,
    ) -> None:
        self.finest, self.levels, self.paths, self.kind = finest, levels, list(paths), kind
        self._itemsize, self._encoders = finest.dtype.itemsize, encoders
        limit = int(memory * _BLOCK_SHARE) if limit is None else limit
        # A coarser block is made while finer ones are in memory, and smaller blocks need fewer halves.
        self.blocks = [
            WriteBlocks(level, self._itemsize, limit if level is levels[0] else limit // 2) for level in levels
        ]
        self._halves: dict[tuple[int, int], np.ndarray] = {}
        self._halves_limit = memory * _HALVES_SHARE

    def bytes_of(self, level: int, index: int) -> int:
        """Return the bytes of one block."""
        return self.blocks[level][index].size * self._itemsize

    def total_bytes(self) -> int:
        """Return the bytes of all blocks of all levels."""
        return sum(math.prod(level.shape) for level in self.levels) * self._itemsize

    def run(self, finished: Mapping[tuple[int, int], bool], done: Done) -> None:
        """Write every block that is not in `finished`.

        Parameters
        ----------
        finished : mapping of (int, int) to bool
            Finished blocks by level and index, and whether they contain voxels other than 0.
        done : callable
            Function of level, index and bytes of a finished block, and whether it contains such voxels.
        """
        state = _State(dict(finished), done, [0] * len(self.levels))
        pending = [i for i in range(len(self.blocks[0])) if (0, i) not in finished]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            arrays = [open_array(path, self._encoders) for path in self.paths]
            blocks = self.finest.blocks(BlockSubset(self.blocks[0], pending))
            for index, block in zip(pending, blocks, strict=True):
                self._finish_block(0, index, block, arrays, state, threads)
                del block
                self._write_coarser(1, arrays, state, threads)
                give_back()
            for level in range(1, len(self.levels)):
                self._write_coarser(level, arrays, state, threads)

    def write_one(self, level: int, index: int) -> bool:
        """Write one block, for a coarser level from the stored finer one, and return whether it is not empty."""
        block = (
            self._halve_finer(level, index, open_array(self.paths[level - 1]), None)
            if level
            else next(self.finest.blocks([self.blocks[0][index]]))
        )
        if block is not None:
            self._write_block(level, index, block, open_array(self.paths[level], self._encoders))
        return block is not None

    def _write_coarser(self, level: int, arrays: list[Any], state: _State, threads: ThreadPoolExecutor) -> None:
        """Write the next blocks of a level, and of coarser levels, whose finer blocks are finished."""
        if level == len(self.levels):
            return
        while (index := state.next[level]) < len(self.blocks[level]):
            if (level, index) not in state.finished:
                sources = [(level - 1, i) for i in self._sources(level, index)]
                if not all(source in state.finished for source in sources):
                    return
                empty = not any(state.finished[source] for source in sources)
                block = None if empty else self._halve_finer(level, index, arrays[level - 1], threads)
                self._finish_block(level, index, block, arrays, state, threads)
                del block
                self._forget_halves(level, state.finished)
                self._write_coarser(level + 1, arrays, state, threads)
            state.next[level] += 1

    def _finish_block(
        self,
        level: int,
        index: int,
        block: np.ndarray | None,
        arrays: list[Any],
        state: _State,
        threads: ThreadPoolExecutor,
    ) -> None:
        """Write a block, and keep its half for the coarser level."""
        if block is not None:
            self._write_block(level, index, block, arrays[level])
            self._keep_half(level, index, block, threads)
        state.finished[level, index] = block is not None
        state.done(level, index, self.bytes_of(level, index), block is not None)

    def _write_block(self, level: int, index: int, block: np.ndarray, array: Any) -> None:
        """Write a block over an incomplete one of an interrupted run."""
        box, shards = self.blocks[level][index], self.levels[level].shards
        # zarr reads a shard at the array's edge before it writes it, which fails for an incomplete one.
        for shard in itertools.product(
            *(range(a // n, -(-b // n)) for a, b, n in zip(box.start, box.stop, shards, strict=True))
        ):
            self.paths[level].joinpath("c", *map(str, shard)).unlink(missing_ok=True)
        with _return_freed_memory():
            array[box.slices] = block

    def _source(self, level: int, index: int) -> Box:
        """Return the box of a block in the finer level."""
        here, box = self.levels[level], self.blocks[level][index]
        factors = [2 if d in here.halved else 1 for d in here.dims]
        ends = ([n * f for n, f in zip(end, factors, strict=True)] for end in (box.start, box.stop))
        return Box.of(*ends)

    def _sources(self, level: int, index: int) -> list[int]:
        """Return the indices of the finer level's blocks that a block is made from."""
        return self.blocks[level - 1].over(self._source(level, index))

    def _halve_finer(self, level: int, index: int, finer: Any, threads: ThreadPoolExecutor | None) -> np.ndarray:
        here, target = self.levels[level], self.blocks[level][index]
        out = np.empty(target.shape, dtype=self.finest.dtype)
        axes = [here.dims.index(d) for d in here.halved]
        source = self._source(level, index)
        for i in self._sources(level, index):
            box = self.blocks[level - 1][i]
            # Blocks begin at whole shards, whose shapes are even, so halves meet without a gap.
            common = box.intersect(source)
            assert common is not None
            half = self._halves.get((level - 1, i))
            if half is not None:
                _put_half(out, target, half, box.halve(axes))
                continue
            for piece in common.pieces(self.levels[level - 1].chunks, _PIECE_BYTES // self.finest.dtype.itemsize):
                half = halve(np.asarray(finer[piece.slices]), axes, self.kind, threads)
                _put_half(out, target, half, piece.halve(axes))
        return out

    def _keep_half(self, level: int, index: int, block: np.ndarray, threads: ThreadPoolExecutor) -> None:
        if level + 1 == len(self.levels):
            return
        coarser = self.levels[level + 1]
        kept_bytes = sum(half.nbytes for half in self._halves.values())
        if kept_bytes + block.nbytes / 2 ** len(coarser.halved) > self._halves_limit:
            return
        axes = [coarser.dims.index(d) for d in coarser.halved]
        self._halves[level, index] = halve(block, axes, self.kind, threads)

    def _forget_halves(self, level: int, finished: Mapping[tuple[int, int], bool]) -> None:
        """Drop the halves that no unfinished block of this level needs."""
        for key in [key for key in self._halves if key[0] == level - 1]:
            box = self.blocks[level - 1][key[1]]
            if all((level, i) in finished for i in self.blocks[level].over(self._halved_box(level, box))):
                del self._halves[key]

    def _halved_box(self, level: int, box: Box) -> Box:
        """Return the box of a finer level's block in this level, without an odd last voxel."""
        here = self.levels[level]
        axes = [here.dims.index(d) for d in here.halved]
        half = box.halve(axes)
        return Box(half.start, tuple(min(b, n) for b, n in zip(half.stop, here.shape, strict=True)))


def _put_half(out: np.ndarray, target: Box, half: np.ndarray, base: Box) -> None:
    """Copy the part of a half that lies in the target; the half begins at the start of `base`."""
    begin = base.start
    inside = Box(begin, tuple(b + n for b, n in zip(begin, half.shape, strict=True))).intersect(target)
    if inside is not None:
        out[inside.within(target.start)] = half[inside.within(begin)]


def give_back() -> None:
    """Return free memory to the system if the allocator can; glibc keeps some for every thread that ran."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


#: Options of glibc's mallopt: free bytes at the end of a thread's heap above which they are returned, and bytes above
#: which an array gets its own pages.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: The thresholds that glibc reaches itself when large arrays are allocated and freed.
_USUAL_TRIM_BYTES, _USUAL_MMAP_BYTES = 64 << 20, 32 << 20
#: Trim threshold while shards are encoded.
_ENCODING_TRIM_BYTES = 1 << 20


@contextmanager
def _return_freed_memory() -> Iterator[None]:
    """Return memory that encoding threads free to the system; otherwise each keeps about 16 MB.

    The setting is reset afterwards, because it would make a network about a fifth slower.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        yield
        return
    set_option(_MMAP_THRESHOLD, _USUAL_MMAP_BYTES)
    set_option(_TRIM_THRESHOLD, _ENCODING_TRIM_BYTES)
    try:
        yield
    finally:
        set_option(_TRIM_THRESHOLD, _USUAL_TRIM_BYTES)


def open_array(path: Path, encoders: int = 1) -> Any:
    """Open an array that zarrs decodes and encodes, which is faster than zarr-python.

    Do not pass it to readers: after a fork, zarrs hangs.
    """
    import zarrs  # noqa: F401  (registers the pipeline)

    array = zarr.open_array(path, mode="r+")
    # With one thread per shard, its chunks are always in the same order; shards are encoded in parallel.
    # The option is set when the array is made, not when it is opened: zarr-python would use the number
    # for all its own threads.
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": encoders}):
        return zarr.Array(zarr.AsyncArray(metadata=array.metadata, store_path=array.store_path))
