"""A look at a store that was just written, before it gets its final name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zarr

from mrhdata.errors import FormatError
from mrhdata.io.omezarr.chunks import Chunks, chunks_of
from mrhdata.io.omezarr.presence import indices, present_files
from mrhdata.io.omezarr.pyramid import Level
from mrhdata.io.omezarr.store import read

if TYPE_CHECKING:
    import xarray as xr

#: Shards of a level of which a chunk is decoded.
_SAMPLED_SHARDS = 8


def check_written(volume: xr.DataArray, path: Path, levels: list[Level], name: str) -> None:
    """Raise FormatError unless a store has the geometry and type of a volume, and chunks that can be decoded.

    Parameters
    ----------
    volume : xarray.DataArray
        Volume that was written; its voxels are not compared.
    path : path
        Finished draft of the store.
    levels, name
        Plan of the store, as :func:`mrhdata.io.omezarr.layout.plan` returns it.
    """
    dtype = np.dtype(np.uint8) if volume.dtype == bool else volume.dtype
    for n, level in enumerate(levels):
        stored = read(path, level=n)
        # Readers return values in the byte order of the machine.
        if stored.shape != level.shape or stored.dtype != dtype.newbyteorder("="):
            raise FormatError(
                f"{path}: level {n} must have shape {level.shape} and type {dtype}; got {stored.shape} and "
                f"{stored.dtype}. Write it again"
            )
        if n == 0 and not stored.mrh.grid.same_as(volume.mrh.grid):
            raise FormatError(f"{path}: level 0 does not lie where the volume lies. Write it again")
        array = zarr.open_array(path / f"scale{n}" / name, mode="r")
        chunks = chunks_of(array)
        assert chunks is not None
        shards = list(indices(present_files(array)))
        for shard in shards[:: max(1, len(shards) // _SAMPLED_SHARDS)]:
            _decode_one(chunks, shard, level, path)


def _decode_one(chunks: Chunks, shard: tuple[int, ...], level: Level, path: Path) -> None:
    """Decode the first chunk of a shard."""
    counts = [s // c for s, c in zip(level.shards, level.chunks, strict=True)]
    first = tuple(i * n for i, n in zip(shard, counts, strict=True))
    try:
        chunks.read(first)
    except ValueError as error:
        raise FormatError(
            f"{path} was written but cannot be read back ({error}). Is the disk full or failing?"
        ) from error
