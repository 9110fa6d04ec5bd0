"""Boxes of a volume, read one batch after another: decoded ahead, each stored chunk once where memory allows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrhdata.errors import FormatError
from mrhdata.patching import order
from mrhdata.patching.plan import longest
from mrhdata.patching.prefetch import BufferPool, Loads, ReadAhead, decoders
from mrhdata.patching.tiles import TensorSource
from mrhdata.volume.box import Box

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class BoxReader:
    """Reads boxes of one stream within a budget.

    Parameters
    ----------
    stream : Stream
        Its tiles are what is decoded at once; patches of it are not small.
    memory : int
        Bytes of decoded tiles.
    notes : path, optional
        Where tiles that cannot be read are listed, a line each; they are then 0. Refused where None.
    """

    def __init__(self, stream: TensorSource, memory: int, notes: Path | None = None) -> None:
        self.stream = stream
        self._memory, self._notes, self._rooms = memory, notes, BufferPool()

    def skip(self, reason: str) -> bool:
        """Note something that cannot be read or used; False where that is not allowed."""
        if self._notes is None:
            return False
        # One line at once, since several processes may write.
        with self._notes.open("a", encoding="utf-8") as file:
            file.write(reason + "\n")
        return True

    def read(self, batches: Sequence[Sequence[Box]]) -> Iterator[Floats]:
        """Voxels (n, C, z, y, x) of the boxes of each batch, which are of one size.

        Voxels beyond the volume are those at its border. The array is used up before the next one.
        """
        buffer = np.empty(0, np.float32)
        tiles: dict[int, np.ndarray] = {}
        with ReadAhead(self._loads(batches), tiles, self._tile, self._memory, decoders(), self._rooms) as ahead:
            for number, batch in enumerate(batches):
                ahead.wait_for(number)
                shape = (len(batch), len(self.stream.channels), *batch[0].shape)
                if buffer.size < np.prod(shape):
                    buffer = np.empty(int(np.prod(shape)), np.float32)
                values = buffer[: int(np.prod(shape))].reshape(shape)
                for out, box in zip(values, batch, strict=True):
                    self._assemble(out, box, tiles)
                ahead.done_with(number)
                yield values

    def _loads(self, group: Sequence[Sequence[Box]]) -> Loads:
        """Which tiles are read when; one that is needed again soon is kept as long as the budget allows."""
        stream = self.stream
        used, when = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for number, batch in enumerate(group):
            found = np.unique(np.concatenate([self._tiles_of(box) for box in batch]))
            used.append(found)
            when.append(np.full(len(found), number))
        tile, time = np.concatenate(used), np.concatenate(when)

        def kept_for(pause: int) -> Loads:
            tiles, first, last = order.lifetimes(tile, time, time, pause)
            size = stream.sizes(np.stack(np.unravel_index(tiles, stream.tiles), axis=1))
            return Loads(tiles, first, last, size, order.peak(first, last, size), 0)

        return longest(kept_for, len(group), self._memory)

    def _tiles_of(self, box: Box) -> Ints:
        inside = box.clip(self.stream.grid.shape)
        rows = zip(inside.start, inside.stop, self.stream.tile, strict=True)
        numbers = np.meshgrid(*(np.arange(a // t, (b - 1) // t + 1) for a, b, t in rows), indexing="ij")
        return np.asarray(np.ravel_multi_index([n.ravel() for n in numbers], self.stream.tiles), dtype=np.int64)

    def _tile(self, number: int, room: np.ndarray | None) -> np.ndarray:
        place = np.unravel_index(number, self.stream.tiles)
        try:
            return self.stream.read([int(i) for i in place], room)
        except FormatError as error:
            low = [int(i) * t for i, t in zip(place, self.stream.tile, strict=True)]
            if not self.skip(f"input from {tuple(low)} on: {error}"):
                raise
            lengths = [min(t, n - b) for t, n, b in zip(self.stream.tile, self.stream.grid.shape, low, strict=True)]
            channels = len(self.stream.channels)
            shape = (*lengths, channels) if self.stream.small else (channels, *lengths)
            return np.zeros(shape, self.stream.dtype)

    def _assemble(self, out: Floats, box: Box, tiles: dict[int, np.ndarray]) -> None:
        """A box from the tiles that it touches, in the cast to float32."""
        stream = self.stream
        inside = box.clip(stream.grid.shape)
        before = [a - b for a, b in zip(inside.start, box.start, strict=True)]
        target = out[:, *(slice(p, p + n) for p, n in zip(before, inside.shape, strict=True))]
        rows = zip(inside.start, inside.stop, stream.tile, strict=True)
        for place in itertools.product(*(range(a // t, (b - 1) // t + 1) for a, b, t in rows)):
            tile = tiles[int(np.ravel_multi_index(place, stream.tiles))]
            voxels = np.moveaxis(tile, -1, 0) if stream.small else tile
            begin = [i * t for i, t in zip(place, stream.tile, strict=True)]
            part = inside.intersect(Box.of(begin, (a + n for a, n in zip(begin, voxels.shape[1:], strict=True))))
            assert part is not None
            target[:, *part.within(inside.start)] = voxels[:, *part.within(begin)]
        if inside != box:
            after = [n - p - m for n, p, m in zip(out.shape[1:], before, inside.shape, strict=True)]
            out[...] = np.pad(target.copy(), [(0, 0), *zip(before, after, strict=True)], mode="edge")
