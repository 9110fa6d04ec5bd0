"""Conversion: equal however it is interrupted, within its budget, and valid for others."""

import json
import os
import random
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import tifffile
import xarray as xr
import zarr

import mrhdata
from mrhdata._runtime.memory import parse_memory
from mrhdata.errors import FormatError, ParameterError
from mrhdata.io import fingerprint, omezarr
from mrhdata.io.omezarr import resumable, writer
from mrhdata.io.omezarr.write_blocks import VolumeBlocks
from mrhdata.volume.construct import from_array
from tests.conftest import oblique_affine
from tests.processes import apart, killed


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A folder of planes that makes some twenty blocks at the smallest budget."""
    folder = tmp_path_factory.mktemp("stack")
    values = np.random.default_rng(0).integers(0, 4000, (150, 300, 330)).astype(np.uint16)
    for i, plane in enumerate(values):
        tifffile.imwrite(folder / f"p{i}.tif", plane)
    return folder, values


def contents(store):
    """Every file of a store with its bytes."""
    return {p.relative_to(store): p.read_bytes() for p in sorted(Path(store).rglob("*")) if p.is_file()}


def test_stack_becomes_a_pyramid(stack, tmp_path):
    """Values, place, provenance and chunk layout; each level is the mean of the one before."""
    folder, values = stack
    volume = mrhdata.convert(folder, tmp_path / "a.zarr", spacing=(4, 2, 2), unit="um", memory="20 MB")
    np.testing.assert_array_equal(volume, values)
    np.testing.assert_allclose(volume.mrh.spacing, (0.004, 0.002, 0.002))
    provenance = volume.attrs["provenance"]
    assert provenance["files"] == 150
    assert len(provenance["sha256"]) == 64
    assert provenance["options"] == {"spacing": [4, 2, 2], "unit": "um"}
    levels = [omezarr.read(tmp_path / "a.zarr", level=n) for n in range(4)]
    assert [v.shape for v in levels] == [(150, 300, 330), (150, 150, 165), (75, 75, 82), (37, 37, 41)]
    fine, coarse = levels[1].values.astype(int), levels[2].values
    sums = fine[:150, :150, :164].reshape(75, 2, 75, 2, 82, 2).sum((1, 3, 5))
    np.testing.assert_array_equal(coarse, (sums + 4) // 8)
    assert sorted(os.listdir(tmp_path)) == ["a.zarr"]


@pytest.mark.full
def test_the_budget_changes_nothing_but_the_blocks(stack, tmp_path):
    """Blocks of any size give the same bytes."""
    for memory in ("20 MB", "60 MB", "1 GB"):
        name = memory.replace(" ", "") + ".zarr"
        mrhdata.convert(stack[0], tmp_path / name, spacing=1, memory=memory)
    first = contents(tmp_path / "20MB.zarr")
    assert first == contents(tmp_path / "60MB.zarr")
    assert first == contents(tmp_path / "1GB.zarr")


@pytest.mark.parametrize("kind", ["image", "labels"])
@pytest.mark.parametrize("dims", ["zyx", "czyx", "tczyx"])
def test_levels_agree_with_a_plain_computation(tmp_path, dims, kind):
    """Halves that are kept and halves that are read back are the same, in every shape of volume."""
    rng = np.random.default_rng(0)
    shape = (2, 3, 70, 150, 141)[-len(dims) :]
    values = rng.integers(0, 5, shape).astype(np.uint8)
    volume = from_array(values, spacing=(1, 1, 1), dims=dims, kind=kind)
    omezarr.write(volume, tmp_path / "kept.zarr")
    made, name = omezarr.plan(volume)
    omezarr.create(volume, tmp_path / "read.zarr")
    paths = [tmp_path / "read.zarr" / omezarr.level_path(n, name) for n in range(len(made))]
    filling = writer.Writer(VolumeBlocks(volume), made, paths, kind, 10_000_000)
    for level, boxes in enumerate(filling.blocks):
        for index in range(len(boxes)):
            filling.write_one(level, index)
    omezarr.finish(volume, tmp_path / "read.zarr")
    assert contents(tmp_path / "kept.zarr") == contents(tmp_path / "read.zarr")


def test_a_run_that_failed_goes_on_without_redoing(stack, tmp_path, monkeypatch):
    """Blocks that were finished are not written again, and the store is that of one run."""
    folder, _ = stack
    mrhdata.convert(folder, tmp_path / "whole.zarr", spacing=1, memory="20 MB")
    seen = []

    def stop_after(bytes_done, total):
        seen.append(bytes_done)
        if bytes_done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mrhdata.convert(folder, tmp_path / "a.zarr", spacing=1, memory="20 MB", progress=stop_after)
    draft = tmp_path / ".a.zarr.partial" / "store"
    before = {p: p.stat().st_mtime_ns for p in draft.rglob("c/*") if p.is_file()}
    assert not (tmp_path / "a.zarr").exists()
    finished = len((draft.parent / "journal").read_text("utf-8").splitlines()) - 1
    assert finished == len(seen)
    resumed = []
    monkeypatch.setattr(
        resumable, "put", lambda source, target: resumed.append(_mtimes(source)) or os.replace(source, target)
    )
    mrhdata.convert(
        folder, tmp_path / "a.zarr", spacing=1, memory="20 MB", progress=lambda done, total: seen.append(done)
    )
    assert seen[finished] > seen[finished - 1]
    kept = sum(resumed[0].get(p) == t for p, t in before.items())
    assert kept >= len(before) - 2
    assert contents(tmp_path / "a.zarr") == contents(tmp_path / "whole.zarr")


def _mtimes(store):
    return {p: p.stat().st_mtime_ns for p in store.rglob("c/*") if p.is_file()}


def convert(tell, folder, target):
    """What is killed."""
    mrhdata.convert(folder, target, spacing=1, memory="20 MB", progress=lambda done, total: tell(done))


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_random_moments(stack, tmp_path, seed):
    """SIGKILL anywhere; run again until it ends. The store equals that of one run."""
    folder, _ = stack
    mrhdata.convert(folder, tmp_path / "whole.zarr", spacing=1, memory="20 MB")
    target = tmp_path / "a.zarr"
    rng = random.Random(seed)
    kills = 0
    for run in range(30):
        # From the first finished block on, so that the work goes forward: at once, then anywhere within it.
        kills += killed(rng.random() * 0.3 * bool(run), convert, folder, target)
        if target.exists():
            break
    else:
        pytest.fail("30 runs did not finish")
    mrhdata.convert(folder, target, spacing=1, memory="20 MB")
    assert contents(target) == contents(tmp_path / "whole.zarr")
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "whole.zarr"]
    assert kills >= 1


def test_a_torn_journal_and_other_parameters(stack, tmp_path):
    """A line without an end does not count; a draft of other parameters is begun again."""
    folder, values = stack

    def stop(done, total):
        if done > total / 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mrhdata.convert(folder, tmp_path / "a.zarr", spacing=1, memory="20 MB", progress=stop)
    with (tmp_path / ".a.zarr.partial" / "journal").open("a") as file:
        file.write("0 1")
    with pytest.raises(KeyboardInterrupt):
        mrhdata.convert(
            folder, tmp_path / "a.zarr", spacing=1, memory="20 MB", progress=lambda d, t: stop(d, 2.5 * t / 2)
        )
    volume = mrhdata.convert(folder, tmp_path / "a.zarr", spacing=2, memory="20 MB")
    np.testing.assert_array_equal(volume, values)
    assert volume.mrh.spacing.tolist() == [2, 2, 2]


def test_torn_shards_are_written_anew(stack, tmp_path):
    """Shards of a block that was not finished hold anything, those at the array's edge too."""
    folder, values = stack

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mrhdata.convert(folder, tmp_path / "a.zarr", spacing=1, memory="20 MB", progress=stop)
    array = tmp_path / ".a.zarr.partial" / "store" / "scale0" / f"{folder.name}"
    first = sorted(p for p in array.rglob("c/*/*/*") if p.is_file())
    torn = [array / "c" / str(z) / str(y) / str(x) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
    for path in set(torn) - set(first):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(first[0].read_bytes()[:1000])
    np.testing.assert_array_equal(mrhdata.convert(folder, tmp_path / "a.zarr", spacing=1, memory="20 MB"), values)


def test_again_is_no_work_and_another_source_is_an_error(stack, tmp_path):
    """The same call returns what is there; another one needs overwrite."""
    first = mrhdata.convert(stack[0], tmp_path / "a.zarr", spacing=1)
    stamp = (tmp_path / "a.zarr").stat().st_mtime_ns
    again = mrhdata.convert(stack[0], tmp_path / "a.zarr", spacing=1)
    assert (tmp_path / "a.zarr").stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(first, again)
    with pytest.raises(FormatError, match="overwrite=True"):
        mrhdata.convert(stack[0], tmp_path / "a.zarr", spacing=2)
    changed = mrhdata.convert(stack[0], tmp_path / "a.zarr", spacing=2, overwrite=True)
    assert changed.mrh.spacing.tolist() == [2, 2, 2]


def converts_where_there_is_no_room(tell, source, target):
    """Tells how it ended."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    with pytest.raises(FormatError) as caught:
        mrhdata.convert(source, target, spacing=1, memory="20 MB")
    tell(str(caught.value))


def test_a_disk_that_is_full(stack, tmp_path):
    """One sentence; nothing under the target's name; room made, it goes on."""
    assert "cannot be written" in apart(converts_where_there_is_no_room, stack[0], tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()
    np.testing.assert_array_equal(mrhdata.convert(stack[0], tmp_path / "a.zarr", spacing=1), stack[1])


@pytest.mark.parametrize("step", ["finish", "put", "remove"])
def test_killed_in_the_last_steps(stack, tmp_path, monkeypatch, step):
    """After the last block: before and after the metadata, and after the store has its name."""
    mrhdata.convert(stack[0], tmp_path / "whole.zarr", spacing=1)

    class Killed(BaseException):
        pass

    def killed(*args):
        raise Killed

    if step == "finish":
        monkeypatch.setattr(resumable.omezarr, "finish", killed)
    else:
        monkeypatch.setattr(resumable, step, killed)
    with pytest.raises(Killed):
        mrhdata.convert(stack[0], tmp_path / "a.zarr", spacing=1)
    assert (tmp_path / ".a.zarr.partial").exists()
    monkeypatch.undo()
    mrhdata.convert(stack[0], tmp_path / "a.zarr", spacing=1)
    assert contents(tmp_path / "a.zarr") == contents(tmp_path / "whole.zarr")
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "whole.zarr"]


def test_two_at_once_are_refused(stack, tmp_path):
    """The second process is told that the first is at work."""

    def second(done, total):
        with pytest.raises(FormatError, match="another process is writing"):
            mrhdata.convert(stack[0], tmp_path / "a.zarr", spacing=1)

    mrhdata.convert(stack[0], tmp_path / "a.zarr", spacing=1, progress=second)


def test_a_damaged_source_leaves_nothing(tmp_path):
    """The first block fails, so there is nothing to go on with."""
    for i in range(3):
        tifffile.imwrite(tmp_path / f"p{i}.tif", np.zeros((20, 30), np.uint8))
    (tmp_path / "p1.tif").write_bytes((tmp_path / "p0.tif").read_bytes()[:300])
    with pytest.raises(FormatError, match=r"p1\.tif"):
        mrhdata.convert(tmp_path / "p*.tif", tmp_path / "a.zarr", spacing=1)
    assert not [p for p in tmp_path.iterdir() if "zarr" in p.name]


@pytest.mark.parametrize("memory", ["12", "lots", -5])
def test_budgets_that_are_none(tmp_path, memory):
    """A size too small, and no size."""
    with pytest.raises(ParameterError, match="memory must be"):
        parse_memory(memory)


def test_others_can_open_it(tmp_path):
    """Valid for ome-zarr-models; xarray opens a level alone, Dask opens its array."""
    import dask.array as da
    from ome_zarr_models.v05.image import Image

    values = np.random.default_rng(0).integers(0, 99, (2, 40, 70, 90)).astype(np.uint16)
    mrhdata.write(from_array(values, affine=oblique_affine(), dims="czyx", name="t2w"), tmp_path / "a.nii")
    mrhdata.convert(tmp_path / "a.nii", tmp_path / "a.zarr", name="t2w")
    Image.from_zarr(zarr.open_group(tmp_path / "a.zarr", mode="r"))
    plain = xr.open_zarr(tmp_path / "a.zarr", group="scale0", consolidated=False)
    volume = mrhdata.read(tmp_path / "a.zarr")
    np.testing.assert_array_equal(plain["t2w"], volume)
    np.testing.assert_array_equal(da.from_zarr(str(tmp_path / "a.zarr" / "scale0" / "t2w")), volume)


@pytest.mark.full
def test_a_dask_client_does_the_work(stack, tmp_path):
    """The same store when the blocks are written by the workers of a client."""
    distributed = pytest.importorskip("distributed")
    mrhdata.convert(stack[0], tmp_path / "alone.zarr", spacing=1, memory="20 MB")
    cluster = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": ":0"}
    with distributed.Client(**cluster):
        mrhdata.convert(stack[0], tmp_path / "client.zarr", spacing=1, memory="20 MB")
    assert contents(tmp_path / "alone.zarr") == contents(tmp_path / "client.zarr")


@pytest.mark.full
def test_prepared_volumes_are_converted_block_by_block(stack, tmp_path):
    """A resampled volume becomes a store, here or on a client's workers; one that is there already is left."""
    distributed = pytest.importorskip("distributed")
    made = mrhdata.resample(mrhdata.read(stack[0], spacing=1), spacing_mm=1.7)
    stored = mrhdata.convert(made, tmp_path / "alone.zarr", memory="20 MB")
    np.testing.assert_array_equal(stored, made)
    np.testing.assert_allclose(stored.mrh.affine, made.mrh.affine)
    cluster = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": ":0"}
    with distributed.Client(**cluster):
        mrhdata.convert(made, tmp_path / "client.zarr", memory="20 MB")
    assert contents(tmp_path / "alone.zarr") == contents(tmp_path / "client.zarr")
    before = (tmp_path / "alone.zarr" / "zarr.json").stat().st_mtime_ns
    mrhdata.convert(made, tmp_path / "alone.zarr", memory="20 MB")
    assert (tmp_path / "alone.zarr" / "zarr.json").stat().st_mtime_ns == before
    with pytest.raises(FormatError, match=r"\['unit'\] say how a file is read"):
        mrhdata.convert(made, tmp_path / "b.zarr", unit="um")


def test_names_cannot_lead_out_of_the_store(tmp_path):
    """A name is a folder within the store, whatever it holds."""
    volume = from_array(np.zeros((2, 3, 4)), spacing=(1, 1, 1), name="../../etc/x")
    mrhdata.write(volume, tmp_path / "a.zarr")
    assert (tmp_path / "a.zarr" / "scale0" / "etc_x").is_dir()
    assert json.loads((tmp_path / "a.zarr" / "zarr.json").read_text("utf-8"))


@pytest.mark.parametrize("ending", ["nii", "mha", "mnc", "ome.tif", "zarr"])
@pytest.mark.parametrize("kind", ["image", "mask"])
def test_a_file_is_told_alike_each_time_it_is_read(tmp_path, ending, kind):
    """What another process takes up is known again, also with axes reordered or rounded; other files are not."""
    values = np.random.default_rng(0).integers(0, 2, (4, 5, 6)).astype(np.float32)
    for name in ("a", "b"):
        mrhdata.write(from_array(values, affine=np.diag([1, 2, 3, 1])), tmp_path / f"{name}.{ending}")
    first, again, other = (fingerprint.fingerprint(mrhdata.read(tmp_path / f"{n}.{ending}", kind=kind)) for n in "aab")
    assert first == again != other
    part = mrhdata.read(tmp_path / f"a.{ending}", kind=kind).isel(z=slice(1, None))
    assert fingerprint.fingerprint(part) != first
