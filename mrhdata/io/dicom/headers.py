"""Headers of DICOM files: found in a folder, parsed by pydicom, and bounded by the bytes that there are."""

from __future__ import annotations

import math
import os
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset

from mrhdata.errors import FormatError
from mrhdata.io.dicom import deflated
from mrhdata.volume.file_arrays import format_errors

_DICOMDIR = "1.2.840.10008.1.3.10"
_ENDINGS = (".dcm", ".ima")
#: Endings of pictures, of which a folder may have thousands, and which are never DICOM.
_PICTURES = (".tif", ".tiff", ".png")
#: Element of voxels -> bits of its floating-point numbers, or 0 for integers.
_PIXELS = {0x7FE00010: 0, 0x7FE00008: 32, 0x7FE00009: 64}
_UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True, eq=False)
class Header:
    """All elements of a file before its voxels.

    Parameters
    ----------
    path : path
    tags : pydicom.Dataset
    offset : int
        Position in the file of the first byte of the voxels.
    length : int or None
        Bytes of the voxels as the file states them; None if they are in encapsulated fragments.
    float_bits : int
        32 or 64 for voxels that are stored as floating point, otherwise 0.
    words : bool
        Whether the voxels are stored as words of 16 bits (OW), whose bytes big-endian files swap.
    size : int
        Bytes of the file; of a deflated file those that it can have at most, or has, without its compression.
    deflated : bool
        Whether elements and voxels are deflated; then `offset` counts inflated bytes.
    """

    path: Path
    tags: Dataset
    offset: int
    length: int | None
    float_bits: int
    words: bool
    size: int
    deflated: bool


class BoundedFile:
    """A file that reads at most what is left: lengths in headers may claim gigabytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.name = getattr(file, "name", "")
        self._size = file.seek(0, 2)
        file.seek(0)
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes, or as many as there are."""
        left = max(0, self._size - self._file.tell())
        return self._file.read(left if size is None or size < 0 else min(size, left))


def holds(path: Path) -> bool:
    """Return whether a file begins like DICOM, with or without a preamble."""
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or _begins_with_an_element(head[:8])


def _begins_with_an_element(head: bytes) -> bool:
    """Return whether bytes are an element of the first groups, as in files without a preamble."""
    if len(head) < 8:
        return False
    for order in "<>":
        group, element = struct.unpack(order + "HH", head[:4])
        if group not in (0x2, 0x8) or not (element <= 0x18 or element == 0x60):
            continue
        try:
            vr = dictionary_VR(group << 16 | element)
        except KeyError:
            continue
        if head[4:6] == vr.encode() or (order == "<" and 0 < struct.unpack("<I", head[4:])[0] <= 64):
            return True
    return False


def files_of(folder: Path) -> list[Path]:
    """Return the DICOM files directly in a folder.

    Raises
    ------
    FormatError
        A file is named like DICOM but is empty or damaged: a series without it would lack a slice.
    """
    files = []
    for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        if path.suffix.lower() in _PICTURES:
            continue
        if holds(path):
            files.append(path)
        elif path.name.lower().endswith(_ENDINGS):
            raise FormatError(f"{path} must begin like DICOM; it is empty or damaged. Copy it again, or remove it")
    return files


def images_of(path: Path) -> list[Header]:
    """Return the headers of a file, or of the images of a folder; reports, plans and lists of files have no voxels."""
    if path.is_file():
        header = _read(path)
        if header is None and not holds(path):
            raise FormatError(f"{path} must begin like DICOM; it is damaged, or of another format")
        if header is None:
            raise FormatError(f"{path} holds {_content(path)}, without voxels; pass a file or folder of images")
        return [header]
    headers = [header for file in files_of(path) if (header := _read(file)) is not None]
    if not headers:
        inside = ", ".join(_folders_of_images(path))
        example = f", such as {inside}" if inside else ""
        raise FormatError(f"{path} holds DICOM files, but none with voxels; pass a folder of images{example}")
    return headers


def _folders_of_images(folder: Path, most: int = 3) -> list[str]:
    """Return the first folders within a folder, such as a disc with a list of files, that hold DICOM files."""
    folders: list[str] = []
    for place, inner, names in os.walk(folder):
        inner.sort()
        files = [Path(place) / name for name in sorted(names) if not name.startswith(".")]
        if Path(place) != folder and files and files[0].is_file() and holds(files[0]):
            folders.append(str(Path(place)))
        if len(folders) == most:
            break
    return folders


