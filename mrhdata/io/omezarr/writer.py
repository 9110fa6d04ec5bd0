"""A volume to the levels of an OME-Zarr pyramid in one pass, within a budget of memory.

The finest level is written in blocks of whole shards. While a block is in memory it is halved, and the
halves are kept until the block of the next level that needs them is complete; where the budget does
not allow that, or the run is a resumed one, the finer level is read back instead. Every finished block
is noted, so that a run that was killed goes on behind the last one.
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

#: Share of the budget for one block: there is the block, the next one, its parts before they are
#: joined, the encoded shards and the halves.
_BLOCK_SHARE = 1 / 6
_HALVES_SHARE = 1 / 4
#: Bytes of a finer level that are read back at once.
_PIECE = 8_000_000

#: Told of level, index and bytes of a block that is finished, and whether it holds voxels other than 0.
Done = Callable[[int, int, int, bool], None]


@dataclass
class _State:
    """Of one run: the blocks that are finished, who is told, and the next block of every level."""

    finished: dict[tuple[int, int], bool]
    done: Done
    next: list[int]


class Writer:
    """Writes the levels of one volume to arrays that exist.

    Parameters
    ----------
    finest : Finest
    levels : list of Level
    paths : list of path
        Of the arrays.
    kind : str
        ``"image"`` levels are means, others modes.
    memory : int
        Bytes for everything that is held at once.
    limit : int, optional
        Bytes of a block of the finest level, twice that of the others; a sixth of the memory by default.
    encoders : int
        Threads that encode one shard. With more than one, equal voxels may not be equal files.
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
        # A coarser block is made while finer ones are held, and smaller ones leave fewer halves waiting.
        self.blocks = [
            WriteBlocks(level, self._itemsize, limit if level is levels[0] else limit // 2) for level in levels
        ]
        self._halves: dict[tuple[int, int], np.ndarray] = {}
        self._halves_limit = memory * _HALVES_SHARE

    def bytes_of(self, level: int, index: int) -> int:
        """Bytes of one block."""
        return self.blocks[level][index].size * self._itemsize

    def total_bytes(self) -> int:
        """Bytes of all blocks of all levels."""
        return sum(math.prod(level.shape) for level in self.levels) * self._itemsize

    def run(self, finished: Mapping[tuple[int, int], bool], done: Done) -> None:
        """Write every block that is not in `finished`, which says which of them hold voxels other than 0.

        `done` is told level, index and bytes of each, and whether it holds such voxels.
        """
        state = _State(dict(finished), done, [0] * len(self.levels))
        pending = [i for i in range(len(self.blocks[0])) if (0, i) not in finished]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            arrays = [open_array(path, self._encoders) for path in self.paths]
            made = self.finest.blocks(BlockSubset(self.blocks[0], pending))
            for index, block in zip(pending, made, strict=True):
                self._finish(0, index, block, arrays, state, threads)
                del block
                self._coarser(1, arrays, state, threads)
                give_back()
            for level in range(1, len(self.levels)):
                self._coarser(level, arrays, state, threads)

    def write_one(self, level: int, index: int) -> bool:
        """Write one block, of a coarser level from the finer one in the store; whether it is not empty."""
        block = (
            self._from_finer(level, index, open_array(self.paths[level - 1]), None)
            if level
            else next(self.finest.blocks([self.blocks[0][index]]))
        )
        if block is not None:
            self._write(level, index, block, open_array(self.paths[level], self._encoders))
        return block is not None

    def _coarser(self, level: int, arrays: list[Any], state: _State, threads: ThreadPoolExecutor) -> None:
        """Write the next blocks of a level, and of those above it, whose finer blocks are finished."""
        if level == len(self.levels):
            return
        while (index := state.next[level]) < len(self.blocks[level]):
            if (level, index) not in state.finished:
                sources = [(level - 1, i) for i in self._sources(level, index)]
                if not all(source in state.finished for source in sources):
                    return
                empty = not any(state.finished[source] for source in sources)
                block = None if empty else self._from_finer(level, index, arrays[level - 1], threads)
                self._finish(level, index, block, arrays, state, threads)
                del block
                self._forget_halves(level, state.finished)
                self._coarser(level + 1, arrays, state, threads)
            state.next[level] += 1

    def _finish(
        self,
        level: int,
        index: int,
        block: np.ndarray | None,
        arrays: list[Any],
        state: _State,
        threads: ThreadPoolExecutor,
    ) -> None:
        """Write a block, and keep its half for the level above."""
        if block is not None:
            self._write(level, index, block, arrays[level])
            self._keep_half(level, index, block, threads)
        state.finished[level, index] = block is not None
        state.done(level, index, self.bytes_of(level, index), block is not None)

    def _write(self, level: int, index: int, block: np.ndarray, array: Any) -> None:
        """Write a block over what a run that was killed may have left of it."""
        box, shards = self.blocks[level][index], self.levels[level].shards
        # A shard at the array's edge is read before it is written, and a torn one cannot be.
        for place in itertools.product(
            *(range(a // n, -(-b // n)) for a, b, n in zip(box.start, box.stop, shards, strict=True))
        ):
            self.paths[level].joinpath("c", *map(str, place)).unlink(missing_ok=True)
        with _returning():
            array[box.slices] = block

    def _source(self, level: int, index: int) -> Box:
        """What a block stands for in the finer level."""
        here, box = self.levels[level], self.blocks[level][index]
        factors = [2 if d in here.halved else 1 for d in here.dims]
        ends = ([n * f for n, f in zip(end, factors, strict=True)] for end in (box.start, box.stop))
        return Box.of(*ends)

    def _sources(self, level: int, index: int) -> list[int]:
        """Blocks of the finer level that a block is made from."""
        return self.blocks[level - 1].over(self._source(level, index))

    def _from_finer(self, level: int, index: int, finer: Any, threads: ThreadPoolExecutor | None) -> np.ndarray:
        here, target = self.levels[level], self.blocks[level][index]
        out = np.empty(target.shape, dtype=self.finest.dtype)
        axes = [here.dims.index(d) for d in here.halved]
        source = self._source(level, index)
        for i in self._sources(level, index):
            box = self.blocks[level - 1][i]
            # Blocks begin at whole shards, which are even, so halves meet without a gap.
            common = box.intersect(source)
            assert common is not None
            kept = self._halves.get((level - 1, i))
            if kept is not None:
                _put_half(out, target, kept, box.halve(axes))
                continue
            for piece in common.pieces(self.levels[level - 1].chunks, _PIECE // self.finest.dtype.itemsize):
                half = halve(np.asarray(finer[piece.slices]), axes, self.kind, threads)
                _put_half(out, target, half, piece.halve(axes))
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

    def _forget_halves(self, level: int, finished: Mapping[tuple[int, int], bool]) -> None:
        """Drop the halves that no unfinished block of this level needs."""
        for key in [key for key in self._halves if key[0] == level - 1]:
            box = self.blocks[level - 1][key[1]]
            if all((level, i) in finished for i in self.blocks[level].over(self._halved_box(level, box))):
                del self._halves[key]

    def _halved_box(self, level: int, box: Box) -> Box:
        """Where a block of the finer level lies in this one; an odd last voxel lies nowhere."""
        here = self.levels[level]
        axes = [here.dims.index(d) for d in here.halved]
        half = box.halve(axes)
        return Box(half.start, tuple(min(b, n) for b, n in zip(half.stop, here.shape, strict=True)))


def _put_half(out: np.ndarray, target: Box, half: np.ndarray, base: Box) -> None:
    """Copy what of a half, which begins where `base` does, lies in the target."""
    begin = base.start
    inside = Box(begin, tuple(b + n for b, n in zip(begin, half.shape, strict=True))).intersect(target)
    if inside is not None:
        out[inside.within(target.start)] = half[inside.within(begin)]


def give_back() -> None:
    """Return memory that is free to the system, where the allocator can: glibc keeps some for every thread that was."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


#: Of glibc's mallopt: free bytes at the end of a thread's heap from which they are returned, and bytes from which an
#: array gets pages of its own; and what glibc itself takes when large arrays come and go.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT, _OWN, _LITTLE = 64 << 20, 32 << 20, 1 << 20


@contextmanager
def _returning() -> Iterator[None]:
    """Threads that encode give back what they free, instead of some 16 MB each that nothing else can take back.

    For a network, whose tensors come and go, that would cost a fifth of its speed: it is so only meanwhile.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        yield
        return
    set_option(_MMAP_THRESHOLD, _OWN)
    set_option(_TRIM_THRESHOLD, _LITTLE)
    try:
        yield
    finally:
        set_option(_TRIM_THRESHOLD, _KEPT)


def open_array(path: Path, encoders: int = 1) -> Any:
    """The array, decoded and encoded by zarrs, which is faster than zarr-python.

    It is not handed on to readers: after a fork, zarrs hangs.
    """
    import zarrs  # noqa: F401  (registers the pipeline)

    array = zarr.open_array(path, mode="r+")
    # With one thread to a shard its chunks lie in the same order every time; other shards are
    # encoded beside it. Set while the array is made, not while it is opened: zarr-python would take the
    # number for all its own threads.
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": encoders}):
        return zarr.Array(zarr.AsyncArray(metadata=array.metadata, store_path=array.store_path))
