"""Peaks are those of a plain search, and the same in parts as in one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from mrhdata.errors import DataError
from mrhdata.inference.peaks import Peaks, find_peaks


def slow(scores, spacing, radius, threshold):
    """Every voxel against every other within the radius: higher, or as high and earlier, wins."""
    places = np.argwhere(np.isfinite(scores))
    values = scores.ravel()
    apart = np.linalg.norm((places[:, None] - places[None]) * np.array(spacing), axis=2)
    order = np.arange(len(places))
    beats = (values[None] > values[:, None]) | ((values[None] == values[:, None]) & (order[None] < order[:, None]))
    lost = (beats & (apart <= radius * (1 + 1e-9))).any(axis=1)
    return places[~lost & (values >= threshold)]


@settings(max_examples=60)
@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    levels=st.integers(1, 9),
    radius=st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.2]),
    spacing=st.sampled_from([(1, 1, 1), (2.5, 1, 1), (1, 2, 0.7)]),
    seed=st.integers(0, 10**6),
)
def test_as_a_plain_search(shape, levels, radius, spacing, seed):
    """Also where many values are equal."""
    scores = np.random.default_rng(seed).integers(0, levels, shape) / levels
    found = find_peaks(scores, spacing, Peaks(0.3, radius))
    assert found.voxel.tolist() == slow(scores.astype(np.float32), spacing, radius, 0.3).tolist()
    assert np.array_equal(found.score, scores.astype(np.float32)[tuple(found.voxel.T)])


def test_parts_give_what_the_whole_gives():
    """Bit for bit, smoothed, with a halo about each part."""
    scores = gaussian_filter(np.random.default_rng(0).random((14, 17, 23)), 1.2).astype(np.float32)
    scores = np.round(scores * 40) / 40
    peaks, spacing = Peaks(0.45, 2.2, smooth_mm=0.9), (1.0, 0.8, 0.6)
    whole = find_peaks(scores, spacing, peaks)
    assert len(whole.voxel) > 15
    halo = peaks.halo(spacing)
    padded = np.pad(scores, [(h, h) for h in halo], mode="edge")
    beyond = np.pad(np.zeros(scores.shape, bool), [(h, h) for h in halo], constant_values=True)
    rows = []
    for low in np.ndindex(3, 3, 3):
        start = [i * -(-n // 3) for i, n in zip(low, scores.shape, strict=True)]
        stop = [min(s + -(-n // 3), n) for s, n in zip(start, scores.shape, strict=True)]
        box = tuple(slice(a, b + 2 * h) for a, b, h in zip(start, stop, halo, strict=True))
        part = find_peaks(padded[box], spacing, peaks, halo=True, outside=beyond[box])
        rows += [
            (*(v + start), *c, s, n) for v, c, s, n in zip(part.voxel, part.shift, part.score, part.size, strict=True)
        ]
    every = np.array(sorted(rows))
    assert np.array_equal(every[:, :3], whole.voxel)
    assert np.array_equal(every[:, 3:6], whole.shift)
    assert np.array_equal(every[:, 6], whole.score)
    assert np.array_equal(every[:, 7], whole.size)


def test_centroids_below_a_voxel():
    """A Gaussian spot between voxels is found within a twentieth of one."""
    z, y, x = np.mgrid[:15, :15, :15]
    spot = np.exp(-((z - 7.3) ** 2 + (y - 6.6) ** 2 + (x - 7.0) ** 2) / 8)
    found = find_peaks(spot, (1, 1, 1), Peaks(0.5, 5))
    assert found.centre[0] == pytest.approx([7.3, 6.6, 7.0], abs=0.05)


def test_two_that_touch():
    """Two spots as near as the radius allows stay two, nearer ones become one."""
    z, y, x = np.mgrid[:11, :11, :24]
    spots = [np.exp(-((z - 5) ** 2 + (y - 5) ** 2 + (x - at) ** 2) / 5) for at in (8, 14)]
    both = np.maximum(*spots)
    assert len(find_peaks(both, (1, 1, 1), Peaks(0.5, 5.5)).voxel) == 2
    assert len(find_peaks(both, (1, 1, 1), Peaks(0.5, 6.0)).voxel) == 1


def test_refusals():
    """With both values and what to do."""
    with pytest.raises(DataError, match=r"radius above 0 mm.*-1"):
        Peaks(0.5, radius_mm=-1)
    with pytest.raises(DataError, match="not finite"):
        find_peaks(np.full((2, 2, 2), np.nan), (1, 1, 1), Peaks(0.5, 1))


def test_nothing_found():
    """An empty answer of the right shape."""
    found = find_peaks(np.zeros((3, 4, 5)), (1, 1, 1), Peaks(0.5, 2))
    assert found.voxel.shape == found.centre.shape == (0, 3)
