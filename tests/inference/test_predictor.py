"""Predictions: modes, masks, borders and errors; after kills, with corrupt chunks, and on a cluster."""

import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from torch import nn

import mrhdata
from mrhdata.errors import DataError, FormatError, GridError, ModelError, ParameterError
from mrhdata.inference.output import Output
from mrhdata.inference.strategies.sliding_window import SlidingWindow
from mrhdata.io.omezarr import writer
from mrhdata.models.spec import predict_raw
from mrhdata.volume.construct import from_array
from tests.conftest import oblique_affine
from tests.processes import kill_after


def predict_voxel(model, inputs, z, y, x):
    """Predict one voxel from its own 3 x 3 coronal patch, with repeated edges."""
    stacked = mrhdata.volume.stack(inputs).values
    padded = np.pad(stacked, [(0, 0), (1, 1), (0, 0), (1, 1)], mode="edge")
    patch = padded[:, z : z + 3, y : y + 1, x : x + 3]
    with torch.inference_mode():
        return predict_raw(model, torch.from_numpy(patch[None])).numpy()[0, 0, 1, 0, 1]


def test_patch_centre_mode_predicts_the_centre_of_every_patch(trained, tmp_path):
    """Including borders, in the target's units, on the grid of the inputs."""
    model, _, inputs, target = trained
    prediction = mrhdata.predict(model, inputs, tmp_path / "p.zarr", progress=False)
    assert prediction.dims == ("z", "y", "x")
    assert prediction.mrh.grid.same_as(inputs["a"].mrh.grid, 1e-9)
    values = prediction.values
    for z, y, x in [(0, 0, 0), (5, 4, 7), (11, 9, 13), (0, 9, 3)]:
        assert values[z, y, x] == pytest.approx(predict_voxel(model, inputs, z, y, x), rel=1e-5)
    assert np.corrcoef(values.ravel(), target.values.ravel())[0, 1] > 0.95


def test_dense_mode_equals_one_pass_per_plane(trained, tmp_path):
    """It differs from the published patch_centre mode."""
    model, _, inputs, _ = trained
    dense = mrhdata.predict(model, inputs, tmp_path / "d.zarr", mode="dense", progress=False)
    plane = mrhdata.volume.stack(inputs).values[None, :, :, 4:5, :]
    with torch.inference_mode():
        expected = predict_raw(model, torch.from_numpy(plane)).numpy()[0, 0, :, 0]
    np.testing.assert_allclose(dense.isel(y=4), expected, rtol=1e-5)
    patch = mrhdata.predict(model, inputs, tmp_path / "p.zarr", progress=False)
    assert np.abs(dense - patch).max() > 1


def test_prediction_does_not_depend_on_memory_and_batch_size(trained, tmp_path):
    """Both change the blocks in which it is computed."""
    model, _, inputs, _ = trained
    whole = mrhdata.predict(model, inputs, tmp_path / "a.zarr", progress=False).values
    windows = SlidingWindow(batch_size=17)
    blocks = mrhdata.predict(model, inputs, tmp_path / "b.zarr", windows=windows, memory="10 MB", progress=False).values
    np.testing.assert_allclose(blocks, whole, rtol=1e-5)


def test_prediction_without_out_equals_the_stored_one(trained, tmp_path):
    """The same voxels on the same grid, in memory."""
    model, _, inputs, _ = trained
    stored = mrhdata.predict(model, inputs, tmp_path / "p.zarr", progress=False)
    loaded = mrhdata.predict(model, inputs, progress=False)
    np.testing.assert_array_equal(loaded, stored)
    assert loaded.mrh.grid.same_as(stored.mrh.grid)
    assert isinstance(loaded.variable._data, np.ndarray)


