"""Cells in cleared tissue: a small 3D network that learns from points, screens a brain, and is shown its errors.

```
brain + marked points --taught--> labels on the network's grid of scores --crops--> training
        ^                                                                               |
        +---- where it was wrong (hard negatives) <---- scores of the training brains <-+
```

Published (2020, a report; basis Dou et al. 2016, IEEE TMI 35:1182): patches of 12 x 12 x 12 about marks, ten
negatives for each, 6 to 20 voxels from it, then a second training with some false positives and all misses.
It never saw background far from cells, nor vessels, and what was not marked counted as background.

Here the network learns from boxes of whole scores, each voxel of which is a patch: half of the boxes lie where
a mark is or where a network of an earlier round was wrong, half anywhere.
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
from mrhdata.training.settings import TrainingConfig
from mrhdata.volume.construct import SPATIAL, place
from mrhdata.volume.dtypes import full_scale

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

Floats = NDArray[np.float64]
Labels = NDArray[np.int16]

#: Input voxels from one score to the next, and of the first score's centre.
STRIDE, FIRST = 2, (SCREENED[0] - 1) / 2
#: Score above which a voxel far from every mark is no longer called background in incomplete brains.
_DOUBTFUL = 0.3
#: Score from which a voxel where no cell is was wrongly taken for one.
_TAKEN = 0.5
#: Scores from which candidates are kept while the threshold is chosen.
_FLOOR = 0.05
#: Patches that are scored at a time.
_TOGETHER = 512


@dataclass(frozen=True)
class Marking:
    """What marks teach about the scores around them.

    Attributes
    ----------
    near_mm, beyond_mm : float
        A score is a cell's up to so far from a mark, the nearest one always, and background beyond; between
        it is not taught.
    shell_mm : float
        Greatest distance of background that is taught.
    negatives : float or None
        Scores of background for each of a cell, drawn at random; all where None.
    """

    near_mm: float
    beyond_mm: float
    shell_mm: float = np.inf
    negatives: float | None = None


@dataclass(frozen=True)
class Recipe:
    """How a network learns to find cells.

    Attributes
    ----------
    marking : Marking
    peaks : Peaks
        What counts as a cell; its threshold is chosen on the brains that training is watched on.
    training, again : Training
        Of the first round and of the further ones.
    rounds : int
        Further rounds with what was found wrongly or missed.
    network, config : str, mapping
        For :func:`mrhdata.models.create`.
    box : int
        Scores along the edge of a training box; fewer along axes on which a brain has fewer.
    each : int
        Boxes of each brain.
    about : float
        Part of the boxes that lie where a mark is or where the network was wrong.
    """

    marking: Marking
    peaks: Peaks
    training: TrainingConfig
    again: TrainingConfig
    rounds: int = 0
    network: str = "cells3d"
    config: Mapping[str, Any] = field(default_factory=dict)
    box: int = 17
    each: int = 200
    about: float = 0.5


_TURNED = Augmentation(degrees=0, zoom=0, stretch=0, share=0, flip=(0, 1, 2), gain=0.2, offset=0.2, gamma=0.2, noise=0)
PUBLISHED = TrainingConfig(
    epochs=6, batch_size=8, learning_rate=1e-3, loss="cross-entropy", precision="bfloat16", patience=6
)
CORRECTED = replace(
    PUBLISHED, epochs=10, patience=10, loss="dice+cross-entropy", augment=_TURNED, learning_rate=2e-3, weight_decay=1e-4
)
#: A quarter of the work of the published widths.
NARROW = {"widths": (32, 32, 32, 64)}


def published_recipe(voxel_mm: float) -> Recipe:
    """Negatives 6 to 20 voxels from marks alone, ten for each positive, one round of retraining."""
    marking = Marking(voxel_mm, 6 * voxel_mm, 20 * voxel_mm, negatives=10)
    again = replace(PUBLISHED, epochs=3, patience=3, learning_rate=3e-4)
    return Recipe(marking, _peaks(voxel_mm), PUBLISHED, again, rounds=1)


def recommended_recipe(voxel_mm: float) -> Recipe:
    """Background everywhere, vessels and far tissue too."""
    marking = Marking(2 * voxel_mm, 4 * voxel_mm)
    again = replace(CORRECTED, epochs=3, patience=3, learning_rate=6e-4)
    return Recipe(marking, _peaks(voxel_mm), CORRECTED, again, config=NARROW)


def _peaks(voxel_mm: float) -> Peaks:
    return Peaks(0.5, radius_mm=5 * voxel_mm, smooth_mm=voxel_mm)


@dataclass
class Trained:
    """A network after each round, with what counts as a cell, and what happened."""

    rounds: list[nn.Module]
    histories: list[History]

    @property
    def model(self) -> nn.Module:
        """After the last round."""
        return self.rounds[-1]


def taught(brain: Subject, marking: Marking, *, found: xr.DataArray | None = None, seed: int = 0) -> xr.DataArray:
    """What a brain teaches, on the grid of the network's scores.

    Parameters
    ----------
    brain : Subject
    marking : Marking
    found : score volume, optional
        Of an earlier round: in a brain that is not complete, what it calls a cell is not background.
    seed : int
        Of the background that is drawn.

    Returns
    -------
    labels : (z, y, x) label volume, int16
        1 cell, 0 background, `IGNORE_INDEX` where nothing is taught.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> volume = from_array(np.zeros((12, 12, 40), np.float32), spacing=(1, 1, 1))
    >>> brain = Subject("01", {"signal": volume}, cells=volume.mrh.world([[5.5, 5.5, 15.5]]))
    >>> taught(brain, Marking(2, 6, 12)).values.ravel().tolist()
    [0, 0, -1, -1, 1, 1, 1, -1, -1, 0, 0, 0, -1, -1, -1]
    """
    volume = next(iter(brain.inputs.values()))
    grid = volume.mrh.grid
    shape = tuple((n - SCREENED[0]) // STRIDE + 1 for n in grid.shape)
    if min(shape) < 1:
        raise DataError(f"{brain.id} has {grid.shape} voxels; the network needs {SCREENED} at least")
    labels = _marked(shape, (grid.index(brain.points) - FIRST) / STRIDE, STRIDE * grid.spacing, marking)
    if found is not None and not brain.points_complete:
        labels[(labels == 0) & (_fraction(found) >= _DOUBTFUL)] = IGNORE_INDEX
    if marking.negatives is not None:
        _thin(labels, marking.negatives, seed)
    starts = np.array([float(volume.coords[d][0]) for d in SPATIAL]) + FIRST * grid.spacing
    return place(
        labels, SPATIAL, STRIDE * grid.spacing, volume.attrs["affine"], start=starts, space=volume.mrh.space,
        kind="labels", name="cells",
    )  # fmt: skip


def _marked(shape: Sequence[int], places: Floats, spacing: Floats, marking: Marking) -> Labels:
    """Labels of scores by their distance from the nearest of the places (n, 3)."""
    far = np.isinf(marking.shell_mm)
    labels = np.full(shape, 0 if far else IGNORE_INDEX, np.int16)
    if not len(places):
        return labels
    tree = cKDTree(places * spacing)
    reach = np.ceil((marking.beyond_mm if far else marking.shell_mm) / spacing).astype(int)
    top = np.array(shape) - 1
    for at in np.rint(places).astype(int):
        low, high = np.clip(at - reach, 0, top), np.clip(at + reach, -1, top) + 1
        if (low >= high).any():
            continue
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        index = np.moveaxis(np.indices(labels[box].shape), 0, -1) + low
        distance, _ = tree.query(index * spacing)
        part = np.where(distance <= marking.near_mm, 1, np.where(distance <= marking.beyond_mm, IGNORE_INDEX, 0))
        labels[box] = np.where(distance <= marking.shell_mm, part, labels[box])
    nearest = np.rint(places).astype(int)
    nearest = nearest[((nearest >= 0) & (nearest <= top)).all(axis=1)]
    labels[tuple(nearest.T)] = 1
    return labels


def _thin(labels: Labels, negatives: float, seed: int) -> None:
    """Leave so many scores of background for each of a cell."""
    background = np.flatnonzero(labels == 0)
    kept = min(len(background), round(negatives * int((labels == 1).sum())))
    dropped = np.random.default_rng(seed).permutation(background)[kept:]
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
    """Train a network to find cells.

    Parameters
    ----------
    recipe : Recipe
    brains, validation : sequence of Subject
        Different subjects; those of validation say when to stop and which threshold is best by F1.
    radius_mm : float
        Within which a cell that is found counts as one that was marked.
    start : torch.nn.Module, optional
        A trained network to go on from, such as one of another microscope; it is not changed. In brains that are
        not complete, what it takes for a cell is not called background.
    seed : int
    folder : path, optional
        Of checkpoints and scores: a run that was stopped goes on from there.
    progress : bool

    Returns
    -------
    trained : Trained

    Raises
    ------
    DataError
        A subject is in both parts, or has no marks.
    """
    check_disjoint(brains, validation)
    if not validation:
        raise DataError("the threshold is chosen on brains of validation; give one or more")
    unmarked = [b.id for b in (*brains, *validation) if not len(b.points)]
    if unmarked:
        raise DataError(f"{unmarked} have no marked cells to learn from")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary) if folder is None else folder
        work.mkdir(parents=True, exist_ok=True)
        found: dict[str, xr.DataArray] = {}
        if start is None:
            model = models.create(recipe.network, seed=seed, in_channels=len(brains[0].inputs), **recipe.config)
        else:
            model = models.copy(start)
            found = _found(start, [*brains, *validation], work / "start")
        trained = Trained([], [])
        for number in range(1 + recipe.rounds):
            # What the first round measured of the inputs is what the weights know from then on.
            model.spec = replace(model.spec, target=None, labels=(0, 1))  # type: ignore[type-var]
            learned, watched = (_boxes(recipe, given, found, (seed, number)) for given in (brains, validation))
            settings = replace(recipe.again if number else recipe.training, seed=seed)
            path = work / f"round-{number + 1}.pt"
            trained.histories.append(fit(model, learned, watched, settings, checkpoint=path, progress=progress))
            trained.rounds.append(_judged(model, recipe, validation, radius_mm, work / f"round-{number + 1}"))
            if number < recipe.rounds:
                found = _found(trained.model, [*brains, *validation], work / f"round-{number + 1}" / "training")
    return trained


def _found(model: nn.Module, brains: Sequence[Subject], folder: Path) -> dict[str, xr.DataArray]:
    """Score volumes of brains by subject."""
    return {b.id: scores_of(model, b, folder / b.id) for b in brains}


def _boxes(
    recipe: Recipe, brains: Sequence[Subject], found: Mapping[str, xr.DataArray], seed: tuple[int, int]
) -> Patches:
    """Training boxes: a part of them where something is to be learned, the others anywhere."""
    labels = [taught(b, recipe.marking, found=found.get(b.id), seed=seed[0]) for b in brains]
    box = np.minimum(recipe.box, np.min([known.shape for known in labels], axis=0))
    positions = []
    for i, (brain, known) in enumerate(zip(brains, labels, strict=True)):
        rng = np.random.default_rng((*seed, i))
        about, anywhere = shares(recipe.each, [recipe.about, 1 - recipe.about])
        held = _worth(known, found.get(brain.id))
        top = np.array(known.shape) - box
        chosen = held[rng.integers(0, len(held), about)] - rng.integers(0, box, (about, 3))
        start = np.concatenate([np.clip(chosen, 0, top), rng.integers(0, top + 1, (anywhere, 3))])
        # The grid of scores begins anew at every even voxel.
        positions.append(STRIDE * start)
    return patches(
        [dict(b.inputs) for b in brains],
        [{"cells": known} for known in labels],
        shape=(STRIDE * (box - 1) + SCREENED).tolist(),
        target_shape=box.tolist(),
        grids="native",
        sampler=positions,
        seed=seed[0],
    )


def _worth(known: xr.DataArray, found: xr.DataArray | None) -> NDArray[np.int64]:
    """Scores of a cell, and those that were found where none is: (n, 3)."""
    wrong = None if found is None else known.copy(data=(_fraction(found) >= _TAKEN).astype(np.int16))
    return np.argwhere(np.asarray(hard_negatives(known, wrong, tile=(1, 1, 1)).data) != IGNORE_INDEX)


def _fraction(scores: xr.DataArray) -> Floats:
    """Scores from 0 to 1."""
    return np.asarray(scores.data) / full_scale(scores.dtype)


def scores_of(model: nn.Module, brain: Subject, folder: Path, *, memory: int | str = "2 GB") -> xr.DataArray:
    """The score volume of a brain; one that is there already is read."""
    folder.mkdir(parents=True, exist_ok=True)
    options: Any = {"memory": memory, "precision": "bfloat16", "progress": False}
    return score_volume(model, brain.inputs, folder / "scores.zarr", **options)


def candidates(model: nn.Module, brain: Subject, folder: Path, peaks: Peaks) -> pd.DataFrame:
    """Peaks of a brain's scores from a low threshold on."""
    scores = scores_of(model, brain, folder)
    return detect_cells(
        scores, folder / "cells.parquet", replace(peaks, threshold=_FLOOR), brain.inputs, progress=False
    )


