"""Checks of TIFF files before they are read: completeness, other files, sizes and the meaning of values.

tifffile logs damage and reads on; pages that are missing become zeros. Here both are errors.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tifffile

from mrhdata.errors import FormatError
from mrhdata.io.tiff_directories import PRIVATE_TAG, check_directories
from mrhdata.io.tiff_metadata import children, parse_xml

log = logging.getLogger("mrhdata")

#: Messages of tifffile about matters that do not change the image.
_HARMLESS = re.compile(
    r"coercing invalid ASCII|is not a valid|imagej_metadata|SubfileType|subfiletype|estimating ByteCounts|_tags> raised"
    r"|GeoKey|expected 3 series|not stitched|expected \d+ frames, got|order '"
)
#: Number of the tag that a message is about.
_TAG = re.compile(r"TiffTag(?:\.fromfile>.*TiffTag)? (\d+)|tag #(\d+)")

#: Shape in the description that tifffile writes.
_SHAPE = re.compile(r'"shape": ?\[([0-9, ]*)\]')

#: Compression -> most bytes that one byte can unpack to; others by `_LARGEST_RATIO`.
_RATIOS = {1: 1, 5: 4100, 8: 1100, 32946: 1100, 32773: 130}
_LARGEST_RATIO = 100_000

_MIN_IS_WHITE, _PALETTE, _MASK, _YCBCR = 0, 3, 4, 6
#: Photometric interpretations that are read: 0 is black, RGB, indices of colours, masks, linear values of a sensor.
_INTENSITIES = {1, 2, _PALETTE, _MASK, 34892}
#: Compressions whose decoders return RGB for YCbCr: JPEG, JPEG 2000 and WebP.
_TO_RGB = {6, 7, 33003, 33005, 33007, 34712, 34892, 50001}

#: Orientation (tag 274) -> whether rows run along x, and whether the stored rows and columns run backwards.
ORIENTATIONS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


class _Collector(logging.Handler):
    """Collects the messages of one thread about damage."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread and _is_damage(message := record.getMessage()):
            self.messages.append(message)


def _is_damage(message: str) -> bool:
    tag = _TAG.search(message)
    private = tag is not None and int(tag[1] or tag[2]) >= PRIVATE_TAG
    return not private and _HARMLESS.search(message) is None


@contextmanager
def damage_raises(path: Path) -> Iterator[None]:
    """Raise FormatError if tifffile logs damage of a file that it would read in part."""
    logger, collector = logging.getLogger("tifffile"), _Collector()
    logger.addHandler(collector)
    try:
        yield
    finally:
        logger.removeHandler(collector)
    if collector.messages:
        detail = re.sub(r"<tifffile\.\w+ .*?>+ ?|'", "", collector.messages[0])[:160].strip()
        raise FormatError(f"{path} is damaged or truncated ({detail}). Copy it again")


def companion_xml(path: Path) -> str | None:
    """Return the OME-XML of a companion file if a TIFF file names one, otherwise None.

    Raises
    ------
    FormatError
        The file names files that are missing or that are outside its folder.
    """
    with tifffile.TiffFile(path) as file:
        text, is_ome = file.pages.first.description, file.is_ome
    if not is_ome and ("<OME" in text[:1000] or re.search(r"\.ome\.(tiff?|btf)$", path.name.lower())):
        raise FormatError(
            f"{path} must have complete OME-XML, as its name or its description says. Copy it again, or rename it to "
            f"{path.name.partition('.')[0]}.tif if it never was an OME-TIFF"
        )
    if not is_ome:
        return None
    root, companion = parse_xml(text), None
    for element in children(root, "BinaryOnly"):
        _check_files(path, {str(element.get("MetadataFile"))})
        companion = (path.parent / str(element.get("MetadataFile"))).read_text("utf-8").strip()
        root = parse_xml(companion)
    _check_files(path, _other_files(root, path))
    return companion


def _other_files(root: ET.Element, path: Path) -> set[str]:
    """Return the names of the files with the other pages of an OME-TIFF."""
    uuids = children(root, "Image", "Pixels", "TiffData", "UUID")
    names = {str(uuid.get("FileName")) for uuid in uuids if uuid.text != root.get("UUID")}
    return {name for name in names if name.lower() != path.name.lower()}


def _check_files(path: Path, names: set[str]) -> None:
    outside = sorted(name for name in names if Path(name).name != name or "\\" in name)
    if outside:
        raise FormatError(f"{path} must name files in its own folder; got {', '.join(outside[:5])}")
    missing = sorted(name for name in names if not _is_whole(path.parent / name))
    if missing:
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise FormatError(
            f"{path} is one of several files of an OME-TIFF; missing or damaged are {listed}. Copy them to its folder"
        )


def _is_whole(path: Path) -> bool:
    """Return whether a file exists and, if it is a TIFF, whether its list of pages is complete."""
    if not path.is_file() or path.suffix.lower() not in (".tif", ".tiff", ".btf"):
        return path.is_file()
    try:
        check_directories(path)
    except FormatError:
        return False
    return True


