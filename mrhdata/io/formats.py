"""Volumes in and out of files: one module per family of formats, chosen by the file's ending.

Each module has ``read(path) -> volume`` and, where the format can be written, ``write(volume, path)``.
A new format is one file and one row of `FORMATS`.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from mrhdata._runtime.atomic import atomic_write
from mrhdata.errors import FormatError

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

#: Ending -> module, and whether files with it are written. Longest endings first.
FORMATS: dict[str, tuple[str, bool]] = {
    ".head.gz": ("nifti", False),
    ".nii.gz": ("nifti", True),
    ".hdr.gz": ("nifti", False),
    ".img.gz": ("nifti", False),
    ".brik.gz": ("nifti", False),
    ".ome.tif": ("tiff", True),
    ".ome.tiff": ("tiff", True),
    ".zarr": ("omezarr", True),
    ".head": ("nifti", False),
    ".brik": ("nifti", False),
    ".tiff": ("tiff", True),
    ".hdf5": ("hdf5", False),
    ".nhdr": ("itk", False),
    ".nrrd": ("itk", True),
    ".nii": ("nifti", True),
    ".hdr": ("nifti", False),
    ".img": ("nifti", False),
    ".mgh": ("nifti", False),
    ".mgz": ("nifti", False),
    ".par": ("nifti", False),
    ".rec": ("nifti", False),
    ".mnc": ("minc", True),
    ".mha": ("itk", True),
    ".mhd": ("itk", False),
    ".tif": ("tiff", True),
    ".dcm": ("dicom", False),
    ".ima": ("dicom", False),
    ".hdf": ("hdf5", False),
    ".mat": ("hdf5", False),
    ".h5": ("hdf5", False),
}


class Options(TypedDict, total=False):
    """What may be said about a file when it is read; see :func:`read`."""

    axes: str | None
    unit: str | None
    spacing: Sequence[float] | float | None
    origin: Sequence[float] | None
    space: str | None
    kind: str | None
    units: str | None
    modality: str | None
    name: str | None
    dataset: str | None
    level: int
    time: int | None
    storage_options: dict[str, Any] | None


#: Options that a reader may take itself; all others are applied to what it returns.
_OF_READERS = ("dataset", "level", "storage_options")
_GEOMETRY = ("axes", "unit", "spacing", "origin")
#: Last word of a file's name -> kind of its integers. Few formats have a field for it, and few programs fill that in.
_KIND_OF_WORD = {**dict.fromkeys(("seg", "dseg", "aseg", "label", "labels", "annotation"), "labels"), "mask": "mask"}


def read(path: str | os.PathLike[str], **options: Unpack[Options]) -> xr.DataArray:
    """Read a volume, lazily where its format allows it.

    Parameters
    ----------
    path : path or URL
        A file: NIfTI, ANALYZE, MINC, NRRD, MHA or MHD, MGH, AFNI, PAR/REC, TIFF, DICOM, HDF5, MATLAB.
        A folder: OME-Zarr, a stack of TIFF or PNG planes, a DICOM series. A pattern of planes, such as
        ``planes/*.tif``. A URL (``http``, ``https``, ``s3``) of an OME-Zarr.
    axes : str, optional
        Where the header lies: the directions in which the file's axes point, such as ``"PIR"``, in the
        order in which the format lists them (x, y, z in NIfTI, NRRD and DICOM; fastest first in MINC;
        plane, row, column in stacks, TIFF, HDF5 and OME-Zarr; row, column, plane in MATLAB).
    unit : {"mm", "um", "nm", "angstrom", "cm", "m"}, optional
        Unit of the file's lengths, and of `spacing` and `origin`; millimetres where it is not given.
    spacing : float or three, optional
        Distance of voxel centres along the file's axes.
    origin : three float, optional
        World position (X, Y, Z, RAS+) of the first voxel's centre; 0 where `axes` is given without it.
    space, kind, units, modality, name : str, optional
        Set these attributes whatever the file says. ``kind="labels"`` and ``"mask"`` turn scaled
        values back into integers, and fail where they are none. Where neither the file nor you say it, whole
        numbers in a file whose name ends in ``seg``, ``dseg``, ``label``, ``annotation`` or ``mask``, such as
        ``sub-01_seg.nii.gz`` or ``annotation_25.nrrd``, are that.
    dataset : str, optional
        Which array of an HDF5 or MATLAB file, series of a DICOM folder, or image of a Zarr store.
    level : int, optional
        Level of an OME-Zarr; 0 is the finest, -1 the coarsest.
    time : int, optional
        Number of the time of a series that is read alone, from 0.
    storage_options : dict, optional
        For a URL, such as ``{"anon": True}``.

    Returns
    -------
    volume : xarray.DataArray
        Dask-backed, dims ``t, c, z, y, x`` (those that exist), world RAS+ millimetres. Complex values
        are read as their magnitude, with a warning.

    Raises
    ------
    FormatError
        The file is missing, damaged, or of an unknown format; for damage beyond the header, when
        the values are computed.
    GridError
        A geometry that is given is none.

    Examples
    --------
    >>> import tempfile, numpy as np, mrhdata
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mrhdata.write(mrhdata.volume.from_array(np.ones((2, 3, 4)), spacing=(1, 1, 2)), folder + "/a.nii")
    ...     mrhdata.read(folder + "/a.nii").mrh.spacing.tolist()
    [1.0, 1.0, 2.0]
    """
    from mrhdata.volume.construct import KINDS, describe
    from mrhdata.volume.file_arrays import as_integers, magnitude
    from mrhdata.volume.overrides import corrected

    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        raise TypeError(f"read() has no options {sorted(unknown)}; it has {sorted(Options.__annotations__)}")
    if options.get("kind") not in (None, *KINDS):
        raise FormatError(f"kind is one of {', '.join(KINDS)}, not {options['kind']!r}")
    volume = _read(path, {k: v for k, v in options.items() if k in _OF_READERS and v is not None})
    if volume.dtype.kind == "c":
        log.warning("%s holds complex values; their magnitude is read", path)
        volume = magnitude(volume)
    volume = corrected(volume, **{key: options.get(key) for key in _GEOMETRY})  # type: ignore[arg-type]
    if (time := options.get("time")) is not None:
        volume = _at_time(volume, path, time)
    if volume.attrs.get("spacing_stated") is False:
        log.warning("%s states no voxel size; 1 mm is taken. Give it with spacing= and unit=", path)
    named = {key: options.get(key) for key in ("space", "kind", "units", "modality")}
    if volume.attrs["kind"] == "image":
        named["kind"] = named["kind"] or _kind_by_name(path, volume)
    volume = describe(volume, name=options.get("name") or volume.name, **named)
    return as_integers(volume, str(path)) if volume.attrs["kind"] != "image" else volume


def _at_time(volume: xr.DataArray, path: str | os.PathLike[str], time: int) -> xr.DataArray:
    """One time of a series."""
    times = volume.sizes.get("t", 1)
    if not 0 <= time < times:
        raise FormatError(f"{path} has the times 0 to {times - 1}, not {time}")
    return volume.isel(t=time, drop=True) if "t" in volume.dims else volume


def _kind_by_name(path: str | os.PathLike[str], volume: xr.DataArray) -> str | None:
    """What whole numbers are by the last word of the file's name, resolutions aside; a store of Zarr says it itself."""
    words = re.split(r"[^A-Za-z0-9]+", Path(str(path)).name.partition(".")[0])
    last = next((word.lower() for word in reversed(words) if word[:1].isalpha()), "")
    whole = volume.dtype.kind in "iub" and not str(path).rstrip("/").lower().endswith(".zarr")
    return _KIND_OF_WORD.get(last) if whole else None


def _read(path: str | os.PathLike[str], options: dict[str, Any]) -> xr.DataArray:
    text = os.fspath(path)
    if "://" in text:
        if not text.rstrip("/").lower().endswith(".zarr") and "dataset" not in options and ".zarr/" not in text.lower():
            raise FormatError(f"{text}: only OME-Zarr is read over the network; download the file first")
        return importlib.import_module("mrhdata.io.omezarr.store").read(text, **options)
    where = Path(text)
    if any(c in where.name for c in "*?[") and not where.exists():
        return _stack(where)
    if not where.exists():
        raise FormatError(f"{where} does not exist; check the path")
    module = _folder_module(where) if where.is_dir() else _module_for(where)
    if module is None:
        return _stack(where)
    taken = inspect.signature(module.read).parameters
    unused = [key for key in options if key not in taken and not (key == "level" and options[key] in (0, -1))]
    if unused:
        raise FormatError(f"{where} is read without {' or '.join(unused)}=; leave it out")
    return module.read(where, **{key: value for key, value in options.items() if key in taken})


def _folder_module(folder: Path) -> ModuleType | None:
    """Module that reads a folder; None for a stack of planes."""
    names = sorted(p.name for p in folder.iterdir())
    if folder.name.lower().endswith(".zarr") or {"zarr.json", ".zgroup", ".zattrs", ".zarray"} & set(names):
        return importlib.import_module("mrhdata.io.omezarr.store")
    from mrhdata.io.tiff import planes_of

    if planes_of(folder):
        return None
    dicom = importlib.import_module("mrhdata.io.dicom")
    if any(dicom.holds(folder / n) for n in names[:20] if (folder / n).is_file()):
        return dicom
    raise FormatError(f"{folder} is no OME-Zarr, and holds neither TIFF or PNG planes nor DICOM files")


def _stack(where: Path) -> xr.DataArray:
    from mrhdata.io import tiff

    paths = tiff.planes_of(where)
    if not paths:
        raise FormatError(f"{where}: no TIFF or PNG file matches; check the pattern")
    return tiff.read_stack(paths, where.name if where.is_dir() else where.parent.name)


def write(volume: xr.DataArray, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a volume; its axes go back to the order that they had in the file it came from.

    The file appears under its name only when it is complete.

    Parameters
    ----------
    volume : xarray.DataArray
    path : path
        Ends in ``.nii``, ``.nii.gz``, ``.mnc`` (MINC 2), ``.nrrd``, ``.mha``, ``.tif`` or ``.ome.tif``
        (OME-TIFF), or ``.zarr`` (OME-Zarr).
    overwrite : bool
        Replace what is there.

    Raises
    ------
    FormatError
        The ending cannot be written, the format cannot hold the values, or `path` exists.
    """
    path = Path(path)
    writer = writer_of(path)
    from mrhdata.volume.construct import DIMS

    with atomic_write(path, overwrite=overwrite) as draft:
        writer.write(volume.transpose(*(d for d in DIMS if d in volume.dims)), draft)


def writer_of(path: str | os.PathLike[str]) -> ModuleType:
    """The module that writes files of this ending.

    Raises
    ------
    FormatError
        None does: what takes long asks before it begins.
    """
    name = Path(path).name
    module, writable = next((row for ending, row in FORMATS.items() if name.lower().endswith(ending)), ("", False))
    if not writable:
        endings = ", ".join(e for e, (_, can) in FORMATS.items() if can)
        raise FormatError(f"{name} cannot be written; the endings that can are {endings}")
    return importlib.import_module(f"mrhdata.io.{module}")


def written_as(path: str | os.PathLike[str], otherwise: str = ".nii.gz") -> str:
    """Ending that what comes from a file is written with: its own where that can be written.

    Examples
    --------
    >>> written_as("sub-01_T1w.mnc"), written_as("brain.mgz")
    ('.mnc', '.nii.gz')
    """
    name = Path(path).name.lower()
    return next((ending for ending, (_, can) in FORMATS.items() if can and name.endswith(ending)), otherwise)


def _module_for(path: Path) -> ModuleType:
    for ending, (module, _) in FORMATS.items():
        if path.name.lower().endswith(ending):
            return importlib.import_module(f"mrhdata.io.{module}")
    if path.is_file():
        dicom = importlib.import_module("mrhdata.io.dicom")
        if dicom.holds(path):
            return dicom
    raise FormatError(f"{path.name} has no ending that is known; known are {', '.join(FORMATS)}")
