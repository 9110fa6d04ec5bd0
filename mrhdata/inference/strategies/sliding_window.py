"""Overlapping windows of one size, blended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrhdata.errors import ModelError
from mrhdata.inference.region import RegionOfInterest
from mrhdata.inference.strategies.base import BoxTask, Finish, Three, three
from mrhdata.inference.strategies.network import _BATCH_VOXELS, InferenceModel
from mrhdata.patching.positions import strided
from mrhdata.volume.box import Box

if TYPE_CHECKING:
    pass

Floats = NDArray[np.float32]


#: Windows are blended by these.
BLENDS = ("constant", "gaussian", "hann")


#: Standard deviation of the Gaussian, as a part of the window (as nnU-Net and MONAI have it).
_SIGMA = 1 / 8


#: No weight is smaller than this part of the largest, so that every voxel counts where it is covered once.
_LEAST = 1e-3


@dataclass(frozen=True)
class SlidingWindow:
    """Windows that a network is run on, and how their answers become one.

    Attributes
    ----------
    shape : sequence of int or None
        Voxels along z, y, x; those of the training patches where None.
    overlap : float
        Part of a window that the next one covers again.
    blend : {"gaussian", "hann", "constant"} or None
        Weights of a window's voxels where windows overlap; Gaussian by default.
    batch_size : int or None
        Windows that are run together; chosen by their size where None.
    """

    shape: Sequence[int] | None = None
    overlap: float = 0.5
    blend: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ModelError(f"overlap is a part of a window from 0 to below 1, not {self.overlap}")
        if self.blend not in (None, *BLENDS):
            raise ModelError(f"blend must be one of {', '.join(BLENDS)}; got {self.blend!r}")
        if self.shape is not None and (len(self.shape) != 3 or min(self.shape) < 1):
            raise ModelError(f"a window has three lengths along z, y, x, not {self.shape}")

    def of(self, network: InferenceModel) -> SlidingWindow:
        """With the shape and the blending that a network has."""
        shape = network.spec.patch if self.shape is None else self.shape
        if shape is None:
            raise ModelError(
                f"{network.spec.name} was not trained on patches; give the shape of windows, or use mode='dense'"
            )
        # A network of planes takes one at a time.
        shape = three(1 if axis == network.axis else int(n) for axis, n in enumerate(shape))
        blend = "gaussian" if self.blend is None else self.blend
        batch = int(np.clip(_BATCH_VOXELS // math.prod(shape), 1, 1024)) if self.batch_size is None else self.batch_size
        return SlidingWindow(shape, self.overlap, blend, batch)


class SlidingWindowStrategy:
    """Overlapping windows of one size; each is read and run once, and what reaches on is kept.

    Parameters
    ----------
    network : Network
    shape : tuple of int
        Of the volume.
    channels : int
        Of the answer.
    inside : Inside
    windowing : Windowing
        Of this network.

    Notes
    -----
    Weights fall off along each axis by itself, so what all windows over a voxel weigh is known before
    any is run: windows are weighted by their share, and added up.
    """

    def __init__(
        self,
        network: InferenceModel,
        shape: Three,
        channels: int,
        inside: RegionOfInterest,
        windowing: SlidingWindow,
    ) -> None:
        self._network, self.shape, self.channels, self._inside = network, shape, channels, inside
        self.stride, self.offset = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
        self._window, self._batch, blend = _settled(windowing)
        strides = [max(1, round(w * (1 - windowing.overlap))) for w in self._window]
        grown = [max(n, w) for n, w in zip(shape, self._window, strict=True)]
        self._starts = [strided((n,), (w,), (s,))[:, 0] for n, w, s in zip(grown, self._window, strides, strict=True)]
        self._shares = [_shares(*rows, blend) for rows in zip(self._starts, self._window, grown, strict=True)]
        self._carried: Floats | None = None

    def needs(self, box: Box) -> Box:
        """The box itself."""
        return box

    def steps(self, box: Box, before: Box | None) -> Iterator[BoxTask]:
        """Windows that reach into the box and were not run for the box above it."""
        begun = before.stop[0] if before is not None and _follows(before, box) else None
        found = [
            [i for i, s in enumerate(starts) if s < b and s + w > a]
            for starts, w, a, b in zip(self._starts, self._window, box.start, box.stop, strict=True)
        ]
        if begun is not None:
            found[0] = [i for i in found[0] if self._starts[0][i] >= begun]
        places: list[Three] = []
        for place in itertools.product(*found):
            if self._inside.any(self._covered(self._window_at(three(place)))):
                places.append(three(place))
        for i in range(0, len(places), self._batch):
            several = tuple(places[i : i + self._batch])
            yield BoxTask(tuple(self._box(place) for place in several), several)

    def _box(self, place: Three) -> Box:
        margin = [self._network.spec.context_slices if a == self._network.axis else 0 for a in range(3)]
        return self._window_at(place).grow(margin)

    def _window_at(self, place: Three) -> Box:
        low = [int(starts[i]) for starts, i in zip(self._starts, place, strict=True)]
        return Box.of(low, (a + w for a, w in zip(low, self._window, strict=True)))

    def _covered(self, box: Box) -> Box:
        return box.clip(self.shape)

    def begin(self, box: Box, before: Box | None, out: np.ndarray) -> tuple[Box, Box, Floats, np.ndarray]:
        """Sums as deep as windows that begin in the box reach, with what those of the box above left."""
        deep = max(box.stop[0], min(box.stop[0] - 1 + self._window[0], max(self.shape[0], self._window[0])))
        reach = Box.of(box.start, [deep, *box.stop[1:]])
        sums = np.zeros((self.channels, *reach.shape), np.float32)
        if before is not None and _follows(before, box) and self._carried is not None:
            sums[:, : self._carried.shape[1]] = self._carried[:, : sums.shape[1]]
        return box, reach, sums, out

    def add(self, held: Any, step: BoxTask, values: Floats, finish: Finish) -> None:
        """Each answer by its share."""
        _, reach, sums, _ = held
        # In NumPy: on a busy machine PyTorch's threads wait for each other longer than this takes.
        for place, answer in zip(step.place, self._network(values).numpy(), strict=True):
            window = self._window_at(place)
            both = window.intersect(reach)
            assert both is not None
            within, target = both.within(window.start), both.within(reach.start)
            z, y, x = (shares[i][w] for shares, i, w in zip(self._shares, place, within, strict=True))
            sums[:, *target] += answer[:, *within] * (z[:, None, None] * (y[:, None] * x))

    def end(self, held: Any, finish: Finish) -> None:
        """The box is written; what lies below it is kept for the next one."""
        box, _, sums, out = held
        deep = box.shape[0]
        self._carried = sums[:, deep:].copy()
        finish(box, sums[:, :deep], out)


def _settled(windowing: SlidingWindow) -> tuple[Three, int, str]:
    """Lengths of a window, how many are run together, and the blending, of a network's own windowing."""
    shape, batch, blend = windowing.shape, windowing.batch_size, windowing.blend
    if shape is None or batch is None or blend is None:
        raise ModelError("windows of no network in particular; this is a bug")
    return three(shape), batch, blend


def _follows(before: Box, box: Box) -> bool:
    """Whether a box lies right below another one."""
    return (before.start[1:], before.stop[1:], before.stop[0]) == (box.start[1:], box.stop[1:], box.start[0])


def _shares(starts: NDArray[np.int64], window: int, length: int, blend: str) -> Floats:
    """Weights of each window along one axis, (n, window); those of a voxel add up to 1.

    Examples
    --------
    >>> _shares(np.array([0, 2]), 4, 6, "constant").tolist()
    [[1.0, 1.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]
    """
    away = np.arange(window) - (window - 1) / 2
    weights = {
        "constant": np.ones(window),
        "gaussian": np.exp(-0.5 * (away / (_SIGMA * window)) ** 2),
        "hann": np.cos(np.pi * away / (window + 1)) ** 2,
    }[blend]
    weights = np.maximum(weights, _LEAST * weights.max())
    total = np.zeros(length)
    for start in starts:
        total[start : start + window] += weights
    return np.stack([weights / total[s : s + window] for s in starts]).astype(np.float32)
