"""Shared code of the segmentation recipes: sampling of training patches, and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mrhdata import models
from mrhdata.datasets.subjects import Subject, check_disjoint
from mrhdata.errors import DataError
from mrhdata.inference.segmenter import on_network_grid, segment
from mrhdata.io import formats
from mrhdata.models.spec import IGNORE_INDEX, IntensityScale, ModelSpec
from mrhdata.patching import samplers
from mrhdata.patching.create import patches
from mrhdata.patching.dataset import Patches
from mrhdata.patching.positions import fraction_inside, strided
from mrhdata.training.history import History
from mrhdata.training.loop import fit
from mrhdata.training.mining import hard_negatives
from mrhdata.training.normalization import keep_input_scale
from mrhdata.training.settings import TrainingConfig
from mrhdata.volume.construct import PLANES

if TYPE_CHECKING:
    from torch import nn

Steps = tuple[tuple[str, dict[str, Any]], ...]


class Sampling(Protocol):
    """Rule that selects training or validation patches of preprocessed subjects."""

    def __call__(self, subjects: Sequence[Subject], *, training: bool, seed: int) -> Patches:
        """Return patches with inputs and labels; validation patches cover each subject once."""


@dataclass(frozen=True)
class Slices:
    """Whole slices that have labels.

    Attributes
    ----------
    plane : {"axial", "coronal", "sagittal"}
        Orientation of the slices.
    """

    plane: str = "axial"

    def __call__(self, subjects: Sequence[Subject], *, training: bool, seed: int) -> Patches:
        """Return slices as large as the largest subject; smaller ones are padded with 0."""
        shapes = np.array([subject.first.shape[-3:] for subject in subjects])
        axis = PLANES[self.plane]
        shape = shapes.max(axis=0)
        shape[axis] = 1
        positions = []
        for subject, lengths in zip(subjects, shapes, strict=True):
            labelled = (np.asarray(labels_of(subject).data) > 0).any(axis=tuple(a for a in range(3) if a != axis))
            start = np.zeros((int(labelled.sum()), 3), dtype=np.int64) + (lengths - shape) // 2
            start[:, axis] = np.flatnonzero(labelled)
            positions.append(start)
        padding = None if (shapes == shapes[0]).all() else "constant"
        return _patches(subjects, shape=shape.tolist(), sampler=positions, plane=self.plane, padding=padding)


@dataclass(frozen=True)
class Crops:
    """Random crops, a fraction of them at voxels of each label.

    Attributes
    ----------
    shape : (3,) sequence of int
        Voxels along z, y, x. Along an axis on which the smallest subject is shorter, its length, rounded down to a
        multiple of `multiple`.
    each : int
        Crops of each subject per epoch.
    labelled : float
        Fraction of the crops at labels other than the background.
    multiple : (3,) sequence of int
        Numbers of voxels of which a strided network takes multiples.
    """

    shape: tuple[int, int, int]
    each: int = 8
    labelled: float = 0.5
    multiple: tuple[int, int, int] = (4, 8, 8)

    def __call__(self, subjects: Sequence[Subject], *, training: bool, seed: int) -> Patches:
        """Return random crops for training, and a grid of crops for validation."""
        shape = self._fitting_shape(subjects)
        if not training:
            return _patches(subjects, shape=shape.tolist(), stride=shape.tolist())
        volumes = [labels_of(subject) for subject in subjects]
        labels = sorted({int(v) for volume in volumes for v in np.unique(volume.data)} - {0, IGNORE_INDEX})
        ratios: dict[int | str, float] = {label: self.labelled / len(labels) for label in labels}
        rest: dict[int | str, float] = {"rest": 1 - self.labelled}
        sampler = samplers.ClassBalanced(self.each * len(subjects), volumes, ratios | rest, allow_missing=True)
        return _patches(subjects, shape=shape.tolist(), sampler=sampler, seed=seed)

    def _fitting_shape(self, subjects: Sequence[Subject]) -> NDArray[np.int64]:
        """Return the shape of a crop that fits into every subject."""
        shortest = np.min([subject.first.shape[-3:] for subject in subjects], axis=0)
        shape = np.where(shortest < self.shape, shortest // self.multiple * self.multiple, self.shape)
        if not shape.all():
            raise DataError(
                f"the smallest subject must have at least {list(self.multiple)} voxels along z, y, x; got "
                f"{shortest.tolist()}. Leave it out, choose a finer spacing, or use a recipe that works on slices."
            )
        return np.asarray(shape)


@dataclass(frozen=True)
class Cores:
    """Patches on a grid for a network whose output is smaller than its input, without ignored cores.

    Attributes
    ----------
    core : (3,) sequence of int
        Output voxels along z, y, x.
    margin : (3,) sequence of int
        Margin of the network on each side, in voxels.
    background : int or None
        Maximum number of patches per subject whose core has no label, drawn at random.
    """

    core: tuple[int, int, int]
    margin: tuple[int, int, int]
    background: int | None = None

    def __call__(self, subjects: Sequence[Subject], *, training: bool, seed: int) -> Patches:
        """Return patches whose core has voxels other than `IGNORE_INDEX`; volumes are padded with their edge."""
        core, margin = np.array(self.core), np.array(self.margin)
        positions = []
        for number, subject in enumerate(subjects):
            labels = np.asarray(labels_of(subject).data)
            values = np.pad(labels, [(0, n) for n in self.core], constant_values=IGNORE_INDEX)
            first = np.argwhere(values != IGNORE_INDEX).min(axis=0)
            extent = np.array(values.shape) - core - first
            start = first + strided(tuple(extent), self.core, self.core, overhang=True)
            labelled, known = (
                fraction_inside(mask, start, self.core) > 0 for mask in (values > 0, values != IGNORE_INDEX)
            )
            background = np.random.default_rng((seed, number)).permutation(np.flatnonzero(known & ~labelled))
            chosen = np.sort(np.concatenate([np.flatnonzero(labelled), background[: self.background]]))
            positions.append(start[chosen] - margin)
        shape = (core + 2 * margin).tolist()
        return _patches(subjects, shape=shape, target_shape=core.tolist(), sampler=positions, padding="edge")


def _patches(subjects: Sequence[Subject], **settings: Any) -> Patches:
    return patches([dict(s.inputs) for s in subjects], [{"labels": labels_of(s)} for s in subjects], **settings)


def labels_of(subject: Subject) -> Any:
    """Return the labels of a subject; raise DataError if it has none."""
    if subject.target is None:
        raise DataError(f"{subject.id} has no labels to learn from")
    return subject.target


@dataclass(frozen=True)
class Recipe:
    """Settings of the training of a segmentation network.

    Attributes
    ----------
    network : str
        Name for :func:`mrhdata.models.create`.
    config : mapping
        Settings of the network, without the numbers of classes and channels.
    prepare, finish : steps
        Preprocessing and postprocessing, see :mod:`mrhdata.preprocessing.pipeline`.
    sampling : Sampling
        Rule that selects patches.
    training : sequence of TrainingConfig
        Stages of the first round, each starting from the best weights of the previous one.
    tile, stride : (3,) tuple of int or None
        Shape and spacing of tiles. The first round learns from tiles with labels only, and further rounds also from
        tiles with false positives (:func:`mrhdata.training.hard_negatives`). None uses all voxels.
    rounds : int
        Number of further rounds.
    again : sequence of TrainingConfig
        Stages of the further rounds.
    scale : (float, float) or None
        Fixed offset and factor of the inputs; None measures them.
    names : mapping of int to str
        Names of labels, as far as they are known.
    """

    network: str
    prepare: Steps
    sampling: Sampling
    training: tuple[TrainingConfig, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    finish: Steps = ()
    tile: tuple[int, int, int] | None = None
    stride: tuple[int, int, int] | None = None
    rounds: int = 0
    again: tuple[TrainingConfig, ...] = ()
    scale: tuple[float, float] | None = None
    names: Mapping[int, str] = field(default_factory=dict)


@dataclass
class Trained:
    """The network after each round, and the training histories of its stages."""

    rounds: list[nn.Module]
    histories: list[list[History]]

    @property
    def model(self) -> nn.Module:
        """Network after the last round."""
        return self.rounds[-1]


def train(
    recipe: Recipe,
    cases: Sequence[Subject],
    validation: Sequence[Subject],
    *,
    labels: Sequence[int] | None = None,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = True,
) -> Trained:
    """Train a network to segment volumes.

    Parameters
    ----------
    recipe : Recipe
        Settings of the training.
    cases, validation : sequence of Subject
        Labelled subjects for training, and others for validation. Without validation subjects, the validation loss is
        that of the training subjects, and the recipe must keep the last weights.
    labels : sequence of int, optional
        All labels of the data set, background first; by default those of the subjects.
    seed : int
        Random seed.
    folder : path, optional
        Folder for checkpoints, from which an interrupted run resumes.
    progress : bool
        Whether to show progress bars.

    Returns
    -------
    trained : Trained
        Networks and histories of all rounds.

    Raises
    ------
    DataError
        A person is in training and validation, or a subject has no labels.
    """
    check_disjoint(cases, validation)
    if not validation and any(t.restore_best for t in (*recipe.training, *recipe.again)):
        raise DataError(
            "the recipe chooses the best epoch on validation subjects; pass some, or a recipe with restore_best=False"
        )
    values = label_map([*cases, *validation]) if labels is None else tuple(labels)
    model = _create_network(recipe, cases, values, seed)
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    parts = [[_in_memory(on_network_grid(s, spec)) for s in part] for part in (cases, validation)]
    predictions: list[list[Any]] = [[None] * len(part) for part in parts]
    trained = Trained([], [])
    for number in range(1 + recipe.rounds):
        training_subjects, validation_subjects = (
            [_with_training_labels(recipe, subject, labels) for subject, labels in zip(part, predicted, strict=True)]
            for part, predicted in zip(parts, predictions, strict=True)
        )
        training_patches = recipe.sampling(training_subjects, training=True, seed=seed)
        validation_patches = recipe.sampling(validation_subjects or training_subjects, training=False, seed=seed)
        histories = []
        for stage, settings in enumerate(recipe.again if number else recipe.training):
            path = None if folder is None else folder / f"round-{number + 1}-{stage + 1}.pt"
            # Later stages keep the input scales of the first one.
            model.spec = keep_input_scale(model.spec)  # type: ignore[assignment, arg-type]
            stage_settings = replace(settings, seed=seed)
            histories.append(
                fit(model, training_patches, validation_patches, stage_settings, checkpoint=path, progress=progress)
            )
        trained.histories.append(histories)
        trained.rounds.append(whole(model))
        if number < recipe.rounds:
            label_folder = None if folder is None else folder / f"found-{number + 1}"
            predictions = [[_predict(trained.rounds[-1], subject, label_folder) for subject in part] for part in parts]
    return trained


def label_map(cases: Sequence[Subject]) -> tuple[int, ...]:
    """Return all labels of a data set in order, background 0 first, also those that some subjects lack."""
    labels = {int(v) for subject in cases for v in np.unique(np.asarray(labels_of(subject).data))}
    return (0, *sorted(labels - {0, IGNORE_INDEX}))


def _create_network(recipe: Recipe, subjects: Sequence[Subject], values: tuple[int, ...], seed: int) -> nn.Module:
    """Return the untrained network with its labels, steps and fixed scales."""
    channels = len(subjects[0].inputs)
    config = {"in_channels": channels, "classes": len(values), **recipe.config}
    model = models.create(recipe.network, seed=seed, **config)
    scale = None
    if recipe.scale is not None:
        count = int(getattr(model, "in_channels", channels))
        scale = IntensityScale((recipe.scale[0],) * count, (recipe.scale[1],) * count)
    names = ("background", *(recipe.names.get(v, str(v)) for v in values[1:])) if recipe.names else ()
    model.spec = replace(  # type: ignore[type-var]
        model.spec, labels=values, label_names=names, prepare=recipe.prepare, finish=recipe.finish, inputs=scale
    )
    return model


def _in_memory(subject: Subject) -> Subject:
    inputs = {name: volume.compute() for name, volume in subject.inputs.items()}
    return replace(subject, inputs=inputs, target=labels_of(subject).compute())


def _with_training_labels(recipe: Recipe, subject: Subject, prediction: Any) -> Subject:
    """Return a subject whose labels are ignored outside tiles with labels or false positives."""
    if recipe.tile is None:
        return subject
    labels = hard_negatives(labels_of(subject), prediction, tile=recipe.tile, stride=recipe.stride)
    return replace(subject, target=labels)


def _predict(model: nn.Module, subject: Subject, folder: Path | None) -> Any:
    """Return the labels of every voxel of a preprocessed subject, without postprocessing; a folder stores them."""
    path = None if folder is None else folder / f"{subject.id}.zarr"
    if path is not None and path.exists():
        return formats.read(path)
    plain = whole(model)
    plain.spec = replace(plain.spec, prepare=(), finish=())  # type: ignore[type-var]
    labels = segment(plain, dict(subject.inputs), precision="auto", progress=False)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        formats.write(labels, path)
    return labels


def whole(model: nn.Module) -> nn.Module:
    """Return a copy of a network whose output covers its whole input, including the borders."""
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    return models.copy(model, **({"border": "replicate"} if spec.name.startswith("fcn3d") else {}))
