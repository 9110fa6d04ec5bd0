"""Ensembles: mean, spread and distance agree with independent computations, also after loading and in whole maps."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import oas

import mrhdata
from mrhdata.errors import DataError, ModelError
from mrhdata.inference.voxelwise import predict_patches, predict_rows
from mrhdata.models.ensemble import Ensemble, shrunk
from mrhdata.models.spec import IntensityScale, predict_raw


def member(seed, offset=0.0, factor=1.0, **changes):
    """Return an untrained network with the intensity scales of a network trained on two channels."""
    model = mrhdata.models.create("mrhnet", in_channels=2, loop_blocks=1, seed=seed)
    model.spec = dataclasses.replace(
        model.spec,
        channels=("a", "b"),
        patch=(3, 1, 3),
        axis=1,
        inputs=IntensityScale((offset, offset), (factor, 2 * factor)),
        target=IntensityScale((10.0 + offset,), (3.0,)),
        **changes,
    )
    return model


@pytest.fixture(scope="module")
def members():
    """Return three networks with different intensity scales."""
    return [member(seed, 0.1 * seed, 1 + seed) for seed in range(3)]


@pytest.fixture(scope="module")
def voxels():
    """Return voxels (n, 2) of two correlated channels of different scales."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=4000)
    return np.column_stack([100 + 10 * a, 5 + a + 0.3 * rng.normal(size=4000)])


