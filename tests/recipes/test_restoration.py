"""Restoration: aligned pairs, training that beats interpolation, and results that do not depend on blocks."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

import mrhdata
from mrhdata import models
from mrhdata.degrade import PUBLISHED, Area, Blur, Degradation, Points, Triangle, Zoom
from mrhdata.errors import DataError, ModelError, ParameterError
from mrhdata.recipes import restoration
from mrhdata.recipes.watch_folder import arriving
from mrhdata.training.settings import TrainingConfig

REDUCTIONS = [Area(4), Zoom(4), Points(4), Triangle(4)]


def stack(seed, shape=(6, 96, 96), dtype=np.uint8):
    """Return a stack of smooth lines on grey that drift from plane to plane."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[1], : shape[2]]
    planes = []
    waves = rng.uniform(0.15, 0.5, (6, 2)) * rng.choice([-1, 1], (6, 2))
    for z in range(shape[0]):
        values = sum(np.cos(a * y + b * x + 0.2 * z + i) for i, (a, b) in enumerate(waves)) > 0.5
        planes.append(np.where(values, 0.75, 0.3))
    values = np.stack(planes) * np.iinfo(dtype).max
    return mrhdata.volume.from_array(values.astype(dtype), spacing=(1e-5, 1e-5, 1e-5), name="em")


@pytest.mark.parametrize("step", REDUCTIONS, ids=lambda s: type(s).__name__)
def test_target_and_input_are_aligned(step):
    """On a ramp, every degraded pixel has the mean of its sixteen target pixels."""
    ramp = np.tile(np.arange(64.0), (64, 1))[None, None, None].astype(np.float32) / 64
    low, high = restoration.Pairs(Degradation((step,)), white=1.0, turns=None)([ramp], (0,))
    means = high[0, 0, 0].reshape(16, 4, 16, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(means[2:-2, 2:-2], low[0, 0, 0, 2:-2, 2:-2], atol=1e-3 if step != Points(4) else 0.01)


@pytest.mark.parametrize("step", REDUCTIONS, ids=lambda s: type(s).__name__)
def test_degraded_stack_has_the_right_grid(step):
    """On a ramp in world coordinates, the values match the world points of the degraded grid."""
    x = np.tile(np.arange(248.0), (2, 40, 1)) / 248
    volume = mrhdata.volume.from_array(x.astype(np.float32), spacing=(2e-5, 1e-5, 1e-5))
    low = restoration.degrade_stack(volume, Degradation((step,)), seed=0)
    world = low.mrh.world(np.argwhere(np.ones(low.shape)))[:, 0] / 1e-5 / 248
    inner = np.zeros(low.shape, bool)
    inner[:, 2:-2, 2:-2] = True
    np.testing.assert_allclose(low.values[inner], world.reshape(low.shape)[inner], atol=1e-3)


def test_pairs_depend_on_the_seed_only():
    """Equal seeds give equal pairs, the target is the middle plane, and a quarter turn keeps its values."""
    planes = stack(0, (5, 64, 64)).values.transpose(1, 2, 0)[None].transpose(0, 3, 1, 2)[:, :, None]
    pairs = restoration.Pairs(PUBLISHED["em_AG_D_sameas_preprint"])
    first, again, other = (pairs([planes], seed) for seed in ((0, 1), (0, 1), (0, 2)))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], other[0])
    assert first[0].shape == (1, 5, 1, 16, 16)
    still = restoration.Pairs(Degradation((Area(4),)), turns=None)([planes], (0,))
    np.testing.assert_allclose(still[1][0, 0, 0], planes[0, 2, 0] / 255, atol=1e-6)
    square = restoration.Pairs(Degradation((Area(4),)), turns=replace(restoration.TURNS, share=0.0))([planes], (3,))
    assert sorted(square[1].ravel().round(5)) == sorted(still[1].ravel().round(5))


@pytest.fixture(scope="module")
def trained():
    """Return a small network trained on stacks of lines, its history and the degradation."""
    degradation = Degradation((Area(4),))
    settings = TrainingConfig(epochs=6, batch_size=8, learning_rate=3e-3, patience=6)
    model, history = restoration.train(
        [stack(0), stack(1)],
        [stack(2)],
        degradation,
        patch_size=48,
        patches_per_epoch=160,
        settings=settings,
        progress=False,
        width=12,
        blocks=1,
    )
    return model, history, degradation


def rmse_restored_and_interpolated(model, volume, degradation, folder):
    """Return the RMSE of the restored and of the interpolated stack."""
    folder.mkdir(exist_ok=True)
    low = restoration.degrade_stack(volume, degradation, seed=1)
    restored = restoration.restore(model, low, folder / "r.zarr", force=True, progress=False)
    interpolated = mrhdata.resample(low, restored, order=1)
    volumes = (restored, interpolated)
    return [float(np.sqrt(np.mean((v.values.astype(float) - volume.values) ** 2))) for v in volumes]


def test_restoring_beats_interpolation(trained, tmp_path):
    """On a test stack the error is lower than by interpolation, and dtype, range and grid are right."""
    model, history, degradation = trained
    volume = stack(5)
    restored, bilinear = rmse_restored_and_interpolated(model, volume, degradation, tmp_path)
    assert restored < 0.8 * bilinear
    assert history.rmse[-1] < history.rmse[0]
    written = mrhdata.read(tmp_path / "r.zarr")
    assert written.mrh.grid.same_as(volume.mrh.grid)
    assert written.dtype == np.uint8


