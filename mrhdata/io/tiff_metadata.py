"""Voxel size, channel names, positions and stored attributes that headers of TIFF files state.

OME-XML, the notes of ImageJ and Aperio, and the resolution tags are read, in this order.
"""

from __future__ import annotations

import json
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tifffile

from mrhdata.volume.construct import DIMS, KINDS
from mrhdata.volume.overrides import TO_MM, unit_name
from mrhdata.volume.times import TO_SECONDS

#: Namespace of the OME map annotation that mrhdata writes, and the attributes in it.
NAMESPACE = "mrhdata"
STORED_ATTRS = ("affine", "space", "kind", "units", "modality", "source_axes", "assumed")

_METRES = {
    **{"Ym": 24, "Zm": 21, "Em": 18, "Pm": 15, "Tm": 12, "Gm": 9, "Mm": 6, "km": 3, "hm": 2, "dam": 1, "m": 0},
    **{"dm": -1, "cm": -2, "mm": -3, "\u03bcm": -6, "um": -6, "nm": -9, "\u00c5": -10, "pm": -12, "fm": -15},
    **{"am": -18, "zm": -21, "ym": -24},
}
#: Unit of length of the OME model -> millimetres. It also has "pixel" and "reference frame", which are not lengths.
OME_TO_MM = {
    **{unit: 10.0 ** (power + 3) for unit, power in _METRES.items()},
    **{"thou": 0.0254, "li": 25.4 / 12, "in": 25.4, "ft": 304.8, "yd": 914.4, "mi": 1609344.0, "pt": 25.4 / 72},
    **{"ua": 149597870700e3, "ly": 9460730472580800e3, "pc": 3.0856775814913673e19},
}
_INCH = {"inch": 25.4, "inches": 25.4, "in": 25.4}
#: Pixels of this size or larger come from 72 or 96 dots per inch, a default of software for printing.
_PRINTED_MM = 0.2

Step = float | None


@dataclass(frozen=True)
class Header:
    """Statements of one image of a file about its geometry and channels.

    Attributes
    ----------
    attrs : dict
        Attributes stored by mrhdata, with `affine`; empty for files of other programs.
    steps : tuple
        Millimetres along z, y, x; None if not stated.
    channels : list of str, optional
        Names of the channels.
    position : tuple of float, optional
        Position of the microscope's stage along X, Y, Z in mm.
    time_step : float, optional
        Seconds between two times.
    """

    attrs: dict[str, Any] = field(default_factory=dict)
    steps: tuple[Step, Step, Step] = (None, None, None)
    channels: list[str] | None = None
    position: tuple[float, ...] | None = None
    time_step: float | None = None


def header_of(file: tifffile.TiffFile, page: Any, series: int = 0, count: int | None = None) -> Header:
    """Return the statements of an open file about one of its images.

    Parameters
    ----------
    file : tifffile.TiffFile
    page : tifffile.TiffPage
        First page of the image.
    series : int
        Index of the image.
    count : int, optional
        Number of images with pages, which must equal that of the OME-XML.

    Raises
    ------
    ValueError
        The file contradicts itself.
    """
    if file.is_ome and file.ome_metadata:
        return _from_ome(parse_xml(file.ome_metadata), series, count)
    interval = float((file.imagej_metadata or {}).get("finterval", 0.0))
    return Header(steps=_steps_of_tags(file, page, series), time_step=interval or None)


