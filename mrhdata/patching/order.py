"""Order of patches in an epoch, such that each stored chunk is decoded about once. Arithmetic only; no voxel is read.

The terms of this module:

- *home tile*: the tile that holds the first voxel of a patch; one stored chunk, or a few small ones.
- *bar*: a block of home tiles that is as long as the volume along one axis.
- *walk*: one path through all home tiles. It takes bars in random order, and a bar layer by layer and row by row, in
  random directions, so that most chunks that a patch reaches into are decoded already.
- *lane*: one of several equal pieces of the walk. The order takes one patch from each lane in *turn*, so that
  patches of a batch come from distant places.
- *run*: neighbouring home tiles of a lane whose patches are mixed.
- *visit*: a period in which a home tile is used without a long pause.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

#: Number of lanes, if the memory budget allows it.
LANES = 8
#: Fewest and most home tiles of a run. Within these bounds a run holds about `MIXED` patches.
#: Longer runs exceed the processor's cache, and patches are cut a third slower.
RUN = (2, 4)
MIXED = 64
#: A visit ends when a home tile is not used for this many patches per lane.
PAUSE = 64


@dataclass(frozen=True)
class Layout:
    """Shape of the walk.

    Attributes
    ----------
    axis : int
        Axis along which bars run.
    width : tuple of int
        Home tiles of a bar along z, y, x; the item of `axis` has no effect.
    lanes : int
    run : int
        Home tiles of a run.
    """

    axis: int
    width: tuple[int, int, int]
    lanes: int = LANES
    run: int = RUN[1]

    def walk(self, table: Ints, rng: np.random.Generator) -> Ints:
        """Return the home tiles in the order of one walk.

        Parameters
        ----------
        table : (tiles, 4) int array
            Subject of each home tile, and its number along z, y, x.
        rng : numpy.random.Generator

        Examples
        --------
        >>> table = np.array([[0, z, 0, 0] for z in range(4)])
        >>> Layout(0, (1, 1, 1)).walk(table, np.random.default_rng(1)).tolist()
        [3, 2, 1, 0]
        """
        across = [a for a in range(3) if a != self.axis]
        keys = np.column_stack([table[:, 0], *(table[:, a + 1] // self.width[a] for a in across)])
        # One integer per tile: sorting rows of several numbers is slow.
        bars, bar = np.unique(np.ravel_multi_index(tuple(keys.T), keys.max(axis=0) + 1), return_inverse=True)
        bar = bar.reshape(-1)
        turn = rng.choice([-1, 1], (3, len(bars)))
        bar_order = rng.permutation(len(bars))
        along = [table[:, a + 1] * turn[i, bar] for i, a in enumerate([self.axis, *across])]
        return np.lexsort([*along[::-1], bar_order[bar]])


def layouts(tiles: Sequence[int], halo: Sequence[int], lanes: int = LANES) -> Iterator[tuple[Layout, float, float]]:
    """Yield possible layouts, with the decodes per chunk and the tiles in memory of each.

    Parameters
    ----------
    tiles : sequence of int
        Number of tiles of the volume along z, y, x.
    halo : sequence of int
        Tiles beyond its home tile that a patch may reach into.
    lanes : int

    Yields
    ------
    layout, decodes, resident
        Estimates for patches that are spread evenly over the volume.
    """
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        for sizes in itertools.product(*(_widths(tiles[a]) for a in others)):
            width = [1, 1, 1]
            decodes, resident, bars = 1.0, 1.0, 1
            for a, w in zip(others, sizes, strict=True):
                width[a] = w
                number = -(-tiles[a] // w)
                decodes *= (tiles[a] + (number - 1) * halo[a]) / tiles[a]
                resident *= min(tiles[a], w + halo[a])
                bars *= number
            used = min(lanes, tiles[0] * tiles[1] * tiles[2])
            decodes *= 1 + used * halo[axis] / (bars * tiles[axis])
            # Tiles of a layer are dropped row by row as the next layer is entered.
            row = min(tiles[others[1]], sizes[1] + halo[others[1]]) * (halo[others[0]] + 1)
            per_lane = resident * halo[axis] + row * (halo[axis] + 1)
            all_tiles = tiles[0] * tiles[1] * tiles[2]
            yield Layout(axis, (width[0], width[1], width[2]), used), decodes, min(used * per_lane, all_tiles)


def _widths(tiles: int) -> list[int]:
    """Return the widths that divide an axis into bars of about equal width, one for each number of bars."""
    return sorted({-(-tiles // number) for number in range(1, tiles + 1)})


def order(
    table: Ints,
    home_tile: Ints,
    layout: Layout,
    rng: np.random.Generator,
    rank: int = 0,
    ranks: int = 1,
    *,
    even: bool = False,
) -> Ints:
    """Return the patches of one epoch by index, in the order in which they are delivered.

    Parameters
    ----------
    table : (tiles, 4) int array
        Subject of each home tile, and its number along z, y, x.
    home_tile : (n,) int array
        Home tile of each patch, as a row of `table`.
    layout : Layout
    rng : numpy.random.Generator
    rank, ranks : int
        Number of this process and number of processes. Each gets its own piece of one walk; sizes differ by at most
        one patch.
    even : bool
        Repeat a patch of the next piece in shorter ones, so that all have the same size.

    Examples
    --------
    >>> table = np.array([[0, 0, 0, 0], [0, 1, 0, 0]])
    >>> sorted(order(table, np.array([0, 0, 1]), Layout(0, (1, 1, 1), 2), np.random.default_rng(0)).tolist())
    [0, 1, 2]
    """
    step = np.empty(len(table), dtype=np.int64)
    step[layout.walk(table, rng)] = np.arange(len(table))
    # Ranks divide one walk, whatever lanes and runs their budgets allow. Then the patches of each run are mixed.
    chance = rng.random(len(home_tile))
    walk = rank_share(np.lexsort([chance, step[home_tile]]), rank, ranks, even=even)
    walk = walk[np.lexsort([chance[walk], step[home_tile[walk]] // layout.run])]
    lanes = max(1, min(layout.lanes, len(walk)))
    turn = np.concatenate([np.arange(len(lane)) for lane in np.array_split(walk, lanes)])
    return walk[np.argsort(turn + rng.random(len(walk)))]


def run(patches: int, tiles: int) -> int:
    """Return the home tiles of a run, for so many patches in so many home tiles.

    Examples
    --------
    >>> [run(patches, 100) for patches in (100, 2_400, 10_000)]
    [4, 3, 2]
    """
    return min(max(-(-MIXED * tiles // max(1, patches)), RUN[0]), RUN[1])


def rank_share(indices: Ints, rank: int, ranks: int, *, even: bool = False) -> Ints:
    """Return the indices of one of several ranks; their numbers differ by at most one.

    With `even` a shorter share also has the first index of the next one, so that all numbers are equal.

    Examples
    --------
    >>> [rank_share(np.arange(5), rank, 2).tolist() for rank in range(2)]
    [[0, 1], [2, 3, 4]]
    >>> [rank_share(np.arange(5), rank, 2, even=True).tolist() for rank in range(2)]
    [[0, 1, 2], [2, 3, 4]]
    """
    start, stop = len(indices) * rank // ranks, len(indices) * (rank + 1) // ranks
    return indices[start : start - (-len(indices) // ranks) if even else stop]


def visits(home_tiles: Ints, pause: int) -> tuple[Ints, Ints, Ints]:
    """Return the home tile and the first and last time of each visit.

    Parameters
    ----------
    home_tiles : (n,) array
        Home tile of each patch, in order of time.
    pause : int
        Longest time without use within one visit.

    Examples
    --------
    >>> [v.tolist() for v in visits(np.array([5, 5, 7, 7, 7, 7, 5]), pause=2)]
    [[5, 5, 7], [0, 6, 2], [1, 6, 5]]
    """
    if not len(home_tiles):
        return home_tiles, home_tiles, home_tiles
    time = np.argsort(home_tiles, kind="stable")
    ordered = home_tiles[time]
    new = np.ones(len(home_tiles), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]) | (time[1:] - time[:-1] > pause)
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(home_tiles)) - 1
    return ordered[first], time[first], time[last]


def lifetimes(tiles: Ints, first: Ints, last: Ints, pause: int) -> tuple[Ints, Ints, Ints]:
    """Join uses of tiles that are at most `pause` apart: tile, first and last time, sorted by first time.

    Examples
    --------
    >>> [v.tolist() for v in lifetimes(np.array([1, 1, 2]), np.array([0, 4, 1]), np.array([3, 6, 2]), 1)]
    [[1, 2], [0, 1], [6, 2]]
    """
    if not len(tiles):
        return tiles, first, last
    by_tile = np.lexsort([first, tiles])
    tiles, first, last = tiles[by_tile], first[by_tile], last[by_tile]
    # The latest end so far of each tile: ends of a tile are lifted above those of the tile before it.
    lift = np.cumsum(np.append(0, tiles[1:] != tiles[:-1])) * (int(last.max()) + pause + 2)
    ends = np.maximum.accumulate(last + lift)
    new = np.ones(len(tiles), dtype=bool)
    new[1:] = (first + lift)[1:] > ends[:-1] + pause
    start = np.flatnonzero(new)
    stop = np.append(start[1:], len(tiles)) - 1
    tiles, first, last = tiles[start], first[start], (ends - lift)[stop]
    by_time = np.argsort(first, kind="stable")
    return tiles[by_time], first[by_time], last[by_time]


def peak(first: Ints, last: Ints, sizes: NDArray[np.integer]) -> int:
    """Return the peak number of bytes in memory.

    Examples
    --------
    >>> peak(np.array([0, 1]), np.array([1, 3]), np.array([10, 5]))
    15
    """
    change = np.zeros(int(last.max(initial=-1)) + 2, dtype=np.int64)
    np.add.at(change, first, sizes)
    np.add.at(change, last + 1, -np.asarray(sizes, dtype=np.int64))
    return int(np.cumsum(change).max(initial=0))
