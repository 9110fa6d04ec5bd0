"""Tables of the voxels of co-registered volumes, for statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mrhdata.errors import DataError
from mrhdata.metrics.autocorrelation import cubic_blocks
from mrhdata.volume.box import Box
from mrhdata.volume.construct import SPATIAL
from mrhdata.volume.groups import nonzero, on_grid_of, stack

if TYPE_CHECKING:
    import xarray as xr

#: Columns of a voxel table that locate a voxel.
PLACE = ("block", *SPATIAL)
#: Default for the maximum number of rows.
MOST = 1_000_000
#: Values of all channels together that are read at once.
_READ_VALUES = 32_000_000


def voxel_table(
    volumes: Mapping[str, xr.DataArray],
    mask: xr.DataArray | None = None,
    *,
    block_voxels: int = 8,
    most: int = MOST,
) -> pd.DataFrame:
    """Return the voxels of co-registered volumes on one grid as a table.

    Parameters
    ----------
    volumes : mapping of str to volume
        Volumes; each channel becomes a column. They are read piece by piece and may be larger than memory.
    mask : mask volume, optional
        Voxels to use: those with a value other than 0.
    block_voxels : int
        Edge of the cubes that ``block`` numbers, in voxels. The axes are divided into equal parts of about this
        length.
    most : int
        Maximum number of rows, approximately. Larger masks keep every second (third, ...) voxel along each axis.

    Returns
    -------
    table : pandas.DataFrame
        A float64 column per contrast, ``block``, and ``z``, ``y``, ``x`` voxel indices.

    Raises
    ------
    GridError, DataError
        If grids differ, or the mask is empty.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> v = from_array(np.arange(8.0).reshape(2, 2, 2), spacing=(1, 1, 1))
    >>> voxel_table({"t2": v}, mask=v > 5)
        t2  block  z  y  x
    0  6.0      0  1  1  0
    1  7.0      0  1  1  1
    """
    stacked = stack(volumes)
    names = [str(c) for c in stacked.c.values]
    reserved = [name for name in names if name in PLACE]
    if reserved:
        raise DataError(f"contrasts must not be called {reserved}: these columns locate a voxel. Rename them")
    first = stacked.isel(c=0)
    inside = None if mask is None else on_grid_of("mask", stack({"mask": mask}).isel(c=0), repr(names[0]), first)
    step = _step(stacked, inside, most)
    indices, rows = [], []
    for box in _boxes(stacked, step):
        cut = {d: slice(a, b, step) for d, a, b in zip(SPATIAL, box.start, box.stop, strict=True)}
        part = stacked.isel(cut)
        selected = np.ones(part.shape[1:], dtype=bool) if inside is None else nonzero(inside.isel(cut).data)
        if selected.any():
            rows.append(np.asarray(part.data)[:, selected].astype(np.float64))
            indices.append(np.argwhere(selected) * step + box.start)
    if not rows:
        raise DataError("the mask is empty. Pass one that covers part of the volumes")
    index = np.concatenate(indices)
    index = index[order := np.lexsort(index.T[::-1])]
    table = pd.DataFrame(dict(zip(names, np.concatenate(rows, axis=1)[:, order], strict=True)))
    table["block"] = cubic_blocks(index, block_voxels)[0]
    return table.assign(**{d: index[:, i] for i, d in enumerate(SPATIAL)})


def row_blocks(rows: int, length: int) -> NDArray[np.int64]:
    """Return the number (rows,) of the block of each row, for voxel lists without coordinates.

    Blocks are `length` consecutive rows.

    Examples
    --------
    >>> row_blocks(5, 2).tolist()
    [0, 0, 1, 1, 2]
    """
    return np.arange(rows) // length


def _boxes(stacked: xr.DataArray, step: int) -> list[Box]:
    """Divide the volume into boxes of whole chunks that are read at once and begin on the lattice."""
    chunks = stacked.data.chunksize[1:] if stacked.chunks is not None else stacked.shape[1:]
    common = [int(np.lcm(c, step)) for c in chunks]
    whole = Box((0,) * len(common), stacked.shape[1:])
    return list(whole.pieces(common, _READ_VALUES // stacked.sizes["c"]))


def _step(stacked: xr.DataArray, inside: xr.DataArray | None, most: int) -> int:
    """Return the step of the lattice along each axis: 1 keeps every voxel, 2 every second."""
    total = float(np.prod(stacked.shape[1:]))
    if total <= most:
        return 1
    if inside is not None:
        # A coarse lattice bounds the time that counting takes.
        coarse = max(1, round((total / _READ_VALUES) ** (1 / 3)))
        sample = nonzero(inside.isel({d: slice(None, None, coarse) for d in SPATIAL}).data)
        total *= sample.mean()
    return max(1, int(np.ceil((total / most) ** (1 / 3) - 1e-9)))
