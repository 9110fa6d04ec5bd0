"""Tissue and nuclei: label volumes of scans."""

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


def labels_of(given: TrainingData) -> tuple[int, ...]:
    """Every label of the task, background first."""
    return (0, *(int(value) for value in given.settings["labels"].values()))


@method("Gaussian mixture", "tissue", baseline=True)
def mixture(given: TrainingData) -> Answer:
    """Classes of intensity, found anew in each brain from the training means on (scikit-learn).

    Where there is no mask, what is no tissue is a class too.
    """
    from sklearn.mixture import GaussianMixture

    x, y = given.rows()
    masked = given.train[0].mask is not None
    known = labels_of(given)[1 if masked else 0 :]
    # Means in parts of each volume's own brightness, so that another gain is no other tissue.
    bright = float(np.mean(x))
    start = np.array([x[y == label].mean(axis=0) for label in known]) / bright

    def answer(subject: Subject) -> xr.DataArray:
        inside = np.ones(subject.first.shape, bool) if subject.mask is None else np.asarray(subject.mask.data) > 0
        values = np.stack([np.asarray(v.data)[inside] for v in subject.inputs.values()], axis=1).astype(np.float64)
        fitted = GaussianMixture(len(known), means_init=start * values.mean(), random_state=given.seed).fit(values)
        found = np.zeros(inside.shape, np.uint8)
        found[inside] = np.array(known, np.uint8)[fitted.predict(values)]
        return subject.first.copy(data=found).assign_attrs(kind="labels").rename("labels")

    return answer


def _voted(given: TrainingData, subject: Subject, kind: str, members: Sequence[Subject]) -> xr.DataArray:
    """Labels of registered training subjects, the most frequent of each voxel."""
    known = labels_of(given)
    votes = np.zeros((len(known), *subject.first.shape), np.uint8)
    for member in members:
        onto = register(member.first.compute(), subject.first.compute(), kind, seed=given.seed)
        carried = resample(member.target.compute(), subject.first, onto).values
        for row, label in enumerate(known):
            votes[row] += carried == label
    found = np.array(known, np.uint8)[votes.argmax(axis=0)]
    return subject.first.copy(data=found).assign_attrs(kind="labels").rename("labels")


@method("atlas, affine", "tissue", "nuclei", baseline=True)
def atlas(given: TrainingData) -> Answer:
    """Each training subject is laid on the new one by an affine transform; the majority of their labels counts."""
    return lambda subject: _voted(given, subject, "affine", given.train)


@method("multi-atlas, deformable", "nuclei", baseline=True)
def atlases(given: TrainingData) -> Answer:
    """The same after a deformable registration."""
    members = given.train[:2] if given.quick else given.train
    return lambda subject: _voted(given, subject, "affine+deform", members)


def _case(subject: Subject) -> Subject:
    labels = None if subject.target is None else subject.target.compute()
    return Subject(subject.id, {name: v.compute() for name, v in subject.inputs.items()}, labels)


def _trained(given: TrainingData, recipe: segmentation.Recipe) -> FittedMethod:
    """A network of a recipe, trained on the subjects as they lie."""
    trained = segmentation.train(
        recipe,
        [_case(s) for s in given.train],
        [_case(s) for s in given.validation],
        labels=labels_of(given),
        seed=given.seed,
        folder=given.folder,
        progress=False,
    )
    return FittedMethod(lambda subject: segment(trained.model, _case(subject).inputs), trained.model)


def _here(recipe: segmentation.Recipe, given: TrainingData, epochs: int) -> segmentation.Recipe:
    """At the task's own spacing and extent, for so many epochs in every stage."""
    spacing = {"spacing_mm": given.train[0].first.mrh.spacing.tolist()}
    prepare = tuple((n, spacing if n == "upright" else s) for n, s in recipe.prepare if n != "extent")
    training = tuple(replace(t, epochs=epochs, patience=epochs) for t in recipe.training)
    again = tuple(replace(t, epochs=max(1, epochs // 2), patience=epochs) for t in recipe.again)
    return replace(recipe, prepare=prepare, training=training, again=again)


@method("2D network 1_0", "tissue")
def slices(given: TrainingData) -> FittedMethod:
    """One of the small published networks, on slices."""
    recipe = tissue2d.slices("tissue2d_1_0")
    return _trained(given, _here(recipe, given, 4) if given.quick else recipe)


@method("3D U-Net", "tissue", "nuclei")
def unet(given: TrainingData) -> FittedMethod:
    """Boxes, with augmentation."""
    recipe = dgm.unet() if "qsm" in given.train[0].inputs else tissue2d.unet()
    if given.quick:
        crops = segmentation.Crops((16, 48, 48), each=12, labelled=0.8)
        small = {"widths": (16, 32, 64), "strides": ((1, 2, 2), (2, 2, 2))}
        # Small nuclei take longer than tissue that is everywhere.
        epochs = 8 if len(labels_of(given)) < 5 else 20
        recipe = replace(_here(recipe, given, epochs), sampling=crops, config=small)
        recipe = replace(recipe, training=tuple(replace(t, learning_rate=3e-3) for t in recipe.training))
    return _trained(given, recipe)


@method("published 3D network, two rounds", "nuclei")
def published(given: TrainingData) -> FittedMethod:
    """The deep-grey-matter network of the report, with its second round on false positives."""
    recipe = dgm.published()
    return _trained(given, _here(recipe, given, 2) if given.quick else recipe)
