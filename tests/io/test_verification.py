"""Verification: damage of chunks, of metadata and missing files of a store are found and named."""

import json
import shutil

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

import mrhdata
from mrhdata.cli import app
from mrhdata.errors import FormatError
from mrhdata.io import omezarr
from mrhdata.volume.construct import from_array
from tests.conftest import FULL
from tests.io.omezarr.images import numbered, write_image


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """Path of a store of two levels, two shards and an empty one, and its volume."""
    values = np.random.default_rng(0).integers(1, 4000, (140, 40, 40)).astype(np.uint16)
    values[128:] = 0
    volume = from_array(values, spacing=(0.1, 0.1, 0.1), name="t2w")
    path = tmp_path_factory.mktemp("store") / "a.zarr"
    mrhdata.write(volume, path)
    return path, volume


@pytest.fixture
def store(intact, tmp_path):
    """Copy of the store, which a test may damage."""
    return shutil.copytree(intact[0], tmp_path / "a.zarr")


def test_intact_store_has_checksums_and_lists_its_shards(intact):
    """Nothing is reported about an intact store, even if a shard of it was never written."""
    report = mrhdata.verify(intact[0])
    assert report.damage == []
    assert [str(array) for array in report.arrays] == [
        "scale0/t2w: 1 of 2 shards, intact",
        "scale1/t2w: 1 of 1 shards, intact",
        "scale2/t2w: 1 of 1 shards, intact",
        "nifti: 1 of 1 shards, intact",
    ]


def is_reported(path):
    """Return whether verification reports damage, or refuses the store."""
    try:
        return bool(mrhdata.verify(path).damage)
    except FormatError:
        return True


def flipped_bits(path, count, seed):
    """Flip single bits of the files of a store in turn, files as often as they have bytes; yield after each."""
    rng = np.random.default_rng(seed)
    files = sorted(f for f in path.rglob("*") if f.is_file())
    sizes = np.array([f.stat().st_size for f in files])
    # Metadata are a small part of the bytes; half of the flips fall on them.
    weights = np.where([f.name == "zarr.json" for f in files], sizes / 2, 0)
    weights = weights / weights.sum() / 2 + np.where(weights > 0, 0, sizes) / sizes[weights == 0].sum() / 2
    for file in rng.choice(files, count, p=weights):
        content = bytearray(file.read_bytes())
        position, bit = rng.integers(len(content)), 1 << int(rng.integers(8))
        original = bytes(content)
        content[position] ^= bit
        file.write_bytes(content)
        yield file.relative_to(path), position, bit
        file.write_bytes(original)


def test_every_flipped_bit_is_reported(store):
    """A flipped bit anywhere in a store, in voxels or metadata, is reported."""
    missed = [flip for flip in flipped_bits(store, 200 if FULL else 20, 1) if not is_reported(store)]
    assert missed == []
    assert not is_reported(store)


def test_flipped_bits_of_voxels_raise_when_they_are_read(store, intact):
    """Readers find damaged chunks by their checksums, without verification."""
    (shard,) = (store / "scale0").rglob("c/0/0/0")
    content = bytearray(shard.read_bytes())
    for position in np.random.default_rng(0).integers(0, len(content), 10):
        content[position] ^= 4
        shard.write_bytes(content)
        with pytest.raises(FormatError, match=r"a\.zarr cannot be read"):
            mrhdata.read(store).compute()
        content[position] ^= 4
    shard.write_bytes(content)
    np.testing.assert_array_equal(mrhdata.read(store), intact[1])


def test_missing_shard_raises_when_it_is_read_and_is_named(store):
    """A shard that was written is not read as 0, and patches do not skip it."""
    (shard,) = (store / "scale0").rglob("c/0/0/0")
    shard.unlink()
    volume = mrhdata.read(store)
    with pytest.raises(FormatError, match="the file c/0/0/0 is missing"):
        volume[:4].compute()
    assert (volume[130:].values == 0).all()
    with pytest.raises(FormatError, match="the file c/0/0/0 is missing"):
        list(mrhdata.patches(volume, shape=4, stride=4).batches(5))
    assert "scale0/t2w/c/0/0/0" in mrhdata.verify(store).damage[0]


def test_missing_remote_shard_raises(store, monkeypatch):
    """Stores that only zarr-python reads, such as remote ones, are not read as 0 either."""
    from mrhdata.io.omezarr import chunks

    monkeypatch.setattr(chunks, "chunks_of", lambda array, presence=None: None)
    (store / "scale0" / "t2w" / "c" / "0" / "0" / "0").unlink()
    volume = mrhdata.read(store)
    with pytest.raises(FormatError, match="shard c/0/0/0 is missing"):
        volume[:4].compute()
    assert (volume[130:].values == 0).all()


