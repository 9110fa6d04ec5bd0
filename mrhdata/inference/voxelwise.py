"""Predict single patches and rows of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mrhdata.models.spec import predict_raw

if TYPE_CHECKING:
    from torch import nn


Floats = NDArray[np.float32]


def predict_patches(model: nn.Module, patches: Floats, batch_size: int = 1024) -> Floats:
    """Run a trained network on raw patches and return the predictions at their centre voxels.

    Parameters
    ----------
    model : torch.nn.Module
        Trained network.
    patches : (n, C, z, y, x) array
        Patches, such as those of :meth:`mrhdata.patching.dataset.Patches.gather`.
    batch_size : int
        Patches per batch.

    Returns
    -------
    predictions : (n, K) float32 array
        Predictions in the target's units; K is the number of output channels, usually 1.
    """
    values = torch.from_numpy(np.asarray(patches, dtype=np.float32))
    batches = []
    with torch.inference_mode():
        for start in range(0, len(values), batch_size):
            batches.append(centres(predict_raw(model, values[start : start + batch_size])))
    return torch.cat(batches).numpy()


def centres(patches: Any) -> Any:
    """Return the centre voxels (n, C) of patches (n, C, z, y, x), an array or a tensor.

    Examples
    --------
    >>> centres(np.arange(9).reshape(1, 1, 3, 1, 3)).tolist()
    [[4]]
    """
    z, y, x = ((n - 1) // 2 for n in patches.shape[2:])
    return patches[:, :, z, y, x]


def predict_rows(model: nn.Module, rows: Floats, batch_size: int = 8192) -> Floats:
    """Run a network trained on single voxels over table rows (n, C); return (n,) in the target's units."""
    return predict_patches(model, np.asarray(rows)[:, :, None, None, None], batch_size)[:, 0]
