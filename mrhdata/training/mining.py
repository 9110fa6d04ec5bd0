"""Tiles that a network labels wrongly, for the next round of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import maximum_filter1d

from mrhdata.models.spec import IGNORE_INDEX

if TYPE_CHECKING:
    import xarray as xr


def hard_negatives(
    truth: xr.DataArray,
    prediction: xr.DataArray | None = None,
    *,
    tile: Sequence[int],
    stride: Sequence[int] | None = None,
    background: int = 0,
) -> xr.DataArray:
    """Labels to learn from: those of tiles that hold a label, or where one was found wrongly.

    Most of a volume is easy background. A first round learns from tiles with labels alone, and labels things
    elsewhere that look alike; the second learns from those, too (segDGM_CNN, 2017; Dou et al. 2016, IEEE TMI
    35:1182, for points).

    Parameters
    ----------
    truth : (z, y, x) label volume
    prediction : label volume, optional
        On the same grid, from the round before.
    tile, stride : (3,) sequence of int
        Voxels along z, y, x of a tile, and from one to the next; the stride is the tile by default.
    background : int

    Returns
    -------
    labels : label volume, int16
        `IGNORE_INDEX` outside those tiles; voxels that were so before stay so.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> row = from_array(np.array([[[0, 0, 5, 0, 0, 0, 0, 0]]]), spacing=(1, 1, 1), kind="labels")
    >>> wrong = row.copy(data=[[[0, 0, 5, 0, 0, 0, 5, 0]]])
    >>> hard_negatives(row, tile=(1, 1, 2)).values.ravel().tolist()
    [-1, -1, 5, 0, -1, -1, -1, -1]
    >>> hard_negatives(row, wrong, tile=(1, 1, 2)).values.ravel().tolist()
    [-1, -1, 5, 0, -1, -1, 0, 0]
    """
    stride = tile if stride is None else stride
    values = np.asarray(truth.data).astype(np.int16)
    known = values != IGNORE_INDEX
    marked = known & (values != background)
    if prediction is not None:
        wrong = np.asarray(prediction.mrh.like(truth).data) != background
        marked |= known & (values == background) & wrong
    held = _any_of(marked, tile, ahead=True)
    begins = np.zeros(held.shape, dtype=bool)
    every = tuple(slice(None, None, int(s)) for s in stride)
    begins[every] = held[every]
    return truth.copy(data=np.where(_any_of(begins, tile, ahead=False), values, IGNORE_INDEX)).astype(np.int16)


def _any_of(marked: np.ndarray, lengths: Sequence[int], *, ahead: bool) -> np.ndarray:
    """Whether any of so many voxels from each on (or up to each) is marked."""
    values = marked.astype(np.uint8)
    for axis, n in enumerate(lengths):
        # The window of an even length lies half a voxel off.
        origin = -(n // 2) if ahead else (n - 1) // 2
        values = maximum_filter1d(values, int(n), axis=axis, mode="constant", origin=origin)
    return values.astype(bool)
