"""Scores of values and rankings against oracles, and the coverage of intervals."""

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


def truth_and_score(seed, n=200, ties=True):
    """Return a binary truth and a score, by default with many ties."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.3
    truth[:2] = True, False
    score = truth + rng.normal(0, 1, n)
    return truth, np.round(score, 1) if ties else score


@settings(max_examples=300 if FULL else 40)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_auc_and_roc_agree_with_scikit_learn(seed, ties):
    """Ties count half; curves have a point per distinct score."""
    truth, score = truth_and_score(seed, ties=ties)
    assert roc.auc(truth, score) == pytest.approx(metrics.roc_auc_score(truth, score), abs=1e-12)
    fpr, tpr, thresholds = roc.roc(truth, score)
    expected = metrics.roc_curve(truth, score, drop_intermediate=False)
    for actual, desired in zip((fpr, tpr, thresholds), expected, strict=True):
        np.testing.assert_allclose(actual, desired)


@settings(max_examples=300 if FULL else 40)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_average_precision_agrees_with_scikit_learn(seed, ties):
    """Equal scores form one step."""
    truth, score = truth_and_score(seed, ties=ties)
    expected = metrics.average_precision_score(truth, score)
    assert roc.average_precision(truth, score) == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_intervals_agree_with_scipy(share):
    """The interval has no continuity correction."""
    expected = stats.binomtest(*share).proportion_ci(method="wilson")
    interval = bootstrap.wilson_interval(*share)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_block_replicates_equal_scores_of_repeated_rows():
    """A weight of n on a block gives the AUC, R2 and RMSE of its rows repeated n times."""
    truth, score = truth_and_score(0)
    block = np.arange(200) // 25
    draws = np.random.default_rng(0).multinomial(8, np.full(8, 1 / 8), size=50).astype(float)
    auc = bootstrap.roc_replicates(truth, score, block, draws).auc
    r2, rmse = bootstrap.error_replicates(score, truth, block, draws)
    assert len(auc) == len(r2) == len(rmse) == 50
    for i, draw in enumerate(draws):
        rows = np.concatenate([np.tile(np.flatnonzero(block == b), int(n)) for b, n in enumerate(draw)])
        assert auc[i] == pytest.approx(metrics.roc_auc_score(truth[rows], score[rows]), abs=1e-12)
        assert r2[i] == pytest.approx(metrics.r2_score(score[rows], truth[rows]), abs=1e-9)
        assert rmse[i] == pytest.approx(image.rmse(score[rows], truth[rows]), abs=1e-9)


def test_auc_of_a_resampling_with_one_class_is_nan():
    """Intervals leave NaN replicates out."""
    truth = np.array([1, 1, 0, 0])
    values = bootstrap.roc_replicates(truth, [3.0, 2, 1, 0], [0, 0, 1, 1], np.array([[2.0, 0], [1, 1]])).auc
    assert np.isnan(values[0])
    assert values[1] == 1
    assert bootstrap.interval(1.0, values).low == 1


@pytest.mark.full
def test_block_intervals_cover_the_true_auc():
    """If rows of a block are equal, 95 % block intervals cover in 90-98 % of trials, intervals over pairs do not."""
    covered = {"block": 0, "row": 0}
    trials, blocks, length = 300, 60, 20
    # Positives are N(1, 1) and negatives N(0, 1), with all variance between blocks: AUC = Phi(1 / sqrt 2).
    truth_auc = 0.7602499
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        positive = np.repeat(rng.random(blocks) < 0.5, length)
        score = np.repeat(rng.normal(0, 1, blocks), length) + positive
        for kind, block in (("block", np.arange(blocks * length) // length), ("row", np.arange(blocks * length) // 2)):
            draws = bootstrap.draw_blocks(int(block.max()) + 1, Bootstrap(replicates=300, seed=trial))
            interval = bootstrap.interval(0, bootstrap.roc_replicates(positive, score, block, draws).auc)
            covered[kind] += interval.low <= truth_auc <= interval.high
    assert 0.90 <= covered["block"] / trials <= 0.98
    assert covered["row"] / trials < 0.7


@settings(max_examples=100 if FULL else 20)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_partial_auc_sensitivity_and_best_threshold_agree_with_oracles(seed, specificity):
    """The partial area is McClish's, sensitivity is interpolated, and no other threshold has a larger Youden index."""
    truth, score = truth_and_score(seed)
    expected = metrics.roc_auc_score(truth, score, max_fpr=1 - specificity)
    assert roc.partial_auc(truth, score, specificity) == pytest.approx(expected, abs=1e-12)
    fpr, tpr, _ = metrics.roc_curve(truth, score, drop_intermediate=False)
    assert roc.sensitivity_at(truth, score, specificity) == pytest.approx(np.interp(1 - specificity, fpr, tpr))
    threshold = roc.best_threshold(truth, score)
    sums = [(score[truth] >= t).mean() + (score[~truth] < t).mean() for t in np.unique(score)]
    assert (score[truth] >= threshold).mean() + (score[~truth] < threshold).mean() == pytest.approx(max(sums))


