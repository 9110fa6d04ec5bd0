"""Directories of pages (IFDs) of a TIFF file, checked without tifffile, which reads truncated ones in part."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from mrhdata.errors import FormatError

#: Type of a tag -> bytes of one value.
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_MOST_TAGS = 4096
#: Tags from this number on belong to companies.
PRIVATE_TAG = 32768


def check_directories(path: Path) -> None:
    """Raise FormatError if the chain of directories or the value of a public tag ends behind the file.

    Examples
    --------
    >>> import tempfile, tifffile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tifffile.imwrite(folder + "/a.tif", np.zeros((3, 4), np.uint8))
    ...     check_directories(Path(folder) / "a.tif")
    """
    size, seen = path.stat().st_size, set()
    with path.open("rb") as file:
        layout = _Layout(file.read(16), path)
        offset = layout.first
        while offset:
            if offset in seen:
                raise FormatError(f"{path} is damaged: its list of pages is a circle")
            seen.add(offset)
            offset = layout.read_directory(file, offset, size, f"{path} is truncated: page {len(seen) - 1}")


class _Layout:
    """Sizes of numbers in a TIFF or BigTIFF file of one byte order."""

    def __init__(self, head: bytes, path: Path) -> None:
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        version = struct.unpack(f"{order}H", head[2:4])[0] if order and len(head) == 16 else 0
        if version not in (42, 43):
            raise FormatError(f"{path} is not a TIFF file, or it is damaged")
        big = version == 43
        self._count, self._offset = (f"{order}Q", f"{order}Q") if big else (f"{order}H", f"{order}I")
        number = f"{order}u8" if big else f"{order}u4"
        self._tag = np.dtype([("code", f"{order}u2"), ("type", f"{order}u2"), ("count", number), ("value", number)])
        self.first = int(struct.unpack_from(self._offset, head, 8 if big else 4)[0])

    def read_directory(self, file: Any, offset: int, size: int, label: str) -> int:
        """Check a directory and return the offset of the next one, 0 after the last."""
        file.seek(offset)
        count = self._number(file, self._count, label)
        if count > _MOST_TAGS:
            raise FormatError(f"{label} has {count} tags. Copy it again")
        content = file.read(count * self._tag.itemsize)
        following = self._number(file, self._offset, label)
        tags = np.frombuffer(content, self._tag)
        inline = self._tag["value"].itemsize
        for code, kind, values, start in tags[tags["code"] < PRIVATE_TAG].tolist():
            length = _BYTES.get(kind, 1) * values
            if length > inline and start + length > size:
                raise FormatError(
                    f"{label}, tag {code} ends at byte {start + length}, the file at {size}. Copy it again"
                )
        return following

    def _number(self, file: Any, form: str, label: str) -> int:
        content = file.read(struct.calcsize(form))
        if len(content) < struct.calcsize(form):
            raise FormatError(f"{label} lies behind the end of the file. Copy it again")
        return int(struct.unpack(form, content)[0])
