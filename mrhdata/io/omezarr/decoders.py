"""Decoders of a chunk's bytes, none of which unpacks more than the chunk can hold.

The length in the header of a compressed chunk is believed only after it was compared with the shape of the chunk, so
that a few damaged or malicious bytes cannot take all memory.
"""

from __future__ import annotations

import bz2
import lzma
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import google_crc32c
import numcodecs
import zarr
from zarr.core.metadata.v2 import ArrayV2Metadata

#: Function of encoded bytes that returns decoded ones.
Decoder = Callable[[Any], Any]

_BLOSC_HEADER = 16
_CHECKSUM_BYTES = 4
#: CRC-32C of any bytes that are followed by their own CRC-32C.
_CRC32C_RESIDUE = 0x48674BC7
#: Largest dictionary of an LZMA stream, which its header may set to 4 GB.
_LZMA_BYTES = 1 << 28
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class BloscDecoder:
    """Decoder of Blosc that can also decode into an array.

    Parameters
    ----------
    nbytes : int
        Bytes of a decoded chunk.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def __call__(self, content: Any, out: Any = None) -> Any:
        """Return the decoded bytes, or fill `out`."""
        # Blosc trusts the length in its header and would read past the end of a truncated chunk.
        if len(content) < _BLOSC_HEADER or int.from_bytes(content[12:16], "little") != len(content):
            raise ValueError("a chunk is shorter or longer than its header says")
        _check_length(int.from_bytes(content[4:8], "little"), self.nbytes)
        return numcodecs.blosc.decompress(content, out)


def decoders_of(array: zarr.Array[Any], codecs: Sequence[Mapping[str, Any]]) -> list[Decoder] | None:
    """Return the decoders of a chunk in the order in which they are applied, or None if one is not supported.

    Parameters
    ----------
    array : zarr.Array
        Array whose `chunks` is the shape of the chunks that are decoded.
    codecs : sequence of mapping
        Codecs that follow the conversion to bytes, in the order of encoding, each with ``"name"`` and, in Zarr 3,
        ``"configuration"``.
    """
    size: int | None = math.prod(array.chunks) * array.dtype.itemsize
    decoders: list[Decoder] = []
    for codec in codecs:
        if codec["name"] == "crc32c":
            decoders.append(_without_checksum)
            size = None if size is None else size + _CHECKSUM_BYTES
            continue
        make = _COMPRESSORS.get(str(codec["name"]))
        # The size of what one compressor passes to another is unknown.
        if make is None or size is None:
            return None
        decoders.append(make(size))
        size = None
    return decoders[::-1]


def stored_codecs(array: zarr.Array[Any]) -> list[dict[str, Any]]:
    """Return the codecs of an array in the order of encoding, of Zarr 2 in the form of Zarr 3."""
    metadata = array.metadata
    if isinstance(metadata, ArrayV2Metadata):
        listed = [*(metadata.filters or ()), *([] if metadata.compressor is None else [metadata.compressor])]
        return [{"name": codec.codec_id, "configuration": dict(codec.get_config())} for codec in listed]
    return [dict(codec.to_dict()) for codec in metadata.codecs]


def has_checksum(codecs: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a chunk carries a checksum, by which damage of its bytes is found."""
    return any(
        codec["name"] in ("crc32c", "gzip", "zlib", "bz2")
        or (codec["name"] == "zstd" and bool(codec.get("configuration", {}).get("checksum")))
        for codec in codecs
    )


def _check_length(length: int, expected: int) -> None:
    if length != expected:
        raise ValueError(f"a chunk must unpack to {expected} bytes; its header says {length}")


def _without_checksum(content: Any) -> Any:
    if len(content) < _CHECKSUM_BYTES or google_crc32c.value(bytes(content)) != _CRC32C_RESIDUE:
        raise ValueError("a chunk does not match its checksum")
    return memoryview(content)[:-_CHECKSUM_BYTES]


def _zstd(nbytes: int, content: Any) -> Any:
    stated = _zstd_length(bytes(content[:18]))
    if stated is None:
        # A stream without a length is decoded into an array of the expected one.
        out = bytearray(nbytes)
        numcodecs.zstd.decompress(content, out)
        return out
    _check_length(stated, nbytes)
    return numcodecs.zstd.decompress(content)


def _zstd_length(head: bytes) -> int | None:
    """Return the decoded length in the header of a Zstandard frame (RFC 8878, 3.1.1.1), or None if it has none."""
    if len(head) < 6 or head[:4] != _ZSTD_MAGIC:
        raise ValueError("a chunk does not begin with a Zstandard frame")
    flags = head[4]
    single, kind = flags >> 5 & 1, flags >> 6
    width = (1 if single else 0, 2, 4, 8)[kind]
    if not width:
        return None
    first = 5 + (0 if single else 1) + (0, 1, 2, 4)[flags & 3]
    return int.from_bytes(head[first : first + width], "little") + (256 if width == 2 else 0)


def _lz4(nbytes: int, content: Any) -> Any:
    _check_length(int.from_bytes(content[:4], "little"), nbytes)
    return numcodecs.lz4.decompress(content)


def _stream(make: Callable[[], Any], nbytes: int, content: Any) -> Any:
    """Decode a stream of the standard library, and check that it ends after `nbytes`."""
    decoder = make()
    values = decoder.decompress(content, nbytes + 1)
    if len(values) == nbytes and not decoder.eof:
        # The first call may stop before the checksum at the end of the stream.
        values += decoder.decompress(getattr(decoder, "unconsumed_tail", b""), 1)
    if len(values) != nbytes or not decoder.eof or decoder.unused_data:
        raise ValueError(f"a chunk must unpack to {nbytes} bytes and end there")
    return values


#: Name of a compressor -> function of the decoded length that returns its decoder.
_COMPRESSORS: dict[str, Callable[[int], Decoder]] = {
    "blosc": BloscDecoder,
    "zstd": lambda nbytes: partial(_zstd, nbytes),
    "lz4": lambda nbytes: partial(_lz4, nbytes),
    "gzip": lambda nbytes: partial(_stream, partial(zlib.decompressobj, wbits=31), nbytes),
    "zlib": lambda nbytes: partial(_stream, zlib.decompressobj, nbytes),
    "bz2": lambda nbytes: partial(_stream, bz2.BZ2Decompressor, nbytes),
    "lzma": lambda nbytes: partial(_stream, partial(lzma.LZMADecompressor, memlimit=_LZMA_BYTES), nbytes),
}
