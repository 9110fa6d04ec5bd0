"""Plan of a set of patches: the tiles that each patch needs, the order of patches, and the bytes in memory.

The plan is arithmetic on positions; no voxel is read.
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

#: Fraction of the budget that a layout may need by estimate. The rest is for reading ahead.
_PLANNED_FRACTION = 0.9


class Plan:
    """Patches by home tile (the tile that holds a patch's first voxel), and the tiles that they need.

    Parameters
    ----------
    sources : list of list of TensorSource
        Sources of each subject. Positions refer to the first one.
    positions : (n, 3) int array
    subject : (n,) int array
    budget : int
        Bytes for voxels.
    padding : str or None
    in_memory : bool
        Everything fits the budget and stays in memory.

    Attributes
    ----------
    home_tile : (n,) int array
        Home tile of each patch, as a row of `table`.
    table : (home tiles, 4) int array
        Subject of each home tile, and its number along z, y, x.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[TensorSource]],
        positions: Ints,
        subject: Ints,
        budget: int,
        padding: str | None,
        in_memory: bool,
    ) -> None:
        self.sources, self.positions, self.subject = sources, positions, subject
        self.budget, self.padding, self.in_memory = budget, padding, in_memory
        self._all_sources = [source for subject_sources in sources for source in subject_sources]
        counts = [int(np.prod(s.tiles)) for s in self._all_sources]
        self._offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._firsts: list[int] = self._offsets[:-1].tolist()
        keys, home_tile = np.unique(self._keys(), return_inverse=True)
        self.home_tile = home_tile.reshape(-1)
        self.table = self._home_table(keys)
        self._pointer, self._tile = self._tiles_by_home()
        self._distinct_tiles = len(_distinct(self._tile))
        self.corners = [self._corners(i) if s.small else None for i, s in enumerate(sources[0])]
        self._copy_bytes = self._joined_bytes()
        self.layout = self._choose_layout()
        #: The layout of the last epoch, with as many lanes as the budget allowed.
        self.mixed = self.layout

    def _keys(self) -> Ints:
        """Return the global number of each patch's home tile."""
        keys = np.empty(len(self.positions), dtype=np.int64)
        for number, sources in enumerate(self.sources):
            indices = np.flatnonzero(self.subject == number)
            keys[indices] = self.offset(number, 0) + sources[0].home_tiles(self.positions[indices])
        return keys

    def _home_table(self, keys: Ints) -> Ints:
        """Return the subject and the number along z, y, x of home tiles: (n, 4)."""
        table = np.empty((len(keys), 4), dtype=np.int64)
        firsts = np.array([self.offset(number, 0) for number in range(len(self.sources))])
        table[:, 0] = np.searchsorted(firsts, keys, side="right") - 1
        for number, sources in enumerate(self.sources):
            rows = np.flatnonzero(table[:, 0] == number)
            table[rows, 1:] = np.stack(np.unravel_index(keys[rows] - firsts[number], sources[0].tiles), axis=1)
        return table

    def offset(self, subject: int, source: int) -> int:
        """Return the global number of a source's first tile."""
        return int(self._offsets[sum(len(s) for s in self.sources[:subject]) + source])

    def read(self, tile: int, buffer: np.ndarray | None = None) -> np.ndarray:
        """Decode one tile by its global number.

        Parameters
        ----------
        tile : int
        buffer : bytes array, optional
            Memory to decode into.
        """
        # Hot path: Python code here holds the lock that the thread that cuts patches needs. Keep to plain integers.
        i = bisect_right(self._firsts, tile) - 1
        source = self._all_sources[i]
        rest, x = divmod(tile - self._firsts[i], source.tiles[2])
        return source.read((*divmod(rest, source.tiles[1]), x), buffer)

    def tiles_by_patch(self) -> Iterator[Ints]:
        """Yield, for each subject and source, the tiles that each patch touches; shared tiles are repeated."""
        for subject, sources in enumerate(self.sources):
            indices = np.flatnonzero(self.subject == subject)
            for i in range(len(sources)):
                yield self._touched_tiles(subject, i, indices)[1]

    def covered_by(self, tiles: Collection[int]) -> bool:
        """Return whether some tiles are all that patches need."""
        return len(tiles) >= self._distinct_tiles and len(set(self._tile.tolist()) - set(tiles)) == 0

    def sizes(self, tiles: Ints) -> Ints:
        """Return the bytes of tiles from their global numbers."""
        sizes = np.zeros(len(tiles), dtype=np.int64)
        owner = np.searchsorted(self._offsets, tiles, side="right") - 1
        for i, source in enumerate(self._all_sources):
            own = np.flatnonzero(owner == i)
            numbers = np.stack(np.unravel_index(tiles[own] - self._offsets[i], source.tiles), axis=1)
            sizes[own] = source.sizes(numbers)
        return sizes

    def _choose_layout(self) -> order.Layout:
        """Return the layout that decodes fewest tiles within the budget, with as many lanes as the budget allows."""
        if self.in_memory:
            return order.Layout(0, (1, 1, 1))
        largest = max((s[0] for s in self.sources), key=lambda s: int(np.prod(s.tiles)))
        tiling = zip(largest.shape, largest.tile, largest.tiles, strict=True)
        halo = [-(-(n - 1) // t) if count > 1 else 0 for n, t, count in tiling]
        tile = int(np.prod(largest.tile)) * max(self._bytes_per_voxel(s) for s in self.sources)
        copy = int(self._copy_bytes.max())
        for lanes in range(order.LANES, 1, -1):
            affordable = [
                (decodes, resident, layout)
                for layout, decodes, resident in order.layouts(largest.tiles, halo, lanes)
                if resident * tile + lanes * copy <= _PLANNED_FRACTION * self.budget
            ]
            if affordable:
                return min(affordable, key=lambda item: item[:2])[2]
        return min(order.layouts(largest.tiles, halo, 1), key=lambda item: item[2])[0]

    def _bytes_per_voxel(self, sources: Sequence[TensorSource]) -> float:
        """Return the bytes of all sources per voxel of the first source."""
        first = sources[0]
        return sum(s.voxel_bytes * float(np.prod(first.grid.spacing / s.grid.spacing)) for s in sources)

    def _tiles_by_home(self) -> tuple[Ints, Ints]:
        """Return the tiles that patches of home tile `h` need, as items `pointer[h]` to `pointer[h + 1]` of a list."""
        total = int(self._offsets[-1])
        keys = []
        for number, sources in enumerate(self.sources):
            indices = np.flatnonzero(self.subject == number)
            for i in range(len(sources)):
                owner, tiles = self._touched_tiles(number, i, indices)
                keys.append(_distinct(self.home_tile[indices][owner] * total + tiles))
        keys_sorted = _distinct(np.concatenate(keys))
        pointer = np.searchsorted(keys_sorted // total, np.arange(len(self.table) + 1))
        return pointer.astype(np.int64), keys_sorted % total

    def _corners(self, i: int) -> tuple[Ints, Ints]:
        """Return the first voxel of each home tile's patches in source `i`, and the voxel after the last."""
        low = np.full((len(self.table), 3), np.iinfo(np.int64).max)
        high = np.zeros((len(self.table), 3), dtype=np.int64)
        for number, sources in enumerate(self.sources):
            indices = np.flatnonzero(self.subject == number)
            first, end = self._reach(sources[i], indices)
            np.minimum.at(low, self.home_tile[indices], first)
            np.maximum.at(high, self.home_tile[indices], end)
        return low, high

    def _joined_bytes(self) -> Ints:
        """Return the bytes of the joined copy that small patches of each home tile are gathered from."""
        total = np.zeros(len(self.table), dtype=np.int64)
        if self.in_memory:
            return total
        for i, corners in enumerate(self.corners):
            if corners is not None:
                voxel = np.array([sources[i].voxel_bytes for sources in self.sources])
                total += np.prod(corners[1] - corners[0], axis=1) * voxel[self.table[:, 0]]
        return total

    def _touched_tiles(self, subject: int, i: int, indices: Ints) -> tuple[Ints, Ints]:
        """Return the tiles that patches of a subject touch: the place of the patch in `indices`, and the tile."""
        source = self.sources[subject][i]
        low, high = self._reach(source, indices)
        owner, numbers = _expand_boxes(low // source.tile, (high - 1) // source.tile)
        return owner, self.offset(subject, i) + np.ravel_multi_index(tuple(numbers.T), source.tiles)

    def _reach(self, source: TensorSource, indices: Ints) -> tuple[Ints, Ints]:
        return reach(source.starts(self.positions[indices]), source.shape, source.grid.shape, self.padding)

    def indices(
        self,
        shuffle: bool,
        seed: int,
        epoch: int,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        *,
        even: bool = False,
    ) -> Ints:
        """Return the patches of an epoch by index, in the order in which they are delivered; `even` as for the order.

        Raises
        ------
        DataError
            The tiles of one batch exceed the budget.
        """
        if self.in_memory or not shuffle:
            indices = np.argsort(self.home_tile, kind="stable")
            if shuffle:
                indices = np.random.default_rng((seed, epoch)).permutation(len(indices))
            return order.rank_share(indices, rank, ranks, even=even)
        runs = (order.run(len(self.home_tile), len(self.table)), 1)
        for lanes, run in itertools.product(range(self.layout.lanes, 0, -1), runs):
            self.mixed = replace(self.layout, lanes=lanes, run=run)
            rng = np.random.default_rng((seed, epoch))
            indices = order.order(self.table, self.home_tile, self.mixed, rng, rank, ranks, even=even)
            needed = self.loads(indices, batch_size).needed
            if needed <= self.budget:
                return indices
        raise DataError(
            f"a batch of {batch_size} patches must fit {self.budget} bytes for voxels; it needs {needed}. Pass more "
            "memory, or store the volume in smaller chunks"
        )

    def loads(self, indices: Ints, batch_size: int) -> Loads:
        """Return the schedule of tiles for patches in this order.

        A tile stays in memory between two uses if the time between them is at most a pause. The pause is the longest
        that the budget allows.
        """
        home_tile, first, last = order.visits(self.home_tile[indices], order.PAUSE * self.layout.lanes)
        first, last = first // batch_size, last // batch_size
        counts = self._pointer[home_tile + 1] - self._pointer[home_tile]
        visit, within = _enumerate_items(counts)
        tiles, copied = self._tile[self._pointer[home_tile][visit] + within], self._copy_bytes[home_tile]
        batches = -(-len(indices) // batch_size)
        # After the last batch: tiles of volumes in memory are never removed.
        ends = np.full(len(visit), batches) if self.in_memory else last[visit]

        def schedule(pause: int) -> Loads:
            tile, begin, end = order.lifetimes(tiles, first[visit], ends, pause)
            size = self.sizes(tile)
            needed = order.peak(
                np.concatenate([begin, first]), np.concatenate([end, last]), np.concatenate([size, copied])
            )
            return Loads(tile, begin, end, size, needed, order.peak(first, last, copied))

        return schedule(batches) if self.in_memory else longest(schedule, batches, self.budget)


def longest(schedule: Callable[[int], Loads], batches: int, budget: int) -> Loads:
    """Return the schedule with the longest pause within a budget, to about 20 %. A tenth is left for reading ahead.

    Parameters
    ----------
    schedule : callable
        Function of a pause in batches that returns the schedule in which tiles stay in memory for that pause.
    batches : int
        Longest pause.
    budget : int
        Bytes.
    """
    limit, pause, above = _PLANNED_FRACTION * budget, batches, batches
    best = schedule(pause)
    while best.needed > limit and pause:
        above, pause = pause, pause // 4
        best = schedule(pause)
    for _ in range(3 if pause < above else 0):
        middle = round((max(1, pause) * above) ** 0.5)
        candidate = schedule(middle)
        if candidate.needed <= limit:
            best, pause = candidate, middle
        else:
            above = middle
    return best


def _distinct(numbers: Ints) -> Ints:
    """Return the distinct numbers in order. Sorting is faster than NumPy's hashing if most numbers are distinct."""
    ordered = np.sort(numbers)
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def _enumerate_items(counts: Ints) -> tuple[Ints, Ints]:
    """Return the owner of each item, and its number among the owner's items, from the number of items per owner."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def _expand_boxes(low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """Return all voxels of boxes from `low` to `high`, both included: the box of each, and the voxel (m, 3)."""
    lengths = high - low + 1
    owner, within = _enumerate_items(np.prod(lengths, axis=1))
    numbers = np.empty((len(owner), 3), dtype=np.int64)
    for axis in (2, 1, 0):
        length = lengths[owner, axis]
        numbers[:, axis] = low[owner, axis] + within % length
        within = within // length
    return owner, numbers
