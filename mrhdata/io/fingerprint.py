"""What tells files and volumes from others, so that nothing is taken for finished that was made from something else."""

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

#: Endings of formats that keep header and voxels apart.
_HALVES = (".hdr", ".img", ".head", ".brik", ".par", ".rec", ".mhd", ".nhdr", ".raw", ".zraw")


def digest(content: Any) -> str:
    """SHA-256 of anything as JSON."""
    return hashlib.sha256(json.dumps(content, default=str, sort_keys=True).encode()).hexdigest()


def header_and_data_files(path: Path) -> list[Path]:
    """A file, and the other of its name where its format keeps header and voxels apart."""
    stem = path.name.removesuffix(".gz").rpartition(".")[0]

    def is_half(file: Path) -> bool:
        return file.name.removesuffix(".gz")[len(stem) :].lower() in _HALVES

    pairs = [p for p in path.parent.glob(f"{glob.escape(stem)}.*") if is_half(p)] if is_half(path) else []
    return sorted({path, *pairs})


def file_state(path: str | os.PathLike[str]) -> str:
    """Names, sizes and times of a file, or of all files of a folder; another as soon as one is written anew."""
    path = Path(path)
    if not path.is_dir():
        states = [(half.name, half.stat()) for half in header_and_data_files(path)]
        return ";".join(f"{name}:{state.st_size}:{state.st_mtime_ns}" for name, state in states)
    found = hashlib.blake2s()
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            state = os.stat(os.path.join(folder, name))
            within = os.path.relpath(os.path.join(folder, name), path)
            found.update(f"{within}:{state.st_size}:{state.st_mtime_ns};".encode(errors="surrogateescape"))
    return found.hexdigest()


def fingerprint(volume: xr.DataArray) -> Any:
    """What tells a volume from others, as JSON.

    Files and stores on this machine are told by names, sizes and times, stores elsewhere by their metadata and what
    they were made from, arrays by value, and volumes that are computed by the name of Dask's graph, which may be
    another in another process, and the stores at its root.
    """
    data = volume.data
    file = file_of(data) if isinstance(data, da.Array) else None
    if not isinstance(data, da.Array):
        of: Any = tokenize(np.asarray(data))
    elif file is None:
        of = [data.name, *_roots(data)]
    else:
        of = _file(file)
        if isinstance(file.part, ZarrReader):
            of.append(volume.attrs.get("provenance", {}).get("digest"))
        if source_of(data) is None:
            # With its axes in another order, or rounded.
            of += [volume.attrs.get("source_axes"), str(volume.dtype)]
    return [of, volume.shape, volume.attrs.get("affine"), volume.mrh.spacing.tolist()]


def fingerprint_cases(cases: Sequence[Any]) -> str:
    """Digest of all that dataclasses of volumes hold: volumes as :func:`fingerprint` says, the rest by value."""
    return digest([{f.name: _content(getattr(case, f.name)) for f in fields(case)} for case in cases])


def _content(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _content(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return tokenize(value)
    return fingerprint(value) if isinstance(value, xr.DataArray) else value


def _file(file: FileArray) -> list[Any]:
    if not isinstance(file.part, ZarrReader):
        return [str(file.path), digest([file_state(f) for f in file.files]), file.name]
    array = file.part.array
    return [str(file.path), str(array.path), array.metadata.to_dict(), *_state(array)]


def _roots(data: da.Array) -> list[str]:
    """States of the stores that Dask reads by itself: it names them by their place alone."""
    graph = data.dask
    layers = [graph.layers[name] for name in sorted(graph.layers) if not graph.dependencies[name]]
    arrays = [value for layer in layers for value in layer.values() if isinstance(value, zarr.Array)]
    return [state for array in arrays for state in _state(array)]


def _state(array: zarr.Array[Any]) -> list[str]:
    """State of an array on this machine; nothing of one elsewhere."""
    root = getattr(array.store, "root", None) or getattr(array.store, "path", None)
    place = None if root is None else Path(str(root)) / array.path
    return [] if place is None or not place.is_dir() else [file_state(place)]