def test_mean_and_spread_equal_those_of_separate_predictions(members):
    """Each member applies its own scales."""
    x = np.random.default_rng(1).random((7, 2, 3, 1, 3), dtype=np.float32)
    single = np.concatenate([predict_patches(m, x) for m in members], axis=1)
    answers = predict_patches(Ensemble.of(members), x)
    np.testing.assert_allclose(answers[:, 0], single.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(answers[:, 1], single.std(axis=1, ddof=1), rtol=1e-4)
    assert not np.allclose(single[:, 0], single[:, 1])


def test_ood_score_is_the_mahalanobis_distance(members, voxels):
    """It agrees with SciPy, also for a voxel that is usual in each channel but violates their correlation."""
    ensemble = Ensemble.of(members)
    ensemble.learn(voxels)
    precision = np.linalg.inv(np.cov(voxels, rowvar=False))
    rows = np.array([[100, 5], [120, 7], [115, 3.5]], np.float32)
    expected = [mahalanobis(row, voxels.mean(axis=0), precision) for row in rows]
    ood_score = predict_patches(ensemble, rows[:, :, None, None, None])[:, 2]
    np.testing.assert_allclose(ood_score, expected, rtol=0.01, atol=0.05)
    # The last row is within two standard deviations in each channel, but violates their correlation.
    assert ood_score[2] > 3 * ood_score[1]


def test_shrinkage_agrees_with_scikit_learn():
    """With few samples of many correlated channels the covariance is never singular."""
    rng = np.random.default_rng(2)
    values = rng.normal(size=(40, 1)) + 0.2 * rng.normal(size=(40, 67))
    covariance = shrunk(np.cov(values, rowvar=False, bias=True), len(values))
    expected, _ = oas(values)
    np.testing.assert_allclose(covariance, expected, rtol=0.05, atol=1e-3)
    assert np.linalg.eigvalsh(covariance).min() > 1e-3 > np.linalg.eigvalsh(np.cov(values, rowvar=False)).min()
    with_constant_channel = np.column_stack([values, np.ones(40)])
    np.linalg.cholesky(shrunk(np.cov(with_constant_channel, rowvar=False), 40))


def test_calibration_recovers_factor_floor_and_limit(members):
    """Errors are drawn with a known factor and floor; half of them are below 0.6745 times their uncertainty."""
    rng = np.random.default_rng(3)
    spread, distance = rng.gamma(2, 0.5, 20_000), rng.random(20_000)
    answers = np.column_stack([np.zeros(20_000), spread, distance])
    truth = rng.normal(size=20_000) * 2.0 * np.hypot(spread, 0.8)
    ensemble = Ensemble.of(members)
    ensemble.calibrate(answers, truth)
    assert ensemble.factor.item() == pytest.approx(2.0, rel=0.1)
    assert ensemble.floor.item() == pytest.approx(0.8, rel=0.2)
    assert ensemble.limit.item() == pytest.approx(0.99, abs=0.005)
    standardised = np.abs(truth) / (ensemble.factor.item() * np.hypot(spread, ensemble.floor.item()))
    assert np.median(standardised) == pytest.approx(0.6745, rel=1e-4)
    with pytest.raises(DataError, match="give equal results"):
        ensemble.calibrate(answers * [1, 0, 1], truth)


def test_saved_and_loaded_ensemble_predicts_the_same(members, voxels, tmp_path):
    """Scales and calibration are restored, and a folder with code or unknown networks is refused."""
    ensemble = Ensemble.of(members)
    ensemble.learn(voxels)
    ensemble.calibrate(np.random.default_rng(4).random((100, 3)), np.zeros(100))
    mrhdata.models.save(ensemble, tmp_path / "net")
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["config.json", "model.safetensors"]
    loaded = mrhdata.models.load(tmp_path / "net")
    assert loaded.spec == ensemble.spec
    x = torch.rand(5, 2, 3, 1, 3, generator=torch.Generator().manual_seed(0)) * 100
    assert torch.equal(predict_raw(ensemble, x), predict_raw(loaded, x))
    config = tmp_path / "net" / "config.json"
    good = json.loads(config.read_text("utf-8"))
    for bad in ({"code": "import os"}, {"name": "os.system"}, {"inputs": {"offset": [0]}}, {"target": None}):
        config.write_text(json.dumps(good | {"config": {"members": [m | bad for m in good["config"]["members"]]}}))
        with pytest.raises(ModelError):
            mrhdata.models.load(tmp_path / "net")


@pytest.mark.parametrize("mode", ["patch_centre", "dense"])
def test_map_of_an_ensemble_has_three_channels(members, voxels, mode, tmp_path):
    """In both modes voxels agree with the prediction of their patch, and are 0 outside the mask."""
    values = voxels[:480].reshape(8, 6, 10, 2).astype(np.float32)
    a, b = (mrhdata.volume.from_array(np.ascontiguousarray(values[..., i]), spacing=(1, 1, 1)) for i in range(2))
    ensemble = Ensemble.of(members)
    ensemble.learn(voxels)
    mask = mrhdata.volume.from_array((np.indices(a.shape)[2] < 5).astype(np.uint8), spacing=(1, 1, 1), kind="mask")
    mapped = mrhdata.predict(ensemble, {"a": a, "b": b}, tmp_path / "map.zarr", mask=mask, mode=mode, progress=False)
    assert mapped.sizes["c"] == 3
    assert not mapped.values[:, :, :, 5:].any()
    patches = mrhdata.patches({"a": a, "b": b}, shape=3, stride=1, plane="coronal")
    expected = predict_patches(ensemble, patches.gather(np.arange(len(patches)))[0])
    z, y, x = (patches.positions + np.array([1, 0, 1])).T
    inside = x < 5
    # In dense mode mean and spread differ, because the network then depends on neighbours instead of zeros.
    channels = [0, 1, 2] if mode == "patch_centre" else [2]
    values = mapped.values[:, z, y, x].T
    np.testing.assert_allclose(values[inside][:, channels], expected[inside][:, channels], rtol=1e-4, atol=1e-4)


def test_table_prediction_of_an_ensemble_is_the_mean(members):
    """Each row of the table has one value."""
    rows = np.random.default_rng(5).random((6, 2))
    single = np.mean([predict_rows(m, rows) for m in members], axis=0)
    np.testing.assert_allclose(predict_rows(Ensemble.of(members), rows), single, rtol=1e-5)


def test_incompatible_members_are_refused():
    """Members may be too few, differ in channels or patches, be untrained, or have several outputs."""
    with pytest.raises(ModelError, match="two networks or more; got 1"):
        Ensemble.of([member(0)])
    with pytest.raises(ModelError, match="patch must be equal in all members"):
        Ensemble.of([member(0), member(1), _with(member(2), patch=(5, 1, 5))])
    with pytest.raises(ModelError, match="channels must be equal in all members"):
        Ensemble.of([member(0), _with(member(1), channels=("b", "a"))])
    with pytest.raises(ModelError, match=r"member 1 \(mrhnet\) has no scale of one target"):
        Ensemble.of([member(0), _with(member(1), target=None)])
    with pytest.raises(ModelError, match="no scale of one target"):
        Ensemble.of([Ensemble.of([member(0), member(1)]), member(2)])


def _with(model, **changes):
    model.spec = dataclasses.replace(model.spec, **changes)
    return model
