"""Segment tissue on T1w images slice by slice (minc_keras), and a U-Net for comparison.

Published: Adam at 1e-4, batches of 32 slices (its option for another size was ignored), 5 to 10 epochs, the
last weights, stored voxels without MINC's slice-wise scaling, a numbering of labels that differs between volumes, and
an unseeded split. Here: real values, one numbering of labels for the data set, a seeded split by subject, and the
epoch with the lowest validation loss.
"""

from __future__ import annotations

from dataclasses import replace

from mrhdata.recipes.segmentation import Crops, Recipe, Slices, Steps
from mrhdata.training.augmentation import Augmentation
from mrhdata.training.settings import TrainingConfig

#: Published networks by name.
NETWORKS = ("tissue2d_0_0", "tissue2d_1_0", "tissue2d_2_0", "tissue2d_3_0", "tissue2d_4_0")
_PREPARE: Steps = (("normalise", {"how": "minmax"}),)

PUBLISHED = TrainingConfig(
    epochs=5,
    batch_size=32,
    learning_rate=1e-4,
    schedule="constant",
    weight_decay=0.0,
    loss="cross-entropy",
    normalization="none",
    restore_best=False,
)
RECOMMENDED = TrainingConfig(
    epochs=4,
    batch_size=8,
    learning_rate=3e-3,
    weight_decay=1e-4,
    loss="cross-entropy",
    precision="auto",
    patience=4,
)


def published(network: str = "tissue2d_0_0") -> Recipe:
    """Return the published recipe, except for the seeded split and the real values."""
    return Recipe(network, _PREPARE, Slices(), (PUBLISHED,))


def slices(network: str = "tissue2d_0_0", spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Recipe:
    """Return the recipe of a published network on crops of slices, which give more steps than whole slices.

    Examples
    --------
    >>> slices("tissue2d_3_0").prepare[0]
    ('upright', {'spacing_mm': [1.0, 1.0, 1.0]})
    """
    return Recipe(network, _upright(spacing_mm), Crops((1, 64, 64), each=256), (RECOMMENDED,))


def unet(spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Recipe:
    """Return the recipe of a residual 3D U-Net with augmentation, on 3D crops."""
    training = replace(
        RECOMMENDED,
        epochs=24,
        batch_size=2,
        loss="dice+cross-entropy",
        augment=Augmentation(),
        patience=24,
    )
    config = {"widths": (16, 32, 64, 128), "strides": ((1, 2, 2), (2, 2, 2), (2, 2, 2))}
    return Recipe("unet3d", _upright(spacing_mm), Crops((16, 96, 96), each=8), (training,), config)


def _upright(spacing_mm: tuple[float, float, float]) -> Steps:
    return (("upright", {"spacing_mm": list(spacing_mm)}), *_PREPARE)
