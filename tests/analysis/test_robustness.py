"""Importance of inputs, effect of noise, coverage of intervals and out-of-distribution flags of virtual histology."""

import numpy as np
import pytest
from torch import nn

import mrhdata
from mrhdata.analysis import robustness
from mrhdata.analysis.robustness import HeldOut
from mrhdata.errors import DataError
from mrhdata.inference.voxelwise import predict_patches
from mrhdata.metrics.bootstrap import Bootstrap
from mrhdata.models.spec import IntensityScale, ModelSpec
from mrhdata.training.settings import TrainingConfig
from mrhdata.volume.construct import from_array

WEIGHTS = (3.0, 1.0, 0.0)


def linear(weights, channels):
    """Return a network that computes a weighted sum of the channels, voxel by voxel."""
    model = nn.Conv3d(len(weights), 1, 1, bias=False).requires_grad_(False)
    model.weight.copy_(model.weight.new_tensor(weights).reshape(1, -1, 1, 1, 1))
    model.ndim = 3
    one = IntensityScale((0.0,) * len(weights), (1.0,) * len(weights))
    model.spec = ModelSpec("linear", channels=channels, inputs=one, target=IntensityScale((0.0,), (1.0,)))
    return model


@pytest.fixture(scope="module")
def held_out_voxels():
    """Return voxels of three channels; histology is ``3 a + b`` plus noise and independent of ``c``."""
    rng = np.random.default_rng(0)
    x = (100 + 10 * rng.normal(size=(3000, 3, 1, 1, 1))).astype(np.float32)
    truth = x[:, :, 0, 0, 0] @ WEIGHTS + rng.normal(0, 3, 3000)
    low = float(np.quantile(truth, 0.2))
    return HeldOut(x, truth, np.arange(3000) // 60, ["a", "b", "c"], low, bootstrap=Bootstrap(replicates=200))


@pytest.fixture(scope="module")
def model():
    """Return the network with the true weights."""
    return linear(WEIGHTS, ("a", "b", "c"))


def test_noise_contributions_are_those_of_a_linear_model(held_out_voxels, model):
    """Equal noise on inputs of weights 3, 1, 0 changes the prediction by 3 : 1 : 0; on the first two by sqrt(10)."""
    table = robustness.noise_contribution(model, held_out_voxels).set_index("input")
    assert table.contribution.sum() == pytest.approx(1)
    assert table.contribution["a"] == pytest.approx(0.75, abs=0.02)
    assert table.contribution["c"] == 0
    # The RMSE is 10 % of a mean of 100 times the weight, because Rician noise is nearly Gaussian far above zero.
    assert table.rmse["b"] == pytest.approx(10, rel=0.05)
    groups = {"a and b": [0, 1], "c": [2]}
    together = robustness.noise_contribution(model, held_out_voxels, groups=groups).set_index("input")
    assert together.rmse["a and b"] == pytest.approx(10 * np.sqrt(10), rel=0.05)
    again = robustness.noise_contribution(model, held_out_voxels).set_index("input")
    assert again.equals(table)
    with pytest.raises(DataError, match="changes no prediction"):
        robustness.noise_contribution(linear((0, 0, 0), ("a", "b", "c")), held_out_voxels)


def test_loss_by_shuffling_is_the_explained_variance(held_out_voxels, model):
    """R2 falls by twice the explained share of the variance; shuffling an unused input changes nothing."""
    table = robustness.permutation_importance(model, held_out_voxels).set_index("input")
    variance = held_out_voxels.truth.var()
    assert table.r2_loss["a"] == pytest.approx(2 * 900 / variance, rel=0.1)
    assert table.r2_loss["b"] == pytest.approx(2 * 100 / variance, rel=0.15)
    assert (table.loc["c"] == 0).all()
    assert table.index.tolist() == ["a", "b", "c"]
    assert (table.auc_loss_low[["a", "b"]] > 0).all()
    assert (table.r2_loss_low <= table.r2_loss).all()
    assert (table.r2_loss <= table.r2_loss_high).all()


def test_retraining_measures_the_loss_without_an_input(held_out_voxels):
    """Least squares on the remaining channels loses nothing without an uninformative input."""
    trained_channels = []

    def train(channels):
        trained_channels.append(channels)
        x = held_out_voxels.inputs[:, channels, 0, 0, 0].astype(np.float64)
        weights = np.linalg.lstsq(x, held_out_voxels.truth, rcond=None)[0]
        return linear(weights, tuple(held_out_voxels.channels[c] for c in channels))

    table = robustness.retraining_importance(train, held_out_voxels).set_index("input")
    assert trained_channels == [[0, 1, 2], [1, 2], [0, 2], [0, 1]]
    assert table.r2_loss["a"] > table.r2_loss["b"] > 0.05
    assert abs(table.r2_loss["c"]) < 0.01
    with pytest.raises(DataError, match="no channel is left"):
        robustness.retraining_importance(train, held_out_voxels, groups={"all": [0, 1, 2]})


def test_more_noise_lowers_scores(held_out_voxels, model):
    """Scores fall with every step, and without noise they are those of the clean prediction."""
    table = robustness.noise_sweep(model, held_out_voxels, [0.0, 0.05, 0.2, 0.5])
    clean, _ = held_out_voxels.scored(predict_patches(model, held_out_voxels.inputs)[:, 0])
    assert table.auc[0] == pytest.approx(clean["auc"], abs=1e-4)
    assert table.auc.is_monotonic_decreasing
    assert table.r2.is_monotonic_decreasing
    assert (table.auc_low <= table.auc).all()


def test_rician_noise_has_the_right_mean_square():
    """The mean square is ``signal^2 + 2 sigma^2``, as of Rician magnitudes; the input does not change."""
    values = np.full((200_000, 2), 3.0, np.float32)
    noisy = robustness.rician(values, np.float32(2.0), np.random.default_rng(0))
    assert (noisy**2).mean() == pytest.approx(9 + 8, rel=0.01)
    assert noisy.min() >= 0
    assert (values == 3).all()


def test_held_out_patches_have_centres_and_blocks():
    """The truth is the target at the centre; no block has voxels of two subjects."""
    mri = from_array(np.arange(512, dtype=np.float32).reshape(8, 8, 8), spacing=(1, 1, 1))
    p = mrhdata.patches([mri, mri], [mri * 2, mri * 3], shape=3, stride=1)
    held_out = robustness.held_out(p, 100.0, block_voxels=4)
    assert np.array_equal(held_out.truth, held_out.inputs[:, 0, 1, 1, 1] * np.where(p.subject, 3, 2))
    assert held_out.block.max() == 15
    assert not set(held_out.block[p.subject == 0]) & set(held_out.block[p.subject == 1])
    assert len(robustness.held_out(p, 100.0, most=10).truth) == 10
    with pytest.raises(DataError, match="'below' or 'above'; got 'left'"):
        robustness.held_out(p, 100.0, positive="left")
    with pytest.raises(DataError, match="one histology volume"):
        robustness.held_out(mrhdata.patches(mri, shape=3), 100.0)


@pytest.fixture(scope="module")
def ensemble_and_patches():
    """Return an ensemble trained on a noisy quadratic of two correlated channels, and a function for more patches."""

    def quadratic_patches(seed):
        rng = np.random.default_rng(seed)
        a = rng.random((16, 12, 16))
        b = a + 0.1 * rng.normal(size=a.shape)
        target = a**2 + 0.05 * rng.normal(size=a.shape)
        volumes = [from_array(v.astype(np.float32), spacing=(1, 1, 1)) for v in (a, b, target)]
        return mrhdata.patches({"a": volumes[0], "b": volumes[1]}, volumes[2], shape=1)

    training, validation = quadratic_patches(0), quadratic_patches(1)
    members = [mrhdata.models.create("mrhnet", in_channels=2, loop_blocks=1, seed=seed) for seed in range(3)]
    for seed, network in enumerate(members):
        settings = TrainingConfig(epochs=3, batch_size=128, learning_rate=5e-3, seed=seed)
        mrhdata.fit(network, training, validation, settings, progress=False)
    return robustness.calibrated_ensemble(members, training, validation), quadratic_patches


@pytest.mark.full
def test_intervals_cover_and_ood_inputs_are_flagged(ensemble_and_patches):
    """On a test set, intervals cover their level, 1 in 100 normal voxels is flagged, and most inverted ones are."""
    ensemble, quadratic_patches = ensemble_and_patches
    x, y = quadratic_patches(2).gather(np.arange(3000))
    answers = predict_patches(ensemble, x)
    covered = robustness.coverage(y.ravel(), answers).set_index("level").covered
    assert covered[0.5] == pytest.approx(0.5, abs=0.05)
    assert covered[0.95] == pytest.approx(0.95, abs=0.03)
    assert (answers[:, 2] > 1).mean() == pytest.approx(0.01, abs=0.008)
    broken = x * np.float32([1.0, -1.0]).reshape(1, 2, 1, 1, 1)
    assert (predict_patches(ensemble, broken)[:, 2] > 1).mean() > 0.8


@pytest.mark.full
def test_ood_mask_of_a_map(ensemble_and_patches, tmp_path):
    """A lesion in a map of normal inputs is flagged, and less than 5 % of the rest."""
    ensemble, _ = ensemble_and_patches
    rng = np.random.default_rng(7)
    a = rng.random((8, 8, 8))
    b = a + 0.1 * rng.normal(size=a.shape)
    b[:3, :3, :3] = -1
    inputs = {k: from_array(v.astype(np.float32), spacing=(1, 1, 1)) for k, v in {"a": a, "b": b}.items()}
    mapped = mrhdata.predict(ensemble, inputs, tmp_path / "map.zarr", progress=False)
    flags = robustness.out_of_distribution(mapped)
    assert flags.attrs["kind"] == "mask"
    assert flags.mrh.grid.same_as(inputs["a"].mrh.grid)
    assert flags.values[:3, :3, :3].all()
    assert flags.values[3:].mean() < 0.05
    with pytest.raises(DataError, match="calibrated ensemble"):
        robustness.out_of_distribution(inputs["a"])
