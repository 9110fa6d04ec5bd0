from . import (
    augmentation,
    checkpoints,
    first_process,
    history,
    loop,
    losses,
    mining,
    normalization,
    optimization,
    processes,
    run,
    settings,
)
from .augmentation import Augmentation
from .history import History
from .loop import fit
from .losses import loss
from .mining import hard_negatives
from .settings import TrainingConfig

__all__ = [
    "Augmentation",
    "History",
    "TrainingConfig",
    "augmentation",
    "checkpoints",
    "first_process",
    "fit",
    "hard_negatives",
    "history",
    "loop",
    "loss",
    "losses",
    "mining",
    "normalization",
    "optimization",
    "processes",
    "run",
    "settings",
]
