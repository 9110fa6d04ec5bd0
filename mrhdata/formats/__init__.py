"""Volumes in and out of files: one module per family of formats, chosen by the file's ending.

Each module has ``read(path) -> volume`` and, where the format can be written, ``write(volume, path)``.
A new format is one file and one row of `FORMATS`.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from mrhdata.drafting import appearing
from mrhdata.errors import FormatError

if TYPE_CHECKING:
    import xarray as xr

#: Ending -> module, and whether files with it are written. Longest endings first.
FORMATS: dict[str, tuple[str, bool]] = {
    ".nii.gz": ("nifti", True),
    ".hdr.gz": ("nifti", False),
    ".img.gz": ("nifti", False),
    ".zarr": ("omezarr", True),
    ".nii": ("nifti", True),
    ".hdr": ("nifti", False),
    ".img": ("nifti", False),
    ".mnc": ("minc", True),
    ".nrrd": ("itk", True),
    ".nhdr": ("itk", False),
    ".mha": ("itk", True),
    ".mhd": ("itk", False),
}


def read(
    path: str | os.PathLike[str],
    *,
    space: str | None = None,
    kind: str | None = None,
    units: str | None = None,
    modality: str | None = None,
    name: str | None = None,
) -> xr.DataArray:
    """Read a volume, lazily where its format allows it.

    Parameters
    ----------
    path : path
        NIfTI, ANALYZE, MINC 1 or 2, NRRD, MHA or MHD file, or OME-Zarr folder.
    space, kind, units, modality, name : str, optional
        Set these attributes whatever the file says. ``kind="labels"`` and ``"mask"`` turn scaled
        values back into integers, and fail where they are none.

    Returns
    -------
    volume : xarray.DataArray
        Dask-backed, dims ``t, c, z, y, x`` (those that exist), world RAS+ millimetres.

    Raises
    ------
    FormatError
        The file is missing, damaged, or of an unknown format; for damage beyond the header, when
        the values are computed.

    Examples
    --------
    >>> import tempfile, numpy as np, mrhdata
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mrhdata.write(mrhdata.volume.from_array(np.ones((2, 3, 4)), spacing=(1, 1, 2)), folder + "/a.nii")
    ...     mrhdata.read(folder + "/a.nii").mrh.spacing.tolist()
    [1.0, 1.0, 2.0]
    """
    from mrhdata.formats._lazy import as_integers
    from mrhdata.volume import describe

    path = Path(path)
    reader, _ = _module_for(path)
    if not path.exists():
        raise FormatError(f"{path} does not exist; check the path")
    volume: xr.DataArray = reader.read(path)
    volume = describe(volume, space=space, kind=kind, units=units, modality=modality, name=name or volume.name)
    return as_integers(volume, path) if volume.attrs["kind"] != "image" else volume


def write(volume: xr.DataArray, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a volume; its axes go back to the order that they had in the file it came from.

    The file appears under its name only when it is complete.

    Parameters
    ----------
    volume : xarray.DataArray
    path : path
        Ends in ``.nii``, ``.nii.gz``, ``.mnc`` (MINC 2), ``.nrrd``, ``.mha`` or ``.zarr`` (OME-Zarr).
    overwrite : bool
        Replace what is there.

    Raises
    ------
    FormatError
        The ending cannot be written, the format cannot hold the values, or `path` exists.
    """
    path = Path(path)
    writer, writable = _module_for(path)
    if not writable:
        endings = ", ".join(e for e, (_, can) in FORMATS.items() if can)
        raise FormatError(f"{path.name} cannot be written; the endings that can are {endings}")
    from mrhdata.volume import DIMS

    with appearing(path, overwrite=overwrite) as draft:
        writer.write(volume.transpose(*(d for d in DIMS if d in volume.dims)), draft)


def _module_for(path: Path) -> tuple[ModuleType, bool]:
    for ending, (module, writable) in FORMATS.items():
        if path.name.lower().endswith(ending):
            return importlib.import_module(f"mrhdata.formats.{module}"), writable
    raise FormatError(f"{path.name} has no ending that is known; known are {', '.join(FORMATS)}")
