"""Transforms: chains of steps that map world points to world points, all in RAS+ millimetres. NumPy only.

As in ITK, the transform that a registration finds maps points of the *fixed* space to points of the
*moving* space: to fill a voxel of the fixed grid one must know where to look. Voxels are therefore carried
from moving to fixed by the transform itself, and points from moving to fixed by its inverse.
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

#: Points that a field holds for sure beyond its outermost nodes, in voxels, as in ITK.
_RIM = 0.5
_CORNERS = np.array(list(np.ndindex(2, 2, 2)), dtype=np.float64)
#: Fixed-point iterations of an inverse, and how exact it must be, in voxels of the field.
_ITERATIONS, _EXACT_VOXELS = 60, 0.1


@dataclass(frozen=True)
class Reach:
    """A bound on where points go: the hull of `corners` (n, 3), widened by `low` and `high` (3,)."""

    corners: Floats
    low: Floats = field(default_factory=lambda: np.zeros(3))
    high: Floats = field(default_factory=lambda: np.zeros(3))

    def box(self) -> tuple[Floats, Floats]:
        """Lowest and highest coordinates."""
        return self.corners.min(axis=0) + self.low, self.corners.max(axis=0) + self.high


class Step(Protocol):
    """What a transform is made of."""

    def points(self, points: Floats) -> Floats:
        """Where points (n, 3) go."""

    def reach(self, reach: Reach) -> Reach:
        """Bound on where points within a bound go."""

    def inverse(self) -> Step:
        """The way back."""


@dataclass(frozen=True, eq=False)
class Affine:
    """A matrix (4, 4) from world to world, RAS+ mm.

    Examples
    --------
    >>> Affine(np.diag([2, 1, 1, 1])).inverse().points(np.ones((1, 3))).tolist()
    [[0.5, 1.0, 1.0]]
    """

    matrix: Floats

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", check_affine(self.matrix))

    def points(self, points: Floats) -> Floats:
        """Where points (n, 3) go."""
        return points @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def reach(self, reach: Reach) -> Reach:
        """Exact for the corners; the widening goes through interval arithmetic."""
        ends = np.stack([self.matrix[:3, :3] * reach.low, self.matrix[:3, :3] * reach.high])
        return Reach(self.points(reach.corners), ends.min(axis=0).sum(axis=1), ends.max(axis=0).sum(axis=1))

    def inverse(self) -> Affine:
        """The way back."""
        return Affine(np.asarray(np.linalg.inv(self.matrix), dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Displacement:
    """A field of displacements: a point goes to itself plus what the field holds there; outside, nowhere.

    Parameters
    ----------
    field : (3, z, y, x) array
        Displacement along world X, Y, Z, mm, RAS+; coefficients of it where `order` is 3.
    affine : (4, 4) array
        Index of the field's nodes to world mm.
    order : {1, 3}
        1 interpolates linearly between nodes (ITK's displacement field); 3 takes the field as
        coefficients of uniform cubic B-splines (ITK's B-spline transform).

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
                f"a displacement has the shape (3, z, y, x) and order 1 or 3, not {self.field.shape} and {self.order}"
            )
        if not np.isfinite(self.field).all():
            raise DataError(f"{(~np.isfinite(self.field)).sum()} displacements are not finite; set them to 0")
        object.__setattr__(self, "affine", check_affine(self.affine))

    @property
    def grid(self) -> Grid:
        """Where the nodes lie."""
        return Grid(self.field.shape[1:], self.affine)

    def points(self, points: Floats) -> Floats:
        """Where points (n, 3) go."""
        inverse = np.linalg.inv(self.affine)
        index = inverse[:3, :3] @ points.T + inverse[:3, 3:]
        low, high = self._held(_RIM)
        inside = np.all((index >= low - 1e-9) & (index <= high + 1e-9), axis=0)
        return points + inside[:, None] * self._shift(index)

    def _held(self, rim: float) -> tuple[float, Floats]:
        """First and last index that the field speaks about: those whose support is whole, for B-splines."""
        margin = -rim if self.order == 1 else 1.0
        return margin, np.array(self.field.shape[1:])[:, None] - 1 - margin

    def _shift(self, index: Floats) -> Floats:
        """Displacement (n, 3) at indices (3, n)."""
        how: Any = {"order": self.order, "mode": "nearest", "prefilter": False, "output": np.float64}
        return np.stack([ndimage.map_coordinates(f, index, **how) for f in self.field], axis=-1)

    def reach(self, reach: Reach) -> Reach:
        """Widened by the smallest and the largest displacement of the nodes near by."""
        low, high = reach.box()
        ends = self.grid.index(low + _CORNERS * (high - low))
        top = np.array(self.field.shape[1:]) - 1
        first = np.floor(ends.min(axis=0)).astype(int) - self.order // 2
        last = np.ceil(ends.max(axis=0)).astype(int) + self.order // 2
        if (last < 0).any() or (first > top).any():
            return reach
        near = np.clip(first, 0, top), np.clip(last, 0, top) + 1
        held = self.field[:, near[0][0] : near[1][0], near[0][1] : near[1][1], near[0][2] : near[1][2]]
        # Values between nodes lie between those of the nodes, for linear and B-spline weights alike;
        # beyond the rim they are 0.
        least, most = held.min(axis=(1, 2, 3)), held.max(axis=(1, 2, 3))
        if (first < 0).any() or (last > top).any():
            least, most = np.minimum(least, 0), np.maximum(most, 0)
        return Reach(reach.corners, reach.low + least, reach.high + most)

    def inverse(self) -> Displacement:
        """The way back, on the same nodes (four times as many along a B-spline's axes), by fixed-point iteration.

        Chen et al. 2008, Med. Phys. 35:81: ``v <- -u(x + v)``. Where a point comes from
        beyond the field, what the field holds at its rim is taken: the way there is not smooth across it.

        Raises
        ------
        DataError
            The field folds, and has no inverse.
        """
        grid = self.grid if self.order == 1 else _finer(self.grid, 4)
        start = nodes(grid).reshape(-1, 3)
        back, off = np.zeros_like(start), np.full(len(start), np.inf)
        for _ in range(_ITERATIONS):
            left = np.flatnonzero(off > 0.1 * _EXACT_VOXELS)
            if not left.size:
                break
            index = self.grid.index(start[left] + back[left]).T
            step = back[left] + self._shift(np.clip(index, *self._held(0)))
            # Half a step converges also where neighbours are pulled to three times their distance.
            back[left] -= 0.5 * step
            off[left] = np.linalg.norm(step, axis=1) / grid.spacing.min()
        wrong = off > _EXACT_VOXELS
        if wrong.mean() > 1e-3:
            raise DataError(
                f"the displacement folds: {wrong.sum()} of {wrong.size} nodes have no inverse within "
                f"{_EXACT_VOXELS} voxels; register with more smoothing"
            )
        moved = np.moveaxis(back.reshape(*grid.shape, 3), -1, 0)
        return Displacement(np.ascontiguousarray(moved, dtype=np.float32), grid.affine)


def nodes(grid: Grid) -> Floats:
    """World positions of the voxel centres of a grid: (z, y, x, 3) mm.

    Examples
    --------
    >>> nodes(Grid((1, 1, 2), np.eye(4)))[0, 0, 1].tolist()
    [0.0, 0.0, 1.0]
    """
    return grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))


