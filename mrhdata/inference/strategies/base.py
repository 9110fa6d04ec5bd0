"""The interface of strategies: which boxes of the input each output box reads, and what becomes of the predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mrhdata.volume.box import Box

if TYPE_CHECKING:
    pass

Floats = NDArray[np.float32]


Three = tuple[int, int, int]


@dataclass(frozen=True)
class BoxTask:
    """Boxes of one size that are read and run together, and what is known of where they go."""

    boxes: tuple[Box, ...]
    place: Any = None


#: Puts what is written for the answers of a box (C, z, y, x), which are used up, where it is told.
Finish = Callable[[Box, Floats, np.ndarray], None]


class Strategy(Protocol):
    """One way to run a network over a volume."""

    shape: Three
    channels: int
    stride: tuple[float, float, float]
    offset: tuple[float, float, float]

    def steps(self, box: Box, before: Box | None) -> Iterator[BoxTask]:
        """What is read for an output box, given the one that was made just before."""

    def needs(self, box: Box) -> Box:
        """The input voxels that an output box is about."""

    def begin(self, box: Box, before: Box | None, out: np.ndarray) -> Any:
        """What answers are put into, for what is written of a box: zeros, (C, z, y, x)."""

    def add(self, held: Any, step: BoxTask, values: Floats, finish: Finish) -> None:
        """Run the network on a step's boxes and put the answers where they belong."""

    def end(self, held: Any, finish: Finish) -> None:
        """What is written of the box is complete."""


def three(values: Any) -> Any:
    """Return a tuple of exactly three values."""
    a, b, c = values
    return (a, b, c)
