"""Virtual histology of a study: MRH-Net learns from the brains of some subjects and is mapped over those of others."""

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
    """Brains of a folder, by patterns of file names as :func:`mrhdata.datasets.subjects.find_subjects` takes them.

    Raises
    ------
    DataError
        A channel is called as histology or mask are here, or what `find_subjects` raises.
    """
    others = {"histology": histology, **({} if mask is None else {"mask": mask})}
    taken = sorted(inputs.keys() & {"histology", "mask"})
    if taken:
        raise DataError(f"the channels {taken} cannot be called so; give another name")
    found = []
    for case in find_subjects(folder, {**inputs, **others}):
        volumes = dict(case.inputs)
        truth, tissue = volumes.pop("histology"), volumes.pop("mask", None)
        found.append(Subject(case.id, volumes, target=truth, mask=tissue, ending=case.ending))
    return found


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
    """Train MRH-Net on patches of some brains, stopped by its error on others.

    Parameters
    ----------
    training, validation : sequence of Subject
        Whole subjects; contrasts of all are to be in the same units.
    settings : Training
    stride : int
        Voxels from one patch to the next.
    loop_blocks : int
        Loop blocks of the network.
    checkpoint : path, optional
        A training that was stopped goes on from there.
    progress : bool

    Returns
    -------
    model : torch.nn.Module
    history : History

    Raises
    ------
    DataError
        Somebody is in training and in validation.
    """
    check_disjoint(training, validation)
    planned = [
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
    ]
    model = models.create("mrhnet", in_channels=len(training[0].inputs), loop_blocks=loop_blocks, seed=settings.seed)
    return model, fit(model, planned[0], planned[1], settings, checkpoint=checkpoint, progress=progress)


def map_and_score(model: nn.Module, brain: Subject, folder: Path, *, progress: bool = True) -> dict[str, float]:
    """Scores of a brain's map, which is written to ``maps`` in the folder, in the format of its first contrast."""
    path = folder / "maps" / f"sub-{brain.id}{brain.ending}"
    path.parent.mkdir(exist_ok=True)
    found = predict(
        model, brain.inputs, path, mask=brain.mask, grids="resample", name="virtual", overwrite=True, progress=progress
    )
    return score(brain, found)


def score(brain: Subject, found: xr.DataArray) -> dict[str, float]:
    """How a map of a brain agrees with its histology over its mask.

    Returns
    -------
    scores : dict of str to float
        ``R2`` (below 0 where the mean would be nearer), ``RMSE`` in the histology's units, ``correlation``.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> af = from_array(np.arange(8.0).reshape(2, 2, 2), spacing=(1, 1, 1))
    >>> score(Subject("01", {"t2w": af}, histology=af), af + 1)
    {'R2': 0.8095238095238095, 'RMSE': 1.0, 'correlation': 1.0}
    """
    truth = resample(brain.target.astype(np.float32), found, fill=np.nan)
    inside = np.isfinite(truth.values)
    if brain.mask is not None:
        inside &= resample(brain.mask.assign_attrs(kind="mask"), found).values > 0
    wanted, given = (np.asarray(v.values, np.float64)[inside] for v in (truth, found))
    error = np.mean((given - wanted) ** 2)
    return {
        "R2": float(1 - error / wanted.var()),
        "RMSE": float(np.sqrt(error)),
        "correlation": float(np.corrcoef(given, wanted)[0, 1]),
    }
