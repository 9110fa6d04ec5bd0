"""Where to look: patch positions as plain integers, made before any voxel is read.

A position is the first voxel of a patch, in ``z, y, x``. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mrhdata.errors import DataError, GridError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def strided(shape: Sequence[int], patch: Sequence[int], stride: Sequence[int], *, overhang: bool = False) -> Ints:
    """Positions that cover a volume.

    Every voxel lies in a patch where ``stride <= patch``; the last patch along an axis is moved back
    to end at the edge, or reaches beyond it.

    Parameters
    ----------
    shape, patch, stride : sequence of int, length ndim
        Voxels along each axis.
    overhang : bool
        Let the last patch reach beyond the edge, so that all steps are equal.

    Returns
    -------
    positions : (n, ndim) int64 array
        In C order.

    Raises
    ------
    GridError
        A patch does not fit, or a length is not positive.

    Examples
    --------
    >>> strided((10,), (4,), (4,)).ravel()
    array([0, 4, 6])
    """
    axes = []
    for length, size, step in zip(shape, patch, stride, strict=True):
        if size < 1 or step < 1:
            raise GridError(f"patch {tuple(patch)} and stride {tuple(stride)} must be 1 or more along every axis")
        if overhang:
            axes.append(np.arange(0, max(1, length - size + step), step))
            continue
        if size > length:
            raise GridError(
                f"a patch of {tuple(patch)} does not fit a volume of {tuple(shape)}; use a smaller patch, or padding"
            )
        last = length - size
        axes.append(np.unique([*range(0, last, step), last]))
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes)).astype(np.int64)


def uniform(shape: Sequence[int], patch: Sequence[int], n: int, rng: np.random.Generator) -> Ints:
    """Positions drawn uniformly from all at which a patch fits: (n, ndim), with replacement.

    Where a patch is longer than the volume, its centre is drawn from the volume's voxels instead.

    Examples
    --------
    >>> uniform((10, 4), (4, 4), 3, np.random.default_rng(0)).tolist()
    [[5, 0], [4, 0], [3, 0]]
    """
    free = np.array(shape) - patch + 1
    low = np.where(free > 0, 0, -((np.array(patch) - 1) // 2))
    high = np.where(free > 0, free, low + shape)
    return rng.integers(low, high, (n, len(low)))


def about(places: Ints | Floats, shape: Sequence[int], patch: Sequence[int], *, inside: bool = True) -> Ints:
    """Positions of patches whose centres are nearest to places, moved inside the volume where asked: (n, 3).

    The centre of a patch of even length lies between two voxels: that about voxel 5 is at 5.5.

    Parameters
    ----------
    places : (n, ndim) array
        Voxel indices, whole ones or not.
    shape, patch : sequence of int
        Of the volume and of the patch, in voxels.
    inside : bool

    Examples
    --------
    >>> about(np.array([[0], [5], [9]]), (10,), (3,)).ravel().tolist()
    [0, 4, 7]
    >>> about(np.array([[20], [20.4], [20.6]]), (40,), (12,)).ravel().tolist()
    [15, 15, 15]
    """
    positions = np.floor(np.asarray(places) - (np.array(patch) - 1) / 2 + 0.5).astype(np.int64)
    return np.clip(positions, 0, np.maximum(0, np.array(shape) - patch)) if inside else positions


def shell(
    points: Floats,
    n: int,
    distance: tuple[float, float],
    rng: np.random.Generator,
    moved: Callable[[Floats], Floats] | None = None,
) -> Floats:
    """Points in the shell about a random point of a list, and no nearer to any other: (n, 3).

    Parameters
    ----------
    points : (m, 3) array
        In mm, such as cells.
    n : int
    distance : tuple of float
        Least and greatest distance from the chosen point, mm; the least holds for all points.
    rng : numpy.random.Generator
    moved : callable, optional
        Moves places to where they may be, such as voxels, and leaves out those that may not be.

    Raises
    ------
    DataError
        The points lie so dense that hardly any place is left.

    Examples
    --------
    >>> far = shell(np.zeros((1, 3)), 100, (1.0, 2.0), np.random.default_rng(0))
    >>> bool((np.linalg.norm(far, axis=1) >= 1).all() and (np.linalg.norm(far, axis=1) <= 2).all())
    True
    """
    from scipy.spatial import cKDTree

    points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    inner, outer = distance
    if not 0 <= inner < outer:
        raise GridError(f"distance is two numbers, the least and the greatest, not {distance}")
    tree = cKDTree(points)
    found: list[Floats] = []
    missing, tried = n, 0
    while missing > 0:
        many = 2 * missing + 16
        direction = rng.standard_normal((many, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        # Uniform in the shell's volume.
        radius = np.cbrt(rng.uniform(inner**3, outer**3, (many, 1)))
        places = points[rng.integers(0, len(points), many)] + radius * direction
        places = places if moved is None else moved(places)
        places = places[tree.query(places)[0] >= inner * (1 - 1e-9)][:missing]
        found.append(places)
        missing, tried = missing - len(places), tried + many
        if tried > 200 * n + 10_000:
            raise DataError(
                f"of {tried} places at {inner} to {outer} mm from a point hardly any lies in the volume and {inner} mm "
                "from all others; use a smaller least distance"
            )
    return np.concatenate(found) if found else np.empty((0, 3))


def shares(n: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `n` and are nearest to shares in proportion to weights.

    Examples
    --------
    >>> shares(10, [1, 1, 1])
    [4, 3, 3]
    """
    parts = np.asarray(weights, dtype=np.float64)
    if not len(parts) or not np.isfinite(parts).all() or (parts < 0).any() or not parts.sum():
        raise DataError(f"weights are numbers from 0 up, not all 0, not {list(weights)}")
    exact = n * parts / parts.sum()
    whole = np.floor(exact).astype(int)
    for i in np.argsort(whole - exact, kind="stable")[: n - whole.sum()]:
        whole[i] += 1
    return [int(w) for w in whole]