def test_file_that_is_not_listed_is_reported(store):
    """A shard of another store does not become part of this one."""
    source = store / "scale0" / "t2w" / "c" / "0" / "0" / "0"
    (target := store / "scale0" / "t2w" / "c" / "1" / "0" / "0").parent.mkdir(parents=True)
    shutil.copy(source, target)
    assert mrhdata.verify(store).damage == ["scale0/t2w/c/1/0/0 is not listed by the store"]


@pytest.mark.parametrize("key", ["affine", "space", "levels", "digest", "arrays"])
def test_changed_metadata_are_refused(store, key):
    """A store with changed metadata is refused, and not read like one of another program."""
    document = json.loads((store / "zarr.json").read_text("utf-8"))
    own = document["attributes"]["mrh"]
    own[key + "x"] = own.pop(key)
    (store / "zarr.json").write_text(json.dumps(document), "utf-8")
    with pytest.raises(FormatError, match="damaged or edited"):
        mrhdata.read(store)


def test_attributes_of_other_programs_are_no_damage(store):
    """Programs may add display settings and attributes of their own."""
    group = zarr.open_group(store)
    group.attrs["ome"] = group.attrs["ome"] | {"omero": {"channels": [{"label": "t2w"}]}}
    group.attrs["note"] = "seen"
    zarr.open_array(store / "scale0" / "t2w").attrs["units"] = "ppm"
    assert mrhdata.verify(store).damage == []
    assert mrhdata.read(store).shape == (140, 40, 40)


def test_stores_of_earlier_versions_are_read(store, intact):
    """A store without digests, lists of shards and checksums is read, and its report says what was not checked."""
    group = zarr.open_group(store)
    values = group["scale0/t2w"][:]
    options = {"chunks": (64, 40, 40), "shards": (128, 40, 40), "compressors": omezarr.codec(values.dtype)}
    array = group.create_array("scale0/t2w", shape=values.shape, dtype="u2", overwrite=True, **options)
    array[...] = values
    own = {k: v for k, v in group.attrs["mrh"].items() if k not in ("digest", "arrays")}
    image = {k: v for k, v in group.attrs["ome"]["multiscales"][0].items() if k not in ("metadata", "type")}
    group.attrs.update({"mrh": own, "ome": {"version": "0.5", "multiscales": [image]}})
    old = mrhdata.read(store)
    np.testing.assert_array_equal(old, intact[1])
    assert old.mrh.grid.same_as(intact[1].mrh.grid)
    line = str(mrhdata.verify(store).arrays[0])
    assert "changed voxels cannot be found" in line
    assert "missing files cannot be found" in line


def test_other_programs_read_chunks_with_checksums(intact):
    """zarr-python decodes the store without this package, and finds its checksums."""
    array = zarr.open_array(intact[0] / "scale0" / "t2w", mode="r")
    np.testing.assert_array_equal(array[:], intact[1])
    assert [codec.to_dict()["name"] for codec in array.compressors] == ["blosc", "crc32c"]


def test_stores_of_other_programs_are_verified_as_far_as_they_can_be(tmp_path):
    """Chunks that do not unpack are named; the report says that changed voxels cannot be found."""
    path = write_image(tmp_path / "a.zarr", numbered())
    assert mrhdata.verify(path).damage == []
    next(path.glob("0/0.0.0")).write_bytes(b"short")
    report = mrhdata.verify(path)
    assert report.damage[0].startswith("0/0.0.0 (chunk 0, 0, 0: ")
    assert not report.arrays[0].checksums


def test_command_prints_a_line_per_level_and_exits_with_2(store):
    """The command lists the arrays, and fails with the names of damaged files."""
    good = CliRunner().invoke(app, ["verify", str(store)])
    assert good.exit_code == 0
    assert good.output.splitlines()[0].split() == ["scale0/t2w", "1", "of", "2", "shards,", "intact"]
    (store / "scale1" / "t2w" / "c" / "0" / "0" / "0").unlink()
    bad = CliRunner().invoke(app, ["verify", str(store)])
    assert isinstance(bad.exception, FormatError)
    assert "scale1/t2w/c/0/0/0" in str(bad.exception)
    assert "1 damaged or missing" in bad.output


def test_verification_of_a_url_is_refused():
    """Only stores on the local disk are verified."""
    with pytest.raises(FormatError, match="Download it first"):
        mrhdata.verify("https://example.org/a.zarr")
