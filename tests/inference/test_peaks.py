"""Peaks equal those of an exhaustive search, and do not depend on the parts that are searched."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from mrhdata.errors import DataError, ParameterError
from mrhdata.inference.peaks import Peaks, find_peaks


def exhaustive_search(scores, spacing, radius, threshold):
    """Compare every voxel with every other within the radius: the higher, or of equal ones the earlier, wins."""
    voxels = np.argwhere(np.isfinite(scores))
    values = scores.ravel()
    distance = np.linalg.norm((voxels[:, None] - voxels[None]) * np.array(spacing), axis=2)
    order = np.arange(len(voxels))
    beats = (values[None] > values[:, None]) | ((values[None] == values[:, None]) & (order[None] < order[:, None]))
    beaten = (beats & (distance <= radius * (1 + 1e-9))).any(axis=1)
    return voxels[~beaten & (values >= threshold)]


@settings(max_examples=60)
@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    levels=st.integers(1, 9),
    radius=st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.2]),
    spacing=st.sampled_from([(1, 1, 1), (2.5, 1, 1), (1, 2, 0.7)]),
    seed=st.integers(0, 10**6),
)
def test_peaks_equal_an_exhaustive_search(shape, levels, radius, spacing, seed):
    """Also if many values are equal."""
    scores = np.random.default_rng(seed).integers(0, levels, shape) / levels
    table = find_peaks(scores, spacing, Peaks(0.3, radius))
    assert table.voxel.tolist() == exhaustive_search(scores.astype(np.float32), spacing, radius, 0.3).tolist()
    assert np.array_equal(table.score, scores.astype(np.float32)[tuple(table.voxel.T)])


def test_peaks_of_parts_equal_those_of_the_whole():
    """Bit for bit, with smoothing and a halo around each part."""
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
    joined = np.array(sorted(rows))
    assert np.array_equal(joined[:, :3], whole.voxel)
    assert np.array_equal(joined[:, 3:6], whole.shift)
    assert np.array_equal(joined[:, 6], whole.score)
    assert np.array_equal(joined[:, 7], whole.size)


def test_centroid_has_subvoxel_accuracy():
    """A Gaussian spot between voxels is located within 0.05 voxels."""
    z, y, x = np.mgrid[:15, :15, :15]
    spot = np.exp(-((z - 7.3) ** 2 + (y - 6.6) ** 2 + (x - 7.0) ** 2) / 8)
    table = find_peaks(spot, (1, 1, 1), Peaks(0.5, 5))
    assert table.centre[0] == pytest.approx([7.3, 6.6, 7.0], abs=0.05)


def test_radius_separates_two_spots():
    """Two spots further apart than the radius stay two, nearer ones become one."""
    z, y, x = np.mgrid[:11, :11, :24]
    spots = [np.exp(-((z - 5) ** 2 + (y - 5) ** 2 + (x - centre) ** 2) / 5) for centre in (8, 14)]
    both = np.maximum(*spots)
    assert len(find_peaks(both, (1, 1, 1), Peaks(0.5, 5.5)).voxel) == 2
    assert len(find_peaks(both, (1, 1, 1), Peaks(0.5, 6.0)).voxel) == 1


def test_invalid_criteria_and_scores_are_refused():
    """A radius below 0, and scores that are not finite."""
    with pytest.raises(ParameterError, match=r"radius_mm above 0.*-1"):
        Peaks(0.5, radius_mm=-1)
    with pytest.raises(DataError, match="not finite"):
        find_peaks(np.full((2, 2, 2), np.nan), (1, 1, 1), Peaks(0.5, 1))


def test_volume_without_peaks_gives_an_empty_table():
    """With arrays of the right shape."""
    table = find_peaks(np.zeros((3, 4, 5)), (1, 1, 1), Peaks(0.5, 2))
    assert table.voxel.shape == table.centre.shape == (0, 3)
