"""Conversion: the same store after any interruption, within the memory budget, readable by other software."""

import json
import os
import random
import re
import resource
import signal
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import tifffile
import xarray as xr
import zarr

import mrhdata
from mrhdata._runtime.memory import parse_memory
from mrhdata.errors import FormatError, ParameterError
from mrhdata.io import fingerprint, omezarr
from mrhdata.io.omezarr import chunks, layout, resumable, writer
from mrhdata.io.omezarr.write_blocks import VolumeBlocks
from mrhdata.volume.construct import from_array
from tests.conftest import oblique_affine
from tests.io.omezarr.images import write_image
from tests.processes import kill_after, run_in_process


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A folder of planes that needs about twenty blocks at the smallest memory budget."""
    folder = tmp_path_factory.mktemp("stack")
    values = np.random.default_rng(0).integers(0, 4000, (150, 300, 330)).astype(np.uint16)
    for i, plane in enumerate(values):
        tifffile.imwrite(folder / f"p{i}.tif", plane)
    return folder, values


def file_contents(store):
    """Return the bytes of every file of a store."""
    return {p.relative_to(store): p.read_bytes() for p in sorted(Path(store).rglob("*")) if p.is_file()}


def test_conversion_of_a_stack_gives_values_geometry_provenance_and_levels(stack, tmp_path):
    """A converted stack keeps values and geometry; each coarser level is the rounded mean of the finer one."""
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
def test_store_bytes_do_not_depend_on_memory_budget(stack, tmp_path):
    """Blocks of any size give the same bytes."""
    for memory in ("20 MB", "60 MB", "1 GB"):
        name = memory.replace(" ", "") + ".zarr"
        mrhdata.convert(stack[0], tmp_path / name, spacing=1, memory=memory)
    first = file_contents(tmp_path / "20MB.zarr")
    assert first == file_contents(tmp_path / "60MB.zarr")
    assert first == file_contents(tmp_path / "1GB.zarr")


@pytest.mark.parametrize("kind", ["image", "labels"])
@pytest.mark.parametrize("dims", ["zyx", "czyx", "tczyx"])
def test_levels_from_memory_equal_levels_read_back(tmp_path, dims, kind):
    """Halved blocks kept in memory equal those computed from the stored finer level, for every number of dims."""
    rng = np.random.default_rng(0)
    shape = (2, 3, 70, 150, 141)[-len(dims) :]
    values = rng.integers(0, 5, shape).astype(np.uint8)
    volume = from_array(values, spacing=(1, 1, 1), dims=dims, kind=kind)
    omezarr.write(volume, tmp_path / "kept.zarr")
    levels, name = omezarr.plan(volume)
    omezarr.create(volume, tmp_path / "read.zarr")
    paths = [tmp_path / "read.zarr" / omezarr.level_path(n, name) for n in range(len(levels))]
    block_writer = writer.Writer(VolumeBlocks(volume), levels, paths, kind, 10_000_000)
    for level, boxes in enumerate(block_writer.blocks):
        for index in range(len(boxes)):
            block_writer.write_one(level, index)
    omezarr.finish(volume, tmp_path / "read.zarr")
    assert file_contents(tmp_path / "kept.zarr") == file_contents(tmp_path / "read.zarr")


def test_interrupted_conversion_resumes_after_the_last_finished_block(stack, tmp_path, monkeypatch):
    """Finished blocks are not written again, and the store equals that of an uninterrupted run."""
    folder, _ = stack
    mrhdata.convert(folder, tmp_path / "whole.zarr", spacing=1, memory="20 MB")
    reported = []

    def stop_after(bytes_done, total):
        reported.append(bytes_done)
        if bytes_done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mrhdata.convert(folder, tmp_path / "a.zarr", spacing=1, memory="20 MB", progress=stop_after)
    draft = tmp_path / ".a.zarr.partial" / "store"
    before = {p: p.stat().st_mtime_ns for p in draft.rglob("c/*") if p.is_file()}
    assert not (tmp_path / "a.zarr").exists()
    finished = len((draft.parent / "journal").read_text("utf-8").splitlines()) - 1
    assert finished == len(reported)
    resumed_mtimes = []

    def record_and_publish(source, target):
        resumed_mtimes.append(_mtimes(source))
        os.replace(source, target)

    monkeypatch.setattr(resumable, "publish", record_and_publish)
    mrhdata.convert(
        folder, tmp_path / "a.zarr", spacing=1, memory="20 MB", progress=lambda done, total: reported.append(done)
    )
    assert reported[finished] > reported[finished - 1]
    unchanged = sum(resumed_mtimes[0].get(p) == t for p, t in before.items())
    assert unchanged >= len(before) - 2
    assert file_contents(tmp_path / "a.zarr") == file_contents(tmp_path / "whole.zarr")


def _mtimes(store):
    return {p: p.stat().st_mtime_ns for p in store.rglob("c/*") if p.is_file()}


def convert(tell, folder, target):
    """Convert in the subprocess that is killed."""
    mrhdata.convert(folder, target, spacing=1, memory="20 MB", progress=lambda done, total: tell(done))


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_conversion_killed_at_random_moments_gives_the_same_store(stack, tmp_path, seed):
    """A conversion that is killed and repeated until it ends gives the store of an uninterrupted run."""
    folder, _ = stack
    mrhdata.convert(folder, tmp_path / "whole.zarr", spacing=1, memory="20 MB")
    target = tmp_path / "a.zarr"
    rng = random.Random(seed)
    kills = 0
    for run in range(30):
        # Kill after the first finished block, so that every run makes progress: at once, then at a random moment.
        kills += kill_after(rng.random() * 0.3 * bool(run), convert, folder, target)
        if target.exists():
            break
    else:
        pytest.fail("30 runs did not finish")
    mrhdata.convert(folder, target, spacing=1, memory="20 MB")
    assert file_contents(target) == file_contents(tmp_path / "whole.zarr")
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "whole.zarr"]
    assert kills >= 1


def test_incomplete_journal_line_is_ignored_and_other_parameters_start_again(stack, tmp_path):
    """A journal line without an end is ignored; a draft with other parameters is discarded."""
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


def test_incomplete_shards_are_rewritten(stack, tmp_path):
    """Damaged shards of an unfinished block are replaced, including those at the array's edge."""
    folder, values = stack

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mrhdata.convert(folder, tmp_path / "a.zarr", spacing=1, memory="20 MB", progress=stop)
    array = tmp_path / ".a.zarr.partial" / "store" / "scale0" / f"{folder.name}"
    first = sorted(p for p in array.rglob("c/*/*/*") if p.is_file())
    damaged = [array / "c" / str(z) / str(y) / str(x) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
    for path in set(damaged) - set(first):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(first[0].read_bytes()[:1000])
    np.testing.assert_array_equal(mrhdata.convert(folder, tmp_path / "a.zarr", spacing=1, memory="20 MB"), values)


def test_repeated_conversion_returns_the_store_and_other_parameters_need_overwrite(stack, tmp_path):
    """The same call returns the existing store; a call with other parameters needs overwrite=True."""
    first = mrhdata.convert(stack[0], tmp_path / "a.zarr", spacing=1)
    stamp = (tmp_path / "a.zarr").stat().st_mtime_ns
    again = mrhdata.convert(stack[0], tmp_path / "a.zarr", spacing=1)
    assert (tmp_path / "a.zarr").stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(first, again)
    with pytest.raises(FormatError, match="overwrite=True"):
        mrhdata.convert(stack[0], tmp_path / "a.zarr", spacing=2)
    changed = mrhdata.convert(stack[0], tmp_path / "a.zarr", spacing=2, overwrite=True)
    assert changed.mrh.spacing.tolist() == [2, 2, 2]


def convert_with_file_size_limit(tell, source, target):
    """Convert with files limited to 1 MB and send the error message."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    with pytest.raises(FormatError) as caught:
        mrhdata.convert(source, target, spacing=1, memory="20 MB")
    tell(str(caught.value))


def test_full_disk_is_reported_and_the_conversion_resumes(stack, tmp_path):
    """A full disk gives one error and no target; with free space the conversion resumes."""
    assert "cannot be written" in run_in_process(convert_with_file_size_limit, stack[0], tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()
    np.testing.assert_array_equal(mrhdata.convert(stack[0], tmp_path / "a.zarr", spacing=1), stack[1])


@pytest.mark.parametrize("step", ["finish", "publish", "remove"])
def test_conversion_interrupted_in_its_last_steps_resumes(stack, tmp_path, monkeypatch, step):
    """A run that stops before or after the metadata, or after publishing the store, resumes."""
    mrhdata.convert(stack[0], tmp_path / "whole.zarr", spacing=1)

    class Killed(BaseException):
        pass

    def interrupt(*args):
        raise Killed

    if step == "finish":
        monkeypatch.setattr(resumable.omezarr, "finish", interrupt)
    else:
        monkeypatch.setattr(resumable, step, interrupt)
    with pytest.raises(Killed):
        mrhdata.convert(stack[0], tmp_path / "a.zarr", spacing=1)
    assert (tmp_path / ".a.zarr.partial").exists()
    monkeypatch.undo()
    mrhdata.convert(stack[0], tmp_path / "a.zarr", spacing=1)
    assert file_contents(tmp_path / "a.zarr") == file_contents(tmp_path / "whole.zarr")
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "whole.zarr"]


def test_concurrent_conversion_to_one_store_raises(stack, tmp_path):
    """A second conversion to the same store fails while the first one runs."""

    def convert_again(done, total):
        with pytest.raises(FormatError, match="another process is writing"):
            mrhdata.convert(stack[0], tmp_path / "a.zarr", spacing=1)

    mrhdata.convert(stack[0], tmp_path / "a.zarr", spacing=1, progress=convert_again)


def test_damaged_source_leaves_no_output(tmp_path):
    """A failure in the first block leaves no draft, because no block is finished."""
    for i in range(3):
        tifffile.imwrite(tmp_path / f"p{i}.tif", np.zeros((20, 30), np.uint8))
    (tmp_path / "p1.tif").write_bytes((tmp_path / "p0.tif").read_bytes()[:300])
    with pytest.raises(FormatError, match=r"p1\.tif"):
        mrhdata.convert(tmp_path / "p*.tif", tmp_path / "a.zarr", spacing=1)
    assert not [p for p in tmp_path.iterdir() if "zarr" in p.name]


def test_source_that_changes_during_the_conversion_is_refused(tmp_path):
    """A store is never made of two files; the draft is removed, and the next run converts the new file."""
    volume = from_array(np.random.default_rng(0).random((70, 150, 150), np.float32), spacing=(1, 1, 1), name="m")
    mrhdata.write(volume, tmp_path / "m.nii")
    changed = (tmp_path / "m.nii").read_bytes()[:-4] + bytes(4)

    def save_again(done, total):
        (tmp_path / "m.nii").write_bytes(changed)

    with pytest.raises(FormatError, match=r"m\.nii changed while .*m\.zarr was computed from it"):
        mrhdata.convert(tmp_path / "m.nii", tmp_path / "m.zarr", memory="10 MB", progress=save_again)
    assert sorted(os.listdir(tmp_path)) == ["m.nii"]
    assert mrhdata.convert(tmp_path / "m.nii", tmp_path / "m.zarr").values[-1, -1, -1] == 0


def test_source_array_that_changes_during_the_conversion_is_refused(tmp_path):
    """An array in memory is compared by value."""
    values = np.ones((70, 70, 70), np.float32)

    def change(done, total):
        values[0, 0, 0] = 2

    with pytest.raises(FormatError, match="changed while"):
        mrhdata.convert(from_array(values, spacing=(1, 1, 1)), tmp_path / "m.zarr", progress=change)


def test_budget_below_the_smallest_part_of_the_source_is_refused_with_the_figure_that_would_do(tmp_path):
    """A chunk or a compressed file that does not fit is refused before work begins."""
    values = np.random.default_rng(0).integers(0, 99, (128, 170, 170)).astype(np.uint16)
    one_chunk = {"chunks": values.shape, "array": {"compressors": numcodecs.Blosc("lz4")}}
    write_image(tmp_path / "a.zarr", values, **one_chunk)
    mrhdata.write(from_array(values, spacing=(1, 1, 1)), tmp_path / "a.nii.gz")
    for name in ("a.zarr", "a.nii.gz"):
        with pytest.raises(ParameterError, match=r"memory must be at least (\d+) MB for .*; got 12 MB") as caught:
            mrhdata.convert(tmp_path / name, tmp_path / "b.zarr", memory="12 MB")
        enough = re.search(r"at least (\d+ MB)", str(caught.value))[1]
        stored = mrhdata.convert(tmp_path / name, tmp_path / "b.zarr", memory=enough, overwrite=True)
        np.testing.assert_array_equal(np.sort(stored.values, axis=None), np.sort(values, axis=None))


def test_uncompressed_chunk_of_any_size_is_converted_in_parts(tmp_path, monkeypatch):
    """A chunk that is stored as it is needs no more memory than a block."""
    monkeypatch.setattr(chunks, "_LARGE_BYTES", 1_000_000)
    values = np.random.default_rng(0).integers(0, 99, (128, 300, 300)).astype(np.uint16)
    write_image(tmp_path / "a.zarr", values, chunks=values.shape, array={"compressors": None})
    np.testing.assert_array_equal(mrhdata.convert(tmp_path / "a.zarr", tmp_path / "b.zarr", memory="12 MB"), values)


@pytest.mark.parametrize("damage", ["shape", "chunk"])
def test_draft_is_read_back_before_it_gets_its_name(tmp_path, monkeypatch, damage):
    """A store that cannot be read back is not published."""
    volume = from_array(np.random.default_rng(0).random((9, 9, 9)), spacing=(1, 1, 1), name="v")

    def damaged(array, record=layout.array_record):
        result = record(array)
        folder = tmp_path / array.store.root / array.path
        if damage == "shape":
            (folder / "zarr.json").write_bytes((folder / "zarr.json").read_bytes().replace(b"9", b"8"))
        else:
            (folder / "c" / "0").joinpath("0", "0").write_bytes(b"")
        return result

    monkeypatch.setattr(layout, "array_record", damaged)
    monkeypatch.setattr(layout, "_write_nifti_header", lambda group, volume: False)
    with pytest.raises(FormatError, match=r"cannot be read back|does not match its digest"):
        mrhdata.write(volume, tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("memory", ["12", "lots", -5])
def test_invalid_memory_budgets_raise(tmp_path, memory):
    """A budget that is too small, unreadable or negative raises ParameterError."""
    with pytest.raises(ParameterError, match="memory must be"):
        parse_memory(memory)


def test_store_opens_in_ome_zarr_models_xarray_and_dask(tmp_path):
    """The store is valid for ome-zarr-models; xarray opens one level and Dask its array."""
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
def test_store_written_by_dask_workers_is_the_same(stack, tmp_path):
    """Blocks written by the workers of a dask.distributed client give the same store."""
    distributed = pytest.importorskip("distributed")
    mrhdata.convert(stack[0], tmp_path / "local.zarr", spacing=1, memory="20 MB")
    cluster = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": ":0"}
    with distributed.Client(**cluster):
        mrhdata.convert(stack[0], tmp_path / "client.zarr", spacing=1, memory="20 MB")
    assert file_contents(tmp_path / "local.zarr") == file_contents(tmp_path / "client.zarr")


@pytest.mark.full
def test_resampled_volume_is_converted_locally_and_by_dask_workers(stack, tmp_path):
    """A resampled volume gives the same store locally and on a client's workers; an existing store is kept."""
    distributed = pytest.importorskip("distributed")
    resampled = mrhdata.resample(mrhdata.read(stack[0], spacing=1), spacing_mm=1.7)
    stored = mrhdata.convert(resampled, tmp_path / "local.zarr", memory="20 MB")
    np.testing.assert_array_equal(stored, resampled)
    np.testing.assert_allclose(stored.mrh.affine, resampled.mrh.affine)
    cluster = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": ":0"}
    with distributed.Client(**cluster):
        mrhdata.convert(resampled, tmp_path / "client.zarr", memory="20 MB")
    assert file_contents(tmp_path / "local.zarr") == file_contents(tmp_path / "client.zarr")
    before = (tmp_path / "local.zarr" / "zarr.json").stat().st_mtime_ns
    mrhdata.convert(resampled, tmp_path / "local.zarr", memory="20 MB")
    assert (tmp_path / "local.zarr" / "zarr.json").stat().st_mtime_ns == before
    with pytest.raises(ParameterError, match="without options of read; got unit"):
        mrhdata.convert(resampled, tmp_path / "b.zarr", unit="um")


def test_volume_name_with_path_separators_stays_inside_the_store(tmp_path):
    """A volume name becomes a folder inside the store, even if it contains path separators."""
    volume = from_array(np.zeros((2, 3, 4)), spacing=(1, 1, 1), name="../../etc/x")
    mrhdata.write(volume, tmp_path / "a.zarr")
    assert (tmp_path / "a.zarr" / "scale0" / "etc_x").is_dir()
    assert json.loads((tmp_path / "a.zarr" / "zarr.json").read_text("utf-8"))


@pytest.mark.parametrize("ending", ["nii", "mha", "mnc", "ome.tif", "zarr"])
@pytest.mark.parametrize("kind", ["image", "mask"])
def test_fingerprint_is_equal_for_one_file_and_differs_between_files(tmp_path, ending, kind):
    """Reading a file twice gives one fingerprint, also with reordered axes or rounding; other files differ."""
    values = np.random.default_rng(0).integers(0, 2, (4, 5, 6)).astype(np.float32)
    for name in ("a", "b"):
        mrhdata.write(from_array(values, affine=np.diag([1, 2, 3, 1])), tmp_path / f"{name}.{ending}")
    first, again, other = (fingerprint.fingerprint(mrhdata.read(tmp_path / f"{n}.{ending}", kind=kind)) for n in "aab")
    assert first == again != other
    part = mrhdata.read(tmp_path / f"a.{ending}", kind=kind).isel(z=slice(1, None))
    assert fingerprint.fingerprint(part) != first
