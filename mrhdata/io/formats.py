"""Reading and writing of volumes: one module per family of formats, chosen by the file's ending.

Each module is a :class:`~mrhdata.io.reader.Reader` and, if the format can be written, has ``write(volume, path)``.
A new format is one file and one row of `FORMATS`.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast

from mrhdata._runtime.arguments import check_path
from mrhdata._runtime.atomic import atomic_write
from mrhdata._runtime.child_process import ChildReader
from mrhdata._runtime.memory import parse_memory, remaining_memory
from mrhdata.errors import FormatError, MrhdataError, ParameterError

if TYPE_CHECKING:
    import xarray as xr

    from mrhdata.io.reader import Reader

log = logging.getLogger("mrhdata")

#: Ending -> module, and whether such files can be written. Longer endings come first.
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
    ".btf": ("tiff", False),
    ".svs": ("tiff", False),
    ".dcm": ("dicom", False),
    ".ima": ("dicom", False),
    ".hdf": ("hdf5", False),
    ".mat": ("hdf5", False),
    ".h5": ("hdf5", False),
}


class Options(TypedDict, total=False):
    """Options of :func:`read`."""

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
    series: int | str | None
    level: int
    time: int | None
    storage_options: dict[str, Any] | None


#: Modules that write from memory.
_WHOLE = ("nifti", "itk", "minc")
#: Options that a reader may accept; `read` applies all others to the volume.
_READER_OPTIONS = ("dataset", "series", "level", "storage_options")
_GEOMETRY = ("axes", "unit", "spacing", "origin")
#: Assumed properties about which `read` warns. Most files of some formats state no orientation and no space, so these
#: are listed in the attributes and by :func:`mrhdata.io.inspection.inspect`, and warned about where they matter.
_WARNED = ("spacing", "unit", "values")
#: Last word of a file's name -> kind of its integers. Few formats have a field for the kind, and few programs set it.
_KIND_OF_WORD = {**dict.fromkeys(("seg", "dseg", "aseg", "label", "labels", "annotation"), "labels"), "mask": "mask"}


def read(path: str | os.PathLike[str], *, safe: bool = False, **options: Unpack[Options]) -> xr.DataArray:
    """Read a volume, lazily if its format allows it.

    Parameters
    ----------
    path : path or URL
        File: NIfTI, ANALYZE, MINC, NRRD, MHA or MHD, MGH, AFNI, PAR/REC, TIFF, DICOM, HDF5, MATLAB.
        Folder: OME-Zarr, a stack of TIFF or PNG planes, a DICOM series. Pattern of planes, such as
        ``planes/*.tif``, or ``brain_Z{z}_C{c}.tif`` for planes of several channels (``{c}``) and times
        (``{t}``). URL (``http``, ``https``, ``s3``) of an OME-Zarr.
    safe : bool
        Whether to read the header of an untrusted file in a child process first, so that a file that ends the process
        of a library, or that takes minutes, is an error. Voxels are read later, in this process;
        :func:`mrhdata.io.inspect` reads them in the child too.
    axes : str, optional
        True directions of the file's axes if the header is wrong, such as ``"PIR"``, in the order of
        the format (x, y, z in NIfTI, NRRD and DICOM; fastest first in MINC;
        plane, row, column in stacks, TIFF, HDF5 and OME-Zarr; row, column, plane in MATLAB).
    unit : {"mm", "um", "nm", "angstrom", "cm", "m"}, optional
        Unit of the file's lengths, and of `spacing` and `origin`; millimetres by default.
    spacing : float or three, optional
        Distance between voxel centres along the file's axes.
    origin : three float, optional
        World position (X, Y, Z, RAS+) of the first voxel's centre; 0 by default if `axes` is passed.
    space, kind, units, modality, name : str, optional
        Attributes that replace those of the file. ``kind="labels"`` and ``"mask"`` convert scaled values
        to integers, and raise DataError if they are not whole. By default, whole numbers are labels or a
        mask if the file's name ends in ``seg``, ``dseg``, ``label``, ``annotation`` or ``mask``, such as
        ``sub-01_seg.nii.gz`` or ``annotation_25.nrrd``, also if they are stored as floating-point numbers.
    dataset : str, optional
        Name of an array of an HDF5 or MATLAB file, a series of a DICOM folder, or an image of a Zarr store.
    series : int or str, optional
        Index or name of one of several images of a TIFF file.
    level : int, optional
        Level of an OME-Zarr or of a pyramid in a TIFF file; 0 is the finest, -1 the coarsest.
    time : int, optional
        Index of one time of a series, from 0; all times by default.
    storage_options : dict, optional
        Options of the file system of a URL, such as ``{"anon": True}``.

    Returns
    -------
    volume : xarray.DataArray
        Dask-backed volume, dims ``t, c, z, y, x`` (those that exist), world RAS+ millimetres. Complex
        values are read as their magnitude, with a warning.

    Raises
    ------
    FormatError
        The file is missing, damaged, or of an unknown format; damage beyond the header is found when
        the values are computed.
    ParameterError
        An option has a value that it cannot have.

    Examples
    --------
    >>> import tempfile, numpy as np, mrhdata
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mrhdata.write(mrhdata.volume.from_array(np.ones((2, 3, 4)), spacing=(1, 1, 2)), folder + "/a.nii")
    ...     mrhdata.read(folder + "/a.nii").mrh.spacing.tolist()
    [1.0, 1.0, 2.0]
    """
    from mrhdata.volume.assumptions import sentences, stated
    from mrhdata.volume.construct import KINDS, describe
    from mrhdata.volume.file_arrays import as_integers, magnitude
    from mrhdata.volume.overrides import corrected

    check_path("path", path)
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        raise TypeError(f"read() has no options {sorted(unknown)}; it has {sorted(Options.__annotations__)}")
    if options.get("kind") not in (None, *KINDS):
        raise ParameterError(f"kind must be one of {', '.join(KINDS)}; got {options['kind']!r}")
    if safe:
        with ChildReader("mrhdata.io.formats:check_header") as child:
            child.read(path, options, quiet=True)
    with _naming(path):
        volume = _read(path, {k: v for k, v in options.items() if k in _READER_OPTIONS and v is not None})
    if volume.dtype.kind == "c":
        log.warning("%s holds complex values; their magnitude is read", path)
        volume = magnitude(volume)
    volume = corrected(volume, **{key: options.get(key) for key in _GEOMETRY})  # type: ignore[arg-type]
    if (time := options.get("time")) is not None:
        volume = _select_time(volume, path, time)
    if options.get("space") is not None:
        volume = stated(volume, "space")
    for sentence in sentences(volume, _WARNED):
        log.warning("%s: %s", path, sentence)
    attributes = {key: options.get(key) for key in ("space", "kind", "units", "modality")}
    if volume.attrs["kind"] == "image":
        attributes["kind"] = attributes["kind"] or _kind_by_name(path, volume)
    volume = describe(volume, name=options.get("name") or volume.name, **attributes)
    return as_integers(volume, str(path)) if volume.attrs["kind"] != "image" else volume


def contents(path: str | os.PathLike[str]) -> list[str]:
    """Return a line for each image of a file or folder of a format that may hold several; none for a URL.

    Each line begins with the option of :func:`read` that chooses the image.
    """
    reader = None if "://" in os.fspath(path) else _local_reader(Path(path))
    find = getattr(reader, "contents", None)
    return [] if find is None else find(Path(path))


def check_header(path: str | os.PathLike[str], **options: Unpack[Options]) -> None:
    """Raise the error of :func:`read` if a header cannot be read."""
    read(path, **options)


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put the file's name before an error of its content, such as that of an affine."""
    try:
        yield
    except MrhdataError as error:
        if Path(str(path)).name in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def _select_time(volume: xr.DataArray, path: str | os.PathLike[str], time: int) -> xr.DataArray:
    """Return one time of a series."""
    times = volume.sizes.get("t", 1)
    if not 0 <= time < times:
        raise ParameterError(f"time must be 0 to {times - 1} for {path}; got {time}")
    return volume.isel(t=time, drop=True) if "t" in volume.dims else volume


def _kind_by_name(path: str | os.PathLike[str], volume: xr.DataArray) -> str | None:
    """Guess the kind of whole numbers from the last word of the file's name, such as ``sub-01_seg.nii.gz``.

    Numbers such as a resolution do not count. Zarr stores carry their kind in the metadata. Of values stored as
    floating-point numbers, as many programs store labels, a few planes are looked at.
    """
    from mrhdata.volume.kinds import are_whole, some_planes

    words = re.split(r"[^A-Za-z0-9]+", Path(str(path)).name.partition(".")[0])
    last = next((word.lower() for word in reversed(words) if word[:1].isalpha()), "")
    kind = _KIND_OF_WORD.get(last)
    if kind is None or str(path).rstrip("/").lower().endswith(".zarr"):
        return None
    return kind if volume.dtype.kind in "iub" or are_whole(some_planes(volume)) else None


def _read(path: str | os.PathLike[str], options: dict[str, Any]) -> xr.DataArray:
    text = os.fspath(path)
    if "://" in text:
        if not text.rstrip("/").lower().endswith(".zarr") and "dataset" not in options and ".zarr/" not in text.lower():
            raise FormatError(f"{text}: only OME-Zarr can be read over the network; download the file first")
        source: Any = text
        reader = _reader("omezarr.store")
    else:
        source = Path(text)
        reader = _local_reader(source)
    accepted = reader.OPTIONS
    # Files with one level are read as level 0, which is also -1.
    unused = [key for key in options if key not in accepted and not (key == "level" and options[key] in (0, -1))]
    if unused:
        raise FormatError(f"{source} is read without {' or '.join(unused)}=; leave it out")
    return reader.read(source, **{key: value for key, value in options.items() if key in accepted})


def _local_reader(path: Path) -> Reader:
    from mrhdata.io.plane_names import is_pattern

    if is_pattern(path):
        return _reader("planes")
    if not path.exists():
        raise FormatError(f"{path} does not exist; check the path")
    return (_folder_reader(path) or _reader("planes")) if path.is_dir() else _file_reader(path)


def _reader(module: str) -> Reader:
    return cast("Reader", importlib.import_module(f"mrhdata.io.{module}"))


def _folder_reader(folder: Path) -> Reader | None:
    """Return the reader of a folder, or None for a stack of planes."""
    names = sorted(p.name for p in folder.iterdir())
    if folder.name.lower().endswith(".zarr") or {"zarr.json", ".zgroup", ".zattrs", ".zarray"} & set(names):
        return _reader("omezarr.store")
    from mrhdata.io import dicom

    pictures = [n for n in names if n.lower().endswith((".tif", ".tiff", ".png")) and not n.startswith(".")]
    series = dicom.files_of(folder)
    if not series and not pictures:
        raise FormatError(f"{folder} is not an OME-Zarr, and contains neither TIFF or PNG planes nor DICOM files")
    if len(pictures) > len(series) > 0:
        raise FormatError(
            f"{folder} must hold DICOM files or planes; got {len(series)} and {len(pictures)}. Pass a pattern such as "
            f"{folder.name}/*{Path(pictures[0]).suffix}, or the DICOM files in a folder of their own"
        )
    if series and pictures:
        log.warning("%s: its %d DICOM files are read, without %d pictures", folder, len(series), len(pictures))
    return _reader("dicom") if series else None


def write(
    volume: xr.DataArray, path: str | os.PathLike[str], *, overwrite: bool = False, memory: int | str | None = None
) -> None:
    """Write a volume, with its axes in the order of the file that it came from.

    The file appears only when it is complete.

    Parameters
    ----------
    volume : xarray.DataArray
    path : path
        Path that ends in ``.nii``, ``.nii.gz``, ``.mnc`` (MINC 2), ``.nrrd``, ``.mha``, ``.tif`` or ``.ome.tif``
        (OME-TIFF), or ``.zarr`` (OME-Zarr).
    overwrite : bool
        Whether to replace an existing file.
    memory : int or str, optional
        Bytes in memory at once, such as ``"500 MB"``; by default as many as it takes. OME-Zarr is written block by
        block and TIFF plane by plane. The other formats are written from all values in memory, next to a copy of them.

    Raises
    ------
    FormatError
        The ending cannot be written, the format cannot hold the values, or `path` exists.
    ParameterError
        The smallest part of the source that can be read, or of the format that can be written, exceeds `memory`.
    """
    from mrhdata.volume.checks import check_volume
    from mrhdata.volume.construct import DIMS

    check_volume("volume", volume)
    check_path("path", path)
    path = Path(path)
    writer = writer_of(path)

    budget = None if memory is None else _budget(volume, path, writer, parse_memory(memory))
    with atomic_write(path, overwrite=overwrite) as draft:
        _write_draft(volume.transpose(*(d for d in DIMS if d in volume.dims)), draft, path, writer, budget)


def _budget(volume: xr.DataArray, path: Path, writer: ModuleType, memory: int) -> int:
    """Return the bytes of a budget that are left for a writer."""
    from mrhdata.volume.file_arrays import bytes_at_once

    whole = volume.nbytes if _name(writer) in _WHOLE else 0
    return remaining_memory(bytes_at_once(volume.data) + whole, memory, str(path), least=whole)


def _name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def _write_draft(volume: xr.DataArray, draft: Path, path: Path, writer: ModuleType, memory: int | None) -> None:
    """Write a draft and compare it with the volume; a store of OME-Zarr has checksums of its own."""
    from mrhdata.io.draft_check import check_draft

    if _name(writer) in _WHOLE:
        # The writer needs all values; computed here, they are not computed again for the comparison.
        volume = volume.compute()
    try:
        writer.write(volume, draft, **({"memory": memory} if _name(writer) == "omezarr" else {}))
    except MrhdataError:
        raise
    except OSError as error:
        raise FormatError(f"{path} cannot be written: {error.strerror or error}") from error
    if not draft.is_dir():
        check_draft(volume, draft, path, cast("Reader", writer))


def writer_of(path: str | os.PathLike[str]) -> ModuleType:
    """Return the module that writes files with this ending; long runs call it before they start.

    Raises
    ------
    FormatError
        Files with this ending cannot be written.
    """
    name = Path(path).name
    module, writable = next((row for ending, row in FORMATS.items() if name.lower().endswith(ending)), ("", False))
    if not writable:
        endings = ", ".join(e for e, (_, can) in FORMATS.items() if can)
        raise FormatError(f"{name} cannot be written; endings that can be written are {endings}")
    return importlib.import_module(f"mrhdata.io.{module}")


def written_as(path: str | os.PathLike[str], otherwise: str = ".nii.gz") -> str:
    """Return the ending for a volume that comes from a file: the file's own if it can be written.

    Examples
    --------
    >>> written_as("sub-01_T1w.mnc"), written_as("brain.mgz")
    ('.mnc', '.nii.gz')
    """
    name = Path(path).name.lower()
    return next((ending for ending, (_, can) in FORMATS.items() if can and name.endswith(ending)), otherwise)


def _file_reader(path: Path) -> Reader:
    for ending, (module, _) in FORMATS.items():
        if path.name.lower().endswith(ending):
            return _reader(module)
    if path.is_file():
        from mrhdata.io import dicom

        if dicom.holds(path):
            return _reader("dicom")
    raise FormatError(f"{path.name} has no known ending; known endings are {', '.join(FORMATS)}")
