"""Predict each voxel as the centre of a patch of the training size, as published for MRH-Net."""

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
from mrhdata.inference.strategies.sliding_window import SlidingWindow, _complete_settings
from mrhdata.volume.box import Box

if TYPE_CHECKING:
    pass

Floats = NDArray[np.float32]


class PatchCentreStrategy:
    """Predict each voxel from the patch around it; patches beyond the volume repeat its border.

    Parameters
    ----------
    network : InferenceModel
        Network.
    shape : tuple of int
        Shape of the volume.
    in_channels, channels : int
        Number of input and output channels.
    region : RegionOfInterest
        Wanted voxels.
    windows : SlidingWindow
        Patch shape and batch size, complete for this network.
    memory : int
        Budget for voxels that are read together, in bytes.
    """

    def __init__(
        self,
        network: InferenceModel,
        shape: Three,
        in_channels: int,
        channels: int,
        region: RegionOfInterest,
        windows: SlidingWindow,
        memory: int,
    ) -> None:
        self._network, self.shape, self.channels, self._region = network, shape, channels, region
        self._patch, self._batch, _ = _complete_settings(windows)
        self._max_voxels = max(4096, memory // (8 * in_channels))
        self.stride, self.offset = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)

    def needs(self, box: Box) -> Box:
        """Return the box itself."""
        return box

    def tasks(self, box: Box, before: Box | None) -> Iterator[BoxTask]:
        """Yield parts of the box, each with half a patch around it."""
        plane = math.prod(box.shape[1:])
        depth = max(1, self._max_voxels // plane)
        for low in range(box.start[0], box.stop[0], depth):
            part = Box.of([low, *box.start[1:]], [min(low + depth, box.stop[0]), *box.stop[1:]])
            if self._region.any(part):
                yield BoxTask((part.grow(*self._margins()),), part)

    def _margins(self) -> tuple[list[int], list[int]]:
        return [(n - 1) // 2 for n in self._patch], [n // 2 for n in self._patch]

    def begin(self, box: Box, before: Box | None, out: np.ndarray) -> tuple[Box, np.ndarray]:
        """Return the box and its output, to which parts are written at once."""
        return box, out

    def add(self, state: Any, task: BoxTask, values: Floats, finish: Finish) -> None:
        """Predict the wanted voxels of a part and write it."""
        box, out = state
        part = task.target
        windows = sliding_window_view(np.moveaxis(values[0], 0, -1), self._patch, axis=(0, 1, 2))
        indices = np.argwhere(self._region.of(part))
        z, y, x = self._margins()[0]
        predictions = np.zeros((self.channels, *part.shape), np.float32)
        for start in range(0, len(indices), self._batch):
            voxels = indices[start : start + self._batch].T
            batch = np.ascontiguousarray(windows[tuple(voxels)])  # (n, C, z, y, x)
            predictions[:, *voxels] = self._network(batch).numpy()[:, :, z, y, x].T
        finish(part, predictions, out[:, *part.within(box.start)])

    def end(self, state: Any, finish: Finish) -> None:
        """Do nothing: all parts are written."""
