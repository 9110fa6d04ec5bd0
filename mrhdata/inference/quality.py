"""Predicted Dice of each label of a volume, without ground truth."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrhdata.errors import UnfamiliarError
from mrhdata.inference.strategies.network import InferenceModel
from mrhdata.models.precision import autocast

Floats = NDArray[np.float32]

#: Planes of the features that are scored at once, and labels that a message names.
_PLANES, _WORST = 16, 3
#: Share of the labelled voxels on each side that do not count for an extent.
_OUTSIDE = 0.005
#: Factors on the extents of the label maps within which those of a volume are not conspicuous.
_SMALL, _LARGE = 0.8, 1.3
#: Predicted mean Dice below which a segmentation is doubtful, and below which it is refused.
DOUBTFUL, REFUSED = 0.6, 0.4

log = logging.getLogger("mrhdata")


@dataclass(frozen=True)
class LabelFeatures:
    """How sure and how consistent a network is of each label without the background, (labels,) each.

    Attributes
    ----------
    voxels : array of float
        Number of voxels, of the grid of the input.
    extents : (3,) array of float
        Extents of all labels together along z, y and x, in voxels; outliers do not count.
    certainty : array of float
        Dice of the labels with the probabilities of the same pass, a soft overlap.
    symmetry : array of float
        Dice of the labels with those of the volume that is mirrored from left to right.
    """

    voxels: NDArray[np.float64]
    extents: NDArray[np.float64]
    certainty: NDArray[np.float64]
    symmetry: NDArray[np.float64]


@dataclass(frozen=True)
class SegmentationQuality:
    """Predicted Dice of the labels of a volume.

    Attributes
    ----------
    dice : mapping of int to float
        Predicted Dice of each label that has voxels.
    error : float
        Mean absolute error of predicted means, measured on synthetic images.
    extents_mm : (float, float, float)
        Extents of all labels together along z, y and x.
    expected_mm : tuple of (float, float)
        Smallest and largest extents in the label maps.
    """

    dice: Mapping[int, float]
    error: float
    extents_mm: tuple[float, ...]
    expected_mm: tuple[tuple[float, float], ...]

    @property
    def unusual(self) -> list[str]:
        """Sentences on extents that no label map has: of a part of a brain, or of another species.

        Examples
        --------
        >>> SegmentationQuality({}, 0.04, (140.0, 170.0, 66.0), ((130, 150), (160, 180), (120, 150))).unusual
        ['66 mm along x (120 to 150 mm)']
        """
        return [
            f"{length:.0f} mm along {axis} ({low:.0f} to {high:.0f} mm)"
            for axis, length, (low, high) in zip("zyx", self.extents_mm, self.expected_mm, strict=True)
            if not _SMALL * low <= length <= _LARGE * high
        ]

    @property
    def mean(self) -> float:
        """Mean predicted Dice of the labels that have voxels; 0 if none has."""
        return sum(self.dice.values()) / max(1, len(self.dice))

    def as_json(self, names: Mapping[int, str]) -> dict[str, Any]:
        """Return the mean, its error, and the Dice by name, rounded.

        Examples
        --------
        >>> quality = SegmentationQuality({1: 0.9, 2: 0.7}, 0.04, (140.0, 170.0, 130.0), ((130, 180),) * 3)
        >>> quality.as_json({1: "cortex"})
        {'predicted_dice': 0.8, 'error': 0.04, 'labels': {'cortex': 0.9, '2': 0.7}, 'unusual_extents': []}
        """
        labels = {names.get(label, str(label)): round(dice, 3) for label, dice in self.dice.items()}
        summary = {"predicted_dice": round(self.mean, 3), "error": self.error, "labels": labels}
        return summary | {"unusual_extents": self.unusual}


def quality_of(
    network: InferenceModel, features: Floats, mirrored: Floats, spacing_mm: Sequence[float]
) -> SegmentationQuality:
    """Predict the Dice of the labels of a volume by the quality model of a network; arguments as `label_features`."""
    model, labels = network.spec.quality, network.spec.labels[1:]
    assert model is not None
    measured = label_features(network, features, mirrored)
    dice = model.predict(measured.certainty, measured.symmetry)
    present = zip(labels, dice.tolist(), (measured.voxels > 0).tolist(), strict=True)
    values = {label: value for label, value, has_voxels in present if has_voxels}
    extents = tuple((measured.extents * np.asarray(spacing_mm)).tolist())
    return SegmentationQuality(values, model.error, extents, model.extents_mm)


def require_quality(quality: SegmentationQuality, names: Mapping[int, str], force: bool) -> None:
    """Raise UnfamiliarError if labels are predicted to be wrong, or have another size along all axes; warn if doubtful.

    Parameters
    ----------
    quality : SegmentationQuality
        Predicted Dice.
    names : mapping of int to str
        Names of the labels.
    force : bool
        Whether to warn in place of an error.
    """
    unusual = quality.unusual
    if unusual:
        log.warning(
            "the labels extend over %s, in brackets those of the training: a part of a brain, or another brain",
            ", ".join(unusual),
        )
    if quality.mean >= DOUBTFUL and len(unusual) < len(quality.expected_mm):
        return
    worst = sorted(quality.dice.items(), key=lambda row: row[1])[:_WORST]
    listed = ", ".join(f"{names.get(label, str(label))} {dice:.2f}" for label, dice in worst) or "no label was found"
    sentence = (
        f"the volume must be of a kind that the network knows; the predicted Dice of its labels is {quality.mean:.2f} "
        f"(lowest: {listed})"
    )
    if (quality.mean < REFUSED or len(unusual) == len(quality.expected_mm)) and not force:
        error = UnfamiliarError(f"{sentence}. Take a network for such volumes, or pass force=True (--force)")
        error.quality = quality.as_json(names)
        raise error
    log.warning("%s. Look at the labels", sentence)


def label_features(network: InferenceModel, features: Floats, mirrored: Floats) -> LabelFeatures:
    """Measure how sure and consistent a network with a trunk is, on the grid of its trunk.

    Parameters
    ----------
    network : InferenceModel
        Network with a trunk.
    features, mirrored : (C, z, y, x) array
        Answers of the trunk to a volume, and to the volume mirrored along x.
    """
    model: Any = network.model
    totals: Any = 0
    masses: list[Any] = [[], 0, 0]
    for low in range(0, features.shape[1], _PLANES):
        planes = slice(low, low + _PLANES)
        probabilities, others = (_probabilities(network, v[:, planes]) for v in (features, mirrored[..., ::-1]))
        count = len(probabilities)
        volume = probabilities.argmax(0)
        masses = [masses[0] + (volume > 0).sum((1, 2)).tolist(), *_added(masses[1:], volume > 0)]
        labels, other_labels = volume.flatten(), others.argmax(0).flatten()
        rows = [
            torch.bincount(labels, minlength=count),
            torch.bincount(other_labels, minlength=count),
            torch.bincount(labels[labels == other_labels], minlength=count),
            probabilities.flatten(1).sum(1),
            torch.bincount(labels, probabilities.amax(0).flatten(), minlength=count),
        ]
        totals = totals + torch.stack([row.double() for row in rows]).numpy()
    own, other, both, expected, within = totals[:, 1:]
    certainty = np.divide(2 * within, own + expected, out=np.zeros_like(own), where=own > 0)
    symmetry = np.divide(2 * both, own + other, out=np.zeros_like(own), where=own > 0)
    step = model.trunk_stride
    extents = step * np.array([extent(np.asarray(mass, dtype=np.float64)) for mass in masses])
    return LabelFeatures(own * step**3, extents, certainty, symmetry)


def _added(masses: Sequence[Any], inside: Tensor) -> list[Any]:
    """Return the labelled voxels of each plane along y and x, with those of further planes."""
    return [mass + inside.sum(axes).numpy() for mass, axes in zip(masses, ((0, 2), (0, 1)), strict=True)]


def extent(masses: NDArray[np.float64]) -> float:
    """Return the length that holds 99 % of masses along a line, in steps of the line.

    Examples
    --------
    >>> extent(np.array([0.0, 1, 1, 1, 0]))
    3.0
    """
    if not masses.sum() > 0:
        return 0.0
    share = np.concatenate([[0.0], np.cumsum(masses) / masses.sum()])
    low, high = np.searchsorted(share, _OUTSIDE, side="right") - 1, np.searchsorted(share, 1 - _OUTSIDE)
    return float(high - low)


def coarse_labels(network: InferenceModel, features: Floats) -> NDArray[np.int64]:
    """Return the number (z, y, x) of the most probable label on the grid of the trunk."""
    parts = [
        _probabilities(network, features[:, low : low + _PLANES]).argmax(0).numpy()
        for low in range(0, features.shape[1], _PLANES)
    ]
    return np.concatenate(parts)


def _probabilities(network: InferenceModel, features: Floats) -> Tensor:
    """Return the probabilities (labels, z, y, x) of the trunk's grid."""
    values = torch.from_numpy(np.ascontiguousarray(features)[None]).to(network.device)
    model: Any = network.model
    with torch.inference_mode(), autocast(network.device.type, network.precision):
        scores: Tensor = model.answer(values)[0].float()
        return scores.softmax(0).cpu()
