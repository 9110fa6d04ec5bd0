"""XML of marked cells, which Fiji's Cell Counter and cellfinder write in one form with two meanings.

Fiji counts planes from 1, and its types are the user's own. cellfinder counts planes from 0, and type 2 is a cell and 1
a rejected candidate. cellfinder always writes ``placeholder.tif`` as the name of the image; Fiji writes its real name,
and newer versions also its calibration and the names of types.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.parsers import expat

import numpy as np
import pandas as pd

from mrhdata.errors import FormatError, GridError

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

ROOT = "CellCounter_Marker_File"
#: Values of the option ``cell_counter``.
FIJI, CELLFINDER = "fiji", "cellfinder"

_PLACEHOLDER = "placeholder.tif"
_CALIBRATION = ("X_Calibration", "Y_Calibration", "Z_Calibration", "Calibration_Unit")
#: Unit of a calibration -> mm.
_MM = {"micron": 1e-3, "microns": 1e-3, "um": 1e-3, "\u00b5m": 1e-3, "\u03bcm": 1e-3, "mm": 1.0, "nm": 1e-6, "cm": 10.0}
#: Share by which a calibration may differ from the voxel size of the volume.
_TOLERANCE = 0.01
#: Characters of the text of one element.
_MAX_TEXT = 10_000


def read_markers(path: Path, cell_counter: str | None = None, like: xr.DataArray | None = None) -> pd.DataFrame:
    """Read the markers of a file as voxels from 0.

    Parameters
    ----------
    path : pathlib.Path
    cell_counter : {"fiji", "cellfinder"}, optional
        Program that wrote the file.
    like : volume, optional
        Volume that was marked.

    Returns
    -------
    table : pandas.DataFrame
        ``z, y, x``, and ``type`` (cellfinder) or ``marker_type`` (Fiji).

    Raises
    ------
    FormatError
        The file is damaged, or does not show which program wrote it.
    GridError
        Planes of Fiji lie beyond those of `like`.
    """
    markers = _parsed(path)
    program = cell_counter or _program_of(markers, path)
    points = np.array(markers.points, dtype=np.float64).reshape(-1, 3)[:, ::-1].copy()
    types = np.array(markers.types, dtype=np.int64)
    table = pd.DataFrame(points, columns=list("zyx"))
    if program == CELLFINDER:
        return table.assign(type=types)
    if (points[:, 0] < 1).any():
        raise FormatError(
            f"{path}: planes of Fiji count from 1; got {points[:, 0].min():g}. Pass cell_counter='cellfinder' if they "
            "count from 0"
        )
    table["z"] -= 1
    if like is not None:
        _check_volume(table, markers, like, path)
    _warn_of_types(markers, path)
    return table.assign(marker_type=types)


def _program_of(markers: _Markers, path: Path) -> str:
    """Return the program whose marks a file bears."""
    filename = markers.properties.get("Image_Filename", "")
    fiji = (
        filename not in ("", _PLACEHOLDER) or bool(markers.names) or bool(set(_CALIBRATION) & set(markers.properties))
    )
    if fiji != (filename == _PLACEHOLDER):
        return FIJI if fiji else CELLFINDER
    raise FormatError(
        f"{path} does not show whether its planes count from 1 (Fiji's Cell Counter) or from 0 (cellfinder). Pass "
        "cell_counter='fiji' or 'cellfinder' (--cell-counter)"
    )


def _check_volume(table: pd.DataFrame, markers: _Markers, like: xr.DataArray, path: Path) -> None:
    """Raise GridError for planes beyond the volume; warn if the calibration is not its voxel size."""
    planes = like.mrh.grid.shape[0]
    if len(table) and table["z"].max() >= planes:
        raise GridError(
            f"{path}: a mark lies in plane {table['z'].max() + 1:g} of {planes}. Fiji counts the planes of all "
            "channels and times together: mark a stack of one channel, or pass its volume as like="
        )
    unit = _MM.get(markers.properties.get("Calibration_Unit", "").strip().lower())
    stated = [_number(markers.properties.get(f"{axis}_Calibration")) for axis in "ZYX"]
    spacing = [float(step) for step in like.mrh.grid.spacing]
    if unit is None or None in stated:
        return
    if any(abs(value * unit - step) > _TOLERANCE * step for value, step in zip(stated, spacing, strict=True) if value):
        sizes = " x ".join(f"{value * unit:.4g}" for value in stated if value is not None)
        log.warning(
            "%s was marked on voxels of %s mm (z, y, x), the volume has %s; check the volume, and its axes",
            path,
            sizes,
            " x ".join(f"{step:.4g}" for step in spacing),
        )


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _warn_of_types(markers: _Markers, path: Path) -> None:
    """Warn if Fiji's markers have several types, which all count as cells."""
    counts = Counter(markers.types)
    if len(counts) > 1:
        listed = ", ".join(f"{n} of type {t}{_in_brackets(markers.names.get(t))}" for t, n in sorted(counts.items()))
        log.warning("%s has %s; all count as cells. Select rows by the column marker_type", path, listed)


