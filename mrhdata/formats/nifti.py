"""NIfTI-1 and -2, and ANALYZE 7.5 (read), through nibabel."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from mrhdata.errors import FormatError
from mrhdata.formats._lazy import DAMAGE, Slices, damaged, lazy
from mrhdata.volume import from_array

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

#: NIfTI dims 1-5 in file order, as our dims; the spatial names are placeholders that an affine reorders.
_FILE_DIMS = ("x", "y", "z", "t", "c")
_TO_MM = {"meter": 1e3, "micron": 1e-3}
_SPACES = {"mni": "MNI152", "talairach": "Talairach"}


def read(path: Path) -> xr.DataArray:
    """Read NIfTI (``.nii``, ``.nii.gz``, ``.hdr``/``.img``) or ANALYZE."""
    image = open_image(path)
    header = image.header
    if not isinstance(image, nib.Nifti1Pair):
        log.warning("%s: ANALYZE has no orientation; its first axis is taken to run from right to left", path.name)
        return from_image(image, path, _FILE_DIMS)
    space = _SPACES.get(header.get_value_label("sform_code"), "scanner")
    kind = "labels" if header.get_intent("label")[0] == "label" else "image"
    factor = _TO_MM.get(header.get_xyzt_units()[0], 1.0)
    return from_image(image, path, _FILE_DIMS, factor=factor, space=space, kind=kind)


def open_image(path: Path) -> Any:
    """Open any file that nibabel knows; the error names the path."""
    try:
        image: Any = nib.load(path)
    except (*DAMAGE, nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError) as error:
        raise damaged(path, error) from error
    if image.get_data_dtype().fields is not None:
        raise FormatError(f"{path} holds {image.get_data_dtype()} tuples, not numbers; split them into channels first")
    return image


def from_image(image: Any, path: Path, dims: tuple[str, ...], factor: float = 1.0, **attrs: Any) -> xr.DataArray:
    """Lazy volume of a nibabel image whose axes are `dims`, its affine times `factor` in mm."""
    proxy = image.dataobj
    shape = tuple(int(n) for n in image.shape)
    if any(n < 1 for n in shape) or len(shape) > len(_FILE_DIMS):
        raise FormatError(f"{path} has shape {shape}; between 1 and 5 axes, none of them empty, can be read")
    _check_length(image, path)
    # Files may leave out trailing axes, or carry ones of length 1 (ANALYZE has four).
    shape = (*shape, *(1,) * (3 - len(shape)))
    stored = _Stored(proxy, shape)
    data = lazy(Slices(shape, stored.dtype, stored, path), stored.slowest)
    keep = [i for i, d in enumerate(dims[: len(shape)]) if d in "zyx" or shape[i] > 1]
    data = data[tuple(slice(None) if i in keep else 0 for i in range(len(shape)))]
    affine = np.diag([factor, factor, factor, 1.0]) @ image.affine
    return from_array(data, affine=affine, dims=[dims[i] for i in keep], name=path.name.split(".")[0], **attrs)


class _Stored:
    """Values of a nibabel proxy, scaled; slabs along the slowest axis where the file is not compressed."""

    def __init__(self, proxy: Any, shape: tuple[int, ...]) -> None:
        self._proxy, self._shape = proxy, shape
        scaled = getattr(proxy, "slope", 1.0) != 1.0 or getattr(proxy, "inter", 0.0) != 0.0
        minc = not hasattr(proxy, "slope")
        self.dtype = np.dtype(np.float64) if scaled or minc else proxy.dtype
        compressed = str(getattr(proxy, "file_like", "")).endswith((".gz", ".bz2", ".zst"))
        self.slowest = None if compressed else 0 if minc else len(shape) - 1

    def __call__(self, key: Any) -> Any:
        if self._shape == tuple(self._proxy.shape):
            return self._proxy[key]
        return np.asanyarray(self._proxy).reshape(self._shape)[key]


def _check_length(image: Any, path: Path) -> None:
    """An uncompressed file must be as long as its header says: better now than hours later."""
    proxy = image.dataobj
    if not hasattr(proxy, "offset") or str(proxy.file_like).endswith((".gz", ".bz2", ".zst")):
        return
    needed = proxy.offset + proxy.dtype.itemsize * int(np.prod(image.shape))
    try:
        there = Path(proxy.file_like).stat().st_size
    except OSError as error:
        raise FormatError(f"{path} has no data file {proxy.file_like}; keep header and image together") from error
    if there < needed:
        raise FormatError(
            f"{path} is truncated: its header asks for {needed} bytes and there are {there}; copy it again"
        )


def write(volume: xr.DataArray, path: Path) -> None:
    """Write NIfTI-1, or NIfTI-2 where an axis is longer than 32,767 voxels."""
    source = volume.attrs.get("source_axes", [])
    spatial = [d for d in source if d in "zyx"] or ["x", "y", "z"]
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
    # The quaternion is left out: it is single precision and cannot hold a shear.
    image.set_sform(affine, code)
    image.set_qform(None, 0)
    if volume.attrs["kind"] == "labels":
        image.header.set_intent("label")
    nib.save(image, path)
