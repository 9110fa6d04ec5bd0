"""One-to-one matching of points: as many pairs as possible and, among such matchings, the nearest."""

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
#: Pairs within the radius: row in `truth`, row in `found`, distance in mm.
Near = tuple[Ints, Ints, Floats]

#: True cells per call of the solver. A call costs as much as some hundred cells; its time grows with their square.
_BATCH_CELLS = 500


@dataclass(frozen=True, eq=False)
class Matching:
    """Pairs of a true cell and a detection: row numbers and distance, (k,) each."""

    truth: Ints
    found: Ints
    distance_mm: Floats


def match(truth: ArrayLike, found: ArrayLike, radius_mm: float) -> Matching:
    """Match true cells and detections one to one: as many pairs as possible, and among such matchings the nearest.

    No pair is farther apart than `radius_mm`. The number of pairs is the largest possible, and the sum of their
    distances the smallest for that number. A greedy matching, nearest first, reaches neither: it may take the only
    neighbour of another cell.

    Parameters
    ----------
    truth, found : (n, 3), (m, 3) array-like
        World points of the true cells and of the detections, in mm.
    radius_mm : float
        Largest distance of a pair, above 0.

    Returns
    -------
    matching : Matching
        Pairs, ordered by true cell.

    Raises
    ------
    GridError, DataError
        If points are not (n, 3) or not finite, or if the radius is not above 0.

    Notes
    -----
    The pairs within the radius form a graph. Each of its connected components is solved exactly by shortest
    augmenting paths (Jonker and Volgenant 1987, Computing 38:325). A dummy detection for each true cell stands for
    a miss, which costs more than all distances. Memory grows with the number of pairs within the radius, time with
    the square of the largest component: 100,000 cells take a second if a cell has one neighbour within the radius,
    and a minute if it has three or more and most cells are connected.

    Examples
    --------
    The nearest pair (0.1 mm) would leave the other two points without a partner:

    >>> truth, found = [[0.0, 0, 0], [1.0, 0, 0]], [[0.9, 0, 0], [1.9, 0, 0]]
    >>> pairs = match(truth, found, radius_mm=1.0)
    >>> pairs.found.tolist(), pairs.distance_mm.round(3).tolist()
    ([0, 1], [0.9, 0.9])
    """
    return assigned(near_pairs(check_points("truth", truth), check_points("found", found), radius_mm), radius_mm)


def near_pairs(truth: Floats, found: Floats, radius_mm: float) -> Near:
    """Return all pairs within the radius: rows of both, and distances."""
    if not (np.isfinite(radius_mm) and radius_mm > 0):
        raise DataError(f"radius_mm must be finite and greater than 0; got {radius_mm}")
    if not (len(truth) and len(found)):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    pairs = cKDTree(truth).sparse_distance_matrix(cKDTree(found), radius_mm, output_type="ndarray")
    return pairs["i"].astype(np.int64), pairs["j"].astype(np.int64), pairs["v"]


def assigned(near: Near, radius_mm: float) -> Matching:
    """Return the best matching among near pairs."""
    i, j, distance = near
    chosen = [np.empty(0, np.int64)]
    for batch in _independent_batches(i, j):
        chosen.append(batch[_solve(i[batch], j[batch], distance[batch], radius_mm)])
    pairs = np.concatenate(chosen)
    pairs = pairs[np.argsort(i[pairs])]
    return Matching(i[pairs], j[pairs], distance[pairs])


def _independent_batches(i: Ints, j: Ints) -> Iterator[Ints]:
    """Yield batches of pairs without common points: connected components, small ones grouped."""
    if not len(i):
        return
    rows, i = np.unique(i, return_inverse=True)
    columns, j = np.unique(j, return_inverse=True)
    nodes = len(rows) + len(columns)
    graph = coo_array((np.ones(len(i)), (i, len(rows) + j)), shape=(nodes, nodes))
    _, component = connected_components(graph, directed=False)
    cells = np.bincount(component[: len(rows)])
    batch_of_component = (np.cumsum(cells) - cells) // _BATCH_CELLS
    batch = batch_of_component[component[i]]
    order = np.argsort(batch, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(batch[order])) + 1)


def _solve(i: Ints, j: Ints, distance: Floats, radius_mm: float) -> Ints:
    """Return the indices of the matched pairs of a batch."""
    rows, i = np.unique(i, return_inverse=True)
    columns, j = np.unique(j, return_inverse=True)
    n, m = len(rows), len(columns)
    # The radius is added to each distance because SciPy treats a cost of 0 as no pair. A miss costs more than any
    # rearrangement, so that the number of pairs is maximised first.
    miss_cost = (min(n, m) + 2) * radius_mm
    cost = np.r_[distance + radius_mm, np.full(n, miss_cost)]
    index = (np.r_[i, np.arange(n)], np.r_[j, m + np.arange(n)])
    row, column = min_weight_full_bipartite_matching(csr_array((cost, index), shape=(n, m + n)))
    partner = np.full(n, -1)
    partner[row] = column
    return np.flatnonzero(partner[i] == j)


def check_points(name: str, points: ArrayLike) -> Floats:
    """Return points as finite float64 (n, 3), and (0, 3) for any empty input."""
    values = np.asarray(points, dtype=np.float64)
    if values.size == 0:
        return np.empty((0, 3))
    if values.ndim != 2 or values.shape[1] != 3:
        raise GridError(f"{name} has the shape {values.shape}; points must be (n, 3): X, Y, Z in mm")
    if not np.isfinite(values).all():
        raise DataError(f"{(~np.isfinite(values)).any(axis=1).sum()} of {len(values)} points of {name} are not finite")
    return values
