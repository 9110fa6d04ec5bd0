"""Scores against oracles, and intervals against what they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from mrhdata.errors import DataError, GridError
from mrhdata.scoring import image, intervals, ranking
from mrhdata.scoring.intervals import Bootstrap

from .conftest import FULL


def classes(seed, n=200, ties=True):
    """Truth and a score with many ties."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.3
    truth[:2] = True, False
    score = truth + rng.normal(0, 1, n)
    return truth, np.round(score, 1) if ties else score


@settings(max_examples=300 if FULL else 40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_auc_and_roc_agree_with_scikit_learn(seed, ties):
    """Ties count half; curves have a point per distinct score."""
    truth, score = classes(seed, ties=ties)
    assert ranking.auc(truth, score) == pytest.approx(metrics.roc_auc_score(truth, score), abs=1e-12)
    fpr, tpr, thresholds = ranking.roc(truth, score)
    expected = metrics.roc_curve(truth, score, drop_intermediate=False)
    for got, want in zip((fpr, tpr, thresholds), expected, strict=True):
        np.testing.assert_allclose(got, want)


def test_block_pairs_give_the_auc_of_any_resampling():
    """Weights on blocks are the same as repeating their rows."""
    truth, score = classes(0)
    block = np.arange(200) // 25
    draws = intervals.draw_blocks(8, Bootstrap(replicates=50))
    got = intervals.auc_replicates(truth, score, block, draws)
    r2, rmse = intervals.error_replicates(score, truth, block, draws)
    for i, draw in enumerate(draws):
        rows = np.concatenate([np.tile(np.flatnonzero(block == b), int(n)) for b, n in enumerate(draw)])
        assert got[i] == pytest.approx(metrics.roc_auc_score(truth[rows], score[rows]), abs=1e-12)
        assert r2[i] == pytest.approx(metrics.r2_score(score[rows], truth[rows]), abs=1e-9)
        assert rmse[i] == pytest.approx(image.rmse(score[rows], truth[rows]), abs=1e-9)


def test_resamplings_with_one_class_have_no_auc():
    """They are NaN, and intervals leave them out."""
    truth = np.array([1, 1, 0, 0])
    values = intervals.auc_replicates(truth, [3.0, 2, 1, 0], [0, 0, 1, 1], np.array([[2.0, 0], [1, 1]]))
    assert np.isnan(values[0])
    assert values[1] == 1
    assert intervals.interval(1.0, values).low == 1


@pytest.mark.full
def test_intervals_cover_the_truth_as_often_as_they_say():
    """Rows alike within blocks: 95 % block intervals cover the true AUC in 90-98 % of trials, row intervals do not."""
    covered = {"block": 0, "row": 0}
    trials, blocks, length = 300, 60, 20
    # Positive N(1, 1) against negative N(0, 1), all of the spread between blocks: AUC = Phi(1 / sqrt 2).
    truth_auc = 0.7602499
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        positive = np.repeat(rng.random(blocks) < 0.5, length)
        score = np.repeat(rng.normal(0, 1, blocks), length) + positive
        for kind, block in (("block", np.arange(blocks * length) // length), ("row", np.arange(blocks * length) // 2)):
            draws = intervals.draw_blocks(int(block.max()) + 1, Bootstrap(replicates=300, seed=trial))
            found = intervals.interval(0, intervals.auc_replicates(positive, score, block, draws))
            covered[kind] += found.low <= truth_auc <= found.high
    assert 0.90 <= covered["block"] / trials <= 0.98
    assert covered["row"] / trials < 0.7


def test_rmse_and_r2_agree_with_their_definitions():
    """Against scikit-learn, and n - p in the denominator where asked."""
    rng = np.random.default_rng(0)
    t, p = rng.random(50), rng.random(50)
    assert image.r2(t, p) == pytest.approx(metrics.r2_score(t, p))
    assert image.rmse(t, p) == pytest.approx(np.sqrt(np.mean((t - p) ** 2)))
    assert image.rmse(t, p, parameters=6) == pytest.approx(np.sqrt(((t - p) ** 2).sum() / 44))


def test_what_cannot_be_scored():
    """Shapes, NaN, nothing, one class, constants, one block: each with its numbers."""
    with pytest.raises(GridError, match=r"\(2,\) and prediction \(3,\)"):
        image.rmse([1, 2], [1, 2, 3])
    with pytest.raises(DataError, match="1 of 2 pairs"):
        image.r2([1, np.nan], [1, 2])
    with pytest.raises(DataError, match="nothing to score"):
        image.r2([], [])
    with pytest.raises(DataError, match="0 of 2 are positive"):
        ranking.auc([0, 0], [1, 2])
    with pytest.raises(DataError, match="all 2 true values are 3"):
        image.r2([3, 3], [1, 2])
    with pytest.raises(DataError, match="1 block"):
        intervals.draw_blocks(1, Bootstrap())
    with pytest.raises(DataError, match="degree of freedom"):
        image.rmse([1, 2], [1, 2], parameters=2)
