"""Chunks of a local Zarr array, each decoded directly from its file.

zarr-python needs most of a millisecond per read of any size, and zarrs must not be used before a fork.
Training reads chunk after chunk, so a chunk here takes one read and one call of numcodecs, which has no
threads of its own and releases the GIL while it decodes.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import zarr
from zarr.core.metadata.v2 import ArrayV2Metadata
from zarr.storage import LocalStore

from mrhdata.volume.box import Box

Decoder = Callable[[Any], Any]

#: Offset and length of a chunk that is missing from its shard.
_ABSENT = 2**64 - 1
_BLOSC_HEADER = 16


class ZarrReader:
    """Reader of boxes of a Zarr array, chunk by chunk if :func:`chunks_of` supports its layout.

    Parameters
    ----------
    array : zarr.Array
    place : mapping, optional
        Arguments of :func:`mrhdata.io.omezarr.store.read`, if the array is a level of an image.
    """

    def __init__(self, array: zarr.Array[Any], place: Mapping[str, Any] | None = None) -> None:
        self.array, self.place = array, place
        self.chunks = chunks_of(array)

    def __call__(self, box: Box) -> Any:
        """Return the values of a box."""
        if self.chunks is None:
            return self.array[box.slices]
        out = np.empty(box.shape, self.chunks.dtype)
        self.chunks.into(out, box)
        return out

    def into(self, out: np.ndarray, box: Box) -> None:
        """Read a box into an array of its shape."""
        if self.chunks is None:
            out[...] = self.array[box.slices]
        else:
            self.chunks.into(out, box)


class Chunks:
    """Chunks of one array; made by :func:`chunks_of`.

    Attributes
    ----------
    shape, chunk : tuple of int
        Shape of the array, and of one chunk.
    dtype : numpy.dtype
        Type in native byte order.
    """

    def __init__(self, array: zarr.Array[Any], decoders: Sequence[Decoder], shard: _Shard | None) -> None:
        self.shape, self.chunk = array.shape, array.chunks
        self.dtype = array.dtype.newbyteorder("=")
        # The byte order is in the type in v2 and in a codec in v3, of which only little-endian is supported.
        self._stored = array.dtype if isinstance(array.metadata, ArrayV2Metadata) else array.dtype.newbyteorder("<")
        self._fill = array.fill_value
        # Plain strings, because this is the hot path: Python holds the GIL while patches are cut.
        self._root = str(Path(array.store.root) / array.path)  # type: ignore[attr-defined]
        self._key = array.metadata.encode_chunk_key
        self._decoders, self._shard = list(decoders), shard

    def read(self, index: Sequence[int], out: np.ndarray | None = None) -> np.ndarray:
        """Decode one chunk, which has the full shape of a chunk also at the edge of the array.

        Parameters
        ----------
        index : sequence of int
            Index of the chunk along each axis.
        out : array of the chunk's shape and type, optional
            Contiguous array to fill and return.

        Raises
        ------
        ValueError
            The chunk is not of the expected length, or its shard is damaged.
        """
        try:
            return self._decode(index, out)
        except Exception as error:
            # Each codec raises its own exceptions.
            detail = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"chunk {', '.join(map(str, index))}: {detail}") from error

    def _decode(self, index: Sequence[int], out: np.ndarray | None) -> np.ndarray:
        content = self._read_file(index) if self._shard is None else self._shard.read(self._root, self._key, index)
        if content is None:
            out = np.empty(self.chunk, self.dtype) if out is None else out
            out[...] = 0 if self._fill is None else self._fill
            return out
        direct = (
            out is not None and self._stored == self.dtype and bool(self._decoders) and self._decoders[-1] is _blosc
        )
        for decode in self._decoders[:-1] if direct else self._decoders:
            content = decode(content)
        if direct and out is not None:
            _blosc(content, out)
            return out
        values = np.frombuffer(content, self._stored).reshape(self.chunk)
        if out is None:
            return values if self._stored == self.dtype else values.astype(self.dtype)
        out[...] = values
        return out

    def stored(self, box: Box) -> bool:
        """Return whether a file exists for some chunk of a box; for sharded arrays, for some shard."""
        files = self.chunk if self._shard is None else self._shard.shape(self.chunk)
        return any(
            os.path.exists(f"{self._root}/{self._key(index)}")
            for index in itertools.product(*_chunk_ranges(box, files))
        )

    def into(self, out: np.ndarray, box: Box) -> None:
        """Read a box of the array into an array of its shape."""
        ranges = _chunk_ranges(box, self.chunk)
        for offset in np.ndindex(*map(len, ranges)):
            index = [r[i] for r, i in zip(ranges, offset, strict=True)]
            starts = [n * c for n, c in zip(index, self.chunk, strict=True)]
            low = tuple([max(a, b) for a, b in zip(box.start, starts, strict=True)])
            high = tuple([min(z, b + c) for z, b, c in zip(box.stop, starts, self.chunk, strict=True)])
            common = Box(low, high)
            out[common.within(box.start)] = self.read(index)[common.within(starts)]

    def _read_file(self, index: Sequence[int]) -> bytes | None:
        try:
            file = os.open(f"{self._root}/{self._key(tuple(index))}", os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            return _read(file, os.fstat(file).st_size, 0)
        finally:
            os.close(file)


def _chunk_ranges(box: Box, chunk: Sequence[int]) -> list[range]:
    """Return the indices of the chunks that a box overlaps, along each axis."""
    return [
        range(a // c, -(-z // c)) if z > a else range(0) for a, z, c in zip(box.start, box.stop, chunk, strict=True)
    ]


class _Shard:
    """Index of a shard: pairs of offset and length of its chunks, and their checksum, at its end."""

    def __init__(self, chunks: tuple[int, ...]) -> None:
        self._chunks = chunks
        self._length = 16 * int(np.prod(chunks)) + 4

    def shape(self, chunk: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of a shard in voxels."""
        return tuple(n * c for n, c in zip(self._chunks, chunk, strict=True))

    def read(self, root: str, key: Callable[[tuple[int, ...]], str], index: Sequence[int]) -> bytes | None:
        """Return the encoded bytes of a chunk, or None if it was never written."""
        shard = tuple(i // n for i, n in zip(index, self._chunks, strict=True))
        within = np.ravel_multi_index([i % n for i, n in zip(index, self._chunks, strict=True)], self._chunks)
        name = key(shard)
        try:
            file = os.open(f"{root}/{name}", os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            table = _read(file, self._length, max(0, os.fstat(file).st_size - self._length))
            if len(table) < self._length or google_crc32c.value(table[:-4]) != struct.unpack("<I", table[-4:])[0]:
                raise ValueError(f"the index of shard {name} does not match its checksum")
            offset, length = struct.unpack_from("<QQ", table, 16 * int(within))
            if offset == length == _ABSENT:
                return None
            content = _read(file, length, offset)
        finally:
            os.close(file)
        if len(content) != length:
            raise ValueError(f"shard {name} ends within a chunk")
        return content


def _read(file: int, length: int, offset: int) -> bytes:
    """Read up to `length` bytes of a file; one system call reads at most 2 GB."""
    content = os.pread(file, length, offset)
    while len(content) < length and (more := os.pread(file, length - len(content), offset + len(content))):
        content += more
    return content


def chunks_of(array: zarr.Array[Any]) -> Chunks | None:
    """Return the chunks of an array, or None if only zarr-python can read them.

    Supported are arrays on the local disk, of Zarr 2 or 3, sharded or not, in C order, encoded by Blosc,
    Zstandard, gzip or nothing, with or without a CRC-32C.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     array = zarr.create_array(folder, shape=(4, 4), chunks=(2, 2), dtype="u2")
    ...     array[...] = np.arange(16).reshape(4, 4)
    ...     chunks_of(array).read((1, 0)).tolist()
    [[8, 9], [12, 13]]
    """
    if not isinstance(array.store, LocalStore) or array.dtype.kind not in "biuf":
        return None
    metadata = array.metadata
    if isinstance(metadata, ArrayV2Metadata):
        if metadata.order != "C" or metadata.filters:
            return None
        codec: Any = metadata.compressor
        if codec is None:
            return Chunks(array, [], None)
        return Chunks(array, [_blosc if codec.codec_id == "blosc" else codec.decode], None)
    codecs = [codec.to_dict() for codec in metadata.codecs]
    shard = None
    if len(codecs) == 1 and codecs[0]["name"] == "sharding_indexed":
        settings: Any = codecs[0]["configuration"]
        plain = [codec["name"] for codec in settings["index_codecs"]] == ["bytes", "crc32c"]
        if not plain or settings["index_location"] != "end" or array.shards is None:
            return None
        shard = _Shard(tuple(s // c for s, c in zip(array.shards, array.chunks, strict=True)))
        codecs = list(settings["codecs"])
    decoders = [_decoder(codec) for codec in codecs]
    if not decoders or any(decode is None for decode in decoders):
        return None
    return Chunks(array, [decode for decode in reversed(decoders) if decode is not None], shard)


def _decoder(codec: Mapping[str, Any]) -> Decoder | None:
    name, settings = codec["name"], codec.get("configuration", {})
    if name == "bytes":
        return _identity if settings.get("endian", "little") == "little" else None
    if name == "crc32c":
        return _strip_checksum
    makers: dict[str, Decoder] = {
        "blosc": _blosc,
        "zstd": numcodecs.Zstd().decode,
        "gzip": numcodecs.GZip().decode,
    }
    return makers.get(name)


def _blosc(content: Any, out: np.ndarray | None = None) -> Any:
    # Blosc trusts the length in its header and would read past the end of a truncated chunk.
    if len(content) < _BLOSC_HEADER or int.from_bytes(content[12:16], "little") != len(content):
        raise ValueError("a chunk is shorter or longer than its header says")
    if out is not None and int.from_bytes(content[4:8], "little") != out.nbytes:
        raise ValueError("a chunk does not have the number of voxels of its array's chunks")
    return numcodecs.blosc.decompress(content, out)


def _identity(content: Any) -> Any:
    return content


def _strip_checksum(content: Any) -> Any:
    data = bytes(content)
    if google_crc32c.value(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise ValueError("a chunk does not match its checksum")
    return data[:-4]
