"""Compressed pictures of DICOM files, decoded by imagecodecs after a look at their own headers."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np

from mrhdata.errors import FormatError

_JPEG = "1.2.840.10008.1.2.4."
_LOSSY_JPEG = (_JPEG + "50", _JPEG + "51")
#: Transfer syntaxes with the colours of JPEG 2000.
JPEG_2000 = tuple(_JPEG + ending for ending in ("90", "91", "201", "202", "203"))
_RLE = "1.2.840.10008.1.2.5"
#: Transfer syntax -> function of imagecodecs.
CODECS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys((*_LOSSY_JPEG, _JPEG + "57", _JPEG + "70"), imagecodecs.jpeg_decode),
    **dict.fromkeys((_JPEG + "80", _JPEG + "81"), imagecodecs.jpegls_decode),
    **dict.fromkeys((_JPEG + "90", _JPEG + "91"), imagecodecs.jpeg2k_decode),
    **dict.fromkeys((_JPEG + "201", _JPEG + "202", _JPEG + "203"), imagecodecs.htj2k_decode),
    _RLE: imagecodecs.dicomrle_decode,
}
#: Markers of JPEG and JPEG-LS that begin a frame, without those of tables.
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class Decoded:
    """Decoded numbers.

    Parameters
    ----------
    values : array
    planar : bool
        Whether the colours come first.
    is_rgb : bool
        Whether the codec has made colours red, green and blue.
    """

    values: np.ndarray
    planar: bool = False
    is_rgb: bool = False


def decode(content: bytes, syntax: str, shape: tuple[int, int, int], stored: Any, photometric: str) -> Decoded:
    """Return the numbers of a compressed picture.

    Parameters
    ----------
    content : bytes
    syntax : str
        Key of `CODECS`.
    shape : (3,) tuple of int
        Rows, columns and samples that the header states.
    stored : numpy.dtype
        Type that the header states.
    photometric : str

    Raises
    ------
    FormatError
        The picture has another size than the header says.
    """
    if syntax == _RLE:
        order = np.dtype(stored).newbyteorder("<")
        return Decoded(np.frombuffer(imagecodecs.dicomrle_decode(content, order), order), planar=True)
    # libjpeg fills pictures that are cut off in silence, and CharLS takes up to half a minute for them.
    if not content.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
        raise FormatError("the compressed picture is truncated: it has no end. Copy the file again")
    stated = codestream_shape(content)
    if stated != shape:
        raise FormatError(f"the compressed picture must have {shape} rows, columns and samples; got {stated}")
    if syntax in _LOSSY_JPEG and shape[2] == 3:
        space = "RGB" if _is_rgb(content, photometric) else "YCBCR"
        return Decoded(imagecodecs.jpeg_decode(content, colorspace=space, outcolorspace="RGB"), is_rgb=True)
    return Decoded(CODECS[syntax](content))


def codestream_shape(content: bytes) -> tuple[int, int, int]:
    """Return rows, columns and samples that a compressed picture states.

    Raises
    ------
    FormatError
        The picture states none.
    """
    start = content.find(b"\xff\x4f\xff\x51")
    if content[:2] != b"\xff\xd8" and start >= 0 and len(content) >= start + 42:
        width, height, left, top = struct.unpack_from(">4I", content, start + 8)
        return height - top, width - left, struct.unpack_from(">H", content, start + 40)[0]
    for marker, position in _segments(content):
        if marker in _FRAMES and len(content) >= position + 10:
            height, width, samples = struct.unpack_from(">HHB", content, position + 5)
            return height, width, samples
    raise FormatError("the compressed picture is damaged: it does not state its size")


def _segments(content: bytes) -> Any:
    """Yield the marker and position of each segment of JPEG before the voxels."""
    position = 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        yield marker, position
        if marker == 0xDA:
            return
        position += 2 + struct.unpack_from(">H", content, position + 2)[0]


def _is_rgb(content: bytes, photometric: str) -> bool:
    """Return whether lossy JPEG holds red, green and blue.

    Raises
    ------
    FormatError
        The header of the file and that of the picture contradict each other.
    """
    for marker, position in _segments(content):
        if marker == 0xEE and content[position + 4 : position + 9] == b"Adobe" and len(content) > position + 15:
            inside = content[position + 15] == 0
            break
        if marker == 0xE0 and content[position + 4 : position + 8] == b"JFIF":
            inside = False
            break
    else:
        return photometric == "RGB"
    if inside != (photometric == "RGB"):
        raise FormatError(
            f"PhotometricInterpretation is {photometric}, but the compressed picture says that it is "
            f"{'RGB' if inside else 'luminance and chrominance'}; correct the header"
        )
    return inside
