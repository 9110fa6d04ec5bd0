"""Positions are arithmetic: checked against counting."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import chisquare

from mrhdata.errors import DataError, GridError
from mrhdata.patching.positions import about, centre_voxels, fraction_inside, reach, shares, shell, strided, uniform
from tests.conftest import FULL

AXES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3)


@settings(max_examples=500 if FULL else 100)
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


@settings(max_examples=300 if FULL else 60)
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


@settings(max_examples=100 if FULL else 20)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), min_size=1, max_size=3), st.integers(0, 99))
def test_uniform_patches_fit_or_have_their_centre_inside(axes, seed):
    """Where a patch fits it lies inside; where it is longer than the volume its middle voxel does."""
    shape, patch = zip(*axes, strict=True)
    positions = uniform(shape, patch, 200, np.random.default_rng(seed))
    centres = centre_voxels(positions, patch)
    assert positions.shape == (200, len(axes))
    for axis, (n, p) in enumerate(axes):
        if p <= n:
            assert set(positions[:, axis]) <= set(range(n - p + 1))
        else:
            assert set(centres[:, axis]) <= set(range(n))


@settings(max_examples=100 if FULL else 20)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), min_size=1, max_size=3))
def test_patches_about_voxels_have_them_in_the_middle(axes):
    """Exactly so where they may overhang; else at the nearest place at which the patch fits."""
    shape, patch = zip(*axes, strict=True)
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, len(axes))
    np.testing.assert_array_equal(centre_voxels(about(voxels, shape, patch, inside=False), patch), voxels)
    moved = about(voxels, shape, patch)
    for axis, (n, p) in enumerate(axes):
        places = np.arange(max(1, n - p + 1))
        wanted = voxels[:, axis] - (p - 1) // 2
        nearest = places[np.abs(places - wanted[:, None]).argmin(axis=1)]
        np.testing.assert_array_equal(moved[:, axis], nearest)


@settings(max_examples=60 if FULL else 15)
@given(st.integers(0, 2**16), st.sampled_from([(0.0, 1.0), (0.5, 0.6), (2.0, 5.0)]))
def test_shells_keep_their_distances(seed, distance):
    """No nearer than the least to any point, no farther than the greatest from one."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-4, 4, (5, 3))
    far = cdist(shell(points, 40, distance, rng), points)
    assert far.shape == (40, 5)
    assert far.min() >= distance[0] - 1e-6
    assert far.min(axis=1).max() <= distance[1] + 1e-6


def test_shells_are_even():
    """Places have one density: the share within a radius is that of the volume."""
    distance = np.linalg.norm(shell(np.zeros((1, 3)), 20_000, (1.0, 2.0), np.random.default_rng(0)), axis=1)
    edges = np.cbrt(np.linspace(1, 8, 11))
    assert chisquare(np.histogram(distance, edges)[0]).pvalue > 1e-4


@settings(max_examples=200 if FULL else 40)
@given(st.integers(0, 200), st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any))
def test_shares_are_the_nearest_whole_numbers(n, weights):
    """They sum to n, none is a whole one off, and the largest remainders are rounded up."""
    found = shares(n, weights)
    exact = [Fraction(n * w, sum(weights)) for w in weights]
    assert sum(found) == n
    assert all(abs(f - e) < 1 for f, e in zip(found, exact, strict=True))
    up = [e % 1 for f, e in zip(found, exact, strict=True) if f > e]
    down = [e % 1 for f, e in zip(found, exact, strict=True) if f <= e and e % 1]
    assert not up or not down or min(up) >= max(down)


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [np.nan], [np.inf]])
def test_weights_that_are_none_are_refused(weights):
    """None, all zero, negative, not finite."""
    with pytest.raises(DataError, match="weights are numbers from 0 up"):
        shares(3, weights)


@settings(max_examples=300 if FULL else 60)
@given(st.integers(1, 9), st.integers(1, 14), st.data(), st.sampled_from(["constant", "edge", "reflect"]))
def test_reach_is_what_numpy_pads_with(n, patch, data, padding):
    """First and last voxel of a patch that touches the volume, from padded voxel numbers."""
    start = data.draw(st.integers(1 - patch, n - 1))
    mode = "reflect" if padding == "reflect" else "edge"
    numbers = np.pad(np.arange(n), 30, mode=mode)[30 + start : 30 + start + patch]
    low, high = reach(np.array([[start]]), (patch,), (n,), padding)
    assert (low.item(), high.item()) == (numbers.min(), numbers.max() + 1)


def test_without_padding_patches_reach_over_themselves():
    """First voxel, and first plus length less one."""
    low, high = reach(np.array([[2, 0]]), (3, 1), (9, 9), None)
    assert (low.tolist(), high.tolist()) == ([[2, 0]], [[5, 1]])
