"""Losses, scores and times of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class History:
    """Losses and scores of each epoch.

    Attributes
    ----------
    training, validation : list of float
        Losses, in the target's scaled units.
    rmse : list of float
        Root mean squared error of the validation patches, in the target's own units; empty for segmentation.
    dice : list of float
        Mean Dice over all classes except the first, pooled over validation patches; empty for regression.
    waited : float
        Time in which training waited for patches, in seconds.
    rate : list of float
        Learning rate at the first step, for layers without a factor.
    best_epoch : int
        Epoch with the lowest validation loss.
    seconds : float
        Duration of the run, in seconds.
    """

    training: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best_epoch: int = -1
    seconds: float = 0.0
    rmse: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    dice: list[float] = field(default_factory=list)
    waited: float = 0.0

    def followed_by(self, later: History) -> History:
        """Return the history of this training and of a later one, which continued it.

        Examples
        --------
        >>> one = History([3.0, 2.0], [2.0, 1.0], best_epoch=1, seconds=5.0)
        >>> one.followed_by(History([1.0], [0.5], best_epoch=0, seconds=2.0))
        3 epochs in 7.0 s
        best: epoch 3, on the validation part loss 0.5
        last: training loss 1, validation loss 0.5
        """
        return History(
            training=self.training + later.training,
            validation=self.validation + later.validation,
            best_epoch=len(self.training) + later.best_epoch,
            seconds=self.seconds + later.seconds,
            rmse=self.rmse + later.rmse,
            rate=self.rate + later.rate,
            dice=self.dice + later.dice,
            waited=self.waited + later.waited,
        )

    def __repr__(self) -> str:
        if not self.validation:
            return "no epoch yet"
        best = self.best_epoch
        curves = {"loss": self.validation, "RMSE": self.rmse, "mean Dice": self.dice}
        scores = ", ".join(f"{name} {values[best]:.4g}" for name, values in curves.items() if values)
        count = len(self.validation)
        lines = [
            f"{count} epoch{'s' if count > 1 else ''} in {self.seconds:.1f} s",
            f"best: epoch {best + 1}, on the validation part {scores}",
            f"last: training loss {self.training[-1]:.4g}, validation loss {self.validation[-1]:.4g}",
        ]
        return "\n".join(lines)
