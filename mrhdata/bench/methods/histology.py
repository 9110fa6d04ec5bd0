"""Histology values from MRI contrasts, voxelwise or from patches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from mrhdata import models
from mrhdata.bench.api import Answer, FittedMethod, TrainingData, channels, method
from mrhdata.bench.methods.networks import predict_in_memory, train_unet
from mrhdata.datasets.subjects import Subject
from mrhdata.patching.create import patches
from mrhdata.recipes import mrhnet
from mrhdata.training.loop import fit
from mrhdata.training.settings import TrainingConfig


def by_voxel(predict: Callable[[Any], Any]) -> Answer:
    """Return a prediction function that applies `predict` to the rows (n, channels) of the mask; 0 elsewhere."""

    def answer(subject: Subject) -> Any:
        contrasts = channels(subject)
        inside = np.ones(contrasts.shape[:3], bool) if subject.mask is None else np.asarray(subject.mask.data) > 0
        values = np.zeros(contrasts.shape[:3])
        values[inside] = predict(contrasts[inside])
        return subject.first.copy(data=values).rename("answer")

    return answer


@method("polynomial of contrasts", "histology", baseline=True)
def polynomial(data: TrainingData) -> Answer:
    """Fit a polynomial of second degree with products by least squares (scikit-learn)."""
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    pipeline = make_pipeline(StandardScaler(), PolynomialFeatures(2), LinearRegression()).fit(*data.rows())
    return by_voxel(pipeline.predict)


@method("gradient boosting of contrasts", "histology", baseline=True)
def boosting(data: TrainingData) -> Answer:
    """Fit histogram gradient boosting (scikit-learn); the number of trees is chosen on the validation subjects."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    regressor = HistGradientBoostingRegressor(random_state=data.seed, max_iter=300, learning_rate=0.05)
    regressor.fit(*data.rows())
    x, y = data.rows(data.validation)
    errors = [float(np.mean((prediction - y) ** 2)) for prediction in regressor.staged_predict(x)]
    regressor.set_params(max_iter=1 + int(np.argmin(errors))).fit(*data.rows())
    return by_voxel(regressor.predict)


@method("MRH-Net", "histology")
def network(data: TrainingData) -> FittedMethod:
    """Train MRH-Net on 3 x 3 patches around the voxels, with the recommended settings."""
    model = models.create("mrhnet", seed=data.seed, in_channels=len(data.train[0].inputs), loop_blocks=4)
    settings = replace(mrhnet.RECOMMENDED, seed=data.seed, epochs=6 if data.quick else 12)
    training, validation = (
        patches(
            [dict(s.inputs) for s in subjects],
            [{"truth": s.target} for s in subjects],
            shape=mrhnet.PATCH,
            plane="coronal",
            sampler=[data.voxels[s.id] - np.array(mrhnet.PATCH) // 2 for s in subjects],
            padding="edge",
        )
        for subjects in (data.train, data.validation)
    )
    fit(model, training, validation, settings, checkpoint=data.folder / "mrhnet.pt", progress=False)
    return FittedMethod(lambda subject: predict_in_memory(data, model, subject, mask=subject.mask), model)


@method("3D U-Net, regression", "histology")
def unet(data: TrainingData) -> FittedMethod:
    """Train a U-Net on patches around the voxels."""
    settings = TrainingConfig(epochs=4 if data.quick else 30, batch_size=2, learning_rate=3e-3, seed=data.seed)
    truth = {s.id: s.target for s in (*data.train, *data.validation)}
    model = train_unet(data, truth, settings, 16 if data.quick else 64, (24, 24, 24))
    return FittedMethod(lambda subject: predict_in_memory(data, model, subject, mode="dense", memory="4 GB"), model)