def test_network_trained_on_bytes_restores_16_bit_integers(trained, tmp_path):
    """The restored image is the same at 8 and 16 bits, and the network keeps its scales."""
    model, _, degradation = trained
    spec = model.spec
    fractions = {}
    for dtype in (np.uint8, np.uint16):
        low = restoration.degrade_stack(stack(6, dtype=dtype), degradation, seed=1)
        restored = restoration.restore(model, low, tmp_path / f"{np.dtype(dtype)}.zarr", progress=False)
        assert restored.dtype == dtype
        fractions[dtype] = restored.values / np.iinfo(dtype).max
    assert np.abs(fractions[np.uint8] - fractions[np.uint16]).max() < 0.02
    assert model.spec == spec


def test_result_does_not_depend_on_memory(trained, tmp_path):
    """A small memory budget, and so many blocks, changes no value by more than rounding."""
    model, _, degradation = trained
    low = restoration.degrade_stack(stack(7, (4, 256, 256)), degradation, seed=1)
    whole = restoration.restore(model, low, tmp_path / "a.zarr", progress=False)
    parts = restoration.restore(model, low, tmp_path / "b.zarr", memory="12 MB", progress=False)
    assert int(np.abs(whole.values.astype(int) - parts.values.astype(int)).max()) <= 1


@pytest.mark.full
def test_published_network_restores_in_blended_windows(tmp_path):
    """Windows of the training size overlap, and the result has four times the pixels along y and x."""
    degradation = Degradation((Area(4),))
    settings = TrainingConfig(epochs=1, batch_size=2, learning_rate=1e-4, patience=1)
    model, _ = restoration.train(
        [stack(0)],
        [stack(1)],
        degradation,
        network="pssr",
        patch_size=64,
        patches_per_epoch=2,
        settings=settings,
        progress=False,
    )
    low = restoration.degrade_stack(stack(2, (1, 96, 112)), degradation, seed=0)
    restored = restoration.restore(model, low, tmp_path / "p.zarr", progress=False)
    assert restored.shape == (1, 96, 112)
    assert restored.mrh.grid.same_as(stack(2, (1, 96, 112)).mrh.grid)


def test_context_slices_of_two_restore_all_planes(tmp_path):
    """A network of five planes also restores the first and the last plane."""
    settings = TrainingConfig(epochs=1, batch_size=4, learning_rate=1e-3, patience=1)
    degradation = PUBLISHED["em_AG_D_sameas_preprint"]
    model, _ = restoration.train(
        [stack(0)],
        [stack(1)],
        degradation,
        context_slices=2,
        patch_size=32,
        patches_per_epoch=8,
        settings=settings,
        progress=False,
        width=4,
        blocks=1,
    )
    assert model.spec.context_slices == 2
    low = restoration.degrade_stack(stack(3), degradation, seed=0)
    assert restoration.restore(model, low, tmp_path / "f.zarr", progress=False).sizes["z"] == 6


def test_fine_tuning_on_acquired_pairs_lowers_the_error(trained, tmp_path):
    """Fine-tuning on pairs of another degradation lowers the error on it, in a copy of the network."""
    model, _, _ = trained
    other = Degradation((Blur(1.5), Area(4)))
    truth = stack(8)
    low = restoration.degrade_stack(truth, other, seed=0)
    tuned = restoration.fine_tune(
        model, [(low, truth)], [(restoration.degrade_stack(stack(9), other, 0), stack(9))],
        patch_size=48, patches_per_epoch=120, progress=False,
        settings=TrainingConfig(epochs=4, batch_size=8, learning_rate=2e-3, patience=4),
    )  # fmt: skip
    before, after = (
        rmse_restored_and_interpolated(network, stack(10), other, tmp_path / name)[0]
        for network, name in ((model, "a"), (tuned, "b"))
    )
    assert after < 0.95 * before
    assert tuned is not model


def test_arriving_waits_until_files_are_complete(tmp_path):
    """A growing file is yielded after its last change."""
    (tmp_path / "a.tif").write_bytes(b"1")

    def write():
        with (tmp_path / "b.tif").open("wb") as file:
            for _ in range(4):
                file.write(b"1234")
                file.flush()
                time.sleep(0.15)

    writer = threading.Thread(target=write)
    writer.start()
    sizes = {
        p.name: p.stat().st_size
        for p in arriving(tmp_path, lambda p: p.suffix == ".tif", settle_s=1.2, idle_s=2.0, every_s=0.05)
    }
    writer.join()
    assert sizes == {"a.tif": 1, "b.tif": 16}


def test_unsuitable_degradations_and_networks_are_refused(trained):
    """Each message names the argument, and the number of parameters of PSSR is the published one."""
    with pytest.raises(DataError, match="one step that reduces the pixels"):
        restoration.reduction(Degradation((Blur(1.0),)))
    with pytest.raises(ParameterError, match="context_slices must be 0 or more"):
        restoration.train([stack(0)], [stack(1)], Degradation((Area(4),)), context_slices=-1)
    with pytest.raises(ModelError, match="was not trained"):
        restoration.restore(models.create("restorer"), stack(0), "x.zarr")
    assert sum(p.numel() for p in models.create("pssr").parameters()) == pytest.approx(48.95e6, rel=0.005)
    with pytest.raises(ModelError, match="odd"):
        models.create("restorer", in_channels=2)
    assert torch.isfinite(torch.tensor(trained[1].rmse)).all()
