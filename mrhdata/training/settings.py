"""Settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mrhdata.errors import ModelError
from mrhdata.training.augmentation import Augmentation
from mrhdata.training.losses import LOSSES

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes
    ----------
    epochs, batch_size, seed : int
    learning_rate : float
        The highest, for the one-cycle schedule; the first, for steps.
    optimizer : {"adamw", "sgd"}
        ``sgd`` has momentum 0.9.
    schedule : {"one-cycle", "steps", "constant"}
        ``steps`` divides by 10 every 10 epochs.
    weight_decay, max_grad_norm : float
        `max_grad_norm` bounds the norm of the gradient.
    loss : {"mse", "mae", "cross-entropy", "dice", "dice+cross-entropy"}
        Of values, or of the classes of a label volume: see :mod:`mrhdata.training.losses`.
    patience : int
        Epochs without a lower validation loss before training stops.
    noise : float
        Standard deviation of Gaussian noise added to the scaled inputs.
    normalization : {"channel", "maximum", "none"}
        Inputs are centred and scaled channel by channel, or (published) divided by one maximum, or were
        scaled before.
    augment : Augmentation or None
        How scaled batches vary.
    precision : {"float32", "bfloat16"}
        Of convolutions. The shorter one is twice as fast where the processor has it, and rounds weights and
        answers to three digits while training; the trained weights are float32.
    layer_learning_rates : tuple of (str, float)
        Layers, by the beginning of their parameters' names, and the factor on their learning rate. The
        first that fits counts, ``""`` fits all, and those that none fits have 1. A factor of 0 freezes:
        no gradient, no weight decay. ``(("conv5", 10), ("", 0))`` trains the last layer alone.
    restore_best : bool
        Keep the weights of the epoch with the lowest validation loss instead of those of the last epoch.
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

    def __post_init__(self) -> None:
        choices = {
            "optimizer": ("adamw", "sgd"),
            "schedule": ("one-cycle", "steps", "constant"),
            "loss": LOSSES,
            "normalization": ("channel", "maximum", "none"),
            "precision": ("float32", "bfloat16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ModelError(f"{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        least = {"epochs": 1, "batch_size": 1, "patience": 0, "noise": 0, "weight_decay": 0, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ModelError(f"{name} is {low} or more, not {getattr(self, name)!r}")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ModelError(f"{name} is more than 0, not {getattr(self, name)!r}")
        for prefix, factor in self.layer_learning_rates:
            if factor < 0:
                raise ModelError(f"the learning rate of {prefix!r} has the factor {factor}; give 0 to freeze, or more")
