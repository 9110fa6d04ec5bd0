"""Cells of cleared tissue, as points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_laplace

from mrhdata.bench.api import Answer, FittedMethod, TrainingData, method
from mrhdata.bench.methods.networks import mapped, regress
from mrhdata.datasets.subjects import Subject
from mrhdata.inference.detector import stored_peaks
from mrhdata.inference.peaks import Peaks, find_peaks
from mrhdata.metrics.detection import best_threshold, detection
from mrhdata.recipes import cells
from mrhdata.training.settings import TrainingConfig

Floats = NDArray[np.float64]
#: Of a filter: the volume's values to responses that are high at cells.
Response = Callable[[Floats], Floats]


def points(subject: Subject, responses: Floats, radius_mm: float, least: float) -> pd.DataFrame:
    """Peaks of responses as a table of world places and scores."""
    grid = subject.first.mrh.grid
    found = find_peaks(responses, grid.spacing.tolist(), Peaks(least, radius_mm=radius_mm))
    return pd.DataFrame(grid.world(found.centre), columns=["X", "Y", "Z"]).assign(score=found.score)


def _levelled(subject: Subject) -> Floats:
    """The first input over its local mean: light falls off across a brain."""
    light = np.asarray(subject.first.data, dtype=np.float64)
    return light / np.maximum(gaussian_filter(light, 12.0), 1e-6)


def _tuned(given: TrainingData, filters: Sequence[Response]) -> Answer:
    """The filter and threshold with the best F1 on the training subjects."""
    radius = float(given.settings["radius_mm"])

    def candidates(subject: Subject, response: Response) -> pd.DataFrame:
        values = response(_levelled(subject))
        # So many peaks as there can be cells, at most.
        return points(subject, values, 0.8 * radius, float(np.percentile(values, 98)))

    worth = []
    for response in filters:
        tables = [candidates(s, response) for s in given.train]
        held = [
            (s.points, t[["X", "Y", "Z"]].to_numpy(), t["score"].to_numpy())
            for s, t in zip(given.train, tables, strict=True)
        ]
        threshold = best_threshold(held, radius)
        worth.append((_f1(held, threshold, radius), threshold, response))
    _, threshold, response = max(worth, key=lambda row: row[0])

    def answer(subject: Subject) -> pd.DataFrame:
        table = candidates(subject, response)
        return table[table["score"] >= threshold].reset_index(drop=True)

    return answer


def _f1(held: Any, threshold: float, radius_mm: float) -> float:
    return float(np.mean([detection(t, f[s >= threshold], radius_mm).f1 for t, f, s in held]))


@method("Laplacian of Gaussian", "cells", baseline=True)
def laplacian(given: TrainingData) -> Answer:
    """Bright blobs of the width that is best on the training subjects (SciPy)."""

    def blobs(width: float) -> Response:
        return lambda light: -(width**2) * gaussian_laplace(light, (1.5 * width, width, width))

    return _tuned(given, [blobs(width) for width in (1.2, 1.7, 2.4)])


@method("template matching", "cells", baseline=True)
def template(given: TrainingData) -> Answer:
    """Normalised correlation with the mean cell of the training subjects (scikit-image)."""
    from skimage.feature import match_template

    half, total = np.array((6, 5, 5)), np.zeros((13, 11, 11))
    for subject in given.train:
        light = _levelled(subject)
        for at in np.rint(subject.first.mrh.grid.index(subject.points)).astype(int):
            if (at >= half).all() and (at + half < light.shape).all():
                box = light[tuple(slice(a - h, a + h + 1) for a, h in zip(at, half, strict=True))]
                total += (box - box.mean()) / np.linalg.norm(box - box.mean())

    def likeness(light: Floats) -> Floats:
        return np.asarray(match_template(light, total, pad_input=True, mode="reflect"))  # type: ignore[no-untyped-call]

    return _tuned(given, [likeness])


def _brain(subject: Subject) -> Subject:
    marks = np.empty((0, 3)) if subject.target is None else subject.points
    return Subject(subject.id, dict(subject.inputs), points=marks)


@method("cell detector", "cells")
def detector(given: TrainingData) -> FittedMethod:
    """The screening network, as corrected."""
    voxel = float(given.train[0].first.mrh.spacing.min())
    recipe = cells.recommended_recipe(voxel)
    if given.quick:
        recipe = replace(recipe, each=60, training=replace(recipe.training, epochs=5, patience=5))
    radius = float(given.settings["radius_mm"])
    made = cells.train(
        recipe, [_brain(s) for s in given.train], [_brain(s) for s in given.validation],
        radius_mm=radius, seed=given.seed, folder=given.folder, progress=False,
    )  # fmt: skip
    spec: Any = made.model.spec
    peaks = stored_peaks(spec)

    def answer(subject: Subject) -> pd.DataFrame:
        table = cells.candidates(made.model, _brain(subject), given.folder / "answers" / subject.id, peaks)
        return table[table["score"] >= peaks.threshold].reset_index(drop=True)

    return FittedMethod(answer, made.model)


@method("3D U-Net, peaks", "cells")
def unet(given: TrainingData) -> FittedMethod:
    """Taught a small blob at each cell; the threshold of its peaks is chosen on the validation subjects."""
    radius = float(given.settings["radius_mm"])
    truth = {s.id: _blobs(s) for s in (*given.train, *given.validation)}
    settings = TrainingConfig(batch_size=4, learning_rate=3e-3, seed=given.seed, precision="bfloat16")
    settings = replace(settings, epochs=5 if given.quick else 20)
    model = regress(given, truth, settings, 40 if given.quick else 200, (24, 48, 48))

    def candidates(subject: Subject) -> pd.DataFrame:
        found = mapped(given, model, subject, mode="dense", memory="4 GB")
        return points(subject, found.values.astype(np.float64), 0.8 * radius, 0.02)

    tables = [(s.points, candidates(s)) for s in given.validation]
    threshold = best_threshold([(t, c[["X", "Y", "Z"]].to_numpy(), c["score"].to_numpy()) for t, c in tables], radius)

    def answer(subject: Subject) -> pd.DataFrame:
        table = candidates(subject)
        return table[table["score"] >= threshold].reset_index(drop=True)

    return FittedMethod(answer, model)


def _blobs(subject: Subject) -> Any:
    """A Gaussian of 1.5 voxels about each cell, 1 at its centre."""
    like = subject.first
    held = np.zeros(like.shape)
    at = np.rint(like.mrh.grid.index(subject.points)).astype(int)
    inside = at[((at >= 0) & (at < like.shape)).all(axis=1)]
    held[tuple(inside.T)] = 1
    wide = gaussian_filter(held, 1.5)
    return like.copy(data=(wide / (wide.max() or 1)).astype(np.float32))
