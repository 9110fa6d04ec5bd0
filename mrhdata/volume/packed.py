"""Arrays in compressed files, which are read to the end of their stream so that checksums are compared.

gzip and zlib store a checksum at the end of a stream, which a reader that stops after the last voxel never sees. The
bytes are decompressed into the array that is returned, and held once.
"""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mrhdata.errors import FormatError
from mrhdata.volume.box import Box

#: Bytes that are decompressed at a time.
_STEP = 1 << 20
#: Largest number of bytes that one byte can unpack to: deflate copies 258 bytes with 2 bits, bzip2 repeats blocks of
#: 900,000 bytes of runs in about 40 bytes.
MAX_RATIO = {"gzip": 1_040, "zlib": 1_040, "bzip2": 1_200_000}
#: Bytes that may follow the voxels, such as the tags of MGH; more is not the file that the header describes.
_MAX_REST = 64_000_000

CODECS = {".gz": "gzip", ".mgz": "gzip", ".bz2": "bzip2"}


def codec_of(path: Path | str) -> str | None:
    """Return the compression of a file by its ending, None for a plain file."""
    return CODECS.get(Path(path).suffix.lower())


def check_packed_size(path: Path, codec: str, needed: int, start: int = 0) -> None:
    """Raise FormatError if a compressed file is too short for the bytes that its header asks for.

    The header is not believed before memory is allocated for it.
    """
    packed = path.stat().st_size - start
    if needed > max(0, packed) * MAX_RATIO[codec]:
        raise FormatError(
            f"{path} is damaged or truncated: its header asks for {needed} bytes, and {packed} bytes of {codec} cannot "
            "hold them. Copy it again"
        )


class PackedReader:
    """Reader of boxes of an array in a compressed file.

    Parameters
    ----------
    path : path
    codec : {"gzip", "zlib", "bzip2"}
    shape, dtype
        Shape and stored type of the array.
    offset : int
        Byte of the unpacked stream at which the array begins.
    start : int
        Byte of the file at which the stream begins.
    order : {"C", "F"}
        Whether the last or the first axis is the fastest.
    """

    def __init__(
        self, path: Path, codec: str, shape: tuple[int, ...], dtype: Any, *, offset: int = 0, start: int = 0, order: Any
    ) -> None:
        self._path, self._codec, self._shape, self._dtype = path, codec, shape, np.dtype(dtype)
        self._offset, self._start, self._order = offset, start, order
        count = int(np.prod(shape, dtype=object))
        check_packed_size(path, codec, offset + self._dtype.itemsize * count, start)

    def __call__(self, box: Box) -> np.ndarray:
        """Return the values of a box; the bytes of its planes are held, and all others checked."""
        slowest = 0 if self._order == "C" else len(self._shape) - 1
        first, last = box.start[slowest], box.stop[slowest]
        shape = tuple(last - first if axis == slowest else n for axis, n in enumerate(self._shape))
        plane = self._dtype.itemsize * int(np.prod(shape, dtype=object)) // max(1, last - first)
        values = np.empty(int(np.prod(shape)) * self._dtype.itemsize, np.uint8)
        with self._path.open("rb") as file:
            file.seek(self._start)
            stream = _opened(file, self._codec)
            _skip(stream, self._offset + first * plane)
            _fill(values, stream)
            _check_rest(stream, (self._shape[slowest] - last) * plane)
        planes = values.view(self._dtype).reshape(shape, order=self._order)
        return planes[tuple(slice(None) if axis == slowest else s for axis, s in enumerate(box.slices))]


def unpacked_start(path: Path, count: int) -> bytes:
    """Return the first bytes of a file, unpacked."""
    codec = codec_of(path)
    with path.open("rb") as file:
        return bytes((file if codec is None else _opened(file, codec)).read(count))


def check_stream(path: Path, codec: str, start: int = 0) -> None:
    """Read a compressed file from byte `start` to its end, so that its checksums are compared."""
    with path.open("rb") as file:
        file.seek(start)
        stream = _opened(file, codec)
        while stream.read(_STEP):
            pass


def _opened(file: BinaryIO, codec: str) -> Any:
    if codec == "zlib":
        return _ZlibStream(file)
    return gzip.GzipFile(fileobj=file) if codec == "gzip" else bz2.BZ2File(file)


class _ZlibStream(io.RawIOBase):
    """The unpacked bytes of one zlib or gzip stream."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._decoder, self._waiting = file, zlib.decompressobj(wbits=47), b""

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, none at the end of the stream."""
        while not self._decoder.eof:
            packed = self._waiting or self._file.read(_STEP)
            unpacked = self._decoder.decompress(packed, max(0, size))
            self._waiting = self._decoder.unconsumed_tail
            if unpacked:
                return unpacked
            if not packed:
                raise EOFError("the compressed stream ends before its checksum")
        return b""


def _fill(out: np.ndarray, stream: Any) -> None:
    """Read exactly the bytes of an array."""
    position = 0
    while position < out.size:
        piece = stream.read(min(_STEP, out.size - position))
        if not piece:
            raise EOFError("the file ends before its last voxel")
        out[position : position + len(piece)] = np.frombuffer(piece, np.uint8)
        position += len(piece)


def _skip(stream: Any, count: int) -> None:
    while count:
        piece = stream.read(min(_STEP, count))
        if not piece:
            raise EOFError("the file ends before its last voxel")
        count -= len(piece)


def _check_rest(stream: Any, voxels: int) -> None:
    """Read the stream to its end, which compares its checksum; `voxels` more bytes must follow, and few others."""
    _skip(stream, voxels)
    rest = 0
    while piece := stream.read(_STEP):
        rest += len(piece)
        if rest > _MAX_REST:
            raise EOFError("the file holds far more bytes than its header says")