@pytest.mark.parametrize(
    ("network", "output", "megabytes"),
    [
        (nn.Conv3d(1, 1, 1), Output(), 14),
        (nn.Conv3d(1, 3, 1), Output(), 40),
        (nn.Conv3d(1, 1, 2, stride=2), Output(dtype="float64"), 3),
        (nn.Conv3d(1, 3, 1), Output(argmax=True), 3),
    ],
    ids=["one channel", "three channels", "a coarser grid", "labels"],
)
def test_prediction_without_out_must_fit_the_memory(network, output, megabytes):
    """The bytes of the result are those of its own grid, channels and type."""
    volume = from_array(np.zeros((150, 150, 150), np.uint8), spacing=(1, 1, 1))
    options = {"memory": "10 MB", "mode": "dense", "output": output, "progress": False}
    if megabytes < 10:
        assert mrhdata.predict(network, volume, **options).nbytes == pytest.approx(megabytes * 1e6, rel=0.2)
        return
    sentence = rf"^memory must be at least {megabytes} MB .*got '10 MB'\. Pass a larger memory=, or out="
    with pytest.raises(ParameterError, match=sentence):
        mrhdata.predict(network, volume, **options)


def test_masked_voxels_are_zero(trained, tmp_path):
    """Voxels in the mask do not change."""
    model, _, inputs, _ = trained
    mask = inputs["a"].copy(data=(inputs["a"].values > 0.5).astype(np.uint8))
    whole = mrhdata.predict(model, inputs, tmp_path / "a.zarr", progress=False).values
    masked = mrhdata.predict(model, inputs, tmp_path / "b.zarr", mask=mask, progress=False).values
    np.testing.assert_allclose(masked, np.where(mask.values, whole, 0), rtol=1e-5)


def test_prediction_is_written_to_nifti(trained, tmp_path):
    """On the grid of the inputs."""
    model, _, inputs, _ = trained
    prediction = mrhdata.predict(model, inputs, tmp_path / "p.nii.gz", progress=False)
    assert prediction.mrh.grid.distance(inputs["a"].mrh.grid) < 1e-6


def test_refused_predictions_leave_nothing_behind(trained, tmp_path):
    """Another order of channels, NaN, an empty mask, other grids, an untrained network, an unknown mode."""
    model, _, inputs, _ = trained
    swapped = {"b": inputs["b"], "a": inputs["a"]}
    with pytest.raises(ModelError, match=r"trained on \('a', 'b'\) but is given \('b', 'a'\)"):
        mrhdata.predict(model, swapped, tmp_path / "p.zarr", progress=False)
    with pytest.raises(DataError, match="not finite"):
        mrhdata.predict(model, {**inputs, "b": inputs["b"] * np.nan}, tmp_path / "p.zarr", progress=False)
    with pytest.raises(DataError, match="mask is empty"):
        mrhdata.predict(model, inputs, tmp_path / "p.zarr", mask=inputs["a"] * 0, progress=False)
    with pytest.raises(GridError, match="shapes differ"):
        mrhdata.predict(model, {**inputs, "b": inputs["b"].isel(x=slice(5))}, tmp_path / "p.zarr", progress=False)
    with pytest.raises(ModelError, match="was not trained"):
        mrhdata.predict(mrhdata.models.create("mrhnet", loop_blocks=1), inputs, tmp_path / "p.zarr", progress=False)
    with pytest.raises(ParameterError, match="mode must be one of sliding_window, patch_centre, dense; got 'fast'"):
        mrhdata.predict(model, inputs, tmp_path / "p.zarr", mode="fast", progress=False)
    assert list(tmp_path.iterdir()) == []
    mrhdata.predict(model, inputs, tmp_path / "p.zarr", progress=False)
    with pytest.raises(FormatError, match="exists"):
        mrhdata.predict(model, inputs, tmp_path / "p.zarr", mode="dense", progress=False)


