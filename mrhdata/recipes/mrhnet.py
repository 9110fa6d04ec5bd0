"""MRH-Net: the published training values, and those that we use instead.

Published (Liang et al. 2022, eLife 11:e72331, and its code): stochastic gradient descent at 0.1, clipped
to 0.01, one maximum for all channels measured anew on each test slice, validation on patches drawn from
the same voxels, the last weights. Here: scales fixed at training and per channel, validation on other
subjects or blocks, Adam with decoupled weight decay on a one-cycle schedule, the epoch with the lowest
validation loss. ``benchmarks/studies/mrhnet_recipe.py`` puts the published choices back one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mrhdata import models
from mrhdata.errors import DataError, ModelError
from mrhdata.models.spec import ModelSpec
from mrhdata.patching.create import patches
from mrhdata.training.loop import fit
from mrhdata.training.settings import TrainingConfig
from mrhdata.volume.construct import from_array
from mrhdata.volume.groups import mask_on, stack

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from torch import nn

#: In-plane patch of the published system, coronal.
PATCH = (3, 1, 3)
#: Keep rules of the published training patches, histology in bytes: least sum, least number of voxels not 0.
LEAST_SUM, LEAST_VOXELS = 30, 4
#: Slices with more than `MANY` voxels of FA above `ANISOTROPIC` have patches every 6 voxels, others every 8.
ANISOTROPIC, MANY, STRIDES = 0.4, 1000, (6, 8)
#: Layers that transfer replaces, and the factor on their learning rate.
REPLACED = ("conv4", "conv5")
_FASTER = tuple((layer, 10.0) for layer in REPLACED)

PUBLISHED = TrainingConfig(
    epochs=66,
    batch_size=128,
    learning_rate=0.1,
    optimizer="sgd",
    schedule="steps",
    weight_decay=1e-4,
    max_grad_norm=0.01,
    patience=66,
    normalization="maximum",
    # As the released code; the paper stops early and keeps the lowest validation loss.
    restore_best=False,
)

RECOMMENDED = TrainingConfig(
    epochs=12, batch_size=128, learning_rate=1e-3, weight_decay=1e-2, max_grad_norm=1.0, patience=5
)

#: Fine-tuning of what :func:`transfer` gives: fresh layers at ten times the rate, the others at theirs.
TRANSFER = replace(RECOMMENDED, learning_rate=1e-4, layer_learning_rates=_FASTER)

#: For lists of single voxels: no neighbours average the noise, so noise on the inputs regularises instead.
#: Its strength has the lowest cross-validated error (``benchmarks/studies/paired_voxels.py``, training rows alone).
VOXELWISE = TrainingConfig(epochs=20, batch_size=256, learning_rate=1e-3, weight_decay=1e-2, noise=0.2, patience=20)


def published_positions(
    target: xr.DataArray, fa: xr.DataArray, mask: xr.DataArray, *, white: float = 255.0
) -> NDArray[np.int64]:
    """Places of the published training patches, for ``mrhdata.patches(sampler=...)``.

    In each coronal slice every sixth or eighth voxel along both axes, where the histology is bright
    enough and the centre lies in the brain (``MRH_trainingPrep.m``). Its nominal stride of 20 is never
    used, and its choice of 42 slices is left to the user: slice the volumes.

    Parameters
    ----------
    target : volume (z, y, x)
        Histology.
    fa : volume (z, y, x)
        Fractional anisotropy, 0 to 1; the code's 102 is 0.4 of 255.
    mask : mask volume
        The brain.
    white : float
        Histology that is 255 on the published scale; 255 for bytes.

    Returns
    -------
    positions : (n, 3) int64 array
        First voxel of each 3 x 3 patch, z, y, x. Patches that hold NaN are left out.

    Raises
    ------
    GridError
        The volumes lie on different grids.

    Examples
    --------
    >>> ones = from_array(np.ones((19, 1, 12), np.float32), spacing=(0.1, 0.1, 0.1))
    >>> published_positions(ones, 0 * ones, ones, white=1).tolist()
    [[0, 0, 0], [0, 0, 8], [8, 0, 0], [8, 0, 8], [16, 0, 0], [16, 0, 8]]
    """
    stacked = stack({"target": target, "fa": fa})
    bytes_, anisotropy = np.asarray(stacked.data, dtype=np.float64) * [[[[255 / white]]], [[[1.0]]]]
    # (z, y, x, 3, 3): the patch at each place where it fits.
    windows = np.lib.stride_tricks.sliding_window_view(bytes_, (PATCH[0], PATCH[2]), axis=(0, 2))
    kept = (windows.sum((-2, -1)) >= LEAST_SUM) & ((windows != 0).sum((-2, -1)) >= LEAST_VOXELS)
    kept &= mask_on(mask, stacked)[1:-1, :, 1:-1]
    many = (anisotropy > ANISOTROPIC).sum((0, 2)) > MANY
    stride = np.where(many, *STRIDES)[None, :, None]
    z, _, x = np.ogrid[tuple(slice(n) for n in kept.shape)]
    return np.argwhere(kept & (z % stride == 0) & (x % stride == 0))


def transfer(model: nn.Module, seed: int = 0) -> nn.Module:
    """A trained network made ready for another stain: its last two convolutions are fresh.

    As the released code does (``MRH_training_Trans.mlx``). Fit it with `TRANSFER`, or, as the paper has
    it, with all but the last three convolutions :func:`frozen`. The network keeps its input scales,
    since they are what its weights know: scaled anew, the same tissue would look different to its first
    layer. The scale of the new target is measured by :func:`mrhdata.fit`.

    Parameters
    ----------
    model : torch.nn.Module
        A trained MRH-Net; it is not changed.
    seed : int
        Of the fresh weights.

    Returns
    -------
    model : torch.nn.Module

    Raises
    ------
    ModelError
        The network is no MRH-Net, or was not trained.

    Examples
    --------
    >>> from mrhdata.models.spec import Scale
    >>> trained = models.create("mrhnet", in_channels=2, loop_blocks=1)
    >>> trained.spec = replace(trained.spec, inputs=Scale((0.0, 0.0), (10.0, 20.0)))
    >>> ready = transfer(trained, seed=1)
    >>> [bool((a == b).all()) for a, b in ((trained.conv1.weight, ready.conv1.weight),
    ...                                    (trained.conv5.weight, ready.conv5.weight))]
    [True, False]
    """
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    if spec.name != "mrhnet" or spec.inputs is None:
        raise ModelError(f"transfer takes a trained mrhnet, not {spec.name} with input scales {spec.inputs}; fit it")
    ready = models.create("mrhnet", seed=seed, **spec.config)
    fresh = {name: value for name, value in ready.state_dict().items() if name.split(".")[0] in REPLACED}
    ready.load_state_dict(model.state_dict() | fresh)
    ready.spec = replace(spec, target=None)  # type: ignore[assignment]
    return ready


def frozen(settings: TrainingConfig, blocks: int) -> TrainingConfig:
    """Settings that train the last three convolutions of a network of so many loop blocks and no other.

    The paper's transfer; of the three the one that :func:`transfer` does not replace has the plain rate.

    Examples
    --------
    >>> frozen(TRANSFER, blocks=4).rates
    (('conv4', 10.0), ('conv5', 10.0), ('conv_loop2.3', 1.0), ('', 0.0))
    """
    return replace(settings, layer_learning_rates=(*_FASTER, (f"conv_loop2.{blocks - 1}", 1.0), ("", 0.0)))


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
    settings: TrainingConfig = VOXELWISE,
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
    model = models.create("mrhnet", in_channels=table.shape[1], loop_blocks=blocks, seed=settings.seed)
    fit(model, parts[0], parts[1], settings, progress=progress)
    return model


def fold_ensemble(
    table: pd.DataFrame,
    target: NDArray[np.floating],
    settings: TrainingConfig = VOXELWISE,
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
