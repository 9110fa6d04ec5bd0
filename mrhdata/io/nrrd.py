"""NRRD: axes, units and geometry as the header names them, and voxels raw, compressed or as text.

The header says of each axis what it is (``kinds``, ``space directions``), and of each direction of the world its unit.
If it names an anatomical space and no unit, lengths are in mm, as ITK and 3D Slicer write them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrhdata.io.voxel_layout import VoxelLayout
from mrhdata.volume.construct import SPATIAL
from mrhdata.volume.overrides import TO_MM, unit_name
from mrhdata.volume.text_headers import MAX_AXES, TextHeader, data_files, read_nrrd
from mrhdata.volume.times import TO_SECONDS

if TYPE_CHECKING:
    from mrhdata.volume.grid import Floats

_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(
        ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"), "i8"
    ),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    **{"float": "f4", "double": "f8"},
}
_ENCODINGS = {
    **{"raw": "raw", "hex": "hex"},
    **dict.fromkeys(("txt", "text", "ascii"), "ascii"),
    **dict.fromkeys(("gz", "gzip"), "gzip"),
    **dict.fromkeys(("bz2", "bzip2"), "bzip2"),
}
#: Anatomical space -> signs that convert its directions to RAS+.
_SIGNS = {
    **dict.fromkeys(("right-anterior-superior", "ras"), (1, 1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1, 1, 1)),
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1, -1, 1)),
}
#: Kinds of axes that may be spatial; every other kind, except time, lists components.
_SPATIAL_KINDS = ("domain", "space", "???", "none", "")
#: Label of an axis without kind -> its meaning.
_LABELS = {
    **dict.fromkeys(("t", "time", "frame", "frames"), "t"),
    **dict.fromkeys(("c", "channel", "channels", "rgb", "gradient", "gradients"), "c"),
}
_COLOURS = {"rgb-color": ("R", "G", "B"), "rgba-color": ("R", "G", "B", "A")}


def layout_of(path: Path) -> VoxelLayout:
    """Read the header of a NRRD file.

    Raises
    ------
    FormatError
        A field is missing or has a value that it cannot have, or a data file lies outside of the header's folder.
    """
    header = read_nrrd(path)
    header.require("type", "dimension", "sizes", "encoding")
    (ndim,) = header.integers("dimension", 1, 1, MAX_AXES)
    sizes = header.integers("sizes", ndim)
    axes = _axes(header, sizes)
    dtype, encoding = _dtype(header), _encoding(header)
    if axes[0].kind == "complex":
        axes, dtype = axes[1:], _complex(header, axes[0], dtype)
    elif any(axis.kind == "complex" for axis in axes):
        raise header.error("kinds", "complex for the first axis only")
    files, skip, unpacked_skip = _voxels(header, encoding)
    dims = _dims(axes, header)
    affine, unit, assumed = _geometry(header, axes, dims)
    shape = tuple(axis.size for axis in axes) + (1,) * (len(dims) - len(axes))
    return VoxelLayout(
        path, files, skip, encoding, shape, dtype, dims, affine, unpacked_skip,
        assumed=assumed, time=_times(header, axes, dims), attrs=_attrs(header, unit),
        channels=next((_COLOURS[axis.kind] for axis in axes if axis.kind in _COLOURS), None),
    )  # fmt: skip


@dataclass(frozen=True)
class _Axis:
    """One axis as the header describes it; a vector is None and a spacing NaN if the header has none."""

    size: int
    kind: str
    label: str
    unit: str
    spacing: float
    minimum: float
    vector: Floats | None


def _axes(header: TextHeader, sizes: list[int]) -> list[_Axis]:
    ndim = len(sizes)
    kinds, labels, units = (_words(header, name, ndim) for name in ("kinds", "labels", "units"))
    spacings = header.numbers("spacings", ndim) if "spacings" in header.fields else [math.nan] * ndim
    minima = _minima(header, spacings)
    vectors = _vectors(header, ndim)
    return [_Axis(*axis) for axis in zip(sizes, kinds, labels, units, spacings, minima, vectors, strict=True)]


def _minima(header: TextHeader, spacings: list[float]) -> list[float]:
    """Return the position of the first voxel's centre along each axis, 0 if the header has none."""
    name = next((name for name in ("axis mins", "axismins") if name in header.fields), None)
    if name is None:
        return [0.0] * len(spacings)
    centers = _words(header, "centers" if "centers" in header.fields else "centerings", len(spacings))
    minima = zip(header.numbers(name, len(spacings)), spacings, centers, strict=True)
    positions = [low + (0.5 * step if center == "cell" else 0.0) for low, step, center in minima]
    return [position if math.isfinite(position) else 0.0 for position in positions]


