"""Positions are arithmetic: checked against counting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrhdata.errors import GridError
from mrhdata.sampling import centre_voxels, fraction_inside, strided

from .conftest import FULL

AXES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3)


@settings(max_examples=500 if FULL else 100, deadline=None)
@given(AXES)
def test_every_voxel_is_covered_and_every_patch_fits(axes):
    """Strides up to the patch leave no gap; positions are distinct, in C order, inside."""
    shape, patch, stride = zip(*((max(n, p), p, min(s, p)) for n, p, s in axes), strict=True)
    positions = strided(shape, patch, stride)
    covered = np.zeros(shape, dtype=int)
    for position in positions:
        box = tuple(slice(a, a + p) for a, p in zip(position, patch, strict=True))
        assert covered[box].shape == patch
        covered[box] += 1
    assert (covered > 0).all()
    assert len(np.unique(positions, axis=0)) == len(positions)
    np.testing.assert_array_equal(positions, sorted(map(tuple, positions)))


@settings(max_examples=300 if FULL else 60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)))
def test_fraction_inside_is_the_mean_of_the_mask(seed, patch):
    """The summed-area table gives what slicing gives."""
    mask = np.random.default_rng(seed).random((4, 5, 3)) > 0.5
    positions = strided(mask.shape, patch, (1, 1, 1))
    expected = [mask[tuple(slice(a, a + p) for a, p in zip(c, patch, strict=True))].mean() for c in positions]
    np.testing.assert_allclose(fraction_inside(mask, positions, patch), expected)


def test_centres_of_odd_and_even_patches():
    """The middle voxel, or the one before the middle."""
    assert centre_voxels(np.array([[0, 0, 5]]), (1, 3, 4)).tolist() == [[0, 1, 6]]


@pytest.mark.parametrize(("patch", "stride"), [((4,), (1,)), ((0,), (1,)), ((2,), (0,))])
def test_impossible_patches_are_refused(patch, stride):
    """Too large, empty, or standing still."""
    with pytest.raises(GridError):
        strided((3,), patch, stride)