def centre_voxels(positions: Ints, patch: Sequence[int]) -> Ints:
    """The middle voxel of each patch; of an even length, the one before the middle: (n, ndim).

    Examples
    --------
    >>> centre_voxels(np.array([[0, 10]]), (3, 4)).tolist()
    [[1, 11]]
    """
    return positions + (np.asarray(patch) - 1) // 2


def reach(starts: Ints, shape: Sequence[int], grid: Sequence[int], padding: str | None) -> tuple[Ints, Ints]:
    """Return the first voxel of the volume that each patch is made of, and the one after the last, (n, 3) each.

    Examples
    --------
    >>> low, high = reach(np.array([[-3, 2, 8]]), (5, 5, 5), (10, 10, 10), "reflect")
    >>> low.tolist(), high.tolist()
    ([[0, 2, 6]], [[4, 7, 10]])
    """
    low, high = starts, starts + (np.array(shape) - 1)
    if padding is None:
        return low, high + 1
    top = np.array(grid) - 1
    if padding == "reflect":
        low, high = np.minimum(low, np.where(high > top, 2 * top - high, low)), np.maximum(high, -low)
    return np.clip(low, 0, top), np.clip(high, 0, top) + 1


def fraction_inside(mask: NDArray[np.bool_], positions: Ints, patch: Sequence[int]) -> NDArray[np.float64]:
    """Share of each patch's voxels that lie in the mask, from one summed-area table: (n,).

    Parameters
    ----------
    mask : bool array, ndim axes
    positions : (n, ndim) int array
    patch : sequence of int, length ndim

    Examples
    --------
    >>> fraction_inside(np.array([0, 1, 1, 1], bool), np.array([[0], [1], [2]]), (2,)).tolist()
    [0.5, 1.0, 1.0]
    """
    sums = np.zeros([n + 1 for n in mask.shape], dtype=np.int64)
    sums[(slice(1, None),) * mask.ndim] = mask
    for axis in range(mask.ndim):
        np.cumsum(sums, axis=axis, out=sums)
    total = np.zeros(len(positions), dtype=np.int64)
    for corner in np.ndindex(*(2,) * mask.ndim):
        sign = (-1) ** (mask.ndim - sum(corner))
        total += sign * sums[tuple((positions + np.multiply(corner, patch)).T)]
    return total / np.prod(patch)


def spread(count: int, most: int) -> Ints:
    """At most `most` numbers, evenly spread from 0 to `count` - 1.

    Examples
    --------
    >>> spread(9, 3).tolist(), spread(2, 3).tolist()
    ([0, 4, 8], [0, 1])
    """
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)
