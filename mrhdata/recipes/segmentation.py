"""What the recipes of segmentation share: which patches of a case are learned from, and how a network is trained."""

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
from mrhdata.training.settings import TrainingConfig
from mrhdata.volume.construct import PLANES

if TYPE_CHECKING:
    from torch import nn

Steps = tuple[tuple[str, dict[str, Any]], ...]


class Sampling(Protocol):
    """Which patches of prepared cases a network learns from."""

    def __call__(self, cases: Sequence[Subject], *, training: bool, seed: int) -> Patches:
        """Patches with inputs and labels; those of validation cover each case once."""


@dataclass(frozen=True)
class Slices:
    """Whole slices, those whose labels are not all background.

    Attributes
    ----------
    plane : {"axial", "coronal", "sagittal"}
    """

    plane: str = "axial"

    def __call__(self, cases: Sequence[Subject], *, training: bool, seed: int) -> Patches:
        """Slices as large as the largest case; smaller ones are filled up with 0."""
        shapes = np.array([next(iter(case.inputs.values())).shape[-3:] for case in cases])
        axis = PLANES[self.plane]
        shape = shapes.max(axis=0)
        shape[axis] = 1
        positions = []
        for case, lengths in zip(cases, shapes, strict=True):
            held = (np.asarray(_labels(case).data) > 0).any(axis=tuple(a for a in range(3) if a != axis))
            start = np.zeros((int(held.sum()), 3), dtype=np.int64) + (lengths - shape) // 2
            start[:, axis] = np.flatnonzero(held)
            positions.append(start)
        even = bool((shapes == shapes[0]).all())
        return _patches(
            cases, shape=shape.tolist(), sampler=positions, plane=self.plane, padding=None if even else "constant"
        )


