"""Conversion of any readable source to OME-Zarr: one pass, bounded memory, resumable."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import xarray as xr

from mrhdata._runtime.arguments import check_path
from mrhdata._runtime.memory import LEAST_BYTES, parse_memory, remaining_memory
from mrhdata._runtime.progress import Progress, ProgressLabel
from mrhdata.errors import FormatError, ParameterError
from mrhdata.io import formats, omezarr
from mrhdata.io.fingerprint import digest, file_state, fingerprint, header_and_data_files
from mrhdata.io.formats import Options
from mrhdata.io.omezarr.resumable import write_resumable
from mrhdata.io.omezarr.write_blocks import VolumeBlocks
from mrhdata.volume.construct import DIMS
from mrhdata.volume.file_arrays import bytes_at_once

#: Part of the digest. Increase it when the same source and parameters no longer give the same store.
_LAYOUT_VERSION = 2


def convert(
    source: str | os.PathLike[str] | xr.DataArray,
    store: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    memory: int | str = "1 GB",
    progress: Progress = True,
    checksum: bool = True,
    **options: Unpack[Options],
) -> xr.DataArray:
    """Convert a file, folder, URL or volume to OME-Zarr and return the stored volume.

    Chunks are cubes of 64 voxels (smaller if channels make them larger than 2 MB), shards up to
    2 x 4 x 4 chunks, compressed with Blosc (bit shuffle; zstd 3, LZ4 for floating point). Levels are halved
    until no axis is longer than 64 voxels, images by mean, labels and masks by mode. If a
    ``dask.distributed`` client is active, its workers convert.

    Parameters
    ----------
    source : path, URL or volume
        Any source that :func:`mrhdata.read` reads; or a volume, such as a resampled or corrected one,
        which is computed block by block.
    store : path
        Folder ending in ``.zarr``; it appears when it is complete. An interrupted conversion resumes after
        the last finished block when it is called again. An existing store from the same source and
        parameters is returned unchanged.
    overwrite : bool
        Whether to replace an existing store.
    memory : int or str
        Bytes in memory at once, such as ``"500 MB"``. Some sources cannot be read in parts: compressed NIfTI, NRRD
        and MATLAB 5 files, and large compressed chunks. If such a part does not fit, the error says which budget would.
    progress : bool or callable
        Whether to show a bar, or a function of (bytes done, total bytes).
    checksum : bool
        Whether to store the SHA-256 of the source in the provenance.
    **options
        Options of :func:`mrhdata.read`; not for a volume.

    Returns
    -------
    volume : xarray.DataArray
        Lazy volume with the source's name, size and SHA-256 and the options in ``attrs["provenance"]``.

    Raises
    ------
    mrhdata.errors.FormatError
        The source cannot be read, or changed meanwhile, or the store exists, or another process is writing it.
    mrhdata.errors.ParameterError
        The smallest part of the source that can be read does not fit into `memory`.

    Examples
    --------
    >>> import tempfile, numpy as np, mrhdata
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mrhdata.write(mrhdata.volume.from_array(np.ones((2, 3, 4)), spacing=(1, 1, 2)), folder + "/a.nii")
    ...     v = mrhdata.convert(folder + "/a.nii", folder + "/a.zarr", modality="mri")
    ...     v.shape, v.attrs["modality"], v.attrs["provenance"]["source"]
    ((2, 3, 4), 'mri', 'a.nii')
    """
    target = Path(store)
    if not target.name.lower().endswith(".zarr"):
        raise FormatError(f"{target} must end in .zarr; for other formats use mrhdata.write")
    if isinstance(source, xr.DataArray):
        if options:
            raise ParameterError(
                f"a volume must be passed without options of read; got {', '.join(sorted(options))}. "
                "Set attributes of a volume with mrhdata.volume.describe"
            )
        volume, record = _file_order(source), dict(source.attrs.get("provenance", {}))
        identity: Callable[[], dict[str, Any]] = partial(_identity_of_volume, volume)
        checksum_of: Callable[[], dict[str, Any]] = dict
        label = f"volume {volume.name}"
    else:
        check_path("source", source)
        volume = _file_order(formats.read(source, **options))
        record = {"options": {k: v for k, v in options.items() if k not in ("storage_options", "name")}}
        identity = partial(_identity, source, options, checksum)
        checksum_of = partial(source_checksum, source, checksum)
        label = str(source)
    budget = remaining_memory(bytes_at_once(volume.data), parse_memory(memory), label, LEAST_BYTES)
    with ThreadPoolExecutor(1) as executor:
        checksums = executor.submit(checksum_of)
        return write_resumable(
            target,
            volume,
            lambda: VolumeBlocks(volume, budget),
            identity,
            lambda: {**checksums.result(), **record},
            memory=budget,
            overwrite=overwrite,
            progress=progress,
            label=ProgressLabel(text="convert", unit_bytes=1, unit="B"),
        )


def _file_order(volume: xr.DataArray) -> xr.DataArray:
    return omezarr.forward(volume.transpose(*(d for d in DIMS if d in volume.dims)))


def _identity_of_volume(volume: xr.DataArray) -> dict[str, Any]:
    return {"digest": digest([_LAYOUT_VERSION, fingerprint(volume)])}


def _identity(source: str | os.PathLike[str], options: Options, checksum: bool) -> dict[str, Any]:
    """Return the digest of a conversion: files with sizes and times, options, layout version."""
    remote = "://" in str(source)
    states = [] if remote else [(p.name, file_state(p)) for p in _files(source) or [Path(source)]]
    content = [str(source) if remote else Path(source).name, states, sorted(options.items()), checksum]
    return {"digest": digest([_LAYOUT_VERSION, *content]), "source": str(source)}


def _files(source: str | os.PathLike[str]) -> list[Path]:
    """Return the files of a source, sorted; an empty list for a Zarr store or a URL."""
    if "://" in str(source):
        return []
    path = Path(source)
    if path.is_dir():
        return [] if path.name.endswith(".zarr") else sorted(p for p in path.iterdir() if p.is_file())
    if path.exists():
        return header_and_data_files(path)
    from mrhdata.io.plane_names import planes_of

    return planes_of(path)


def source_checksum(source: str | os.PathLike[str], checksum: bool = True) -> dict[str, Any]:
    """Return name, size and SHA-256 of a source; for several files, the SHA-256 of the list of their SHA-256."""
    files = _files(source)
    record: dict[str, Any] = {"source": str(source) if "://" in str(source) else Path(source).name}
    if not files:
        return record
    record["bytes"] = sum(p.stat().st_size for p in files)
    if len(files) > 1:
        record["files"] = len(files)
    if checksum:
        digests = [(p.name, _sha256(p)) for p in files]
        lines = "".join(f"{digest}  {name}\n" for name, digest in digests)
        record["sha256"] = digests[0][1] if len(digests) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    return record


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
