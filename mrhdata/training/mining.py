"""Select the tiles that a network labels wrongly, for the next round of training."""

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
    """Return labels for training, restricted to tiles with a label or with a false positive.

    Most of a volume is easy background. A network trained only on tiles with labels finds similar structures elsewhere,
    so a second round adds the tiles of those false positives (segDGM_CNN, 2017; Dou et al. 2016, IEEE TMI 35:1182, for
    points).

    Parameters
    ----------
    truth : (z, y, x) label volume
        Ground truth.
    prediction : label volume, optional
        Labels predicted by the network of the previous round.
    tile, stride : (3,) sequence of int
        Voxels of a tile along z, y, x, and from one tile to the next; by default tiles do not overlap.
    background : int
        Label of the background.

    Returns
    -------
    labels : label volume, int16
        Labels with `IGNORE_INDEX` outside the selected tiles; ignored voxels of `truth` stay ignored.

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
        positive = np.asarray(prediction.mrh.like(truth).data) != background
        marked |= known & (values == background) & positive
    tile_is_marked = _any_marked(marked, tile, ahead=True)
    corners = np.zeros(tile_is_marked.shape, dtype=bool)
    on_stride = tuple(slice(None, None, int(s)) for s in stride)
    corners[on_stride] = tile_is_marked[on_stride]
    selected = _any_marked(corners, tile, ahead=False)
    return truth.copy(data=np.where(selected, values, IGNORE_INDEX)).astype(np.int16)


def _any_marked(marked: np.ndarray, lengths: Sequence[int], *, ahead: bool) -> np.ndarray:
    """Return whether a box of some lengths that starts (or ends) at each voxel holds a marked voxel."""
    values = marked.astype(np.uint8)
    for axis, n in enumerate(lengths):
        # The window of an even length is off-centre by half a voxel.
        origin = -(n // 2) if ahead else (n - 1) // 2
        values = maximum_filter1d(values, int(n), axis=axis, mode="constant", origin=origin)
    return values.astype(bool)
