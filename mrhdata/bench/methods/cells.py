"""Detection of cells in cleared tissue, as points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_laplace

from mrhdata.bench.api import Answer, FittedMethod, TrainingData, method
from mrhdata.bench.methods.networks import predict_in_memory, train_unet
from mrhdata.datasets.subjects import Subject
from mrhdata.inference.detector import stored_peaks
from mrhdata.inference.peaks import Peaks, find_peaks
from mrhdata.metrics.detection import best_threshold, detection
from mrhdata.recipes import cells
from mrhdata.training.settings import TrainingConfig

Floats = NDArray[np.float64]
#: Filter: function from the values of a volume to responses that are high at cells.
Response = Callable[[Floats], Floats]


def peaks_table(subject: Subject, responses: Floats, radius_mm: float, threshold: float) -> pd.DataFrame:
    """Return the peaks of responses as a table of world points and scores."""
    grid = subject.first.mrh.grid
    peaks = find_peaks(responses, grid.spacing.tolist(), Peaks(threshold, radius_mm=radius_mm))
    return pd.DataFrame(grid.world(peaks.centre), columns=["X", "Y", "Z"]).assign(score=peaks.score)


def _flatten(subject: Subject) -> Floats:
    """Divide the first input by its local mean, because light falls off across a brain."""
    light = np.asarray(subject.first.data, dtype=np.float64)
    return light / np.maximum(gaussian_filter(light, 12.0), 1e-6)


def _tune(data: TrainingData, filters: Sequence[Response]) -> Answer:
    """Return a detector with the filter and threshold that have the best F1 on the training subjects."""
    radius = float(data.settings["radius_mm"])

    def candidates(subject: Subject, response: Response) -> pd.DataFrame:
        values = response(_flatten(subject))
        # Cells fill less than 2 % of the volume.
        return peaks_table(subject, values, 0.8 * radius, float(np.percentile(values, 98)))

    trials = []
    for response in filters:
        tables = [candidates(s, response) for s in data.train]
        detections = [
            (s.points, t[["X", "Y", "Z"]].to_numpy(), t["score"].to_numpy())
            for s, t in zip(data.train, tables, strict=True)
        ]
        threshold = best_threshold(detections, radius)
        trials.append((_f1(detections, threshold, radius), threshold, response))
    _, threshold, response = max(trials, key=lambda trial: trial[0])

    def answer(subject: Subject) -> pd.DataFrame:
        table = candidates(subject, response)
        return table[table["score"] >= threshold].reset_index(drop=True)

    return answer


def _f1(detections: Any, threshold: float, radius_mm: float) -> float:
    return float(np.mean([detection(t, f[s >= threshold], radius_mm).f1 for t, f, s in detections]))


@method("Laplacian of Gaussian", "cells", baseline=True)
def laplacian(data: TrainingData) -> Answer:
    """Detect bright blobs of the width that is best on the training subjects (SciPy)."""

    def blob_filter(width: float) -> Response:
        return lambda light: -(width**2) * gaussian_laplace(light, (1.5 * width, width, width))

    return _tune(data, [blob_filter(width) for width in (1.2, 1.7, 2.4)])


@method("template matching", "cells", baseline=True)
def template(data: TrainingData) -> Answer:
    """Detect by normalised correlation with the mean cell of the training subjects (scikit-image)."""
    from skimage.feature import match_template

    half, mean_cell = np.array((6, 5, 5)), np.zeros((13, 11, 11))
    for subject in data.train:
        light = _flatten(subject)
        for centre in np.rint(subject.first.mrh.grid.index(subject.points)).astype(int):
            if (centre >= half).all() and (centre + half < light.shape).all():
                cell = light[tuple(slice(c - h, c + h + 1) for c, h in zip(centre, half, strict=True))]
                mean_cell += (cell - cell.mean()) / np.linalg.norm(cell - cell.mean())

    def correlation(light: Floats) -> Floats:
        return np.asarray(match_template(light, mean_cell, pad_input=True, mode="reflect"))  # type: ignore[no-untyped-call]

    return _tune(data, [correlation])


def _with_points(subject: Subject) -> Subject:
    """Return a subject with its points only; a blind subject gets none."""
    points = np.empty((0, 3)) if subject.points is None else subject.points
    return Subject(subject.id, dict(subject.inputs), points=points)


@method("cell detector", "cells")
def detector(data: TrainingData) -> FittedMethod:
    """Train the screening network with the recommended recipe."""
    voxel = float(data.train[0].first.mrh.spacing.min())
    recipe = cells.recommended_recipe(voxel)
    if data.quick:
        recipe = replace(recipe, patches_per_brain=60, training=replace(recipe.training, epochs=5, patience=5))
    radius = float(data.settings["radius_mm"])
    trained = cells.train(
        recipe, [_with_points(s) for s in data.train], [_with_points(s) for s in data.validation],
        radius_mm=radius, seed=data.seed, folder=data.folder, progress=False,
    )  # fmt: skip
    spec: Any = trained.model.spec
    peaks = stored_peaks(spec)

    def answer(subject: Subject) -> pd.DataFrame:
        folder = data.folder / "answers" / subject.id
        table = cells.candidates(trained.model, _with_points(subject), folder, peaks)
        return table[table["score"] >= peaks.threshold].reset_index(drop=True)

    return FittedMethod(answer, trained.model)


@method("3D U-Net, peaks", "cells")
def unet(data: TrainingData) -> FittedMethod:
    """Train a U-Net on a small blob at each cell; the threshold of its peaks is chosen on the validation subjects."""
    radius = float(data.settings["radius_mm"])
    truth = {s.id: _blobs(s) for s in (*data.train, *data.validation)}
    settings = TrainingConfig(batch_size=4, learning_rate=3e-3, seed=data.seed, precision="auto")
    settings = replace(settings, epochs=5 if data.quick else 20)
    model = train_unet(data, truth, settings, 40 if data.quick else 200, (24, 48, 48))

    def candidates(subject: Subject) -> pd.DataFrame:
        responses = predict_in_memory(data, model, subject, mode="dense", memory="4 GB")
        return peaks_table(subject, responses.values.astype(np.float64), 0.8 * radius, 0.02)

    tables = [(s.points, candidates(s)) for s in data.validation]
    threshold = best_threshold([(t, c[["X", "Y", "Z"]].to_numpy(), c["score"].to_numpy()) for t, c in tables], radius)

    def answer(subject: Subject) -> pd.DataFrame:
        table = candidates(subject)
        return table[table["score"] >= threshold].reset_index(drop=True)

    return FittedMethod(answer, model)


def _blobs(subject: Subject) -> Any:
    """Return a volume with a Gaussian of 1.5 voxels at each cell, scaled to a maximum of 1."""
    like = subject.first
    centres = np.zeros(like.shape)
    index = np.rint(like.mrh.grid.index(subject.points)).astype(int)
    inside = index[((index >= 0) & (index < like.shape)).all(axis=1)]
    centres[tuple(inside.T)] = 1
    blobs = gaussian_filter(centres, 1.5)
    return like.copy(data=(blobs / (blobs.max() or 1)).astype(np.float32))
