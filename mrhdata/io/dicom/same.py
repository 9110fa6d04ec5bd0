"""Copies of a file in one folder, which would be two planes at one position."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pydicom

from mrhdata.io.dicom.frames import Frame
from mrhdata.io.dicom.headers import opened, parsing

log = logging.getLogger("mrhdata")


def without_copies(frames: Sequence[Frame]) -> list[Frame]:
    """Return the planes without those of files that repeat another one: same SOPInstanceUID, elements and voxels."""
    first: dict[str, Path] = {}
    copies: set[Path] = set()
    for frame in frames:
        uid = frame.facts["SOPInstanceUID"]
        original = first.setdefault(uid, frame.path) if uid else frame.path
        if frame.path not in copies and original != frame.path and _same_content(original, frame.path):
            copies.add(frame.path)
            log.warning("%s is left out: it repeats %s", frame.path, original.name)
    return [frame for frame in frames if frame.path not in copies]


def _same_content(a: Path, b: Path) -> bool:
    """Return whether two files have equal elements, apart from the preamble and the head of the file."""
    with parsing(b), opened(a) as first, opened(b) as second:
        return bool(pydicom.dcmread(first, force=True) == pydicom.dcmread(second, force=True))
