"""NIfTI-1 and -2, through nibabel; ANALYZE 7.5, MGH, AFNI and PAR/REC are passed on to :mod:`mrhdata.io.afni_mgh`.

A NIfTI without a unit of length is in mm: programs that leave the field 0 mean mm. The repetition time is read if the
header states its unit too.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from mrhdata.errors import FormatError, GridError
from mrhdata.io import afni_mgh
from mrhdata.io.nibabel_images import assumed_of_steps, from_image, open_image, stated_steps
from mrhdata.io.stored_types import stored_values
from mrhdata.volume.assumptions import DEFAULTS, assume
from mrhdata.volume.construct import SPATIAL
from mrhdata.volume.times import times_of, with_times

if TYPE_CHECKING:
    import xarray as xr

    from mrhdata.volume.grid import Floats

log = logging.getLogger("mrhdata")

#: NIfTI dims 1-5 in file order. The spatial names are placeholders that the affine reorders.
_FILE_DIMS = ("x", "y", "z", "t", "c")
#: Code of the unit of length, the lowest three bits of xyzt_units -> its name, and millimetres.
_LENGTHS = {0: ("mm", 1.0), 1: ("m", 1e3), 2: ("mm", 1.0), 3: ("um", 1e-3)}
#: Code of the unit of time, the next three bits -> seconds. Codes above are frequencies, so the axis is not time.
_SECONDS = {8: 1.0, 16: 1e-3, 24: 1e-6}
_FREQUENCIES = (32, 40, 48)
#: Code of a transform -> space. Code 2 (aligned to another file) and 5 (another template) name none.
_SPACES = {1: "scanner", 3: "Talairach", 4: "MNI152"}
#: Codes of intents: labels; matrices, vectors and colours, whose components are channels.
_LABELS = (1002, 1003)
_COMPONENTS = (1004, 1005, 1006, 1007, 1010, 2003, 2004)
#: Types that FSL, SPM, AFNI and ITK read. None reads integers of 64 bits; SPM and ITK read uint32.
_TYPES = ("uint8", "int8", "int16", "uint16", "int32", "float32", "float64", "complex64", "complex128")

#: Prefix of a NIfTI comment with the content that its header cannot hold: the affine in double precision, the
#: name of the space, and the other attributes.
_EXTRA = "mrhdata "
_EXTRA_ATTRS = ("units", "modality", "kind", "assumed")


OPTIONS: tuple[str, ...] = ()


def read(path: Path) -> xr.DataArray:
    """Read NIfTI (``.nii``, ``.nii.gz``, ``.hdr``/``.img``), ANALYZE, MGH, AFNI or PAR/REC."""
    image = open_image(path)
    return _from_nifti(image, path) if isinstance(image, nib.Nifti1Pair) else afni_mgh.from_image_of(image, path)


def _from_nifti(image: Any, path: Path) -> xr.DataArray:
    header = image.header
    units, intent = int(header["xyzt_units"]), int(header["intent_code"])
    unit, factor = _LENGTHS.get(units & 7, ("mm", 1.0))
    affine, code, unstated = _placement(image, path)
    attrs: dict[str, Any] = {
        "space": _SPACES.get(code, "scanner"),
        "kind": "labels" if intent in _LABELS else "image",
        **({"source_unit": unit} if unit != "mm" else {}),
    }
    extra = _read_extra(header)
    exact = np.asarray(extra.pop("affine", np.zeros((4, 4))), dtype=np.float64)
    ours = _in_step(exact, affine, extra, code, attrs["kind"])
    if ours:
        attrs |= extra
        affine = exact
    volume = from_image(
        image, path, _dims(image, units, intent), affine=np.diag([factor] * 3 + [1.0]) @ affine, **attrs
    )
    volume = _with_repetition_time(volume, header, path)
    unstated += ["space"] if code not in _SPACES else []
    unstated += ["unit"] if units & 7 not in _LENGTHS else []
    # Our own files list the properties that were assumed.
    return volume if ours else assume(volume, *unstated)


def _dims(image: Any, units: int, intent: int) -> tuple[str, ...]:
    """Return the names of the axes: the fourth is not time if the header says that it is a frequency or components."""
    components = intent in _COMPONENTS or (units & 56) in _FREQUENCIES
    return ("x", "y", "z", "c") if components and len(image.shape) == 4 else _FILE_DIMS


def _placement(image: Any, path: Path) -> tuple[Floats, int, list[str]]:
    """Return the affine in the unit of the file, the code of its transform, and properties that are assumed."""
    header = image.header
    code = int(header["sform_code"])
    if code != 0:
        affine = header.get_sform()
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        if (sizes == 0).any():
            raise GridError(f"{path}: voxels must have a positive size; got {sizes.tolist()}. Correct the sform")
        return affine, code, []
    steps = stated_steps(image)
    names = assumed_of_steps(steps, path)
    code = int(header["qform_code"])
    if code != 0:
        return header.get_qform(), code, names
    log.warning(
        "%s: neither qform nor sform is set, so the file states no orientation; its axes are assumed to run to the "
        "right, anterior and superior. Pass others with axes=, such as axes='LAS'",
        path,
    )
    return np.diag([*np.where(steps == 0, 1.0, np.abs(steps)), 1.0]), 0, [*names, "orientation"]


def _with_repetition_time(volume: xr.DataArray, header: Any, path: Path) -> xr.DataArray:
    """Return a series with its times in seconds, if the header states the step and its unit."""
    step, code = float(header["pixdim"][4]), int(header["xyzt_units"]) & 56
    if code in _SECONDS:
        return with_times(volume, step * _SECONDS[code], float(header["toffset"]) * _SECONDS[code])
    # Programs that know no repetition time write 0 or 1.
    if "t" in volume.dims and step not in (0.0, 1.0):
        log.warning("%s states a time step of %g without a unit, so it is not used; set xyzt_units", path, step)
    return volume


def _in_step(exact: Floats, affine: Floats, extra: dict[str, Any], code: int, kind: str) -> bool:
    """Return whether our note describes the header; a header that another program changed since is right."""
    if exact.shape != (4, 4) or _code(extra.get("space", "scanner")) != code:
        return False
    if (extra.get("kind") == "labels") != (kind == "labels"):
        return False
    # The header is in single precision; differences below 1e-5 of the finest spacing are rounding.
    finest = np.linalg.norm(affine[:3, :3], axis=0).min()
    return bool(np.allclose(exact, affine, rtol=1e-6, atol=1e-5 * finest))


def _code(space: str) -> int:
    return {name: code for code, name in _SPACES.items()}.get(space, 1)


def _read_extra(header: Any) -> dict[str, Any]:
    for extension in header.extensions:
        content = extension.get_content()
        text = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
        if text.startswith(_EXTRA):
            try:
                return _checked_extra(json.loads(text.removeprefix(_EXTRA).rstrip("\0")))
            except (ValueError, TypeError, AttributeError, RecursionError):
                return {}
    return {}


def _checked_extra(content: dict[str, Any]) -> dict[str, Any]:
    """Return the known entries of a note that have the right types."""
    texts = {key: content[key] for key in ("space", *_EXTRA_ATTRS) if isinstance(content.get(key), str)}
    affine = {"affine": np.asarray(content["affine"], dtype=np.float64).tolist()} if "affine" in content else {}
    listed = [name for name in content.get("assumed", []) if name in DEFAULTS]
    return affine | texts | ({"assumed": listed} if listed else {})


def write(volume: xr.DataArray, path: Path) -> None:
    """Write NIfTI-1, or NIfTI-2 if an axis is longer than 32,767 voxels."""
    spatial = [d for d in volume.attrs.get("source_axes", []) if d in SPATIAL] or ["x", "y", "z"]
    extra = ["t", "c"] if "c" in volume.dims else ["t"] if "t" in volume.dims else []
    data, affine = volume.mrh.in_order([*spatial, *extra])
    values = stored_values(data, volume.attrs["kind"], "NIfTI", _TYPES, rare=("uint32",))
    image_class: Any = nib.Nifti2Image if max(values.shape) > np.iinfo(np.int16).max else nib.Nifti1Image
    try:
        image = image_class(values, affine, dtype=values.dtype)
    except (nib.spatialimages.HeaderDataError, ValueError) as error:
        raise FormatError(f"NIfTI cannot hold {values.dtype} values; convert them first ({error})") from error
    image.header.set_xyzt_units("mm")
    # The quaternion is not written: it is in single precision and cannot hold a shear.
    image.set_sform(affine, _code(volume.mrh.space))
    image.set_qform(None, 0)
    _write_times(volume, image.header, path)
    if volume.attrs["kind"] == "labels":
        image.header.set_intent("label")
    extra_attrs = {key: volume.attrs[key] for key in _EXTRA_ATTRS if key in volume.attrs}
    text = _EXTRA + json.dumps({"affine": affine.tolist(), "space": volume.mrh.space, **extra_attrs})
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", text.encode()))
    nib.save(image, path)


def _write_times(volume: xr.DataArray, header: Any, path: Path) -> None:
    """Store the step and the first time of a series in seconds, or zeros."""
    if "t" not in volume.dims:
        return
    try:
        times = times_of(volume)
    except GridError as error:
        log.warning("%s is written without times: %s", path, error)
        times = None
    header["pixdim"][4], header["toffset"] = times or (0.0, 0.0)
    if times is not None:
        header.set_xyzt_units("mm", "sec")
