"""The form in which predictions are written: type, range, threshold or class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mrhdata.errors import ModelError, ParameterError

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
    argmax : bool
        Write the channel of the highest answer as a label volume.
    threshold : float or None
        Write a mask of the answers of at least this value.
    dtype : str
        Of the answers; integers need a range.
    value_range : (float, float) or None
        Answers that become the smallest and the largest value of an integer type.
    labels : tuple of int
        Values that the channels stand for, for `argmax`; those of the network's training by default,
        or the channels' numbers.
    """

    activation: str | None = None
    argmax: bool = False
    threshold: float | None = None
    dtype: str = "float32"
    value_range: tuple[float, float] | None = None
    labels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.activation not in (None, "softmax", "sigmoid"):
            raise ModelError(f"activation is softmax or sigmoid, not {self.activation!r}")
        if self.argmax and self.threshold is not None:
            raise ParameterError(
                f"threshold must be None with argmax=True; got {self.threshold!r}. Pass one of the two"
            )
        if self.threshold is not None and not isinstance(self.threshold, int | float):
            raise ParameterError(f"threshold must be a number; got {self.threshold!r}. For labels pass argmax=True")
        if np.dtype(self.dtype).kind in "iu" and self.value_range is None and self._continuous:
            raise ParameterError(
                f"value_range must be two numbers for dtype={self.dtype!r}; got None. Pass (0, 1) for probabilities"
            )

    @property
    def _continuous(self) -> bool:
        """Whether answers are written as they are, neither as labels nor as a mask."""
        return not self.argmax and self.threshold is None

    @property
    def kind(self) -> str:
        """Of the volume."""
        return "image" if self._continuous else "labels" if self.argmax else "mask"

    def channels(self, answers: int) -> int:
        """How many are written."""
        return 1 if self.argmax else answers

    @property
    def written(self) -> np.dtype[Any]:
        """Type of what is written."""
        if self._continuous:
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
        if self.argmax:
            chosen = values.argmax(axis=0, keepdims=True)
            return (np.array(self.labels)[chosen] if self.labels else chosen).astype(self.written)
        if self.threshold is not None:
            return (values >= self.threshold).astype(np.uint8)
        if self.value_range is not None and self.written.kind in "iu":
            low, high = self.value_range
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
