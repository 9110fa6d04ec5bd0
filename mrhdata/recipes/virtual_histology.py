"""Virtual histology of a study: train MRH-Net on some subjects and predict whole-brain maps of others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from mrhdata import models
from mrhdata.datasets.subjects import Subject, check_disjoint, find_subjects
from mrhdata.errors import DataError
from mrhdata.inference.predictor import predict
from mrhdata.patching.create import patches
from mrhdata.recipes.mrhnet import PATCH, RECOMMENDED
from mrhdata.registration.resampling import resample
from mrhdata.training.history import History
from mrhdata.training.loop import fit
from mrhdata.training.settings import TrainingConfig

if TYPE_CHECKING:
    from torch import nn


def find_brains(folder: str | Path, inputs: dict[str, str], histology: str, mask: str | None = None) -> list[Subject]:
    """Find the brains of a folder by patterns of file names, as :func:`mrhdata.datasets.subjects.find_subjects`.

    Raises
    ------
    DataError
        A channel has the name ``histology`` or ``mask``, or `find_subjects` raises an error.
    """
    others = {"histology": histology, **({} if mask is None else {"mask": mask})}
    reserved = sorted(inputs.keys() & {"histology", "mask"})
    if reserved:
        raise DataError(f"channels must not have the names histology or mask; got {reserved}. Rename them.")
    brains = []
    for subject in find_subjects(folder, {**inputs, **others}):
        volumes = dict(subject.inputs)
        truth, brain_mask = volumes.pop("histology"), volumes.pop("mask", None)
        brains.append(Subject(subject.id, volumes, target=truth, mask=brain_mask, ending=subject.ending))
    return brains


def train(
    training: Sequence[Subject],
    validation: Sequence[Subject],
    settings: TrainingConfig = RECOMMENDED,
    *,
    stride: int = 1,
    loop_blocks: int = 4,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> tuple[nn.Module, History]:
    """Train MRH-Net on patches of some brains, with early stopping on others.

    Parameters
    ----------
    training, validation : sequence of Subject
        Whole subjects, whose contrasts have the same units.
    settings : TrainingConfig
        Settings of the training.
    stride : int
        Voxels between neighbouring patches.
    loop_blocks : int
        Number of loop blocks of the network.
    checkpoint : path, optional
        Checkpoint file, from which an interrupted training resumes.
    progress : bool
        Whether to show progress bars.

    Returns
    -------
    model : torch.nn.Module
        Trained network.
    history : History
        History of the training.

    Raises
    ------
    DataError
        A person is in training and in validation.
    """
    check_disjoint(training, validation)
    training_patches, validation_patches = (
        patches(
            [dict(b.inputs) for b in part],
            [{"histology": b.target} for b in part],
            shape=PATCH,
            stride=stride,
            plane="coronal",
            mask=[b.mask for b in part if b.mask is not None] or None,
            grids="resample",
        )
        for part in (training, validation)
    )
    model = models.create("mrhnet", in_channels=len(training[0].inputs), loop_blocks=loop_blocks, seed=settings.seed)
    history = fit(model, training_patches, validation_patches, settings, checkpoint=checkpoint, progress=progress)
    return model, history


def map_and_score(model: nn.Module, brain: Subject, folder: Path, *, progress: bool = True) -> dict[str, float]:
    """Predict a brain's map, write it to ``maps`` in the folder (in the format of the first contrast), and score it."""
    path = folder / "maps" / f"sub-{brain.id}{brain.ending}"
    path.parent.mkdir(exist_ok=True)
    prediction = predict(
        model, brain.inputs, path, mask=brain.mask, grids="resample", name="virtual", overwrite=True, progress=progress
    )
    return score(brain, prediction)


def score(brain: Subject, prediction: xr.DataArray) -> dict[str, float]:
    """Compare a predicted map with the histology of a brain over its mask.

    Returns
    -------
    scores : dict of str to float
        ``R2`` (below 0 if the mean is a better prediction), ``RMSE`` in the histology's units, ``correlation``.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> af = from_array(np.arange(8.0).reshape(2, 2, 2), spacing=(1, 1, 1))
    >>> score(Subject("01", {"t2w": af}, target=af), af + 1)
    {'R2': 0.8095238095238095, 'RMSE': 1.0, 'correlation': 1.0}
    """
    truth = resample(brain.target.astype(np.float32), prediction, fill=np.nan)
    inside = np.isfinite(truth.values)
    if brain.mask is not None:
        inside &= resample(brain.mask.assign_attrs(kind="mask"), prediction).values > 0
    expected, predicted = (np.asarray(v.values, np.float64)[inside] for v in (truth, prediction))
    error = np.mean((predicted - expected) ** 2)
    return {
        "R2": float(1 - error / expected.var()),
        "RMSE": float(np.sqrt(error)),
        "correlation": float(np.corrcoef(predicted, expected)[0, 1]),
    }
