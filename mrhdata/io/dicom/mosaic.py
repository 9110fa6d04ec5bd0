"""Siemens mosaics: the planes of one volume as tiles of one picture.

ImagePositionPatient is that of a picture as large as the mosaic around the centre of the first plane, so that it is
moved by half of the difference in size. The direction of the following planes is in Siemens' own header (CSA) only.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.dataset import Dataset

from mrhdata.errors import FormatError
from mrhdata.io.dicom.headers import number

if TYPE_CHECKING:
    from mrhdata.io.dicom.frames import Frame
    from mrhdata.volume.grid import Floats

_REMEDY = "Export it as single slices"


def is_mosaic(tags: Dataset) -> bool:
    """Return whether ImageType says that the picture is a mosaic."""
    kind = tags.get("ImageType") or ()
    return "MOSAIC" in ([kind] if isinstance(kind, str) else list(kind))


def tiles(tags: Dataset, whole: Frame) -> list[Frame]:
    """Return the planes of a mosaic.

    Raises
    ------
    FormatError
        The number of planes, their distance or their direction is missing.
    """
    csa = _siemens_header(tags)
    count = _count(tags, csa)
    side = math.ceil(math.sqrt(count))
    if whole.shape[0] % side or whole.shape[1] % side:
        size = " x ".join(map(str, whole.shape))
        raise FormatError(f"a mosaic of {count} planes must have {side} x {side} tiles; got {size} voxels. {_REMEDY}")
    rows, columns = whole.shape[0] // side, whole.shape[1] // side
    step = _step(tags, csa, whole)
    corner = _corner(whole, rows, columns)
    return [
        replace(
            whole.moved(corner + k * step),
            rows=slice(k // side * rows, (k // side + 1) * rows),
            columns=slice(k % side * columns, (k % side + 1) * columns),
        )
        for k in range(count)
    ]


def _siemens_header(tags: Dataset) -> dict[str, Any]:
    """Return the elements of Siemens' own header of an image."""
    try:
        content = tags.private_block(0x29, "SIEMENS CSA HEADER")[0x10].value
    except KeyError:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel calls the module experimental
        from nibabel.nicom import csareader

    return {name: tag["items"] for name, tag in csareader.read(bytes(content))["tags"].items()}


def _count(tags: Dataset, csa: dict[str, Any]) -> int:
    try:
        count = tags.private_block(0x19, "SIEMENS MR HEADER")[0x0A].value
        count = int.from_bytes(count[:2], "little") if isinstance(count, bytes) else count
    except KeyError:
        count = next(iter(csa.get("NumberOfImagesInMosaic", ())), None)
    if not isinstance(count, int) or count < 1:
        raise FormatError(f"a mosaic must state how many planes it has; got {count}. {_REMEDY}")
    return count


def _step(tags: Dataset, csa: dict[str, Any], whole: Frame) -> Floats:
    """Return the vector from a plane to the next one."""
    between, normal = number(tags, "SpacingBetweenSlices"), csa.get("SliceNormalVector", ())
    missing = [
        name
        for name, known in (
            ("SpacingBetweenSlices", between),
            ("SliceNormalVector", len(normal) == 3),
            ("ImagePositionPatient", whole.position is not None),
            ("ImageOrientationPatient", whole.orientation is not None),
            ("PixelSpacing", whole.spacing is not None),
        )
        if not known
    ]
    if missing or between is None:
        raise FormatError(f"a mosaic must state where its planes lie; it lacks {', '.join(missing)}. {_REMEDY}")
    cosine = float(whole.normal @ np.array(normal, dtype=np.float64))
    if abs(abs(cosine) - 1) > 1e-3:
        raise FormatError(f"SliceNormalVector must be normal to the planes; got {list(normal)}. {_REMEDY}")
    return whole.normal * np.sign(cosine) * abs(between)


def _corner(whole: Frame, rows: int, columns: int) -> Floats:
    """Return the vector from the corner of the mosaic to that of its first plane."""
    if whole.orientation is None or whole.spacing is None:
        return np.zeros(3)
    across = whole.orientation[:3] * whole.spacing[1] * (whole.shape[1] - columns) / 2
    return across + whole.orientation[3:] * whole.spacing[0] * (whole.shape[0] - rows) / 2