def parse_xml(text: str) -> ET.Element:
    """Return the root of an XML text without document type, whose entities could expand to any size.

    Raises
    ------
    ValueError
        The text has a document type.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("its XML declares a document type; OME-XML has none")
    return ET.fromstring(text)


def children(element: ET.Element, *path: str) -> list[ET.Element]:
    """Return elements by their local names, whatever their namespace.

    Examples
    --------
    >>> len(children(ET.fromstring("<OME><Image><Pixels/></Image><Image/></OME>"), "Image", "Pixels"))
    1
    """
    elements = [element]
    for name in path:
        elements = [child for parent in elements for child in parent if child.tag.rpartition("}")[2] == name]
    return elements


def _from_ome(root: ET.Element, series: int, count: int | None) -> Header:
    images = [image for image in children(root, "Image") if children(image, "Pixels")]
    if count is not None and len(images) != count:
        raise ValueError(f"its OME-XML lists {len(images)} images, but {count} have pages")
    pixels = children(images[series], "Pixels")[0]
    steps = tuple(_ome_length(pixels, f"PhysicalSize{axis}") for axis in "ZYX")
    positive = tuple(step if step is not None and 0 < step < float("inf") else None for step in steps)
    names = [str(channel.get("Name")) for channel in children(pixels, "Channel") if channel.get("Name")]
    attrs = _stored_attrs(root, positive)
    unit = TO_SECONDS.get(pixels.get("TimeIncrementUnit", "s"))
    interval = None if unit is None else float(pixels.get("TimeIncrement", 0.0)) * unit
    return Header(attrs, positive, names or None, _ome_position(pixels), interval or None)  # type: ignore[arg-type]


def _ome_length(element: ET.Element, name: str, default: str = "µm") -> float | None:
    """Return a length in mm, or None if it is absent or its unit is not one of length."""
    # The signs of micro and of angstrom have two forms each; NFKC leaves one.
    factor = OME_TO_MM.get(unicodedata.normalize("NFKC", element.get(f"{name}Unit", default)).strip())
    return None if factor is None or element.get(name) is None else float(str(element.get(name))) * factor


def _ome_position(pixels: ET.Element) -> tuple[float, ...] | None:
    plane = next(iter(children(pixels, "Plane")), None)
    if plane is None:
        return None
    # Positions have the unit "reference frame" by default.
    lengths = [_ome_length(plane, f"Position{axis}", "reference frame") for axis in "XYZ"]
    return tuple(length or 0.0 for length in lengths) if any(lengths) else None


def _stored_attrs(root: ET.Element, steps: Iterable[Step]) -> dict[str, Any]:
    """Return the attributes that mrhdata stored, or none if another program changed the voxel size since."""
    notes = [note for note in root.iter() if note.tag.rpartition("}")[2] == "MapAnnotation"]
    note = next((note for note in notes if note.get("Namespace") == NAMESPACE), None)
    if note is None:
        return {}
    stored = {str(m.get("K")): m.text or "" for m in note.iter() if m.tag.rpartition("}")[2] == "M"}
    attrs = {key: json.loads(stored[key]) for key in STORED_ATTRS if key in stored}
    affine = np.asarray(attrs.get("affine"), dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not _are_valid(attrs):
        raise ValueError("its note of mrhdata must have an affine of 4 x 4 numbers, a space and a kind")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    unchanged = all(s is None or abs(s - n) <= 1e-4 * n for s, n in zip(steps, lengths, strict=True))
    return attrs if unchanged else {}


def _are_valid(attrs: dict[str, Any]) -> bool:
    texts = all(isinstance(attrs.get(key, ""), str) for key in ("space", "units", "modality"))
    return texts and attrs.get("kind", "image") in KINDS and set(attrs.get("source_axes", ())) <= set(DIMS)


def _steps_of_tags(file: tifffile.TiffFile, page: Any, series: int) -> tuple[Step, Step, Step]:
    """Return the voxel size that ImageJ, Aperio or the resolution tags state."""
    if file.is_svs:
        # The labels and thumbnails of a slide repeat the note of the image.
        match = re.search(r"\bMPP\s*=\s*([0-9.]+)", page.description) if series == 0 else None
        return (None, float(match[1]) / 1000, float(match[1]) / 1000) if match else (None, None, None)
    notes = file.imagej_metadata or {}
    unit = {2: 25.4, 3: 10.0}.get(int(page.tags.valueof(296, default=1)))
    units = [_unit_of_imagej(notes, axis, unit) for axis in "zyx"]
    per_unit = [None, page.tags.valueof(283), page.tags.valueof(282)]
    steps = [_pixel(value, factor) for value, factor in zip(per_unit, units, strict=True)]
    if not notes and any(step is not None and step > _PRINTED_MM for step in steps):
        return None, None, None
    depth = abs(float(notes.get("spacing", 0.0))) * (units[0] or 0.0)
    return depth or None, steps[1], steps[2]


def _unit_of_imagej(notes: dict[str, Any], axis: str, otherwise: float | None) -> float | None:
    """Return the millimetres of the unit along an axis; ImageJ names y and z only if they differ from x."""
    name = notes.get(f"{axis}unit") or notes.get("unit")
    if name is None:
        return otherwise
    word = str(name).strip(' "')
    return _INCH.get(word.lower()) or TO_MM.get(unit_name(word) or "")


def _pixel(per_unit: Any, unit: float | None) -> float | None:
    """Return the size of a pixel in mm from a rational number of pixels per unit."""
    if per_unit is None or unit is None or not per_unit[0] or not per_unit[1]:
        return None
    return float(per_unit[1]) / float(per_unit[0]) * unit
