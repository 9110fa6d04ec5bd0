"""Where to look: patch positions as plain integers, made before any voxel is read.

A position is the first voxel of a patch, in ``z, y, x``. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mrhdata.errors import GridError

Ints = NDArray[np.int64]


def strided(shape: Sequence[int], patch: Sequence[int], stride: Sequence[int]) -> Ints:
    """Positions that cover a volume.

    Every voxel lies in a patch where ``stride <= patch``; the last patch along an axis is moved back
    to end at the edge.

    Parameters
    ----------
    shape, patch, stride : sequence of int, length ndim
        Voxels along each axis.

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
        if size > length:
            raise GridError(f"a patch of {tuple(patch)} does not fit a volume of {tuple(shape)}; use a smaller patch")
        last = length - size
        axes.append(np.unique([*range(0, last, step), last]))
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes)).astype(np.int64)


def centre_voxels(positions: Ints, patch: Sequence[int]) -> Ints:
    """The middle voxel of each patch; of an even length, the one before the middle: (n, ndim).

    Examples
    --------
    >>> centre_voxels(np.array([[0, 10]]), (3, 4)).tolist()
    [[1, 11]]
    """
    return positions + (np.asarray(patch) - 1) // 2


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
