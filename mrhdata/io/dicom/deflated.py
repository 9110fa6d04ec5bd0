"""DICOM files whose elements are deflated behind the head of the file, header and voxels in one stream.

The stream is inflated as far as it is needed, so that a short file cannot fill the memory.
"""

from __future__ import annotations

import functools
import io
import zlib
from pathlib import Path

from mrhdata.errors import FormatError
from mrhdata.volume.packed import MAX_RATIO

_DEFLATED, _EXPLICIT = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"
#: The head of a file: preamble, ``DICM``, and the length of the first group of elements.
_GROUP_LENGTH = b"DICM\x02\0\0\0UL\4\0"
_PREAMBLE = 128
#: Most bytes of the elements before the voxels.
HEADER_BYTES = 64_000_000


def inflated(path: Path, most: int = HEADER_BYTES) -> io.BytesIO | None:
    """Return the first bytes of a deflated file as if it were not deflated; None for other files.

    Parameters
    ----------
    path : path
    most : int
        Bytes that are inflated at most.

    Raises
    ------
    FormatError
        The stream is damaged.
    """
    length = _head_length(path)
    return None if length is None else io.BytesIO(_inflated(path, path.stat().st_mtime_ns, length, most))


def size_of(path: Path) -> int | None:
    """Return the bytes of a deflated file without its compression, for a large one the most that it can have.

    It is None for other files.
    """
    start = inflated(path)
    if start is None:
        return None
    size = start.getbuffer().nbytes
    return size if size < HEADER_BYTES else path.stat().st_size * MAX_RATIO["zlib"]


def _head_length(path: Path) -> int | None:
    """Return the bytes in front of the stream, None if a file is not deflated."""
    with path.open("rb") as file:
        head = file.read(1024)
    at = _PREAMBLE + len(_GROUP_LENGTH)
    if head[_PREAMBLE:at] != _GROUP_LENGTH:
        return None
    length = at + 4 + int.from_bytes(head[at : at + 4], "little")
    return length if _DEFLATED in head[:length] else None


# The pictures of one file are read one after the other.
@functools.lru_cache(maxsize=1)
def _inflated(path: Path, changed: int, length: int, most: int) -> bytes:
    """Return a file with the head of an uncompressed one; `changed` is its time, so that a new file is read again."""
    with path.open("rb") as file:
        head = file.read(length).replace(_DEFLATED, _EXPLICIT, 1)
        packed = file.read()
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = stream.decompress(packed, most)
    except zlib.error as error:
        raise FormatError(f"{path} is damaged: its elements cannot be inflated ({error}). Copy it again") from error
    if not stream.eof and len(content) < most:
        raise FormatError(f"{path} is truncated: the end of its deflated elements is missing. Copy it again")
    return head + content
