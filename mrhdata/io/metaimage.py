"""MetaImage (MHA, MHD): geometry as the header states it, and voxels raw, compressed or as text.

Lengths are in mm unless ``DistanceUnits`` says otherwise; the world is left, posterior, superior.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrhdata.io.voxel_layout import VoxelLayout
from mrhdata.volume.overrides import TO_MM, unit_name
from mrhdata.volume.text_headers import TextHeader, data_files, read_metaimage

if TYPE_CHECKING:
    from mrhdata.volume.grid import Floats

log = logging.getLogger("mrhdata")

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: MET_LONG has four bytes on every machine.
_TYPES = {
    **{"MET_CHAR": "i1", "MET_ASCII_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2"},
    **{"MET_INT": "i4", "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4"},
    **{"MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
_DIMS = ("x", "y", "z", "t")
#: Axis and sign of the letters of AnatomicalOrientation, which name the side where an axis begins.
_BEGINS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "I": (2, 1), "S": (2, -1)}


def layout_of(path: Path) -> VoxelLayout:
    """Read the header of a MetaImage file.

    Raises
    ------
    FormatError
        A field is missing or has a value that it cannot have, or a data file lies outside of the header's folder.
    """
    header = read_metaimage(path)
    header.require("ndims", "dimsize", "elementtype")
    (ndim,) = header.integers("ndims", 1, 2, 4)
    sizes = header.integers("dimsize", ndim)
    channels = _first_integer(header, "elementnumberofchannels", 1, 1)
    files, skip, encoding = _voxels(header)
    affine, assumed, attrs = _geometry(header, ndim)
    shape = (*((channels,) if channels > 1 else ()), *sizes, *(1,) * (3 - ndim))
    dims = (*(("c",) if channels > 1 else ()), *_DIMS[: max(3, ndim)])
    dtype = _dtype(header)
    return VoxelLayout(path, files, skip, encoding, shape, dtype, dims, affine, assumed=assumed, attrs=attrs)


def _first_integer(header: TextHeader, name: str, default: int, low: int) -> int:
    return header.integers(name, 1, low)[0] if name in header.fields else default


def _is_true(header: TextHeader, name: str) -> bool:
    """Return a flag; MetaIO looks at the first letter only."""
    return header.fields.get(name, "")[:1] in ("T", "t", "1")


def _dtype(header: TextHeader) -> np.dtype[Any]:
    name = header.fields["elementtype"].upper().removesuffix("_ARRAY")
    if name not in _TYPES:
        raise header.error("elementtype", "a type of numbers")
    names = ("binarydatabyteordermsb", "elementbyteordermsb")
    return np.dtype(_TYPES[name]).newbyteorder(">" if any(_is_true(header, name) for name in names) else "<")


def _voxels(header: TextHeader) -> tuple[list[Path], int, str]:
    """Return the files of the voxels, the bytes in front of them, and their encoding."""
    value = header.fields["elementdatafile"]
    attached = value.upper() == "LOCAL"
    files = [header.path] if attached else data_files(header, value)
    skip = header.end if attached else _first_integer(header, "headersize", 0, -1)
    is_text = "binarydata" in header.fields and not _is_true(header, "binarydata")
    encoding = "zlib" if _is_true(header, "compresseddata") else "ascii" if is_text else "raw"
    if encoding == "zlib" and (len(files) > 1 or skip < 0):
        raise header.error("compresseddata", "False for a list of files")
    return files, skip, encoding


def _geometry(header: TextHeader, ndim: int) -> tuple[Floats, list[str], dict[str, str]]:
    """Return the affine to RAS+ mm, properties that the header does not state, and attributes."""
    spacing, assumed = np.ones(3), ["space"]
    # Without ElementSpacing, MetaIO takes the size of an element.
    field = next((name for name in ("elementspacing", "elementsize") if name in header.fields), None)
    n = min(ndim, 3)
    if field is None:
        assumed.append("spacing")
    else:
        spacing[:n] = header.numbers(field, ndim)[:n]
        if not (spacing > 0).all():
            raise header.error(field, "positive")
        spacing[n:] = spacing[:n].min()
    unit = unit_name(header.fields.get("distanceunits", "mm"))
    assumed += ["unit"] if unit is None else []
    factor = TO_MM[unit or "mm"]
    direction, stated = _direction(header, ndim)
    assumed += [] if stated else ["orientation"]
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing * factor
    origin = next((name for name in ("offset", "position", "origin") if name in header.fields), None)
    if origin is not None:
        affine[:n, 3] = np.array(header.numbers(origin, ndim)[:n]) * factor
    scaled = [name for name in header.fields if name.startswith("elementtointensityfunction")]
    if any(header.numbers(name, 1)[0] != float(name.endswith("slope")) for name in scaled):
        assumed.append("values")
    return _LPS @ affine, assumed, {"source_unit": unit} if unit not in (None, "mm") else {}


def _direction(header: TextHeader, ndim: int) -> tuple[Floats, bool]:
    """Return the directions of the axes as columns, and whether the header states them."""
    direction, letters = np.eye(3), header.fields.get("anatomicalorientation", "").upper()
    name = next((name for name in ("transformmatrix", "rotation", "orientation") if name in header.fields), None)
    if name is not None:
        # MetaIO lists the direction of each axis as a row.
        n = min(ndim, 3)
        direction[:n, :n] = np.reshape(header.numbers(name, ndim * ndim), (ndim, ndim)).T[:n, :n]
    if not (set(letters) <= _BEGINS.keys() and len(letters) == 3):
        return direction, name is not None
    columns = np.zeros((3, 3))
    for column, letter in enumerate(letters):
        columns[_BEGINS[letter]] = 0
        columns[_BEGINS[letter][0], column] = _BEGINS[letter][1]
    named = np.rint(direction)
    # Programs differ on whether the letters name the begin or the end of an axis.
    if not (np.array_equal(named, columns) or np.array_equal(named, -columns)) and np.abs(direction).max() > 0.9:
        log.warning(
            "%s: AnatomicalOrientation = %s is not used; the directions are %s. Pass others with axes=",
            header.path,
            letters,
            "those of TransformMatrix" if name is not None else "assumed, because its letters have two conventions",
        )
    return direction, name is not None
