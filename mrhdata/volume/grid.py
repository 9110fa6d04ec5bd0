"""Grids: shape and affine from voxel index to world millimetres.

The affine of a grid maps the voxel index ``(z, y, x, 1)`` to world
``(X, Y, Z, 1)`` in RAS+ millimetres, voxel centres at whole numbers. NumPy only.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrhdata.errors import GridError

Floats = NDArray[np.float64]

#: Two grids are the same if no corner differs by more than this fraction of a voxel.
SAME_GRID_VOXELS = 1e-3
#: Length in mm that no specimen has, so that a longer volume has another unit.
MAX_EXTENT_MM = 3000.0


def check_affine(affine: ArrayLike) -> Floats:
    """Return `affine` as a finite, invertible (4, 4) float64 array.

    Examples
    --------
    >>> check_affine(np.eye(4)).shape
    (4, 4)
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise GridError(f"an affine must have shape (4, 4); got {matrix.shape}. Pass homogeneous millimetres")
    if not np.isfinite(matrix).all() or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise GridError(f"an affine must be finite and end in the row 0 0 0 1; got {matrix.tolist()}")
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if (lengths == 0).any() or abs(np.linalg.det(matrix[:3, :3] / lengths)) < 1e-6:
        raise GridError(f"an affine must have three independent axes; got {matrix.tolist()}. Pass a spacing instead")
    return matrix


def nearest_axes(directions: ArrayLike) -> tuple[int, int, int]:
    """Return the array axes nearest world S, A and R, each used once, ties by order.

    Parameters
    ----------
    directions : (3, 3) array-like
        Matrix whose columns are the world directions (X, Y, Z, RAS+) of the array axes.

    Returns
    -------
    axes : tuple of int
        Array axes that become ``z``, ``y`` and ``x``.

    Examples
    --------
    A sagittal scan stored as P, S, R:

    >>> nearest_axes([[0, 0, 1], [-1, 0, 0], [0, 1, 0]])
    (1, 0, 2)
    """
    columns = np.asarray(directions, dtype=np.float64)
    cosines = np.abs(columns / np.linalg.norm(columns, axis=0))
    s, a, r = 2, 1, 0
    # Rounded, so that assignments that differ only in the last bit keep the order of the axes.
    orders: list[tuple[int, int, int]] = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    return max(orders, key=lambda p: round(cosines[s, p[0]] + cosines[a, p[1]] + cosines[r, p[2]], 9))


def length(mm: float) -> str:
    """Format a length in nm, um or mm.

    Examples
    --------
    >>> length(2.0), length(0.05), length(1e-5)
    ('2 mm', '50 um', '10 nm')
    """
    for factor, unit in ((1.0, "mm"), (1e3, "um")):
        if mm * factor >= 1:
            return f"{mm * factor:.6g} {unit}"
    return f"{round(mm * 1e6, 3):g} nm"


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and world position of an array of voxels.

    Parameters
    ----------
    shape : tuple of int, length 3
        Voxels along z, y, x.
    affine : (4, 4) array-like
        Matrix from ``(z, y, x, 1)`` voxel indices to world ``(X, Y, Z, 1)`` millimetres, RAS+.

    Raises
    ------
    GridError
        The affine is not finite or not invertible.

    Examples
    --------
    >>> grid = Grid((10, 20, 30), [[0, 0, .1, -1], [0, .2, 0, 0], [.5, 0, 0, 2], [0, 0, 0, 1]])
    >>> grid.spacing.tolist()
    [0.5, 0.2, 0.1]
    >>> grid.world([1, 2, 3]).round(6).tolist()
    [-0.7, 0.4, 2.5]
    >>> grid.orientation
    'SAR'
    """

    shape: tuple[int, int, int]
    affine: Floats = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "affine", check_affine(self.affine))

    @property
    def spacing(self) -> Floats:
        """Distance of neighbouring voxel centres along z, y, x: (3,) millimetres, positive."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0), dtype=np.float64)

    @property
    def orientation(self) -> str:
        """World directions that z, y, x point to most, such as ``'SAR'``."""
        letters = {}
        for axis, row, pair in zip(nearest_axes(self.affine[:3, :3]), (2, 1, 0), ("IS", "PA", "LR"), strict=True):
            letters[axis] = pair[int(self.affine[row, axis] > 0)]
        return "".join(letters[axis] for axis in range(3))

    def world(self, index: ArrayLike) -> Floats:
        """Return world points, (..., 3) mm as X, Y, Z (RAS+), of indices (..., 3) as z, y, x."""
        points = np.asarray(index, dtype=np.float64)
        return np.asarray(points @ self.affine[:3, :3].T + self.affine[:3, 3], dtype=np.float64)

    def index(self, world: ArrayLike) -> Floats:
        """Return voxel indices, (..., 3) as z, y, x, not rounded, of world points (..., 3) mm, RAS+."""
        offsets = np.asarray(world, dtype=np.float64) - self.affine[:3, 3]
        return np.asarray(np.linalg.solve(self.affine[:3, :3], offsets.reshape(-1, 3).T).T.reshape(offsets.shape))

    def corners(self) -> Floats:
        """Return the world positions of the centres of the eight corner voxels: (8, 3) mm."""
        ends = [(0, n - 1) for n in self.shape]
        return self.world(list(itertools.product(*ends)))

    def distance(self, other: Grid) -> float:
        """Return the largest distance between equal corners of this grid and `other`, in mm."""
        return float(np.linalg.norm(self.corners() - other.corners(), axis=1).max())

    def same_as(self, other: Grid, tolerance_mm: float | None = None) -> bool:
        """Return whether both have the same shape and no corner differs by more than `tolerance_mm`.

        The default tolerance is a thousandth of the smallest spacing.
        """
        if tolerance_mm is None:
            tolerance_mm = SAME_GRID_VOXELS * float(min(self.spacing.min(), other.spacing.min()))
        return self.shape == other.shape and self.distance(other) <= tolerance_mm
