"""Points matched to points, one to one: as many pairs as can be, and of those the nearest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from mrhdata.errors import DataError, GridError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
#: Pairs within the radius: rows of both, and distances.
Near = tuple[Ints, Ints, Floats]

#: True cells that are assigned in one call; a call costs as much as some hundred cells, and grows with their square.
_TOGETHER = 500


@dataclass(frozen=True, eq=False)
class Matching:
    """Pairs of a true cell and a detection, by their row numbers: (k,) each, and how far they lie apart."""

    truth: Ints
    found: Ints
    distance_mm: Floats


def match(truth: ArrayLike, found: ArrayLike, radius_mm: float) -> Matching:
    """Match true cells and detections one to one: as many pairs as can be, and of those the nearest.

    No pair is farther apart than `radius_mm`. Among all matchings of most pairs, it is one of the least sum of
    distances. Nearest first ("greedy") is neither: it may take away the only neighbour that another cell has.

    Parameters
    ----------
    truth, found : (n, 3), (m, 3) array-like
        World points, mm.
    radius_mm : float
        Greater than 0.

    Returns
    -------
    matching : Matching
        Ordered by true cell.

    Raises
    ------
    GridError, DataError
        These are no points, or not finite; or no radius.

    Notes
    -----
    Cells that are near each other by way of others make up a connected part of the graph of all near pairs. Whole
    parts are solved exactly by shortest augmenting paths (Jonker and Volgenant 1987, Computing 38:325), a dummy
    detection beside each true cell standing for a miss that costs more than all distances. Memory grows with the
    number of pairs within the radius, time with the square of the largest part: 100,000 cells take a second where
    a cell has one neighbour within the radius, and a minute where it has three or more and most hang together.

    Examples
    --------
    The nearest pair, 0.1 mm, would leave the other two without a partner:

    >>> truth, found = [[0.0, 0, 0], [1.0, 0, 0]], [[0.9, 0, 0], [1.9, 0, 0]]
    >>> pairs = match(truth, found, radius_mm=1.0)
    >>> pairs.found.tolist(), pairs.distance_mm.round(3).tolist()
    ([0, 1], [0.9, 0.9])
    """
    return assigned(near_pairs(check_points("truth", truth), check_points("found", found), radius_mm), radius_mm)


def near_pairs(truth: Floats, found: Floats, radius_mm: float) -> Near:
    """All pairs within the radius: rows of both, and distances."""
    if not (np.isfinite(radius_mm) and radius_mm > 0):
        raise DataError(f"radius_mm is a length greater than 0, not {radius_mm}")
    if not (len(truth) and len(found)):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    pairs = cKDTree(truth).sparse_distance_matrix(cKDTree(found), radius_mm, output_type="ndarray")
    return pairs["i"].astype(np.int64), pairs["j"].astype(np.int64), pairs["v"]


def assigned(near: Near, radius_mm: float) -> Matching:
    """The matching among near pairs."""
    i, j, distance = near
    chosen = [np.empty(0, np.int64)]
    for part in _parts(i, j):
        chosen.append(part[_solved(i[part], j[part], distance[part], radius_mm)])
    pairs = np.concatenate(chosen)
    pairs = pairs[np.argsort(i[pairs])]
    return Matching(i[pairs], j[pairs], distance[pairs])


def _parts(i: Ints, j: Ints) -> Iterator[Ints]:
    """Pairs that have no cell in common with those of other parts: connected ones, several small ones together."""
    if not len(i):
        return
    rows, i = np.unique(i, return_inverse=True)
    columns, j = np.unique(j, return_inverse=True)
    nodes = len(rows) + len(columns)
    graph = coo_array((np.ones(len(i)), (i, len(rows) + j)), shape=(nodes, nodes))
    _, connected = connected_components(graph, directed=False)
    cells = np.bincount(connected[: len(rows)])
    together = (np.cumsum(cells) - cells) // _TOGETHER
    part = together[connected[i]]
    order = np.argsort(part, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(part[order])) + 1)


def _solved(i: Ints, j: Ints, distance: Floats, radius_mm: float) -> Ints:
    """Which pairs of a part are taken."""
    rows, i = np.unique(i, return_inverse=True)
    columns, j = np.unique(j, return_inverse=True)
    n, m = len(rows), len(columns)
    # Distances are lengthened, because SciPy takes 0 for no pair. One pair more is worth any distances.
    missed = (min(n, m) + 2) * radius_mm
    cost = np.r_[distance + radius_mm, np.full(n, missed)]
    place = (np.r_[i, np.arange(n)], np.r_[j, m + np.arange(n)])
    row, column = min_weight_full_bipartite_matching(csr_array((cost, place), shape=(n, m + n)))
    partner = np.full(n, -1)
    partner[row] = column
    return np.flatnonzero(partner[i] == j)


def check_points(name: str, points: ArrayLike) -> Floats:
    """As float64 (n, 3), finite; (0, 3) of anything empty."""
    values = np.asarray(points, dtype=np.float64)
    if values.size == 0:
        return np.empty((0, 3))
    if values.ndim != 2 or values.shape[1] != 3:
        raise GridError(f"{name} has the shape {values.shape}; points are (n, 3): X, Y, Z in mm")
    if not np.isfinite(values).all():
        raise DataError(f"{(~np.isfinite(values)).any(axis=1).sum()} of {len(values)} points of {name} are not finite")
    return values
