"""Ways to show a volume to a network that knows one order of intensities only.

A network that learned from T1w-like images, where fluid is darker than grey matter and grey matter darker than white
matter, labels T2w images whose intensities are inverted, and images whose brightest tissue is another once the values
above a fold are mirrored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mrhdata.errors import ModelError
from mrhdata.inference.probabilities import TrunkModel
from mrhdata.inference.quality import SegmentationQuality, quality_of

Floats = NDArray[np.float32]

#: Value of prepared volumes, from 0 to 1, up to which a voxel counts as air and keeps its value.
_AIR = 0.08
#: Brightness of the highest value after a fold; the fold itself has 1.
_FOLDED = 0.4
#: Mean predicted Dice of all labels of a volume as it is from which on no other contrast is tried.
_GOOD = 0.75


def change_contrast(values: Floats, contrast: str) -> Floats:
    """Return the values of a prepared volume, from 0 to 1, in a way of `CONTRASTS`.

    Examples
    --------
    >>> change_contrast(np.array([0.0, 0.2, 0.9], np.float32), "inverted").round(2).tolist()
    [0.0, 0.88, 0.18]
    """
    if contrast not in CONTRASTS:
        raise ModelError(f"a contrast must be one of {', '.join(CONTRASTS)}; got {contrast!r}. Save the model again")
    tissue = values > _AIR
    if contrast == SAME or not tissue.any():
        return values
    return np.where(tissue, CONTRASTS[contrast](values, tissue), values).astype(np.float32)


def _inverted(values: Floats, tissue: NDArray[np.bool_]) -> Floats:
    return np.asarray(1 + _AIR - values)


def _folded(values: Floats, tissue: NDArray[np.bool_], percentile: float) -> Floats:
    """Rise up to the percentile of the tissue, and fall above it."""
    fold = float(np.percentile(values[tissue], percentile))
    falling = 1 - (1 - _FOLDED) * (values - fold) / max(1 - fold, 1e-6)
    return np.where(values <= fold, values / fold, falling)


def _inverted_folded(values: Floats, tissue: NDArray[np.bool_], percentile: float) -> Floats:
    """Fall from the percentile of the tissue on, and rise below it."""
    fold = float(np.percentile(values[tissue], percentile))
    rising = 1 - (1 - _FOLDED) * (fold - values) / fold
    return np.where(values >= fold, (1.02 - values) / (1.02 - fold), rising)


SAME = "as it is"
#: Name -> function of the values and the voxels with tissue.
CONTRASTS: dict[str, Callable[[Floats, NDArray[np.bool_]], Floats]] = {
    SAME: lambda values, _: values,
    "inverted": _inverted,
    "folded at 60 %": partial(_folded, percentile=60),
    "folded at 75 %": partial(_folded, percentile=75),
    "inverted, folded at 40 %": partial(_inverted_folded, percentile=40),
}


@dataclass(frozen=True)
class View:
    """A volume as a network saw it.

    Attributes
    ----------
    contrast : str
        Name of the way, of `CONTRASTS`.
    values : (channels, z, y, x) array
        Values that the network saw.
    features : (C, z, y, x) array
        Answer of its trunk.
    quality : SegmentationQuality or None
        Predicted Dice; None if the network has no quality model.
    """

    contrast: str
    values: Floats
    features: Floats
    quality: SegmentationQuality | None

    @property
    def total(self) -> float:
        """Predicted Dice, summed over the labels."""
        return 0.0 if self.quality is None else sum(self.quality.dice.values())

    def is_good(self, labels: int) -> bool:
        """Return whether no other contrast is tried, for a network with some number of labels.

        A volume without some of the labels is shown in all contrasts.
        """
        return self.quality is None or self.total >= _GOOD * labels


def best_view(trunk: TrunkModel) -> View:
    """Return the volume in the contrast with the highest predicted Dice, summed over the labels."""
    spec = trunk.network.spec
    best: View | None = None
    for contrast in spec.contrasts or (SAME,):
        values = change_contrast(trunk.values, contrast)
        features = trunk.features(values)
        if spec.quality is None:
            return View(contrast, values, features, None)
        mirrored = trunk.features(np.ascontiguousarray(values[..., ::-1]))
        view = View(contrast, values, features, quality_of(trunk.network, features, mirrored, trunk.spacing_mm))
        if best is None or view.total > best.total:
            best = view
        if contrast == SAME and view.is_good(len(spec.labels) - 1):
            break
    assert best is not None
    return best
