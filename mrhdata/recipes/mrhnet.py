"""MRH-Net: the published training settings, and the recommended ones.

Published (Liang et al. 2022, eLife 11:e72331, and its code): stochastic gradient descent at 0.1, gradients clipped
to 0.01, inputs scaled by one maximum over all channels of each test slice, validation on patches drawn from
the same voxels, the last weights. Here: input scales per channel, fixed at training; validation on other
subjects or blocks; Adam with decoupled weight decay on a one-cycle schedule; the epoch with the lowest
validation loss. ``benchmarks/studies/mrhnet_recipe.py`` measures the effect of each published choice.
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
from mrhdata.training.normalization import keep_input_scale
from mrhdata.training.settings import TrainingConfig
from mrhdata.volume.construct import from_array
from mrhdata.volume.groups import mask_on, stack

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from torch import nn

#: Coronal patch (z, y, x) of the published system.
PATCH = (3, 1, 3)
#: Published rules for training patches, with histology in bytes: least sum, least number of voxels above 0.
LEAST_SUM, LEAST_VOXELS = 30, 4
#: Slices with more than `MANY` voxels of FA above `ANISOTROPIC` have patches at every 6th voxel, others at every 8th.
ANISOTROPIC, MANY, STRIDES = 0.4, 1000, (6, 8)
#: Layers that transfer replaces; their learning rate is ten times higher.
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
    # As in the released code; the paper stops early and keeps the lowest validation loss.
    restore_best=False,
)

RECOMMENDED = TrainingConfig(
    epochs=12, batch_size=128, learning_rate=1e-3, weight_decay=1e-2, max_grad_norm=1.0, patience=5
)

#: Fine-tuning after :func:`transfer`: the new layers have ten times the learning rate of the others.
TRANSFER = replace(RECOMMENDED, learning_rate=1e-4, layer_learning_rates=_FASTER)

#: Settings for tables of single voxels. No neighbours average the noise, so noise on the inputs regularises instead;
#: its strength has the lowest cross-validated error on training rows (``benchmarks/studies/paired_voxels.py``).
VOXELWISE = TrainingConfig(epochs=20, batch_size=256, learning_rate=1e-3, weight_decay=1e-2, noise=0.2, patience=20)


def published_positions(
    target: xr.DataArray, fa: xr.DataArray, mask: xr.DataArray, *, white: float = 255.0
) -> NDArray[np.int64]:
    """Return the positions of the published training patches, for ``mrhdata.patches(sampler=...)``.

    Patches are at every sixth or eighth voxel along both axes of each coronal slice, if the histology is bright
    enough and the centre is in the brain (``MRH_trainingPrep.m``). The nominal stride of 20 in that code is never
    used. Its choice of 42 slices is not applied: slice the volumes to do so.

    Parameters
    ----------
    target : volume (z, y, x)
        Histology.
    fa : volume (z, y, x)
        Fractional anisotropy, 0 to 1; the published code has 102 of 255 for 0.4.
    mask : mask volume
        Brain mask.
    white : float
        Histology value that is 255 on the published scale; 255 for bytes.

    Returns
    -------
    positions : (n, 3) int64 array
        First voxel (z, y, x) of each 3 x 3 patch, without patches that have NaN.

    Raises
    ------
    GridError
        The volumes have different grids.

    Examples
    --------
    >>> ones = from_array(np.ones((19, 1, 12), np.float32), spacing=(0.1, 0.1, 0.1))
    >>> published_positions(ones, 0 * ones, ones, white=1).tolist()
    [[0, 0, 0], [0, 0, 8], [8, 0, 0], [8, 0, 8], [16, 0, 0], [16, 0, 8]]
    """
    stacked = stack({"target": target, "fa": fa})
    bytes_, anisotropy = np.asarray(stacked.data, dtype=np.float64) * [[[[255 / white]]], [[[1.0]]]]
    # All patches: (z, y, x, 3, 3).
    windows = np.lib.stride_tricks.sliding_window_view(bytes_, (PATCH[0], PATCH[2]), axis=(0, 2))
    allowed = (windows.sum((-2, -1)) >= LEAST_SUM) & ((windows != 0).sum((-2, -1)) >= LEAST_VOXELS)
    allowed &= mask_on(mask, stacked)[1:-1, :, 1:-1]
    many_fibres = (anisotropy > ANISOTROPIC).sum((0, 2)) > MANY
    stride = np.where(many_fibres, *STRIDES)[None, :, None]
    z, _, x = np.ogrid[tuple(slice(n) for n in allowed.shape)]
    return np.argwhere(allowed & (z % stride == 0) & (x % stride == 0))


def transfer(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy of a trained network for another stain: its last two convolutions are initialised again.

    This is the transfer of the released code (``MRH_training_Trans.mlx``). Fit the copy with `TRANSFER`, or, as in the
    paper, with all but the last three convolutions :func:`frozen`. The network keeps its input scales, because
    with other scales the same tissue would have other values in its first layer. :func:`mrhdata.fit` measures the
    scale of the new target.

    Parameters
    ----------
    model : torch.nn.Module
        Trained MRH-Net; it is not changed.
    seed : int
        Random seed of the new weights.

    Returns
    -------
    model : torch.nn.Module
        Network to fit to the new stain.

    Raises
    ------
    ModelError
        The network is not an MRH-Net, or was not trained.

    Examples
    --------
    >>> from mrhdata.models.spec import IntensityScale
    >>> trained = models.create("mrhnet", in_channels=2, loop_blocks=1)
    >>> trained.spec = replace(trained.spec, inputs=IntensityScale((0.0, 0.0), (10.0, 20.0)))
    >>> copy = transfer(trained, seed=1)
    >>> [bool((a == b).all()) for a, b in ((trained.conv1.weight, copy.conv1.weight),
    ...                                    (trained.conv5.weight, copy.conv5.weight))]
    [True, False]
    """
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    if spec.name != "mrhnet" or spec.inputs is None:
        raise ModelError(
            f"model must be a trained mrhnet; got {spec.name} with input scales {spec.inputs}. Fit an mrhnet first."
        )
    network = models.create("mrhnet", seed=seed, **spec.config)
    new_weights = {name: value for name, value in network.state_dict().items() if name.split(".")[0] in REPLACED}
    network.load_state_dict(model.state_dict() | new_weights)
    network.spec = keep_input_scale(spec)  # type: ignore[assignment]
    return network


