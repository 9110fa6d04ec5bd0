"""Files outside of an HDF5 file whose bytes an array of it takes: external storage and virtual arrays.

Both name files by any path, so a download could show a private file of this machine as voxels. Only files next to the
HDF5 file are read.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import h5py

from mrhdata.errors import FormatError

#: Virtual arrays may refer to virtual arrays; deeper ones are not followed.
_MAX_DEPTH = 4


def open_array(file: Any, name: str) -> Any:
    """Return an array of an open HDF5 file; names of other files are relative to its folder."""
    array = file[name]
    if not (array.external or array.is_virtual):
        return array
    # HDF5 opens an array with one prefix at a time.
    del array
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    # HDF5 would look for them in the working directory.
    access.set_efile_prefix(b"${ORIGIN}")
    access.set_virtual_prefix(b"${ORIGIN}")
    return h5py.Dataset(h5py.h5d.open(file.id, name.encode(), access))


def check_sources(file: Any, name: str, path: Path, depth: int = 0) -> None:
    """Raise FormatError if an array takes bytes from files that are missing or not in the folder of `path`."""
    _check_links(file, name, path)
    array = file[name]
    for source, _, _ in array.external or ():
        _check_name(source.decode() if isinstance(source, bytes) else source, path)
    if not array.is_virtual:
        return
    if depth >= _MAX_DEPTH:
        raise FormatError(f"{path}: virtual arrays must be at most {_MAX_DEPTH} deep; {name} is deeper")
    for other, inner in sorted({(source.file_name, source.dset_name) for source in array.virtual_sources()}):
        if other == ".":
            check_sources(file, inner, path, depth + 1)
            continue
        with h5py.File(_check_name(other, path), "r") as opened:
            check_sources(opened, inner, path, depth + 1)


def _check_links(file: Any, name: str, path: Path) -> None:
    """Raise FormatError if a part of an array's name is a link, which may lead to another file."""
    group: Any = file
    for part in (part for part in name.split("/") if part):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if not isinstance(link, h5py.HardLink):
            raise FormatError(f"{path}: {name} must be an array of the file; {part!r} is a link, or missing")
        group = group[part]


def _check_name(name: str, path: Path) -> Path:
    """Return the file next to `path` that has this name."""
    parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
    if not name or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in parts or "%" in name:
        raise FormatError(
            f"{path}: other files of voxels must lie in the folder of the HDF5 file; got {name[:200]!r}. Move the file "
            "there, and store its name only"
        )
    source = path.parent / name
    if not source.is_file():
        raise FormatError(f"{path} has no file {name[:200]!r} of voxels; keep both together")
    return source
