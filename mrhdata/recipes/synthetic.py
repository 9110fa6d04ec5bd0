"""Segmentation networks for images of any contrast, trained only on images that are drawn from label maps.

The approach is that of SynthSeg (Billot et al. 2023, Medical Image Analysis 86:102789). Three things differ, so that a
processor can train a network. Images become harder gradually: at first they have the contrasts of known modalities and
weak artefacts, because a small network learns nothing from random contrasts at first. The network works at half the
resolution. And for most of the training only its coarse scores are trained, in half of the time.

```
label maps --Synthesizer--> easy images --fit--> coarse scores --fit, harder images--> scores of every voxel
```
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrhdata import models
from mrhdata.errors import DataError
from mrhdata.models.spec import IntensityScale
from mrhdata.preprocessing.pipeline import Steps
from mrhdata.recipes.real_patches import channel_of, copy_weights, real_patches
from mrhdata.recipes.synthetic_labels import TISSUES
from mrhdata.recipes.synthetic_quality import calibrate
from mrhdata.synthesis.config import SynthesisConfig
from mrhdata.synthesis.mixed_patches import MixedPatches
from mrhdata.synthesis.patches import SyntheticPatches
from mrhdata.synthesis.structures import FREESURFER, Anatomy
from mrhdata.synthesis.synthesizer import Synthesizer
from mrhdata.training.history import History
from mrhdata.training.loop import fit
from mrhdata.training.normalization import keep_input_scale
from mrhdata.training.settings import TrainingConfig

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

    from mrhdata.datasets.subjects import Subject
    from mrhdata.patching.dataset import Patches


@dataclass(frozen=True)
class SyntheticRecipe:
    """Settings of a training on synthetic images.

    Attributes
    ----------
    targets : mapping of int to int
        Label of the output for each label of the maps; the others are background.
    names : mapping of int to str
        Names of the labels of the output, as far as they are known.
    contrasts : tuple of str
        Contrasts in which the network is shown a volume: see :mod:`mrhdata.inference.contrast`.
    finish : steps
        Steps on the labels, see :mod:`mrhdata.preprocessing.pipeline`.
    quality_volumes : int
        Number of synthetic volumes from which the quality model is measured; 0 for none.
    network, config
        Name and settings of the network, without its number of classes.
    shape : (z, y, x)
        Size of a patch, in voxels of the label maps.
    other_shapes : mapping of (z, y, x) to float
        Further sizes of patches, with the share of the batches that have each.
    patches : int
        Number of patches of an epoch.
    label_share : float
        Share of the patches that lie about a voxel of a label, each label as often.
    hardening : (float, float)
        Parts of the training at which images begin and stop to become harder.
    least_severity : float
        Strength and frequency of artefacts at the begin.
    coarse_share : float
        Share of the epochs, at the begin, that train only the coarse scores.
    validation_maps, validation_patches : int
        Number of label maps that are left out of the training, and number of their patches.
    real_share : float
        Share of the batches that show real images, if there are some.
    real_patches : int
        Number of places in each real image.
    synthesis : SynthesisConfig
        Ranges of the images.
    training : TrainingConfig
        Settings of the training.
    """

    targets: Mapping[int, int] = field(default_factory=lambda: TISSUES.targets)
    names: Mapping[int, str] = field(default_factory=lambda: TISSUES.names)
    contrasts: tuple[str, ...] = ()
    finish: Steps = ()
    quality_volumes: int = 70
    network: str = "half_unet3d"
    config: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, int, int] = (64, 64, 64)
    other_shapes: Mapping[tuple[int, int, int], float] = field(default_factory=dict)
    patches: int = 200
    label_share: float = 0.4
    hardening: tuple[float, float] = (0.1, 0.6)
    least_severity: float = 0.1
    coarse_share: float = 0.7
    validation_maps: int = 2
    validation_patches: int = 24
    real_share: float = 0.5
    real_patches: int = 40
    synthesis: SynthesisConfig = field(
        default_factory=lambda: SynthesisConfig(random_share=0.6, contrast_width=(0.2, 1.0))
    )
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            epochs=40, batch_size=2, learning_rate=3e-3, weight_decay=1e-4, max_grad_norm=5.0,
            loss="dice+cross-entropy", dice_smoothing=10.0, normalization="none", precision="auto", patience=1000,
            restore_best=False,
        )
    )  # fmt: skip

    @property
    def labels(self) -> tuple[int, ...]:
        """Labels of the network, the background first.

        Examples
        --------
        >>> SyntheticRecipe(targets={3: 2, 42: 2, 2: 1}).labels
        (0, 1, 2)
        """
        return (0, *sorted(set(self.targets.values()) - {0}))

    @property
    def smallest(self) -> tuple[int, int, int]:
        """Smallest length of the patches along each axis.

        Examples
        --------
        >>> SyntheticRecipe(other_shapes={(32, 96, 96): 0.3, (96, 32, 96): 0.1}).smallest
        (32, 32, 64)
        """
        z, y, x = (min(lengths) for lengths in zip(self.shape, *self.other_shapes, strict=True))
        return (z, y, x)

    @property
    def coarse_epochs(self) -> int:
        """Number of epochs that train only the coarse scores."""
        return round(self.coarse_share * self.training.epochs)

    def ranges(self, epoch: int) -> SynthesisConfig:
        """Return the ranges of the images of an epoch.

        Examples
        --------
        >>> recipe = SyntheticRecipe(training=TrainingConfig(epochs=10))
        >>> [round(recipe.ranges(epoch).random_share, 2) for epoch in (0, 1, 3, 9)]
        [0.0, 0.0, 0.24, 0.6]
        """
        first, last = (share * self.training.epochs for share in self.hardening)
        progress = float(np.clip((epoch - first) / max(last - first, 1e-9), 0, 1))
        severity = self.least_severity + (1 - self.least_severity) * progress
        return replace(self.synthesis.eased(severity), random_share=progress * self.synthesis.random_share)


def train(
    recipe: SyntheticRecipe,
    maps: Mapping[str, xr.DataArray],
    *,
    subjects: Sequence[Subject] = (),
    validation: Sequence[Subject] = (),
    start: nn.Module | None = None,
    anatomy: Anatomy = FREESURFER,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = True,
) -> tuple[nn.Module, History]:
    """Train a network on images drawn from label maps, and measure its quality model.

    Real images with labels can be mixed with them, batch by batch.

    Parameters
    ----------
    recipe : SyntheticRecipe
        Settings of the training.
    maps : mapping of str to label volume
        Label maps of whole heads, by name.
    subjects, validation : sequence of Subject
        Real images with the labels that the network learns, for training and for validation.
    start : torch.nn.Module, optional
        Network of the same kind with which the training begins. Layers of another shape, such as those of the classes
        if there are others, begin at random.
    anatomy : Anatomy
        Structures of the labels.
    seed : int
        Random seed.
    folder : path, optional
        Folder for the checkpoints of both stages, from which an interrupted run resumes; it is created.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    model : torch.nn.Module
        Network for :func:`mrhdata.segment`.
    history : History
        Losses of each epoch of both stages; those of validation are measured on real images if there are some, else on
        images of maps that were left out.

    Raises
    ------
    DataError
        If there are too few maps, their voxel sizes differ, or real images have other labels or several channels.
    ModelError
        If the network of `start` is of another kind.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    labels = recipe.labels
    spacing, channel = _common_spacing(maps), channel_of([*subjects, *validation])
    training_maps, validation_maps = (
        Synthesizer(volumes, recipe.synthesis, anatomy, targets=recipe.targets)
        for volumes in _split(maps, recipe.validation_maps, seed)
    )
    model: Any = models.create(recipe.network, seed=seed, in_channels=1, classes=len(labels), **recipe.config)
    model.spec = replace(
        model.spec,
        labels=labels,
        label_names=("background", *(recipe.names.get(label, str(label)) for label in labels[1:])),
        contrasts=recipe.contrasts,
        smallest=recipe.smallest,
        finish=tuple((name, dict(settings)) for name, settings in recipe.finish),
        prepare=(("upright", {"spacing_mm": list(spacing)}), ("normalise", {"how": "clipped"})),
        inputs=IntensityScale((0.5,), (0.25,)),
    )
    if start is not None:
        copy_weights(start, model)
    real, real_validation = (real_patches(part, recipe, model.spec, seed) for part in (subjects, validation))
    sources = _Sources(channel, training_maps, validation_maps, real, real_validation)
    history = History()
    for stage in _stages(recipe, model.fine_layers):
        history = history.followed_by(_train_stage(model, stage, recipe, sources, seed, folder, progress))
    # Also after a training without the second stage.
    model.coarse = False
    if recipe.quality_volumes:
        number, others = recipe.quality_volumes, [training_maps]
        quality = calibrate(model, validation_maps, others=others, number=number, seed=seed, progress=progress)
        model.spec = replace(model.spec, quality=quality)
    return model, history


