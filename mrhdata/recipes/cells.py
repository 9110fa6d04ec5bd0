"""Detect cells in cleared tissue: a small 3D network learns from annotated points, and then from its own errors.

```
brain + annotations --annotation_labels--> labels on the grid of scores --patches--> training
   ^                                                                                    |
   +---- errors of the network (hard negatives) <---- scores of the training brains <---+
```

Published (2020, a report; based on Dou et al. 2016, IEEE TMI 35:1182): patches of 12 x 12 x 12 voxels at annotations,
ten negatives for each, 6 to 20 voxels away, then a second training with some false positives and all misses. That
network saw no background far from cells and no vessels; cells without an annotation counted as background.

Here the network learns from larger patches, in which every score is one 12 x 12 x 12 patch. Half of the larger patches
are at annotations or errors of an earlier round, half anywhere.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import expit

from mrhdata import models
from mrhdata.datasets.subjects import Subject, check_disjoint
from mrhdata.errors import DataError
from mrhdata.inference.detector import detect_cells, score_volume, scoring
from mrhdata.inference.peaks import Peaks
from mrhdata.inference.voxelwise import predict_patches
from mrhdata.metrics.detection import best_threshold
from mrhdata.models.cells3d import SCREENED
from mrhdata.models.spec import IGNORE_INDEX
from mrhdata.patching import samplers
from mrhdata.patching.create import patches
from mrhdata.patching.dataset import Patches
from mrhdata.patching.positions import shares
from mrhdata.training.augmentation import Augmentation
from mrhdata.training.history import History
from mrhdata.training.loop import fit
from mrhdata.training.mining import hard_negatives
from mrhdata.training.normalization import keep_input_scale
from mrhdata.training.settings import TrainingConfig
from mrhdata.volume.assumptions import LENGTHS, require_stated
from mrhdata.volume.construct import SPATIAL, place
from mrhdata.volume.dtypes import full_scale

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

Floats = NDArray[np.float64]
Labels = NDArray[np.int16]

#: Input voxels between neighbouring scores, and the centre of the first score in input voxels.
STRIDE, FIRST_CENTRE = 2, (SCREENED[0] - 1) / 2
#: Score above which background in an incompletely annotated brain is ignored, because it may be a cell.
_POSSIBLE_CELL = 0.3
#: Score from which background counts as a false positive.
_FALSE_POSITIVE = 0.5
#: Score from which candidates are kept for the choice of the threshold.
_LEAST_CANDIDATE = 0.05
#: Patches in one batch of scoring.
_BATCH_SIZE = 512


@dataclass(frozen=True)
class AnnotationRules:
    """Rules that turn annotated points into labels of the scores around them.

    Attributes
    ----------
    near_mm, beyond_mm : float
        A score is a cell within `near_mm` of an annotation (the nearest score always is), and background farther than
        `beyond_mm`. Scores between them are ignored.
    shell_mm : float
        Greatest distance of background from an annotation; scores farther away are ignored.
    negatives : float or None
        Background scores per cell score, drawn at random; None keeps all.
    """

    near_mm: float
    beyond_mm: float
    shell_mm: float = np.inf
    negatives: float | None = None


@dataclass(frozen=True)
class Recipe:
    """Settings of the training of a cell detector.

    Attributes
    ----------
    rules : AnnotationRules
        Rules that turn annotations into labels.
    peaks : Peaks
        Definition of a detection; its threshold is chosen on the validation brains.
    training, again : TrainingConfig
        Settings of the first round and of the further rounds.
    rounds : int
        Number of further rounds, each with the false positives and misses of the previous one.
    network, config : str, mapping
        Name and settings for :func:`mrhdata.models.create`.
    patch_size : int
        Edge of a training patch, in scores; smaller along an axis on which a brain has fewer.
    patches_per_brain : int
        Training patches of each brain.
    targeted_fraction : float
        Fraction of the patches at annotations and at errors of the network.
    """

    rules: AnnotationRules
    peaks: Peaks
    training: TrainingConfig
    again: TrainingConfig
    rounds: int = 0
    network: str = "cells3d"
    config: Mapping[str, Any] = field(default_factory=dict)
    patch_size: int = 17
    patches_per_brain: int = 200
    targeted_fraction: float = 0.5


_FLIPS_AND_INTENSITY = Augmentation(
    degrees=0, zoom=0, stretch=0, share=0, flip=(0, 1, 2), gain=0.2, offset=0.2, gamma=0.2, noise=0
)
PUBLISHED = TrainingConfig(
    epochs=6, batch_size=8, learning_rate=1e-3, loss="cross-entropy", precision="auto", patience=6
)
RECOMMENDED = replace(
    PUBLISHED,
    epochs=10,
    patience=10,
    loss="dice+cross-entropy",
    augment=_FLIPS_AND_INTENSITY,
    learning_rate=2e-3,
    weight_decay=1e-4,
)
#: Narrow network: a quarter of the multiplications of the published widths.
NARROW = {"widths": (32, 32, 32, 64)}


def published_recipe(voxel_mm: float) -> Recipe:
    """Return the published recipe: ten negatives per positive, 6 to 20 voxels from annotations, one further round."""
    rules = AnnotationRules(voxel_mm, 6 * voxel_mm, 20 * voxel_mm, negatives=10)
    again = replace(PUBLISHED, epochs=3, patience=3, learning_rate=3e-4)
    return Recipe(rules, _peaks(voxel_mm), PUBLISHED, again, rounds=1)


def recommended_recipe(voxel_mm: float) -> Recipe:
    """Return the recommended recipe: background everywhere, including vessels and tissue far from cells."""
    rules = AnnotationRules(2 * voxel_mm, 4 * voxel_mm)
    again = replace(RECOMMENDED, epochs=3, patience=3, learning_rate=6e-4)
    return Recipe(rules, _peaks(voxel_mm), RECOMMENDED, again, config=NARROW)


def _peaks(voxel_mm: float) -> Peaks:
    return Peaks(0.5, radius_mm=5 * voxel_mm, smooth_mm=voxel_mm)


@dataclass
class Trained:
    """The network and the training history of each round."""

    rounds: list[nn.Module]
    histories: list[History]

    @property
    def model(self) -> nn.Module:
        """Network after the last round; its ``spec.finish`` defines a detection."""
        return self.rounds[-1]


def annotation_labels(
    brain: Subject, rules: AnnotationRules, *, scores: xr.DataArray | None = None, seed: int = 0
) -> xr.DataArray:
    """Return training labels on the grid of the network's scores.

    Parameters
    ----------
    brain : Subject
        Brain with annotated points.
    rules : AnnotationRules
        Rules that turn annotations into labels.
    scores : score volume, optional
        Scores of an earlier network. In an incompletely annotated brain, its possible cells are ignored.
    seed : int
        Random seed of the drawn background.

    Returns
    -------
    labels : (z, y, x) label volume, int16
        1 for cells, 0 for background, `IGNORE_INDEX` for ignored scores.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> volume = from_array(np.zeros((12, 12, 40), np.float32), spacing=(1, 1, 1))
    >>> brain = Subject("01", {"signal": volume}, points=volume.mrh.world([[5.5, 5.5, 15.5]]))
    >>> annotation_labels(brain, AnnotationRules(2, 6, 12)).values.ravel().tolist()
    [0, 0, -1, -1, 1, 1, 1, -1, -1, 0, 0, 0, -1, -1, -1]
    """
    volume = next(iter(brain.inputs.values()))
    # The rules are in mm.
    require_stated(volume, f"{brain.id}: {volume.name}", *LENGTHS)
    grid = volume.mrh.grid
    shape = tuple((n - SCREENED[0]) // STRIDE + 1 for n in grid.shape)
    if min(shape) < 1:
        raise DataError(f"{brain.id} has {grid.shape} voxels; the network needs at least {SCREENED}")
    labels = _label_by_distance(shape, (grid.index(brain.points) - FIRST_CENTRE) / STRIDE, STRIDE * grid.spacing, rules)
    if scores is not None and not brain.points_complete:
        labels[(labels == 0) & (_as_fraction(scores) >= _POSSIBLE_CELL)] = IGNORE_INDEX
    if rules.negatives is not None:
        _thin_background(labels, rules.negatives, seed)
    starts = np.array([float(volume.coords[d][0]) for d in SPATIAL]) + FIRST_CENTRE * grid.spacing
    return place(
        labels, SPATIAL, STRIDE * grid.spacing, volume.attrs["affine"], start=starts, space=volume.mrh.space,
        kind="labels", name="cells",
    )  # fmt: skip


def _label_by_distance(shape: Sequence[int], points: Floats, spacing: Floats, rules: AnnotationRules) -> Labels:
    """Label each score by its distance from the nearest of the points (n, 3), which are indices of scores."""
    unlimited = np.isinf(rules.shell_mm)
    labels = np.full(shape, 0 if unlimited else IGNORE_INDEX, np.int16)
    if not len(points):
        return labels
    tree = cKDTree(points * spacing)
    reach = np.ceil((rules.beyond_mm if unlimited else rules.shell_mm) / spacing).astype(int)
    last = np.array(shape) - 1
    for centre in np.rint(points).astype(int):
        low, high = np.clip(centre - reach, 0, last), np.clip(centre + reach, -1, last) + 1
        if (low >= high).any():
            continue
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        index = np.moveaxis(np.indices(labels[box].shape), 0, -1) + low
        distance, _ = tree.query(index * spacing)
        values = np.where(distance <= rules.near_mm, 1, np.where(distance <= rules.beyond_mm, IGNORE_INDEX, 0))
        labels[box] = np.where(distance <= rules.shell_mm, values, labels[box])
    nearest = np.rint(points).astype(int)
    nearest = nearest[((nearest >= 0) & (nearest <= last)).all(axis=1)]
    labels[tuple(nearest.T)] = 1
    return labels


def _thin_background(labels: Labels, negatives: float, seed: int) -> None:
    """Keep a number of background scores per cell score, and ignore the others."""
    background = np.flatnonzero(labels == 0)
    count = min(len(background), round(negatives * int((labels == 1).sum())))
    dropped = np.random.default_rng(seed).permutation(background)[count:]
    labels.ravel()[dropped] = IGNORE_INDEX


def train(
    recipe: Recipe,
    brains: Sequence[Subject],
    validation: Sequence[Subject],
    *,
    radius_mm: float,
    start: nn.Module | None = None,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = True,
) -> Trained:
    """Train a network to detect cells.

    Parameters
    ----------
    recipe : Recipe
        Settings of the training.
    brains, validation : sequence of Subject
        Training brains, and brains of other subjects for early stopping and for the threshold with the best F1.
    radius_mm : float
        Maximum distance between a detection and an annotation to count as a match, in mm.
    start : torch.nn.Module, optional
        Trained network to start from, such as one for another microscope; it is not changed. In incompletely annotated
        brains, its possible cells are not background.
    seed : int
        Random seed.
    folder : path, optional
        Folder for checkpoints and scores, from which an interrupted run resumes.
    progress : bool
        Whether to show progress bars.

    Returns
    -------
    trained : Trained
        Networks and histories of all rounds.

    Raises
    ------
    DataError
        A subject is in training and validation, or has no annotations.
    """
    check_disjoint(brains, validation)
    if not validation:
        raise DataError("no validation brains; pass one or more, on which the threshold is chosen")
    without_annotations = [b.id for b in (*brains, *validation) if not len(b.points)]
    if without_annotations:
        raise DataError(f"{without_annotations} have no annotated cells; annotate some, or leave these brains out")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary) if folder is None else folder
        work.mkdir(parents=True, exist_ok=True)
        scores: dict[str, xr.DataArray] = {}
        if start is None:
            model = models.create(recipe.network, seed=seed, in_channels=len(brains[0].inputs), **recipe.config)
        else:
            model = models.copy(start)
            scores = _score_brains(start, [*brains, *validation], work / "start")
        trained = Trained([], [])
        for number in range(1 + recipe.rounds):
            # Later rounds keep the input scales of the first one.
            model.spec = replace(keep_input_scale(model.spec), labels=(0, 1))  # type: ignore[assignment, arg-type]
            training_patches, validation_patches = (
                _draw_patches(recipe, part, scores, (seed, number)) for part in (brains, validation)
            )
            settings = replace(recipe.again if number else recipe.training, seed=seed)
            path = work / f"round-{number + 1}.pt"
            history = fit(model, training_patches, validation_patches, settings, checkpoint=path, progress=progress)
            trained.histories.append(history)
            trained.rounds.append(_with_threshold(model, recipe, validation, radius_mm, work / f"round-{number + 1}"))
            if number < recipe.rounds:
                folder_of_scores = work / f"round-{number + 1}" / "training"
                scores = _score_brains(trained.model, [*brains, *validation], folder_of_scores)
    return trained


def _score_brains(model: nn.Module, brains: Sequence[Subject], folder: Path) -> dict[str, xr.DataArray]:
    """Return the score volume of each brain by subject."""
    return {b.id: scores_of(model, b, folder / b.id) for b in brains}


def _draw_patches(
    recipe: Recipe, brains: Sequence[Subject], scores: Mapping[str, xr.DataArray], seed: tuple[int, int]
) -> Patches:
    """Draw training patches: a fraction at annotations and errors, the others anywhere."""
    labels = [annotation_labels(b, recipe.rules, scores=scores.get(b.id), seed=seed[0]) for b in brains]
    size = np.minimum(recipe.patch_size, np.min([volume.shape for volume in labels], axis=0))
    positions = []
    for i, (brain, volume) in enumerate(zip(brains, labels, strict=True)):
        rng = np.random.default_rng((*seed, i))
        targeted, anywhere = shares(recipe.patches_per_brain, [recipe.targeted_fraction, 1 - recipe.targeted_fraction])
        targets = _cells_and_errors(volume, scores.get(brain.id))
        last = np.array(volume.shape) - size
        drawn = targets[rng.integers(0, len(targets), targeted)] - rng.integers(0, size, (targeted, 3))
        start = np.concatenate([np.clip(drawn, 0, last), rng.integers(0, last + 1, (anywhere, 3))])
        # Scores exist at every second voxel, so patches start at even voxels.
        positions.append(STRIDE * start)
    return patches(
        [dict(b.inputs) for b in brains],
        [{"cells": volume} for volume in labels],
        shape=(STRIDE * (size - 1) + SCREENED).tolist(),
        target_shape=size.tolist(),
        grids="native",
        sampler=positions,
        seed=seed[0],
    )


def _cells_and_errors(labels: xr.DataArray, scores: xr.DataArray | None) -> NDArray[np.int64]:
    """Return the indices (n, 3) of cell scores and of false positives."""
    detections = (
        None if scores is None else labels.copy(data=(_as_fraction(scores) >= _FALSE_POSITIVE).astype(np.int16))
    )
    return np.argwhere(np.asarray(hard_negatives(labels, detections, tile=(1, 1, 1)).data) != IGNORE_INDEX)


def _as_fraction(scores: xr.DataArray) -> Floats:
    """Return scores from 0 to 1."""
    return np.asarray(scores.data) / full_scale(scores.dtype)


def scores_of(model: nn.Module, brain: Subject, folder: Path, *, memory: int | str = "2 GB") -> xr.DataArray:
    """Return the score volume of a brain, and compute it if the folder does not have it."""
    folder.mkdir(parents=True, exist_ok=True)
    options: Any = {"memory": memory, "precision": "auto", "progress": False}
    return score_volume(model, brain.inputs, folder / "scores.zarr", **options)


def candidates(model: nn.Module, brain: Subject, folder: Path, peaks: Peaks) -> pd.DataFrame:
    """Return the peaks of a brain's scores from a low threshold."""
    scores = scores_of(model, brain, folder)
    return detect_cells(
        scores, folder / "cells.parquet", replace(peaks, threshold=_LEAST_CANDIDATE), brain.inputs, progress=False
    )


