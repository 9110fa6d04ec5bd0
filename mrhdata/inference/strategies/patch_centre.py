"""Each voxel is the centre of a patch of the training size, as published for MRH-Net."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from mrhdata.inference.region import RegionOfInterest
from mrhdata.inference.strategies.base import BoxTask, Finish, Three
from mrhdata.inference.strategies.network import InferenceModel
from mrhdata.inference.strategies.sliding_window import SlidingWindow, _settled
from mrhdata.volume.box import Box

if TYPE_CHECKING:
    pass

Floats = NDArray[np.float32]


class PatchCentreStrategy:
    """Each voxel from the patch around it; beyond the border of the volume the nearest voxel is repeated.

    Parameters
    ----------
    network : Network
    shape : tuple of int
        Of the volume.
    given, channels : int
        Of the input and of the answer.
    inside : Inside
    windowing : Windowing
        Of this network.
    memory : int
        Bytes for the voxels that are read together.
    """

    def __init__(
        self,
        network: InferenceModel,
        shape: Three,
        given: int,
        channels: int,
        inside: RegionOfInterest,
        windowing: SlidingWindow,
        memory: int,
    ) -> None:
        self._network, self.shape, self.channels, self._inside = network, shape, channels, inside
        self._patch, self._batch, _ = _settled(windowing)
        self._most = max(4096, memory // (8 * given))
        self.stride, self.offset = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)

    def needs(self, box: Box) -> Box:
        """The box itself."""
        return box

    def steps(self, box: Box, before: Box | None) -> Iterator[BoxTask]:
        """Parts of the box with half a patch around them."""
        plane = math.prod(box.shape[1:])
        deep = max(1, self._most // plane)
        for low in range(box.start[0], box.stop[0], deep):
            part = Box.of([low, *box.start[1:]], [min(low + deep, box.stop[0]), *box.stop[1:]])
            if self._inside.any(part):
                yield BoxTask((part.grow(*self._margins()),), part)

    def _margins(self) -> tuple[list[int], list[int]]:
        return [(n - 1) // 2 for n in self._patch], [n // 2 for n in self._patch]

    def begin(self, box: Box, before: Box | None, out: np.ndarray) -> tuple[Box, np.ndarray]:
        """Parts are written as they come."""
        return box, out

    def add(self, held: Any, step: BoxTask, values: Floats, finish: Finish) -> None:
        """The answer's centre for each voxel of the part that is wanted."""
        box, out = held
        part = step.place
        inside = self._inside.of(part)
        windows = sliding_window_view(np.moveaxis(values[0], 0, -1), self._patch, axis=(0, 1, 2))
        places = np.argwhere(inside)
        z, y, x = self._margins()[0]
        answers = np.zeros((self.channels, *part.shape), np.float32)
        for start in range(0, len(places), self._batch):
            at = places[start : start + self._batch].T
            batch = np.ascontiguousarray(windows[tuple(at)])  # (n, C, z, y, x)
            answers[:, *at] = self._network(batch).numpy()[:, :, z, y, x].T
        finish(part, answers, out[:, *part.within(box.start)])

    def end(self, held: Any, finish: Finish) -> None:
        """All parts are there."""
