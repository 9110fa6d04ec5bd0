"""Detections against cells: matchings against brute force, scores against literal answers."""

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


def brute(truth, found, radius):
    """Most pairs, and least sum of distances, over all ways to pair."""
    if not (truth and found):
        return 0, 0.0
    far = cdist(truth, found)
    if len(truth) > len(found):
        far = far.T
    best = (0, 0.0)
    for columns in itertools.permutations(range(far.shape[1]), far.shape[0]):
        taken = [d for d in far[range(far.shape[0]), columns] if d <= radius]
        best = min(best, (-len(taken), sum(taken)))
    return -best[0], best[1]


@settings(max_examples=1000 if FULL else 150)
@given(POINTS, POINTS, st.sampled_from([0.5, 1.0, 1.5, 2.0, 9.0]))
def test_matchings_are_as_good_as_the_best_of_all(truth, found, radius):
    """Points of a small lattice: many ties, and points on top of each other."""
    pairs = match(truth, found, radius)
    many, total = brute(truth, found, radius)
    assert len(pairs.truth) == many
    assert pairs.distance_mm.sum() == pytest.approx(total)
    assert len(set(pairs.truth)) == len(set(pairs.found)) == many
    if many:
        assert (np.diff(pairs.truth) > 0).all()
        direct = np.linalg.norm(np.array(truth)[pairs.truth] - np.array(found)[pairs.found], axis=1)
        np.testing.assert_allclose(pairs.distance_mm, direct)
        assert direct.max() <= radius


@pytest.mark.parametrize("together", [1, 50, 10**9])
@pytest.mark.parametrize("neighbours", [0.5, 2, 6, 20])
def test_large_parts_agree_with_the_hungarian_method(monkeypatch, together, neighbours):
    """Most of the points hang together where each has several neighbours; parts are solved alone or together."""
    monkeypatch.setattr(matching, "_TOGETHER", together)
    rng = np.random.default_rng(0)
    truth, found = rng.random((400, 3)), rng.random((350, 3))
    radius = (neighbours / 400 / (4 / 3 * np.pi)) ** (1 / 3)
    far = cdist(truth, found)
    cost = np.where(far <= radius, far, 1000 * radius)
    rows, columns = linear_sum_assignment(cost)
    near = far[rows, columns] <= radius
    pairs = match(truth, found, radius)
    assert len(pairs.truth) == near.sum()
    assert pairs.distance_mm.sum() == pytest.approx(far[rows, columns][near].sum())


def test_a_hundred_thousand_cells():
    """Jittered cells find their own detections again, in any order, where neighbours are far."""
    rng = np.random.default_rng(0)
    lattice = np.stack(np.meshgrid(*[np.arange(47.0)] * 3), axis=-1).reshape(-1, 3)[:100_000]
    order = rng.permutation(len(lattice))
    found = (lattice + rng.uniform(-0.25, 0.25, lattice.shape))[order]
    pairs = match(lattice, found[:90_000], radius_mm=0.45)
    assert len(pairs.truth) == 90_000
    np.testing.assert_array_equal(order[pairs.found], pairs.truth)


def test_scores_by_hand():
    """Three of four cells, with two false ones."""
    truth = [[0, 0, 0], [10, 0, 0], [20, 0, 0], [30, 0, 0]]
    found = [[0.5, 0, 0], [10, 1, 0], [20, 0, 0], [31.5, 0, 0], [50, 0, 0]]
    held = detection(truth, found, radius_mm=1)
    assert held == Detection(3, 2, 1, 0.5)
    assert (held.precision, held.recall, held.count_error) == (0.6, 0.75, 1)
    assert held.f1 == pytest.approx(2 * 0.6 * 0.75 / 1.35)
    assert held.relative_count_error == 0.25


def test_two_detections_of_one_cell_are_one_and_a_false_one():
    """One to one."""
    held = detection([[0, 0, 0]], [[0.1, 0, 0], [0, 0.2, 0]], radius_mm=1)
    assert held == Detection(1, 1, 0, 0.1)