def _words(header: TextHeader, name: str, count: int) -> list[str]:
    """Return a word for each axis in lower case, quoted or not; empty ones if the field is missing."""
    text = header.fields.get(name)
    if text is None:
        return [""] * count
    words = re.findall(r'"([^"]*)"', text) if '"' in text else text.split()
    if len(words) != count:
        raise header.error(name, f"{count} words")
    return [word.strip().lower() for word in words]


def _space_dimension(header: TextHeader) -> int:
    if "space dimension" in header.fields:
        return header.integers("space dimension", 1, 1, 4)[0]
    space = header.fields.get("space", "").lower()
    return 4 if space.endswith("-time") or space in ("rast", "last", "lpst") else 3


def _vectors(header: TextHeader, ndim: int) -> list[Floats | None]:
    """Return the direction of each axis in the space of the header, of three or four components."""
    text = header.fields.get("space directions")
    if text is None:
        return [None] * ndim
    words = re.findall(r"none|\([^()]*\)", text, flags=re.IGNORECASE)
    if len(words) != ndim:
        raise header.error("space directions", f"{ndim} vectors or 'none'")
    return [None if word.lower() == "none" else _vector(header, "space directions", word) for word in words]


def _vector(header: TextHeader, name: str, text: str) -> Floats:
    """Return a vector such as ``(1,0,0)``; those of a plane have a third component of 0."""
    dimension = _space_dimension(header)
    try:
        numbers = [float(word) for word in text.strip().strip("()").split(",")]
    except ValueError:
        raise header.error(name, "vectors of numbers") from None
    if len(numbers) != dimension or not np.isfinite(numbers).all():
        raise header.error(name, f"vectors of {dimension} finite numbers")
    return np.array([*numbers, 0.0, 0.0][: max(3, dimension)])


def _dims(axes: list[_Axis], header: TextHeader) -> tuple[str, ...]:
    """Return the name of each axis, and of axes of length 1 that complete a plane to a volume."""
    has_directions = any(axis.vector is not None for axis in axes)
    free = ["x", "y", "z"]
    dims = []
    for axis in axes:
        meaning = _meaning(axis, has_directions)
        # A fourth axis that nothing names is time, as ITK has it.
        dims.append(meaning or (free.pop(0) if free else "t"))
    if len(free) > 1:
        raise header.error("kinds", "two or three spatial axes")
    return (*dims, *free)


def _meaning(axis: _Axis, has_directions: bool) -> str | None:
    """Return ``t`` or ``c`` for an axis that is not spatial."""
    if axis.kind == "time" or (axis.vector is not None and not axis.vector[:3].any() and axis.vector[3:].any()):
        return "t"
    if axis.kind not in _SPATIAL_KINDS:
        return "c"
    if axis.vector is not None:
        return None
    if axis.kind in ("domain", "space"):
        return "t" if has_directions else None
    return _LABELS.get(axis.label, "c" if has_directions else None)


def _geometry(header: TextHeader, axes: list[_Axis], dims: tuple[str, ...]) -> tuple[Floats, str | None, list[str]]:
    """Return the affine to RAS+ mm, the unit if all axes have one, and properties that the header does not state."""
    spatial = [axis for axis, dim in zip(axes, dims, strict=False) if dim in SPATIAL]
    signs = _signs(header)
    columns, origin, unit, assumed = (
        _directed(header, spatial, signs) if _has_vectors(spatial) else _spaced(header, spatial)
    )
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = _completed(columns), origin
    assumed += ["space"] if signs is not None else ["orientation", "space"]
    # Without an anatomical space, the world is assumed to be left, posterior, superior, as ITK has it.
    return np.diag([*(signs or (-1, -1, 1)), 1]) @ affine, unit, assumed


def _signs(header: TextHeader) -> tuple[int, int, int] | None:
    space = header.fields.get("space", "").lower()
    return _SIGNS.get(space.removesuffix("-time")) or _SIGNS.get(space[:3] if len(space) == 4 else "")


def _has_vectors(spatial: list[_Axis]) -> bool:
    return any(axis.vector is not None for axis in spatial)


def _directed(
    header: TextHeader, spatial: list[_Axis], signs: tuple[int, int, int] | None
) -> tuple[Floats, Floats, str | None, list[str]]:
    """Return columns and origin in mm of axes with directions; units belong to the directions of the world."""
    vectors = [axis.vector[:3] for axis in spatial if axis.vector is not None]
    if len(vectors) < len(spatial):
        raise header.error("space directions", "a vector for each spatial axis")
    units = [*_words(header, "space units", _space_dimension(header)), "mm"][:3]
    stated = "space units" in header.fields
    factors, unit, known = _factors(units if stated else ["mm"] * 3)
    origin = np.zeros(3)
    if "space origin" in header.fields:
        origin = _vector(header, "space origin", header.fields["space origin"])[:3]
    columns = np.stack(vectors, axis=1) * factors[:, None]
    return columns, origin * factors, unit, [] if known and (stated or signs is not None) else ["unit"]


