"""Voxels of DICOM files: their layout, checked against the bytes that there are, and one picture at a time."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydicom import encaps
from pydicom.dataset import Dataset

from mrhdata.errors import FormatError
from mrhdata.io.dicom import codecs, colours
from mrhdata.io.dicom.deflated import HEADER_BYTES
from mrhdata.io.dicom.headers import BoundedFile, Header, opened, parsing, whole

#: A picture may unpack to this many times its bytes, or to this many bytes: RLE reaches 64, JPEG 2000 of an empty
#: picture some thousands.
_EXPANSION, _SMALL = 10_000, 64_000_000
#: Most pictures of one file; a plane has an object of some hundred bytes.
_MOST = 100_000
_NATIVE = {
    "1.2.840.10008.1.2": False,
    "1.2.840.10008.1.2.1": False,
    "1.2.840.10008.1.2.2": True,
}
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")


@dataclass(frozen=True, eq=False)
class Image:
    """Layout of the pictures of a file.

    Parameters
    ----------
    path : path
    offset : int
        Position of the first byte in the file.
    syntax : str
        UID of the transfer syntax, which names the compression; empty for uncompressed voxels.
    count, rows, columns, samples : int
        Pictures, their size, and 1 or 3 values per voxel.
    stored : numpy.dtype
        Type of the stored numbers.
    bits : int
        Bits of each number that are used.
    swapped : bool
        Whether the two bytes of each word are in the wrong order, as in big-endian files of bytes and bits.
    planar : bool
        Whether the three values of a voxel are stored in planes of their own.
    photometric : str
        Meaning of the values, such as ``"MONOCHROME2"``.
    palette : pydicom.Dataset or None
        Elements with the colours of ``"PALETTE COLOR"``.
    offsets : tuple of bytes, optional
        Extended table of the positions and lengths of compressed pictures.
    deflated : bool
        Whether the file is deflated; then `offset` counts inflated bytes.
    """

    path: Path
    offset: int
    syntax: str
    count: int
    rows: int
    columns: int
    samples: int
    stored: np.dtype[Any]
    bits: int
    swapped: bool
    planar: bool
    photometric: str
    palette: Dataset | None
    offsets: tuple[bytes, bytes] | None
    deflated: bool

    @property
    def smallest_bytes(self) -> int:
        """Bytes in memory while a picture is read: its decoded bytes twice, and all of a deflated file."""
        file = self.offset + math.ceil(self.size * self.count) if self.deflated else 0
        return 2 * math.ceil(self.size) + 2 * file

    @property
    def values(self) -> int:
        """Stored numbers of a picture."""
        if self.photometric == "YBR_FULL_422" and not self.syntax:
            return self.rows * self.columns * 2
        return self.rows * self.columns * self.samples

    @property
    def size(self) -> float:
        """Bytes of an uncompressed picture; a fraction if voxels are single bits."""
        return self.values / 8 if self.bits == 1 else self.values * self.stored.itemsize

    @property
    def channels(self) -> int:
        """Values per voxel after colours of a palette are looked up."""
        return 3 if self.palette is not None else self.samples

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values that :func:`picture` returns."""
        return colours.palette_dtype(self.palette) if self.palette is not None else self.stored.newbyteorder("=")


def image_of(header: Header) -> Image:
    """Return the layout of the pictures of a file.

    Raises
    ------
    FormatError
        The layout is not supported, or needs more bytes than the file has.
    """
    tags = header.tags
    rows, columns = whole(tags, "Rows"), whole(tags, "Columns")
    samples, count = whole(tags, "SamplesPerPixel", 1), whole(tags, "NumberOfFrames", 1) or 1
    photometric = str(tags.get("PhotometricInterpretation") or "MONOCHROME2").strip()
    if min(rows, columns) < 1 or (samples, photometric in _COLOURS) not in ((1, False), (3, True)):
        raise FormatError(
            f"{header.path} must have Rows and Columns, and 1 sample or 3 of {', '.join(_COLOURS)}; got {rows} x "
            f"{columns} with {samples} samples of {photometric}"
        )
    syntax, big = _syntax(header)
    if photometric in ("YBR_RCT", "YBR_ICT") and syntax not in codecs.JPEG_2000:
        raise FormatError(
            f"{header.path} has colours of JPEG 2000 ({photometric}), but is not compressed so; correct it"
        )
    stored, bits = _stored(header, big)
    table = tags.get("ExtendedOffsetTable"), tags.get("ExtendedOffsetTableLengths")
    image = Image(
        header.path,
        header.offset,
        syntax,
        count,
        rows,
        columns,
        samples,
        stored,
        bits,
        big and header.words and stored.itemsize == 1,
        bool(tags.get("PlanarConfiguration")) and samples > 1,
        photometric,
        tags if photometric == "PALETTE COLOR" else None,
        (table[0], table[1]) if table[0] and table[1] else None,
        header.deflated,
    )
    _check_stored_bytes(image, header)
    return image


def _syntax(header: Header) -> tuple[str, bool]:
    """Return the UID of the compression, or an empty text, and whether numbers are big-endian."""
    stated = str(header.tags.file_meta.get("TransferSyntaxUID") or "")
    if header.length is not None and (stated in _NATIVE or not stated):
        return "", _NATIVE.get(stated, not header.tags.original_encoding[1])
    if stated in codecs.CODECS and header.length is None:
        return stated, False
    if stated in codecs.CODECS:
        raise FormatError(f"{header.path} names a compression, but its voxels are not in fragments; it is damaged")
    name = header.tags.file_meta.TransferSyntaxUID.name if stated else "none"
    raise FormatError(
        f"{header.path} is compressed as {name}, which is not read; decompress it, for example with gdcmconv"
    )


