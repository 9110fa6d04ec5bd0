"""Label volumes of tissue and of nuclei."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from mrhdata.bench.api import Answer, FittedMethod, TrainingData, method
from mrhdata.datasets.subjects import Subject
from mrhdata.inference.segmenter import segment
from mrhdata.recipes import dgm, segmentation, tissue2d
from mrhdata.registration.pipeline import register
from mrhdata.registration.resampling import resample


def labels_of(data: TrainingData) -> tuple[int, ...]:
    """Return all labels of the task, background first."""
    return (0, *(int(value) for value in data.settings["labels"].values()))


@method("Gaussian mixture", "tissue", baseline=True)
def mixture(data: TrainingData) -> Answer:
    """Fit a Gaussian mixture to each test brain, starting from the class means of the training brains (scikit-learn).

    Without a mask, the background is one of the classes.
    """
    from sklearn.mixture import GaussianMixture

    x, y = data.rows()
    masked = data.train[0].mask is not None
    labels = labels_of(data)[1 if masked else 0 :]
    # Means relative to the brightness of the volume do not depend on the scanner's gain.
    brightness = float(np.mean(x))
    start = np.array([x[y == label].mean(axis=0) for label in labels]) / brightness

    def answer(subject: Subject) -> xr.DataArray:
        inside = np.ones(subject.first.shape, bool) if subject.mask is None else np.asarray(subject.mask.data) > 0
        values = np.stack([np.asarray(v.data)[inside] for v in subject.inputs.values()], axis=1).astype(np.float64)
        fitted = GaussianMixture(len(labels), means_init=start * values.mean(), random_state=data.seed).fit(values)
        segmentation = np.zeros(inside.shape, np.uint8)
        segmentation[inside] = np.array(labels, np.uint8)[fitted.predict(values)]
        return subject.first.copy(data=segmentation).assign_attrs(kind="labels").rename("labels")

    return answer


def _fuse_labels(data: TrainingData, subject: Subject, kind: str, members: Sequence[Subject]) -> xr.DataArray:
    """Register training subjects to a subject, and return the most frequent of their labels in each voxel."""
    labels = labels_of(data)
    votes = np.zeros((len(labels), *subject.first.shape), np.uint8)
    for member in members:
        transform = register(member.first.compute(), subject.first.compute(), kind, seed=data.seed)
        warped = resample(member.target.compute(), subject.first, transform).values
        for row, label in enumerate(labels):
            votes[row] += warped == label
    majority = np.array(labels, np.uint8)[votes.argmax(axis=0)]
    return subject.first.copy(data=majority).assign_attrs(kind="labels").rename("labels")


@method("atlas, affine", "tissue", "nuclei", baseline=True)
def atlas(data: TrainingData) -> Answer:
    """Register each training subject by an affine transform, and take the majority of their labels."""
    return lambda subject: _fuse_labels(data, subject, "affine", data.train)


@method("multi-atlas, deformable", "nuclei", baseline=True)
def atlases(data: TrainingData) -> Answer:
    """Register training subjects by a deformable transform, and take the majority of their labels."""
    members = data.train[:2] if data.quick else data.train
    return lambda subject: _fuse_labels(data, subject, "affine+deform", members)


def _load(subject: Subject) -> Subject:
    """Return a subject in memory, without its mask."""
    labels = None if subject.target is None else subject.target.compute()
    return Subject(subject.id, {name: v.compute() for name, v in subject.inputs.items()}, labels)


def _train(data: TrainingData, recipe: segmentation.Recipe) -> FittedMethod:
    """Train the network of a recipe."""
    trained = segmentation.train(
        recipe,
        [_load(s) for s in data.train],
        [_load(s) for s in data.validation],
        labels=labels_of(data),
        seed=data.seed,
        folder=data.folder,
        progress=False,
    )
    return FittedMethod(lambda subject: segment(trained.model, _load(subject).inputs, progress=False), trained.model)


def _shorten(recipe: segmentation.Recipe, data: TrainingData, epochs: int) -> segmentation.Recipe:
    """Return a recipe for the spacing and extent of the task with a number of epochs in every stage."""
    spacing = {"spacing_mm": data.train[0].first.mrh.spacing.tolist()}
    prepare = tuple((n, spacing if n == "upright" else s) for n, s in recipe.prepare if n != "extent")
    training = tuple(replace(t, epochs=epochs, patience=epochs) for t in recipe.training)
    again = tuple(replace(t, epochs=max(1, epochs // 2), patience=epochs) for t in recipe.again)
    return replace(recipe, prepare=prepare, training=training, again=again)


@method("2D network 1_0", "tissue")
def slices(data: TrainingData) -> FittedMethod:
    """Train one of the small published networks on slices."""
    recipe = tissue2d.slices("tissue2d_1_0")
    return _train(data, _shorten(recipe, data, 4) if data.quick else recipe)


@method("3D U-Net", "tissue", "nuclei")
def unet(data: TrainingData) -> FittedMethod:
    """Train a U-Net on crops with augmentation."""
    recipe = dgm.unet() if "qsm" in data.train[0].inputs else tissue2d.unet()
    if data.quick:
        crops = segmentation.Crops((16, 48, 48), each=12, labelled=0.8)
        small = {"widths": (16, 32, 64), "strides": ((1, 2, 2), (2, 2, 2))}
        # Small nuclei need more epochs than tissue, which fills every crop.
        epochs = 8 if len(labels_of(data)) < 5 else 20
        recipe = replace(_shorten(recipe, data, epochs), sampling=crops, config=small)
        recipe = replace(recipe, training=tuple(replace(t, learning_rate=3e-3) for t in recipe.training))
    return _train(data, recipe)


@method("published 3D network, two rounds", "nuclei")
def published(data: TrainingData) -> FittedMethod:
    """Train the published deep-grey-matter network, with its second round on false positives."""
    recipe = dgm.published()
    return _train(data, _shorten(recipe, data, 2) if data.quick else recipe)
