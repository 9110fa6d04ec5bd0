"""The course of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass
class History:
    """What happened in each epoch.

    Attributes
    ----------
    training, validation : list of float
        Losses, in the target's scaled units.
    rmse : list of float
        Root of the mean squared error of the validation patches, in the target's own units; empty for classes.
    dice : list of float
        Mean Dice over the classes but the first, of all validation patches together; empty for values.
    waited : float
        Seconds in which training waited for patches.
    rate : list of float
        Learning rate at the first step, of layers without a factor.
    best_epoch : int
        The one with the lowest validation loss.
    seconds : float
    """

    training: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best_epoch: int = -1
    seconds: float = 0.0
    rmse: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    dice: list[float] = field(default_factory=list)
    waited: float = 0.0

    def __repr__(self) -> str:
        if not self.validation:
            return "no epoch yet"
        best = self.best_epoch
        named = {"loss": self.validation, "RMSE": self.rmse, "mean Dice": self.dice}
        scores = ", ".join(f"{name} {values[best]:.4g}" for name, values in named.items() if values)
        count = len(self.validation)
        lines = [
            f"{count} epoch{'s' if count > 1 else ''} in {self.seconds:.1f} s",
            f"best: epoch {best + 1}, on the validation part {scores}",
            f"last: training loss {self.training[-1]:.4g}, validation loss {self.validation[-1]:.4g}",
        ]
        return "\n".join(lines)