def test_what_is_empty_has_scores_that_are_defined():
    """As documented: NaN where a share is of nothing."""
    none, one = np.empty((0, 3)), np.zeros((1, 3))
    nothing, missed, false = (detection(a, b, 1) for a, b in ((none, []), (one, none), ([], one)))
    assert np.isnan([nothing.precision, nothing.recall, nothing.relative_count_error]).all()
    assert (nothing.f1, nothing.count_error) == (1, 0)
    assert (missed.recall, missed.f1, missed.count_error, missed.relative_count_error) == (0, 0, -1, -1)
    assert np.isnan([missed.precision, missed.median_distance_mm]).all()
    assert (false.precision, false.f1, false.count_error) == (0, 0, 1)
    assert np.isnan([false.recall, false.relative_count_error]).all()


def test_cells_about_the_border_of_a_box_are_not_false():
    """Cut before matching, each of the two pairs across the border would be a miss or a false positive."""
    truth = [[0.9, 0, 0], [1.1, 5, 0], [0.5, 9, 0], [3.0, 0, 0]]
    found = [[1.05, 0, 0], [0.95, 5, 0], [0.2, 2, 0], [7.0, 0, 0]]
    inside, outside = ([0, 0, -1], [1, 10, 1]), ([1, 0, -1], [2, 10, 1])
    assert detection(truth, found, 0.2, box=inside) == Detection(1, 1, 1, pytest.approx(0.15))
    assert detection(truth, found, 0.2, box=outside) == Detection(1, 0, 0, pytest.approx(0.15))
    assert recall_only(truth, found, 0.2, "few are marked", box=inside).recall.estimate == 0.5
    # One pair counts where its cell lies, and nothing is left over on the other side.
    across = [detection(truth[:1], found[:1], 0.2, box=box) for box in (inside, outside)]
    assert [(d.true_positives, d.false_positives, d.misses) for d in across] == [(1, 0, 0), (0, 0, 0)]
    # The lowest face belongs to a box, the highest one does not.
    faces = [detection([[1.0, 0, 0]], [], 0.2, box=box).misses for box in (inside, outside)]
    assert faces == [0, 1]


@settings(max_examples=200 if FULL else 40)
@given(st.integers(0, 2**32 - 1))
def test_boxes_that_tile_a_volume_share_its_counts_out(seed):
    """Nothing counts twice, and nothing is lost."""
    rng = np.random.default_rng(seed)
    truth, found = rng.random((30, 3)), rng.random((30, 3))
    whole = detection(truth, found, 0.2)
    parts = [detection(truth, found, 0.2, box=([0, 0, low], [1, 1, low + 0.25])) for low in (0, 0.25, 0.5, 0.75)]
    for name in ("true_positives", "false_positives", "misses"):
        assert sum(getattr(p, name) for p in parts) == getattr(whole, name)


@settings(max_examples=200 if FULL else 20)
@given(st.integers(0, 2**32 - 1))
def test_curves_are_detections_at_each_threshold(seed):
    """Each row is what detection() says of the detections that are kept; recall never falls."""
    rng = np.random.default_rng(seed)
    truth, found, scores = rng.random((20, 3)), rng.random((25, 3)), rng.integers(0, 9, 25) / 8
    table = curve(truth, found, scores, 0.3, box=([0, 0, 0], [1, 1, 0.5]))
    assert table.threshold.tolist() == np.unique(scores)[::-1].tolist()
    for row in table.itertuples():
        held = detection(truth, found[scores >= row.threshold], 0.3, box=([0, 0, 0], [1, 1, 0.5]))
        assert (row.true_positives, row.false_positives, row.misses) == (
            held.true_positives,
            held.false_positives,
            held.misses,
        )
        assert row.false_positives_per_mm3 == held.false_positives / 0.5
    everywhere = curve(truth, found, scores, 0.3)
    assert (np.diff(everywhere.recall) >= 0).all()


def test_a_curve_matches_anew():
    """The better detection is the farther one: the matching of all, cut by score, would miss the cell."""
    table = curve([[0, 0, 0]], [[0.5, 0, 0], [0.1, 0, 0]], [0.9, 0.2], radius_mm=1)
    assert table.recall.tolist() == [1, 1]
    assert table.precision.tolist() == [1, 0.5]
    assert "false_positives_per_mm3" not in table


