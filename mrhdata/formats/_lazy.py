"""Files as lazy arrays: the one place where a reading library meets Dask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from mrhdata.errors import DataError, FormatError

if TYPE_CHECKING:
    import xarray as xr

#: Slabs are cut to about this size where a format can be read in parts.
SLAB_BYTES = 64_000_000

#: What libraries raise for files that end too early or are damaged.
DAMAGE = (EOFError, OSError, RuntimeError, ValueError, KeyError, IndexError, TypeError, MemoryError, OverflowError)


class Slices:
    """An array-like whose parts are read from a file when asked for.

    Parameters
    ----------
    shape, dtype
        Of the values that `part` returns.
    part : callable
        Takes a tuple of slices, returns that part of the file's values.
    path : path
        Named in the error when the file turns out to be damaged.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, part: Callable[[Any], Any], path: Path) -> None:
        self.shape = shape
        # Files may be big-endian; PyTorch and some of SciPy take native order only.
        self.dtype = np.dtype(dtype).newbyteorder("=")
        self.ndim = len(shape)
        self._part, self._path = part, path

    def __getitem__(self, key: Any) -> np.ndarray:
        try:
            return np.asarray(self._part(key), dtype=self.dtype)
        except DAMAGE as error:
            raise damaged(self._path, error) from error


def damaged(path: Path, error: BaseException) -> FormatError:
    """The error for a file that a library could not read."""
    detail = " ".join(str(error).split())[:200] or type(error).__name__
    return FormatError(f"{path} cannot be read: it is damaged, truncated or not what its name says ({detail})")


def lazy(slices: Slices, slowest: int | None) -> da.Array:
    """Dask array over a file: slabs along axis `slowest`, or one block where None."""
    chunks = list(slices.shape)
    if slowest is not None:
        per_step = slices.dtype.itemsize * int(np.prod(slices.shape)) // max(1, slices.shape[slowest])
        chunks[slowest] = int(np.clip(SLAB_BYTES // max(1, per_step), 1, max(1, slices.shape[slowest])))
    meta = np.empty((0,) * slices.ndim, dtype=slices.dtype)
    return da.from_array(slices, chunks=tuple(chunks), meta=meta, name=False)


def as_integers(volume: xr.DataArray, path: Path) -> xr.DataArray:
    """Labels and masks as integers; scaled files give them back as floating point."""
    if volume.dtype.kind in "iu":
        return volume
    dtype = np.dtype(np.uint8 if volume.attrs["kind"] == "mask" else np.int32)

    def rounded(block: np.ndarray) -> np.ndarray:
        whole = np.rint(block)
        # NaN fails this comparison too, as it should.
        if not (np.abs(block - whole) < 1e-3).all():
            worst = np.nanmax(np.abs(block - whole))
            raise DataError(
                f"{path} is no label volume: values lie up to {worst:.3g} from whole numbers; kind='image'?"
            )
        return whole.astype(dtype)

    data = da.asarray(volume.data).map_blocks(rounded, dtype=dtype, meta=np.empty((0,) * volume.ndim, dtype))
    return volume.copy(data=data)
