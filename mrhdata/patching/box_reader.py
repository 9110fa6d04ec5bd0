"""Read boxes of a volume in batches. Chunks are decoded ahead, and only once if memory allows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrhdata._runtime.memory import reading_threads
from mrhdata.errors import FormatError
from mrhdata.patching import order
from mrhdata.patching.plan import longest
from mrhdata.patching.prefetch import BufferPool, Loads, ReadAhead, decoders
from mrhdata.patching.tiles import TensorSource
from mrhdata.volume.box import Box

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class BoxReader:
    """Read boxes of one source within a memory budget.

    Parameters
    ----------
    source : TensorSource
        Source whose tiles are decoded as a whole.
    memory : int
        Budget for decoded tiles, in bytes.
    notes : path, optional
        File that lists unreadable tiles, one per line; their voxels are 0. Without it an unreadable tile is an error.
    """

    def __init__(self, source: TensorSource, memory: int, notes: Path | None = None) -> None:
        self.source = source
        self._memory, self._notes, self._buffers = memory, notes, BufferPool()

    def skip(self, reason: str) -> bool:
        """Note unreadable or unusable data; return False if that is not allowed."""
        if self._notes is None:
            return False
        # A single write per line, since several processes may append.
        with self._notes.open("a", encoding="utf-8") as file:
            file.write(reason + "\n")
        return True

    def read(self, batches: Sequence[Sequence[Box]]) -> Iterator[Floats]:
        """Yield the voxels (n, C, z, y, x) of each batch of boxes of equal size.

        Voxels beyond the volume repeat its border. The next batch overwrites the array.
        """
        buffer = np.empty(0, np.float32)
        tiles: dict[int, np.ndarray] = {}
        threads = reading_threads(self.source.smallest_bytes, 4 * self._memory, decoders())
        with ReadAhead(self._loads(batches), tiles, self._tile, self._memory, threads, self._buffers) as ahead:
            for number, batch in enumerate(batches):
                ahead.wait_for(number)
                shape = (len(batch), len(self.source.channels), *batch[0].shape)
                if buffer.size < np.prod(shape):
                    buffer = np.empty(int(np.prod(shape)), np.float32)
                values = buffer[: int(np.prod(shape))].reshape(shape)
                for out, box in zip(values, batch, strict=True):
                    self._assemble(out, box, tiles)
                ahead.done_with(number)
                yield values

    def read_at(self, starts: Ints, shape: Sequence[int]) -> Floats:
        """Return the voxels (n, C, z, y, x) of boxes of one shape from their first voxels (n, 3)."""
        if not len(starts):
            return np.empty((0, len(self.source.channels), *shape), np.float32)
        boxes = [Box.of(start, (int(a) + int(n) for a, n in zip(start, shape, strict=True))) for start in starts]
        return next(iter(self.read([boxes]))).copy()

    def _loads(self, batches: Sequence[Sequence[Box]]) -> Loads:
        """Plan when each tile is read; a tile that is needed again soon is kept if the budget allows."""
        source = self.source
        used, when = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for number, batch in enumerate(batches):
            numbers = np.unique(np.concatenate([self._tiles_of(box) for box in batch]))
            used.append(numbers)
            when.append(np.full(len(numbers), number))
        tile, time = np.concatenate(used), np.concatenate(when)

        def plan(pause: int) -> Loads:
            tiles, first, last = order.lifetimes(tile, time, time, pause)
            size = source.sizes(np.stack(np.unravel_index(tiles, source.tiles), axis=1))
            return Loads(tiles, first, last, size, order.peak(first, last, size), 0)

        return longest(plan, len(batches), self._memory)

    def _tiles_of(self, box: Box) -> Ints:
        """Return the numbers of the tiles that a box touches."""
        clipped = box.clip(self.source.grid.shape)
        rows = zip(clipped.start, clipped.stop, self.source.tile, strict=True)
        indices = np.meshgrid(*(np.arange(a // t, (b - 1) // t + 1) for a, b, t in rows), indexing="ij")
        return np.asarray(np.ravel_multi_index([i.ravel() for i in indices], self.source.tiles), dtype=np.int64)

    def _tile(self, number: int, buffer: np.ndarray | None) -> np.ndarray:
        """Decode a tile; zeros if it is unreadable and may be skipped."""
        source = self.source
        index = [int(i) for i in np.unravel_index(number, source.tiles)]
        try:
            return source.read(index, buffer)
        except FormatError as error:
            low = [i * t for i, t in zip(index, source.tile, strict=True)]
            if not self.skip(f"input from {tuple(low)} on: {error}"):
                raise
            lengths = [min(t, n - b) for t, n, b in zip(source.tile, source.grid.shape, low, strict=True)]
            channels = len(source.channels)
            return np.zeros((*lengths, channels) if source.small else (channels, *lengths), source.dtype)

    def _assemble(self, out: Floats, box: Box, tiles: dict[int, np.ndarray]) -> None:
        """Fill `out` with the voxels of a box from the tiles that it touches, cast to float32."""
        source = self.source
        clipped = box.clip(source.grid.shape)
        before = [a - b for a, b in zip(clipped.start, box.start, strict=True)]
        target = out[:, *(slice(p, p + n) for p, n in zip(before, clipped.shape, strict=True))]
        rows = zip(clipped.start, clipped.stop, source.tile, strict=True)
        for index in itertools.product(*(range(a // t, (b - 1) // t + 1) for a, b, t in rows)):
            tile = tiles[int(np.ravel_multi_index(index, source.tiles))]
            voxels = np.moveaxis(tile, -1, 0) if source.small else tile
            low = [i * t for i, t in zip(index, source.tile, strict=True)]
            part = clipped.intersect(Box.of(low, (a + n for a, n in zip(low, voxels.shape[1:], strict=True))))
            assert part is not None
            target[:, *part.within(clipped.start)] = voxels[:, *part.within(low)]
        if clipped != box:
            after = [n - p - m for n, p, m in zip(out.shape[1:], before, clipped.shape, strict=True)]
            out[...] = np.pad(target.copy(), [(0, 0), *zip(before, after, strict=True)], mode="edge")
