"""Arithmetic of positions, compared with counting."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import chisquare

from mrhdata.errors import GridError, ParameterError
from mrhdata.patching.positions import about, centre_voxels, fraction_inside, reach, shares, shell, strided, uniform
from tests.conftest import FULL

AXES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3)


@settings(max_examples=500 if FULL else 100)
@given(AXES)
def test_strided_patches_cover_every_voxel_and_fit(axes):
    """Strides up to the patch length leave no gap; positions are distinct, in C order and inside the volume."""
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
    """The summed-area table yields the means of plain slices."""
    mask = np.random.default_rng(seed).random((4, 5, 3)) > 0.5
    positions = strided(mask.shape, patch, (1, 1, 1))
    expected = [mask[tuple(slice(a, a + p) for a, p in zip(c, patch, strict=True))].mean() for c in positions]
    np.testing.assert_allclose(fraction_inside(mask, positions, patch), expected)


def test_centres_of_odd_and_even_patches():
    """The centre is the middle voxel, or the one before the middle for an even length."""
    assert centre_voxels(np.array([[0, 0, 5]]), (1, 3, 4)).tolist() == [[0, 1, 6]]


@pytest.mark.parametrize(
    ("patch", "stride", "error"),
    [((4,), (1,), GridError), ((0,), (1,), ParameterError), ((2,), (0,), ParameterError)],
)
def test_impossible_patches_and_strides_raise_errors(patch, stride, error):
    """A patch longer than the volume, an empty patch, and a stride of 0."""
    with pytest.raises(error):
        strided((3,), patch, stride)


@settings(max_examples=100 if FULL else 20)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), min_size=1, max_size=3), st.integers(0, 99))
def test_uniform_patches_fit_or_have_their_centre_inside(axes, seed):
    """A patch that fits lies inside; of a patch longer than the volume the middle voxel does."""
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
    """Exactly in the middle with overhang; otherwise at the nearest position at which the patch fits."""
    shape, patch = zip(*axes, strict=True)
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, len(axes))
    np.testing.assert_array_equal(centre_voxels(about(voxels, shape, patch, inside=False), patch), voxels)
    moved = about(voxels, shape, patch)
    for axis, (n, p) in enumerate(axes):
        allowed = np.arange(max(1, n - p + 1))
        wanted = voxels[:, axis] - (p - 1) // 2
        nearest = allowed[np.abs(allowed - wanted[:, None]).argmin(axis=1)]
        np.testing.assert_array_equal(moved[:, axis], nearest)


@settings(max_examples=60 if FULL else 15)
@given(st.integers(0, 2**16), st.sampled_from([(0.0, 1.0), (0.5, 0.6), (2.0, 5.0)]))
def test_shell_samples_keep_least_and_greatest_distance(seed, distance):
    """Samples are at least the least distance from all points, and at most the greatest from one."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-4, 4, (5, 3))
    distances = cdist(shell(points, 40, distance, rng), points)
    assert distances.shape == (40, 5)
    assert distances.min() >= distance[0] - 1e-6
    assert distances.min(axis=1).max() <= distance[1] + 1e-6


def test_shell_samples_have_uniform_density():
    """The fraction of samples within a radius equals the fraction of the volume."""
    distance = np.linalg.norm(shell(np.zeros((1, 3)), 20_000, (1.0, 2.0), np.random.default_rng(0)), axis=1)
    edges = np.cbrt(np.linspace(1, 8, 11))
    assert chisquare(np.histogram(distance, edges)[0]).pvalue > 1e-4


@settings(max_examples=200 if FULL else 40)
@given(st.integers(0, 200), st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any))
def test_shares_are_the_nearest_whole_numbers(n, weights):
    """Shares sum to n, each differs from the exact value by less than 1, and the largest remainders are rounded up."""
    counts = shares(n, weights)
    exact = [Fraction(n * w, sum(weights)) for w in weights]
    assert sum(counts) == n
    assert all(abs(f - e) < 1 for f, e in zip(counts, exact, strict=True))
    up = [e % 1 for f, e in zip(counts, exact, strict=True) if f > e]
    down = [e % 1 for f, e in zip(counts, exact, strict=True) if f <= e and e % 1]
    assert not up or not down or min(up) >= max(down)


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [np.nan], [np.inf]])
def test_invalid_weights_raise_parameter_error(weights):
    """Weights that are missing, all zero, negative, or not finite."""
    with pytest.raises(ParameterError, match="weights must be finite, 0 or more, and not all 0"):
        shares(3, weights)


@settings(max_examples=300 if FULL else 60)
@given(st.integers(1, 9), st.integers(1, 14), st.data(), st.sampled_from(["constant", "edge", "reflect"]))
def test_reach_equals_the_voxels_of_numpy_pad(n, patch, data, padding):
    """The first and last voxel of a patch that touches the volume come from padded voxel numbers."""
    start = data.draw(st.integers(1 - patch, n - 1))
    mode = "reflect" if padding == "reflect" else "edge"
    numbers = np.pad(np.arange(n), 30, mode=mode)[30 + start : 30 + start + patch]
    low, high = reach(np.array([[start]]), (patch,), (n,), padding)
    assert (low.item(), high.item()) == (numbers.min(), numbers.max() + 1)


def test_reach_without_padding_is_the_patch():
    """The first voxel of a patch, and the voxel after its last."""
    low, high = reach(np.array([[2, 0]]), (3, 1), (9, 9), None)
    assert (low.tolist(), high.tolist()) == ([[2, 0]], [[5, 1]])
