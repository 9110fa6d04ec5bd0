"""A 3D U-Net for every task whose answer is a number per voxel, and what networks of patches share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mrhdata import models
from mrhdata.bench.api import TrainingData
from mrhdata.datasets.subjects import Subject
from mrhdata.inference.predictor import predict
from mrhdata.patching.create import patches
from mrhdata.patching.dataset import Patches
from mrhdata.training.loop import fit
from mrhdata.training.settings import TrainingConfig

UNET = {"widths": (16, 32, 64)}


def about(given: TrainingData, subjects: Sequence[Subject], each: int, box: Sequence[int]) -> list[NDArray[np.int64]]:
    """First voxels of boxes about the first voxels of the manifest in a random order, inside each volume."""
    starts = []
    for number, subject in enumerate(subjects):
        at = given.voxels[subject.id]
        chosen = np.random.default_rng([given.seed, number]).permutation(len(at))[:each]
        top = np.maximum(np.array(subject.first.shape) - box, 0)
        starts.append(np.clip(at[chosen] - np.array(box) // 2, 0, top))
    return starts


def boxes(
    given: TrainingData, subjects: Sequence[Subject], truth: Sequence[Any], each: int, box: Sequence[int]
) -> Patches:
    """Training boxes of inputs and truth on one grid."""
    shortest = np.min([s.first.shape for s in subjects], axis=0)
    shape = np.minimum(box, shortest // 4 * 4)
    return patches(
        [dict(s.inputs) for s in subjects],
        [{"truth": t} for t in truth],
        shape=shape.tolist(),
        sampler=about(given, subjects, each, shape),
        seed=given.seed,
    )


def regress(
    given: TrainingData, truth: Mapping[str, xr.DataArray], settings: TrainingConfig, each: int, box: Sequence[int]
) -> Any:
    """A U-Net trained on values of the truth by subject."""
    model = models.create("unet3d", seed=given.seed, in_channels=len(given.train[0].inputs), classes=1, **UNET)
    learned, watched = (
        boxes(given, part, [truth[s.id] for s in part], each, box) for part in (given.train, given.validation)
    )
    fit(model, learned, watched, settings, checkpoint=given.folder / "unet.pt", progress=False)
    return model


def mapped(given: TrainingData, model: Any, subject: Subject, **how: Any) -> xr.DataArray:
    """A network's map of a subject, in memory."""
    return predict(
        model, dict(subject.inputs), store_of(given, subject), progress=False, overwrite=True, **how
    ).compute()


def store_of(given: TrainingData, subject: Subject) -> Path:
    """Where an answer to a subject is written."""
    place = given.folder / "answers" / f"{subject.id}.zarr".replace(" ", "-")
    place.parent.mkdir(parents=True, exist_ok=True)
    return place