def _in_brackets(name: str | None) -> str:
    return f" ({name})" if name else ""


def _parsed(path: Path) -> _Markers:
    markers = _Markers()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = markers.refuse
    parser.StartElementHandler, parser.EndElementHandler = markers.start, markers.end
    parser.CharacterDataHandler = markers.text
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except (expat.ExpatError, ValueError, LookupError, OverflowError) as error:
        raise FormatError(
            f"{path}, line {parser.CurrentLineNumber}: {first_line(error)}; write it again as cellfinder's XML"
        ) from error
    return markers


class _Markers:
    """Markers, collected while the XML is parsed; a tree of millions of them would not fit in memory."""

    def __init__(self) -> None:
        self.points: list[tuple[float, ...]] = []
        self.types: list[int] = []
        self.properties: dict[str, str] = {}
        self.names: dict[int, str] = {}
        self._in_root = False
        self._text = ""
        self._type: int | None = None
        self._name: str | None = None
        self._point: dict[str, float] = {}

    def refuse(self, *_: Any) -> None:
        raise ValueError("it has a DOCTYPE, which may contain or fetch anything")

    def start(self, name: str, _: Any) -> None:
        if not self._in_root and name != ROOT:
            raise ValueError(f"it begins with <{name[:100]}>, not <{ROOT}>")
        self._in_root = True
        self._text = ""

    def text(self, text: str) -> None:
        self._text += text
        if len(self._text) > _MAX_TEXT:
            raise ValueError(f"a text has more than {_MAX_TEXT} characters")

    def end(self, name: str) -> None:
        if name in ("MarkerX", "MarkerY", "MarkerZ"):
            self._point[name[-1]] = float(self._text)
        elif name == "Type":
            self._type = int(np.int64(int(self._text)))
        elif name == "Name":
            self._name = self._text.strip()
        elif name == "Image_Filename" or name in _CALIBRATION:
            self.properties[name] = self._text.strip()
        elif name == "Marker":
            self._end_marker()
        elif name == "Marker_Type":
            self._end_type()
        elif name == ROOT and len(self.types) < len(self.points):
            raise ValueError("markers lie outside of a Marker_Type")

    def _end_marker(self) -> None:
        if set(self._point) != {"X", "Y", "Z"}:
            raise ValueError(f"a marker has {sorted(self._point)} of X, Y, Z")
        self.points.append(tuple(self._point[axis] for axis in "XYZ"))
        self._point = {}

    def _end_type(self) -> None:
        """Give the markers of a type their number, which may follow them."""
        if self._type is None:
            raise ValueError("markers have no Type")
        self.types += [self._type] * (len(self.points) - len(self.types))
        if self._name is not None:
            self.names[self._type] = self._name
        self._type = self._name = None


def first_line(error: Exception) -> str:
    """Return the message of a library's error as part of a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