def test_binned_roc_statistics_agree_with_exact_ones():
    """60,000 distinct scores are binned: AUC, sensitivity and partial area with equal weights stay nearly the same."""
    rng = np.random.default_rng(0)
    truth = rng.random(60_000) < 0.2
    score = rng.normal(truth.astype(float))
    binned = bootstrap.roc_replicates(truth, score, np.arange(60_000) // 600, np.ones((1, 100)), 0.9)
    assert binned.auc[0] == pytest.approx(roc.auc(truth, score), abs=2e-5)
    assert binned.sensitivity[0] == pytest.approx(roc.sensitivity_at(truth, score, 0.9), abs=2e-3)
    assert binned.partial_auc[0] == pytest.approx(roc.partial_auc(truth, score, 0.9), abs=5e-4)


def test_partial_correlation_is_the_correlation_of_residuals():
    """The other columns are regressed out of the truth and of the column; dependent columns have 0."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4)) + 100
    truth = x @ [1.0, 0, -2, 0.5] + rng.normal(0, 3, 500)
    partial = information.partial_correlation(truth, x)
    for j in range(4):
        others = np.column_stack([np.ones(500), np.delete(x, j, axis=1)])
        residuals = [v - others @ np.linalg.lstsq(others, v, rcond=None)[0] for v in (truth, x[:, j])]
        assert partial[j] == pytest.approx(np.corrcoef(*residuals)[0, 1], abs=1e-6)
    # A copy, the column that it copies and a constant add nothing; the other columns do not change.
    with_copy = information.partial_correlation(truth, np.column_stack([x, 3 * x[:, 1] - 7, np.ones(500)]))
    assert with_copy[[1, 4, 5]].tolist() == [0, 0, 0]
    np.testing.assert_allclose(with_copy[[0, 2, 3]], partial[[0, 2, 3]], atol=1e-6)


def test_partial_replicates_equal_scores_of_repeated_rows():
    """A weight of n on a block gives the partial correlation of its rows repeated n times."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 3))
    truth = x[:, 0] + rng.normal(size=200)
    block = np.arange(200) // 20
    draws = np.random.default_rng(0).multinomial(10, np.full(10, 0.1), size=20).astype(float)
    partial = information.partial_replicates(truth, x, block, draws)
    shared = information.information_replicates(truth, x[:, 0], block, draws)
    assert len(partial) == len(shared) == 20
    for i, draw in enumerate(draws):
        rows = np.concatenate([np.tile(np.flatnonzero(block == b), int(n)) for b, n in enumerate(draw)])
        np.testing.assert_allclose(partial[i], information.partial_correlation(truth[rows], x[rows]), atol=1e-6)
        assert np.isfinite(shared[i])


def test_mutual_information_of_a_bivariate_normal():
    """It is -log2(1 - r^2) / 2, 0 for independent values, and unchanged by a monotone transform."""
    rng = np.random.default_rng(3)
    x, e = rng.normal(size=(2, 200_000))
    y = 0.6 * x + 0.8 * e
    bits = information.mutual_information(x, y)
    # Binning loses about 0.01 bits.
    assert bits == pytest.approx(-0.5 * np.log2(1 - 0.36), abs=0.012)
    assert information.mutual_information(x, -np.exp(y)) == pytest.approx(bits, abs=1e-9)
    assert abs(information.mutual_information(x, e)) < 5e-4


def test_likeness_range_of_smoothed_noise():
    """With a Gaussian of width s, exp(-d^2 / 4 s^2) is 0.1 at 3.03 s; so also on a coarser lattice or with gaps."""
    field = gaussian_filter(np.random.default_rng(4).normal(size=(60, 60, 60)), 3)
    index = np.argwhere(np.ones(field.shape))
    assert autocorrelation.autocorrelation(field.ravel(), index).range == pytest.approx(9.1, rel=0.15)
    every_second = (index % 2 == 0).all(axis=1)
    sparse = autocorrelation.autocorrelation(field.ravel()[every_second], index[every_second])
    assert sparse.range == pytest.approx(9.1, rel=0.15)
    inside = np.random.default_rng(5).random(len(index)) < 0.5
    assert autocorrelation.autocorrelation(field.ravel()[inside], index[inside]).range == pytest.approx(9.1, rel=0.15)


def test_draw_blocks_gives_the_width_of_a_t_interval():
    """The interval of a mean of independent blocks is a t interval times `widening`; weights are positive."""
    values = np.random.default_rng(6).normal(size=30)
    for widening in (1.0, 1.4):
        draws = bootstrap.draw_blocks(30, Bootstrap(replicates=20_000), widening)
        assert draws.min() > 0
        interval = bootstrap.interval(values.mean(), draws @ values / 30)
        expected = 2 * widening * stats.t.ppf(0.975, 29) * values.std(ddof=1) / np.sqrt(30)
        assert interval.high - interval.low == pytest.approx(expected, rel=0.08)


def test_rmse_and_r2_agree_with_their_definitions():
    """R2 agrees with scikit-learn, RMSE with its formula; `parameters` p puts n - p in the denominator."""
    rng = np.random.default_rng(0)
    t, p = rng.random(50), rng.random(50)
    assert image.r2(t, p) == pytest.approx(metrics.r2_score(t, p))
    assert image.rmse(t, p) == pytest.approx(np.sqrt(np.mean((t - p) ** 2)))
    assert image.rmse(t, p, parameters=6) == pytest.approx(np.sqrt(((t - p) ** 2).sum() / 44))


def test_value_scores_reject_invalid_input():
    """Errors for shapes, NaN, empty arrays, one class, constants and one block contain the numbers."""
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
    with pytest.raises(DataError, match=r"2 blocks or more; got 1"):
        bootstrap.draw_blocks(1, Bootstrap())
    with pytest.raises(DataError, match="degree of freedom"):
        image.rmse([1, 2], [1, 2], parameters=2)
