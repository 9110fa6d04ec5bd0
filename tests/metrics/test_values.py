"""Scores against oracles, and intervals against what they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.ndimage import gaussian_filter
from sklearn import metrics

from mrhdata.errors import DataError, GridError
from mrhdata.metrics import autocorrelation, bootstrap, image, information, roc
from mrhdata.metrics.bootstrap import Bootstrap
from tests.conftest import FULL


def classes(seed, n=200, ties=True):
    """Truth and a score with many ties."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.3
    truth[:2] = True, False
    score = truth + rng.normal(0, 1, n)
    return truth, np.round(score, 1) if ties else score


@settings(max_examples=300 if FULL else 40)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_auc_and_roc_agree_with_scikit_learn(seed, ties):
    """Ties count half; curves have a point per distinct score."""
    truth, score = classes(seed, ties=ties)
    assert roc.auc(truth, score) == pytest.approx(metrics.roc_auc_score(truth, score), abs=1e-12)
    fpr, tpr, thresholds = roc.roc(truth, score)
    expected = metrics.roc_curve(truth, score, drop_intermediate=False)
    for got, want in zip((fpr, tpr, thresholds), expected, strict=True):
        np.testing.assert_allclose(got, want)


@settings(max_examples=300 if FULL else 40)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_average_precision_agrees_with_scikit_learn(seed, ties):
    """Equal scores are one step."""
    truth, score = classes(seed, ties=ties)
    expected = metrics.average_precision_score(truth, score)
    assert roc.average_precision(truth, score) == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_of_shares_agree_with_scipy(share):
    """Wilson's, without correction for continuity."""
    expected = stats.binomtest(*share).proportion_ci(method="wilson")
    got = bootstrap.wilson(*share)
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_resampled_blocks_give_the_auc_of_any_resampling():
    """Weights on blocks are the same as repeating their rows."""
    truth, score = classes(0)
    block = np.arange(200) // 25
    draws = np.random.default_rng(0).multinomial(8, np.full(8, 1 / 8), size=50).astype(float)
    got = bootstrap.roc_replicates(truth, score, block, draws).auc
    r2, rmse = bootstrap.error_replicates(score, truth, block, draws)
    for i, draw in enumerate(draws):
        rows = np.concatenate([np.tile(np.flatnonzero(block == b), int(n)) for b, n in enumerate(draw)])
        assert got[i] == pytest.approx(metrics.roc_auc_score(truth[rows], score[rows]), abs=1e-12)
        assert r2[i] == pytest.approx(metrics.r2_score(score[rows], truth[rows]), abs=1e-9)
        assert rmse[i] == pytest.approx(image.rmse(score[rows], truth[rows]), abs=1e-9)


def test_resamplings_with_one_class_have_no_auc():
    """They are NaN, and intervals leave them out."""
    truth = np.array([1, 1, 0, 0])
    values = bootstrap.roc_replicates(truth, [3.0, 2, 1, 0], [0, 0, 1, 1], np.array([[2.0, 0], [1, 1]])).auc
    assert np.isnan(values[0])
    assert values[1] == 1
    assert bootstrap.interval(1.0, values).low == 1


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
            draws = bootstrap.draw_blocks(int(block.max()) + 1, Bootstrap(replicates=300, seed=trial))
            found = bootstrap.interval(0, bootstrap.roc_replicates(positive, score, block, draws).auc)
            covered[kind] += found.low <= truth_auc <= found.high
    assert 0.90 <= covered["block"] / trials <= 0.98
    assert covered["row"] / trials < 0.7


@settings(max_examples=100 if FULL else 20)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_parts_of_the_roc_curve_agree_with_scikit_learn(seed, specificity):
    """Partial areas as McClish's, sensitivity on the line between points; the best threshold is the best of all."""
    truth, score = classes(seed)
    expected = metrics.roc_auc_score(truth, score, max_fpr=1 - specificity)
    assert roc.partial_auc(truth, score, specificity) == pytest.approx(expected, abs=1e-12)
    fpr, tpr, _ = metrics.roc_curve(truth, score, drop_intermediate=False)
    assert roc.sensitivity_at(truth, score, specificity) == pytest.approx(np.interp(1 - specificity, fpr, tpr))
    cut = roc.best_threshold(truth, score)
    sums = [(score[truth] >= t).mean() + (score[~truth] < t).mean() for t in np.unique(score)]
    assert (score[truth] >= cut).mean() + (score[~truth] < cut).mean() == pytest.approx(max(sums))