def smoothing(channels=1):
    """A network of three layers with fixed weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(channels, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 1, 3, padding=1)).eval()


def stored(folder, shape=(140, 270, 40), spacing=(1, 1, 1)):
    """A volume of several shards, read from a store."""
    values = np.random.default_rng(0).integers(0, 4000, shape).astype(np.uint16)
    mrhdata.write(from_array(values, spacing=spacing, name="brain"), folder / "brain.zarr")
    return mrhdata.read(folder / "brain.zarr")


def in_one_pass(model, volume):
    with torch.inference_mode():
        return model(torch.from_numpy(volume.values.astype(np.float32))[None, None])[0].numpy()


def test_dense_prediction_of_a_store_equals_one_pass(tmp_path):
    """In many blocks and pieces, with resolution levels."""
    volume = stored(tmp_path)
    model = smoothing()
    prediction = mrhdata.predict(model, volume, tmp_path / "m.zarr", mode="dense", memory="20 MB", progress=False)
    np.testing.assert_allclose(prediction, in_one_pass(model, volume)[0], atol=1e-5 * 4000)
    assert prediction.mrh.grid.same_as(volume.mrh.grid)
    assert prediction.attrs["provenance"]["weights"]
    assert mrhdata.io.formats.read(tmp_path / "m.zarr", level=1).shape == (70, 135, 20)


def test_coarser_and_finer_predictions_have_the_right_grid(tmp_path):
    """A stride of 2 and an upsampling by 2: each voxel lies in the middle of its receptive field."""
    volume = from_array(np.random.default_rng(0).random((20, 24, 30), np.float32), affine=oblique_affine())
    detector = nn.Sequential(nn.Conv3d(1, 2, 3), nn.MaxPool3d(2), nn.Conv3d(2, 1, 3), nn.Conv3d(1, 1, 3))
    halved = mrhdata.predict(detector, volume, tmp_path / "d.zarr", mode="dense", progress=False)
    assert halved.shape == tuple((n - 12) // 2 + 1 for n in volume.shape)
    index = np.array([1, 2, 3])
    np.testing.assert_allclose(halved.mrh.world(index), volume.mrh.world(2 * index + 5.5))
    finer = nn.Upsample(scale_factor=2)
    doubled = mrhdata.predict(finer, volume, tmp_path / "f.zarr", mode="dense", progress=False)
    assert doubled.shape == tuple(2 * n for n in volume.shape)
    np.testing.assert_allclose(doubled.mrh.world(2 * index), volume.mrh.world(index - 0.25))
    np.testing.assert_array_equal(doubled.values[::2, 1::2, ::2], volume.values)


@pytest.mark.parametrize("mode", ["dense", pytest.param("sliding_window", marks=pytest.mark.full)])
def test_mask_on_another_grid(tmp_path, mode):
    """Voxels count if their nearest mask voxel is set; blocks without any are not written."""
    volume = stored(tmp_path, (30, 140, 270))
    inside = np.zeros((6, 14, 27), np.uint8)
    inside[2:4, 5:8, 6:10] = 1
    mask = from_array(inside, spacing=(5, 10, 10), kind="mask")
    options = {"mode": mode, "windows": SlidingWindow(shape=(16, 32, 32)), "progress": False}
    whole = mrhdata.predict(smoothing(), volume, tmp_path / "whole.zarr", **options)
    masked = mrhdata.predict(smoothing(), volume, tmp_path / "masked.zarr", mask=mask, **options)
    index = [np.floor(np.arange(n) / s + 0.5).astype(int) for n, s in zip(volume.shape, (5, 10, 10), strict=True)]
    nearest = np.pad(inside, 2)[np.ix_(*(i + 2 for i in index))]
    np.testing.assert_allclose(masked, np.where(nearest, whole, 0), rtol=1e-4, atol=1e-2)
    assert nearest.any()
    files = [p for p in (tmp_path / "masked.zarr" / "scale0").rglob("c/*/*/*") if p.is_file()]
    assert len(files) == 1


def test_stored_mask_skips_blocks_without_chunks(tmp_path):
    """In a sparse volume they are 0; other words are refused."""
    values = np.random.default_rng(0).integers(1, 4000, (20, 300, 600)).astype(np.uint16)
    values[:, :256, :256] = 0
    mrhdata.write(from_array(values, spacing=(1, 1, 1), name="brain"), tmp_path / "brain.zarr")
    volume = mrhdata.read(tmp_path / "brain.zarr")
    assert not (tmp_path / "brain.zarr" / "scale0" / "brain" / "c" / "0" / "0" / "0").exists()
    prediction = mrhdata.predict(
        smoothing(), volume, tmp_path / "m.zarr", mask="stored", mode="dense", memory="10 MB", progress=False
    )
    assert not prediction.values[:, :256, :256].any()
    assert (prediction.values[:, :, 260:] != 0).mean() > 0.9
    with pytest.raises(ParameterError, match="mask must be a mask volume or 'stored'; got 'brain'"):
        mrhdata.predict(smoothing(), volume, tmp_path / "n.zarr", mask="brain", mode="dense", progress=False)


def test_input_that_changes_during_the_prediction_is_refused(tmp_path):
    """A map is never made of two versions of its input."""
    volume = stored(tmp_path, (8, 9, 10))

    def save_again(done, total):
        (tmp_path / "brain.zarr" / "scale0" / "brain" / "zarr.json").touch()

    with pytest.raises(FormatError, match=r"changed while .*m\.zarr was computed from it"):
        mrhdata.predict(smoothing(), volume, tmp_path / "m.zarr", mode="dense", progress=save_again)
    assert [p.name for p in tmp_path.iterdir()] == ["brain.zarr"]


def test_output_forms(tmp_path):
    """Softmax channels, argmax labels, threshold masks and scaled integers."""
    values = np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32)
    volume = from_array(values, spacing=(1, 1, 1))
    model = nn.Conv3d(1, 3, 1)
    predictions = in_one_pass(model, volume)
    probabilities = np.exp(predictions) / np.exp(predictions).sum(0)

    def predict_as(name, **output):
        return mrhdata.predict(
            model, volume, tmp_path / f"{name}.zarr", mode="dense", output=Output(**output), progress=False
        )

    soft = predict_as("soft", activation="softmax")
    assert soft.dims == ("c", "z", "y", "x")
    np.testing.assert_allclose(soft, probabilities, rtol=1e-5)
    labels = predict_as("labels", argmax=True)
    assert (labels.dtype, labels.attrs["kind"]) == (np.uint8, "labels")
    np.testing.assert_array_equal(labels, predictions.argmax(0))
    mask = predict_as("mask", activation="softmax", threshold=0.5)
    assert mask.attrs["kind"] == "mask"
    np.testing.assert_array_equal(mask, probabilities >= 0.5)
    small = predict_as("small", activation="softmax", dtype="uint8", value_range=(0, 1))
    np.testing.assert_allclose(small.values, probabilities * 255, atol=0.51)
    for dtype in ("int32", "uint32", "int64", "uint64"):
        limits = np.iinfo(dtype)
        wide = Output(dtype=dtype, value_range=(0, 1)).of(np.array([-1, 0, 0.5, 1, 7], np.float32))
        np.testing.assert_allclose(
            wide.astype(float),
            [limits.min] * 2 + [(limits.max + limits.min) / 2] + [limits.max] * 2,
            rtol=1e-6,
            atol=limits.max * 1e-6,
        )
    with pytest.raises(ParameterError, match="value_range must be two numbers for dtype='uint8'"):
        Output(dtype="uint8")
    with pytest.raises(ParameterError, match="'softmax' or 'sigmoid'; got 'relu'"):
        Output(activation="relu")
    with pytest.raises(ParameterError, match=r"threshold must be None with argmax=True; got 0\.5"):
        Output(argmax=True, threshold=0.5)


def test_inputs_on_two_grids_are_resampled_or_refused(tmp_path):
    """With grids="resample" they are resampled to the first as they are read."""
    fine = from_array(np.random.default_rng(0).random((20, 20, 20), np.float32), spacing=(1, 1, 1))
    coarse = fine.isel(z=slice(0, 20, 2), y=slice(0, 20, 2), x=slice(0, 20, 2))
    model = nn.Conv3d(2, 1, 1, bias=False).requires_grad_(False)
    model.weight[0, :, 0, 0, 0] = torch.tensor([1.0, -1.0])
    inputs = {"fine": fine, "coarse": coarse}
    with pytest.raises(GridError):
        mrhdata.predict(model, inputs, tmp_path / "m.zarr", mode="dense", progress=False)
    prediction = mrhdata.predict(model, inputs, tmp_path / "m.zarr", mode="dense", grids="resample", progress=False)
    np.testing.assert_allclose(prediction.values[::2, ::2, ::2], 0, atol=1e-6)
    assert np.abs(prediction.values[1::2]).max() > 0.1


def test_corrupt_chunk_is_named_and_may_be_skipped(tmp_path):
    """The run resumes after the finished blocks once the chunk is repaired."""
    volume = stored(tmp_path, (140, 530, 40))
    model, store = smoothing(), tmp_path / "m.zarr"
    options = {"mode": "dense", "memory": "10 MB", "progress": False}
    whole = mrhdata.predict(model, volume, tmp_path / "whole.zarr", **options)
    shard = max((tmp_path / "brain.zarr" / "scale0").rglob("c/*/*/*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:2000])
    with pytest.raises(FormatError, match=r"brain.zarr cannot be read.*chunk 2, 8, 0"):
        mrhdata.predict(model, volume, store, **options)
    journal = tmp_path / ".m.zarr.partial" / "journal"
    finished = len(journal.read_text("utf-8").splitlines())
    assert finished > 2
    shard.write_bytes(content)
    np.testing.assert_array_equal(mrhdata.predict(model, volume, store, **options), whole)
    shard.write_bytes(content[:2000])
    skipping = mrhdata.predict(model, volume, tmp_path / "skip.zarr", skip_corrupt=True, **options)
    assert "chunk 2, 8, 0" in skipping.attrs["provenance"]["skipped"][0]
    np.testing.assert_array_equal(skipping[:120], whole[:120])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["brain.zarr", "m.zarr", "skip.zarr", "whole.zarr"]


def test_predictions_that_are_not_finite(tmp_path):
    """An error names the first voxel; with skip_corrupt they are 0 and listed."""
    values = np.ones((10, 12, 14), np.float32)
    values[5, 6, 7] = np.nan
    volume = from_array(values, spacing=(1, 1, 1))
    with pytest.raises(DataError, match=r"27 predictions.*not finite, the first at \(4, 5, 6\)"):
        mrhdata.predict(nn.Conv3d(1, 1, 3, padding=1), volume, tmp_path / "m.zarr", mode="dense", progress=False)
    assert list(tmp_path.iterdir()) == []
    prediction = mrhdata.predict(
        nn.Conv3d(1, 1, 3, padding=1), volume, tmp_path / "m.zarr", mode="dense", skip_corrupt=True, progress=False
    )
    assert np.isfinite(prediction.values).all()
    assert "27 predictions" in prediction.attrs["provenance"]["skipped"][0]


def test_full_disk_keeps_finished_blocks(tmp_path, monkeypatch):
    """The error names the cause, and the next run resumes."""
    volume, model = stored(tmp_path), smoothing()
    write, written = writer.Writer._write_block, []

    def full(self, level, index, block, array):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(index)
        write(self, level, index, block, array)

    monkeypatch.setattr(writer.Writer, "_write_block", full)
    options = {"mode": "dense", "memory": "10 MB", "progress": False}
    with pytest.raises(
        FormatError, match=r"cannot be written \(.*No space left on device\). Free disk space; another run resumes"
    ):
        mrhdata.predict(model, volume, tmp_path / "m.zarr", **options)
    monkeypatch.setattr(writer.Writer, "_write_block", write)
    prediction = mrhdata.predict(model, volume, tmp_path / "m.zarr", **options)
    np.testing.assert_allclose(prediction, in_one_pass(model, volume)[0], atol=1e-5 * 4000)


#: Options of the killed runs and of the uninterrupted one.
SMALL = {"windows": SlidingWindow(shape=(48, 64, 40)), "memory": "10 MB"}


def predict_and_report(send, source, target, mode):
    """Predict in a process that a test kills."""
    volume = mrhdata.read(source)
    mrhdata.predict(smoothing(), volume, target, mode=mode, progress=lambda done, total: send(done), **SMALL)


def _file_times(store):
    return {p: p.stat().st_mtime_ns for p in store.rglob("scale*/*/c/*/*/*") if p.is_file()}


@pytest.mark.full
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mode", ["dense", "sliding_window"])
def test_runs_killed_at_random_moments_resume(tmp_path, mode, seed):
    """After SIGKILL at any moment, repeated runs give the result of one run and keep finished shards."""
    volume = stored(tmp_path)
    options = {"mode": mode, "progress": False, **SMALL}
    whole = mrhdata.predict(smoothing(), volume, tmp_path / "whole.zarr", **options)
    target, rng, kills = tmp_path / "m.zarr", random.Random(seed), 0
    draft = tmp_path / ".m.zarr.partial"
    for run in range(30):
        finished = (draft / "journal").read_text("utf-8").splitlines()[1:] if (draft / "journal").exists() else []
        before = _file_times(draft / "store")
        # Each run finishes at least one block before it is killed, so the work advances.
        kills += kill_after(rng.random() * 0.3 * bool(run), predict_and_report, tmp_path / "brain.zarr", target, mode)
        store = target if target.exists() else draft / "store"
        after = {p.relative_to(store): t for p, t in _file_times(store).items()}
        unchanged = sum(after.get(p.relative_to(draft / "store")) == t for p, t in before.items())
        # Except the shards of one block, which may be incomplete.
        assert unchanged >= min(len(finished), len(before) - 4)
        if target.exists():
            break
    else:
        pytest.fail("30 runs did not finish")
    assert kills >= 1
    np.testing.assert_allclose(mrhdata.predict(smoothing(), volume, target, **options), whole, rtol=1e-5, atol=1e-2)


def test_interruption_waits_for_a_task_but_not_for_a_block(tmp_path):
    """The next block is predicted while one is written."""
    calls, calls_before = [], []

    class Slow(nn.Module):
        def forward(self, x):
            calls.append(x.shape)
            # Slow after the interruption, so that a busy machine has time to deliver it.
            time.sleep(0.3 if calls_before else 0.02)
            return x

    def interrupt(*_):
        calls_before.append(len(calls))
        raise KeyboardInterrupt

    windows = SlidingWindow((32, 32, 32), overlap=0, batch_size=1)
    options = {"windows": windows, "memory": "40 MB", "progress": interrupt}
    with pytest.raises(KeyboardInterrupt):
        mrhdata.predict(Slow(), stored(tmp_path, (512, 128, 128)), tmp_path / "m.zarr", **options)
    # The next block has 64 tasks.
    assert len(calls) - calls_before[0] < 8


@pytest.mark.full
@pytest.mark.parametrize("workers", [1, 2])
def test_cluster_survives_the_death_of_a_worker(workers, tmp_path):
    """Worker processes predict the blocks; one of them, possibly the only one, is killed during the run."""
    from distributed import Client, LocalCluster

    volume = stored(tmp_path)
    options = {"mode": "dense", "memory": "10 MB"}
    expected = mrhdata.predict(smoothing(), volume, tmp_path / "expected.zarr", progress=False, **options)
    killed = []
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        pids = client.run(os.getpid)

        def kill_one(done, total):
            if not killed and done > total / 4:
                killed.append(next(iter(pids.values())))
                os.kill(killed[0], signal.SIGKILL)

        shared = mrhdata.predict(smoothing(), volume, tmp_path / "shared.zarr", progress=kill_one, **options)
    assert killed
    np.testing.assert_array_equal(shared, expected)


@pytest.mark.full
def test_work_lost_in_transfer_to_a_worker_is_sent_again(tmp_path, monkeypatch):
    """A cluster that never accepts it ends with an error."""
    from distributed import Client
    from distributed.comm.core import CommClosedError

    from mrhdata.io.omezarr import resumable

    volume = stored(tmp_path)
    options = {"mode": "dense", "memory": "10 MB", "progress": False}
    expected = mrhdata.predict(smoothing(), volume, tmp_path / "expected.zarr", **options)
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
        scatter, calls = client.scatter, []

        def fail_first(*args, **kwargs):
            calls.append(args)
            if len(calls) <= failing:
                raise CommClosedError("Stream is closed")
            return scatter(*args, **kwargs)

        monkeypatch.setattr(client, "scatter", fail_first)
        monkeypatch.setattr(resumable, "_active_client", lambda: client)
        monkeypatch.setattr(resumable, "_MAX_LOSSES", 2)
        failing = 3
        with pytest.raises(FormatError, match="another run resumes"):
            mrhdata.predict(smoothing(), volume, tmp_path / "shared.zarr", **options)
        calls, failing = [], 2
        shared = mrhdata.predict(smoothing(), volume, tmp_path / "shared.zarr", **options)
    assert len(calls) > failing
    np.testing.assert_array_equal(shared, expected)


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_unavailable_devices_and_names_of_networks_are_refused(tmp_path, device):
    volume = from_array(np.zeros((4, 4, 4), np.float32), spacing=(1, 1, 1))
    network = torch.nn.Conv3d(1, 1, 1)
    with pytest.raises(ParameterError, match=f"device must be auto or one that this machine has .cpu.*got '{device}'"):
        mrhdata.predict(network, volume, tmp_path / "a.zarr", mode="dense", device=device, progress=False)
    with pytest.raises(ModelError, match=r"mrhdata\.models\.load"):
        mrhdata.predict("phantom-nf", volume, tmp_path / "a.zarr", progress=False)
