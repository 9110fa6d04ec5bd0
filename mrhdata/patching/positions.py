"""Patch positions as plain integers, computed before any voxel is read.

A position is the first voxel of a patch, in ``z, y, x``. This module depends on NumPy and SciPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mrhdata.errors import DataError, GridError, ParameterError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def strided(shape: Sequence[int], patch: Sequence[int], stride: Sequence[int], *, overhang: bool = False) -> Ints:
    """Return positions that cover a volume.

    Every voxel lies in a patch if ``stride <= patch``. The last patch along an axis is moved back to end at the edge,
    or reaches beyond it.

    Parameters
    ----------
    shape, patch, stride : sequence of int, length ndim
        Voxels along each axis.
    overhang : bool
        Allow the last patch to reach beyond the edge, so that all steps are equal.

    Returns
    -------
    positions : (n, ndim) int64 array
        In C order.

    Raises
    ------
    GridError
        A patch does not fit.
    ParameterError
        A length is not positive.

    Examples
    --------
    >>> strided((10,), (4,), (4,)).ravel()
    array([0, 4, 6])
    """
    axes = []
    for length, size, step in zip(shape, patch, stride, strict=True):
        if size < 1 or step < 1:
            raise ParameterError(f"patch {tuple(patch)} and stride {tuple(stride)} must be 1 or more along every axis")
        if overhang:
            axes.append(np.arange(0, max(1, length - size + step), step))
            continue
        if size > length:
            raise GridError(
                f"a patch of {tuple(patch)} must fit a volume of {tuple(shape)}. Pass a smaller shape, or padding="
            )
        last = length - size
        axes.append(np.unique([*range(0, last, step), last]))
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes)).astype(np.int64)


def uniform(shape: Sequence[int], patch: Sequence[int], n: int, rng: np.random.Generator) -> Ints:
    """Draw positions uniformly from all at which a patch fits: (n, ndim), with replacement.

    If a patch is longer than the volume, its centre is drawn from the volume's voxels.

    Examples
    --------
    >>> uniform((10, 4), (4, 4), 3, np.random.default_rng(0)).tolist()
    [[5, 0], [4, 0], [3, 0]]
    """
    free = np.array(shape) - patch + 1
    low = np.where(free > 0, 0, -((np.array(patch) - 1) // 2))
    high = np.where(free > 0, free, low + shape)
    return rng.integers(low, high, (n, len(low)))


def about(points: Ints | Floats, shape: Sequence[int], patch: Sequence[int], *, inside: bool = True) -> Ints:
    """Return the positions of patches whose centres are nearest to points: (n, ndim).

    The centre of a patch of even length lies between two voxels: at 5.5 for a patch about voxel 5.

    Parameters
    ----------
    points : (n, ndim) array
        Voxel indices, whole numbers or not.
    shape, patch : sequence of int
        Lengths of the volume and of the patch in voxels.
    inside : bool
        Move patches inside the volume.

    Examples
    --------
    >>> about(np.array([[0], [5], [9]]), (10,), (3,)).ravel().tolist()
    [0, 4, 7]
    >>> about(np.array([[20], [20.4], [20.6]]), (40,), (12,)).ravel().tolist()
    [15, 15, 15]
    """
    positions = np.floor(np.asarray(points) - (np.array(patch) - 1) / 2 + 0.5).astype(np.int64)
    return np.clip(positions, 0, np.maximum(0, np.array(shape) - patch)) if inside else positions


def shell(
    points: Floats,
    n: int,
    distance: tuple[float, float],
    rng: np.random.Generator,
    moved: Callable[[Floats], Floats] | None = None,
) -> Floats:
    """Draw samples in a shell around random points of a list, and no nearer to any other point: (n, 3).

    Parameters
    ----------
    points : (m, 3) array
        Points in mm, such as cells.
    n : int
    distance : tuple of float
        Least and greatest distance from the chosen point, mm. The least distance holds for all points.
    rng : numpy.random.Generator
    moved : callable, optional
        Function that moves samples to allowed points, such as voxel centres, and drops those that are not allowed.

    Raises
    ------
    DataError
        The points are so dense that hardly any sample is far enough from all of them.

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
        raise ParameterError(f"distance must be the least and the greatest distance in mm; got {distance}")
    tree = cKDTree(points)
    accepted: list[Floats] = []
    missing, tried = n, 0
    while missing > 0:
        count = 2 * missing + 16
        direction = rng.standard_normal((count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        # Uniform in the shell's volume.
        radius = np.cbrt(rng.uniform(inner**3, outer**3, (count, 1)))
        samples = points[rng.integers(0, len(points), count)] + radius * direction
        samples = samples if moved is None else moved(samples)
        samples = samples[tree.query(samples)[0] >= inner * (1 - 1e-9)][:missing]
        accepted.append(samples)
        missing, tried = missing - len(samples), tried + count
        if tried > 200 * n + 10_000:
            raise DataError(
                f"too few samples lie in the volume and at least {inner} mm from all points; got {n - missing} of "
                f"{tried} drawn at {inner} to {outer} mm. Pass a smaller least distance"
            )
    return np.concatenate(accepted) if accepted else np.empty((0, 3))


def shares(n: int, weights: Sequence[float]) -> list[int]:
    """Divide `n` into whole numbers in proportion to weights, by largest remainder.

    Examples
    --------
    >>> shares(10, [1, 1, 1])
    [4, 3, 3]
    """
    parts = np.asarray(weights, dtype=np.float64)
    if not len(parts) or not np.isfinite(parts).all() or (parts < 0).any() or not parts.sum():
        raise ParameterError(f"weights must be finite, 0 or more, and not all 0; got {list(weights)}")
    exact = n * parts / parts.sum()
    whole = np.floor(exact).astype(int)
    for i in np.argsort(whole - exact, kind="stable")[: n - whole.sum()]:
        whole[i] += 1
    return [int(w) for w in whole]


def centre_voxels(positions: Ints, patch: Sequence[int]) -> Ints:
    """Return the middle voxel of each patch, or for an even length the one before the middle: (n, ndim).

    Examples
    --------
    >>> centre_voxels(np.array([[0, 10]]), (3, 4)).tolist()
    [[1, 11]]
    """
    return positions + (np.asarray(patch) - 1) // 2


def reach(starts: Ints, shape: Sequence[int], grid: Sequence[int], padding: str | None) -> tuple[Ints, Ints]:
    """Return the first voxel of the volume that each patch needs, and the voxel after the last, (n, 3) each.

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
    """Return the fraction of each patch's voxels that lie in the mask, from one summed-area table: (n,).

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
    """Return at most `most` numbers, evenly spread from 0 to `count` - 1.

    Examples
    --------
    >>> spread(9, 3).tolist(), spread(2, 3).tolist()
    ([0, 4, 8], [0, 1])
    """
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)
