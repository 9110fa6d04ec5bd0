"""Anything readable becomes OME-Zarr: one pass, bounded memory, resumable."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Unpack

import xarray as xr

from mrhdata._runtime.memory import parse_memory
from mrhdata._runtime.progress import Progress
from mrhdata.errors import FormatError
from mrhdata.io import formats, omezarr
from mrhdata.io.fingerprint import digest, file_state, fingerprint, header_and_data_files
from mrhdata.io.formats import Options
from mrhdata.io.omezarr.resumable import write_resumable
from mrhdata.io.omezarr.write_blocks import VolumeBlocks
from mrhdata.volume.construct import DIMS

#: Raised when what is written for the same source and parameters changes.
_LAYOUT = 1


def convert(
    source: str | os.PathLike[str] | xr.DataArray,
    store: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    memory: int | str = "1 GB",
    progress: Progress = False,
    checksum: bool = True,
    **options: Unpack[Options],
) -> xr.DataArray:
    """Convert a file, folder, URL or volume to OME-Zarr and return the stored volume.

    Chunks are cubes of 64 voxels (fewer where channels make them larger than 2 MB), shards up to
    2 x 4 x 4 of them, compressed by Blosc (bit shuffle; zstd 3, LZ4 for real numbers). Levels are halved
    until no axis is longer than 64 voxels, images by mean, labels and masks by mode. Where a
    ``dask.distributed`` client is active, its workers convert.

    Parameters
    ----------
    source : path, URL or volume
        Anything that :func:`mrhdata.read` reads; or a volume, such as one that was resampled or corrected,
        which is computed block by block.
    store : path
        A folder ending in ``.zarr``; it appears when it is complete. Killed and called again, the
        conversion goes on behind the last finished block. A store that is already there from the same
        source and parameters is returned as it is.
    overwrite : bool
        Replace a store that is there.
    memory : int or str
        Bytes held at once, such as ``"500 MB"``. Sources that cannot be read in parts (compressed
        NIfTI, NRRD and MATLAB 5 files) are held whole besides.
    progress : bool or callable
        Show a bar with bytes per second and the time left, or call this with bytes done and bytes in all.
    checksum : bool
        Put the SHA-256 of the source into the provenance.
    **options
        As for :func:`mrhdata.read`; none for a volume.

    Returns
    -------
    volume : xarray.DataArray
        Lazy, with the source's name, size and SHA-256 and the options in ``attrs["provenance"]``.

    Raises
    ------
    mrhdata.errors.FormatError
        The source cannot be read, or the store exists, or another process is writing it.

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
    budget = parse_memory(memory)
    with ThreadPoolExecutor(1) as aside:
        if isinstance(source, xr.DataArray):
            if options:
                raise FormatError(
                    f"{sorted(options)} say how a file is read; describe a volume by mrhdata.volume.describe"
                )
            volume, held = _ordered(source), dict(source.attrs.get("provenance", {}))
            identity = {"digest": digest([_LAYOUT, fingerprint(volume)])}
            checksums: Future[dict[str, Any]] = aside.submit(dict)
        else:
            volume = _ordered(formats.read(source, **options))
            held = {"options": {key: value for key, value in options.items() if key not in ("storage_options", "name")}}
            identity = _identity(source, options, checksum)
            checksums = aside.submit(source_checksum, source, checksum)
        return write_resumable(
            target,
            volume,
            lambda: VolumeBlocks(volume),
            identity,
            lambda: {**checksums.result(), **held},
            memory=budget,
            overwrite=overwrite,
            progress=progress,
            shown=("convert", 1, "B"),
        )


def _ordered(volume: xr.DataArray) -> xr.DataArray:
    return omezarr.forward(volume.transpose(*(d for d in DIMS if d in volume.dims)))


def _identity(source: str | os.PathLike[str], options: Options, checksum: bool) -> dict[str, Any]:
    """What makes two conversions the same: files with their sizes and times, options, layout."""
    remote = "://" in str(source)
    states = [] if remote else [(p.name, file_state(p)) for p in _files(source) or [Path(source)]]
    listed = [str(source) if remote else Path(source).name, states, sorted(options.items()), checksum]
    return {"digest": digest([_LAYOUT, *listed]), "source": str(source)}


def _files(source: str | os.PathLike[str]) -> list[Path]:
    """Files of a source, in order; of a Zarr store and a URL, none."""
    if "://" in str(source):
        return []
    path = Path(source)
    if path.is_dir():
        return [] if path.name.endswith(".zarr") else sorted(p for p in path.iterdir() if p.is_file())
    if path.exists():
        return header_and_data_files(path)
    from mrhdata.io.tiff import planes_of

    return planes_of(path)


def source_checksum(source: str | os.PathLike[str], checksum: bool = True) -> dict[str, Any]:
    """Name, size and SHA-256; of several files, the SHA-256 of the list of theirs."""
    files = _files(source)
    found: dict[str, Any] = {"source": str(source) if "://" in str(source) else Path(source).name}
    if not files:
        return found
    found["bytes"] = sum(p.stat().st_size for p in files)
    if len(files) > 1:
        found["files"] = len(files)
    if checksum:
        digests = [(p.name, _sha256(p)) for p in files]
        lines = "".join(f"{digest}  {name}\n" for name, digest in digests)
        found["sha256"] = digests[0][1] if len(digests) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
