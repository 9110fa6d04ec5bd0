"""Arrays of the levels of an image: their sizes are compared with what there is before anything is allocated."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import zarr
from zarr.core.metadata.v2 import ArrayV2Metadata
from zarr.core.sync import sync
from zarr.storage import LocalStore

from mrhdata.errors import FormatError
from mrhdata.io.omezarr.presence import folder_of
from mrhdata.volume.construct import LONGEST_AXIS

log = logging.getLogger("mrhdata")

#: A chunk of more bytes must not be much larger than its array, and none has more than `_MOST_BYTES`.
_LARGE_BYTES, _MOST_BYTES = 64_000_000, 4_000_000_000
#: Name of a chunk, or of the first folder that leads to it.
_CHUNK_NAME = re.compile(r"c|(c\.)?\d+(\.\d+)*")
#: Names in the folder of an array that are compared with the names of its chunks.
_NAMES_COMPARED = 10_000


def open_level(group: zarr.Group, name: str, path: Path | str, complete: bool = False) -> zarr.Array[Any]:
    """Open an array of an image, and check the sizes and the names of its chunks.

    Parameters
    ----------
    group : zarr.Group
    name : str
        Path of the array within the group.
    path : path or URL
        Store that errors name.
    complete : bool
        Whether the metadata lists the files of the array, so that a missing one is found when it is read.

    Raises
    ------
    FormatError
        The array is missing, its sizes cannot be those of a volume, or it has files that no chunk's name fits.
    """
    try:
        array = group[name]
    except KeyError as error:
        raise FormatError(f"{path} lists level {name!r} but does not contain it; write the store again") from error
    if not isinstance(array, zarr.Array):
        raise FormatError(f"{path}: {name!r} is a group, not an array; write the store again")
    label = f"{path} (array {name!r})"
    check_sizes(array, label)
    return array if complete else _with_chunks_found(array, label)


def check_sizes(array: zarr.Array[Any], label: str) -> None:
    """Raise FormatError if the shape or the chunks of an array cannot be those of a volume."""
    if array.ndim == 0 or min(array.shape) < 1 or max(array.shape) > LONGEST_AXIS:
        raise FormatError(
            f"{label} must have a shape of 1 to {LONGEST_AXIS} along each axis; got {list(array.shape)}. "
            "Its metadata is damaged"
        )
    if min(array.chunks) < 1:
        raise FormatError(f"{label} must have chunks of at least one voxel; got {list(array.chunks)}")
    chunk_bytes = math.prod(array.chunks) * array.dtype.itemsize
    used = math.prod(map(min, array.chunks, array.shape)) * array.dtype.itemsize
    if chunk_bytes > _MOST_BYTES or (chunk_bytes > _LARGE_BYTES and chunk_bytes > 8 * used):
        raise FormatError(
            f"{label} of shape {list(array.shape)} has chunks of {list(array.chunks)} voxels, {chunk_bytes / 1e9:.3g} "
            "GB each, which is more than it can need. Its metadata is damaged; otherwise store it in smaller chunks"
        )


def _with_chunks_found(array: zarr.Array[Any], label: str) -> zarr.Array[Any]:
    """Return the array with the separator of its chunks' names that its files have; warn if it has no chunk."""
    if not isinstance(array.store, LocalStore):
        return _with_first_chunk_found(array)
    first = next(_chunk_names(array), None)
    if first is None:
        log.warning("%s has no chunk; every voxel is the fill value %s. Is the copy complete?", label, array.fill_value)
        return array
    if _fits(array):
        return array
    other = _other_separator(array)
    if other is not None and _fits(other):
        return other
    raise FormatError(
        f"{label} names its chunks like {_first_key(array)!r}, but its folder has {first!r}; every chunk would be "
        "read as missing. Correct the separator in its metadata"
    )


def _chunk_names(array: zarr.Array[Any]) -> Iterator[str]:
    """Yield paths of files in the folder of a local array that may be chunks, one from each folder in it."""
    with os.scandir(folder_of(array)) as entries:
        for entry in itertools.islice(entries, _NAMES_COMPARED):
            name = _down(entry) if _CHUNK_NAME.fullmatch(entry.name) else ""
            if name:
                yield name


def _down(entry: os.DirEntry[str]) -> str:
    """Return the path of the first file in a folder of chunks, or of the chunk itself; empty for an empty folder."""
    if not entry.is_dir():
        return entry.name
    for folder, folders, files in os.walk(entry.path):
        folders.sort()
        if files:
            return os.path.join(entry.name, os.path.relpath(os.path.join(folder, min(files)), entry.path))
    return ""


def _fits(array: zarr.Array[Any]) -> bool:
    """Return whether some file in the folder of a local array has the form of its keys."""
    form = re.compile(re.escape(_first_key(array)).replace("0", r"\d+"))
    return any(form.fullmatch(name) for name in _chunk_names(array))


def _first_key(array: zarr.Array[Any]) -> str:
    return array.metadata.encode_chunk_key((0,) * array.ndim)


def _other_separator(array: zarr.Array[Any]) -> zarr.Array[Any] | None:
    """Return an array of Zarr 2 with the other separator, if its metadata does not state one."""
    if not isinstance(array.metadata, ArrayV2Metadata) or _states_separator(array):
        return None
    metadata = replace(array.metadata, dimension_separator="/" if array.metadata.dimension_separator == "." else ".")
    return zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=array.store_path))


def _states_separator(array: zarr.Array[Any]) -> bool:
    content = sync((array.store_path / ".zarray").get())
    return content is not None and "dimension_separator" in json.loads(content.to_bytes())


def _with_first_chunk_found(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return a remote array of Zarr 2 with the separator of its first chunk, if its metadata does not state one."""
    other = _other_separator(array)
    if other is None or array.ndim == 1 or _exists(array) or not _exists(other):
        return array
    return other


def _exists(array: zarr.Array[Any]) -> bool:
    return bool(sync((array.store_path / _first_key(array)).exists()))
