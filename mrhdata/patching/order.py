"""In which order patches are visited, so that each stored chunk is decoded once: arithmetic only.

The first voxels of patches fall into *cells*, one stored chunk each (or a few small ones). One *walk*
leads through all cells: through *bars*, rectangles of cells as long as the volume, in random order and
turned at random, layer by layer and row by row, so that a cell finds most chunks that it reaches into
decoded already. The walk is cut into equal *lanes* that are walked at once, one row from each in turn,
so that neighbours in the resulting order come from distant places.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

#: Lanes that are walked at once, where the memory budget allows it.
LANES = 8
#: Neighbouring cells of a lane whose rows are mixed: so many that they hold `MIXED` rows, within these bounds.
#: More voxels than stay in the processor's cache are cut a third slower.
RUN = (2, 4)
MIXED = 64
#: Rows per lane for which a cell that pauses is still being visited.
PAUSE = 64


@dataclass(frozen=True)
class Layout:
    """How the walk is laid.

    Attributes
    ----------
    axis : int
        Along which bars run.
    width : tuple of int
        Cells of a bar along z, y, x; that of `axis` does not matter.
    lanes : int
    run : int
        Cells of a lane whose rows are mixed.
    """

    axis: int
    width: tuple[int, int, int]
    lanes: int = LANES
    run: int = RUN[1]

    def walk(self, table: Ints, rng: np.random.Generator) -> Ints:
        """Cells in the order of one walk.

        Parameters
        ----------
        table : (cells, 4) int array
            Subject, and number along z, y, x.
        rng : numpy.random.Generator

        Examples
        --------
        >>> table = np.array([[0, z, 0, 0] for z in range(4)])
        >>> Layout(0, (1, 1, 1)).walk(table, np.random.default_rng(1)).tolist()
        [3, 2, 1, 0]
        """
        across = [a for a in range(3) if a != self.axis]
        keys = np.column_stack([table[:, 0], *(table[:, a + 1] // self.width[a] for a in across)])
        # As one integer each: sorting rows of several is slow.
        bars, bar = np.unique(np.ravel_multi_index(tuple(keys.T), keys.max(axis=0) + 1), return_inverse=True)
        bar = bar.reshape(-1)
        turn = rng.choice([-1, 1], (3, len(bars)))
        place = rng.permutation(len(bars))
        along = [table[:, a + 1] * turn[i, bar] for i, a in enumerate([self.axis, *across])]
        return np.lexsort([*along[::-1], place[bar]])


def layouts(cells: Sequence[int], halo: Sequence[int], lanes: int = LANES) -> Iterator[tuple[Layout, float, float]]:
    """Layouts that may be used, with the decodes per chunk and the resident cells of each.

    Parameters
    ----------
    cells : sequence of int
        Of the volume along z, y, x.
    halo : sequence of int
        Cells beyond its own that a patch may reach into.
    lanes : int

    Yields
    ------
    layout, decodes, resident
        Estimated for patches everywhere.
    """
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        for sizes in itertools.product(*(_widths(cells[a]) for a in others)):
            width = [1, 1, 1]
            decodes, resident, bars = 1.0, 1.0, 1
            for a, w in zip(others, sizes, strict=True):
                width[a] = w
                number = -(-cells[a] // w)
                decodes *= (cells[a] + (number - 1) * halo[a]) / cells[a]
                resident *= min(cells[a], w + halo[a])
                bars *= number
            used = min(lanes, cells[0] * cells[1] * cells[2])
            decodes *= 1 + used * halo[axis] / (bars * cells[axis])
            # A layer, which is left row by row as the next one is entered.
            row = min(cells[others[1]], sizes[1] + halo[others[1]]) * (halo[others[0]] + 1)
            held = resident * halo[axis] + row * (halo[axis] + 1)
            everything = cells[0] * cells[1] * cells[2]
            yield Layout(axis, (width[0], width[1], width[2]), used), decodes, min(used * held, everything)


def _widths(cells: int) -> list[int]:
    """Widths that divide an axis into bars of about one size, without one and the same number twice."""
    return sorted({-(-cells // number) for number in range(1, cells + 1)})


def order(table: Ints, cell: Ints, layout: Layout, rng: np.random.Generator, rank: int = 0, ranks: int = 1) -> Ints:
    """Rows of one epoch in the order in which they are handed out.

    Parameters
    ----------
    table : (cells, 4) int array
        Subject, and number along z, y, x.
    cell : (n,) int array
        Cell of each row.
    layout : Layout
    rng : numpy.random.Generator
    rank, ranks : int
        Every rank gets its own part of one walk; sizes differ by at most one row.

    Examples
    --------
    >>> table = np.array([[0, 0, 0, 0], [0, 1, 0, 0]])
    >>> sorted(order(table, np.array([0, 0, 1]), Layout(0, (1, 1, 1), 2), np.random.default_rng(0)).tolist())
    [0, 1, 2]
    """
    place = np.empty(len(table), dtype=np.int64)
    place[layout.walk(table, rng)] = np.arange(len(table))
    # Ranks share out one walk, whatever lanes and runs their budgets allow; then rows of a few cells are mixed.
    chance = rng.random(len(cell))
    walk = rank_share(np.lexsort([chance, place[cell]]), rank, ranks)
    walk = walk[np.lexsort([chance[walk], place[cell[walk]] // layout.run])]
    lanes = max(1, min(layout.lanes, len(walk)))
    turn = np.concatenate([np.arange(len(lane)) for lane in np.array_split(walk, lanes)])
    return walk[np.argsort(turn + rng.random(len(walk)))]


def run(rows: int, cells: int) -> int:
    """How many cells of a lane are mixed, where cells hold so many rows.

    Examples
    --------
    >>> [run(rows, 100) for rows in (100, 2_400, 10_000)]
    [4, 3, 2]
    """
    return min(max(-(-MIXED * cells // max(1, rows)), RUN[0]), RUN[1])


def rank_share(rows: Ints, rank: int, ranks: int) -> Ints:
    """Rows of one of several ranks; their numbers differ by at most one."""
    return rows[len(rows) * rank // ranks : len(rows) * (rank + 1) // ranks]


def visits(cells: Ints, pause: int) -> tuple[Ints, Ints, Ints]:
    """When each cell is used: cell, first and last time of each visit.

    Parameters
    ----------
    cells : (n,) array
        The cell of each row, in order of time.
    pause : int
        A cell that is not used for longer than this is left and visited again.

    Examples
    --------
    >>> [v.tolist() for v in visits(np.array([5, 5, 7, 7, 7, 7, 5]), pause=2)]
    [[5, 5, 7], [0, 6, 2], [1, 6, 5]]
    """
    if not len(cells):
        return cells, cells, cells
    time = np.argsort(cells, kind="stable")
    ordered = cells[time]
    new = np.ones(len(cells), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]) | (time[1:] - time[:-1] > pause)
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(cells)) - 1
    return ordered[first], time[first], time[last]


def lifetimes(things: Ints, first: Ints, last: Ints, pause: int) -> tuple[Ints, Ints, Ints]:
    """Uses of things, joined where no more than `pause` lies between: thing, first, last, by first.

    Examples
    --------
    >>> [v.tolist() for v in lifetimes(np.array([1, 1, 2]), np.array([0, 4, 1]), np.array([3, 6, 2]), 1)]
    [[1, 2], [0, 1], [6, 2]]
    """
    if not len(things):
        return things, first, last
    by = np.lexsort([first, things])
    things, first, last = things[by], first[by], last[by]
    # Within one thing the latest end so far: ends are lifted so that every thing starts above the one before.
    lift = np.cumsum(np.append(0, things[1:] != things[:-1])) * (int(last.max()) + pause + 2)
    ends = np.maximum.accumulate(last + lift)
    new = np.ones(len(things), dtype=bool)
    new[1:] = (first + lift)[1:] > ends[:-1] + pause
    start = np.flatnonzero(new)
    stop = np.append(start[1:], len(things)) - 1
    found = things[start], first[start], (ends - lift)[stop]
    by = np.argsort(found[1], kind="stable")
    return found[0][by], found[1][by], found[2][by]


def peak(first: Ints, last: Ints, sizes: NDArray[np.integer]) -> int:
    """Most bytes that are held at one time.

    Examples
    --------
    >>> peak(np.array([0, 1]), np.array([1, 3]), np.array([10, 5]))
    15
    """
    change = np.zeros(int(last.max(initial=-1)) + 2, dtype=np.int64)
    np.add.at(change, first, sizes)
    np.add.at(change, last + 1, -np.asarray(sizes, dtype=np.int64))
    return int(np.cumsum(change).max(initial=0))