@dataclass(frozen=True)
class _Stage:
    """Part of a training: that of the coarse scores, or that of all."""

    name: str
    first_epoch: int
    label_step: int
    training: TrainingConfig


def _stages(recipe: SyntheticRecipe, fine_layers: Sequence[str]) -> list[_Stage]:
    """Return the parts of a training that have an epoch."""
    coarse, settings = recipe.coarse_epochs, recipe.training
    frozen = tuple((layer, 0.0) for layer in fine_layers)
    stages = []
    if coarse:
        training = replace(settings, epochs=coarse, layer_learning_rates=frozen)
        stages.append(_Stage("coarse", 0, 2, training))
    if settings.epochs > coarse:
        stages.append(_Stage("fine", coarse, 1, replace(settings, epochs=settings.epochs - coarse)))
    return stages


@dataclass(frozen=True)
class _Sources:
    """Name of the image; label maps, and patches of real images or None, for training and for validation."""

    channel: str
    maps: Synthesizer
    validation_maps: Synthesizer
    real: Patches | None
    real_validation: Patches | None


def _train_stage(
    model: Any,
    stage: _Stage,
    recipe: SyntheticRecipe,
    sources: _Sources,
    seed: int,
    folder: Path | None,
    progress: bool,
) -> History:
    """Train a network for the epochs of a stage."""
    model.coarse = stage.label_step > 1
    model.spec = keep_input_scale(model.spec)
    options: dict[str, Any] = {
        "channel": sources.channel,
        "label_share": recipe.label_share,
        "label_step": stage.label_step,
        "other_shapes": recipe.other_shapes,
    }
    first = options | {"seed": 2 * seed, "schedule": lambda epoch: recipe.ranges(stage.first_epoch + epoch)}
    patches = _mix(sources.maps, recipe, recipe.patches, sources.real, recipe.real_share, first)
    # Validation shows real images, or else the hardest synthetic ones; the same ones in every epoch.
    second, number = options | {"seed": 2 * seed + 1}, recipe.validation_patches
    validation = _mix(sources.validation_maps, recipe, number, sources.real_validation, 1.0, second)
    return fit(
        model,
        patches,
        validation,
        replace(stage.training, seed=seed + stage.first_epoch),
        checkpoint=None if folder is None else folder / f"{stage.name}.pt",
        progress=progress,
    )


