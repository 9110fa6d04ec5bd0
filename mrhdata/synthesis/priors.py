"""Intensities of tissues in images of a modality, from 0 (black) to 1 (the brightest tissue).

Measured are T1w (slabs and a whole brain: fluid 0.25 to 0.38, cortex 0.57 to 0.62, deep grey matter 0.80, white matter
0.85 to 0.88 of the 95th to 99th percentile), T2w and PD (averages of 152 heads: 0.90, 0.44, 0.30 and 0.81, 0.75, 0.60
for fluid, grey and white matter), mouse T2w (average of DSURQE: 1.00, 0.77, 0.60) and autofluorescence (template of the
CCFv3: 0.14, 0.57, 0.22). QSM follows the susceptibilities of `mrhdata.phantom`, scaled from -0.1 to 0.2 ppm. FLAIR,
gradient echo, all tissues around the brain and all deviations are our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Prior(NamedTuple):
    """Intensity of a tissue.

    Attributes
    ----------
    mean : float
        Typical intensity.
    deviation : float
        Standard deviation of the mean between images.
    spread : float
        Standard deviation within an image.

    Examples
    --------
    >>> PRIORS["t1w"]["csf"].mean < PRIORS["t1w"]["white"].mean
    True
    """

    mean: float
    deviation: float
    spread: float


def _modality(brain: Mapping[str, float], around: Mapping[str, float], deviation: float = 0.04) -> dict[str, Prior]:
    """Return the priors of a modality; tissues around the brain vary three times as much."""
    inside = {tissue: Prior(mean, deviation, 0.04) for tissue, mean in brain.items()}
    outside = {tissue: Prior(mean, 3 * deviation, 0.08) for tissue, mean in around.items()}
    return inside | outside | {"background": Prior(brain.get("background", 0.0), 0.0, 0.01)}


_BRAIN = ("csf", "grey", "striatum", "thalamus", "pallidum", "brain stem", "white")
_AROUND = ("vessel", "bone", "marrow", "skin", "muscle", "soft tissue", "eye", "mucosa")


def _row(brain: tuple[float, ...], around: tuple[float, ...], background: float = 0.0) -> dict[str, Prior]:
    inside = dict(zip(_BRAIN, brain, strict=True)) | {"background": background}
    return _modality(inside, dict(zip(_AROUND, around, strict=True)))


#: Priors of each modality by tissue.
PRIORS: dict[str, dict[str, Prior]] = {
    # csf, grey, striatum, thalamus, pallidum, brain stem, white; vessel, bone, marrow, skin, muscle, soft, eye, mucosa
    "t1w": _row((0.26, 0.58, 0.68, 0.74, 0.80, 0.78, 0.85), (0.50, 0.10, 0.65, 0.80, 0.42, 0.50, 0.22, 0.45)),
    "t2w": _row((0.92, 0.46, 0.42, 0.40, 0.30, 0.36, 0.32), (0.25, 0.06, 0.35, 0.45, 0.20, 0.32, 0.85, 0.60)),
    "pd": _row((0.84, 0.76, 0.72, 0.70, 0.60, 0.64, 0.60), (0.40, 0.12, 0.50, 0.60, 0.45, 0.50, 0.80, 0.65)),
    "flair": _row((0.14, 0.62, 0.58, 0.54, 0.46, 0.52, 0.48), (0.30, 0.06, 0.40, 0.60, 0.30, 0.40, 0.15, 0.55)),
    "gre": _row((0.80, 0.66, 0.56, 0.60, 0.34, 0.58, 0.58), (0.25, 0.06, 0.20, 0.35, 0.45, 0.40, 0.70, 0.40)),
    "qsm": _row((0.34, 0.39, 0.44, 0.36, 0.76, 0.34, 0.26), (0.80, 0.20, 0.33, 0.33, 0.33, 0.33, 0.33, 0.33), 0.33),
    "mouse t2w": _row((0.98, 0.76, 0.72, 0.68, 0.64, 0.66, 0.60), (0.40, 0.10, 0.40, 0.50, 0.30, 0.30, 0.60, 0.40)),
    "autofluorescence": _row((0.14, 0.58, 0.46, 0.44, 0.34, 0.36, 0.22), (0.1, 0.05, 0.05, 0.1, 0.1, 0.05, 0.05, 0.05)),
}  # fmt: skip
