"""Chunks decoded one by one: equal to NumPy's slices, and errors for damaged bytes."""

import itertools

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec
from zarr.storage import MemoryStore

import mrhdata
from mrhdata.errors import FormatError
from mrhdata.io.omezarr.chunks import ZarrReader, chunks_of
from mrhdata.volume.box import Box
from mrhdata.volume.file_arrays import FileArray
from tests.conftest import FULL
from tests.patching.test_dataset import volume

V2 = {
    "none": None,
    "blosc": numcodecs.Blosc("lz4"),
    "bitshuffle": numcodecs.Blosc("zstd", shuffle=2),
    "zstd": numcodecs.Zstd(),
    "gzip": numcodecs.GZip(),
    "zlib": numcodecs.Zlib(),
    "lz4": numcodecs.LZ4(),
    "bz2": numcodecs.BZ2(),
    "lzma": numcodecs.LZMA(),
}
V3 = {
    "none": (),
    "blosc": BloscCodec(cname="lz4"),
    "bitshuffle": BloscCodec(cname="zstd", shuffle="bitshuffle"),
    "zstd": ZstdCodec(checksum=True),
    "gzip": GzipCodec(),
    "crc32c": (ZstdCodec(), Crc32cCodec()),
}
TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "u8", "f2", "f4", "f8", "?"]


