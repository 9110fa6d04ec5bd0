"""Values of histology from MRI contrasts, voxel by voxel or patch by patch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from mrhdata import models
from mrhdata.bench.api import Answer, FittedMethod, TrainingData, channels, method
from mrhdata.bench.methods.networks import mapped, regress
from mrhdata.datasets.subjects import Subject
from mrhdata.patching.create import patches
from mrhdata.recipes import mrhnet
from mrhdata.training.loop import fit
from mrhdata.training.settings import TrainingConfig


def by_voxel(predict: Callable[[Any], Any]) -> Answer:
    """An answer that a function of rows (n, channels) gives for every voxel of the mask; 0 elsewhere."""

    def answer(subject: Subject) -> Any:
        held = channels(subject)
        inside = np.ones(held.shape[:3], bool) if subject.mask is None else np.asarray(subject.mask.data) > 0
        found = np.zeros(held.shape[:3])
        found[inside] = predict(held[inside])
        return subject.first.copy(data=found).rename("answer")

    return answer


@method("polynomial of contrasts", "histology", baseline=True)
def polynomial(given: TrainingData) -> Answer:
    """Second degree with products, least squares (scikit-learn)."""
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    chain = make_pipeline(StandardScaler(), PolynomialFeatures(2), LinearRegression()).fit(*given.rows())
    return by_voxel(chain.predict)


@method("gradient boosting of contrasts", "histology", baseline=True)
def boosting(given: TrainingData) -> Answer:
    """Histogram gradient boosting (scikit-learn), stopped on the validation subjects by the number of its trees."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    fitted = HistGradientBoostingRegressor(random_state=given.seed, max_iter=300, learning_rate=0.05)
    fitted.fit(*given.rows())
    x, y = given.rows(given.validation)
    errors = [float(np.mean((found - y) ** 2)) for found in fitted.staged_predict(x)]
    fitted.set_params(max_iter=1 + int(np.argmin(errors))).fit(*given.rows())
    return by_voxel(fitted.predict)


@method("MRH-Net", "histology")
def network(given: TrainingData) -> FittedMethod:
    """Patches of 3 x 3 about the voxels, trained as corrected."""
    model = models.create("mrhnet", seed=given.seed, in_channels=len(given.train[0].inputs), blocks=4)
    settings = replace(mrhnet.RECOMMENDED, seed=given.seed, epochs=6 if given.quick else 12)
    learned, watched = (
        patches(
            [dict(s.inputs) for s in part],
            [{"truth": s.target} for s in part],
            shape=mrhnet.PATCH,
            plane="coronal",
            sampler=[given.voxels[s.id] - np.array(mrhnet.PATCH) // 2 for s in part],
            padding="edge",
        )
        for part in (given.train, given.validation)
    )
    fit(model, learned, watched, settings, checkpoint=given.folder / "mrhnet.pt", progress=False)
    return FittedMethod(lambda subject: mapped(given, model, subject, mask=subject.mask), model)


@method("3D U-Net, regression", "histology")
def unet(given: TrainingData) -> FittedMethod:
    """Boxes about the voxels."""
    settings = TrainingConfig(epochs=4 if given.quick else 30, batch_size=2, learning_rate=3e-3, seed=given.seed)
    truth = {s.id: s.target for s in (*given.train, *given.validation)}
    model = regress(given, truth, settings, 16 if given.quick else 64, (24, 24, 24))
    return FittedMethod(lambda subject: mapped(given, model, subject, mode="dense", memory="4 GB"), model)
