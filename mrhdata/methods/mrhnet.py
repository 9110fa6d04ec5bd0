"""MRH-Net: the published training values, and those that we use instead.

Published (Liang et al. 2022, eLife 11:e72331, and its code): stochastic gradient descent at 0.1, clipped
to 0.01, one maximum for all channels measured anew on each test slice, validation on patches drawn from
the same voxels. Here: scales fixed at training and per channel, validation on other subjects or blocks,
Adam with decoupled weight decay on a one-cycle schedule, the epoch with the lowest validation loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mrhdata import models
from mrhdata.errors import DataError
from mrhdata.patching import patches
from mrhdata.training import Training, fit
from mrhdata.volume import from_array

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from torch import nn

#: In-plane patch of the published system, coronal.
PATCH = (3, 1, 3)

PUBLISHED = Training(
    epochs=66,
    batch_size=128,
    learning_rate=0.1,
    optimizer="sgd",
    schedule="steps",
    weight_decay=1e-4,
    clip=0.01,
    patience=66,
    scale="maximum",
)

CORRECTED = Training(epochs=12, batch_size=128, learning_rate=1e-3, weight_decay=1e-2, clip=1.0, patience=5)

#: For lists of single voxels: no neighbours average the noise, so noise on the inputs regularises instead.
#: Its strength is the largest whose cross-validated error lies within one standard error of the best
#: (``benchmarks/paired_voxels.py`` prints the choice, made on training rows alone).
VOXELWISE = Training(epochs=20, batch_size=256, learning_rate=1e-3, weight_decay=1e-2, noise=0.4, patience=20)


def table_volume(table: pd.DataFrame | NDArray[np.floating]) -> xr.DataArray:
    """Rows of a voxel list as a volume one voxel high and wide: channels c, rows along x.

    Examples
    --------
    >>> import pandas as pd
    >>> table_volume(pd.DataFrame({"t2": [1.0, 2.0, 3.0]})).sizes["x"]
    3
    """
    values = np.asarray(table, dtype=np.float32)
    values = values.reshape(len(values), -1).T[:, None, None, :]
    volume = from_array(np.ascontiguousarray(values), spacing=(1, 1, 1), space="table", name="table")
    return volume.assign_coords(c=[str(c) for c in getattr(table, "columns", range(len(values)))])


def train_on_rows(
    table: pd.DataFrame,
    target: NDArray[np.floating],
    validation: NDArray[np.bool_],
    settings: Training = VOXELWISE,
    *,
    blocks: int = 4,
    progress: bool = True,
) -> nn.Module:
    """Train MRH-Net voxel by voxel on a table.

    Parameters
    ----------
    table : DataFrame
        A row per voxel, a column per contrast.
    target : (n,) array
        Histology.
    validation : (n,) bool array
        Rows for early stopping: a block of them, since neighbouring rows are alike.
    settings : Training
    blocks : int
        Loop blocks of the network.
    progress : bool

    Returns
    -------
    model : torch.nn.Module
    """
    if validation.all() or not validation.any():
        raise DataError(f"{validation.sum()} of {len(validation)} rows are for validation; leave some for each")
    parts = [
        patches(table_volume(table[rows]), table_volume(np.asarray(target)[rows]), shape=1)
        for rows in (~validation, validation)
    ]
    model = models.create("mrhnet", in_channels=table.shape[1], blocks=blocks, seed=settings.seed)
    fit(model, parts[0], parts[1], settings, progress=progress)
    return model


def fold_ensemble(
    table: pd.DataFrame,
    target: NDArray[np.floating],
    settings: Training = VOXELWISE,
    *,
    folds: int = 5,
    progress: bool = True,
) -> list[nn.Module]:
    """Train one network per contiguous fold of rows, each with its own fold for validation and its own seed.

    Together they have trained on every row, and none has stopped on rows that it trained on.
    """
    parts: Sequence[NDArray[np.int64]] = np.array_split(np.arange(len(table)), folds)
    found = []
    for seed, rows in enumerate(parts):
        validation = np.zeros(len(table), dtype=bool)
        validation[rows] = True
        chosen = replace(settings, seed=settings.seed + seed)
        found.append(train_on_rows(table, target, validation, chosen, progress=progress))
    return found
