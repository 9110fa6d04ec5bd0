"""Detection scores: matchings against brute force, scores against values computed by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from mrhdata.errors import DataError, GridError
from mrhdata.metrics import matching
from mrhdata.metrics.detection import Detection, best_threshold, count_errors, curve, detection, match, recall_only
from tests.conftest import FULL

POINTS = st.lists(st.tuples(*[st.integers(0, 3)] * 3), max_size=6)


def best_by_brute_force(truth, found, radius):
    """Return the largest number of pairs, and for it the smallest sum of distances, over all matchings."""
    if not (truth and found):
        return 0, 0.0
    distances = cdist(truth, found)
    if len(truth) > len(found):
        distances = distances.T
    best = (0, 0.0)
    for columns in itertools.permutations(range(distances.shape[1]), distances.shape[0]):
        paired = [d for d in distances[range(distances.shape[0]), columns] if d <= radius]
        best = min(best, (-len(paired), sum(paired)))
    return -best[0], best[1]


@settings(max_examples=1000 if FULL else 150)
@given(POINTS, POINTS, st.sampled_from([0.5, 1.0, 1.5, 2.0, 9.0]))
def test_match_is_optimal_against_brute_force(truth, found, radius):
    """Points on a small lattice have many ties and may coincide."""
    pairs = match(truth, found, radius)
    count, total = best_by_brute_force(truth, found, radius)
    assert len(pairs.truth) == count
    assert pairs.distance_mm.sum() == pytest.approx(total)
    assert len(set(pairs.truth)) == len(set(pairs.found)) == count
    if count:
        assert (np.diff(pairs.truth) > 0).all()
        direct = np.linalg.norm(np.array(truth)[pairs.truth] - np.array(found)[pairs.found], axis=1)
        np.testing.assert_allclose(pairs.distance_mm, direct)
        assert direct.max() <= radius


@pytest.mark.parametrize("batch_cells", [1, 50, 10**9])
@pytest.mark.parametrize("neighbours", [0.5, 2, 6, 20])
def test_match_of_large_components_agrees_with_the_hungarian_method(monkeypatch, batch_cells, neighbours):
    """With several neighbours most points are connected; the batch size does not change the result."""
    monkeypatch.setattr(matching, "_BATCH_CELLS", batch_cells)
    rng = np.random.default_rng(0)
    truth, found = rng.random((400, 3)), rng.random((350, 3))
    radius = (neighbours / 400 / (4 / 3 * np.pi)) ** (1 / 3)
    distances = cdist(truth, found)
    cost = np.where(distances <= radius, distances, 1000 * radius)
    rows, columns = linear_sum_assignment(cost)
    near = distances[rows, columns] <= radius
    pairs = match(truth, found, radius)
    assert len(pairs.truth) == near.sum()
    assert pairs.distance_mm.sum() == pytest.approx(distances[rows, columns][near].sum())


def test_match_recovers_100000_jittered_cells():
    """Jittered and shuffled cells are matched to themselves if the jitter is small against the spacing."""
    rng = np.random.default_rng(0)
    lattice = np.stack(np.meshgrid(*[np.arange(47.0)] * 3), axis=-1).reshape(-1, 3)[:100_000]
    order = rng.permutation(len(lattice))
    found = (lattice + rng.uniform(-0.25, 0.25, lattice.shape))[order]
    pairs = match(lattice, found[:90_000], radius_mm=0.45)
    assert len(pairs.truth) == 90_000
    np.testing.assert_array_equal(order[pairs.found], pairs.truth)


def test_detection_scores_by_hand():
    """Three of four cells are detected, with two false positives."""
    truth = [[0, 0, 0], [10, 0, 0], [20, 0, 0], [30, 0, 0]]
    found = [[0.5, 0, 0], [10, 1, 0], [20, 0, 0], [31.5, 0, 0], [50, 0, 0]]
    scores = detection(truth, found, radius_mm=1)
    assert scores == Detection(3, 2, 1, 0.5)
    assert (scores.precision, scores.recall, scores.count_error) == (0.6, 0.75, 1)
    assert scores.f1 == pytest.approx(2 * 0.6 * 0.75 / 1.35)
    assert scores.relative_count_error == 0.25


def test_second_detection_of_a_cell_is_a_false_positive():
    """Matching is one to one."""
    scores = detection([[0, 0, 0]], [[0.1, 0, 0], [0, 0.2, 0]], radius_mm=1)
    assert scores == Detection(1, 1, 0, 0.1)


def test_detection_scores_without_cells_or_detections():
    """Shares with a denominator of 0 are NaN, as documented."""
    empty, one = np.empty((0, 3)), np.zeros((1, 3))
    neither, missed, false = (detection(a, b, 1) for a, b in ((empty, []), (one, empty), ([], one)))
    assert np.isnan([neither.precision, neither.recall, neither.relative_count_error]).all()
    assert (neither.f1, neither.count_error) == (1, 0)
    assert (missed.recall, missed.f1, missed.count_error, missed.relative_count_error) == (0, 0, -1, -1)
    assert np.isnan([missed.precision, missed.median_distance_mm]).all()
    assert (false.precision, false.f1, false.count_error) == (0, 0, 1)
    assert np.isnan([false.recall, false.relative_count_error]).all()


def test_detection_matches_pairs_across_the_border_of_a_box():
    """Cropping before matching would turn both pairs across the border into misses or false positives."""
    truth = [[0.9, 0, 0], [1.1, 5, 0], [0.5, 9, 0], [3.0, 0, 0]]
    found = [[1.05, 0, 0], [0.95, 5, 0], [0.2, 2, 0], [7.0, 0, 0]]
    inside, outside = ([0, 0, -1], [1, 10, 1]), ([1, 0, -1], [2, 10, 1])
    assert detection(truth, found, 0.2, box=inside) == Detection(1, 1, 1, pytest.approx(0.15))
    assert detection(truth, found, 0.2, box=outside) == Detection(1, 0, 0, pytest.approx(0.15))
    assert recall_only(truth, found, 0.2, "few are marked", box=inside).recall.estimate == 0.5
    # A pair counts in the box of its cell only.
    across = [detection(truth[:1], found[:1], 0.2, box=box) for box in (inside, outside)]
    assert [(d.true_positives, d.false_positives, d.misses) for d in across] == [(1, 0, 0), (0, 0, 0)]
    # Lower bounds of a box are inclusive, upper bounds exclusive.
    faces = [detection([[1.0, 0, 0]], [], 0.2, box=box).misses for box in (inside, outside)]
    assert faces == [0, 1]


@settings(max_examples=200 if FULL else 40)
@given(st.integers(0, 2**32 - 1))
def test_counts_of_tiling_boxes_add_up_to_those_of_the_volume(seed):
    """No cell and no detection is counted twice or lost."""
    rng = np.random.default_rng(seed)
    truth, found = rng.random((30, 3)), rng.random((30, 3))
    whole = detection(truth, found, 0.2)
    slabs = [detection(truth, found, 0.2, box=([0, 0, low], [1, 1, low + 0.25])) for low in (0, 0.25, 0.5, 0.75)]
    for name in ("true_positives", "false_positives", "misses"):
        assert sum(getattr(slab, name) for slab in slabs) == getattr(whole, name)


@settings(max_examples=200 if FULL else 20)
@given(st.integers(0, 2**32 - 1))
def test_curve_rows_equal_detection_at_each_threshold(seed):
    """Each row equals detection() of the detections above its threshold; recall never falls."""
    rng = np.random.default_rng(seed)
    truth, found, scores = rng.random((20, 3)), rng.random((25, 3)), rng.integers(0, 9, 25) / 8
    table = curve(truth, found, scores, 0.3, box=([0, 0, 0], [1, 1, 0.5]))
    assert table.threshold.tolist() == np.unique(scores)[::-1].tolist()
    for row in table.itertuples():
        expected = detection(truth, found[scores >= row.threshold], 0.3, box=([0, 0, 0], [1, 1, 0.5]))
        assert (row.true_positives, row.false_positives, row.misses) == (
            expected.true_positives,
            expected.false_positives,
            expected.misses,
        )
        assert row.false_positives_per_mm3 == expected.false_positives / 0.5
    everywhere = curve(truth, found, scores, 0.3)
    assert (np.diff(everywhere.recall) >= 0).all()


def test_curve_matches_anew_at_each_threshold():
    """The detection with the higher score is farther away: a single matching cut by score would miss the cell."""
    table = curve([[0, 0, 0]], [[0.5, 0, 0], [0.1, 0, 0]], [0.9, 0.2], radius_mm=1)
    assert table.recall.tolist() == [1, 1]
    assert table.precision.tolist() == [1, 0.5]
    assert "false_positives_per_mm3" not in table


def test_curve_has_at_most_101_default_thresholds():
    """Default thresholds are scores that occur, down to the lowest; own thresholds replace them."""
    rng = np.random.default_rng(0)
    found, scores = rng.random((5000, 3)), rng.random(5000)
    table = curve(found[:10], found, scores, 1e-6)
    assert len(table) == 101
    assert set(table.threshold) <= set(scores)
    assert (table.threshold.iloc[-1], table.recall.iloc[-1]) == (scores.min(), 1)
    assert curve(found, found, scores, 1e-6, thresholds=[0.2, 0.7]).threshold.tolist() == [0.7, 0.2]


def test_best_threshold_pools_the_counts_of_all_brains():
    """A large brain weighs more than a small one with another best threshold."""
    line = np.c_[np.arange(40.0), np.zeros((40, 2))]
    large = (line[:30], line, np.r_[np.full(30, 0.6), np.full(10, 0.5)])
    small = (line[:2], line[:2], [0.9, 0.3])
    assert best_threshold([large], 0.1) == 0.6
    assert best_threshold([small], 0.1) == 0.3
    assert best_threshold([large, small], 0.1) == 0.6
    assert best_threshold([large, small], 0.1, thresholds=[0.2, 0.55]) == 0.55


def test_best_threshold_does_not_cancel_count_errors_between_brains():
    """At 0.2 the errors are +2 and -2, at 0.8 they are 0 and -3: the absolute sum is smaller at 0.8."""
    line = np.c_[np.arange(9.0), np.zeros((9, 2))]
    too_many = (line[:3], line[:5], [0.9, 0.9, 0.8, 0.2, 0.2])
    too_few = (line[:4], line[:2], [0.9, 0.2])
    errors = {
        t: [detection(b[0], b[1][np.array(b[2]) >= t], 0.1).count_error for b in (too_many, too_few)]
        for t in (0.2, 0.8)
    }
    assert errors == {0.2: [2, -2], 0.8: [0, -3]}
    assert best_threshold([too_many, too_few], 0.1, metric="count") == 0.8


def test_recall_only_has_an_interval_and_no_precision():
    """The result has Wilson's interval of 3 of 4, the number of detections and the reason."""
    marks = [[0, 0, 0], [10, 0, 0], [20, 0, 0], [30, 0, 0]]
    result = recall_only(marks, [*marks[:3], [5, 5, 5], [6, 6, 6]], 1, "marks of another program")
    assert (result.recall.estimate, result.marks, result.detections) == (0.75, 4, 5)
    assert (result.recall.low, result.recall.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    assert "another program" in str(result)
    assert not any("precision" in name or name == "f1" for name in dir(result))
    for reason in ("", "  "):
        with pytest.raises(DataError, match="needs a reason"):
            recall_only(marks, marks, 1, reason)
    with pytest.raises(DataError, match="no mark"):
        recall_only([], marks, 1, "no marks")


def test_count_errors_by_region():
    """Regions with cells or detections have a row; the relative error is NaN without cells."""
    table = count_errors([5, 5, 5, 0, 2**33], [5, 5, 5, 5, 7])
    assert table.region.tolist() == [0, 5, 7, 2**33]
    assert table.error.tolist() == [-1, 1, 1, -1]
    np.testing.assert_allclose(table.relative_error, [-1, 1 / 3, np.nan, -1])
    assert count_errors([], []).empty


def test_detection_scores_reject_invalid_input():
    """Errors name the wrong shape, radius, score, box or metric."""
    one = np.zeros((1, 3))
    for call, error, message in (
        (lambda: match(np.zeros((2, 2)), one, 1), GridError, r"truth has the shape \(2, 2\)"),
        (lambda: match(one, one * np.nan, 1), DataError, "1 of 1 points of found"),
        (lambda: match(one, one, 0), DataError, "greater than 0"),
        (lambda: match(one, one, np.inf), DataError, "greater than 0"),
        (lambda: detection(one, one, 1, box=([0, 0, 0], [1, 0, 1])), GridError, "box must be"),
        (lambda: curve(one, one, [1, 2], 1), DataError, "one per detection"),
        (lambda: curve(one, one, [np.nan], 1), DataError, "not finite"),
        (lambda: curve(one, [], [], 1), DataError, "pass thresholds"),
        (lambda: best_threshold([(one, one, [1])], 1, metric="auc"), DataError, "got 'auc'"),
        (lambda: best_threshold([([], one, [1])], 1), DataError, "no true cell"),
    ):
        with pytest.raises(error, match=message):
            call()