def _with_threshold(
    model: nn.Module, recipe: Recipe, validation: Sequence[Subject], radius_mm: float, folder: Path
) -> nn.Module:
    """Return a copy of the network with the threshold that has the best F1 on the validation brains."""
    network = models.copy(model)
    tables = [(b.points, candidates(network, b, folder / b.id, recipe.peaks)) for b in validation]
    detections = [(truth, t[["X", "Y", "Z"]].to_numpy(), t["score"].to_numpy()) for truth, t in tables]
    peaks = replace(recipe.peaks, threshold=float(best_threshold(detections, radius_mm)))
    network.spec = replace(network.spec, finish=(("cells", asdict(peaks)),))  # type: ignore[type-var]
    return network


def patch_scores(
    model: nn.Module, brain: Subject, *, negatives: int = 10, shell_mm: tuple[float, float], seed: int = 0
) -> tuple[NDArray[np.int64], Floats]:
    """Score single patches at annotations and near them, as in the publication.

    Parameters
    ----------
    model : torch.nn.Module
        Trained detector.
    brain : Subject
        Brain with annotated points.
    negatives : int
        Negative patches per annotation.
    shell_mm : (float, float)
        Least and greatest distance of a negative from its annotation; published 6 and 20 voxels.
    seed : int
        Random seed.

    Returns
    -------
    truth : (n,) array of 1 and 0
        Whether each patch is at an annotation.
    score : (n,) array
        Scores from 0 to 1.
    """
    chosen = patches(
        dict(brain.inputs),
        shape=SCREENED,
        sampler=samplers.Points(brain.points, negatives_per_point=negatives, negative_distance_mm=shell_mm),
        seed=seed,
    )
    assert chosen.classes is not None
    return chosen.classes, score_patches(model, chosen)


def score_patches(model: nn.Module, dataset: Patches) -> Floats:
    """Return the scores (n,) of patches, from 0 to 1, in their stored order."""
    head = scoring(model)
    batches = np.array_split(np.arange(len(dataset)), -(-len(dataset) // _BATCH_SIZE))
    scores = [predict_patches(head, dataset.gather(rows)[0])[:, 0] for rows in batches]
    return np.asarray(expit(np.concatenate(scores).astype(np.float64)))
