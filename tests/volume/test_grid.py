"""Grids: voxel index to world and back, orientation, equality."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrhdata.errors import GridError
from mrhdata.volume.grid import Grid, nearest_axes
from tests.conftest import oblique_affine


def test_world_and_index_are_inverse():
    """index() inverts world() for any leading shape."""
    grid = Grid((4, 5, 6), oblique_affine())
    points = np.random.default_rng(0).uniform(-3, 8, (2, 7, 3))
    np.testing.assert_allclose(grid.index(grid.world(points)), points, atol=1e-12)
    assert grid.world([0, 0, 0]).tolist() == [1.0, -2.0, 3.0]


@pytest.mark.parametrize(
    ("directions", "axes", "letters"),
    [
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], (2, 1, 0), "RAS"),
        ([[0, 0, 1], [-1, 0, 0], [0, 1, 0]], (1, 0, 2), "PSR"),
        ([[0, 0, -1], [-1, 0, 0], [0, -1, 0]], (1, 0, 2), "PIL"),
        # Two axes at 45 degrees between A and S: a tie, resolved by order.
        ([[1, 0, 0], [0, 1, -1], [0, 1, 1]], (1, 2, 0), "RSP"),
    ],
)
def test_nearest_axes_and_orientation(directions, axes, letters):
    """Each array axis is assigned once to S, A or R, and the letters name its direction."""
    assert nearest_axes(directions) == axes
    affine = np.eye(4)
    affine[:3, :3] = directions
    assert Grid((1, 1, 1), affine).orientation == letters


@given(st.permutations(range(3)), st.tuples(*[st.sampled_from([-1, 1])] * 3))
def test_all_48_orientations_have_their_own_letters(order, signs):
    """Each signed permutation has its own three letters."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) * signs)[:, order]
    pairs = ["LR", "PA", "IS"]
    expected = "".join(pairs[axis][int(signs[axis] > 0)] for axis in order)
    assert Grid((2, 2, 2), affine).orientation == expected


def test_same_as_has_a_tolerance_in_voxels():
    """The limit is a thousandth of a voxel at the farthest corner; other shapes are never equal."""
    affine = oblique_affine(spacing=(0.1, 0.1, 0.1))
    moved = affine.copy()
    moved[0, 3] += 0.9e-4
    assert Grid((9, 9, 9), affine).same_as(Grid((9, 9, 9), moved))
    moved[0, 3] += 0.3e-4
    assert not Grid((9, 9, 9), affine).same_as(Grid((9, 9, 9), moved))
    assert Grid((9, 9, 9), affine).same_as(Grid((9, 9, 9), moved), tolerance_mm=1e-3)
    assert not Grid((9, 9, 9), affine).same_as(Grid((9, 9, 8), affine))


@pytest.mark.parametrize(
    "affine",
    [np.eye(3), np.full((4, 4), np.nan), np.zeros((4, 4)), np.diag([1, 1, 0, 1]), np.eye(4)[[0, 0, 2, 3]]],
)
def test_invalid_affines_raise(affine):
    """Wrong shape, values that are not finite, a wrong last row and dependent axes raise GridError."""
    with pytest.raises(GridError):
        Grid((2, 2, 2), affine)
