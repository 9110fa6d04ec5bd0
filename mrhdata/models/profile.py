"""Profile of the volumes that a network learned from: simple features of small boxes.

A network returns a plausible map for any input. The features tell other contrasts, noise, blur, label volumes and
shuffled axes from the volumes of the training, with reasons that can be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Features of a box, in order. Values are those that the network gets; roughness is the standard deviation of the
#: difference of neighbours divided by that of the values.
FEATURES = (
    "mean", "deviation", "skewness", "roughness along z", "roughness along y", "roughness along x", "repeated values",
)  # fmt: skip
#: Edge of a box in voxels, and number of boxes of a volume.
BOX_EDGE, BOXES = 16, 64
#: Largest number of training boxes that a profile keeps.
_MOST_BOXES = 256
#: Quantile of the distances between training boxes of different subjects. The limit is the quantile times a factor: one
#: for many boxes, more for few, and again more if parts of a subject stand for subjects, since they are more alike.
_QUANTILE, _FACTOR, _FEW, _ALIKE = 0.99, 1.2, 3.0, 1.5
#: Smallest deviation of a feature, number of boxes from which on there is a profile, and number of parts of a single
#: subject that stand for subjects.
_LEAST_DEVIATION, _LEAST_BOXES, _PARTS = 0.1, 32, 4


@dataclass(frozen=True)
class InputProfile:
    """Features of boxes of the training volumes, and the distance from them within which a box is familiar.

    Attributes
    ----------
    box : tuple of int
        Voxels of a box along z, y, x.
    boxes : tuple of tuple of float
        Features of the training boxes: those of the first channel in the order of `FEATURES`, then those of the next.
    deviation : tuple of float
        Standard deviation of each feature, the unit of distances.
    limit : float
        Largest distance of a familiar box from the nearest training box, as root mean square over the features.
    """

    box: tuple[int, int, int]
    boxes: tuple[tuple[float, ...], ...]
    deviation: tuple[float, ...]
    limit: float

    @classmethod
    def measure(cls, boxes: NDArray[np.floating], subjects: Ints | None = None) -> InputProfile | None:
        """Return the profile of boxes, None if fewer than 32 vary, which say too little.

        The limit is measured between boxes of different subjects.

        Parameters
        ----------
        boxes : (n, C, z, y, x) array
            Values as the network gets them.
        subjects : (n,) array of int, optional
            Number of each box's subject; by default, and if there are fewer than three, parts of the sequence stand
            for subjects.

        Examples
        --------
        >>> boxes = np.random.default_rng(0).normal(0, 1, (90, 1, 8, 8, 8))
        >>> profile = InputProfile.measure(boxes[:60])
        >>> [round(float((profile.distances(b) > profile.limit).mean()), 1) for b in (boxes[60:], 9 + boxes[60:])]
        [0.0, 1.0]
        """
        features, varies = _features(boxes)
        if len(features) < _LEAST_BOXES:
            return None
        groups = np.zeros(len(boxes), np.int64) if subjects is None else np.asarray(subjects)
        alike = len(np.unique(groups)) < 3
        if alike:
            groups = np.arange(len(boxes)) * _PARTS // len(boxes)
        groups = groups[varies]
        deviation = np.maximum(features.std(axis=0), _LEAST_DEVIATION)
        chosen = np.linspace(0, len(features) - 1, min(len(features), _MOST_BOXES)).astype(np.int64)
        known, owners = features[chosen], groups[chosen]
        between = [
            _distances(features[groups == g], known[owners != g], deviation)
            for g in np.unique(groups)
            if (owners != g).any()
        ]
        if not between:
            return None
        factor = (_FACTOR + _FEW / np.sqrt(len(features))) * (_ALIKE if alike else 1)
        limit = factor * float(np.quantile(np.concatenate(between), _QUANTILE))
        z, y, x = boxes.shape[2:]
        rows = tuple(tuple(_rounded(v) for v in row) for row in known)
        return cls((z, y, x), rows, tuple(map(_rounded, deviation)), _rounded(limit))

    def distances(self, boxes: NDArray[np.floating]) -> Floats:
        """Return the distances (m,) of those of the boxes (n, C, z, y, x) that vary from the nearest training box."""
        return _distances(features_of(boxes), np.array(self.boxes), np.array(self.deviation))

    def differences(self, boxes: NDArray[np.floating]) -> list[tuple[str, int, float, float]]:
        """Return the features that differ most from those of the nearest training boxes.

        Returns
        -------
        differences : list of (name, channel, value, value in training)
            Medians over the boxes, largest difference first.
        """
        features, known, deviation = features_of(boxes), np.array(self.boxes), np.array(self.deviation)
        nearest = known[_squares(features, known, deviation).argmin(1)]
        size = np.median(np.abs(features - nearest) / deviation, axis=0)
        rows = []
        for index in np.argsort(-size):
            channel, feature = divmod(int(index), len(FEATURES))
            values = (float(np.median(v[:, index])) for v in (features, nearest))
            rows.append((FEATURES[feature], channel, *values))
        return rows  # type: ignore[return-value]


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _squares(features: Floats, known: Floats, deviation: Floats) -> Floats:
    """Return the mean squared differences (n, m) of features and known ones, in deviations."""
    a, b = features / deviation, known / deviation
    return np.asarray(np.square(a[:, None] - b[None]).mean(-1))


def _distances(features: Floats, known: Floats, deviation: Floats) -> Floats:
    return np.asarray(np.sqrt(_squares(features, known, deviation).min(1)))


def features_of(boxes: NDArray[np.floating]) -> Floats:
    """Return the features (m, C * features) of those of the boxes (n, C, z, y, x) that are finite and vary.

    Examples
    --------
    >>> boxes = np.random.default_rng(0).normal(3, 2, (2, 1, 8, 8, 8))
    >>> boxes[1] = 0
    >>> features_of(boxes).round(1).tolist()
    [[3.0, 2.0, -0.2, 1.5, 1.4, 1.4, 0.0]]
    """
    return _features(boxes)[0]


def _features(boxes: NDArray[np.floating]) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the features of the boxes that are finite and vary, and which these are."""
    values = np.asarray(boxes, dtype=np.float64)
    axes = (2, 3, 4)
    mean, deviation = values.mean(axes), values.std(axes)
    # Of NaN the comparison is false.
    varies = (deviation > 1e-6 * (1 + np.abs(mean))).all(1)
    values, mean, deviation = values[varies], mean[varies], deviation[varies]
    centred = (values - mean[..., None, None, None]) / deviation[..., None, None, None]
    rough = [_roughness(centred, axis) for axis in axes]
    repeated = (np.diff(values, axis=-1) == 0).mean(axes) if values.shape[-1] > 1 else np.zeros_like(mean)
    skewness = (centred**3).mean(axes)
    # Its logarithm, since boxes with a few bright voxels have skewnesses of any size.
    skewness = np.sign(skewness) * np.log1p(np.abs(skewness))
    rows = np.stack([mean, deviation, skewness, *rough, repeated], axis=-1)
    return rows.reshape(len(rows), boxes.shape[1] * len(FEATURES)), varies


