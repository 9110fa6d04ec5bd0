"""A 3D U-Net for every task whose answer is a number per voxel, and helpers for networks on patches."""

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


def draw_positions(
    data: TrainingData, subjects: Sequence[Subject], patches_per_subject: int, patch_size: Sequence[int]
) -> list[NDArray[np.int64]]:
    """Draw positions of patches centred on voxels of the manifest, clipped to each volume."""
    positions = []
    for number, subject in enumerate(subjects):
        voxels = data.voxels[subject.id]
        chosen = np.random.default_rng([data.seed, number]).permutation(len(voxels))[:patches_per_subject]
        last = np.maximum(np.array(subject.first.shape) - patch_size, 0)
        positions.append(np.clip(voxels[chosen] - np.array(patch_size) // 2, 0, last))
    return positions


def paired_patches(
    data: TrainingData,
    subjects: Sequence[Subject],
    truth: Sequence[Any],
    patches_per_subject: int,
    patch_size: Sequence[int],
) -> Patches:
    """Return patches of inputs and ground truth on one grid."""
    shortest = np.min([s.first.shape for s in subjects], axis=0)
    shape = np.minimum(patch_size, shortest // 4 * 4)
    return patches(
        [dict(s.inputs) for s in subjects],
        [{"truth": t} for t in truth],
        shape=shape.tolist(),
        sampler=draw_positions(data, subjects, patches_per_subject, shape),
        seed=data.seed,
    )


def train_unet(
    data: TrainingData,
    truth: Mapping[str, xr.DataArray],
    settings: TrainingConfig,
    patches_per_subject: int,
    patch_size: Sequence[int],
) -> Any:
    """Train a U-Net on the ground truth of each subject."""
    model = models.create("unet3d", seed=data.seed, in_channels=len(data.train[0].inputs), classes=1, **UNET)
    training, validation = (
        paired_patches(data, subjects, [truth[s.id] for s in subjects], patches_per_subject, patch_size)
        for subjects in (data.train, data.validation)
    )
    fit(model, training, validation, settings, checkpoint=data.folder / "unet.pt", progress=False)
    return model


def predict_in_memory(data: TrainingData, model: Any, subject: Subject, **options: Any) -> xr.DataArray:
    """Return the prediction of a network for a subject, in memory."""
    return predict(
        model, dict(subject.inputs), answer_path(data, subject), progress=False, overwrite=True, **options
    ).compute()


def answer_path(data: TrainingData, subject: Subject) -> Path:
    """Return the path of the store for the answer of a subject."""
    path = data.folder / "answers" / f"{subject.id}.zarr".replace(" ", "-")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
