"""Maps: patch and dense meaning, masks, borders, refusals; killed, corrupt, on a cluster."""

import os
import random
import signal
import time

import numpy as np
import pytest
import torch
import zarr
from torch import nn

import mrhdata
from mrhdata.errors import DataError, FormatError, GridError, ModelError
from mrhdata.inference.output import Output
from mrhdata.inference.strategies.sliding_window import SlidingWindow
from mrhdata.io.omezarr import writer
from mrhdata.models.spec import predict_raw
from mrhdata.volume.construct import from_array
from tests.conftest import oblique_affine
from tests.processes import kill_after


def by_hand(model, inputs, z, y, x):
    """One voxel from its own 3 x 3 coronal patch, edges repeated."""
    stacked = mrhdata.volume.stack(inputs).values
    padded = np.pad(stacked, [(0, 0), (1, 1), (0, 0), (1, 1)], mode="edge")
    patch = padded[:, z : z + 3, y : y + 1, x : x + 3]
    with torch.inference_mode():
        return predict_raw(model, torch.from_numpy(patch[None])).numpy()[0, 0, 1, 0, 1]


def test_patch_mode_is_the_centre_of_every_patch(trained, tmp_path):
    """Borders included, in the target's units, on the inputs' grid."""
    model, _, inputs, target = trained
    mapped = mrhdata.predict(model, inputs, tmp_path / "p.zarr", progress=False)
    assert mapped.dims == ("z", "y", "x")
    assert mapped.mrh.grid.same_as(inputs["a"].mrh.grid, 1e-9)
    values = mapped.values
    for z, y, x in [(0, 0, 0), (5, 4, 7), (11, 9, 13), (0, 9, 3)]:
        assert values[z, y, x] == pytest.approx(by_hand(model, inputs, z, y, x), rel=1e-5)
    assert np.corrcoef(values.ravel(), target.values.ravel())[0, 1] > 0.95


def test_dense_mode_is_one_pass_per_plane_and_differs(trained, tmp_path):
    """Whole planes at once; not the published per-patch meaning."""
    model, _, inputs, _ = trained
    dense = mrhdata.predict(model, inputs, tmp_path / "d.zarr", mode="dense", progress=False)
    plane = mrhdata.volume.stack(inputs).values[None, :, :, 4:5, :]
    with torch.inference_mode():
        expected = predict_raw(model, torch.from_numpy(plane)).numpy()[0, 0, :, 0]
    np.testing.assert_allclose(dense.isel(y=4), expected, rtol=1e-5)
    patch = mrhdata.predict(model, inputs, tmp_path / "p.zarr", progress=False)
    assert np.abs(dense - patch).max() > 1


def test_slabs_do_not_show(trained, tmp_path):
    """The same map for any slab thickness and batch size."""
    model, _, inputs, _ = trained
    whole = mrhdata.predict(model, inputs, tmp_path / "a.zarr", progress=False).values
    few = SlidingWindow(batch_size=17)
    thin = mrhdata.predict(model, inputs, tmp_path / "b.zarr", windows=few, memory="10 MB", progress=False).values
    np.testing.assert_allclose(thin, whole, rtol=1e-5)


def test_masked_voxels_are_zero(trained, tmp_path):
    """Only the mask is computed, and what is computed does not change."""
    model, _, inputs, _ = trained
    mask = inputs["a"].copy(data=(inputs["a"].values > 0.5).astype(np.uint8))
    whole = mrhdata.predict(model, inputs, tmp_path / "a.zarr", progress=False).values
    masked = mrhdata.predict(model, inputs, tmp_path / "b.zarr", mask=mask, progress=False).values
    np.testing.assert_allclose(masked, np.where(mask.values, whole, 0), rtol=1e-5)


def test_any_written_format_will_do(trained, tmp_path):
    """A map goes straight to NIfTI."""
    model, _, inputs, _ = trained
    mapped = mrhdata.predict(model, inputs, tmp_path / "p.nii.gz", progress=False)
    assert mapped.mrh.grid.distance(inputs["a"].mrh.grid) < 1e-6