def _spaced(header: TextHeader, spatial: list[_Axis]) -> tuple[Floats, Floats, str | None, list[str]]:
    """Return columns and origin in mm of axes with spacings, whose units belong to the axes."""
    spacings = np.array([axis.spacing for axis in spatial])
    factors, unit, known = _factors([axis.unit for axis in spatial])
    assumed = [] if known else ["unit"]
    if not np.isfinite(spacings).all():
        spacings, factors, assumed = np.where(np.isfinite(spacings), spacings, 1.0), np.ones(len(spatial)), ["spacing"]
    columns, origin = np.zeros((3, len(spatial))), np.zeros(3)
    np.fill_diagonal(columns, spacings * factors)
    origin[: len(spatial)] = np.array([axis.minimum for axis in spatial]) * factors
    return columns, origin, unit, assumed


def _factors(units: list[str]) -> tuple[Floats, str | None, bool]:
    """Return millimetres per unit, the unit if all are equal, and whether all are known."""
    names = [unit_name(unit) for unit in units]
    factors = np.array([TO_MM[name or "mm"] for name in names])
    return factors, names[0] if len(set(names)) == 1 else None, None not in names


def _completed(columns: Floats) -> Floats:
    """Return three columns; a plane is as thick as the finest step in it, at right angles to both."""
    if columns.shape[1] == 3:
        return columns
    normal = np.cross(columns[:, 0], columns[:, 1])
    length = np.linalg.norm(normal)
    finest = np.linalg.norm(columns, axis=0).min()
    return np.column_stack([columns, normal / length * finest if length > 0 else normal])


def _times(header: TextHeader, axes: list[_Axis], dims: tuple[str, ...]) -> tuple[float, float] | None:
    """Return the seconds between two times and the first time, if the header states step and unit."""
    if "t" not in dims:
        return None
    axis = axes[dims.index("t")]
    step, unit = axis.spacing, axis.unit
    if axis.vector is not None and len(axis.vector) == 4:
        step, unit = float(axis.vector[3]), _words(header, "space units", _space_dimension(header))[3]
    seconds = TO_SECONDS.get(unit)
    return (step * seconds, 0.0) if seconds is not None and math.isfinite(step) else None


def _attrs(header: TextHeader, unit: str | None) -> dict[str, str]:
    """Return attributes of the volume: the unit of the values, and that of the lengths of the header."""
    units = header.fields.get("sample units", header.fields.get("sampleunits", "")).strip('" ')
    return {**({"units": units} if units else {}), **({"source_unit": unit} if unit not in (None, "mm") else {})}


def _dtype(header: TextHeader) -> np.dtype[Any]:
    name = header.fields["type"].lower()
    if name not in _TYPES:
        raise header.error("type", "a type of numbers")
    dtype, endian = np.dtype(_TYPES[name]), header.fields.get("endian", "").lower()
    if dtype.itemsize > 1 and _encoding(header) != "ascii" and endian not in ("big", "little"):
        raise header.error("endian", "big or little")
    return dtype.newbyteorder(">" if endian == "big" else "<")


def _encoding(header: TextHeader) -> str:
    encoding = _ENCODINGS.get(header.fields["encoding"].lower())
    if encoding is None:
        raise header.error("encoding", f"one of {', '.join(_ENCODINGS)}")
    return encoding


def _complex(header: TextHeader, axis: _Axis, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the complex type of pairs of floating point."""
    if axis.size != 2 or dtype.kind != "f":
        raise header.error("kinds", "complex for an axis of two floating-point numbers only")
    return np.dtype(f"c{2 * dtype.itemsize}").newbyteorder(dtype.byteorder)


def _voxels(header: TextHeader, encoding: str) -> tuple[list[Path], int, int]:
    """Return the files of the voxels, the bytes in front of them, and those in front of them in the unpacked stream."""
    value = header.fields.get("data file")
    files = [header.path] if value is None else data_files(header, value)
    start = header.end if value is None else 0
    lines = header.integers("line skip", 1, 0, 10**6)[0] if "line skip" in header.fields else 0
    skip = header.integers("byte skip", 1, -1)[0] if "byte skip" in header.fields else 0
    if skip == -1 and encoding == "raw":
        return files, -1, 0
    if lines and len(files) == 1:
        with files[0].open("rb") as file:
            file.seek(start)
            for _ in range(lines):
                file.readline()
            start = file.tell()
    elif lines or skip < 0:
        raise header.error("line skip" if lines else "byte skip", "0 for several files, or compressed voxels")
    return files, start, skip