def check_series(path: Path, file: tifffile.TiffFile, series: Any) -> None:
    """Raise FormatError if the file's notes state other images than its pages make up."""
    if file.is_ome and series.kind not in ("ome", "mmstack"):
        raise FormatError(f"{path} is damaged: its OME-XML does not fit its pages")
    page, notes = series.keyframe, file.imagej_metadata or {}
    if series.kind in ("imagej", "uniform", "generic") and notes:
        planes = math.prod(series.shape) // max(1, page.imagelength * page.imagewidth)
        hyperstack = math.prod(int(notes.get(key, 1)) for key in ("channels", "slices", "frames"))
        stated = max(int(notes.get("images", 1)), hyperstack)
        if planes % stated:
            raise FormatError(f"{path} is truncated: ImageJ wrote {stated} planes, but it has {planes}. Copy it again")
    note = _SHAPE.search(page.shaped_description or "") if file.is_shaped else None
    shape = tuple(int(n) for n in note[1].split(",") if n.strip()) if note else series.shape
    if math.prod(shape) != math.prod(series.shape):
        raise FormatError(
            f"{path} is truncated: it must have the shape {shape}; got {tuple(series.shape)}. Copy it again"
        )


def check_pages(path: Path, pages: Sequence[Any]) -> None:
    """Raise FormatError if pages, strips or tiles are missing, end behind the file, or unpack to absurd sizes."""
    missing = [i for i, page in enumerate(pages) if page is None]
    if missing:
        raise FormatError(f"{path} is truncated: page {missing[0]} of {len(pages)} is missing. Copy it again")
    for i, page in enumerate(pages):
        offsets, counts = page.dataoffsets, page.databytecounts
        if math.prod(page.shape) == 0:
            raise FormatError(f"{path} must have pixels; got page {i} of shape {page.shape}. It is damaged")
        end = max((a + n for a, n in zip(offsets, counts, strict=False)), default=0)
        size = page.parent.filehandle.size
        if end > size:
            raise FormatError(f"{path} is truncated: page {i} ends at byte {end}, the file at {size}. Copy it again")
        if len(offsets) < math.prod(page.chunked) or len(counts) < len(offsets) or min(*offsets, *counts) == 0:
            raise FormatError(f"{path} is truncated: strips or tiles of page {i} are missing. Copy it again")
    bits = sum(math.prod(page.shape) * page.keyframe.bitspersample for page in pages)
    check_size(path, bits // 8, sum(sum(page.databytecounts) for page in pages), pages[0].compression)


def check_size(path: Path, unpacked: int, stored: int, compression: int = 0) -> None:
    """Raise FormatError if stored bytes cannot unpack to so many."""
    if unpacked > _RATIOS.get(int(compression), _LARGEST_RATIO) * stored:
        raise FormatError(f"{path} claims {unpacked} bytes of voxels in {stored} bytes of data; it is damaged")


def check_values(path: Path, page: Any, *, is_display: bool) -> bool:
    """Check that values are intensities; warn and return False if something else is stored.

    Parameters
    ----------
    path : path
    page : tifffile.TiffPage
    is_display : bool
        Whether a palette is only for display, as in files of ImageJ.

    Raises
    ------
    FormatError
        The values are of a colour space that is not read.
    """
    kind = _photometric(page)
    if kind == _MIN_IS_WHITE:
        log.warning("%s: 0 is white in this file (MinIsWhite); values are read as stored, not inverted", path)
    elif kind == _PALETTE and is_display:
        log.warning("%s: values are displayed through a table of colours; they are read as stored", path)
    elif kind not in _INTENSITIES and not (kind == _YCBCR and int(page.compression) in _TO_RGB):
        name = getattr(page.photometric, "name", kind)
        raise FormatError(f"{path} must hold grey or RGB values; got {name}. Convert it, for example with ImageJ")
    return kind != _MIN_IS_WHITE and not (kind == _PALETTE and is_display)


def _photometric(page: Any) -> int:
    return 1 if page.photometric is None else int(page.photometric)


def is_palette(page: Any) -> bool:
    """Return whether values are indices of a table of colours."""
    return _photometric(page) == _PALETTE


def sample_names(page: Any) -> list[str] | None:
    """Return the names of the samples of a pixel, with A for transparency; None for one sample or many."""
    names = ["R", "G", "B"] if _photometric(page) in (2, _YCBCR) else ["grey"]
    extra = ["A" if int(value) in (1, 2) else "extra" for value in page.extrasamples or ()]
    return [*names, *extra] if len(extra) < 2 and len(names) + len(extra) > 1 else None


def orientation(path: Path, pages: Iterable[Any]) -> int:
    """Return the orientation of pages, 1 to 8. Pages that state none have that of the first one."""
    first, *others = (page.tags.valueof(274) for page in pages if isinstance(page, tifffile.TiffPage))
    # Writers store 0 for "not stated".
    values = {int(first or 1), *(int(value) for value in others if value)}
    if len(values) > 1 or not values <= ORIENTATIONS.keys():
        raise FormatError(f"{path} must have one orientation from 1 to 8 (tag 274); got {sorted(values)}")
    return values.pop()
