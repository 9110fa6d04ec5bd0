"""Segment deep grey matter on QSM (segDGM_CNN, Liu 2017), and a U-Net for comparison.

Published: maps at 1 x 1 x 3 mm, cropped to 160 x 220 x 48 voxels and clipped to +-0.2 ppm; patches of
27 x 27 x 21 voxels whose 9 x 9 x 3 core has a label; Adam at 1e-3, then 1e-4; a second round with the false
positives of the first. Its second generation passed zeros as voxel coordinates at test time, hardly shuffled, and had
one PReLU slope per voxel.

Here the network learns from the same voxels (cores at every third voxel that have a label), but in larger patches:
valid convolutions give the same answers with a twentieth of the redundant computation. The loss is soft Dice plus
cross-entropy, because cross-entropy without Dice misses the smallest nuclei for many epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mrhdata.datasets.subjects import Subject
from mrhdata.models.fcn3d import FCN3D, VARIANTS
from mrhdata.recipes.segmentation import Cores, Crops, Recipe, Steps
from mrhdata.training.augmentation import Augmentation
from mrhdata.training.settings import TrainingConfig

#: Values in label files: red nucleus, substantia nigra, globus pallidus, putamen and caudate nucleus, left and right.
LABELS = {
    2: "RN left", 3: "RN right", 4: "SN left", 5: "SN right", 6: "GP left", 7: "GP right",
    8: "PU left", 9: "PU right", 10: "CN left", 11: "CN right",
}  # fmt: skip
#: Voxels (z, y, x) of the published patches, of their cores, and between cores.
PATCH, CORE, STRIDE = (21, 27, 27), (3, 9, 9), (3, 3, 3)
SHAPE, SPACING_MM, WINDOW_PPM = (48, 220, 160), (3.0, 1.0, 1.0), 0.2
#: Patches per subject with false positives but no label; with all of them the second round would take a day.
BACKGROUND = 24
_LARGEST: Steps = (("largest", {"connectivity": 1}),)

_TRAINING = TrainingConfig(
    batch_size=1,
    learning_rate=1e-3,
    weight_decay=0.0,
    loss="dice+cross-entropy",
    precision="auto",
)


def _steps(spacing_mm: tuple[float, float, float] = SPACING_MM) -> Steps:
    return (
        ("ppm", {"only": ["qsm"]}),
        ("upright", {"spacing_mm": list(spacing_mm)}),
        ("extent", {"shape": list(SHAPE)}),
        ("window", {"low": -WINDOW_PPM, "high": WINDOW_PPM, "only": ["qsm"]}),
        # Other channels (magnitude, R2*, T1w) have arbitrary units.
        ("normalise", {"how": "percentile", "but": ["qsm"]}),
        ("window", {"low": 0.0, "high": 1.0, "but": ["qsm"]}),
    )


def published(network: str = "fcn3d", epochs: int = 24, core: tuple[int, int, int] = (9, 27, 27)) -> Recipe:
    """Return the recipe of a published network with the second round.

    Parameters
    ----------
    network : {"fcn3d", "fcn3d_aniso"}
        First or second generation; the second has no second round, but takes voxel coordinates as inputs.
    epochs : int
        Epochs of the first round; the second has a third of them, at half the rate. Each is one cycle; the
        publication steps from 1e-3 to 1e-4 when the validation loss stalls.
    core : (3,) tuple of int
        Output voxels (z, y, x) of a training patch; `CORE` as published.

    Examples
    --------
    >>> published().sampling.margin
    (9, 9, 9)
    """
    first = network == "fcn3d"
    variant = dict(VARIANTS["" if first else "_aniso"])
    margin = FCN3D(**variant).margin  # type: ignore[arg-type]
    again = max(1, epochs // 3)
    return Recipe(
        network,
        (*_steps(), *(() if first else (("location", {}),))),
        Cores(core, margin, BACKGROUND),
        (replace(_TRAINING, epochs=epochs, patience=epochs),),
        finish=_LARGEST,
        tile=CORE,
        stride=STRIDE,
        rounds=1 if first else 0,
        again=(replace(_TRAINING, epochs=again, patience=again, learning_rate=_TRAINING.learning_rate / 2),),
        scale=(127.0, 128.0),
        names=LABELS,
    )


def unet(epochs: int = 32, each: int = 8) -> Recipe:
    """Return the recipe of a residual 3D U-Net with augmentation, on crops at the nuclei and elsewhere."""
    training = replace(
        _TRAINING,
        epochs=epochs,
        batch_size=2,
        learning_rate=3e-3,
        weight_decay=1e-4,
        augment=Augmentation(),
        patience=epochs,
    )
    config = {"widths": (16, 32, 64, 128), "strides": ((1, 2, 2), (2, 2, 2), (2, 2, 2))}
    crops = Crops((16, 80, 80), each=each, labelled=0.7)
    return Recipe("unet3d", _steps(), crops, (training,), config, finish=_LARGEST, names=LABELS)


def single(recipe: Recipe, cases: Sequence[Subject], label: int) -> tuple[Recipe, list[Subject]]:
    """Return a recipe with Dice loss, and the subjects, for one nucleus: all other labels become background.

    Examples
    --------
    >>> single(unet(), [], 6)[0].training[0].loss
    'dice'
    """
    training, again = (tuple(replace(t, loss="dice") for t in stages) for stages in (recipe.training, recipe.again))
    subjects = [s if s.target is None else replace(s, target=s.target.where(s.target == label, 0)) for s in cases]
    return replace(recipe, training=training, again=again), subjects
