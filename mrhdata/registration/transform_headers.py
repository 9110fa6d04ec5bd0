"""Checks of transform files before ITK reads them.

ITK believes the sizes that a file states: a B-spline of 10^15 nodes, or an image of -1 axes, ends the process.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py

from mrhdata.errors import FormatError
from mrhdata.volume.file_arrays import format_errors
from mrhdata.volume.packed import MAX_RATIO, check_stream
from mrhdata.volume.text_headers import TextHeader, read_metaimage, read_nrrd

#: Most numbers of the fixed parameters of a transform: those of a grid are 18.
_MAX_FIXED = 1000
#: Transforms whose fixed parameters begin with the size of a grid of nodes.
_ON_GRID = re.compile(r"(BSpline|DisplacementField|BSplineSmoothing|GaussianSmoothing|TimeVarying|ConstantVelocity)")
#: Names of arrays; ITK misspelt them until version 5.
_FIXED_NAMES = ("TransformFixedParameters", "TranformFixedParameters")
_PARAMETER_NAMES = ("TransformParameters", "TranformParameters")


def image_io(path: Path) -> str:
    """Return the name of ITK's reader for an image of displacements, after a check of its header.

    Raises
    ------
    FormatError
        The header is damaged, asks for more voxels than the file holds, or names another file.
    """
    ending = path.suffix.lower()
    if ending == ".nrrd":
        header = read_nrrd(path)
        _check_image(header, "dimension", "sizes", "data file" not in header.fields)
        if header.fields.get("encoding", "").lower() in ("gz", "gzip"):
            _check_stream(path, header.end)
        return "NrrdImageIO"
    if ending == ".mha":
        header = read_metaimage(path)
        _check_image(header, "ndims", "dimsize", header.fields["elementdatafile"].upper() == "LOCAL")
        if header.fields.get("compresseddata", "")[:1] in ("T", "t", "1"):
            _check_stream(path, header.end)
        return "MetaImageIO"
    if ending == ".gz":
        _check_stream(path, 0)
    return "NiftiImageIO"


def _check_image(header: TextHeader, dimension: str, sizes: str, attached: bool) -> None:
    if not attached:
        raise FormatError(
            f"{header.path} must hold its vectors itself; got the name of another file. Write it as .nii.gz"
        )
    header.require(dimension, sizes)
    (ndim,) = header.integers(dimension, 1, 2, 4)
    channels = header.integers("elementnumberofchannels", 1)[0] if "elementnumberofchannels" in header.fields else 1
    least = math.prod(header.integers(sizes, ndim)) * channels
    if least > header.path.stat().st_size * MAX_RATIO["zlib"]:
        raise header.error(sizes, "sizes that the file can hold")


def _check_stream(path: Path, start: int) -> None:
    """Raise FormatError unless the compressed vectors have their checksum; ITK prints a message and uses the rest."""
    with format_errors(path):
        check_stream(path, "zlib", start)


def check_transform(path: Path) -> None:
    """Check a transform file of ITK: text, or HDF5.

    Raises
    ------
    FormatError
        A transform has another number of parameters than its grid has nodes, or HDF5 takes bytes from another file.
    """
    parts = _of_hdf5(path) if h5py.is_hdf5(path) else _of_text(path)
    for kind, fixed, count in parts:
        _check_counts(path, kind, fixed, count)


def _check_counts(path: Path, kind: str, fixed: Sequence[float], count: int) -> None:
    """Raise FormatError unless a transform on a grid has one parameter for each component of each node."""
    if not _ON_GRID.match(kind):
        return
    dimension = int(kind[-1]) if kind[-1:] in ("2", "3", "4") else 3
    sizes = fixed[:dimension]
    valid = len(sizes) == dimension and all(math.isfinite(size) and 1 <= size < 1e9 for size in sizes)
    nodes = math.prod(int(size) for size in sizes) if valid else -1
    if nodes * dimension != count:
        raise FormatError(
            f"{path}: {kind} must have {dimension} parameters for each node of its grid; got {count} for a grid of "
            f"{[f'{size:g}' for size in sizes]}. The file is damaged"
        )


def _of_text(path: Path) -> Iterator[tuple[str, Sequence[float], int]]:
    """Yield kind, fixed parameters and number of parameters of each transform of a text file."""
    kind = ""
    fields: dict[str, list[str]] = {"Parameters": [], "FixedParameters": []}
    for line in path.read_text(encoding="latin-1").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "Transform" and not line.startswith("#"):
            if kind:
                yield kind, _numbers(path, fields["FixedParameters"]), len(fields["Parameters"])
            kind, fields = value.strip(), {"Parameters": [], "FixedParameters": []}
        elif name.strip() in fields:
            fields[name.strip()] = value.split()
    if kind:
        yield kind, _numbers(path, fields["FixedParameters"]), len(fields["Parameters"])


def _numbers(path: Path, words: Sequence[str]) -> list[float]:
    try:
        return [float(word) for word in words[:_MAX_FIXED]]
    except ValueError:
        raise FormatError(f"{path} cannot be read as a transform: fixed parameters must be numbers") from None


def _of_hdf5(path: Path) -> list[tuple[str, Sequence[float], int]]:
    """Return kind, fixed parameters and number of parameters of each transform of an HDF5 file."""
    _check_heaps(path)
    with format_errors(path), h5py.File(path, "r") as file:
        _check_inside(file, path)
        parts = list(file["TransformGroup"].values())
        for part in parts:
            for name, item in part.items():
                _check_parameters(path, name, item)
        return [_of_group(part) for part in parts]


def _check_heaps(path: Path) -> None:
    """Raise FormatError if a collection of text has an object that does not advance, in which HDF5 loops for ever.

    A collection holds ``GCOL``, version, 3 bytes, its size, and objects of an index, 6 bytes, a size and the text.
    Index 0 is free space (HDF5 file format 3.0, section III.E).
    """
    content = path.read_bytes()
    start = content.find(b"GCOL")
    while start >= 0:
        end = start + int.from_bytes(content[start + 8 : start + 16], "little")
        position = start + 16
        while position + 16 <= min(end, len(content)):
            index, size = (int.from_bytes(content[position + a : position + b], "little") for a, b in ((0, 2), (8, 16)))
            if size == 0:
                raise FormatError(f"{path} cannot be read: the text at byte {position} is damaged. Copy it again")
            position += size if index == 0 else 16 + -(-size // 8) * 8
        start = content.find(b"GCOL", start + 4)


def _check_parameters(path: Path, name: str, item: Any) -> None:
    """Raise FormatError unless all parameters can be read; ITK crashes on damaged ones."""
    size = path.stat().st_size
    if item.nbytes > MAX_RATIO["zlib"] * size:
        raise FormatError(f"{path}: {item.name} must fit the file of {size} bytes; got {item.shape}. Write it again")
    if item.dtype.kind != ("O" if name == "TransformType" else "f"):
        raise FormatError(f"{path}: {item.name} must hold numbers; got {item.dtype}. Write it again")
    _ = item[()]


def _of_group(part: Any) -> tuple[str, Sequence[float], int]:
    kind = part["TransformType"][()].ravel()[0] if "TransformType" in part else b""
    names = [[name for name in part if name in options] for options in (_FIXED_NAMES, _PARAMETER_NAMES)]
    fixed = part[names[0][0]][:_MAX_FIXED].tolist() if names[0] else []
    count = int(part[names[1][0]].size) if names[1] else 0
    return kind.decode("ascii", "replace") if isinstance(kind, bytes) else str(kind), fixed, count


def _check_inside(group: Any, path: Path) -> None:
    """Raise FormatError if a group of an HDF5 file holds a link, or an array whose bytes lie in another file."""
    for name in group:
        link, item = group.get(name, getlink=True), None
        if isinstance(link, h5py.HardLink):
            item = group[name]
        if item is None or (isinstance(item, h5py.Dataset) and (item.external or item.is_virtual)):
            raise FormatError(f"{path} must hold its transforms itself; {name} lies in another file")
        if isinstance(item, h5py.Group):
            _check_inside(item, path)
