"""Arrays of stores of other programs: sizes that are not believed, chunks under other names, limits of decoding."""

import json
import tracemalloc

import numcodecs
import numpy as np
import pytest
import zarr

import mrhdata
from mrhdata.errors import FormatError, GridError
from mrhdata.volume.construct import LONGEST_AXIS, UNORIENTED, place
from mrhdata.volume.file_arrays import source_of
from tests.io.omezarr.images import numbered, write_image


def edit(path, change):
    """Change the metadata of the array of level 0."""
    (file,) = (f for f in (path / "0" / ".zarray", path / "0" / "zarr.json") if f.exists())
    content = json.loads(file.read_text("utf-8"))
    change(content)
    file.write_text(json.dumps(content), "utf-8")


def peak_of(function):
    """Return the most bytes that Python and NumPy allocated during a call."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


SIZES = {
    "shape": lambda m: m.update(shape=[300_000_000, 1, 1]),
    "negative": lambda m: m.update(shape=[-4, 4, 4]),
    "chunk of 2 GB": lambda m: m["chunk_grid"]["configuration"].update(chunk_shape=[1_000_000_000, 1, 1]),
    "chunk of 2 EB": lambda m: m["chunk_grid"]["configuration"].update(chunk_shape=[10**6] * 3),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_compared_before_memory_is_allocated(tmp_path, name):
    """Shapes and chunks that no volume has are refused with little memory."""
    path = write_image(tmp_path / "a.zarr", numbered(), version="0.5")
    np.testing.assert_array_equal(mrhdata.read(path), numbered())
    edit(path, SIZES[name])

    def read():
        with pytest.raises(FormatError, match=r"a\.zarr"):
            mrhdata.read(path).compute()

    assert peak_of(read) < 20_000_000


def test_axes_of_any_format_have_a_limit():
    """The coordinates of an axis are not made for a length that only a header states."""
    with pytest.raises(GridError, match="at most 10000000 voxels"):
        place(np.broadcast_to(0, (LONGEST_AXIS + 1, 1, 1)), "zyx", (1, 1, 1), UNORIENTED, space="scanner")


BOMBS = {
    "zstd": numcodecs.Zstd(1),
    "gzip": numcodecs.GZip(1),
    "zlib": numcodecs.Zlib(1),
    "bz2": numcodecs.BZ2(1),
    "lzma": numcodecs.LZMA(preset=1),
    "lz4": numcodecs.LZ4(),
    "blosc": numcodecs.Blosc("zstd"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_chunks_that_unpack_to_more_are_refused(tmp_path, name):
    """A chunk that unpacks to a thousand times its array is refused before it is unpacked."""
    path = write_image(tmp_path / "a.zarr", numbered(), array={"compressors": BOMBS[name]})
    np.testing.assert_array_equal(mrhdata.read(path), numbered())
    bomb = bytes(BOMBS[name].encode(bytes(20_000_000)))
    for file in path.glob("0/?.?.?"):
        file.write_bytes(bomb)

    def read():
        with pytest.raises(FormatError, match="must unpack to 16 bytes"):
            mrhdata.read(path).compute()

    assert peak_of(read) < 5_000_000


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_bytes_behind_a_chunk_are_refused(tmp_path, version):
    """A file that is longer than an uncompressed chunk is not that chunk."""
    path = write_image(tmp_path / "a.zarr", numbered(), version=version, array={"compressors": None})
    file = next(f for f in path.glob("0/**/*") if f.is_file() and f.name[0].isdigit())
    file.write_bytes(file.read_bytes() + bytes(5_000_000))
    with pytest.raises(FormatError, match="longer than a chunk"):
        mrhdata.read(path).compute()


def nested(path, **options):
    """Write an image of Zarr 2 whose chunks lie in nested folders."""
    return write_image(path, numbered(), array={"chunk_key_encoding": {"name": "v2", "separator": "/"}, **options})


@pytest.mark.parametrize("separator", ["/", "."])
def test_separator_that_is_not_stated_is_found(tmp_path, separator):
    """Chunks of Zarr 2 are found in nested folders and in flat ones if the metadata do not say which."""
    path = (nested if separator == "/" else lambda p: write_image(p, numbered()))(tmp_path / "a.zarr")
    edit(path, lambda m: m.pop("dimension_separator", None))
    np.testing.assert_array_equal(mrhdata.read(path), numbered())


def test_chunks_under_names_that_no_key_has_are_refused(tmp_path):
    """A stated separator that the files contradict would make every voxel the fill value."""
    path = nested(tmp_path / "a.zarr")
    edit(path, lambda m: m.update(dimension_separator="."))
    with pytest.raises(FormatError, match=r"names its chunks like '0\.0\.0', but its folder has"):
        mrhdata.read(path)
    path = write_image(tmp_path / "b.zarr", numbered(), version="0.5")
    edit(path, lambda m: m["chunk_key_encoding"]["configuration"].update(separator="."))
    with pytest.raises(FormatError, match=r"names its chunks like 'c\.0\.0\.0'"):
        mrhdata.read(path)


def test_array_without_chunks_is_warned_about(tmp_path, caplog):
    """An array none of whose chunks has a file is read as its fill value, with a warning."""
    path = write_image(tmp_path / "a.zarr", numbered(), array={"fill_value": 7})
    for file in path.glob("0/?.?.?"):
        file.unlink()
    assert (mrhdata.read(path).values == 7).all()
    assert "has no chunk; every voxel is the fill value 7" in caplog.text


def test_one_large_chunk_is_decoded_once_for_many_boxes(tmp_path, monkeypatch):
    """Boxes of a chunk above the limit are taken from the chunk that was decoded last."""
    from mrhdata.io.omezarr import chunks

    monkeypatch.setattr(chunks, "_LARGE_BYTES", 100)
    values = numbered((8, 9, 10))
    counted = []
    decode = chunks.Chunks._decode
    monkeypatch.setattr(chunks.Chunks, "_decode", lambda *args: counted.append(1) or decode(*args))
    compressed = mrhdata.read(write_image(tmp_path / "a.zarr", values, chunks=values.shape))
    raw = mrhdata.read(write_image(tmp_path / "b.zarr", values, chunks=values.shape, array={"compressors": None}))
    for z in range(8):
        np.testing.assert_array_equal(source_of(compressed.data)[z, 2:, ::3], values[z, 2:, ::3])
    assert len(counted) == 1
    np.testing.assert_array_equal(source_of(raw.data)[3:5, 2:, 1], values[3:5, 2:, 1])
    assert len(counted) == 1


@pytest.mark.parametrize("dtype", [">u2", "<u2", ">f4", "|u1"])
@pytest.mark.parametrize("fill", [0, None, 7])
def test_byte_orders_fill_values_and_orders_of_zarr_2(tmp_path, dtype, fill):
    """Values are those that zarr-python reads, in native byte order, also of chunks that were never written."""
    for order, filters in (("C", None), ("F", None), ("C", [numcodecs.Delta(dtype)])):
        options = {"fill_value": fill, "order": order, "filters": filters, "dtype": dtype}
        path = tmp_path / f"{order}{filters is None}.zarr"
        write_image(path, numbered())
        array = zarr.open_group(path).create_array("0", shape=(9, 8, 7), chunks=(4, 5, 6), overwrite=True, **options)
        array[:5] = numbered((5, 8, 7))
        values = mrhdata.read(path).values
        np.testing.assert_array_equal(values, array[:])
        assert values.dtype.isnative
