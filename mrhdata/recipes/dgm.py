"""Deep grey matter on QSM (segDGM_CNN, Liu 2017), and a U-Net beside it.

Published: maps at 1 x 1 x 3 mm, cut to 160 x 220 x 48 voxels and shown in a window of +-0.2 ppm; patches of
27 x 27 x 21 whose 9 x 9 x 3 core holds a label; Adam at 1e-3, then 1e-4; a second round with the false
positives of the first. Its second generation passed zeros for the voxel's place at test time, shuffled next
to nothing, and kept one PReLU slope per voxel.

Here the same voxels are learned from (tiles of the core, every third voxel, that hold a label), but in larger
boxes: a valid convolution gives the same answers, and twenty times less is computed twice. Soft Dice stands
beside cross-entropy, which alone leaves the smallest nuclei out for many epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mrhdata.datasets.subjects import Subject
from mrhdata.models.fcn3d import FCN3D, VARIANTS
from mrhdata.recipes.segmentation import Cores, Crops, Recipe, Steps
from mrhdata.training.augmentation import Augmentation
from mrhdata.training.settings import TrainingConfig

#: Values in label files, left and right of the world: red nucleus, substantia nigra, globus pallidus, putamen,
#: caudate nucleus.
LABELS = {
    2: "RN left", 3: "RN right", 4: "SN left", 5: "SN right", 6: "GP left", 7: "GP right",
    8: "PU left", 9: "PU right", 10: "CN left", 11: "CN right",
}  # fmt: skip
#: Of the published patches, z, y, x.
PATCH, CORE, STRIDE = (21, 27, 27), (3, 9, 9), (3, 3, 3)
SHAPE, SPACING_MM, WINDOW_PPM = (48, 220, 160), (3.0, 1.0, 1.0), 0.2
#: Boxes of a subject with false positives and no label: of all of them the second round would learn for a day.
BACKGROUND = 24
_LARGEST: Steps = (("largest", {"connectivity": 1}),)

_TRAINING = TrainingConfig(
    batch_size=1,
    learning_rate=1e-3,
    weight_decay=0.0,
    loss="dice+cross-entropy",
    precision="bfloat16",
)


def _steps(spacing_mm: tuple[float, float, float] = SPACING_MM) -> Steps:
    return (
        ("ppm", {"only": ["qsm"]}),
        ("upright", {"spacing_mm": list(spacing_mm)}),
        ("extent", {"shape": list(SHAPE)}),
        ("window", {"low": -WINDOW_PPM, "high": WINDOW_PPM, "only": ["qsm"]}),
        # Magnitude, R2* or T1w beside it have no scale of their own.
        ("normalise", {"how": "percentile", "but": ["qsm"]}),
        ("window", {"low": 0.0, "high": 1.0, "but": ["qsm"]}),
    )


def published(network: str = "fcn3d", epochs: int = 24, core: tuple[int, int, int] = (9, 27, 27)) -> Recipe:
    """A published network with the second round.

    Parameters
    ----------
    network : {"fcn3d", "fcn3d_aniso"}
        First or second generation; the second has no second round, but knows each voxel's place.
    epochs : int
        Of the first round; the second has a third of them, at half the rate. One cycle each, where the
        publication steps from 1e-3 to 1e-4 when the validation loss stalls.
    core : (3,) tuple of int
        Voxels of the answer that are trained on together; `CORE` as published.

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
    )


def unet(epochs: int = 32, each: int = 8) -> Recipe:
    """A residual 3D U-Net with augmentation on boxes about the nuclei and elsewhere."""
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
    return Recipe("unet3d", _steps(), crops, (training,), config, finish=_LARGEST)


def single(recipe: Recipe, cases: Sequence[Subject], label: int) -> tuple[Recipe, list[Subject]]:
    """A network for one nucleus alone: the recipe with Dice loss, and the cases with that label and no other.

    Examples
    --------
    >>> single(unet(), [], 6)[0].training[0].loss
    'dice'
    """
    stages = [tuple(replace(t, loss="dice") for t in part) for part in (recipe.training, recipe.again)]
    alone = [c if c.target is None else replace(c, target=c.target.where(c.target == label, 0)) for c in cases]
    return replace(recipe, training=stages[0], again=stages[1]), alone
