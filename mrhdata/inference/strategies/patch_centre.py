"""Predict each voxel as the centre of a patch of the training size, as published for MRH-Net."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mrhdata.inference.region import RegionOfInterest
from mrhdata.inference.strategies.base import BoxTask, Finish, Three
from mrhdata.inference.strategies.network import InferenceModel
from mrhdata.inference.strategies.sliding_window import SlidingWindow, _complete_settings
from mrhdata.volume.box import Box

if TYPE_CHECKING:
    from torch import Tensor

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
        self.network, self.shape, self.channels, self._region = network, shape, channels, region
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

    def run(self, task: BoxTask, values: Tensor) -> Tensor:
        """Return the predictions for the wanted voxels of a part; the others are 0."""
        windows = values[0].movedim(0, -1)  # (z, y, x, C), and then the axes of a patch
        for axis, length in enumerate(self._patch):
            windows = windows.unfold(axis, length, 1)
        indices = torch.from_numpy(np.argwhere(self._region.of(task.target))).to(values.device)
        z, y, x = self._margins()[0]
        predictions = torch.zeros((self.channels, *task.target.shape), device=values.device)
        for voxels in torch.split(indices, self._batch):
            at = tuple(voxels.T)
            predictions[:, *at] = self.network.run(windows[at])[:, :, z, y, x].T
        return predictions[None]

    def add(self, state: Any, task: BoxTask, predictions: Floats, finish: Finish) -> None:
        """Write a part."""
        box, out = state
        finish(task.target, predictions[0], out[:, *task.target.within(box.start)])

    def end(self, state: Any, finish: Finish) -> None:
        """Do nothing: all parts are written."""

    def shrink(self) -> bool:
        """Halve the number of patches in a batch."""
        shrinkable, self._batch = self._batch > 1, -(-self._batch // 2)
        return shrinkable
