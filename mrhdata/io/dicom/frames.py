"""Planes of DICOM files: where each one lies, how its values are scaled, and what tells it from its neighbours."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.dataset import Dataset

from mrhdata.errors import FormatError
from mrhdata.io.dicom.groups import GROUPS, Find, Place, finder
from mrhdata.io.dicom.headers import Header, number, numbers, parsing
from mrhdata.io.dicom.images import Image, image_of
from mrhdata.io.dicom.mosaic import is_mosaic, tiles

if TYPE_CHECKING:
    from mrhdata.volume.grid import Floats

#: Deviation that two unit vectors may have from orthogonal, and from length 1.
_UNIT = 1e-2
#: Functional groups whose FrameType says what a frame shows, by modality.
_FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
#: Elements by which planes at one position can differ, besides those of functional groups.
_FACTS = (
    "TemporalPositionIdentifier",
    "EchoTime",
    "EchoNumbers",
    "InversionTime",
    "TriggerTime",
    "AcquisitionNumber",
    "AcquisitionDateTime",
    "AcquisitionTime",
    "ContentTime",
    "ImageType",
    "InstanceNumber",
)
#: Elements that hold pixel spacing at the detector instead of in the patient.
_DETECTOR_SPACING = ("ImagerPixelSpacing", "NominalScannedPixelSpacing")
_POINTERS_TO_TIME = {0x00181063, 0x00181065}
_POINTER_TO_SLICES = 0x00540080


@dataclass(frozen=True)
class Series:
    """Names of a series: UID, number and description, each empty if it is missing."""

    uid: str
    number: str
    description: str


@dataclass(frozen=True, eq=False)
class Frame:
    """One plane.

    Parameters
    ----------
    image : Image
        Voxels of the file.
    index : int
        Number of the plane's picture in the file, from 0.
    series : Series
    rows, columns : slice
        Part of the picture that is the plane; a mosaic has many.
    position : (3,) array or None
        Centre of the first voxel in mm, left, posterior, superior.
    orientation : (6,) array or None
        Directions of a row (to the next column), and of a column.
    spacing : (2,) array or None
        Millimetres between rows, and between columns.
    thickness : float or None
        Millimetres between planes as the file states them, or the thickness of the plane.
    slope, intercept : float
        Scale of the stored values.
    facts : dict
        Values of the elements that can tell planes at one position apart.
    assumed : frozenset of str
        Properties that the file does not state; see :mod:`mrhdata.volume.assumptions`.
    """

    image: Image
    index: int
    series: Series
    rows: slice
    columns: slice
    position: Floats | None
    orientation: Floats | None
    spacing: Floats | None
    thickness: float | None
    slope: float
    intercept: float
    facts: dict[str, Any]
    assumed: frozenset[str] = field(default_factory=frozenset)

    @property
    def path(self) -> Path:
        """File of the plane."""
        return self.image.path

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def normal(self) -> Floats:
        """Unit vector from a plane to the next one behind it; along the axis S if the file states none."""
        directions = np.array([1, 0, 0, 0, 1, 0]) if self.orientation is None else self.orientation
        return np.cross(directions[:3], directions[3:])

    def moved(self, offset: Floats, **changes: Any) -> Frame:
        """Return the plane with its position moved by a vector in mm."""
        position = None if self.position is None else self.position + offset
        return replace(self, position=position, **changes)


def frames_of(header: Header) -> list[Frame]:
    """Return the planes of a file.

    Raises
    ------
    FormatError
        The file states too few bytes, or geometry that cannot be.
    """
    with parsing(header.path):
        tags, image = header.tags, image_of(header)
        groups = tags.get("PerFrameFunctionalGroupsSequence"), tags.get("SharedFunctionalGroupsSequence")
        if any(groups):
            return _enhanced(tags, image, *groups)
        first = _frame(tags, image, 0, finder(Place(tags)))
        if is_mosaic(tags):
            return tiles(tags, first)
        return [first] if image.count == 1 else _multiframe(tags, first)


def _enhanced(tags: Dataset, image: Image, per_frame: Any, shared: Any) -> list[Frame]:
    """Return the planes of a file with functional groups, one item per plane and one for all."""
    items = list(per_frame) if per_frame else [None] * image.count
    if len(items) != image.count:
        raise FormatError(f"NumberOfFrames must be that of functional groups, {len(items)}; got {image.count}")
    common = [Place(shared[0])] if shared else []
    if any(item is not None and "PlanePositionSlideSequence" in item for item in items):
        raise FormatError(f"{image.path} holds tiles of a slide, which are not read; convert it to OME-Zarr or TIFF")
    common.append(Place(tags))
    nearest = [[] if item is None else [Place(item)] for item in items]
    return [_frame(tags, image, index, finder(*own, *common)) for index, own in enumerate(nearest)]


def _frame(tags: Dataset, image: Image, index: int, find: Find) -> Frame:
    """Return one plane, from a function that finds the data set with an element."""
    assumed: set[str] = set()
    spacing = numbers(find("PixelSpacing"), "PixelSpacing", 2)
    detector = next((k for k in _DETECTOR_SPACING if spacing is None and find(k) is not None), None)
    if detector is not None:
        spacing = numbers(find(detector), detector, 2)
    if spacing is None or min(spacing) <= 0:
        spacing, detector = None, None
        assumed.add("spacing")
    orientation, position = _orientation(find, tags), numbers(find("ImagePositionPatient"), "ImagePositionPatient", 3)
    if position is None:
        position = numbers(_detector(tags), "ImagePositionPatient", 3)
    if orientation is None or position is None:
        assumed.add("orientation")
    slope, intercept, sure = _scale(tags, find)
    between, thick = (number(find(k), k) for k in ("SpacingBetweenSlices", "SliceThickness"))
    if not sure:
        assumed.add("values")
    return Frame(
        image,
        index,
        Series(
            *(
                " ".join(str(tags.get(k) or "").split())
                for k in ("SeriesInstanceUID", "SeriesNumber", "SeriesDescription")
            )
        ),
        slice(0, image.rows),
        slice(0, image.columns),
        None if position is None else np.array(position),
        orientation,
        None if spacing is None else np.array(spacing),
        abs(between or thick or 0) or None,
        slope,
        intercept,
        _facts(find) | {"SOPInstanceUID": str(tags.get("SOPInstanceUID") or ""), "detector": detector},
        frozenset(assumed),
    )


def _detector(tags: Dataset) -> Dataset | None:
    """Return the first detector of nuclear medicine, which holds the geometry of its planes."""
    sequence = tags.get("DetectorInformationSequence")
    return sequence[0] if sequence else None


def _orientation(find: Find, tags: Dataset) -> Floats | None:
    holder = find("ImageOrientationPatient") or _detector(tags)
    listed = numbers(holder, "ImageOrientationPatient", 6)
    if listed is None or not any(listed):
        return None
    row, column = np.array(listed[:3]), np.array(listed[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(row @ column)) > _UNIT:
        raise FormatError(f"ImageOrientationPatient must be two orthogonal unit vectors; got {list(listed)}")
    return np.concatenate([row / lengths[0], column / lengths[1]])


def _scale(tags: Dataset, find: Find) -> tuple[float, float, bool]:
    """Return slope, intercept, and whether the file states them in a way that is sure."""
    slope = number(find("RescaleSlope"), "RescaleSlope")
    intercept = number(find("RescaleIntercept"), "RescaleIntercept") or 0.0
    if slope is None:
        # The dose of radiotherapy has an element of its own.
        slope = number(tags, "DoseGridScaling")
    sure = slope != 0 and not tags.get("ModalityLUTSequence")
    return (1.0 if slope is None or slope == 0 else slope), intercept, sure


def _facts(find: Find) -> dict[str, Any]:
    facts = {}
    for keyword in (*GROUPS, *_FACTS):
        if keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            continue
        if (holder := find(keyword)) is not None:
            facts[keyword] = _plain(holder.get(keyword))
    for kind in _FRAME_TYPES:
        if (holder := find(kind)) is not None and holder[kind].value:
            facts["ImageType"] = _plain(holder[kind].value[0].get("FrameType"))
    return facts


def _plain(value: Any) -> Any:
    """Return a value of an element as a number, a text, or a tuple of them, which can be compared and sorted."""
    if not isinstance(value, str | bytes) and hasattr(value, "__len__"):
        return tuple(_plain(v) for v in value)
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _multiframe(tags: Dataset, first: Frame) -> list[Frame]:
    """Return the planes of a file with many pictures and one position: dose, nuclear medicine, films."""
    count = first.image.count
    pointer = tags.get("FrameIncrementPointer")
    pointers = {int(p) for p in (pointer if hasattr(pointer, "__len__") else [pointer]) if p is not None}
    if pointers & _POINTERS_TO_TIME:
        return [replace(first, index=i, facts=first.facts | {"FrameNumber": float(i + 1)}) for i in range(count)]
    offsets = _offsets(tags, first, pointers)
    if offsets is not None:
        return [first.moved(first.normal * offset, index=i) for i, offset in enumerate(offsets)]
    # Nothing says where the pictures lie, or that they are planes at all.
    assumed = first.assumed | {"spacing", "orientation"}
    return [replace(first, index=i, position=None, assumed=assumed, thickness=None) for i in range(count)]


def _offsets(tags: Dataset, first: Frame, pointers: set[int]) -> list[float] | None:
    """Return how far each plane lies behind the first one along the normal, in mm, or None if nothing says it."""
    count = first.image.count
    vector = numbers(tags, "GridFrameOffsetVector", count)
    if vector is not None and first.position is not None:
        return _dose_offsets(first, vector)
    between = number(tags, "SpacingBetweenSlices")
    stated = first.position is not None and first.orientation is not None and between
    if not stated or between is None:
        return None
    if pointers and pointers != {_POINTER_TO_SLICES} and "DetectorInformationSequence" in tags:
        raise FormatError(f"{first.path} holds several times, gates or energies; export one of them")
    # Nuclear medicine counts planes behind the first one as positive.
    return [i * between for i in range(count)]


def _dose_offsets(first: Frame, vector: tuple[float, ...]) -> list[float]:
    """Return the offsets of planes of dose, which are relative if the first one is 0, otherwise they are world Z."""
    if vector[0] == 0:
        return list(vector)
    normal = first.normal
    if first.position is None or abs(vector[0] - first.position[2]) > 1e-3 or abs(normal[2]) < 1 - 1e-4:
        raise FormatError(f"GridFrameOffsetVector must begin with 0 or with the Z of an axial plane; got {vector[0]}")
    return [float((z - vector[0]) * normal[2]) for z in vector]
