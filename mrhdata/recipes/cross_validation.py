"""Cross-validation by subject: every subject is scored once, by a network that never saw it.

A fold that was finished is not made again; one that was stopped goes on from its checkpoints.
"""

from __future__ import annotations

import json
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

if TYPE_CHECKING:
    from torch import nn

#: Trains on the first cases, stops by the second, keeps checkpoints in the folder.
Train = Callable[[Sequence[Any], Sequence[Any], Path], "nn.Module"]
#: Scores a network on a case that was left out, and keeps what it says in the folder.
Test = Callable[["nn.Module", Any, Path], pd.DataFrame]


def folds(cases: Sequence[Any], k: int, seed: int = 0) -> list[list[Any]]:
    """Cases shared out by person at random, as evenly as can be.

    Raises
    ------
    DataError
        There are fewer persons than folds, or a scan comes twice.

    Examples
    --------
    >>> cases = [Case(name, {}) for name in ("a_ses-1", "a_ses-2", "b", "c")]
    >>> [[case.id for case in fold] for fold in folds(cases, 3)]
    [['a_ses-1', 'a_ses-2'], ['c'], ['b']]
    """
    names = [case.id for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{twice} come more than once; give each scan a name of its own")
    people = sorted({case.person for case in cases})
    if not 2 <= k <= len(people):
        raise DataError(f"{len(people)} subjects make 2 to {len(people)} folds, not {k}")
    random.Random(seed).shuffle(people)
    return [[case for who in people[i::k] for case in cases if case.person == who] for i in range(k)]


def cross_validate(
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
    progress: bool = True,
) -> pd.DataFrame:
    """Train and test k times, each with other subjects left out.

    Parameters
    ----------
    train : callable
        Takes training cases, validation cases and a folder for checkpoints; returns a trained network.
    cases : sequence of Case
        Or of anything else with a ``subject`` and a ``person``.
    folder : path
        Gets ``plan.json``, and for each fold its network, what it says of the subjects left out, and its scores.
    test : callable, optional
        Takes a trained network, a case that was left out and the fold's folder; returns rows of scores. Labels are
        compared (:func:`tested`) where it is not given.
    k : int
        Folds.
    validation : int
        Subjects of each fold's training that decide when to stop, and are not trained on.
    seed : int
    about : dict, optional
        What else makes the run what it is, such as a recipe's settings; a folder of another one is refused.
    only : sequence of int, optional
        Folds to do now, from 0.
    progress : bool

    Returns
    -------
    scores : DataFrame
        ``fold`` and the rows of `test`: for labels ``subject``, ``label``, ``dice`` and more
        (:func:`mrhdata.inference.segmenter.score_labels`); :func:`mrhdata.metrics.overlap.pool_over_subjects` gives
        their confidence intervals.

    Raises
    ------
    DataError
        The folder belongs to another run, or folds and subjects do not fit.
    """
    target = Path(folder)
    parts = folds(cases, k, seed)
    names = [[case.id for case in part] for part in parts]
    claim(target / "plan.json", {"folds": names, "validation": validation, "seed": seed, "about": about or {}})
    tables = []
    for i in tqdm(range(k) if only is None else only, desc="folds", unit="fold", disable=not progress):
        place = target / f"fold-{i + 1}"
        if not (place / "scores.csv").exists():
            rest = [case for part in parts[:i] + parts[i + 1 :] for case in part]
            _fold(i, train, test or tested, rest, parts[i], validation, place)
        tables.append(pd.read_csv(place / "scores.csv", dtype={"subject": str}))
    return pd.concat(tables, ignore_index=True)


def _fold(
    number: int, train: Train, test: Test, rest: list[Subject], left_out: list[Subject], validation: int, place: Path
) -> None:
    """Train on the rest and score who was left out; the scores are written last."""
    people = list(dict.fromkeys(case.person for case in rest))
    if not 0 < validation < len(people):
        raise DataError(f"{validation} of {len(people)} subjects are for validation; leave some for each")
    stopping = set(people[:validation])
    place.mkdir(parents=True, exist_ok=True)
    model = train(
        [case for case in rest if case.person not in stopping], [c for c in rest if c.person in stopping], place
    )
    models.save(model, place / "network")
    rows = pd.concat([test(model, case, place) for case in left_out], ignore_index=True)
    rows.insert(0, "fold", number + 1)
    with atomic_write(place / "scores.csv") as draft:
        rows.to_csv(draft, index=False)


def tested(model: nn.Module, case: Subject, place: Path) -> pd.DataFrame:
    """Overlap of the labels of a subject that was left out; they are kept in the format of its first volume."""
    from mrhdata.viz import plots

    found = segment(model, case.inputs, progress=False)
    (place / "labels").mkdir(parents=True, exist_ok=True)
    file = place / "labels" / f"sub-{case.id}{case.ending}"
    formats.write(found, file, overwrite=True)
    plots.montage(next(iter(case.inputs.values())), case.target, found, file.with_name(f"sub-{case.id}.png"))
    spec: Any = model.spec
    return score_labels(case, found, spec.labels)


def claim(path: Path, plan: dict[str, Any]) -> None:
    """Write down what a folder holds, or see that it holds this.

    Raises
    ------
    DataError
        It holds something else.
    """
    text = json.dumps(plan, indent=1, default=str)
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise DataError(
                f"{path.parent} holds another run, of other subjects, files or settings; give another folder, or "
                "remove it"
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8")
