"""Voxels of co-registered volumes as rows of a table: what statistics work on."""

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

#: Columns of a voxel table that say where a voxel is.
PLACE = ("block", *SPATIAL)
#: Rows of a table where nothing else is asked for.
MOST = 1_000_000
#: Voxels of all channels together that are read at once.
_READ = 32_000_000


def voxel_table(
    volumes: Mapping[str, xr.DataArray],
    mask: xr.DataArray | None = None,
    *,
    block_voxels: int = 8,
    most: int = MOST,
) -> pd.DataFrame:
    """Voxels of co-registered volumes on one grid as rows.

    Parameters
    ----------
    volumes : mapping of str to volume
        Channels become columns of their own. They are read piece by piece, and may be larger than memory.
    mask : mask volume, optional
        Rows are the voxels where it is not zero.
    block_voxels : int
        Edge of the cubes, as nearly as equal parts of every axis are, that ``block`` numbers.
    most : int
        Where more voxels are inside, only every second (third, ...) along each axis is taken, so that about
        so many are left.

    Returns
    -------
    table : pandas.DataFrame
        A float64 column per contrast, ``block``, and ``z``, ``y``, ``x`` voxel indices.

    Raises
    ------
    GridError, DataError
        Grids differ, or the mask is empty.

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
    taken = [name for name in names if name in PLACE]
    if taken:
        raise DataError(f"contrasts may not be called {taken}: these columns say where a voxel is; rename them")
    first = stacked.isel(c=0)
    inside = None if mask is None else on_grid_of("mask", stack({"mask": mask}).isel(c=0), repr(names[0]), first)
    step = _step(stacked, inside, most)
    places, rows = [], []
    for box in _boxes(stacked, step):
        cut = {d: slice(a, b, step) for d, a, b in zip(SPATIAL, box.start, box.stop, strict=True)}
        part = stacked.isel(cut)
        kept = np.ones(part.shape[1:], dtype=bool) if inside is None else nonzero(inside.isel(cut).data)
        if kept.any():
            rows.append(np.asarray(part.data)[:, kept].astype(np.float64))
            places.append(np.argwhere(kept) * step + box.start)
    if not rows:
        raise DataError("the mask is empty; give one that covers part of the volumes")
    at = np.concatenate(places)
    at = at[order := np.lexsort(at.T[::-1])]
    table = pd.DataFrame(dict(zip(names, np.concatenate(rows, axis=1)[:, order], strict=True)))
    table["block"] = cubic_blocks(at, block_voxels)[0]
    return table.assign(**{d: at[:, i] for i, d in enumerate(SPATIAL)})


def row_blocks(rows: int, length: int) -> NDArray[np.int64]:
    """Blocks of contiguous rows, for voxel lists without coordinates: (rows,) ints.

    Examples
    --------
    >>> row_blocks(5, 2).tolist()
    [0, 0, 1, 1, 2]
    """
    return np.arange(rows) // length


def _boxes(stacked: xr.DataArray, step: int) -> list[Box]:
    """Parts of whole chunks, of as many voxels as are read at once, that begin on the lattice."""
    chunks = stacked.data.chunksize[1:] if stacked.chunks is not None else stacked.shape[1:]
    # A part begins at a chunk and on the lattice.
    common = [int(np.lcm(c, step)) for c in chunks]
    whole = Box((0,) * len(common), stacked.shape[1:])
    return list(whole.pieces(common, _READ // stacked.sizes["c"]))


def _step(stacked: xr.DataArray, inside: xr.DataArray | None, most: int) -> int:
    """Every which voxel along each axis is taken."""
    total = float(np.prod(stacked.shape[1:]))
    if total <= most:
        return 1
    if inside is not None:
        # Counted on a coarse lattice.
        coarse = max(1, round((total / _READ) ** (1 / 3)))
        seen = nonzero(inside.isel({d: slice(None, None, coarse) for d in SPATIAL}).data)
        total *= seen.mean()
    return max(1, int(np.ceil((total / most) ** (1 / 3) - 1e-9)))
