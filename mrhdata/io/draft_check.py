"""Comparison of a written draft with its volume, before the draft gets its name.

Libraries do not always notice that a disk is full: the MINC writer of ITK only prints a message.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrhdata.errors import FormatError, MrhdataError
from mrhdata.volume.construct import SPATIAL

if TYPE_CHECKING:
    import xarray as xr

    from mrhdata.io.reader import Reader

#: Bytes of values that are compared at a time.
_BLOCK_BYTES = 64_000_000
#: Largest difference between a position in a file and in memory, in voxels.
_TOLERANCE_VOXELS = 1e-2


def check_draft(volume: xr.DataArray, draft: Path, path: Path, reader: Reader) -> None:
    """Raise FormatError unless a draft holds the shape, the geometry and the values of a volume.

    Parameters
    ----------
    volume : xarray.DataArray
        Written volume. If its values are not in memory, the first and the last plane are compared.
    draft, path : path
        Written file, and the name that it will have.
    reader : Reader
        Module that reads the format.
    """
    try:
        written = _aligned(_one_shape(reader.read(draft)), _one_shape(volume))
        same = _same_values(_one_shape(volume), written)
    except MrhdataError as error:
        reason = str(error).replace(draft.name, path.name)
        raise FormatError(f"{path} was not written completely, perhaps because the disk is full ({reason})") from error
    if not same:
        raise FormatError(
            f"{path} was not written completely: its values differ from those of the volume. Write it again"
        )


def _one_shape(volume: xr.DataArray) -> xr.DataArray:
    """Return a volume without times or channels of length 1, and with all spatial axes."""
    volume = volume.squeeze([d for d in ("t", "c") if volume.sizes.get(d) == 1])
    missing = [d for d in SPATIAL if d not in volume.dims]
    extra = [d for d in ("t", "c") if d in volume.dims]
    return volume.expand_dims(missing).transpose(*extra, *SPATIAL)


def _aligned(written: xr.DataArray, volume: xr.DataArray) -> Any:
    """Return the array of a written volume with its axes in the order and the directions of another."""
    to_index = np.linalg.inv(volume.mrh.grid.affine) @ written.mrh.grid.affine
    turn = np.rint(to_index[:3, :3]).astype(int)
    fits = np.array_equal(np.abs(turn).sum(axis=0), [1, 1, 1]) and np.array_equal(np.abs(turn).sum(axis=1), [1, 1, 1])
    sizes = np.array(volume.mrh.grid.shape)
    # A small error of a direction is largest at the last voxel.
    if not fits or (np.abs(to_index[:3, :3] - turn) * sizes.max() > _TOLERANCE_VOXELS).any():
        raise FormatError("the geometry of the file differs")
    sources = [int(np.flatnonzero(row)[0]) for row in turn]
    first = volume.ndim - 3
    data = written.data.transpose([*range(first), *(first + source for source in sources)])
    flips = [slice(None, None, int(turn[i, source])) for i, source in enumerate(sources)]
    corner = np.array([0 if flip.step > 0 else n - 1 for flip, n in zip(flips, sizes, strict=True)])
    if data.shape != volume.shape or np.abs(to_index[:3, 3] - corner).max() > _TOLERANCE_VOXELS:
        raise FormatError(f"the file has shape {data.shape} instead of {volume.shape}, or another origin")
    return data[(..., *flips)]


def _same_values(volume: xr.DataArray, written: Any) -> bool:
    """Return whether two arrays are equal up to the rounding of scaled integers."""
    count = volume.sizes["z"]
    if isinstance(volume.data, np.ndarray):
        one_chunk = getattr(written, "npartitions", 1) == 1
        step = count if one_chunk else max(1, _BLOCK_BYTES * count // max(1, volume.nbytes))
        planes = [slice(i, i + step) for i in range(0, count, step)]
    else:
        planes = [slice(i, i + 1) for i in sorted({0, count - 1})]
    return all(_close(np.asarray(volume.data[..., p, :, :]), np.asarray(written[..., p, :, :])) for p in planes)


def _close(values: np.ndarray, written: np.ndarray) -> bool:
    if np.array_equal(values, written, equal_nan=True):
        return True
    # MINC scales integers, so they come back as floating point.
    span = float(np.ptp(values)) if values.dtype.kind in "iu" and written.dtype.kind == "f" else 0.0
    return span > 0 and bool(np.allclose(values, written, rtol=0, atol=1e-6 * span))
