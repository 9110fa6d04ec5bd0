"""NIfTI-1 and -2; ANALYZE 7.5, MGH, AFNI and PAR/REC (read), through nibabel."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from mrhdata.errors import FormatError
from mrhdata.volume.box import Box
from mrhdata.volume.construct import SPATIAL, from_array
from mrhdata.volume.file_arrays import FileArray, check_length, format_errors, lazy

if TYPE_CHECKING:
    import xarray as xr

    from mrhdata.volume.grid import Floats

log = logging.getLogger("mrhdata")

#: NIfTI dims 1-5 in file order. The spatial names are placeholders that the affine reorders.
_FILE_DIMS = ("x", "y", "z", "t", "c")
_TO_MM = {"meter": ("m", 1e3), "micron": ("um", 1e-3)}
_SPACES = {"mni": "MNI152", "talairach": "Talairach"}

#: Prefix of a NIfTI comment with the content that its header cannot hold: the affine in double precision, the
#: name of the space, and the other attributes.
_EXTRA = "mrhdata "
_EXTRA_ATTRS = ("units", "modality", "kind", "assumed")


OPTIONS: tuple[str, ...] = ()


def read(path: Path) -> xr.DataArray:
    """Read NIfTI (``.nii``, ``.nii.gz``, ``.hdr``/``.img``), ANALYZE, MGH, AFNI or PAR/REC."""
    image = open_image(path)
    header = image.header
    if isinstance(image, nib.Nifti1Pair):
        return _from_nifti(image, path)
    if isinstance(image, nib.AnalyzeImage):
        log.warning(
            "%s: ANALYZE has no orientation; its first axis is assumed to run from right to left. "
            "Pass another with axes=, such as axes='RAS'",
            path.name,
        )
    elif isinstance(image, nib.brikhead.AFNIImage) and len(image.shape) == 4:
        # Sub-bricks are times or statistics; only TAXIS_NUMS distinguishes them.
        return from_image(image, path, ("x", "y", "z", "t" if "TAXIS_NUMS" in header.info else "c"))
    return from_image(image, path, _FILE_DIMS)


def _from_nifti(image: Any, path: Path) -> xr.DataArray:
    header = image.header
    unit, factor = _TO_MM.get(header.get_xyzt_units()[0], ("mm", 1.0))
    attrs: dict[str, Any] = {
        "space": _SPACES.get(header.get_value_label("sform_code"), "scanner"),
        "kind": "labels" if header.get_intent("label")[0] == "label" else "image",
    }
    if unit != "mm":
        attrs["source_unit"] = unit
    affine = image.affine
    extra = _read_extra(header)
    # If another program changed the sform since, the sform is right.
    exact = np.asarray(extra.pop("affine", np.zeros((4, 4))), dtype=np.float64)
    # The header is in single precision; differences below 1e-5 of the finest spacing are rounding.
    finest = np.linalg.norm(affine[:3, :3], axis=0).min()
    if exact.shape == (4, 4) and np.allclose(exact, affine, rtol=1e-6, atol=1e-5 * finest):
        attrs |= extra
        affine = exact
    return from_image(image, path, _FILE_DIMS, affine=np.diag([factor, factor, factor, 1.0]) @ affine, **attrs)


def _read_extra(header: Any) -> dict[str, Any]:
    for extension in header.extensions:
        content = extension.get_content()
        text = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
        if text.startswith(_EXTRA):
            try:
                content = json.loads(text.removeprefix(_EXTRA).rstrip("\0"))
                return {k: v for k, v in content.items() if k in ("affine", "space", *_EXTRA_ATTRS)}
            except (ValueError, AttributeError):
                return {}
    return {}


def open_image(path: Path) -> Any:
    """Open any file that nibabel supports; errors name the path."""
    with format_errors(path), warnings.catch_warnings():
        # MINC may declare its spacing as neither regular nor irregular; nibabel then assumes regular.
        warnings.filterwarnings("ignore", message="Invalid spacing declaration")
        image: Any = nib.load(path)
        _ = image.affine
    fields = image.get_data_dtype().fields
    if fields is not None and not {"R", "G", "B"} <= set(fields):
        raise FormatError(f"{path} holds {image.get_data_dtype()} tuples, not numbers; split them into channels first")
    return image


def from_image(
    image: Any, path: Path, dims: tuple[str, ...], affine: Floats | None = None, **attrs: Any
) -> xr.DataArray:
    """Return a lazy volume of a nibabel image whose axes are `dims`; colours become channels."""
    shape = tuple(int(n) for n in image.shape)
    if any(n < 1 for n in shape) or not 1 <= len(shape) <= len(_FILE_DIMS):
        raise FormatError(f"{path} must have 1 to 5 axes, none of them empty; got shape {shape}")
    _check_length(image, path)
    # Files may omit trailing axes, or have some of length 1 (ANALYZE has four axes).
    shape = (*shape, *(1,) * (3 - len(shape)))
    reader = _ProxyReader(image.dataobj, shape)
    data = lazy(FileArray(reader.shape, reader.dtype, reader, path), reader.slowest)
    dims = (*dims[: len(shape)], "c") if len(reader.shape) > len(shape) else dims[: len(shape)]
    keep = [i for i, d in enumerate(dims) if d in SPATIAL or reader.shape[i] > 1]
    data = data[tuple(slice(None) if i in keep else 0 for i in range(len(dims)))]
    names = [dims[i] for i in keep]
    if len(set(names)) < len(names):
        raise FormatError(f"{path} has colours and a fifth axis of shape {shape}; split them into channels first")
    affine = image.affine if affine is None else affine
    volume = from_array(data, affine=affine, dims=names, name=path.name.split(".")[0], **attrs)
    return volume if reader.channels is None or "c" not in names else volume.assign_coords(c=reader.channels)


class _ProxyReader:
    """Reader of boxes of scaled values of a nibabel proxy.

    `slowest` is the axis along which slabs are read, None for compressed files.
    """

    def __init__(self, proxy: Any, shape: tuple[int, ...]) -> None:
        self._proxy, self._spatial = proxy, shape
        self.channels: list[str] | None = None
        minc = hasattr(proxy, "minc_file")
        if type(proxy) is nib.arrayproxy.ArrayProxy:
            stored = proxy.dtype if (proxy.slope, proxy.inter) == (1.0, 0.0) else np.dtype(np.float64)
        else:
            # The proxies of AFNI and Philips scale in their own ways; the type of one voxel is that of all.
            stored = np.dtype(np.float64) if minc else np.asanyarray(proxy[(slice(0, 1),) * len(proxy.shape)]).dtype
        self.dtype, self.shape = stored, shape
        if stored.fields is not None:
            self.channels = list(stored.fields)
            self.dtype, self.shape = np.dtype(np.uint8), (*shape, len(self.channels))
        compressed = str(getattr(proxy, "file_like", "")).endswith((".gz", ".bz2", ".zst", ".mgz"))
        self.slowest = None if compressed else 0 if minc else len(shape) - 1

    def __call__(self, box: Box) -> Any:
        selection = box.slices
        spatial = selection[: len(self._spatial)]
        if self._spatial == tuple(self._proxy.shape):
            values = np.asanyarray(self._proxy[spatial])
        else:
            values = np.asanyarray(self._proxy).reshape(self._spatial)[spatial]
        if self.channels is None:
            return values
        return np.stack([values[name] for name in self.channels], axis=-1)[..., selection[-1]]


def _check_length(image: Any, path: Path) -> None:
    proxy = image.dataobj
    data_file = getattr(proxy, "file_like", None)
    if not hasattr(proxy, "offset") or not isinstance(data_file, str | Path):
        return
    if not Path(data_file).exists():
        raise FormatError(f"{path} has no data file {data_file}; keep header and image together")
    if not str(data_file).endswith((".gz", ".bz2", ".zst", ".mgz")):
        check_length(
            Path(data_file), int(proxy.offset) + proxy.dtype.itemsize * int(np.prod(image.shape, dtype=object))
        )


def write(volume: xr.DataArray, path: Path) -> None:
    """Write NIfTI-1, or NIfTI-2 if an axis is longer than 32,767 voxels."""
    spatial = [d for d in volume.attrs.get("source_axes", []) if d in SPATIAL] or ["x", "y", "z"]
    extra = ["t", "c"] if "c" in volume.dims else ["t"] if "t" in volume.dims else []
    data, affine = volume.mrh.in_order([*spatial, *extra])
    values = np.asarray(data)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    image_class: Any = nib.Nifti2Image if max(values.shape) > np.iinfo(np.int16).max else nib.Nifti1Image
    try:
        image = image_class(values, affine, dtype=values.dtype)
    except (nib.spatialimages.HeaderDataError, ValueError) as error:
        raise FormatError(f"NIfTI cannot hold {values.dtype} values; convert them first ({error})") from error
    image.header.set_xyzt_units("mm")
    code = {name: label for label, name in _SPACES.items()}.get(volume.mrh.space, "scanner")
    # The quaternion is not written: it is in single precision and cannot hold a shear.
    image.set_sform(affine, code)
    image.set_qform(None, 0)
    if volume.attrs["kind"] == "labels":
        image.header.set_intent("label")
    extra_attrs = {key: volume.attrs[key] for key in _EXTRA_ATTRS if key in volume.attrs}
    text = _EXTRA + json.dumps({"affine": affine.tolist(), "space": volume.mrh.space, **extra_attrs})
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", text.encode()))
    nib.save(image, path)