def _finer(grid: Grid, factor: int) -> Grid:
    """Nodes between the first and the last, `factor` times as dense."""
    shape = tuple((n - 1) * factor + 1 for n in grid.shape)
    return Grid((shape[0], shape[1], shape[2]), grid.affine @ np.diag([1 / factor] * 3 + [1]))


@dataclass(frozen=True, eq=False)
class Transform:
    """Steps, one after the other, from the world of a fixed volume to that of a moving one.

    Parameters
    ----------
    steps : sequence of Affine or Displacement
        The first is applied first.
    source, target : str, optional
        Names of the spaces of the points that go in and come out (fixed, moving); not checked where None.

    Examples
    --------
    >>> shift = Affine([[1, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    >>> there = Transform([shift], source="CCFv3", target="scanner")
    >>> there.points([0, 0, 0]).tolist()
    [5.0, 0.0, 0.0]
    >>> back = there.inverse()
    >>> back.source, back.then(there).points([1, 2, 3]).tolist()
    ('scanner', [1.0, 2.0, 3.0])
    """

    steps: Sequence[Step] = ()
    source: str | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))

    def points(self, points: ArrayLike) -> Floats:
        """World points (..., 3) mm of the source space, as world points of the target space."""
        given = np.asarray(points, dtype=np.float64)
        if given.shape[-1:] != (3,):
            raise GridError(f"points have the shape (..., 3) as X, Y, Z in mm, not {given.shape}")
        moved = given.reshape(-1, 3)
        for step in self.steps:
            moved = step.points(moved)
        return moved.reshape(given.shape)

    def then(self, other: Transform) -> Transform:
        """Both, this one first.

        Raises
        ------
        GridError
            This one leads to another space than the other one starts from.
        """
        if None not in (self.target, other.source) and self.target != other.source:
            raise GridError(f"the first transform leads to {self.target!r}, the second starts from {other.source!r}")
        return Transform([*self.steps, *other.steps], self.source, other.target)

    def inverse(self) -> Transform:
        """The way back: exact for affine steps, by iteration for displacements.

        Raises
        ------
        DataError
            A displacement folds.
        """
        return Transform([s.inverse() for s in reversed(self.steps)], self.target, self.source)

    def affine(self) -> Floats:
        """All affine steps as one matrix (4, 4): what is left without displacements."""
        matrix = np.eye(4)
        for step in self.steps:
            if isinstance(step, Affine):
                matrix = step.matrix @ matrix
        return matrix

    def between(self, grid: Grid, other: Grid) -> Transform:
        """From the voxel indices of one grid to those of another, neighbouring matrices made one."""
        steps: list[Step] = [Affine(grid.affine)]
        for step in (*self.steps, Affine(other.affine).inverse()):
            last = steps[-1]
            if isinstance(step, Affine) and isinstance(last, Affine):
                steps[-1] = Affine(step.matrix @ last.matrix)
            else:
                steps.append(step)
        return Transform(steps)

    def reach(self, corners: ArrayLike) -> tuple[Floats, Floats]:
        """Lowest and highest coordinates (3,) of all that lies within the hull of `corners` (n, 3).

        Exact for affine transforms, on the safe side for displacements. It costs a look at the nodes, not
        one at every point, so that graphs over thousands of blocks are planned in seconds.
        """
        reach = Reach(np.asarray(corners, dtype=np.float64))
        for step in self.steps:
            reach = step.reach(reach)
        return reach.box()

    def on(self, grid: Grid) -> Displacement:
        """The whole transform as one displacement field with its nodes at the voxels of a grid."""
        here = nodes(grid)
        return Displacement(np.moveaxis((self.points(here) - here).astype(np.float32), -1, 0), grid.affine)