def test_binned_curves_are_those_of_all_values():
    """With many distinct scores: AUC, sensitivity and partial area of one resampling of everything."""
    rng = np.random.default_rng(0)
    truth = rng.random(60_000) < 0.2
    score = rng.normal(truth.astype(float))
    found = bootstrap.roc_replicates(truth, score, np.arange(60_000) // 600, np.ones((1, 100)), 0.9)
    assert found.auc[0] == pytest.approx(roc.auc(truth, score), abs=2e-5)
    assert found.sensitivity[0] == pytest.approx(roc.sensitivity_at(truth, score, 0.9), abs=2e-3)
    assert found.partial_auc[0] == pytest.approx(roc.partial_auc(truth, score, 0.9), abs=5e-4)


def test_partial_correlation_is_that_of_residuals():
    """Each column and the truth, both less what the other columns give by least squares."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4)) + 100
    truth = x @ [1.0, 0, -2, 0.5] + rng.normal(0, 3, 500)
    got = information.partial_correlation(truth, x)
    for j in range(4):
        others = np.column_stack([np.ones(500), np.delete(x, j, axis=1)])
        left = [v - others @ np.linalg.lstsq(others, v, rcond=None)[0] for v in (truth, x[:, j])]
        assert got[j] == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-6)
    # A copy adds nothing, nor does what it copies; a constant neither. The rest stays as it was.
    more = information.partial_correlation(truth, np.column_stack([x, 3 * x[:, 1] - 7, np.ones(500)]))
    assert more[[1, 4, 5]].tolist() == [0, 0, 0]
    np.testing.assert_allclose(more[[0, 2, 3]], got[[0, 2, 3]], atol=1e-6)


def test_partial_correlations_of_resampled_blocks():
    """Weights on blocks are the same as repeating their rows."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 3))
    truth = x[:, 0] + rng.normal(size=200)
    block = np.arange(200) // 20
    draws = np.random.default_rng(0).multinomial(10, np.full(10, 0.1), size=20).astype(float)
    partial = information.partial_replicates(truth, x, block, draws)
    shared = information.information_replicates(truth, x[:, 0], block, draws)
    for i, draw in enumerate(draws):
        rows = np.concatenate([np.tile(np.flatnonzero(block == b), int(n)) for b, n in enumerate(draw)])
        np.testing.assert_allclose(partial[i], information.partial_correlation(truth[rows], x[rows]), atol=1e-6)
        assert np.isfinite(shared[i])


def test_mutual_information_against_its_formula():
    """Of a bivariate normal, -log2(1 - r^2) / 2; none where there is none; the same after any monotone change."""
    rng = np.random.default_rng(3)
    x, e = rng.normal(size=(2, 200_000))
    y = 0.6 * x + 0.8 * e
    found = information.mutual_information(x, y)
    # Bins lose a little.
    assert found == pytest.approx(-0.5 * np.log2(1 - 0.36), abs=0.012)
    assert information.mutual_information(x, -np.exp(y)) == pytest.approx(found, abs=1e-9)
    assert abs(information.mutual_information(x, e)) < 5e-4


def test_range_of_alike_voxels():
    """Of white noise behind a Gaussian of width s: exp(-d^2 / 4 s^2) is 0.1 at 3.03 s; also on a sparse lattice."""
    field = gaussian_filter(np.random.default_rng(4).normal(size=(60, 60, 60)), 3)
    place = np.argwhere(np.ones(field.shape))
    assert autocorrelation.likeness(field.ravel(), place).range == pytest.approx(9.1, rel=0.15)
    some = (place % 2 == 0).all(axis=1)
    assert autocorrelation.likeness(field.ravel()[some], place[some]).range == pytest.approx(9.1, rel=0.15)
    inside = np.random.default_rng(5).random(len(place)) < 0.5
    assert autocorrelation.likeness(field.ravel()[inside], place[inside]).range == pytest.approx(9.1, rel=0.15)


def test_weights_of_blocks_have_the_spread_that_is_asked_for():
    """A mean of independent blocks gets a t interval's width, more where it is widened; weights are positive."""
    values = np.random.default_rng(6).normal(size=30)
    for widening in (1.0, 1.4):
        draws = bootstrap.draw_blocks(30, Bootstrap(replicates=20_000), widening)
        assert draws.min() > 0
        found = bootstrap.interval(values.mean(), draws @ values / 30)
        expected = 2 * widening * stats.t.ppf(0.975, 29) * values.std(ddof=1) / np.sqrt(30)
        assert found.high - found.low == pytest.approx(expected, rel=0.08)


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
        roc.auc([0, 0], [1, 2])
    with pytest.raises(DataError, match="all 2 true values are 3"):
        image.r2([3, 3], [1, 2])
    with pytest.raises(DataError, match="1 block"):
        bootstrap.draw_blocks(1, Bootstrap())
    with pytest.raises(DataError, match="degree of freedom"):
        image.rmse([1, 2], [1, 2], parameters=2)