def test_many_scores_are_thinned_and_thresholds_may_be_given():
    """101 of them, that occur, down to the lowest."""
    rng = np.random.default_rng(0)
    found, scores = rng.random((5000, 3)), rng.random(5000)
    table = curve(found[:10], found, scores, 1e-6)
    assert len(table) == 101
    assert set(table.threshold) <= set(scores)
    assert (table.threshold.iloc[-1], table.recall.iloc[-1]) == (scores.min(), 1)
    assert curve(found, found, scores, 1e-6, thresholds=[0.2, 0.7]).threshold.tolist() == [0.7, 0.2]


def test_the_best_threshold_is_that_of_all_brains_together():
    """A large brain weighs more than a small one whose own best is elsewhere."""
    line = np.c_[np.arange(40.0), np.zeros((40, 2))]
    large = (line[:30], line, np.r_[np.full(30, 0.6), np.full(10, 0.5)])
    small = (line[:2], line[:2], [0.9, 0.3])
    assert best_threshold([large], 0.1) == 0.6
    assert best_threshold([small], 0.1) == 0.3
    assert best_threshold([large, small], 0.1) == 0.6
    assert best_threshold([large, small], 0.1, thresholds=[0.2, 0.55]) == 0.55


def test_count_errors_of_brains_do_not_cancel():
    """At 0.2 one brain has two too many and the other two too few: together none; at 0.8 there are fewer errors."""
    line = np.c_[np.arange(9.0), np.zeros((9, 2))]
    many = (line[:3], line[:5], [0.9, 0.9, 0.8, 0.2, 0.2])
    few = (line[:4], line[:2], [0.9, 0.2])
    totals = {t: [detection(b[0], b[1][np.array(b[2]) >= t], 0.1).count_error for b in (many, few)] for t in (0.2, 0.8)}
    assert totals == {0.2: [2, -2], 0.8: [0, -3]}
    assert best_threshold([many, few], 0.1, metric="count") == 0.8


def test_recall_alone_has_no_precision():
    """Wilson's interval of 3 of 4, all detections counted, and why."""
    marks = [[0, 0, 0], [10, 0, 0], [20, 0, 0], [30, 0, 0]]
    held = recall_only(marks, [*marks[:3], [5, 5, 5], [6, 6, 6]], 1, "marks of another program")
    assert (held.recall.estimate, held.marks, held.detections) == (0.75, 4, 5)
    assert (held.recall.low, held.recall.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    assert "another program" in str(held)
    assert not any("precision" in name or name == "f1" for name in dir(held))
    for reason in ("", "  "):
        with pytest.raises(DataError, match="needs a reason"):
            recall_only(marks, marks, 1, reason)
    with pytest.raises(DataError, match="no mark"):
        recall_only([], marks, 1, "none")


def test_counts_by_region():
    """Regions of either, and no share of nothing."""
    table = count_errors([5, 5, 5, 0, 2**33], [5, 5, 5, 5, 7])
    assert table.region.tolist() == [0, 5, 7, 2**33]
    assert table.error.tolist() == [-1, 1, 1, -1]
    np.testing.assert_allclose(table.relative_error, [-1, 1 / 3, np.nan, -1])
    assert count_errors([], []).empty


def test_wrong_input_is_one_sentence():
    """Shapes, radii, scores, boxes, names."""
    one = np.zeros((1, 3))
    for call, error, sentence in (
        (lambda: match(np.zeros((2, 2)), one, 1), GridError, r"truth has the shape \(2, 2\)"),
        (lambda: match(one, one * np.nan, 1), DataError, "1 of 1 points of found"),
        (lambda: match(one, one, 0), DataError, "greater than 0"),
        (lambda: match(one, one, np.inf), DataError, "greater than 0"),
        (lambda: detection(one, one, 1, box=([0, 0, 0], [1, 0, 1])), GridError, "a box is"),
        (lambda: curve(one, one, [1, 2], 1), DataError, "give one for each"),
        (lambda: curve(one, one, [np.nan], 1), DataError, "not finite"),
        (lambda: curve(one, [], [], 1), DataError, "give thresholds"),
        (lambda: best_threshold([(one, one, [1])], 1, metric="auc"), DataError, "not 'auc'"),
        (lambda: best_threshold([([], one, [1])], 1), DataError, "no true cell"),
    ):
        with pytest.raises(error, match=sentence):
            call()