def _judged(
    model: nn.Module, recipe: Recipe, validation: Sequence[Subject], radius_mm: float, folder: Path
) -> nn.Module:
    """A copy of the network with the threshold that has the best F1 on the brains of validation."""
    kept = models.copy(model)
    tables = [(b.points, candidates(kept, b, folder / b.id, recipe.peaks)) for b in validation]
    given = [(truth, t[["X", "Y", "Z"]].to_numpy(), t["score"].to_numpy()) for truth, t in tables]
    peaks = replace(recipe.peaks, threshold=float(best_threshold(given, radius_mm)))
    kept.spec = replace(kept.spec, finish=(("cells", asdict(peaks)),))  # type: ignore[type-var]
    return kept


def patch_scores(
    model: nn.Module, brain: Subject, *, negatives: int = 10, shell_mm: tuple[float, float], seed: int = 0
) -> tuple[NDArray[np.int64], Floats]:
    """Scores of single patches, as published: about each mark, and so many beside it.

    Parameters
    ----------
    model : torch.nn.Module
    brain : Subject
    negatives : int
    shell_mm : (float, float)
        Least and greatest distance of a negative from its mark; published 6 and 20 voxels.
    seed : int

    Returns
    -------
    truth : (n,) array of 1 and 0
    score : (n,) array
        From 0 to 1.
    """
    chosen = patches(
        dict(brain.inputs),
        shape=SCREENED,
        sampler=samplers.Points(brain.points, negatives_per_point=negatives, negative_distance_mm=shell_mm),
        seed=seed,
    )
    assert chosen.classes is not None
    return chosen.classes, patches_scored(model, chosen)


def patches_scored(model: nn.Module, seen: Patches) -> Floats:
    """Scores of patches, from 0 to 1, in the order in which they are kept: (n,)."""
    single = scoring(model)
    parts = np.array_split(np.arange(len(seen)), -(-len(seen) // _TOGETHER))
    found = [predict_patches(single, seen.gather(rows)[0])[:, 0] for rows in parts]
    return np.asarray(expit(np.concatenate(found).astype(np.float64)))