def _roughness(centred: Floats, axis: int) -> Floats:
    if centred.shape[axis] == 1:
        return np.zeros(centred.shape[:2])
    return np.asarray(np.sqrt(np.square(np.diff(centred, axis=axis)).mean((2, 3, 4))))


def box_starts(shape: Sequence[int], box: Sequence[int], number: int = BOXES) -> Ints:
    """Return the first voxels (n, 3) of boxes, spread evenly over a volume.

    Examples
    --------
    >>> len(box_starts((64, 64, 64), (16, 16, 16))), box_starts((8, 20, 20), (16, 16, 16)).tolist()
    (64, [[0, 0, 0], [0, 0, 4], [0, 4, 0], [0, 4, 4]])
    """
    lengths, edges = np.asarray(shape), np.asarray(box)
    free = np.maximum(lengths - edges, 0)
    # As many along each axis as boxes fit, at most the root that gives the wanted number.
    fitting = np.maximum(np.ceil(lengths / edges), 1)
    counts = np.ones(3)
    for rank, axis in enumerate(np.argsort(fitting)):
        counts[axis] = min(fitting[axis], max(1, np.floor((number / counts.prod()) ** (1 / (3 - rank)) + 1e-9)))
    axes = [np.unique(np.round(np.linspace(0, f, int(n) + 2)[1:-1] if n < m else np.linspace(0, f, int(n))))
            for f, n, m in zip(free, counts, fitting, strict=True)]  # fmt: skip
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.int64)