def _mix(
    maps: Synthesizer,
    recipe: SyntheticRecipe,
    number: int,
    real: Patches | None,
    real_share: float,
    options: Mapping[str, Any],
) -> Any:
    """Return synthetic patches, mixed with real ones if there are some."""
    if real is None:
        return SyntheticPatches(maps, recipe.shape, number, **options)
    return MixedPatches(maps, recipe.shape, number, real=real, real_share=real_share, **options)


def _split(maps: Mapping[str, xr.DataArray], number: int, seed: int) -> tuple[list[Any], list[Any]]:
    """Return the maps for training, and those for validation."""
    if len(maps) <= number:
        raise DataError(
            f"label maps must be more than the {number} of validation; got {len(maps)}. Pass more, or set "
            "validation_maps"
        )
    chosen = validation_names(maps, number, seed)
    return [v for name, v in maps.items() if name not in chosen], [maps[name] for name in chosen]


def validation_names(names: Iterable[str], number: int, seed: int = 0) -> list[str]:
    """Return the names of the label maps that a training leaves out for validation.

    Examples
    --------
    >>> validation_names(["a", "b", "c"], 1)
    ['c']
    """
    return sorted(np.random.default_rng(seed).permutation(sorted(names))[:number].tolist())


def _common_spacing(maps: Mapping[str, xr.DataArray]) -> tuple[float, float, float]:
    """Return the voxel size of all maps; raise DataError if they differ."""
    sizes = {name: np.asarray(volume.mrh.spacing) for name, volume in maps.items()}
    (first_name, first), *others = sizes.items()
    for name, size in others:
        if not np.allclose(size, first, rtol=1e-3):
            raise DataError(
                f"label maps must have one voxel size; got {first.tolist()} in {first_name} and {size.tolist()} in "
                f"{name}. Resample them"
            )
    z, y, x = first.tolist()
    return (z, y, x)
