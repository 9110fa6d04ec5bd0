"""Settings of a training run."""

from __future__ import annotations

import numbers
import os
from dataclasses import dataclass, field

from mrhdata._runtime.arguments import check_whole
from mrhdata.errors import ParameterError
from mrhdata.models.precision import PRECISIONS
from mrhdata.training.augmentation import Augmentation
from mrhdata.training.losses import LOSSES


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run.

    Attributes
    ----------
    epochs, batch_size : int
        Number of epochs, and patches per batch.
    seed : int
        Random seed.
    learning_rate : float
        Largest rate of the one-cycle schedule, or first rate of the others.
    optimizer : {"adamw", "sgd"}
        Optimiser; ``sgd`` has a momentum of 0.9.
    schedule : {"one-cycle", "steps", "constant"}
        Course of the learning rate; ``steps`` divides it by 10 every 10 epochs.
    weight_decay, max_grad_norm : float
        Weight decay, and largest norm of the gradient.
    loss : {"mse", "mae", "ms-ssim+mae", "cross-entropy", "dice", "dice+cross-entropy"}
        Loss for values, or for the classes of a label volume: see :mod:`mrhdata.training.losses`.
    dice_smoothing : float
        Number of voxels that are added to both terms of the Dice loss. With several voxels, a class of which a batch
        has only a sliver counts little.
    patience : int
        Epochs without a lower validation loss after which training stops.
    noise : float
        Standard deviation of Gaussian noise added to the scaled inputs.
    normalization : {"channel", "maximum", "none"}
        Scaling of the inputs: mean and deviation of each channel, one maximum for all (as published for MRH-Net),
        or none for inputs that are scaled already.
    augment : Augmentation or None
        Random changes of scaled batches.
    precision : {"auto", "float32", "bfloat16", "float16"}
        Type of convolutions. ``bfloat16`` is twice as fast on processors with instructions for it and many times slower
        on others; it rounds weights and predictions to three digits during training, and the trained weights are
        float32. ``float16``, for GPUs, scales the gradients. ``auto`` is the faster of the first two on this machine. A
        checkpoint of another type is refused.
    layer_learning_rates : tuple of (str, float)
        Prefixes of parameter names, and factors on their learning rate. The first matching prefix counts, ``""``
        matches all, and the default factor is 1. A factor of 0 freezes a layer: no gradient and no weight decay.
        ``(("conv5", 10), ("", 0))`` trains only the last layer.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``; ``auto`` is a GPU if there is one. A run may
        resume on another device.
    channels_last : bool
        Whether the network and its patches are stored with the channel as last axis, which GPUs compute faster with.
    compile : bool
        Whether PyTorch compiles the network (``torch.compile``), which takes minutes and makes steps faster.
    profile : path or None
        JSON file for a trace of some steps of the first epoch, which Perfetto and ``chrome://tracing`` open.
    accumulate : int
        Number of parts in which a batch is computed, one after the other, to need less memory. The gradient is that of
        the whole batch, except for the loss ``"dice"`` and layers with batch normalisation, which see one part at a
        time.
    restore_best : bool
        Whether to keep the weights of the epoch with the lowest validation loss instead of the last epoch.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    optimizer: str = "adamw"
    schedule: str = "one-cycle"
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    loss: str = "mse"
    patience: int = 10
    noise: float = 0.0
    normalization: str = "channel"
    seed: int = 0
    layer_learning_rates: tuple[tuple[str, float], ...] = ()
    restore_best: bool = True
    augment: Augmentation | None = None
    precision: str = "float32"
    # Left out of the representation, which identifies a run: it may move to another machine.
    device: str = field(default="auto", repr=False)
    channels_last: bool = field(default=False, repr=False)
    compile: bool = field(default=False, repr=False)
    profile: str | None = field(default=None, repr=False)
    accumulate: int = 1
    dice_smoothing: float = 1e-5

    def __post_init__(self) -> None:
        if self.profile is not None:
            # As text, since checkpoints hold the settings.
            object.__setattr__(self, "profile", os.fspath(self.profile))
        self._check_values()
        for prefix, factor in self.layer_learning_rates:
            if factor < 0:
                raise ParameterError(
                    f"the learning rate factor of {prefix!r} must be 0 or more; got {factor}. Pass 0 to freeze it"
                )

    def _check_values(self) -> None:
        """Raise ParameterError if a setting has a value that it cannot have."""
        choices = {
            "optimizer": ("adamw", "sgd"),
            "schedule": ("one-cycle", "steps", "constant"),
            "loss": LOSSES,
            "normalization": ("channel", "maximum", "none"),
            "precision": PRECISIONS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ParameterError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        least = {"epochs": 1, "batch_size": 1, "patience": 0, "noise": 0, "weight_decay": 0, "seed": 0, "accumulate": 1,
                 "dice_smoothing": 0}  # fmt: skip
        for name in ("epochs", "batch_size", "patience", "seed", "accumulate"):
            check_whole(name, getattr(self, name), least[name])
        for name, low in least.items():
            if not isinstance(getattr(self, name), numbers.Real) or getattr(self, name) < low:
                raise ParameterError(f"{name} must be {low} or more; got {getattr(self, name)!r}")
        for name in ("learning_rate", "max_grad_norm"):
            if not isinstance(getattr(self, name), numbers.Real) or not getattr(self, name) > 0:
                raise ParameterError(f"{name} must be above 0; got {getattr(self, name)!r}")
