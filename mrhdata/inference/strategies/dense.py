"""Boxes with the exact margin of the receptive field: the map is that of one pass over the whole volume."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrhdata.errors import ModelError
from mrhdata.inference.region import RegionOfInterest
from mrhdata.inference.strategies.base import BoxTask, Finish, Three, three
from mrhdata.inference.strategies.network import InferenceModel
from mrhdata.models.receptive_field import ReceptiveField
from mrhdata.volume.box import Box

if TYPE_CHECKING:
    pass

log = logging.getLogger("mrhdata")

Floats = NDArray[np.float32]


#: Two boxes at a time may read so much more: PyTorch convolves one alone without oneDNN, five times slower.
_DEARER = 1.1


#: Lengths of pieces that are compared: each is so much of the one before, and their number.
_LADDER, _RUNGS = 0.87, 32


#: Where no piece fits the memory, so many times the smallest is taken where that saves work.
_LARGER = 1.5


#: Work for margins, in times the work itself, that is said.
_WASTEFUL = 4.0


class DenseStrategy:
    """Boxes with the margin of the receptive field: one pass over the whole volume, piece by piece.

    Parameters
    ----------
    network : Network
    field : Field
    shape : tuple of int
        Of the input volume.
    channels : int
        Of the input.
    inside : Inside
    memory : int
        Bytes for the network's tensors.

    Attributes
    ----------
    shape : tuple of int
        Of the output.
    stride, offset : tuple of float
        Input voxels from one output voxel to the next, and the place of the first one.
    """

    def __init__(
        self,
        network: InferenceModel,
        field: ReceptiveField,
        shape: Three,
        channels: int,
        inside: RegionOfInterest,
        memory: int,
    ) -> None:
        self._network, self._inside, self._input = network, inside, shape
        field = _of_volume(field, network)
        self._field = field
        self._padded, self.channels, self.shape = self._extent(shape, channels)
        self.stride = three(float(j) for j in field.stride)
        # An answer in the middle of what it depends on; but answers as many as the voxels stand for them, also
        # where strides make the field reach further to one side, as in a U-Net.
        rows = zip(field.low, field.high, field.stride, self.shape, shape, strict=True)
        self.offset = three(0.0 if j == 1 and n == m else float(b + h) / 2 for b, h, j, n, m in rows)
        # Output pieces begin where input boxes may.
        self._unit = three(max(1, int(a / j)) for a, j in zip(field.align, field.stride, strict=True))
        # Convolution holds a copy of its operands in another order; a finer answer has many voxels for one of input.
        self._most = max(4096, int(memory / (2 * field.live + 4 * channels / math.prod(self.stride))))
        self._warned = False

    def _extent(self, shape: Three, channels: int) -> tuple[Three, int, Three]:
        """Input shape that the network takes, and channels and shape of its answer, from shapes alone."""
        margins = [2 * self._network.spec.context_slices if i == self._network.axis else 0 for i in range(3)]
        padded = three(-(-n // a) * a for n, a in zip(shape, self._field.align, strict=True))
        problem: Exception | None = None
        # At its far end a volume is padded where the network cannot take it as it is.
        for tried in (shape, padded):
            try:
                found = self._network.answer((1, channels, *(n + m for n, m in zip(tried, margins, strict=True))))
            except (RuntimeError, ValueError) as error:
                problem = error
                continue
            sizes = zip(found[2:], tried, shape, self._field.stride, strict=True)
            return tried, found[1], three(n if t == s else min(n, math.ceil(s / j)) for n, t, s, j in sizes)
        raise ModelError(f"{self._network.spec.name} does not take a volume of {shape} voxels: {problem}")

    def needs(self, box: Box) -> Box:
        """Input voxels from the first to the last one that outputs stand for."""
        rows = list(zip(box.start, box.stop, self.stride, self.offset, strict=True))
        low = [math.floor(p * j + f) for p, _, j, f in rows]
        return Box.of(
            low, [max(b + 1, math.ceil((p - 1) * j + f) + 1) for b, (_, p, j, f) in zip(low, rows, strict=True)]
        )

    def _reads(self, box: Box, least: Three = (1, 1, 1)) -> Box:
        """An input box whose answer holds an output box exactly, no shorter than `least` where the volume allows it."""
        field, low, high = self._field, [], []
        for axis, (p, q) in enumerate(zip(box.start, box.stop, strict=True)):
            jump, align, length = field.stride[axis], field.align[axis], self._padded[axis]
            first = math.floor(jump * p + field.low[axis])
            last = math.floor(jump * (q - 1) + field.high[axis]) + 1
            if axis == self._network.axis:
                # Planes beyond the volume are repeated, not padded by the network.
                low.append(first)
                high.append(last)
                continue
            # No layer is given less than its kernel.
            long = max(field.least[axis], least[axis])
            first = max(0, min(first, length - long) // align * align)
            low.append(first)
            high.append(min(length, -(-max(last, first + long) // align) * align))
        return Box.of(low, high)

    def steps(self, box: Box, before: Box | None) -> Iterator[BoxTask]:
        """Pieces of the box that hold something wanted, two of one size at a time where that costs little more."""
        pieces, batch = self._pieces(box, 1), 1
        halves = self._pieces(box, 2)
        if self._cost(halves) <= _DEARER * self._cost(pieces):
            pieces, batch = halves, 2
        sizes = np.array([self._reads(piece).shape for piece in pieces]).max(axis=0)
        groups: dict[tuple[int, ...], list[tuple[Box, Box]]] = {}
        self._warn(pieces)
        for piece in pieces:
            if self._inside.any(self.needs(piece)):
                reads = self._reads(piece, three(sizes))
                groups.setdefault(reads.shape, []).append((reads, piece))
        for group in groups.values():
            for i in range(0, len(group), batch):
                reads_of, parts = zip(*group[i : i + batch], strict=True)
                yield BoxTask(reads_of, parts)

    def _warn(self, pieces: Sequence[Box]) -> None:
        """Say once where most of the work is for margins."""
        share = self._cost(pieces) / sum(
            math.prod(n * j for n, j in zip(p.shape, self.stride, strict=True)) for p in pieces
        )
        if share > _WASTEFUL and not self._warned:
            self._warned = True
            log.warning(
                "%s sees %s voxels, so within this memory each part is computed %.0f times over; give more memory, or "
                "mode='sliding_window'",
                self._network.spec.name,
                " x ".join(map(str, self._field.lengths)),
                share,
            )

    def _pieces(self, box: Box, batch: int) -> list[Box]:
        """Parts of one size that fit the memory and whose margins are the least work.

        Along an axis without margins, as planes of a 2D network are stacked, cutting costs nothing.
        """
        ladders, longest, work = [], [], []
        for axis, (n, unit) in enumerate(zip(box.shape, self._unit, strict=True)):
            units = -(-n // unit)
            ladder = sorted({max(1, int(units * _LADDER**i)) for i in range(_RUNGS)} | {1}, reverse=True)
            found = [self._reach(axis, self._parts(box, axis, rung)) for rung in ladder]
            ladders.append(ladder)
            longest.append(np.array([long for long, _ in found]))
            work.append(np.array([total for _, total in found]))
        size, cost = (np.einsum("i,j,k->ijk", *values) for values in (longest, work))
        # Where nothing fits, those that are not much larger than the smallest: it alone may be a voxel in its margins.
        most = max(self._most / batch, _LARGER * float(size.min()))
        chosen = np.unravel_index(np.argmin(np.where(size <= most, cost, np.inf)), size.shape)
        parts = [self._parts(box, axis, ladders[axis][i]) for axis, i in enumerate(chosen)]
        return [Box.of(*zip(*piece, strict=True)) for piece in itertools.product(*parts)]

    def _parts(self, box: Box, axis: int, units: int) -> list[tuple[int, int]]:
        """An axis of the box in parts of so many units, but the last."""
        return _cut(box.start[axis], box.stop[axis], units * self._unit[axis], self._unit[axis])

    def _reach(self, axis: int, parts: Sequence[tuple[int, int]]) -> tuple[float, float]:
        """Input voxels along an axis of the longest part with its margins, and of all parts together."""
        lengths = [self._read(axis, b - a) for a, b in parts]
        return max(lengths), sum(lengths)

    def _read(self, axis: int, length: int) -> float:
        """Input voxels along an axis that an output of a length takes, margins included."""
        field = self._field
        return min(float(field.stride[axis] * (length - 1) + field.high[axis] - field.low[axis] + 1), self._input[axis])

    def _cost(self, pieces: Sequence[Box]) -> float:
        return sum(self._voxels(piece.shape) for piece in pieces)

    def _voxels(self, lengths: Sequence[int]) -> float:
        """Input voxels that a piece reads, margins included."""
        return math.prod(self._read(axis, n) for axis, n in enumerate(lengths))

    def begin(self, box: Box, before: Box | None, out: np.ndarray) -> tuple[Box, np.ndarray]:
        """Pieces are written as they come."""
        return box, out

    def add(self, held: Any, step: BoxTask, values: Floats, finish: Finish) -> None:
        """Each piece out of the answer for its box."""
        box, out = held
        for reads, piece, answer in zip(step.boxes, step.place, self._network(values).numpy(), strict=True):
            rows = zip(reads.start, self._field.stride, piece.start, strict=True)
            base = [p if axis == self._network.axis else int(a / j) for axis, (a, j, p) in enumerate(rows)]
            finish(piece, answer[:, *piece.within(base)], out[:, *piece.within(box.start)])

    def end(self, held: Any, finish: Finish) -> None:
        """All pieces are there."""


def _cut(low: int, high: int, step: int, unit: int) -> list[tuple[int, int]]:
    """An interval in parts of one size, but the first and the last, that begin at multiples of a unit.

    Examples
    --------
    >>> _cut(4, 21, 12, 4)
    [(4, 16), (16, 21)]
    """
    edges = [low, *range(low // unit * unit + step, high, step), high]
    return list(itertools.pairwise(edges))


def _of_volume(field: ReceptiveField, network: InferenceModel) -> ReceptiveField:
    """The field along z, y, x; along the axis that planes are stacked on it is the neighbours."""
    if network.axis is None:
        return field
    n = network.spec.context_slices
    alone = {"jump": Fraction(1), "low": Fraction(-n), "high": Fraction(n), "align": 1, "least": 1}
    values: dict[str, Any] = {}
    for name, value in alone.items():
        found = getattr(field, name)
        values[name] = (*found[: network.axis], value, *found[network.axis :])
    return replace(field, **values)