def frozen(settings: TrainingConfig, blocks: int) -> TrainingConfig:
    """Return settings that train only the last three convolutions of a network with a number of loop blocks.

    This is the paper's transfer. The one of the three that :func:`transfer` does not replace has the plain rate.

    Examples
    --------
    >>> frozen(TRANSFER, blocks=4).layer_learning_rates
    (('conv4', 10.0), ('conv5', 10.0), ('conv_loop2.3', 1.0), ('', 0.0))
    """
    return replace(settings, layer_learning_rates=(*_FASTER, (f"conv_loop2.{blocks - 1}", 1.0), ("", 0.0)))


def table_volume(table: pd.DataFrame | NDArray[np.floating]) -> xr.DataArray:
    """Return the rows of a voxel table as a volume one voxel high and wide: channels c, rows along x.

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
    """Train MRH-Net voxelwise on a table.

    Parameters
    ----------
    table : DataFrame
        Table with a row per voxel and a column per contrast.
    target : (n,) array
        Histology values.
    validation : (n,) bool array
        Rows for early stopping. Use a contiguous block, because neighbouring rows are correlated.
    settings : TrainingConfig
        Settings of the training.
    blocks : int
        Number of loop blocks of the network.
    progress : bool
        Whether to show progress bars.

    Returns
    -------
    model : torch.nn.Module
        Trained network.
    """
    if validation.all() or not validation.any():
        raise DataError(
            f"validation must select some rows, but not all; got {validation.sum()} of {len(validation)} rows"
        )
    training_patches, validation_patches = (
        patches(table_volume(table[rows]), table_volume(np.asarray(target)[rows]), shape=1)
        for rows in (~validation, validation)
    )
    model = models.create("mrhnet", in_channels=table.shape[1], loop_blocks=blocks, seed=settings.seed)
    fit(model, training_patches, validation_patches, settings, progress=progress)
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

    Every row is used for training by some network, and no network stops on its own training rows.
    """
    parts: Sequence[NDArray[np.int64]] = np.array_split(np.arange(len(table)), folds)
    networks = []
    for seed, rows in enumerate(parts):
        validation = np.zeros(len(table), dtype=bool)
        validation[rows] = True
        seeded = replace(settings, seed=settings.seed + seed)
        networks.append(train_on_rows(table, target, validation, seeded, progress=progress))
    return networks
