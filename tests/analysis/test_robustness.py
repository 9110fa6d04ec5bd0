"""Robustness: inputs that matter are found, noise costs, and strange inputs are flagged."""

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
    """A network without error: a weighted sum of some channels, voxel by voxel."""
    model = nn.Conv3d(len(weights), 1, 1, bias=False).requires_grad_(False)
    model.weight.copy_(model.weight.new_tensor(weights).reshape(1, -1, 1, 1, 1))
    model.ndim = 3
    one = IntensityScale((0.0,) * len(weights), (1.0,) * len(weights))
    model.spec = ModelSpec("linear", channels=channels, inputs=one, target=IntensityScale((0.0,), (1.0,)))
    return model


@pytest.fixture(scope="module")
def held():
    """Voxels of three channels of one size; histology is ``3 a + b`` and does not know ``c``."""
    rng = np.random.default_rng(0)
    x = (100 + 10 * rng.normal(size=(3000, 3, 1, 1, 1))).astype(np.float32)
    truth = x[:, :, 0, 0, 0] @ WEIGHTS + rng.normal(0, 3, 3000)
    low = float(np.quantile(truth, 0.2))
    return HeldOut(x, truth, np.arange(3000) // 60, ["a", "b", "c"], low, bootstrap=Bootstrap(replicates=200))


@pytest.fixture(scope="module")
def model():
    """The one that knows the histology's formula."""
    return linear(WEIGHTS, ("a", "b", "c"))


def test_noise_contributions_are_those_of_a_linear_model(held, model):
    """Noise of one size on inputs of weights 3, 1, 0 changes the answer by 3 : 1 : 0; together by the root of 10."""
    table = robustness.noise_contribution(model, held).set_index("input")
    assert table.contribution.sum() == pytest.approx(1)
    assert table.contribution["a"] == pytest.approx(0.75, abs=0.02)
    assert table.contribution["c"] == 0
    # 10 % of a mean of 100, times the weight; Rician noise is nearly Gaussian so far above zero.
    assert table.rmse["b"] == pytest.approx(10, rel=0.05)
    groups = {"a and b": [0, 1], "c": [2]}
    together = robustness.noise_contribution(model, held, groups=groups).set_index("input")
    assert together.rmse["a and b"] == pytest.approx(10 * np.sqrt(10), rel=0.05)
    again = robustness.noise_contribution(model, held).set_index("input")
    assert again.equals(table)
    with pytest.raises(DataError, match="changes no answer"):
        robustness.noise_contribution(linear((0, 0, 0), ("a", "b", "c")), held)


def test_shuffling_costs_what_an_input_explains(held, model):
    """R2 falls by twice the share of the variance; an unused input costs nothing at all."""
    table = robustness.permutation_importance(model, held).set_index("input")
    variance = held.truth.var()
    assert table.r2_loss["a"] == pytest.approx(2 * 900 / variance, rel=0.1)
    assert table.r2_loss["b"] == pytest.approx(2 * 100 / variance, rel=0.15)
    assert (table.loc["c"] == 0).all()
    assert table.index.tolist() == ["a", "b", "c"]
    assert (table.auc_loss_low[["a", "b"]] > 0).all()
    assert (table.r2_loss_low <= table.r2_loss).all()
    assert (table.r2_loss <= table.r2_loss_high).all()


def test_retraining_finds_what_is_missed(held):
    """Least squares on what is left: a input of no use is not missed, and a copy replaces its twin."""
    seen = []

    def train(channels):
        seen.append(channels)
        x = held.inputs[:, channels, 0, 0, 0].astype(np.float64)
        return linear(np.linalg.lstsq(x, held.truth, rcond=None)[0], tuple(held.channels[c] for c in channels))

    table = robustness.retraining_importance(train, held).set_index("input")
    assert seen == [[0, 1, 2], [1, 2], [0, 2], [0, 1]]
    assert table.r2_loss["a"] > table.r2_loss["b"] > 0.05
    assert abs(table.r2_loss["c"]) < 0.01
    with pytest.raises(DataError, match="no channel is left"):
        robustness.retraining_importance(train, held, groups={"all": [0, 1, 2]})


def test_more_noise_costs_more(held, model):
    """Scores fall with every step, and no noise costs nothing."""
    table = robustness.noise_sweep(model, held, [0.0, 0.05, 0.2, 0.5])
    clean, _ = held.scored(predict_patches(model, held.inputs)[:, 0])
    assert table.auc[0] == pytest.approx(clean["auc"], abs=1e-4)
    assert table.auc.is_monotonic_decreasing
    assert table.r2.is_monotonic_decreasing
    assert (table.auc_low <= table.auc).all()


def test_rician_noise_has_its_moments():
    """Mean square ``signal^2 + 2 sigma^2``, exactly that of Rician magnitudes; the input is left alone."""
    values = np.full((200_000, 2), 3.0, np.float32)
    found = robustness.rician(values, np.float32(2.0), np.random.default_rng(0))
    assert (found**2).mean() == pytest.approx(9 + 8, rel=0.01)
    assert found.min() >= 0
    assert (values == 3).all()


def test_held_out_patches_are_centres_in_blocks():
    """Truth is the target at the centre; blocks are cubes of each subject by itself."""
    mri = from_array(np.arange(512, dtype=np.float32).reshape(8, 8, 8), spacing=(1, 1, 1))
    p = mrhdata.patches([mri, mri], [mri * 2, mri * 3], shape=3, stride=1)
    held = robustness.held_out(p, 100.0, block_voxels=4)
    assert np.array_equal(held.truth, held.inputs[:, 0, 1, 1, 1] * np.where(p.subject, 3, 2))
    assert held.block.max() == 15
    assert not set(held.block[p.subject == 0]) & set(held.block[p.subject == 1])
    assert len(robustness.held_out(p, 100.0, most=10).truth) == 10
    with pytest.raises(DataError, match="below"):
        robustness.held_out(p, 100.0, positive="left")
    with pytest.raises(DataError, match="one histology volume"):
        robustness.held_out(mrhdata.patches(mri, shape=3), 100.0)


@pytest.fixture(scope="module")
def doubting():
    """An ensemble trained on a noisy quadratic of two correlated channels, and how to make more of such patches."""

    def planned(seed):
        rng = np.random.default_rng(seed)
        a = rng.random((16, 12, 16))
        b = a + 0.1 * rng.normal(size=a.shape)
        target = a**2 + 0.05 * rng.normal(size=a.shape)
        volumes = [from_array(v.astype(np.float32), spacing=(1, 1, 1)) for v in (a, b, target)]
        return mrhdata.patches({"a": volumes[0], "b": volumes[1]}, volumes[2], shape=1)

    training, validation = planned(0), planned(1)
    members = [mrhdata.models.create("mrhnet", in_channels=2, loop_blocks=1, seed=seed) for seed in range(3)]
    for seed, network in enumerate(members):
        settings = TrainingConfig(epochs=3, batch_size=128, learning_rate=5e-3, seed=seed)
        mrhdata.fit(network, training, validation, settings, progress=False)
    return robustness.calibrated_ensemble(members, training, validation), planned


def test_uncertainty_covers_and_strangers_are_flagged(doubting):
    """On a third set: intervals hold their level, 1 in 100 familiar voxels is flagged, and swapped inputs are."""
    ensemble, planned = doubting
    x, y = planned(2).gather(np.arange(3000))
    answers = predict_patches(ensemble, x)
    covered = robustness.coverage(y.ravel(), answers).set_index("level").covered
    assert covered[0.5] == pytest.approx(0.5, abs=0.05)
    assert covered[0.95] == pytest.approx(0.95, abs=0.03)
    assert (answers[:, 2] > 1).mean() == pytest.approx(0.01, abs=0.008)
    broken = x * np.float32([1.0, -1.0]).reshape(1, 2, 1, 1, 1)
    assert (predict_patches(ensemble, broken)[:, 2] > 1).mean() > 0.8


def test_flags_of_a_map(doubting, tmp_path):
    """A map of familiar inputs with a lesion: the lesion is flagged, the rest hardly."""
    ensemble, _ = doubting
    rng = np.random.default_rng(7)
    a = rng.random((8, 8, 8))
    b = a + 0.1 * rng.normal(size=a.shape)
    b[:3, :3, :3] = -1
    inputs = {k: from_array(v.astype(np.float32), spacing=(1, 1, 1)) for k, v in {"a": a, "b": b}.items()}
    mapped = mrhdata.predict(ensemble, inputs, tmp_path / "map.zarr", progress=False)
    flags = robustness.unfamiliar(mapped)
    assert flags.attrs["kind"] == "mask"
    assert flags.mrh.grid.same_as(inputs["a"].mrh.grid)
    assert flags.values[:3, :3, :3].all()
    assert flags.values[3:].mean() < 0.05
    with pytest.raises(DataError, match="calibrated ensemble"):
        robustness.unfamiliar(inputs["a"])
