"""Convert predictions to the stored form: type, range, threshold or class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mrhdata.errors import ParameterError

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Output:
    """Form in which predictions are stored.

    Attributes
    ----------
    activation : {None, "softmax", "sigmoid"}
        Function applied over the channels (softmax), or to each of them (sigmoid).
    argmax : bool
        Whether to write the channel with the highest prediction as a label volume.
    threshold : float or None
        Smallest prediction that belongs to the mask, which is written instead of the predictions.
    dtype : str
        Type of the stored predictions; integers need `value_range`.
    value_range : (float, float) or None
        Predictions that become the smallest and the largest value of an integer type.
    labels : tuple of int
        Label value of each channel for `argmax`; by default the labels of training, or the channel numbers.
    """

    activation: str | None = None
    argmax: bool = False
    threshold: float | None = None
    dtype: str = "float32"
    value_range: tuple[float, float] | None = None
    labels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.activation not in (None, "softmax", "sigmoid"):
            raise ParameterError(f"activation must be None, 'softmax' or 'sigmoid'; got {self.activation!r}")
        if self.argmax and self.threshold is not None:
            raise ParameterError(
                f"threshold must be None with argmax=True; got {self.threshold!r}. Pass only one of the two"
            )
        if self.threshold is not None and not isinstance(self.threshold, int | float):
            raise ParameterError(f"threshold must be a number; got {self.threshold!r}. Pass argmax=True for labels")
        if np.dtype(self.dtype).kind in "iu" and self.value_range is None and self._continuous:
            raise ParameterError(
                f"value_range must be two numbers for dtype={self.dtype!r}; got None. Pass (0, 1) for probabilities"
            )

    @property
    def _continuous(self) -> bool:
        """Whether predictions are stored as they are, not as labels or a mask."""
        return not self.argmax and self.threshold is None

    @property
    def keeps_units(self) -> bool:
        """Whether stored values are predictions in the units of the target."""
        return self._continuous and self.activation is None and np.dtype(self.dtype).kind == "f"

    @property
    def kind(self) -> str:
        """Kind of the result: image, labels or mask."""
        return "image" if self._continuous else "labels" if self.argmax else "mask"

    def channels(self, predicted: int) -> int:
        """Return the number of stored channels for a number of predicted ones."""
        return 1 if self.argmax else predicted

    @property
    def written(self) -> np.dtype[Any]:
        """Type of the stored values."""
        if self._continuous:
            return np.dtype(self.dtype)
        low, high = min(self.labels, default=0), max(self.labels, default=0)
        return np.dtype(np.result_type(np.uint8, np.min_scalar_type(low), np.min_scalar_type(high)))

    def of(self, predictions: Floats) -> np.ndarray:
        """Return the stored values for predictions (C, z, y, x), which may be overwritten."""
        values = predictions
        if self.activation == "softmax":
            values = torch.from_numpy(values).softmax(0).numpy()
        elif self.activation == "sigmoid":
            values = torch.from_numpy(values).sigmoid().numpy()
        if self.argmax:
            channel = values.argmax(axis=0, keepdims=True)
            return (np.array(self.labels)[channel] if self.labels else channel).astype(self.written)
        if self.threshold is not None:
            return (values >= self.threshold).astype(np.uint8)
        if self.value_range is not None and self.written.kind in "iu":
            low, high = self.value_range
            limits = np.iinfo(self.written)
            factor = (float(limits.max) - float(limits.min)) / (high - low)
            # In place, and in NumPy: PyTorch's threads wait for each other longer than this takes.
            values *= np.float32(factor)
            values += np.float32(limits.min - low * factor)
            np.rint(values, out=values)
            # float32 may round the largest integer up to one beyond the type, which would wrap to the smallest.
            top = np.float32(limits.max)
            np.clip(values, limits.min, np.nextafter(top, np.float32(0)) if int(top) > limits.max else top, out=values)
        return values.astype(self.written, copy=False)
