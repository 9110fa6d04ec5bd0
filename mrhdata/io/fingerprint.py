"""Fingerprints of files and volumes, by which a run finds out whether its inputs changed."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from dask.base import tokenize

from mrhdata.io.omezarr.chunks import ZarrReader
from mrhdata.volume.file_arrays import FileArray, file_of, source_of

#: Endings of formats that store header and voxels in two files.
_PAIRED_ENDINGS = (".hdr", ".img", ".head", ".brik", ".par", ".rec", ".mhd", ".nhdr", ".raw", ".zraw")


def digest(content: Any) -> str:
    """Return the SHA-256 of any content as JSON."""
    return hashlib.sha256(json.dumps(content, default=str, sort_keys=True).encode()).hexdigest()


def header_and_data_files(path: Path) -> list[Path]:
    """Return a file, and its header or data file if the format stores them in two files."""
    stem = path.name.removesuffix(".gz").rpartition(".")[0]

    def is_paired(file: Path) -> bool:
        return file.name.removesuffix(".gz")[len(stem) :].lower() in _PAIRED_ENDINGS

    pairs = [p for p in path.parent.glob(f"{glob.escape(stem)}.*") if is_paired(p)] if is_paired(path) else []
    return sorted({path, *pairs})


def file_state(path: str | os.PathLike[str]) -> str:
    """Return names, sizes and times of a file, or a digest of those of a folder.

    The result changes when a file is rewritten.
    """
    path = Path(path)
    if not path.is_dir():
        states = [(file.name, file.stat()) for file in header_and_data_files(path)]
        return ";".join(f"{name}:{state.st_size}:{state.st_mtime_ns}" for name, state in states)
    result = hashlib.blake2s()
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            state = os.stat(os.path.join(folder, name))
            relative = os.path.relpath(os.path.join(folder, name), path)
            result.update(f"{relative}:{state.st_size}:{state.st_mtime_ns};".encode(errors="surrogateescape"))
    return result.hexdigest()


def fingerprint(volume: xr.DataArray) -> Any:
    """Return the fingerprint of a volume, as JSON.

    Local files and stores are identified by names, sizes and times, remote stores by their metadata and
    provenance, arrays by value. Computed volumes are identified by the name of Dask's graph, which may differ
    between processes, and by the stores at its root.
    """
    data = volume.data
    file = file_of(data) if isinstance(data, da.Array) else None
    if not isinstance(data, da.Array):
        source: Any = tokenize(np.asarray(data))
    elif file is None:
        source = [data.name, *_root_states(data)]
    else:
        source = _file_identity(file)
        if isinstance(file.part, ZarrReader):
            source.append(volume.attrs.get("provenance", {}).get("digest"))
        if source_of(data) is None:
            # The axes are reordered or the values rounded.
            source += [volume.attrs.get("source_axes"), str(volume.dtype)]
    return [source, volume.shape, volume.attrs.get("affine"), volume.mrh.spacing.tolist()]


def fingerprint_cases(cases: Sequence[Any]) -> str:
    """Return a digest of the fields of dataclasses: volumes by :func:`fingerprint`, others by value."""
    return digest([{f.name: _field_content(getattr(case, f.name)) for f in fields(case)} for case in cases])


def _field_content(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _field_content(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return tokenize(value)
    return fingerprint(value) if isinstance(value, xr.DataArray) else value


def _file_identity(file: FileArray) -> list[Any]:
    if not isinstance(file.part, ZarrReader):
        return [str(file.path), digest([file_state(f) for f in file.files]), file.name]
    array = file.part.array
    return [str(file.path), str(array.path), array.metadata.to_dict(), *_local_state(array)]


def _root_states(data: da.Array) -> list[str]:
    """Return the states of the stores that Dask reads directly, since Dask's names contain only their path."""
    graph = data.dask
    layers = [graph.layers[name] for name in sorted(graph.layers) if not graph.dependencies[name]]
    arrays = [value for layer in layers for value in layer.values() if isinstance(value, zarr.Array)]
    return [state for array in arrays for state in _local_state(array)]


def _local_state(array: zarr.Array[Any]) -> list[str]:
    """Return the state of a local array, or an empty list for a remote one."""
    root = getattr(array.store, "root", None) or getattr(array.store, "path", None)
    folder = None if root is None else Path(str(root)) / array.path
    return [] if folder is None or not folder.is_dir() else [file_state(folder)]
