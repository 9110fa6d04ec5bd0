"""Chunks of a local Zarr array, each decoded directly from its file.

zarr-python needs most of a millisecond per read of any size, and zarrs must not be used before a fork.
Training reads chunk after chunk, so a chunk here takes one read and one call of numcodecs, which has no
threads of its own and releases the GIL while it decodes.
"""

from __future__ import annotations

import itertools
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.core.metadata.v2 import ArrayV2Metadata
from zarr.core.sync import sync
from zarr.storage import LocalStore

from mrhdata.io.omezarr.decoders import BloscDecoder, Decoder, decoders_of, stored_codecs
from mrhdata.io.omezarr.presence import Presence
from mrhdata.volume.box import Box
from mrhdata.volume.file_arrays import RawReader

#: Offset and length of a chunk that is missing from its shard.
_ABSENT = 2**64 - 1
#: Bytes from which the last decoded chunk is kept, because a box of it costs as much as the whole chunk.
_LARGE_BYTES = 64_000_000
#: Encoded chunks are at most this much longer than decoded ones.
_OVERHEAD_BYTES = 1_000_000


class ZarrReader:
    """Reader of boxes of a Zarr array, chunk by chunk if :func:`chunks_of` supports its layout.

    Parameters
    ----------
    array : zarr.Array
    place : mapping, optional
        Arguments of :func:`mrhdata.io.omezarr.store.read`, if the array is a level of an image.
    presence : Presence, optional
        Shards that were written; if one of them is missing, reading it raises an error.
    """

    def __init__(
        self, array: zarr.Array[Any], place: Mapping[str, Any] | None = None, presence: Presence | None = None
    ) -> None:
        self.array, self.place, self._presence = array, place, presence
        self.chunks = chunks_of(array, presence)

    @property
    def smallest_bytes(self) -> int:
        """Bytes in memory while the smallest box is read."""
        if self.chunks is not None:
            return self.chunks.smallest_bytes
        return 2 * math.prod(self.array.chunks) * self.array.dtype.itemsize

    def __call__(self, box: Box) -> Any:
        """Return the values of a box."""
        if self.chunks is None:
            values = self.array[box.slices]
            self._check_present(box, values)
            return values
        out = np.empty(box.shape, self.chunks.dtype)
        self.chunks.into(out, box)
        return out

    def into(self, out: np.ndarray, box: Box) -> None:
        """Read a box into an array of its shape."""
        if self.chunks is None:
            out[...] = self(box)
        else:
            self.chunks.into(out, box)

    def _check_present(self, box: Box, values: Any) -> None:
        """Raise ValueError if a shard of values that are all 0 was written but is missing."""
        if self._presence is None or np.any(values):
            return
        shape = self.array.shards or self.array.chunks
        for index in itertools.product(*_chunk_ranges(box, shape)):
            name = self.array.metadata.encode_chunk_key(index)
            if self._presence.holds(index) and not sync((self.array.store_path / name).exists()):
                raise ValueError(f"shard {name} is missing; copy the store again")


