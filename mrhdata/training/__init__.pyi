from . import (
    augmentation,
    loop,
    losses,
    normalization,
)
from .augmentation import Augmentation
from .loop import History, Training, fit, hard_negatives
from .losses import loss

__all__ = [
    "Augmentation",
    "History",
    "Training",
    "augmentation",
    "fit",
    "hard_negatives",
    "loop",
    "loss",
    "losses",
    "normalization",
]