def random_values(shape, dtype, seed=0):
    """Return random values over the range of the type, without NaN."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "fc":
        return rng.normal(size=shape).astype(dtype)
    if np.dtype(dtype) == bool:
        return rng.random(shape) > 0.5
    return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, np.dtype(dtype).newbyteorder("="), True)


@st.composite
def boxes(draw, shape):
    """Draw slices within a shape, also empty ones."""
    ends = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    return tuple(slice(a, b) for a, b in ends)


@st.composite
def arrays(draw):
    """Draw shape, chunk, shard (or None), format, codec, type and fill value of an array."""
    shape = tuple(draw(st.lists(st.integers(1, 11), min_size=1, max_size=4)))
    chunk = tuple(draw(st.integers(1, n + 2)) for n in shape)
    version = draw(st.sampled_from([2, 3]))
    order = draw(st.sampled_from("CF")) if version == 2 else None
    sharded = version == 3 and draw(st.booleans())
    shard = tuple(c * draw(st.integers(1, 3)) for c in chunk) if sharded else None
    codec = draw(st.sampled_from(sorted(V2 if version == 2 else V3)))
    dtype = draw(st.sampled_from(TYPES))
    big = draw(st.booleans())
    stored = np.dtype(dtype).newbyteorder(">" if big and version == 2 else "<")
    layout = {"order": order} if version == 2 else {"serializer": BytesCodec(endian="big" if big else "little")}
    return shape, chunk, shard, version, codec, stored, draw(st.booleans()), layout


@settings(max_examples=300 if FULL else 40)
@given(arrays(), st.data())
def test_boxes_and_chunks_equal_numpy_slices(tmp_path_factory, array, data):
    """Boxes and chunks are equal to NumPy's slices for any layout, also if chunks were never written."""
    shape, chunk, shard, version, codec, dtype, filled, layout = array
    fill = dtype.type(1 if filled else 0)
    stored = zarr.create_array(
        tmp_path_factory.mktemp("array"),
        shape=shape,
        chunks=chunk,
        shards=shard,
        dtype=dtype,
        fill_value=fill,
        compressors=(V2 if version == 2 else V3)[codec],
        zarr_format=version,
        **layout,
    )
    expected = np.full(shape, fill, dtype.newbyteorder("="))
    for seed in range(2):
        box = data.draw(boxes(shape))
        expected[box] = random_values(expected[box].shape, dtype.newbyteorder("="), seed)
        stored[box] = expected[box]
    chunks = chunks_of(stored)
    assert chunks is not None
    assert chunks.dtype.isnative
    for box in (data.draw(boxes(shape)), tuple(slice(0, n) for n in shape)):
        out = np.empty([s.stop - s.start for s in box], chunks.dtype)
        chunks.into(out, Box.from_slices(box))
        np.testing.assert_array_equal(out, expected[box])
    for index in itertools.product(*(range(-(-n // c)) for n, c in zip(shape, chunk, strict=True))):
        values = chunks.read(index)
        assert values.shape == chunk
        within = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunk, strict=True))
        part = expected[within]
        np.testing.assert_array_equal(values[tuple(map(slice, part.shape))], part)


@pytest.mark.parametrize("fill", [np.nan, np.inf, -1.5, None])
@pytest.mark.parametrize("version", [2, 3])
def test_missing_chunks_contain_the_fill_value(tmp_path, version, fill):
    """Missing chunks contain the fill value, also NaN and infinity, and 0 by default."""
    array = zarr.create_array(tmp_path, shape=(5, 4), chunks=(2, 3), dtype="f4", fill_value=fill, zarr_format=version)
    array[2:4, 0:3] = 7
    expected = np.full((5, 4), 0 if fill is None else fill)
    expected[2:4, 0:3] = 7
    out = np.empty((5, 4), np.float32)
    chunks_of(array).into(out, Box((0, 0), (5, 4)))
    np.testing.assert_array_equal(out, expected)


def unsupported_array(name, folder):
    """Return an array whose layout only zarr-python reads, and its values."""
    values = random_values((6, 5, 4), "c8" if name == "complex" else "i2")
    common = {"shape": values.shape, "dtype": values.dtype, "chunks": (3, 2, 4)}
    sharded = {**common, "chunks": (3, 4, 4)}
    factories = {
        "filters": lambda: zarr.create_array(folder, **common, zarr_format=2, filters=[numcodecs.Delta("i2")]),
        "transposed": lambda: zarr.create_array(folder, **common, filters=[TransposeCodec(order=(2, 0, 1))]),
        "complex": lambda: zarr.create_array(folder, **common),
        "memory": lambda: zarr.create_array(MemoryStore(), **common),
        "index first": lambda: zarr.create_array(
            folder, **sharded, serializer=ShardingCodec(chunk_shape=(3, 2, 4), index_location="start"), compressors=None
        ),
        "index without checksum": lambda: zarr.create_array(
            folder,
            **sharded,
            serializer=ShardingCodec(chunk_shape=(3, 2, 4), index_codecs=[BytesCodec()]),
            compressors=None,
        ),
        "transposed in shards": lambda: zarr.create_array(
            folder,
            **sharded,
            serializer=ShardingCodec(chunk_shape=(3, 2, 4), codecs=[TransposeCodec(order=(2, 0, 1)), BytesCodec()]),
            compressors=None,
        ),
    }
    array = factories[name]()
    array[...] = values
    return array, values


UNSUPPORTED_LAYOUTS = [
    "filters",
    "transposed",
    "complex",
    "memory",
    "index first",
    "index without checksum",
    "transposed in shards",
]


@pytest.mark.parametrize("name", UNSUPPORTED_LAYOUTS)
def test_unsupported_layouts_are_read_by_zarr(tmp_path, name):
    """Unsupported layouts are read by zarr-python, with correct values."""
    array, values = unsupported_array(name, tmp_path)
    assert chunks_of(array) is None
    stored, box = ZarrReader(array), Box((1, 0, 2), (6, 3, 4))
    out = np.empty((5, 3, 2), values.dtype)
    stored.into(out, box)
    np.testing.assert_array_equal(out, values[box.slices])
    np.testing.assert_array_equal(stored(box), values[box.slices])


@pytest.mark.parametrize("options", [{"order": "F"}, {"filters": [numcodecs.Delta("u2")]}, {"dtype": ">u2"}])
def test_patches_of_unsupported_layouts_equal_the_voxels(tmp_path, options):
    """Patches are correct whichever library decodes the chunks."""
    v = volume((12, 11, 10))
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    array = group.create_array("0", shape=v.shape, chunks=(5, 4, 6), **{"dtype": "u2"} | options)
    array[...] = v.values
    axes = [{"name": d, "type": "space", "unit": "millimeter"} for d in "zyx"]
    scale = [{"type": "scale", "scale": [0.1, 0.2, 0.3]}]
    image = {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    group.attrs["multiscales"] = [image]
    read = mrhdata.read(tmp_path / "a.zarr")
    np.testing.assert_array_equal(read.values, v.values)
    p = mrhdata.patches(read, shape=4, stride=3)
    expected = [v.values[None, z : z + 4, y : y + 4, x : x + 4] for z, y, x in p.positions]
    np.testing.assert_array_equal(p.gather(np.arange(len(p)))[0], expected)
    for rows, (x,) in p.batches(5):
        np.testing.assert_array_equal(x, np.stack(expected)[rows])


DAMAGE = {
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a few bytes": lambda content: content[:7],
    "a flipped byte of the index": lambda content: content[:-20] + bytes([content[-20] ^ 255]) + content[-19:],
    "a flipped byte of the checksum": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "one byte more": lambda content: content + b"\0",
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damaged_shard_raises_and_names_the_store(tmp_path, damage):
    """Reading the volume, single patches and an epoch of patches from a damaged shard raises FormatError."""
    mrhdata.write(volume((20, 18, 16)), tmp_path / "a.zarr")
    (shard,) = [f for f in tmp_path.rglob("*") if f.is_file() and "scale0" in f.parts and f.name != "zarr.json"]
    content = shard.read_bytes()
    shard.write_bytes(DAMAGE[damage](content))
    read = mrhdata.read(tmp_path / "a.zarr")
    p = mrhdata.patches(read, shape=4)
    for call in (
        lambda: read.values,
        lambda: p.gather(np.arange(3)),
        lambda: list(p.batches(5)),
        lambda: list(p.loader(5)),
    ):
        with pytest.raises(FormatError, match=r"a\.zarr cannot be read: it is damaged"):
            call()
    shard.write_bytes(content)
    np.testing.assert_array_equal(mrhdata.read(tmp_path / "a.zarr").values, volume((20, 18, 16)).values)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("codec", ["none", "blosc", "zstd", "gzip"])
def test_truncated_chunk_raises(tmp_path, version, codec):
    """For every codec, a chunk that lacks one byte, half its bytes or all of them raises FormatError."""
    array = zarr.create_array(
        tmp_path / "a",
        shape=(16, 16),
        chunks=(16, 16),
        dtype="i4",
        compressors=(V2 if version == 2 else V3)[codec],
        zarr_format=version,
    )
    values = random_values((16, 16), "i4")
    array[...] = values
    (file,) = [f for f in tmp_path.rglob("*") if f.is_file() and f.name in ("0.0", "0")]
    content = file.read_bytes()
    slices = FileArray(array.shape, array.dtype, ZarrReader(array), tmp_path / "a")
    out, box = np.empty((16, 16), np.int32), Box((0, 0), (16, 16))
    slices.into(out, box)
    np.testing.assert_array_equal(out, values)
    for length in (len(content) - 1, len(content) // 2, 0):
        file.write_bytes(content[:length])
        with pytest.raises(FormatError, match="a cannot be read: it is damaged"):
            slices.into(out, box)
