"""Transforms: chains of steps that map world points to world points, all in RAS+ millimetres. Needs only NumPy.

As in ITK, a registration returns a transform from points of the *fixed* space to points of the *moving* space,
because filling a voxel of the fixed grid needs its source point. The transform itself therefore resamples voxels
from moving to fixed, and its inverse maps points from moving to fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from mrhdata.errors import DataError, GridError
from mrhdata.volume.grid import Floats, Grid, check_affine

#: Distance beyond its outermost nodes, in voxels, at which a field is still defined, as in ITK.
_MARGIN = 0.5
_CORNERS = np.array(list(np.ndindex(2, 2, 2)), dtype=np.float64)
#: Maximum number of fixed-point iterations of an inverse, and its tolerance in voxels of the field.
_ITERATIONS, _TOLERANCE_VOXELS = 60, 0.1


@dataclass(frozen=True)
class Reach:
    """Bound on mapped points: the convex hull of `corners` (n, 3), widened by `low` and `high` (3,)."""

    corners: Floats
    low: Floats = field(default_factory=lambda: np.zeros(3))
    high: Floats = field(default_factory=lambda: np.zeros(3))

    def box(self) -> tuple[Floats, Floats]:
        """Return the lowest and highest coordinates."""
        return self.corners.min(axis=0) + self.low, self.corners.max(axis=0) + self.high


class ElementaryTransform(Protocol):
    """One step of a transform."""

    def points(self, points: Floats) -> Floats:
        """Map points (n, 3)."""

    def reach(self, reach: Reach) -> Reach:
        """Map a bound: return a bound on the images of all points within `reach`."""

    def inverse(self) -> ElementaryTransform:
        """Return the inverse step."""


@dataclass(frozen=True, eq=False)
class Affine:
    """Affine step: a matrix (4, 4) from world to world, RAS+ mm.

    Examples
    --------
    >>> Affine(np.diag([2, 1, 1, 1])).inverse().points(np.ones((1, 3))).tolist()
    [[0.5, 1.0, 1.0]]
    """

    matrix: Floats

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", check_affine(self.matrix))

    def points(self, points: Floats) -> Floats:
        """Map points (n, 3)."""
        return points @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def reach(self, reach: Reach) -> Reach:
        """Map a bound: exactly for the corners, by interval arithmetic for the widening."""
        ends = np.stack([self.matrix[:3, :3] * reach.low, self.matrix[:3, :3] * reach.high])
        return Reach(self.points(reach.corners), ends.min(axis=0).sum(axis=1), ends.max(axis=0).sum(axis=1))

    def inverse(self) -> Affine:
        """Return the inverse step."""
        return Affine(np.asarray(np.linalg.inv(self.matrix), dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Displacement:
    """Displacement step: moves each point by the value of a field; points outside the field do not move.

    Parameters
    ----------
    field : (3, z, y, x) array
        Displacements along world X, Y, Z, in RAS+ mm; their B-spline coefficients if `order` is 3.
    affine : (4, 4) array
        Matrix from indices of the field's nodes to world mm.
    order : {1, 3}
        Interpolation between nodes: 1 is linear (ITK's displacement field); 3 uses uniform cubic B-splines
        (ITK's B-spline transform).

    Examples
    --------
    >>> shift = Displacement(np.full((3, 4, 4, 4), 0.5), np.eye(4))
    >>> shift.points(np.array([[1.0, 1.0, 1.0], [9.0, 9.0, 9.0]])).tolist()
    [[1.5, 1.5, 1.5], [9.0, 9.0, 9.0]]
    """

    field: NDArray[np.floating[Any]]
    affine: Floats
    order: int = 1

    def __post_init__(self) -> None:
        if self.field.ndim != 4 or self.field.shape[0] != 3 or self.order not in (1, 3):
            raise GridError(
                "a displacement must have the shape (3, z, y, x) and order 1 or 3; got "
                f"{self.field.shape} and {self.order}"
            )
        if not np.isfinite(self.field).all():
            count = (~np.isfinite(self.field)).sum()
            raise DataError(f"displacements must be finite; got {count} that are not. Set them to 0.")
        object.__setattr__(self, "affine", check_affine(self.affine))

    @property
    def grid(self) -> Grid:
        """Return the grid of the nodes."""
        return Grid(self.field.shape[1:], self.affine)

    def points(self, points: Floats) -> Floats:
        """Map points (n, 3)."""
        inverse = np.linalg.inv(self.affine)
        index = inverse[:3, :3] @ points.T + inverse[:3, 3:]
        low, high = self._domain(_MARGIN)
        inside = np.all((index >= low - 1e-9) & (index <= high + 1e-9), axis=0)
        return points + inside[:, None] * self._displacement(index)

    def _domain(self, margin: float) -> tuple[float, Floats]:
        """Return the first and last index at which the field is defined; B-splines need their whole support."""
        first = -margin if self.order == 1 else 1.0
        return first, np.array(self.field.shape[1:])[:, None] - 1 - first

    def _displacement(self, index: Floats) -> Floats:
        """Interpolate the displacement (n, 3) at indices (3, n)."""
        options: Any = {"order": self.order, "mode": "nearest", "prefilter": False, "output": np.float64}
        return np.stack([ndimage.map_coordinates(f, index, **options) for f in self.field], axis=-1)

    def reach(self, reach: Reach) -> Reach:
        """Map a bound: widen it by the smallest and largest displacement of the nodes around it."""
        low, high = reach.box()
        ends = self.grid.index(low + _CORNERS * (high - low))
        top = np.array(self.field.shape[1:]) - 1
        first = np.floor(ends.min(axis=0)).astype(int) - self.order // 2
        last = np.ceil(ends.max(axis=0)).astype(int) + self.order // 2
        if (last < 0).any() or (first > top).any():
            return reach
        start, stop = np.clip(first, 0, top), np.clip(last, 0, top) + 1
        values = self.field[:, start[0] : stop[0], start[1] : stop[1], start[2] : stop[2]]
        # Linear and B-spline values between nodes lie between those of the nodes; outside the field they are 0.
        smallest, largest = values.min(axis=(1, 2, 3)), values.max(axis=(1, 2, 3))
        if (first < 0).any() or (last > top).any():
            smallest, largest = np.minimum(smallest, 0), np.maximum(largest, 0)
        return Reach(reach.corners, reach.low + smallest, reach.high + largest)

    def inverse(self) -> Displacement:
        """Compute the inverse by fixed-point iteration, on the same nodes (four times denser for a B-spline).

        Chen et al. 2008, Med. Phys. 35:81: ``v <- -u(x + v)``. For points that come from outside the field, the
        displacement at its border is used, because the forward displacement is discontinuous there.

        Raises
        ------
        DataError
            The field folds, so it has no inverse.
        """
        grid = self.grid if self.order == 1 else _finer(self.grid, 4)
        start = nodes(grid).reshape(-1, 3)
        inverse, error = np.zeros_like(start), np.full(len(start), np.inf)
        for _ in range(_ITERATIONS):
            active = np.flatnonzero(error > 0.1 * _TOLERANCE_VOXELS)
            if not active.size:
                break
            index = self.grid.index(start[active] + inverse[active]).T
            residual = inverse[active] + self._displacement(np.clip(index, *self._domain(0)))
            # Half a step converges even if the field stretches distances between neighbours three times.
            inverse[active] -= 0.5 * residual
            error[active] = np.linalg.norm(residual, axis=1) / grid.spacing.min()
        failed = error > _TOLERANCE_VOXELS
        if failed.mean() > 1e-3:
            raise DataError(
                f"the displacement folds: {failed.sum()} of {failed.size} nodes have no inverse within "
                f"{_TOLERANCE_VOXELS} voxels; register with more smoothing"
            )
        field = np.moveaxis(inverse.reshape(*grid.shape, 3), -1, 0)
        return Displacement(np.ascontiguousarray(field, dtype=np.float32), grid.affine)


def nodes(grid: Grid) -> Floats:
    """Return the world points of the voxel centres of a grid: (z, y, x, 3) mm.

    Examples
    --------
    >>> nodes(Grid((1, 1, 2), np.eye(4)))[0, 0, 1].tolist()
    [0.0, 0.0, 1.0]
    """
    return grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))


def _finer(grid: Grid, factor: int) -> Grid:
    """Return a grid from the first to the last node of `grid`, `factor` times as dense."""
    shape = tuple((n - 1) * factor + 1 for n in grid.shape)
    return Grid((shape[0], shape[1], shape[2]), grid.affine @ np.diag([1 / factor] * 3 + [1]))


@dataclass(frozen=True, eq=False)
class Transform:
    """Chain of steps from the world of a fixed volume to that of a moving one.

    Parameters
    ----------
    steps : sequence of Affine or Displacement
        Steps in the order in which they are applied.
    source, target : str, optional
        Names of the spaces of input and output points (fixed and moving); None is not checked.

    Examples
    --------
    >>> shift = Affine([[1, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    >>> to_scanner = Transform([shift], source="CCFv3", target="scanner")
    >>> to_scanner.points([0, 0, 0]).tolist()
    [5.0, 0.0, 0.0]
    >>> to_atlas = to_scanner.inverse()
    >>> to_atlas.source, to_atlas.then(to_scanner).points([1, 2, 3]).tolist()
    ('scanner', [1.0, 2.0, 3.0])
    """

    steps: Sequence[ElementaryTransform] = ()
    source: str | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))

    def points(self, points: ArrayLike) -> Floats:
        """Map world points (..., 3) in mm from the source space to the target space."""
        world_mm = np.asarray(points, dtype=np.float64)
        if world_mm.shape[-1:] != (3,):
            raise GridError(f"points must have the shape (..., 3) as X, Y, Z in mm; got {world_mm.shape}")
        mapped = world_mm.reshape(-1, 3)
        for step in self.steps:
            mapped = step.points(mapped)
        return mapped.reshape(world_mm.shape)

    def then(self, other: Transform) -> Transform:
        """Return the chain of this transform followed by another.

        Raises
        ------
        GridError
            The target space of this transform is not the source space of the other.
        """
        if None not in (self.target, other.source) and self.target != other.source:
            raise GridError(
                f"the second transform must map from {self.target!r}, the target of the first; got {other.source!r}"
            )
        return Transform([*self.steps, *other.steps], self.source, other.target)

    def inverse(self) -> Transform:
        """Return the inverse: exact for affine steps, by iteration for displacements.

        Raises
        ------
        DataError
            A displacement folds.
        """
        return Transform([s.inverse() for s in reversed(self.steps)], self.target, self.source)

    def affine(self) -> Floats:
        """Return the product of all affine steps as a matrix (4, 4), without the displacements."""
        matrix = np.eye(4)
        for step in self.steps:
            if isinstance(step, Affine):
                matrix = step.matrix @ matrix
        return matrix

    def between(self, grid: Grid, other: Grid) -> Transform:
        """Return the transform from voxel indices of one grid to those of another, with adjacent matrices merged."""
        steps: list[ElementaryTransform] = [Affine(grid.affine)]
        for step in (*self.steps, Affine(other.affine).inverse()):
            last = steps[-1]
            if isinstance(step, Affine) and isinstance(last, Affine):
                steps[-1] = Affine(step.matrix @ last.matrix)
            else:
                steps.append(step)
        return Transform(steps)

    def reach(self, corners: ArrayLike) -> tuple[Floats, Floats]:
        """Return bounds (3,), (3,) on the images of all points in the convex hull of `corners` (n, 3).

        Bounds are exact for affine transforms and conservative for displacements. Only the nodes of a field are
        read, not every point, so that graphs of thousands of blocks are built in seconds.
        """
        reach = Reach(np.asarray(corners, dtype=np.float64))
        for step in self.steps:
            reach = step.reach(reach)
        return reach.box()

    def on(self, grid: Grid) -> Displacement:
        """Sample the whole transform as one displacement field with its nodes at the voxels of a grid."""
        centres = nodes(grid)
        return Displacement(np.moveaxis((self.points(centres) - centres).astype(np.float32), -1, 0), grid.affine)
