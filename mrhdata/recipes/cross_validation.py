"""Cross-validation by subject: every subject is scored once, by a network trained on other subjects.

Finished folds are not repeated, and interrupted folds resume from their checkpoints.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm.auto import tqdm

from mrhdata import models
from mrhdata._runtime.atomic import atomic_write
from mrhdata.datasets.subjects import Subject
from mrhdata.errors import DataError
from mrhdata.inference.segmenter import score_labels, segment
from mrhdata.io import formats
from mrhdata.recipes.run_plan import claim

if TYPE_CHECKING:
    from torch import nn

#: Function that trains on the first subjects, stops on the second, and writes checkpoints to the folder.
Train = Callable[[Sequence[Any], Sequence[Any], Path], "nn.Module"]
#: Function that scores a network on a held-out subject and writes the prediction to the folder.
Test = Callable[["nn.Module", Any, Path], pd.DataFrame]


def folds(cases: Sequence[Any], k: int, seed: int = 0) -> list[list[Any]]:
    """Split subjects into folds at random, as evenly as possible; scans of one person share a fold.

    Raises
    ------
    DataError
        There are fewer persons than folds, or two scans have one name.

    Examples
    --------
    >>> cases = [Subject(name, {}) for name in ("a_ses-1", "a_ses-2", "b", "c")]
    >>> [[subject.id for subject in fold] for fold in folds(cases, 3)]
    [['a_ses-1', 'a_ses-2'], ['c'], ['b']]
    """
    names = [subject.id for subject in cases]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"several scans have the names {repeated}; give each scan a unique name")
    people = sorted({subject.person for subject in cases})
    if not 2 <= k <= len(people):
        raise DataError(f"the number of folds must be 2 to {len(people)}, the number of subjects; got {k}")
    random.Random(seed).shuffle(people)
    return [[subject for person in people[i::k] for subject in cases if subject.person == person] for i in range(k)]


def cross_validate(  # noqa: PLR0913 (settings of one run)
    train: Train,
    cases: Sequence[Any],
    folder: str | Path,
    *,
    test: Test | None = None,
    k: int = 4,
    validation: int = 1,
    seed: int = 0,
    about: dict[str, Any] | None = None,
    only: Sequence[int] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Train and test k times, each time with other subjects held out.

    Parameters
    ----------
    train : callable
        Function of training subjects, validation subjects and a folder for checkpoints; returns a trained network.
    cases : sequence of Subject
        Subjects, or other objects with an ``id`` and a ``person``.
    folder : path
        Output folder: ``plan.json``, and for each fold its network, its predictions for the held-out subjects, and its
        scores.
    test : callable, optional
        Function of a trained network, a held-out subject and the folder of the fold; returns rows of scores. By default
        labels are compared (:func:`tested`).
    k : int
        Number of folds.
    validation : int
        Number of persons in each fold's training that are used for early stopping only.
    seed : int
        Random seed of the split.
    about : dict, optional
        Other settings of the run, such as those of a recipe; a folder with other settings raises an error.
    only : sequence of int, optional
        Folds to run now, counted from 0.
    overwrite : bool
        Whether to remove a folder that belongs to another run.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    scores : DataFrame
        ``fold`` and the rows of `test`: for labels ``subject``, ``label``, ``dice`` and more
        (:func:`mrhdata.inference.segmenter.score_labels`); :func:`mrhdata.metrics.overlap.pool_over_subjects` gives
        their confidence intervals.

    Raises
    ------
    DataError
        The folder belongs to another run, or there are too few subjects for the folds.
    """
    target = Path(folder)
    parts = folds(cases, k, seed)
    names = [[subject.id for subject in part] for part in parts]
    plan = {"folds": names, "validation": validation, "seed": seed, "about": about or {}}
    claim(target / "plan.json", plan, overwrite=overwrite)
    tables = []
    for i in tqdm(range(k) if only is None else only, desc="folds", unit="fold", disable=not progress):
        fold_folder = target / f"fold-{i + 1}"
        if not (fold_folder / "scores.csv").exists():
            others = [subject for part in parts[:i] + parts[i + 1 :] for subject in part]
            _run_fold(i, train, test or tested, others, parts[i], validation, fold_folder)
        tables.append(pd.read_csv(fold_folder / "scores.csv", dtype={"subject": str}))
    return pd.concat(tables, ignore_index=True)


def _run_fold(
    number: int, train: Train, test: Test, others: list[Subject], held_out: list[Subject], validation: int, folder: Path
) -> None:
    """Train on the other subjects and score the held-out ones; the scores are written last."""
    people = list(dict.fromkeys(subject.person for subject in others))
    if not 0 < validation < len(people):
        raise DataError(
            f"validation must be 1 to {len(people) - 1} of the {len(people)} subjects that are not held out; got "
            f"{validation}"
        )
    validation_people = set(people[:validation])
    folder.mkdir(parents=True, exist_ok=True)
    model = train(
        [subject for subject in others if subject.person not in validation_people],
        [subject for subject in others if subject.person in validation_people],
        folder,
    )
    models.save(model, folder / "network")
    rows = pd.concat([test(model, subject, folder) for subject in held_out], ignore_index=True)
    rows.insert(0, "fold", number + 1)
    with atomic_write(folder / "scores.csv") as draft:
        rows.to_csv(draft, index=False)


def tested(model: nn.Module, subject: Subject, folder: Path) -> pd.DataFrame:
    """Segment a held-out subject, write labels (in the format of its first volume) and a montage, and score them."""
    from mrhdata.viz import plots

    # Every subject is scored, also one whose labels are predicted to be wrong.
    labels = segment(model, subject.inputs, force=True, progress=False)
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    file = folder / "labels" / f"sub-{subject.id}{subject.ending}"
    formats.write(labels, file, overwrite=True)
    plots.montage(next(iter(subject.inputs.values())), subject.target, labels, file.with_name(f"sub-{subject.id}.png"))
    spec: Any = model.spec
    return score_labels(subject, labels, spec.labels)
