"""The interface of strategies: which boxes of the input each output box reads, and where predictions are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mrhdata.volume.box import Box

if TYPE_CHECKING:
    from torch import Tensor

    from mrhdata.inference.strategies.network import InferenceModel

Floats = NDArray[np.float32]


Three = tuple[int, int, int]


@dataclass(frozen=True)
class BoxTask:
    """Input boxes of equal size that are read and run together.

    Attributes
    ----------
    boxes : tuple of Box
        Boxes of the input.
    target : Any
        Destination of the predictions, in the form that the strategy needs.
    """

    boxes: tuple[Box, ...]
    target: Any = None


#: Converts the predictions (C, z, y, x) of a box to the stored type and writes them to an array; it may overwrite them.
Finish = Callable[[Box, Floats, np.ndarray], None]


class Strategy(Protocol):
    """A way to run a network over a volume.

    Attributes
    ----------
    network : InferenceModel
        Network, on its device.
    shape : tuple of int
        Shape of the output volume.
    channels : int
        Number of output channels.
    stride, offset : tuple of float
        Input voxels from one output voxel to the next, and input position of the first output voxel.
    """

    network: InferenceModel
    shape: Three
    channels: int
    stride: tuple[float, float, float]
    offset: tuple[float, float, float]

    def tasks(self, box: Box, before: Box | None) -> Iterator[BoxTask]:
        """Yield the reads for an output box; `before` is the box that was computed just before it."""

    def needs(self, box: Box) -> Box:
        """Return the input voxels that an output box covers."""

    def begin(self, box: Box, before: Box | None, out: np.ndarray) -> Any:
        """Return the state in which predictions of a box are collected; `out` (C, z, y, x) holds zeros."""

    def run(self, task: BoxTask, values: Tensor) -> Tensor:
        """Return the predictions (n, C, z, y, x) for the boxes of a task; a GPU may still compute them."""

    def add(self, state: Any, task: BoxTask, predictions: Floats, finish: Finish) -> None:
        """Add the predictions for a task to the state."""

    def end(self, state: Any, finish: Finish) -> None:
        """Write the predictions of a box that are not written yet."""

    def shrink(self) -> bool:
        """Halve the voxels that are run together from the next tasks on; return False if there are few already."""


def three(values: Any) -> Any:
    """Return a tuple of exactly three values."""
    a, b, c = values
    return (a, b, c)
