"""Answers against the truth: scores of all test blocks, with resamplings of the blocks for intervals.

A judge counts once, block by block; its scores are functions of weighted sums of those counts. Weights of one for
every block give the estimate, random ones its resamplings, a one amid zeros the score of that block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from mrhdata.bench.manifest import Manifest, in_box, part_of, scored_grid, voxels_of
from mrhdata.bench.subjects import values
from mrhdata.bench.tasks import Task
from mrhdata.datasets.subjects import Subject
from mrhdata.errors import DataError
from mrhdata.metrics.bootstrap import Bootstrap, draw_blocks, error_replicates, roc_replicates
from mrhdata.metrics.image import restoration_scores
from mrhdata.metrics.matching import match
from mrhdata.volume.box import Box

Floats = NDArray[np.float64]
#: Number of the test subject and the box, for each block.
Blocks = list[tuple[int, Box]]
#: Weights of blocks (rows, blocks) to the value of each score in each row.
Scores = Callable[[Floats], dict[str, Floats]]

#: Scores of each kind of task; the first one decides, and is better the higher.
SHOWN = {
    "histology": ("AUC", "sensitivity", "R2"),
    "tissue": ("mean Dice",),
    "nuclei": ("mean Dice",),
    "restoration": ("PSNR", "SSIM"),
    "cells": ("F1", "precision", "recall", "count error"),
}
#: Of the resamplings that all methods share.
BOOTSTRAP = Bootstrap(replicates=400, seed=0)


@dataclass(frozen=True)
class MethodScores:
    """Scores of one method on one task.

    Attributes
    ----------
    estimates : dict of float
    replicates : dict of lists
        Each score over resampled blocks; methods share the resamplings, so differences are paired.
    blocks : list of float or None
        The deciding score of each block alone.
    """

    estimates: dict[str, float]
    replicates: dict[str, list[float]]
    blocks: list[float | None]


def score_answers(task: Task, subjects: Sequence[Subject], answers: Sequence[Any], manifest: Manifest) -> MethodScores:
    """Score the answers to the test subjects.

    Raises
    ------
    DataError
        An answer is not what the kind of task asks for.
    """
    for subject, answer in zip(subjects, answers, strict=True):
        _check(task, subject, answer)
    blocks = manifest.boxes
    scores = _JUDGES[task.kind](task, subjects, answers, blocks, manifest.threshold)
    count = len(blocks)
    weights = np.concatenate([np.ones((1, count)), draw_blocks(count, BOOTSTRAP), np.eye(count)])
    found = scores(weights)
    drawn = slice(1, 1 + BOOTSTRAP.replicates)
    alone = found[SHOWN[task.kind][0]][drawn.stop :]
    return MethodScores(
        {name: float(v[0]) for name, v in found.items()},
        {name: found[name][drawn].tolist() for name in SHOWN[task.kind]},
        [float(v) if np.isfinite(v) else None for v in alone],
    )


def _check(task: Task, subject: Subject, answer: Any) -> None:
    if task.kind == "cells":
        if not (isinstance(answer, pd.DataFrame) and {"X", "Y", "Z"} <= set(answer)):
            raise DataError(f"{subject.id}: the answer is a table with columns X, Y, Z, not {type(answer).__name__}")
        return
    like = scored_grid(subject)
    if not isinstance(answer, xr.DataArray) or answer.shape != like.shape:
        found = getattr(answer, "shape", type(answer).__name__)
        raise DataError(f"{subject.id}: the answer is a volume of {like.shape} voxels like the truth, not {found}")
    answer.mrh.like(like)
    if not np.isfinite(values(answer)).all():
        raise DataError(f"{subject.id}: the answer holds values that are not finite")


def _histology(
    task: Task, subjects: Sequence[Subject], answers: Sequence[Any], blocks: Blocks, threshold: float | None
) -> Scores:
    """AUC, sensitivity at a specificity of 0.9 and R2 of the voxels of the mask."""
    assert threshold is not None
    truth, given, block = [], [], []
    for number, (who, box) in enumerate(blocks):
        mask = subjects[who].mask
        inside = slice(None) if mask is None else values(part_of(mask, box)) > 0
        truth.append(values(part_of(subjects[who].target, box))[inside].ravel().astype(np.float64))
        given.append(values(part_of(answers[who], box))[inside].ravel().astype(np.float64))
        block.append(np.full(truth[-1].size, number))
    t, p, b = (np.concatenate(part) for part in (truth, given, block))
    sign = 1 if task.settings["positive"] == "above" else -1

    def scores(weights: Floats) -> dict[str, Floats]:
        roc = roc_replicates(sign * t > sign * threshold, sign * p, b, weights)
        return {"AUC": roc.auc, "sensitivity": roc.sensitivity, "R2": error_replicates(t, p, b, weights)[0]}

    return scores


def _labels(task: Task, subjects: Sequence[Subject], answers: Sequence[Any], blocks: Blocks, _: float | None) -> Scores:
    """Dice of each label, and their mean."""
    names = {int(value): name for name, value in task.settings["labels"].items()}
    both, either = (np.zeros((len(blocks), len(names))) for _ in range(2))
    for number, (who, box) in enumerate(blocks):
        t, p = (values(part_of(v, box)) for v in (subjects[who].target, answers[who]))
        for column, label in enumerate(names):
            both[number, column] = ((t == label) & (p == label)).sum()
            either[number, column] = (t == label).sum() + (p == label).sum()

    def scores(weights: Floats) -> dict[str, Floats]:
        total = weights @ either
        dice = np.divide(2 * weights @ both, total, out=np.full_like(total, np.nan), where=total > 0)
        counted = np.isfinite(dice)
        mean = np.where(counted, dice, 0).sum(axis=1) / np.maximum(counted.sum(axis=1), 1)
        mean[~counted.any(axis=1)] = np.nan
        return {"mean Dice": mean} | {f"Dice {name}": dice[:, i] for i, name in enumerate(names.values())}

    return scores


def _restoration(
    task: Task, subjects: Sequence[Subject], answers: Sequence[Any], blocks: Blocks, _: float | None
) -> Scores:
    """PSNR and SSIM of planes, as published; means over planes."""
    planes, sums = np.zeros(len(blocks)), np.zeros((len(blocks), 2))
    for number, (who, box) in enumerate(blocks):
        t, p = (values(part_of(v, box)).astype(np.float64) for v in (subjects[who].target, answers[who]))
        white = np.iinfo(subjects[who].target.dtype).max
        found = restoration_scores(t / white, p / white)
        planes[number], sums[number] = len(t), [part.sum() for part in found]

    def scores(weights: Floats) -> dict[str, Floats]:
        means = (weights @ sums) / (weights @ planes)[:, None]
        return {"PSNR": means[:, 0], "SSIM": means[:, 1]}

    return scores


def _cells(task: Task, subjects: Sequence[Subject], answers: Sequence[Any], blocks: Blocks, _: float | None) -> Scores:
    """Cells matched one to one over whole subjects; each pair, miss and false one counts in the block it lies in."""
    counts = np.zeros((len(blocks), 3))
    for who, (subject, answer) in enumerate(zip(subjects, answers, strict=True)):
        truth, found = subject.points, answer[["X", "Y", "Z"]].to_numpy()
        pairs = match(truth, found, float(task.settings["radius_mm"]))
        mine = np.flatnonzero([number == who for number, _ in blocks])
        boxes = [blocks[i][1] for i in mine]
        for column, points in enumerate((truth[pairs.truth], truth, found)):
            counts[mine, column] = _in_blocks(points, subject.first, boxes)

    def scores(weights: Floats) -> dict[str, Floats]:
        paired, true, found = (weights @ counts).T
        return {
            "F1": _share(2 * paired, true + found),
            "precision": _share(paired, found),
            "recall": _share(paired, true),
            "count error": np.abs(_share(found - true, true)),
        }

    return scores


def _in_blocks(points: Floats, like: xr.DataArray, boxes: Sequence[Box]) -> NDArray[np.int64]:
    """How many world points lie in each box of voxels."""
    voxels = voxels_of(points, like)
    return np.array([in_box(voxels, box).sum() for box in boxes], dtype=np.int64)


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


_JUDGES: dict[str, Any] = {
    "histology": _histology,
    "tissue": _labels,
    "nuclei": _labels,
    "restoration": _restoration,
    "cells": _cells,
}
