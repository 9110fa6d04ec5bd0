"""ANALYZE 7.5, FreeSurfer MGH, AFNI and PAR/REC: what their headers say of axes, orientation, space and time."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib

from mrhdata.io.nibabel_images import assumed_of_steps, from_image, stated_steps
from mrhdata.volume.assumptions import assume
from mrhdata.volume.packed import unpacked_start
from mrhdata.volume.times import with_times

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

_SERIES = ("x", "y", "z", "t", "c")
_COMPONENTS = ("x", "y", "z", "c")
#: TAXIS_NUMS[2] of AFNI -> seconds; 77003 is a frequency.
_AFNI_SECONDS = {77001: 1e-3, 77002: 1.0}
#: TEMPLATE_SPACE of AFNI -> space.
_AFNI_SPACES = {"ORIG": "scanner", "TLRC": "Talairach", "MNI": "MNI152"}
#: Byte of the field goodRASFlag in the header of MGH.
_GOOD_RAS = 28


def from_image_of(image: Any, path: Path) -> xr.DataArray:
    """Return a volume of an image of one of these formats, as nibabel opened it."""
    if isinstance(image, nib.brikhead.AFNIImage):
        return _from_afni(image, path)
    if isinstance(image, nib.MGHImage):
        return _from_mgh(image, path)
    if isinstance(image, nib.parrec.PARRECImage):
        changing = set(image.header.get_volume_labels())
        series = changing <= {"dynamic scan number", "cardiac phase number"}
        return assume(from_image(image, path, _SERIES if series else _COMPONENTS), "space")
    if isinstance(image, nib.AnalyzeImage):
        log.warning(
            "%s: ANALYZE has no orientation; its first axis is assumed to run from right to left. "
            "Pass another with axes=, such as axes='RAS'",
            path,
        )
        unstated = assumed_of_steps(stated_steps(image), path)
        return assume(from_image(image, path, _SERIES), *unstated, "orientation", "space")
    return from_image(image, path, _SERIES)


def _from_afni(image: Any, path: Path) -> xr.DataArray:
    """Return a volume of AFNI, whose sub-bricks are times or statistics; only TAXIS_NUMS distinguishes them."""
    info = image.header.info
    numbers = list(info.get("TAXIS_NUMS", ()))
    unit = int(numbers[2]) if len(numbers) > 2 else 0
    is_series = bool(numbers) and unit != 77003
    space = _AFNI_SPACES.get(str(info.get("TEMPLATE_SPACE", "")).upper().partition("_")[0])
    volume = from_image(image, path, _SERIES if is_series else _COMPONENTS, space=space or "scanner")
    floats = list(info.get("TAXIS_FLOATS", ()))
    if is_series and unit in _AFNI_SECONDS and len(floats) > 1:
        volume = with_times(volume, floats[1] * _AFNI_SECONDS[unit], floats[0] * _AFNI_SECONDS[unit])
    return volume if space else assume(volume, "space")


def _from_mgh(image: Any, path: Path) -> xr.DataArray:
    """Return a volume of MGH; a flag says whether its voxel size and directions are valid."""
    volume = with_times(from_image(image, path, _SERIES), float(image.header["tr"]) * 1e-3)
    if unpacked_start(path, _GOOD_RAS + 2)[_GOOD_RAS:] == b"\0\0":
        log.warning(
            "%s: its flag says that it states no orientation, so a coronal one is assumed. Pass another with axes=",
            path,
        )
        volume = assume(volume, "spacing", "orientation")
    return assume(volume, "space")
