"""The plan of a set of patches: which tiles each needs, in which order, and how many bytes that holds.

All of it is arithmetic on positions; no voxel is read.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mrhdata.errors import DataError
from mrhdata.patching import order
from mrhdata.patching.positions import reach
from mrhdata.patching.prefetch import Loads
from mrhdata.patching.tiles import TensorSource

Ints = NDArray[np.int64]

#: Part of the budget that a layout may take by estimate; what is read ahead uses the rest.
_FILLED = 0.9


class Plan:
    """Cells of patches and the tiles that they need.

    Parameters
    ----------
    sources : list of list of Stream
        Of each subject, the first being the one whose voxels positions count.
    positions : (n, 3) int array
    subject : (n,) int array
    budget : int
        Bytes for voxels.
    padding : str or None
    in_memory : bool
        Everything fits the budget and stays in memory.

    Attributes
    ----------
    cell : (n,) int array
        Cell of each row.
    table : (cells, 4) int array
        Subject of each cell, and its number along z, y, x.
    """

    def __init__(
        self,
        streams: Sequence[Sequence[TensorSource]],
        positions: Ints,
        subject: Ints,
        budget: int,
        padding: str | None,
        in_memory: bool,
    ) -> None:
        self.sources, self.positions, self.subject = streams, positions, subject
        self.budget, self.padding, self.in_memory = budget, padding, in_memory
        self._each = [stream for of_subject in streams for stream in of_subject]
        counts = [int(np.prod(s.tiles)) for s in self._each]
        self._offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._firsts: list[int] = self._offsets[:-1].tolist()
        keys, cell = np.unique(self._keys(), return_inverse=True)
        self.cell = cell.reshape(-1)
        self.table = self._numbers(keys)
        self._pointer, self._tile = self._uses()
        self._distinct_tiles = len(_distinct(self._tile))
        self.corners = [self._corners(i) if s.small else None for i, s in enumerate(streams[0])]
        self._cell_bytes = self._copied()
        self.layout = self._choose()
        #: The layout of the last epoch, with as many lanes as the budget allowed.
        self.mixed = self.layout

    def _keys(self) -> Ints:
        """Tile of the first stream that holds the first voxel of each row."""
        keys = np.empty(len(self.positions), dtype=np.int64)
        for number, streams in enumerate(self.sources):
            rows = np.flatnonzero(self.subject == number)
            keys[rows] = self.offset(number, 0) + streams[0].cells(self.positions[rows])
        return keys

    def _numbers(self, keys: Ints) -> Ints:
        """Subject and number along z, y, x of tiles of first streams: (n, 4)."""
        table = np.empty((len(keys), 4), dtype=np.int64)
        firsts = np.array([self.offset(number, 0) for number in range(len(self.sources))])
        table[:, 0] = np.searchsorted(firsts, keys, side="right") - 1
        for number, streams in enumerate(self.sources):
            rows = np.flatnonzero(table[:, 0] == number)
            table[rows, 1:] = np.stack(np.unravel_index(keys[rows] - firsts[number], streams[0].tiles), axis=1)
        return table

    def offset(self, subject: int, stream: int) -> int:
        """Number of the first tile of a stream."""
        return int(self._offsets[sum(len(s) for s in self.sources[:subject]) + stream])

    def read(self, tile: int, room: np.ndarray | None = None) -> np.ndarray:
        """Decode a tile, into some bytes where they are given."""
        # Plain integers: every step of Python here keeps the thread that cuts patches waiting.
        at = bisect_right(self._firsts, tile) - 1
        stream = self._each[at]
        rest, x = divmod(tile - self._firsts[at], stream.tiles[2])
        return stream.read((*divmod(rest, stream.tiles[1]), x), room)

    def tiles_by_row(self) -> Iterator[Ints]:
        """For each subject and stream, the tiles that its rows touch, row after row, repeated as they repeat."""
        for subject, streams in enumerate(self.sources):
            rows = np.flatnonzero(self.subject == subject)
            for i in range(len(streams)):
                yield self._touched(subject, i, rows)[1]

    def covered_by(self, tiles: Collection[int]) -> bool:
        """Whether all tiles that any row needs are there."""
        return len(tiles) >= self._distinct_tiles and len(set(self._tile.tolist()) - set(tiles)) == 0

    def sizes(self, tiles: Ints) -> Ints:
        """Bytes of tiles."""
        found = np.zeros(len(tiles), dtype=np.int64)
        which = np.searchsorted(self._offsets, tiles, side="right") - 1
        for at, stream in enumerate(self._each):
            rows = np.flatnonzero(which == at)
            numbers = np.stack(np.unravel_index(tiles[rows] - self._offsets[at], stream.tiles), axis=1)
            found[rows] = stream.sizes(numbers)
        return found

    def _choose(self) -> order.Layout:
        """The layout that decodes least within the budget, with as many lanes as it allows."""
        if self.in_memory:
            return order.Layout(0, (1, 1, 1))
        largest = max((s[0] for s in self.sources), key=lambda s: int(np.prod(s.tiles)))
        tiling = zip(largest.shape, largest.tile, largest.tiles, strict=True)
        halo = [-(-(n - 1) // t) if count > 1 else 0 for n, t, count in tiling]
        tile = int(np.prod(largest.tile)) * max(self._bytes_per_voxel(s) for s in self.sources)
        copy = int(self._cell_bytes.max())
        for lanes in range(order.LANES, 1, -1):
            found = [
                (decodes, resident, layout)
                for layout, decodes, resident in order.layouts(largest.tiles, halo, lanes)
                if resident * tile + lanes * copy <= _FILLED * self.budget
            ]
            if found:
                return min(found, key=lambda f: f[:2])[2]
        return min(order.layouts(largest.tiles, halo, 1), key=lambda f: f[2])[0]

    def _bytes_per_voxel(self, streams: Sequence[TensorSource]) -> float:
        """Bytes that tiles hold for a voxel of the first stream."""
        first = streams[0]
        return sum(s.voxel_bytes * float(np.prod(first.grid.spacing / s.grid.spacing)) for s in streams)

    def _uses(self) -> tuple[Ints, Ints]:
        """Tiles of each cell, as rows `pointer[c]` to `pointer[c + 1]` of a list."""
        total = int(self._offsets[-1])
        keys = []
        for number, streams in enumerate(self.sources):
            rows = np.flatnonzero(self.subject == number)
            for i in range(len(streams)):
                owner, tiles = self._touched(number, i, rows)
                keys.append(_distinct(self.cell[rows][owner] * total + tiles))
        keys_sorted = _distinct(np.concatenate(keys))
        pointer = np.searchsorted(keys_sorted // total, np.arange(len(self.table) + 1))
        return pointer.astype(np.int64), keys_sorted % total

    def _corners(self, stream: int) -> tuple[Ints, Ints]:
        """First voxel of each cell's patches in a stream, and the one after the last."""
        low = np.full((len(self.table), 3), np.iinfo(np.int64).max)
        high = np.zeros((len(self.table), 3), dtype=np.int64)
        for number, streams in enumerate(self.sources):
            rows = np.flatnonzero(self.subject == number)
            first, end = self._reach(streams[stream], rows)
            np.minimum.at(low, self.cell[rows], first)
            np.maximum.at(high, self.cell[rows], end)
        return low, high

    def _copied(self) -> Ints:
        """Bytes of the copy of each cell's voxels that small patches are gathered from."""
        total = np.zeros(len(self.table), dtype=np.int64)
        if self.in_memory:
            return total
        for i, corners in enumerate(self.corners):
            if corners is not None:
                voxel = np.array([streams[i].voxel_bytes for streams in self.sources])
                total += np.prod(corners[1] - corners[0], axis=1) * voxel[self.table[:, 0]]
        return total

    def _touched(self, subject: int, i: int, rows: Ints) -> tuple[Ints, Ints]:
        """Tiles that rows of a subject touch: which of the rows, and the tile."""
        stream = self.sources[subject][i]
        low, high = self._reach(stream, rows)
        owner, numbers = _expanded(low // stream.tile, (high - 1) // stream.tile)
        return owner, self.offset(subject, i) + np.ravel_multi_index(tuple(numbers.T), stream.tiles)

    def _reach(self, stream: TensorSource, rows: Ints) -> tuple[Ints, Ints]:
        return reach(stream.starts(self.positions[rows]), stream.shape, stream.grid.shape, self.padding)

    def rows(self, shuffle: bool, seed: int, epoch: int, batch_size: int, rank: int = 0, ranks: int = 1) -> Ints:
        """Rows of an epoch in the order in which they are handed out.

        Raises
        ------
        DataError
            The budget does not hold what one batch needs.
        """
        if self.in_memory or not shuffle:
            every = np.argsort(self.cell, kind="stable")
            if shuffle:
                every = np.random.default_rng((seed, epoch)).permutation(len(every))
            return order.rank_share(every, rank, ranks)
        runs = (order.run(len(self.cell), len(self.table)), 1)
        for lanes, run in itertools.product(range(self.layout.lanes, 0, -1), runs):
            self.mixed = replace(self.layout, lanes=lanes, run=run)
            rows = order.order(self.table, self.cell, self.mixed, np.random.default_rng((seed, epoch)), rank, ranks)
            needed = self.loads(rows, batch_size).needed
            if needed <= self.budget:
                return rows
        raise DataError(
            f"the budget leaves {self.budget} bytes for voxels, but a batch of {batch_size} needs {needed} at once; "
            "give more memory, or store the volume in smaller chunks"
        )

    def loads(self, rows: Ints, batch_size: int) -> Loads:
        """What is read for rows in this order.

        A tile is kept from one use to the next where the time between is no longer than a pause: the
        longest of a few that the budget allows.
        """
        cell, first, last = order.visits(self.cell[rows], order.PAUSE * self.layout.lanes)
        first, last = first // batch_size, last // batch_size
        counts = self._pointer[cell + 1] - self._pointer[cell]
        visit, within = _counted(counts)
        tiles, copied = self._tile[self._pointer[cell][visit] + within], self._cell_bytes[cell]
        batches = -(-len(rows) // batch_size)
        # Beyond the last batch: nothing is let go of.
        ends = np.full(len(visit), batches) if self.in_memory else last[visit]

        def kept_for(pause: int) -> Loads:
            tile, begin, end = order.lifetimes(tiles, first[visit], ends, pause)
            size = self.sizes(tile)
            needed = order.peak(
                np.concatenate([begin, first]), np.concatenate([end, last]), np.concatenate([size, copied])
            )
            return Loads(tile, begin, end, size, needed, order.peak(first, last, copied))

        return kept_for(batches) if self.in_memory else longest(kept_for, batches, self.budget)


def longest(kept_for: Callable[[int], Loads], batches: int, budget: int) -> Loads:
    """The plan of the longest pause within a budget, to about a fifth; some of it is left for reading ahead.

    Parameters
    ----------
    kept_for : callable
        The plan in which tiles are kept for a pause of so many batches.
    batches : int
        The longest pause.
    budget : int
        Bytes.
    """
    limit, pause, above = _FILLED * budget, batches, batches
    found = kept_for(pause)
    while found.needed > limit and pause:
        above, pause = pause, pause // 4
        found = kept_for(pause)
    for _ in range(3 if pause < above else 0):
        middle = round((max(1, pause) * above) ** 0.5)
        tried = kept_for(middle)
        if tried.needed <= limit:
            found, pause = tried, middle
        else:
            above = middle
    return found


def _distinct(numbers: Ints) -> Ints:
    """Numbers in order, each once: by sorting, since NumPy's hashing is slower for many that differ."""
    ordered = np.sort(numbers)
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def _counted(counts: Ints) -> tuple[Ints, Ints]:
    """So many items of each owner: the owner of each item, and its number among the owner's."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def _expanded(low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """All numbers of boxes from `low` to `high`, both included: the row of each, and the number (m, 3)."""
    lengths = high - low + 1
    owner, within = _counted(np.prod(lengths, axis=1))
    numbers = np.empty((len(owner), 3), dtype=np.int64)
    for axis in (2, 1, 0):
        length = lengths[owner, axis]
        numbers[:, axis] = low[owner, axis] + within % length
        within = within // length
    return owner, numbers
