"""Scores of answers against the ground truth, with resamplings of the test blocks for intervals.

Each scorer counts once per block; scores are functions of weighted sums of these counts. Weights of one for every block
give the estimate, random weights its resamplings, and a single one the score of that block.
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
#: Number of the test subject and box of each block.
Blocks = list[tuple[int, Box]]
#: Function from weights (rows, blocks) to the value of each score in each row.
Scores = Callable[[Floats], dict[str, Floats]]

#: Scores of each kind of task. The first one decides the ranking; higher is better.
SHOWN = {
    "histology": ("AUC", "sensitivity", "R2"),
    "tissue": ("mean Dice",),
    "nuclei": ("mean Dice",),
    "restoration": ("PSNR", "SSIM"),
    "cells": ("F1", "precision", "recall", "count error"),
}
#: Resamplings that all methods share.
BOOTSTRAP = Bootstrap(replicates=400, seed=0)


@dataclass(frozen=True)
class MethodScores:
    """Scores of one method on one task.

    Attributes
    ----------
    estimates : dict of float
        Each score over all blocks.
    replicates : dict of lists
        Each score over resampled blocks. Methods share the resamplings, so differences are paired.
    blocks : list of float or None
        The deciding score of each single block.
    """

    estimates: dict[str, float]
    replicates: dict[str, list[float]]
    blocks: list[float | None]


def score_answers(task: Task, subjects: Sequence[Subject], answers: Sequence[Any], manifest: Manifest) -> MethodScores:
    """Score the answers for the test subjects.

    Raises
    ------
    DataError, GridError
        An answer has the wrong type, shape or grid for the kind of task, or values that are not finite.
    """
    for subject, answer in zip(subjects, answers, strict=True):
        _check(task, subject, answer)
    blocks = manifest.boxes
    scores = _SCORERS[task.kind](task, subjects, answers, blocks, manifest.threshold)
    count = len(blocks)
    weights = np.concatenate([np.ones((1, count)), draw_blocks(count, BOOTSTRAP), np.eye(count)])
    rows = scores(weights)
    resampled = slice(1, 1 + BOOTSTRAP.replicates)
    single_blocks = rows[SHOWN[task.kind][0]][resampled.stop :]
    return MethodScores(
        {name: float(v[0]) for name, v in rows.items()},
        {name: rows[name][resampled].tolist() for name in SHOWN[task.kind]},
        [float(v) if np.isfinite(v) else None for v in single_blocks],
    )


def _check(task: Task, subject: Subject, answer: Any) -> None:
    if task.kind == "cells":
        if not (isinstance(answer, pd.DataFrame) and {"X", "Y", "Z"} <= set(answer)):
            raise DataError(
                f"{subject.id}: the prediction must be a table with columns X, Y, Z; got {type(answer).__name__}"
            )
        return
    like = scored_grid(subject)
    if not isinstance(answer, xr.DataArray) or answer.shape != like.shape:
        shape = getattr(answer, "shape", type(answer).__name__)
        raise DataError(f"{subject.id}: the prediction must be a volume of {like.shape} voxels; got {shape}")
    answer.mrh.like(like)
    finite = np.isfinite(values(answer))
    if not finite.all():
        raise DataError(
            f"{subject.id}: the prediction must be finite; {(~finite).sum()} of {finite.size} values are not"
        )


def _histology(
    task: Task, subjects: Sequence[Subject], answers: Sequence[Any], blocks: Blocks, threshold: float | None
) -> Scores:
    """Return AUC, sensitivity at a specificity of 0.9, and R2 over the voxels of the mask."""
    assert threshold is not None
    truth, predictions, block = [], [], []
    for number, (subject, box) in enumerate(blocks):
        mask = subjects[subject].mask
        inside = slice(None) if mask is None else values(part_of(mask, box)) > 0
        truth.append(values(part_of(subjects[subject].target, box))[inside].ravel().astype(np.float64))
        predictions.append(values(part_of(answers[subject], box))[inside].ravel().astype(np.float64))
        block.append(np.full(truth[-1].size, number))
    t, p, b = (np.concatenate(parts) for parts in (truth, predictions, block))
    sign = 1 if task.settings["positive"] == "above" else -1

    def scores(weights: Floats) -> dict[str, Floats]:
        roc = roc_replicates(sign * t > sign * threshold, sign * p, b, weights)
        return {"AUC": roc.auc, "sensitivity": roc.sensitivity, "R2": error_replicates(t, p, b, weights)[0]}

    return scores


def _labels(task: Task, subjects: Sequence[Subject], answers: Sequence[Any], blocks: Blocks, _: float | None) -> Scores:
    """Return the Dice score of each label, and their mean."""
    names = {int(value): name for name, value in task.settings["labels"].items()}
    intersections, sizes = (np.zeros((len(blocks), len(names))) for _ in range(2))
    for number, (subject, box) in enumerate(blocks):
        t, p = (values(part_of(v, box)) for v in (subjects[subject].target, answers[subject]))
        for column, label in enumerate(names):
            intersections[number, column] = ((t == label) & (p == label)).sum()
            sizes[number, column] = (t == label).sum() + (p == label).sum()

    def scores(weights: Floats) -> dict[str, Floats]:
        total = weights @ sizes
        dice = np.divide(2 * weights @ intersections, total, out=np.full_like(total, np.nan), where=total > 0)
        counted = np.isfinite(dice)
        mean = np.where(counted, dice, 0).sum(axis=1) / np.maximum(counted.sum(axis=1), 1)
        mean[~counted.any(axis=1)] = np.nan
        return {"mean Dice": mean} | {f"Dice {name}": dice[:, i] for i, name in enumerate(names.values())}

    return scores


def _restoration(
    task: Task, subjects: Sequence[Subject], answers: Sequence[Any], blocks: Blocks, _: float | None
) -> Scores:
    """Return PSNR and SSIM as means over planes, as in the publication."""
    planes, sums = np.zeros(len(blocks)), np.zeros((len(blocks), 2))
    for number, (subject, box) in enumerate(blocks):
        t, p = (values(part_of(v, box)).astype(np.float64) for v in (subjects[subject].target, answers[subject]))
        white = np.iinfo(subjects[subject].target.dtype).max
        by_plane = restoration_scores(t / white, p / white)
        planes[number], sums[number] = len(t), [score.sum() for score in by_plane]

    def scores(weights: Floats) -> dict[str, Floats]:
        means = (weights @ sums) / (weights @ planes)[:, None]
        return {"PSNR": means[:, 0], "SSIM": means[:, 1]}

    return scores


def _cells(task: Task, subjects: Sequence[Subject], answers: Sequence[Any], blocks: Blocks, _: float | None) -> Scores:
    """Return detection scores; cells are matched one to one over whole subjects and counted in the block of each."""
    counts = np.zeros((len(blocks), 3))
    for number, (subject, answer) in enumerate(zip(subjects, answers, strict=True)):
        truth, detections = subject.points, answer[["X", "Y", "Z"]].to_numpy()
        pairs = match(truth, detections, float(task.settings["radius_mm"]))
        mine = np.flatnonzero([owner == number for owner, _ in blocks])
        boxes = [blocks[i][1] for i in mine]
        for column, points in enumerate((truth[pairs.truth], truth, detections)):
            counts[mine, column] = _count_in_boxes(points, subject.first, boxes)

    def scores(weights: Floats) -> dict[str, Floats]:
        paired, true, detected = (weights @ counts).T
        return {
            "F1": _divide(2 * paired, true + detected),
            "precision": _divide(paired, detected),
            "recall": _divide(paired, true),
            "count error": np.abs(_divide(detected - true, true)),
        }

    return scores


def _count_in_boxes(points: Floats, like: xr.DataArray, boxes: Sequence[Box]) -> NDArray[np.int64]:
    """Count the world points in each box of voxels."""
    voxels = voxels_of(points, like)
    return np.array([in_box(voxels, box).sum() for box in boxes], dtype=np.int64)


def _divide(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


_SCORERS: dict[str, Any] = {
    "histology": _histology,
    "tissue": _labels,
    "nuclei": _labels,
    "restoration": _restoration,
    "cells": _cells,
}
