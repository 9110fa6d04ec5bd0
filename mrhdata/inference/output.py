"""The form in which predictions are written: type, range, threshold or class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mrhdata.errors import ModelError

if TYPE_CHECKING:
    pass

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Output:
    """What is written for the network's answers.

    Attributes
    ----------
    activation : {None, "softmax", "sigmoid"}
        Over channels, or of each.
    decide : {None, "argmax"} or float
        The channel of the highest answer as a label volume, or a mask of the answers of at least so much.
    dtype : str
        Of the answers; integers need a range.
    range : (float, float) or None
        Answers that become the smallest and the largest value of an integer type.
    labels : tuple of int
        Values that the channels stand for, for ``"argmax"``; those of the network's training by default,
        or the channels' numbers.
    """

    activation: str | None = None
    decide: str | float | None = None
    dtype: str = "float32"
    range: tuple[float, float] | None = None
    labels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.activation not in (None, "softmax", "sigmoid"):
            raise ModelError(f"activation is softmax or sigmoid, not {self.activation!r}")
        if isinstance(self.decide, str) and self.decide != "argmax":
            raise ModelError(f"decide is 'argmax' or a threshold, not {self.decide!r}")
        if np.dtype(self.dtype).kind in "iu" and self.range is None and self.decide is None:
            raise ModelError(f"{self.dtype} answers need a range, such as (0, 1) for probabilities")

    @property
    def kind(self) -> str:
        """Of the volume."""
        return "image" if self.decide is None else "labels" if self.decide == "argmax" else "mask"

    def channels(self, answers: int) -> int:
        """How many are written."""
        return 1 if self.decide == "argmax" else answers

    @property
    def written(self) -> np.dtype[Any]:
        """Type of what is written."""
        if self.decide is None:
            return np.dtype(self.dtype)
        low, high = min(self.labels, default=0), max(self.labels, default=0)
        return np.dtype(np.result_type(np.uint8, np.min_scalar_type(low), np.min_scalar_type(high)))

    def of(self, answers: Floats) -> np.ndarray:
        """What is written for answers (C, z, y, x), which are used up."""
        values = answers
        if self.activation == "softmax":
            values = torch.from_numpy(values).softmax(0).numpy()
        elif self.activation == "sigmoid":
            values = torch.from_numpy(values).sigmoid().numpy()
        if self.decide == "argmax":
            chosen = values.argmax(axis=0, keepdims=True)
            return (np.array(self.labels)[chosen] if self.labels else chosen).astype(self.written)
        if isinstance(self.decide, (int, float)):
            return (values >= self.decide).astype(np.uint8)
        if self.range is not None and self.written.kind in "iu":
            low, high = self.range
            ends = np.iinfo(self.written)
            factor = (float(ends.max) - float(ends.min)) / (high - low)
            # In place, and in NumPy: PyTorch's threads wait for each other longer than this takes.
            values *= np.float32(factor)
            values += np.float32(ends.min - low * factor)
            np.rint(values, out=values)
            # The highest number that is not rounded to one beyond the type, where it would become the lowest.
            top = np.float32(ends.max)
            np.clip(values, ends.min, np.nextafter(top, np.float32(0)) if int(top) > ends.max else top, out=values)
        return values.astype(self.written, copy=False)