class Chunks:
    """Chunks of one array; made by :func:`chunks_of`.

    Attributes
    ----------
    shape, chunk : tuple of int
        Shape of the array, and of one chunk.
    dtype : numpy.dtype
        Type in native byte order.
    nbytes : int
        Bytes of a decoded chunk.
    """

    def __init__(
        self,
        array: zarr.Array[Any],
        decoders: Sequence[Decoder],
        *,
        stored: np.dtype[Any],
        order: str = "C",
        shard: _Shard | None = None,
        presence: Presence | None = None,
    ) -> None:
        self.shape, self.chunk = array.shape, array.chunks
        self.dtype, self._stored, self._order = array.dtype.newbyteorder("="), stored, order
        self.nbytes = math.prod(self.chunk) * self.dtype.itemsize
        self._fill = 0 if array.fill_value is None else array.fill_value
        # Plain strings, because this is the hot path: Python holds the GIL while patches are cut.
        self._root = str(Path(array.store.root) / array.path)  # type: ignore[attr-defined]
        self._key = array.metadata.encode_chunk_key
        self._decoders, self._shard, self._presence = list(decoders), shard, presence
        native = stored == self.dtype and order == "C"
        self._blosc = decoders[-1] if native and decoders and isinstance(decoders[-1], BloscDecoder) else None
        #: Reader of parts of a chunk that is stored as it is.
        self._raw = None if decoders or shard or order != "C" else RawReader(Path(), 0, self.chunk, stored)
        self._last: tuple[tuple[int, ...], np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last": None}

    @property
    def smallest_bytes(self) -> int:
        """Bytes in memory while the smallest box is read: a chunk and its encoded form."""
        if self._raw is not None:
            return 0
        if self._shard is not None or self.nbytes < _LARGE_BYTES:
            return 2 * self.nbytes
        return self.nbytes + max((p.stat().st_size for p in Path(self._root).rglob("*") if p.is_file()), default=0)

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
            The chunk is not of the expected length, does not match its checksum, or is missing though it was written.
        """
        with _naming(index):
            values = self._decode(index, out)
        if values is None:
            values = np.empty(self.chunk, self.dtype) if out is None else out
            values[...] = self._fill
        return values

    def stored(self, box: Box) -> bool:
        """Return whether some chunk of a box was written; for sharded arrays, some shard."""
        files = self.chunk if self._shard is None else self._shard.shape(self.chunk)
        indices = itertools.product(*_chunk_ranges(box, files))
        if self._presence is not None:
            return any(map(self._presence.holds, indices))
        return any(os.path.exists(f"{self._root}/{self._key(index)}") for index in indices)

    def into(self, out: np.ndarray, box: Box) -> None:
        """Read a box of the array into an array of its shape."""
        ranges = _chunk_ranges(box, self.chunk)
        for offset in np.ndindex(*map(len, ranges)):
            index = tuple([r[i] for r, i in zip(ranges, offset, strict=True)])
            starts = [n * c for n, c in zip(index, self.chunk, strict=True)]
            low = tuple([max(a, b) for a, b in zip(box.start, starts, strict=True)])
            high = tuple([min(z, b + c) for z, b, c in zip(box.stop, starts, self.chunk, strict=True)])
            common = Box(low, high)
            target, part = out[common.within(box.start)], common.within(starts)
            if target.shape == self.chunk and target.dtype == self.dtype and target.flags.c_contiguous:
                self.read(index, target)
                continue
            if self.nbytes <= _LARGE_BYTES:
                target[...] = self.read(index)[part]
                continue
            with _naming(index):
                self._large_part(index, target, part)

    def _large_part(self, index: tuple[int, ...], out: np.ndarray, part: tuple[slice, ...]) -> None:
        """Read a part of a large chunk into an array of its shape."""
        if self._raw is None:
            values = self._kept(index)
            out[...] = self._fill if values is None else values[part]
            return
        file = self._open(index)
        if file is None:
            out[...] = self._fill
            return
        size = os.fstat(file).st_size
        os.close(file)
        if size != self.nbytes:
            raise ValueError(f"it must have {self.nbytes} bytes; got {size}")
        self._raw.at(Path(self._root, self._key(index))).into(out, Box.from_slices(part))

    def _kept(self, index: tuple[int, ...]) -> np.ndarray | None:
        """Return a large chunk, which is kept for the next box of it."""
        last = self._last
        if last is None or last[0] != index:
            # The old chunk is freed before the new one is decoded.
            self._last = last = None
            values = self._decode(index, None)
            if values is None:
                return None
            self._last = last = (index, values)
        return last[1]

    def _decode(self, index: Sequence[int], out: np.ndarray | None) -> np.ndarray | None:
        """Return a chunk, or None if it was never written."""
        content = self._encoded(tuple(index))
        if content is None:
            return None
        direct = self._blosc is not None and out is not None
        for decode in self._decoders[:-1] if direct else self._decoders:
            content = decode(content)
        if self._blosc is not None and out is not None:
            self._blosc(content, out)
            return out
        if len(content) != self.nbytes:
            raise ValueError(f"it must have {self.nbytes} bytes; got {len(content)}")
        values = np.frombuffer(content, self._stored).reshape(self.chunk, order=self._order)  # type: ignore[call-overload]
        if out is None:
            return values if self._stored == self.dtype else values.astype(self.dtype)
        out[...] = values
        return out

    def _open(self, position: tuple[int, ...]) -> int | None:
        """Open the file of a shard (a chunk, without shards); return None if it was never written."""
        name = self._key(position)
        try:
            return os.open(f"{self._root}/{name}", os.O_RDONLY)
        except FileNotFoundError:
            if self._presence is not None and self._presence.holds(position):
                raise ValueError(f"the file {name} is missing. Copy the store again") from None
            return None

    def _encoded(self, index: tuple[int, ...]) -> bytes | None:
        file = self._open(index if self._shard is None else self._shard.position(index))
        if file is None:
            return None
        try:
            size = os.fstat(file).st_size
            if self._shard is not None:
                return self._shard.read(file, size, index, 2 * self.nbytes + _OVERHEAD_BYTES)
            if size > 2 * self.nbytes + _OVERHEAD_BYTES:
                raise ValueError(f"its file of {size} bytes is longer than a chunk of {self.nbytes} bytes can be")
            return _read(file, size, 0)
        finally:
            os.close(file)


@contextmanager
def _naming(index: Sequence[int]) -> Iterator[None]:
    """Raise errors of codecs, each of which has its own, as ValueError that names the chunk."""
    try:
        yield
    except Exception as error:
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"chunk {', '.join(map(str, index))}: {detail}") from error


def _chunk_ranges(box: Box, chunk: Sequence[int]) -> list[range]:
    """Return the indices of the chunks that a box overlaps, along each axis."""
    return [
        range(a // c, -(-z // c)) if z > a else range(0) for a, z, c in zip(box.start, box.stop, chunk, strict=True)
    ]


class _Shard:
    """Index of a shard: pairs of offset and length of its chunks, and their checksum, at its end."""

    def __init__(self, chunks: tuple[int, ...]) -> None:
        self._chunks = chunks
        self._length = 16 * math.prod(chunks) + 4

    def shape(self, chunk: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of a shard in voxels."""
        return tuple(n * c for n, c in zip(self._chunks, chunk, strict=True))

    def position(self, index: Sequence[int]) -> tuple[int, ...]:
        """Return the index of the shard that holds a chunk."""
        return tuple([i // n for i, n in zip(index, self._chunks, strict=True)])

    def read(self, file: int, size: int, index: Sequence[int], most: int) -> bytes | None:
        """Return the encoded bytes of a chunk, `most` of them, or None if it was never written."""
        within = np.ravel_multi_index([i % n for i, n in zip(index, self._chunks, strict=True)], self._chunks)
        if size < self._length:
            raise ValueError("its shard is shorter than the index of a shard")
        table = _read(file, self._length, size - self._length)
        if google_crc32c.value(table[:-4]) != struct.unpack("<I", table[-4:])[0]:
            raise ValueError("the index of its shard does not match its checksum")
        offset, length = struct.unpack_from("<QQ", table, 16 * int(within))
        if offset == length == _ABSENT:
            return None
        if offset + length > size or length > most:
            raise ValueError("its shard ends within the chunk")
        return _read(file, length, offset)


def _read(file: int, length: int, offset: int) -> bytes:
    """Read up to `length` bytes of a file; one system call reads at most 2 GB."""
    content = os.pread(file, length, offset)
    while len(content) < length and (more := os.pread(file, length - len(content), offset + len(content))):
        content += more
    return content


def chunks_of(array: zarr.Array[Any], presence: Presence | None = None) -> Chunks | None:
    """Return the chunks of an array, or None if only zarr-python can read them.

    Supported are arrays on the local disk, of Zarr 2 or 3, sharded or not, encoded by one usual compressor or
    none, with or without a CRC-32C, without filters.

    Parameters
    ----------
    array : zarr.Array
    presence : Presence, optional
        Shards that were written; if one of them is missing, reading it raises an error.

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
    codecs = stored_codecs(array)
    if isinstance(array.metadata, ArrayV2Metadata):
        decoders = decoders_of(array, codecs)
        order = array.metadata.order
        return None if decoders is None else Chunks(array, decoders, stored=array.dtype, order=order, presence=presence)
    shard = None
    if len(codecs) == 1 and codecs[0]["name"] == "sharding_indexed":
        settings: Any = codecs[0]["configuration"]
        plain = [codec["name"] for codec in settings["index_codecs"]] == ["bytes", "crc32c"]
        if not plain or settings["index_location"] != "end" or array.shards is None:
            return None
        shard = _Shard(tuple(s // c for s, c in zip(array.shards, array.chunks, strict=True)))
        codecs = list(settings["codecs"])
    if not codecs or codecs[0]["name"] != "bytes":
        return None
    decoders = decoders_of(array, codecs[1:])
    endian = codecs[0].get("configuration", {}).get("endian", "little")
    stored = array.dtype.newbyteorder("<" if endian == "little" else ">")
    return None if decoders is None else Chunks(array, decoders, stored=stored, shard=shard, presence=presence)
