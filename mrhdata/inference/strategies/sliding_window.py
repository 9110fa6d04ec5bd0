"""Blend predictions of overlapping windows of equal size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrhdata.errors import ModelError, ParameterError
from mrhdata.inference.region import RegionOfInterest
from mrhdata.inference.strategies.base import BoxTask, Finish, Three, three
from mrhdata.inference.strategies.network import InferenceModel
from mrhdata.patching.positions import strided
from mrhdata.volume.box import Box

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32]


#: Window functions for blending.
BLENDS = ("constant", "gaussian", "hann")


#: Standard deviation of the Gaussian in window lengths, as in nnU-Net and MONAI.
_SIGMA = 1 / 8


#: Smallest weight relative to the largest, so that a voxel covered by one window corner still counts.
_MIN_WEIGHT = 1e-3


@dataclass(frozen=True)
class SlidingWindow:
    """Windows on which a network is run, and the way in which their predictions are blended.

    Attributes
    ----------
    shape : sequence of int or None
        Voxels along z, y, x; by default the patch size of training.
    overlap : float
        Fraction of a window that the next one covers again.
    blend : {"gaussian", "hann", "constant"} or None
        Weights of the voxels of overlapping windows; Gaussian by default.
    batch_size : int or None
        Windows per batch; by default chosen by their size.
    """

    shape: Sequence[int] | None = None
    overlap: float = 0.5
    blend: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ParameterError(f"overlap must be at least 0 and below 1; got {self.overlap}")
        if self.blend not in (None, *BLENDS):
            raise ParameterError(f"blend must be one of {', '.join(BLENDS)}; got {self.blend!r}")
        if self.shape is not None and (len(self.shape) != 3 or min(self.shape) < 1):
            raise ParameterError(f"shape of a window must be three lengths along z, y, x; got {self.shape}")

    def of(self, network: InferenceModel) -> SlidingWindow:
        """Return windows with the shape, blending and batch size for a network."""
        shape = network.spec.patch if self.shape is None else self.shape
        if shape is None:
            raise ModelError(
                f"{network.spec.name} has no patch size. Pass windows=SlidingWindow(shape=...), or mode='dense'"
            )
        # A 2D network takes one plane at a time.
        shape = three(1 if axis == network.axis else int(n) for axis, n in enumerate(shape))
        blend = "gaussian" if self.blend is None else self.blend
        fitting = int(np.clip(network.batch_voxels // math.prod(shape), 1, 1024))
        return SlidingWindow(shape, self.overlap, blend, fitting if self.batch_size is None else self.batch_size)


class SlidingWindowStrategy:
    """Run overlapping windows of equal size, each once; sums that reach into the next box are kept.

    Parameters
    ----------
    network : InferenceModel
        Network.
    shape : tuple of int
        Shape of the volume.
    channels : int
        Number of output channels.
    region : RegionOfInterest
        Wanted voxels.
    windows : SlidingWindow
        Windows, complete for this network.

    Notes
    -----
    Weights are separable, so the total weight of each voxel is known before any window is run. Each window is
    weighted by its share of that total, and the shares are summed.
    """

    def __init__(
        self,
        network: InferenceModel,
        shape: Three,
        channels: int,
        region: RegionOfInterest,
        windows: SlidingWindow,
    ) -> None:
        self.network, self.shape, self.channels, self._region = network, shape, channels, region
        self.stride, self.offset = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
        self._window, self._batch, blend = _complete_settings(windows)
        strides = [max(1, round(w * (1 - windows.overlap))) for w in self._window]
        lengths = [max(n, w) for n, w in zip(shape, self._window, strict=True)]
        self._starts = [strided((n,), (w,), (s,))[:, 0] for n, w, s in zip(lengths, self._window, strides, strict=True)]
        self._shares = [_shares(*rows, blend) for rows in zip(self._starts, self._window, lengths, strict=True)]
        self._carried: Floats | None = None

    def needs(self, box: Box) -> Box:
        """Return the box itself."""
        return box

    def tasks(self, box: Box, before: Box | None) -> Iterator[BoxTask]:
        """Yield the windows that overlap the box and were not run for the box above it."""
        run_until = before.stop[0] if before is not None and _follows(before, box) else None
        numbers = [
            [i for i, s in enumerate(starts) if s < b and s + w > a]
            for starts, w, a, b in zip(self._starts, self._window, box.start, box.stop, strict=True)
        ]
        if run_until is not None:
            numbers[0] = [i for i in numbers[0] if self._starts[0][i] >= run_until]
        windows: list[Three] = []
        for index in itertools.product(*numbers):
            if self._region.any(self._window_at(three(index)).clip(self.shape)):
                windows.append(three(index))
        for i in range(0, len(windows), self._batch):
            batch = tuple(windows[i : i + self._batch])
            yield BoxTask(tuple(self._read_box(index) for index in batch), batch)

    def _read_box(self, index: Three) -> Box:
        """Return a window with the neighbouring planes that a 2.5D network sees."""
        margin = [self.network.spec.context_slices if a == self.network.axis else 0 for a in range(3)]
        return self._window_at(index).grow(margin)

    def _window_at(self, index: Three) -> Box:
        low = [int(starts[i]) for starts, i in zip(self._starts, index, strict=True)]
        return Box.of(low, (a + w for a, w in zip(low, self._window, strict=True)))

    def begin(self, box: Box, before: Box | None, out: np.ndarray) -> tuple[Box, Box, Floats, np.ndarray]:
        """Return sums as deep as the windows that start in the box, with the rest of the box above."""
        depth = max(box.stop[0], min(box.stop[0] - 1 + self._window[0], max(self.shape[0], self._window[0])))
        reach = Box.of(box.start, [depth, *box.stop[1:]])
        sums = np.zeros((self.channels, *reach.shape), np.float32)
        if before is not None and _follows(before, box) and self._carried is not None:
            sums[:, : self._carried.shape[1]] = self._carried[:, : sums.shape[1]]
        return box, reach, sums, out

    def run(self, task: BoxTask, values: Tensor) -> Tensor:
        """Return the predictions for windows."""
        return self.network.run(values)

    def add(self, state: Any, task: BoxTask, predictions: Floats, finish: Finish) -> None:
        """Add the predictions of each window, weighted by its shares."""
        _, reach, sums, _ = state
        # NumPy, since on a busy machine PyTorch's threads wait for each other longer than this sum takes.
        for index, prediction in zip(task.target, predictions, strict=True):
            window = self._window_at(index)
            common = window.intersect(reach)
            assert common is not None
            within, target = common.within(window.start), common.within(reach.start)
            z, y, x = (shares[i][w] for shares, i, w in zip(self._shares, index, within, strict=True))
            sums[:, *target] += prediction[:, *within] * (z[:, None, None] * (y[:, None] * x))

    def end(self, state: Any, finish: Finish) -> None:
        """Write the box, and keep the sums below it for the next one."""
        box, _, sums, out = state
        depth = box.shape[0]
        self._carried = sums[:, depth:].copy()
        finish(box, sums[:, :depth], out)

    def shrink(self) -> bool:
        """Halve the number of windows in a batch."""
        shrinkable, self._batch = self._batch > 1, -(-self._batch // 2)
        return shrinkable


def _complete_settings(windows: SlidingWindow) -> tuple[Three, int, str]:
    """Return shape, batch size and blending of windows that :meth:`SlidingWindow.of` completed."""
    shape, batch, blend = windows.shape, windows.batch_size, windows.blend
    if shape is None or batch is None or blend is None:
        raise ModelError("windows are not complete; this is a bug")
    return three(shape), batch, blend


def _follows(before: Box, box: Box) -> bool:
    """Return whether a box lies right below another one."""
    return (before.start[1:], before.stop[1:], before.stop[0]) == (box.start[1:], box.stop[1:], box.start[0])


def _shares(starts: NDArray[np.int64], window: int, length: int, blend: str) -> Floats:
    """Return the weights (n, window) of each window along one axis; the weights of a voxel sum to 1.

    Examples
    --------
    >>> _shares(np.array([0, 2]), 4, 6, "constant").tolist()
    [[1.0, 1.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]
    """
    distance = np.arange(window) - (window - 1) / 2
    weights = {
        "constant": np.ones(window),
        "gaussian": np.exp(-0.5 * (distance / (_SIGMA * window)) ** 2),
        "hann": np.cos(np.pi * distance / (window + 1)) ** 2,
    }[blend]
    weights = np.maximum(weights, _MIN_WEIGHT * weights.max())
    total = np.zeros(length)
    for start in starts:
        total[start : start + window] += weights
    return np.stack([weights / total[s : s + window] for s in starts]).astype(np.float32)
