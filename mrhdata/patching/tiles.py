"""Voxels of one subject, cut into tiles that are decoded once and shared by all patches over them.

A *stream* is what becomes one tensor of a patch: volumes stacked on channels, on one grid. Its *tiles*
are its stored chunks, joined where they are smaller than a patch. Volumes in memory are views.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mrhdata.errors import DataError
from mrhdata.patching.readers import VoxelReader, allocate
from mrhdata.volume.box import Box
from mrhdata.volume.grid import Grid

Ints = NDArray[np.int64]

#: Patches of no more values than this are gathered many at a time, from blocks with the channels last.
SMALL = 4096
#: Whole numbers that float32 holds exactly.
_MOST_LABELS = 2**24


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
            out = allocate(room, (*lengths, len(self.channels)), self.dtype)
            first = np.moveaxis(out, -1, 0)
        else:
            out = first = allocate(room, (len(self.channels), *lengths), self.dtype)
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


def _three(lengths: Iterable[int]) -> tuple[int, int, int]:
    z, y, x = lengths
    return (z, y, x)
