"""Prediction of the Dice of labels without ground truth, from how sure and how consistent a network is.

A network that does not know an image contradicts itself: its labels of the mirrored image are others, and its own
probabilities overlap little with its labels. How both are related to the Dice is measured on synthetic images, which
range from easy ones to those on which the network fails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

#: Terms of a prediction: constant, certainty, symmetry, their product, and the mean of both over the labels.
TERMS = 6
#: Penalty on weights per volume of the fit, other than that of the constant, fewest volumes with a label, and number of
#: parts of the cross-validation.
_RIDGE, _FEWEST, _FOLDS = 0.001, 10, 5


@dataclass(frozen=True)
class QualityModel:
    """Linear prediction of the Dice of each label.

    Attributes
    ----------
    weights : tuple of tuple of float
        Weights of the `TERMS` for each label without the background.
    extents_mm : tuple of (float, float)
        Smallest and largest extent of all labels together along z, y and x in the label maps.
    error : float
        Mean absolute error of the mean Dice in a cross-validation over the volumes of the fit. The predicted mean is
        that of the labels that have voxels, the true one that of the labels of the ground truth.
    """

    weights: tuple[tuple[float, ...], ...]
    extents_mm: tuple[tuple[float, float], ...]
    error: float

    @classmethod
    def fit(cls, certainty: ArrayLike, symmetry: ArrayLike, dice: ArrayLike, extents_mm: ArrayLike) -> QualityModel:
        """Return the model for volumes whose true Dice is known.

        Parameters
        ----------
        certainty, symmetry, dice : (volumes, labels) array
            Features of the labels of each volume, and their Dice; NaN where a volume does not have a label.
        extents_mm : (maps, 3) array
            Extents of all labels together in each label map.

        Examples
        --------
        >>> rng = np.random.default_rng(0)
        >>> symmetry = rng.random((40, 2))
        >>> model = QualityModel.fit(np.full((40, 2), 0.5), symmetry, 0.9 * symmetry, [[140, 170, 130]])
        >>> model.predict([0.5, 0.5], [0.8, 0.4]).round(2).tolist()
        [0.72, 0.36]
        """
        rows = [np.asarray(values, dtype=np.float64) for values in (certainty, symmetry, dice)]
        known = np.isfinite(rows[2]).any(1)
        truth = rows[2][known]
        features = np.stack([_terms(c, s) for c, s in zip(rows[0][known], rows[1][known], strict=True)])
        folds = np.arange(len(truth)) % _FOLDS
        errors = []
        for fold in range(_FOLDS):
            weights = _fitted(features[folds != fold], truth[folds != fold])
            for terms, values in zip(features[folds == fold], truth[folds == fold], strict=True):
                present = terms[:, 1] > 0
                predicted = _predicted(terms, weights)[present].mean() if present.any() else 0.0
                errors.append(abs(predicted - np.nanmean(values)))
        weights_of_all = tuple(tuple(float(f"{w:.4g}") for w in row) for row in _fitted(features, truth))
        sizes = np.asarray(extents_mm, dtype=np.float64)
        ranges = tuple((float(low), float(high)) for low, high in zip(sizes.min(0), sizes.max(0), strict=True))
        return cls(weights_of_all, ranges, float(f"{np.mean(errors):.3g}"))

    def predict(self, certainty: ArrayLike, symmetry: ArrayLike) -> Floats:
        """Return the predicted Dice (labels,) from the features (labels,) of a volume; 0 for a label without voxels."""
        return _predicted(_terms(np.asarray(certainty), np.asarray(symmetry)), np.array(self.weights))


def _terms(certainty: Floats, symmetry: Floats) -> Floats:
    """Return the terms (labels, terms) of a volume."""
    present = certainty > 0
    means = [v[present].mean() if present.any() else 0.0 for v in (certainty, symmetry)]
    columns = [np.ones_like(certainty), certainty, symmetry, certainty * symmetry]
    return np.stack([*columns, *(np.full_like(certainty, mean) for mean in means)], axis=-1)


def _predicted(terms: Floats, weights: Floats) -> Floats:
    return np.where(terms[:, 1] > 0, (terms * weights).sum(-1).clip(0, 1), 0.0)


def _fitted(features: Floats, dice: Floats) -> Floats:
    """Return the weights (labels, terms) that predict the Dice (volumes, labels) best."""
    penalty = np.diag([0.0] + [1.0] * (TERMS - 1))
    rows = []
    for label in range(dice.shape[1]):
        # A label without voxels has a Dice of 0 without a prediction.
        used = np.isfinite(dice[:, label]) & (features[:, label, 1] > 0)
        if used.sum() < _FEWEST:
            rows.append(np.zeros(TERMS))
            continue
        x = features[used, label]
        rows.append(np.linalg.solve(x.T @ x + _RIDGE * len(x) * penalty, x.T @ dice[used, label]))
    return np.stack(rows)