@dataclass(frozen=True)
class Crops:
    """Boxes drawn at random, a part of them about voxels of each label in turn.

    Attributes
    ----------
    shape : (3,) sequence of int
        Voxels along z, y, x; where the shortest case is shorter, what it has, in whole `multiple`.
    each : int
        Of each case in an epoch.
    labelled : float
        Part of them that is drawn about labels other than the background.
    multiple : (3,) sequence of int
        Of which a network with strides takes whole numbers of voxels.
    """

    shape: tuple[int, int, int]
    each: int = 8
    labelled: float = 0.5
    multiple: tuple[int, int, int] = (4, 8, 8)

    def __call__(self, cases: Sequence[Subject], *, training: bool, seed: int) -> Patches:
        """Drawn boxes for training; for validation those of a grid."""
        shape = self._fitting(cases)
        if not training:
            return _patches(cases, shape=shape.tolist(), stride=shape.tolist())
        labels = [_labels(case) for case in cases]
        found = sorted({int(v) for volume in labels for v in np.unique(volume.data)} - {0, IGNORE_INDEX})
        shares: dict[int | str, float] = {label: self.labelled / len(found) for label in found}
        rest: dict[int | str, float] = {"rest": 1 - self.labelled}
        how = samplers.ClassBalanced(self.each * len(cases), labels, shares | rest, allow_missing=True)
        return _patches(cases, shape=shape.tolist(), sampler=how, seed=seed)

    def _fitting(self, cases: Sequence[Subject]) -> NDArray[np.int64]:
        """The box that lies within every case."""
        shortest = np.min([next(iter(case.inputs.values())).shape[-3:] for case in cases], axis=0)
        found = np.where(shortest < self.shape, shortest // self.multiple * self.multiple, self.shape)
        if not found.all():
            raise DataError(
                f"the shortest case has {shortest.tolist()} voxels along z, y, x, and the network takes multiples of "
                f"{list(self.multiple)}; leave it out, choose a finer spacing, or a recipe that works on slices"
            )
        return np.asarray(found)


@dataclass(frozen=True)
class Cores:
    """Boxes of a grid for a network whose answer is smaller than what it sees, those that hold something to learn.

    Attributes
    ----------
    core : (3,) sequence of int
        Voxels of the answer along z, y, x.
    margin : (3,) sequence of int
        Of the network, on each side.
    background : int or None
        Most boxes of a case whose core holds no label, drawn at random.
    """

    core: tuple[int, int, int]
    margin: tuple[int, int, int]
    background: int | None = None

    def __call__(self, cases: Sequence[Subject], *, training: bool, seed: int) -> Patches:
        """Boxes whose core holds voxels that are not `IGNORE_INDEX`; beyond a volume its edge is repeated."""
        core, margin = np.array(self.core), np.array(self.margin)
        positions = []
        for number, case in enumerate(cases):
            values = np.pad(np.asarray(_labels(case).data), [(0, n) for n in self.core], constant_values=IGNORE_INDEX)
            first = np.argwhere(values != IGNORE_INDEX).min(axis=0)
            extent = np.array(values.shape) - core - first
            start = first + strided(tuple(extent), self.core, self.core, overhang=True)
            labelled, known = (
                fraction_inside(mask, start, self.core) > 0 for mask in (values > 0, values != IGNORE_INDEX)
            )
            bare = np.random.default_rng((seed, number)).permutation(np.flatnonzero(known & ~labelled))
            held = np.sort(np.concatenate([np.flatnonzero(labelled), bare[: self.background]]))
            positions.append(start[held] - margin)
        shape = (core + 2 * margin).tolist()
        return _patches(cases, shape=shape, target_shape=core.tolist(), sampler=positions, padding="edge")


def _patches(cases: Sequence[Subject], **settings: Any) -> Patches:
    return patches([dict(c.inputs) for c in cases], [{"labels": _labels(c)} for c in cases], **settings)


def _labels(case: Subject) -> Any:
    if case.target is None:
        raise DataError(f"{case.id} has no labels to learn from")
    return case.target


@dataclass(frozen=True)
class Recipe:
    """How a network learns to label volumes.

    Attributes
    ----------
    network : str
        For :func:`mrhdata.models.create`.
    config : mapping
        Its settings, without the classes and the channels.
    prepare, finish : steps
        See :mod:`mrhdata.preprocessing.pipeline`.
    sampling : Sampling
    training : sequence of Training
        One after another, each from the best weights of the one before.
    tile, stride : (3,) tuple of int or None
        With tiles, only voxels of tiles with labels are learned from, and `rounds` more that add those with
        false positives (:func:`mrhdata.training.hard_negatives`).
    rounds : int
    again : sequence of Training
        Of the further rounds.
    scale : (float, float) or None
        A fixed offset and factor of the inputs; measured where None.
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


@dataclass
class Trained:
    """A network after each round, and what happened."""

    rounds: list[nn.Module]
    histories: list[list[History]]

    @property
    def model(self) -> nn.Module:
        """After the last round."""
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
    """Train a network to label volumes.

    Parameters
    ----------
    recipe : Recipe
    cases, validation : sequence of Case
        With labels; different subjects. Without any for validation, training is watched on its own cases, and
        the recipe must keep the last weights.
    labels : sequence of int, optional
        Every value of the data set, background first; those of `cases` by default.
    seed : int
    folder : path, optional
        Of checkpoints: a run that was stopped goes on from there.
    progress : bool

    Returns
    -------
    trained : Trained

    Raises
    ------
    DataError
        A subject is in both parts, or has no labels.
    """
    check_disjoint(cases, validation)
    if not validation and any(t.restore_best for t in (*recipe.training, *recipe.again)):
        raise DataError("the best epoch is chosen on validation cases; give some, or a recipe that keeps the last")
    values = label_map([*cases, *validation]) if labels is None else tuple(labels)
    model = _fresh(recipe, cases, values, seed)
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    parts = [[_in_memory(on_network_grid(c, spec)) for c in part] for part in (cases, validation)]
    found: list[list[Any]] = [[None] * len(part) for part in parts]
    trained = Trained([], [])
    for number in range(1 + recipe.rounds):
        learned = [
            [_learned(recipe, case, wrong) for case, wrong in zip(part, wrongs, strict=True)]
            for part, wrongs in zip(parts, found, strict=True)
        ]
        training = recipe.sampling(learned[0], training=True, seed=seed)
        testing = recipe.sampling(learned[1] or learned[0], training=False, seed=seed)
        histories = []
        for stage, settings in enumerate(recipe.again if number else recipe.training):
            path = None if folder is None else folder / f"round-{number + 1}-{stage + 1}.pt"
            # What the first stage measured of the inputs is what the weights know from then on.
            model.spec = replace(model.spec, target=None)  # type: ignore[type-var]
            histories.append(
                fit(model, training, testing, replace(settings, seed=seed), checkpoint=path, progress=progress)
            )
        trained.histories.append(histories)
        trained.rounds.append(whole(model))
        if number < recipe.rounds:
            kept = None if folder is None else folder / f"found-{number + 1}"
            found = [[_found(trained.rounds[-1], case, kept) for case in part] for part in parts]
    return trained


def label_map(cases: Sequence[Subject]) -> tuple[int, ...]:
    """Every label of a data set in order, background 0 first, so that a case without one changes nothing."""
    held = {int(v) for case in cases for v in np.unique(np.asarray(_labels(case).data))}
    return (0, *sorted(held - {0, IGNORE_INDEX}))


def _fresh(recipe: Recipe, cases: Sequence[Subject], values: tuple[int, ...], seed: int) -> nn.Module:
    """The network with what is known before training."""
    channels = len(cases[0].inputs)
    config = {"in_channels": channels, "classes": len(values), **recipe.config}
    model = models.create(recipe.network, seed=seed, **config)
    scale = None
    if recipe.scale is not None:
        count = int(getattr(model, "in_channels", channels))
        scale = IntensityScale((recipe.scale[0],) * count, (recipe.scale[1],) * count)
    model.spec = replace(  # type: ignore[type-var]
        model.spec, labels=values, prepare=recipe.prepare, finish=recipe.finish, inputs=scale
    )
    return model


def _in_memory(case: Subject) -> Subject:
    return replace(case, inputs={k: v.compute() for k, v in case.inputs.items()}, target=_labels(case).compute())


def _learned(recipe: Recipe, case: Subject, found: Any) -> Subject:
    if recipe.tile is None:
        return case
    return replace(case, target=hard_negatives(_labels(case), found, tile=recipe.tile, stride=recipe.stride))


def _found(model: nn.Module, case: Subject, folder: Path | None) -> Any:
    """What the network labels in a case that is prepared already, every voxel, unfinished; made once for a folder."""
    path = None if folder is None else folder / f"{case.id}.zarr"
    if path is not None and path.exists():
        return formats.read(path)
    plain = whole(model)
    plain.spec = replace(plain.spec, prepare=(), finish=())  # type: ignore[type-var]
    found = segment(plain, dict(case.inputs), precision="bfloat16", progress=False)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        formats.write(found, path)
    return found


def whole(model: nn.Module) -> nn.Module:
    """A copy of a network that answers every voxel of what it is given, borders too."""
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    return models.copy(model, **({"border": "replicate"} if spec.name.startswith("fcn3d") else {}))