def test_refusals_leave_nothing_behind(trained, tmp_path):
    """Other channels or order, NaN, an empty mask, other grids, an untrained network, an existing store."""
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
    with pytest.raises(ModelError, match="patch or dense"):
        mrhdata.predict(model, inputs, tmp_path / "p.zarr", mode="fast", progress=False)
    assert list(tmp_path.iterdir()) == []
    mrhdata.predict(model, inputs, tmp_path / "p.zarr", progress=False)
    with pytest.raises(FormatError, match="exists"):
        mrhdata.predict(model, inputs, tmp_path / "p.zarr", mode="dense", progress=False)


def smoothing(channels=1):
    """A small network of three layers, with fixed weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(channels, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 1, 3, padding=1)).eval()


def stored(folder, shape=(140, 270, 40), spacing=(1, 1, 1)):
    """A volume of several shards, in a store."""
    values = np.random.default_rng(0).integers(0, 4000, shape).astype(np.uint16)
    mrhdata.write(from_array(values, spacing=spacing, name="brain"), folder / "brain.zarr")
    return mrhdata.read(folder / "brain.zarr")


def in_one_pass(model, volume):
    with torch.inference_mode():
        return model(torch.from_numpy(volume.values.astype(np.float32))[None, None])[0].numpy()


def test_dense_maps_are_those_of_one_pass(tmp_path):
    """Out of a store, in many blocks and pieces, into a store with levels."""
    volume = stored(tmp_path)
    model = smoothing()
    mapped = mrhdata.predict(model, volume, tmp_path / "m.zarr", mode="dense", memory="20 MB", progress=False)
    np.testing.assert_allclose(mapped, in_one_pass(model, volume)[0], atol=1e-5 * 4000)
    assert mapped.mrh.grid.same_as(volume.mrh.grid)
    assert mapped.attrs["provenance"]["weights"]
    assert mrhdata.io.formats.read(tmp_path / "m.zarr", level=1).shape == (70, 135, 20)


def test_coarser_and_finer_grids_lie_right(tmp_path):
    """A detector of stride 2 and a network that doubles: voxels lie where their receptive fields have their middle."""
    volume = from_array(np.random.default_rng(0).random((20, 24, 30), np.float32), affine=oblique_affine())
    detector = nn.Sequential(nn.Conv3d(1, 2, 3), nn.MaxPool3d(2), nn.Conv3d(2, 1, 3), nn.Conv3d(1, 1, 3))
    found = mrhdata.predict(detector, volume, tmp_path / "d.zarr", mode="dense", progress=False)
    dims = dict(zip(volume.dims, volume.shape, strict=True))
    assert found.shape == tuple((n - 12) // 2 + 1 for n in dims.values())
    at = np.array([1, 2, 3])
    np.testing.assert_allclose(found.mrh.world(at), volume.mrh.world(2 * at + 5.5))
    finer = nn.Upsample(scale_factor=2)
    doubled = mrhdata.predict(finer, volume, tmp_path / "f.zarr", mode="dense", progress=False)
    assert doubled.shape == tuple(2 * n for n in dims.values())
    np.testing.assert_allclose(doubled.mrh.world(2 * at), volume.mrh.world(at - 0.25))
    np.testing.assert_array_equal(doubled.values[::2, 1::2, ::2], volume.values)


@pytest.mark.parametrize("mode", ["dense", pytest.param("patch", marks=pytest.mark.full)])
def test_a_mask_of_another_grid(tmp_path, mode):
    """Voxels whose nearest mask voxel is set; blocks without any are not written."""
    volume = stored(tmp_path, (30, 140, 270))
    inside = np.zeros((6, 14, 27), np.uint8)
    inside[2:4, 5:8, 6:10] = 1
    mask = from_array(inside, spacing=(5, 10, 10), kind="mask")
    model = smoothing()
    found = {}
    for name, where in (("whole", None), ("part", mask)):
        windows = SlidingWindow(shape=(16, 32, 32))
        found[name] = mrhdata.predict(
            model, volume, tmp_path / f"{name}.zarr", mask=where, mode=mode, windows=windows, progress=False
        )
    index = [np.floor(np.arange(n) / s + 0.5).astype(int) for n, s in zip(volume.shape, (5, 10, 10), strict=True)]
    near = np.pad(inside, 2)[np.ix_(*(i + 2 for i in index))]
    np.testing.assert_allclose(found["part"], np.where(near, found["whole"], 0), rtol=1e-4, atol=1e-2)
    assert near.any()
    files = [p for p in (tmp_path / "part.zarr" / "scale0").rglob("c/*/*/*") if p.is_file()]
    assert len(files) == 1


def test_only_what_is_stored(tmp_path):
    """A sparse volume: blocks of which no chunk was written are left out."""
    volume = stored(tmp_path, (20, 300, 600))
    array = zarr.open_array(tmp_path / "brain.zarr" / "scale0" / "brain", mode="r+")
    for path in (tmp_path / "brain.zarr" / "scale0" / "brain" / "c").rglob("0/0/0"):
        path.unlink()
    assert not array[:, :256, :256].any()
    mapped = mrhdata.predict(
        smoothing(), volume, tmp_path / "m.zarr", mask="stored", mode="dense", memory="10 MB", progress=False
    )
    assert not mapped.values[:, :256, :256].any()
    assert (mapped.values[:, :, 260:] != 0).mean() > 0.9
    with pytest.raises(DataError, match="'stored', not 'brain'"):
        mrhdata.predict(smoothing(), volume, tmp_path / "n.zarr", mask="brain", mode="dense", progress=False)


def test_what_is_written(tmp_path):
    """Softmax, decision, threshold, integers of a range, channels."""
    values = np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32)
    volume = from_array(values, spacing=(1, 1, 1))
    model = nn.Conv3d(1, 3, 1)
    answers = in_one_pass(model, volume)
    odds = np.exp(answers) / np.exp(answers).sum(0)

    def made(name, **output):
        return mrhdata.predict(
            model, volume, tmp_path / f"{name}.zarr", mode="dense", output=Output(**output), progress=False
        )

    soft = made("soft", activation="softmax")
    assert soft.dims == ("c", "z", "y", "x")
    np.testing.assert_allclose(soft, odds, rtol=1e-5)
    labels = made("labels", argmax=True)
    assert (labels.dtype, labels.attrs["kind"]) == (np.uint8, "labels")
    np.testing.assert_array_equal(labels, answers.argmax(0))
    mask = made("mask", activation="softmax", threshold=0.5)
    assert mask.attrs["kind"] == "mask"
    np.testing.assert_array_equal(mask, odds >= 0.5)
    small = made("small", activation="softmax", dtype="uint8", range=(0, 1))
    np.testing.assert_allclose(small.values, odds * 255, atol=0.51)
    for kind in ("int32", "uint32", "int64", "uint64"):
        ends = np.iinfo(kind)
        wide = Output(dtype=kind, value_range=(0, 1)).of(np.array([-1, 0, 0.5, 1, 7], np.float32))
        np.testing.assert_allclose(
            wide.astype(float),
            [ends.min] * 2 + [(ends.max + ends.min) / 2] + [ends.max] * 2,
            rtol=1e-6,
            atol=ends.max * 1e-6,
        )
    with pytest.raises(ModelError, match="uint8 answers need a range"):
        Output(dtype="uint8")
    with pytest.raises(ModelError, match="softmax or sigmoid"):
        Output(activation="relu")


def test_inputs_of_two_grids(tmp_path):
    """Resampled to the first as they are read; without that they are refused."""
    fine = from_array(np.random.default_rng(0).random((20, 20, 20), np.float32), spacing=(1, 1, 1))
    coarse = fine.isel(z=slice(0, 20, 2), y=slice(0, 20, 2), x=slice(0, 20, 2))
    model = nn.Conv3d(2, 1, 1, bias=False).requires_grad_(False)
    model.weight[0, :, 0, 0, 0] = torch.tensor([1.0, -1.0])
    given = {"fine": fine, "coarse": coarse}
    with pytest.raises(GridError):
        mrhdata.predict(model, given, tmp_path / "m.zarr", mode="dense", progress=False)
    mapped = mrhdata.predict(model, given, tmp_path / "m.zarr", mode="dense", grids="resample", progress=False)
    np.testing.assert_allclose(mapped.values[::2, ::2, ::2], 0, atol=1e-6)
    assert np.abs(mapped.values[1::2]).max() > 0.1


def test_a_corrupt_chunk_is_named_and_may_be_skipped(tmp_path):
    """The run goes on behind the blocks that were finished once the chunk is repaired."""
    volume = stored(tmp_path, (140, 530, 40))
    model, store = smoothing(), tmp_path / "m.zarr"
    how = {"mode": "dense", "memory": "10 MB", "progress": False}
    whole = mrhdata.predict(model, volume, tmp_path / "whole.zarr", **how)
    shard = max((tmp_path / "brain.zarr" / "scale0").rglob("c/*/*/*"))
    kept = shard.read_bytes()
    shard.write_bytes(kept[:2000])
    with pytest.raises(FormatError, match=r"brain.zarr cannot be read.*chunk 2, 8, 0"):
        mrhdata.predict(model, volume, store, **how)
    journal = tmp_path / ".m.zarr.partial" / "journal"
    finished = len(journal.read_text("utf-8").splitlines())
    assert finished > 2
    shard.write_bytes(kept)
    np.testing.assert_array_equal(mrhdata.predict(model, volume, store, **how), whole)
    shard.write_bytes(kept[:2000])
    skipping = mrhdata.predict(model, volume, tmp_path / "skip.zarr", skip_corrupt=True, **how)
    assert "chunk 2, 8, 0" in skipping.attrs["provenance"]["skipped"][0]
    np.testing.assert_array_equal(skipping[:120], whole[:120])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["brain.zarr", "m.zarr", "skip.zarr", "whole.zarr"]


def test_answers_that_are_not_finite(tmp_path):
    """An error says where; skipped, they are 0 and listed."""
    values = np.ones((10, 12, 14), np.float32)
    values[5, 6, 7] = np.nan
    volume = from_array(values, spacing=(1, 1, 1))
    with pytest.raises(DataError, match=r"27 answers.*not finite, the first at \(4, 5, 6\)"):
        mrhdata.predict(nn.Conv3d(1, 1, 3, padding=1), volume, tmp_path / "m.zarr", mode="dense", progress=False)
    assert list(tmp_path.iterdir()) == []
    mapped = mrhdata.predict(
        nn.Conv3d(1, 1, 3, padding=1), volume, tmp_path / "m.zarr", mode="dense", skip_corrupt=True, progress=False
    )
    assert np.isfinite(mapped.values).all()
    assert "27 answers" in mapped.attrs["provenance"]["skipped"][0]


def test_a_full_disk(tmp_path, monkeypatch):
    """One sentence; what was finished is kept, and the next run goes on."""
    volume, model = stored(tmp_path), smoothing()
    write, seen = writer.Writer._write, []

    def full(self, level, index, block, array):
        if len(seen) == 3:
            raise OSError(28, "No space left on device")
        seen.append(index)
        write(self, level, index, block, array)

    monkeypatch.setattr(writer.Writer, "_write", full)
    how = {"mode": "dense", "memory": "10 MB", "progress": False}
    with pytest.raises(
        FormatError, match=r"cannot be written \(.*No space left on device\). Free disk space; another run resumes"
    ):
        mrhdata.predict(model, volume, tmp_path / "m.zarr", **how)
    monkeypatch.setattr(writer.Writer, "_write", write)
    mapped = mrhdata.predict(model, volume, tmp_path / "m.zarr", **how)
    np.testing.assert_allclose(mapped, in_one_pass(model, volume)[0], atol=1e-5 * 4000)


#: Of the runs that are killed, and of the one that is not.
SMALL = {"windows": SlidingWindow(shape=(48, 64, 40)), "memory": "10 MB"}


def predict(tell, source, target, mode):
    """What is killed."""
    volume = mrhdata.read(source)
    mrhdata.predict(smoothing(), volume, target, mode=mode, progress=lambda done, total: tell(done), **SMALL)


def _blocks(store):
    return {p: p.stat().st_mtime_ns for p in store.rglob("scale*/*/c/*/*/*") if p.is_file()}


@pytest.mark.full
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mode", ["dense", "patch"])
def test_killed_at_random_moments(tmp_path, mode, seed):
    """SIGKILL anywhere, run again until it ends: equal to one run, finished shards not made again."""
    volume = stored(tmp_path)
    how = {"mode": mode, "progress": False, **SMALL}
    whole = mrhdata.predict(smoothing(), volume, tmp_path / "whole.zarr", **how)
    target, rng, kills = tmp_path / "m.zarr", random.Random(seed), 0
    draft = tmp_path / ".m.zarr.partial"
    for run in range(30):
        noted = (draft / "journal").read_text("utf-8").splitlines()[1:] if (draft / "journal").exists() else []
        before = _blocks(draft / "store")
        # From the first finished block on, so that the work goes forward: at once, then anywhere within it.
        kills += kill_after(rng.random() * 0.3 * bool(run), predict, tmp_path / "brain.zarr", target, mode)
        store = target if target.exists() else draft / "store"
        after = {p.relative_to(store): t for p, t in _blocks(store).items()}
        same = sum(after.get(p.relative_to(draft / "store")) == t for p, t in before.items())
        # All but the shards of one block, which may have been half written.
        assert same >= min(len(noted), len(before) - 4)
        if target.exists():
            break
    else:
        pytest.fail("30 runs did not finish")
    assert kills >= 1
    np.testing.assert_allclose(mrhdata.predict(smoothing(), volume, target, **how), whole, rtol=1e-5, atol=1e-2)


def test_an_interruption_waits_for_a_step_and_not_for_a_block(tmp_path):
    """The next block is being made while one is written."""
    calls, then = [], []

    class Slow(nn.Module):
        def forward(self, x):
            calls.append(x.shape)
            # Slow once it is interrupted: a busy machine has seconds to hear of it.
            time.sleep(0.3 if then else 0.02)
            return x

    def interrupted(*_):
        then.append(len(calls))
        raise KeyboardInterrupt

    windows = SlidingWindow((32, 32, 32), overlap=0, batch_size=1)
    how = {"windows": windows, "memory": "40 MB", "progress": interrupted}
    with pytest.raises(KeyboardInterrupt):
        mrhdata.predict(Slow(), stored(tmp_path, (512, 128, 128)), tmp_path / "m.zarr", **how)
    # Of the 64 of the next block.
    assert len(calls) - then[0] < 8


@pytest.mark.full
@pytest.mark.parametrize("workers", [1, 2])
def test_on_a_cluster_whose_worker_dies(workers, tmp_path):
    """Processes make the blocks; one is killed on the way, with all that was handed out where it is the only one."""
    from distributed import Client, LocalCluster

    volume = stored(tmp_path)
    how = {"mode": "dense", "memory": "10 MB"}
    alone = mrhdata.predict(smoothing(), volume, tmp_path / "alone.zarr", progress=False, **how)
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

        shared = mrhdata.predict(smoothing(), volume, tmp_path / "shared.zarr", progress=kill_one, **how)
    assert killed
    np.testing.assert_array_equal(shared, alone)


@pytest.mark.full
def test_a_worker_that_dies_while_it_is_handed_the_work(tmp_path, monkeypatch):
    """What was lost is handed out again; a cluster that never takes it ends in one sentence."""
    from distributed import Client
    from distributed.comm.core import CommClosedError

    from mrhdata.io.omezarr import resumable

    volume = stored(tmp_path)
    how = {"mode": "dense", "memory": "10 MB", "progress": False}
    alone = mrhdata.predict(smoothing(), volume, tmp_path / "alone.zarr", **how)
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
        scatter, calls = client.scatter, []

        def closed(*given, **options):
            calls.append(given)
            if len(calls) <= failing:
                raise CommClosedError("Stream is closed")
            return scatter(*given, **options)

        monkeypatch.setattr(client, "scatter", closed)
        monkeypatch.setattr(resumable, "_active_client", lambda: client)
        monkeypatch.setattr(resumable, "_MAX_LOSSES", 2)
        failing = 3
        with pytest.raises(FormatError, match="another run resumes"):
            mrhdata.predict(smoothing(), volume, tmp_path / "shared.zarr", **how)
        calls, failing = [], 2
        shared = mrhdata.predict(smoothing(), volume, tmp_path / "shared.zarr", **how)
    assert len(calls) > failing
    np.testing.assert_array_equal(shared, alone)


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_devices_that_are_not_there(tmp_path, device):
    volume = from_array(np.zeros((4, 4, 4), np.float32), spacing=(1, 1, 1))
    network = torch.nn.Conv3d(1, 1, 1)
    with pytest.raises(ModelError, match=f"no device '{device}'"):
        mrhdata.predict(network, volume, tmp_path / "a.zarr", mode="dense", device=device, progress=False)
    with pytest.raises(ModelError, match=r"mrhdata\.models\.load"):
        mrhdata.predict("phantom-nf", volume, tmp_path / "a.zarr", progress=False)
