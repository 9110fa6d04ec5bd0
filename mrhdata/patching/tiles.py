"""Voxels of one subject, cut into tiles that are decoded once and shared by all patches in them.

A *tensor source* holds the voxels of one tensor of a patch: volumes on one grid, stacked on channels. Its *tiles*
are its stored chunks, joined if they are smaller than a patch. Tiles of a volume in memory are views.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mrhdata.errors import DataError
from mrhdata.patching.readers import VoxelReader, allocate
from mrhdata.volume.box import Box
from mrhdata.volume.grid import Grid

Ints = NDArray[np.int64]

#: Most values of a small patch. Small patches are gathered many at a time, from tiles with the channels last.
SMALL = 4096
#: Largest whole number up to which float32 holds all of them exactly.
_MAX_LABEL = 2**24


class TensorSource:
    """Volumes on one grid, stacked on channels, as tiles.

    Parameters
    ----------
    readers : sequence of VolumeReader or ResampledReader
    channels : list of str
    grid : Grid
    shape : sequence of int
        Voxels of a patch along z, y, x.
    about : tuple of Grid and shape, optional
        Grid and patch shape of the volume that positions refer to. Patches of this source have their centres at the
        same world points, to the nearest voxel. By default positions refer to this source.
    exact : bool
        Keep types that are wider than float32.
    units : sequence of str or None
        Units of the values of each channel, None if they are unknown.
    assumed : collection of str
        Properties of the geometry that the files do not state.

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
        readers: Sequence[VoxelReader],
        channels: list[str],
        grid: Grid,
        shape: Sequence[int],
        about: tuple[Grid, Sequence[int]] | None = None,
        exact: bool = False,
        units: Sequence[str | None] = (),
        assumed: Collection[str] = (),
    ) -> None:
        self.channels, self.grid, self._readers = channels, grid, list(readers)
        self.units, self.assumed = tuple(units), frozenset(assumed)
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self._about = about
        dtype = np.result_type(*[r.dtype for r in readers])
        # Patches are float32. Wider types are rounded once, when a tile is read, instead of in every patch.
        narrow = dtype.itemsize <= 4 and dtype.kind in "buif"
        self.dtype = dtype if exact or narrow else np.dtype(np.float32)
        # Rounding to float32 would merge large labels.
        self._check_labels = not exact and dtype.kind in "iu" and dtype.itemsize >= 4 and all(r.labels for r in readers)
        self.small = len(channels) * int(np.prod(self.shape)) <= SMALL
        chunk = np.max([r.chunk for r in readers], axis=0)
        self.chunk = _three(int(n) for n in chunk)
        joined = chunk * -(-np.asarray(self.shape) // chunk)
        self.tile = _three(int(min(n, t)) for n, t in zip(grid.shape, joined, strict=True))
        self.tiles = _three(-(-n // t) for n, t in zip(grid.shape, self.tile, strict=True))
        array = readers[0].array if len(readers) == 1 else None
        self._view = array if array is not None and array.dtype == self.dtype and not self.small else None

    def home_tiles(self, positions: Ints) -> Ints:
        """Return the number of the tile that holds each position, as one integer: (n,)."""
        numbers = np.clip(positions, 0, None) // self.tile
        return np.asarray(np.ravel_multi_index(tuple(numbers.T), self.tiles), dtype=np.int64)

    @property
    def labels(self) -> bool:
        """Whether the voxels are labels or a mask."""
        return all(reader.labels for reader in self._readers)

    @property
    def slow(self) -> str | None:
        """Reason why reading chunk by chunk is slow, or None if it is not."""
        return next((reader.slow for reader in self._readers if reader.slow is not None), None)

    def stored(self, box: Box) -> bool:
        """Return whether some voxels of a box were ever written."""
        return any(reader.stored(box) for reader in self._readers)

    @property
    def origins(self) -> set[str]:
        """Files and arrays that the voxels come from."""
        return set().union(*(reader.source for reader in self._readers))

    def starts(self, positions: Ints) -> Ints:
        """Return the first voxel, in this source, of patches at positions of the first source: (n, 3)."""
        if self._about is None:
            return positions
        grid, shape = self._about
        if grid.same_as(self.grid):
            return np.asarray(positions + (np.array(shape) - self.shape) // 2, dtype=np.int64)
        centres = self.grid.index(grid.world(positions + (np.array(shape) - 1) / 2))
        return np.floor(centres - (np.array(self.shape) - 1) / 2 + 0.5).astype(np.int64)

    def holds(self, starts: Ints) -> NDArray[np.bool_]:
        """Return a mask of the patches, by their first voxels in this source, that lie within the volume: (n,)."""
        return np.asarray(((starts >= 0) & (starts + self.shape <= self.grid.shape)).all(axis=1))

    def join(self) -> None:
        """Join the tiles of small patches into one, so that one gather serves them all; for volumes in memory."""
        if self.small:
            self.tile, self.tiles = self.grid.shape, (1, 1, 1)

    @property
    def smallest_bytes(self) -> int:
        """Bytes in memory while the smallest part of a volume is read; 0 if parts of any size can be."""
        return max(reader.smallest_bytes for reader in self._readers)

    @property
    def voxel_bytes(self) -> int:
        """Bytes of a voxel in memory; 0 if tiles are views of an array in memory."""
        return 0 if self._view is not None else self.dtype.itemsize * len(self.channels)

    def sizes(self, tiles: Ints) -> Ints:
        """Return the bytes of tiles from their numbers (n, 3)."""
        # A stored chunk is decoded whole, also at the edge.
        high = np.asarray(self.grid.shape) if self.tile != self.chunk else np.array(self.tiles) * self.tile
        low = tiles * self.tile
        return np.asarray(np.prod(np.minimum(high, low + self.tile) - low, axis=1) * self.voxel_bytes)

    def read(self, tile: Sequence[int], buffer: np.ndarray | None = None) -> np.ndarray:
        """Decode one tile: (C, z, y, x), or (z, y, x, C) for small patches.

        Parameters
        ----------
        tile : sequence of int
            Number of the tile along z, y, x.
        buffer : bytes array, optional
            Memory to decode into.
        """
        low = tuple([i * t for i, t in zip(tile, self.tile, strict=True)])
        high = tuple([min(n, b + t) for n, b, t in zip(self.grid.shape, low, self.tile, strict=True)])
        return self.box(Box(low, high), buffer)

    def box(self, box: Box, buffer: np.ndarray | None = None) -> np.ndarray:
        """Read the voxels of a box within the grid, in the axes of a tile.

        Raises
        ------
        DataError
            Labels are too large for float32 patches.
        """
        voxels = self._box(box, buffer)
        if self._check_labels and voxels.size and max(int(voxels.max()), -int(voxels.min())) > _MAX_LABEL:
            raise DataError(
                f"labels of {', '.join(self.channels)} must be at most {_MAX_LABEL}, the limit of float32 patches; "
                f"got {int(voxels.max())}. Renumber them with numpy.unique(labels, return_inverse=True)"
            )
        return voxels

    def _box(self, box: Box, buffer: np.ndarray | None) -> np.ndarray:
        if self._view is not None:
            return self._view[(slice(None), *box.slices)]
        single = len(self._readers) == 1 and self._readers[0].dtype == self.dtype
        whole = self._readers[0].whole_chunk(box, buffer) if single else None
        if whole is not None:
            return whole[..., None] if self.small else whole[None]
        lengths = box.shape
        if self.small:
            out = allocate(buffer, (*lengths, len(self.channels)), self.dtype)
            channels_first = np.moveaxis(out, -1, 0)
        else:
            out = channels_first = allocate(buffer, (len(self.channels), *lengths), self.dtype)
        for reader, target in self._targets(channels_first):
            reader.into(target, box)
        return out

    def voxels(self, box: Box) -> np.ndarray:
        """Return the voxels of a box within the grid, (C, z, y, x)."""
        values = self.box(box)
        return np.moveaxis(values, -1, 0) if self.small else values

    def _targets(self, out: np.ndarray) -> Iterator[tuple[VoxelReader, np.ndarray]]:
        """Yield each reader with its channels of an array (C, z, y, x)."""
        channel = 0
        for reader in self._readers:
            yield reader, out[channel : channel + reader.channels]
            channel += reader.channels


def _three(lengths: Iterable[int]) -> tuple[int, int, int]:
    z, y, x = lengths
    return (z, y, x)
