"""Text headers of NRRD and MetaImage: fields, and the files of voxels that they name.

ITK trusts these headers. A printf format as the name of a data file, -1 axes or a size of 10^15 end the process, and
any file of the machine can be named. So every header is parsed and checked here, before voxels are read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mrhdata.errors import FormatError

#: Longest header in bytes, and most files of voxels. Headers of segmentations list thousands of segments.
MAX_HEADER_BYTES, MAX_DATA_FILES = 16_000_000, 100_000
#: Most axes of a header; NRRD itself ends at 16.
MAX_AXES = 16
#: Largest number of values, beyond which sizes would overflow in 64 bits.
MAX_VALUES = 2**60

#: Other spellings of NRRD fields.
_ALIASES = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}
_NRRD_MAGIC = re.compile(rb"NRRD000[1-9]\s*")
_META_FIELD = re.compile(r"\s*(\w+)\s*[=:]\s*(.*?)\s*")
_COUNTER = re.compile(r"[^%]*%(0?\d{0,2})d[^%]*")


@dataclass(frozen=True)
class TextHeader:
    """Fields of a text header, their names in lower case.

    Attributes
    ----------
    path : path
        File of the header.
    fields : dict of str to str
    end : int
        Number of bytes of the header; voxels of an attached file follow.
    names : tuple of str
        Names of the files of voxels, for a header that lists them.
    """

    path: Path
    fields: dict[str, str]
    end: int
    names: tuple[str, ...] = ()

    def require(self, *names: str) -> None:
        """Raise FormatError unless the header has all fields of these names."""
        for name in names:
            if name not in self.fields:
                raise self.error(name, "present")

    def numbers(self, name: str, count: int | None = None) -> list[float]:
        """Return the numbers of a field; raise FormatError if there are others, or not `count` of them."""
        words = self.fields[name].split()
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            raise self.error(name, "numbers") from None
        if count is not None and len(numbers) != count:
            raise self.error(name, f"{count} numbers")
        return numbers

    def integers(self, name: str, count: int | None = None, low: int = 1, high: int = MAX_VALUES) -> list[int]:
        """Return the whole numbers of a field; raise FormatError unless all lie between `low` and `high`."""
        words = self.fields[name].split()
        if not all(re.fullmatch(r"[+-]?\d{1,19}", word) for word in words) or count not in (None, len(words)):
            raise self.error(name, "whole numbers" if count is None else f"{count} whole numbers")
        numbers = [int(word) for word in words]
        if not all(low <= number <= high for number in numbers):
            raise self.error(name, f"between {low} and {high}")
        return numbers

    def error(self, name: str, expected: str) -> FormatError:
        """Return the error of a field that has another value than expected."""
        value = self.fields.get(name)
        got = "nothing" if value is None else repr(value if len(value) < 80 else f"{value[:80]}...")
        return FormatError(f"{self.path}: '{name}' of the header must be {expected}; got {got}. Correct the header")


def read_nrrd(path: Path) -> TextHeader:
    """Read the header of a NRRD file.

    Raises
    ------
    FormatError
        The file is not a NRRD, or a line of its header is not a field.
    """
    with path.open("rb") as file:
        if not _NRRD_MAGIC.fullmatch(file.readline(100)):
            raise FormatError(f"{path} cannot be read: it must begin with NRRD000 and a version")
        fields: dict[str, str] = {}
        while line := _line(file, path):
            name, separator, value = line.partition(":")
            name = name.strip().lower()
            if line.startswith("#") or value.startswith("="):
                continue
            if not separator or name in fields:
                raise FormatError(
                    f"{path} cannot be read: its header must hold each field once, as 'name: value'; got {line[:80]!r}"
                )
            name = _ALIASES.get(name, name)
            fields[name] = value.strip()
            if name == "data file" and value.split()[:1] == ["LIST"]:
                return TextHeader(path, fields, file.tell(), _listed(file, path))
        return TextHeader(path, fields, file.tell())


def read_metaimage(path: Path) -> TextHeader:
    """Read the header of a MetaImage file, up to the field ``ElementDataFile``, which is its last.

    Raises
    ------
    FormatError
        The header has no such field, or a line that is not a field.
    """
    with path.open("rb") as file:
        fields: dict[str, str] = {}
        while "elementdatafile" not in fields:
            line = _line(file, path)
            match = _META_FIELD.fullmatch(line)
            # ITK knows the last field by its exact name only, and would read on after another.
            is_last = match is not None and match[1].lower() == "elementdatafile"
            if match is None or match[1].lower() in fields or (is_last and match[1] != "ElementDataFile"):
                raise FormatError(
                    f"{path} cannot be read: its header must hold each field once, as 'Name = value'; got {line[:80]!r}"
                )
            fields[match[1].lower()] = match[2]
        listed = fields["elementdatafile"].split()[:1] == ["LIST"]
        return TextHeader(path, fields, file.tell(), _listed(file, path) if listed else ())


def data_files(header: TextHeader, value: str) -> list[Path]:
    """Return the files of voxels that a header names: one, a list, or a numbered series.

    Parameters
    ----------
    header : TextHeader
    value : str
        Value of the field that names them: ``a.raw``, ``LIST``, or ``plane_%03d.raw 1 20 1``.

    Raises
    ------
    FormatError
        A file is missing or lies outside the folder of the header, or the series is not one.
    """
    names = header.names or (_numbered(header, value) if "%" in value else (value,))
    return [_beside(header.path, name) for name in names]


def _numbered(header: TextHeader, value: str) -> tuple[str, ...]:
    """Return the names of a series: a name with one counter, then first, last and step."""
    words = value.split()
    numbers = words[1:4]
    valid = len(words) in (4, 5) and _COUNTER.fullmatch(words[0])
    if not valid or not all(re.fullmatch(r"[+-]?\d{1,9}", number) for number in numbers) or int(numbers[2]) == 0:
        raise FormatError(
            f"{header.path}: a series of data files must be a name with one %d, then first, last and step; got "
            f"{value[:80]!r}. Correct the header"
        )
    first, last, step = (int(number) for number in numbers)
    indices = range(first, last + (1 if step > 0 else -1), step)
    _check_count(header.path, len(indices))
    return tuple(words[0] % index for index in indices)


def _listed(file: BinaryIO, path: Path) -> tuple[str, ...]:
    """Return the names on the lines that follow."""
    names: list[str] = []
    while (line := _line(file, path)) and len(names) <= MAX_DATA_FILES:
        names.append(line.strip())
    _check_count(path, len(names))
    return tuple(names)


def _check_count(path: Path, count: int) -> None:
    if not 1 <= count <= MAX_DATA_FILES:
        raise FormatError(f"{path}: the header must name 1 to {MAX_DATA_FILES} data files; got {count}")


def _beside(path: Path, name: str) -> Path:
    """Return the path of a data file in the folder of its header, or below it."""
    parts = Path(name.replace("\\", "/")).parts
    if not parts or Path(name).is_absolute() or ".." in parts or ":" in parts[0] or "\0" in name:
        raise FormatError(
            f"{path}: data files must lie in the folder of the header; got {name[:200]!r}. Move the file there, and "
            "write its name only"
        )
    file = path.parent.joinpath(*parts)
    if not file.is_file():
        raise FormatError(f"{path} has no data file {name[:200]!r}; keep header and voxels together")
    return file


def _line(file: BinaryIO, path: Path) -> str:
    """Return the next line without its end; empty at the end of the file."""
    line = file.readline(MAX_HEADER_BYTES)
    if file.tell() > MAX_HEADER_BYTES:
        raise FormatError(f"{path}: the header must be shorter than {MAX_HEADER_BYTES} bytes; it is damaged")
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        return line.decode("latin-1").rstrip("\r\n")