@contextmanager
def parsing(path: Path) -> Iterator[None]:
    """Name the file in errors, and silence pydicom, which warns about each value that is not as the standard says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with format_errors(path):
                yield
        except FormatError as error:
            if str(path) in str(error):
                raise
            raise FormatError(f"{path}: {error}") from error


@contextmanager
def opened(path: Path, most: int = deflated.HEADER_BYTES) -> Iterator[BinaryIO]:
    """Open a file; of a deflated one `most` bytes are inflated."""
    inflated = deflated.inflated(path, most)
    with path.open("rb") if inflated is None else inflated as file:
        yield file


def _parse(path: Path) -> tuple[Dataset, bytes]:
    """Return the elements before the voxels, and the first bytes of the element that follows."""
    with parsing(path), opened(path) as raw:
        file = BoundedFile(raw)
        tags = pydicom.dcmread(file, force=True, stop_before_pixels=True)
        tags.pixel_tell = file.tell()
        return tags, file.read(12)


def _read(path: Path) -> Header | None:
    """Return the header of an image, or None for other objects."""
    tags, element = _parse(path)
    with parsing(path):
        if len(element) < 8:
            _check_without_voxels(path, tags)
            return None
        implicit, little = tags.original_encoding
        order = "<" if little else ">"
        tag = int.from_bytes(struct.pack(">HH", *struct.unpack(order + "HH", element[:4])), "big")
        long = not implicit and element[4:6] in (b"OB", b"OW", b"OF", b"OD", b"UN", b"OL", b"OV")
        start = 8 if long else 4
        size = "H" if not implicit and not long else "I"
        (length,) = struct.unpack_from(order + size, element, 6 if size == "H" else start)
        inflated_bytes = deflated.size_of(path)
        return Header(
            path,
            tags,
            tags.pixel_tell + (12 if long else 8),
            None if length == _UNDEFINED else length,
            _PIXELS.get(tag, 0),
            implicit or element[4:6] == b"OW",
            path.stat().st_size if inflated_bytes is None else inflated_bytes,
            inflated_bytes is not None,
        )


def _check_without_voxels(path: Path, tags: Dataset) -> None:
    """Raise FormatError if a file without voxels is an image, that is, truncated."""
    if "Rows" in tags or "Image Storage" in _class_name(tags):
        raise FormatError(f"{path} is an image without voxels: it is truncated, or they were removed. Copy it again")
    if not len(tags):
        raise FormatError(f"{path} is damaged: no element of DICOM can be read. Copy it again")


def _class_name(tags: Dataset) -> str:
    """Return the name of the kind of object, or its UID; an empty text if it has none."""
    uid = str(tags.get("SOPClassUID") or tags.file_meta.get("MediaStorageSOPClassUID") or "")
    return pydicom.uid.UID(uid).name if re.fullmatch(r"[0-9.]+", uid) else ""


def _content(path: Path) -> str:
    tags, _ = _parse(path)
    if tags.file_meta.get("MediaStorageSOPClassUID") == _DICOMDIR:
        return "a list of files (DICOMDIR)"
    return f"a DICOM object of another kind ({_class_name(tags) or 'not named'})"


def numbers(tags: Dataset | None, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """Return the finite numbers of an element, or None if it is missing or empty.

    Raises
    ------
    FormatError
        There are not `count` numbers, or one is not finite.
    """
    value = None if tags is None else tags.get(keyword)
    if value is None or value == "":
        return None
    listed: Sequence[Any] = [value] if isinstance(value, str | bytes) or not hasattr(value, "__len__") else value
    if not len(listed):
        return None
    try:
        values = tuple(float(v) for v in listed)
    except (TypeError, ValueError):
        values = ()
    if not values or (count is not None and len(values) != count) or not all(map(math.isfinite, values)):
        raise FormatError(f"{keyword} must be {count or 'some'} finite numbers; got {str(value)[:60]!r}")
    return values


def number(tags: Dataset | None, keyword: str) -> float | None:
    """Return the number of an element, or None if it is missing or empty."""
    values = numbers(tags, keyword, 1)
    return None if values is None else values[0]


def whole(tags: Dataset, keyword: str, default: int | None = None) -> int:
    """Return the positive whole number of an element."""
    stated = number(tags, keyword)
    value = default if stated is None else stated
    if value is None or value != int(value) or value < 0:
        raise FormatError(f"{keyword} must be a whole number; got {'none' if value is None else value}")
    return int(value)