def _stored(header: Header, big: bool) -> tuple[np.dtype[Any], int]:
    """Return the type of the stored numbers, and how many of their bits are used."""
    tags, order = header.tags, ">" if big else "<"
    if header.float_bits:
        return np.dtype(f"{order}f{header.float_bits // 8}"), header.float_bits
    allocated = whole(tags, "BitsAllocated")
    bits = whole(tags, "BitsStored", allocated)
    high = whole(tags, "HighBit", bits - 1 if bits else 0)
    if allocated not in (1, 8, 16, 32, 64) or not 1 <= bits <= allocated or high != bits - 1:
        raise FormatError(
            f"{header.path} must have 1, 8, 16, 32 or 64 bits per value, the lowest ones used; got BitsAllocated "
            f"{allocated}, BitsStored {bits}, HighBit {high}"
        )
    signed = whole(tags, "PixelRepresentation", 0) == 1
    return np.dtype(f"{order}{'i' if signed else 'u'}{max(1, allocated // 8)}"), bits


def _check_stored_bytes(image: Image, header: Header) -> None:
    """Raise FormatError if the file has fewer bytes than its header claims, before anything is allocated."""
    there = header.size - header.offset
    if image.count > _MOST:
        raise FormatError(f"{header.path} must have at most {_MOST} pictures; got {image.count}. Split the file")
    needed = math.ceil(image.size * image.count)
    if not image.syntax:
        available = min(there, header.length or 0)
        if available < needed:
            raise FormatError(
                f"{header.path} is truncated or damaged: {image.count} x {image.rows} x {image.columns} voxels must "
                f"have {needed} bytes; got {available}. Copy it again"
            )
    elif image.size > max(_SMALL, _EXPANSION * there) or image.count > _fragments(image):
        raise FormatError(
            f"{header.path} claims {image.count} pictures of {image.rows} x {image.columns} voxels, but has only "
            f"{there} bytes of them; it is damaged"
        )


def _opened(image: Image) -> AbstractContextManager[BinaryIO]:
    """Open the file of an image; of a deflated one the bytes up to the last picture are inflated."""
    if not image.deflated:
        return image.path.open("rb")
    return opened(image.path, max(HEADER_BYTES, image.offset + math.ceil(image.size * image.count)))


def _fragments(image: Image) -> int:
    """Return how many pieces the compressed pictures have; each picture has at least one."""
    if image.count == 1:
        return 1
    with image.path.open("rb") as raw:
        file: Any = BoundedFile(raw)
        file.seek(image.offset)
        encaps.parse_basic_offsets(file)
        return encaps.parse_fragments(file)[0]


def picture(image: Image, index: int) -> np.ndarray:
    """Return a picture of a file as it is stored, without its scale.

    Returns
    -------
    values : (rows, columns) or (rows, columns, 3) array
        Numbers of `Image.dtype`; colours are red, green and blue.
    """
    with parsing(image.path):
        values, is_rgb = _compressed(image, index) if image.syntax else (_native(image, index), False)
        values = _used_bits(image, values)
        if image.palette is not None:
            return colours.from_palette(values, image.palette)
        return colours.to_rgb(values, image.photometric) if image.samples == 3 and not is_rgb else values


def _native(image: Image, index: int) -> np.ndarray:
    """Return the numbers of an uncompressed picture."""
    content = _stored_bytes(image, index)
    if image.bits == 1 and len(content) < image.values:
        bits = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")
        start = image.values * index % 8
        return bits[start : start + image.values].reshape(image.rows, image.columns)
    values = np.frombuffer(content, image.stored, count=image.values)
    if image.photometric == "YBR_FULL_422":
        return colours.upsampled(values, image.rows, image.columns)
    return _shaped(image, values, image.planar)


def _stored_bytes(image: Image, index: int) -> bytes:
    """Return the bytes that contain an uncompressed picture."""
    first, last = int(image.size * index), math.ceil(image.size * (index + 1))
    begin = first - first % 2 if image.swapped else first
    with _opened(image) as file:
        file.seek(image.offset + begin)
        content = file.read(last - begin + (last - begin) % 2 if image.swapped else last - begin)
    if image.swapped:
        content = np.frombuffer(content, ">u2").astype("<u2").tobytes()
    return content[first - begin : last - begin]


def _shaped(image: Image, values: np.ndarray, planar: bool) -> np.ndarray:
    """Return flat numbers as rows and columns, with the colours last."""
    if image.samples == 1:
        return values.reshape(image.rows, image.columns)
    if planar:
        return values.reshape(image.samples, image.rows, image.columns).transpose(1, 2, 0)
    return values.reshape(image.rows, image.columns, image.samples)


def _compressed(image: Image, index: int) -> tuple[np.ndarray, bool]:
    """Return the numbers of a compressed picture, and whether its codec has made colours red, green and blue."""
    with image.path.open("rb") as raw:
        file: Any = BoundedFile(raw)
        file.seek(image.offset)
        content = encaps.get_frame(file, index, extended_offsets=image.offsets, number_of_frames=image.count)
    decoded = codecs.decode(
        content, image.syntax, (image.rows, image.columns, image.samples), image.stored, image.photometric
    )
    return _shaped(image, decoded.values, decoded.planar), decoded.is_rgb


def _used_bits(image: Image, values: np.ndarray) -> np.ndarray:
    """Return numbers without the bits above those that are used, which may hold overlays."""
    native = image.stored.newbyteorder("=")
    unused = 8 * native.itemsize - image.bits
    if native.kind == "f" or not unused or image.bits == 1:
        return values.astype(native, copy=False)
    shifted = values.astype(native.str.replace("i", "u"), copy=False) << unused
    # A shift of signed numbers repeats the sign.
    return shifted.view(native) >> unused
