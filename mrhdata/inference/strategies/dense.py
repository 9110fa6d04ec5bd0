"""Run large boxes with the exact margin of the receptive field, which gives the result of a single pass."""

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
from mrhdata.models.transfer import BUFFERS
from mrhdata.volume.box import Box

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("mrhdata")

Floats = NDArray[np.float32]


#: Two boxes at a time may read this many times the voxels of one: PyTorch convolves a single box without oneDNN, five
#: times slower.
_PAIRED_BOX_TOLERANCE = 1.1


#: Piece lengths that are compared: ratio of one to the next, and their number.
_SIZE_RATIO, _SIZE_STEPS = 0.87, 32


#: If no piece fits the memory, pieces of up to this many times the smallest are allowed, which saves work.
_OVERSIZE = 1.5


#: Voxels of the smallest piece, whatever the memory.
_LEAST_VOXELS = 4096


#: Warn when margin voxels cost this many times the output voxels.
_MARGIN_WARNING = 4.0


class DenseStrategy:
    """Run boxes with the margin of the receptive field: the result equals one pass over the whole volume.

    Parameters
    ----------
    network : InferenceModel
        Network.
    receptive_field : ReceptiveField
        Receptive field of the network.
    shape : tuple of int
        Shape of the input volume.
    in_channels : int
        Number of input channels.
    region : RegionOfInterest
        Wanted voxels.
    memory : int
        Budget for the network's tensors, in bytes.

    Attributes
    ----------
    shape : tuple of int
        Shape of the output volume.
    stride, offset : tuple of float
        Input voxels from one output voxel to the next, and input position of the first output voxel.
    """

    def __init__(
        self,
        network: InferenceModel,
        receptive_field: ReceptiveField,
        shape: Three,
        in_channels: int,
        region: RegionOfInterest,
        memory: int,
    ) -> None:
        self.network, self._region, self._input_shape = network, region, shape
        field = _add_plane_axis(receptive_field, network)
        self._field = field
        self._padded, self.channels, self.shape = self._output_extent(shape, in_channels)
        self.stride = three(float(s) for s in field.stride)
        # An output voxel lies in the middle of its receptive field. If input and output have equal shapes, their voxels
        # coincide, even if strides make the field asymmetric as in a U-Net.
        rows = zip(field.low, field.high, field.stride, self.shape, shape, strict=True)
        self.offset = three(0.0 if s == 1 and n == m else float(b + h) / 2 for b, h, s, n, m in rows)
        # Output pieces start where input boxes may start.
        self._unit = three(max(1, int(a / s)) for a, s in zip(field.align, field.stride, strict=True))
        self._max_voxels = self._voxels_within(memory, in_channels)
        self._warned = False

    def _voxels_within(self, memory: int, in_channels: int) -> int:
        """Return the input voxels of a piece whose tensors fit the memory of the device and of the machine."""
        # Convolution copies its operands into another layout; a finer output has several voxels per input voxel.
        voxel_bytes = 2 * self._field.live + 4 * in_channels / math.prod(self.stride)
        limit = self.network.tensor_memory(memory) / voxel_bytes
        if self.network.device.type != "cpu":
            # In main memory the input lies in a buffer and in the pinned ones, the prediction in two.
            outside = 4 * (in_channels * (1 + BUFFERS) + 2 * self.channels / math.prod(self.stride))
            limit = min(limit, memory / outside)
        return max(_LEAST_VOXELS, int(limit))

    def _output_extent(self, shape: Three, channels: int) -> tuple[Three, int, Three]:
        """Return the input shape that the network takes, and the channels and shape of its output."""
        margins = [2 * self.network.spec.context_slices if i == self.network.axis else 0 for i in range(3)]
        padded = three(-(-n // a) * a for n, a in zip(shape, self._field.align, strict=True))
        problem: Exception | None = None
        # The far end of a volume is padded only if the network cannot take the volume as it is.
        for candidate in (shape, padded):
            try:
                output = self.network.output_shape(
                    (1, channels, *(n + m for n, m in zip(candidate, margins, strict=True)))
                )
            except (RuntimeError, ValueError) as error:
                problem = error
                continue
            sizes = zip(output[2:], candidate, shape, self._field.stride, strict=True)
            return candidate, output[1], three(n if c == v else min(n, math.ceil(v / s)) for n, c, v, s in sizes)
        raise ModelError(f"{self.network.spec.name} does not take a volume of {shape} voxels: {problem}")

    def needs(self, box: Box) -> Box:
        """Return the input voxels from the first to the last output voxel."""
        rows = list(zip(box.start, box.stop, self.stride, self.offset, strict=True))
        low = [math.floor(p * s + o) for p, _, s, o in rows]
        return Box.of(
            low, [max(b + 1, math.ceil((p - 1) * s + o) + 1) for b, (_, p, s, o) in zip(low, rows, strict=True)]
        )

    def _read_box(self, box: Box, least: Three = (1, 1, 1)) -> Box:
        """Return an input box whose output holds an output box exactly, of at least `least` voxels if possible."""
        field, low, high = self._field, [], []
        for axis, (p, q) in enumerate(zip(box.start, box.stop, strict=True)):
            stride, align, length = field.stride[axis], field.align[axis], self._padded[axis]
            first = math.floor(stride * p + field.low[axis])
            last = math.floor(stride * (q - 1) + field.high[axis]) + 1
            if axis == self.network.axis:
                # Planes beyond the volume are repeated, not padded by the network.
                low.append(first)
                high.append(last)
                continue
            # No layer gets an input smaller than its kernel.
            minimum = max(field.least[axis], least[axis])
            first = max(0, min(first, length - minimum) // align * align)
            low.append(first)
            high.append(min(length, -(-max(last, first + minimum) // align) * align))
        return Box.of(low, high)

    def tasks(self, box: Box, before: Box | None) -> Iterator[BoxTask]:
        """Yield the wanted pieces of the box, in pairs of equal size if that costs little more."""
        pieces, batch = self._pieces(box, 1), 1
        halves = self._pieces(box, 2)
        if self._cost(halves) <= _PAIRED_BOX_TOLERANCE * self._cost(pieces):
            pieces, batch = halves, 2
        largest = np.array([self._read_box(piece).shape for piece in pieces]).max(axis=0)
        groups: dict[tuple[int, ...], list[tuple[Box, Box]]] = {}
        self._warn_of_margins(pieces)
        for piece in pieces:
            if self._region.any(self.needs(piece)):
                read_box = self._read_box(piece, three(largest))
                groups.setdefault(read_box.shape, []).append((read_box, piece))
        for group in groups.values():
            for i in range(0, len(group), batch):
                read_boxes, output_pieces = zip(*group[i : i + batch], strict=True)
                yield BoxTask(read_boxes, output_pieces)

    def _warn_of_margins(self, pieces: Sequence[Box]) -> None:
        """Warn once if most of the work is for margins."""
        ratio = self._cost(pieces) / sum(
            math.prod(n * s for n, s in zip(p.shape, self.stride, strict=True)) for p in pieces
        )
        if ratio > _MARGIN_WARNING and not self._warned:
            self._warned = True
            log.warning(
                "the receptive field of %s is %s voxels, so each voxel is computed %.0f times within this memory. "
                "Pass a larger memory=, or mode='sliding_window'",
                self.network.spec.name,
                " x ".join(map(str, self._field.lengths)),
                ratio,
            )

    def _pieces(self, box: Box, batch: int) -> list[Box]:
        """Cut a box into pieces of equal size that fit the memory and whose margins cost the least work.

        Cutting costs nothing along an axis without margins, such as the stacking axis of a 2D network.
        """
        options, longest, work = [], [], []
        for axis, (n, unit) in enumerate(zip(box.shape, self._unit, strict=True)):
            units = -(-n // unit)
            lengths = sorted({max(1, int(units * _SIZE_RATIO**i)) for i in range(_SIZE_STEPS)} | {1}, reverse=True)
            costs = [self._axis_cost(axis, self._cut_axis(box, axis, length)) for length in lengths]
            options.append(lengths)
            longest.append(np.array([most for most, _ in costs]))
            work.append(np.array([total for _, total in costs]))
        size, cost = (np.einsum("i,j,k->ijk", *values) for values in (longest, work))
        # If nothing fits, allow more than the smallest piece, which may be one voxel within its margins.
        limit = max(self._max_voxels / batch, _OVERSIZE * float(size.min()))
        best = np.unravel_index(np.argmin(np.where(size <= limit, cost, np.inf)), size.shape)
        intervals = [self._cut_axis(box, axis, options[axis][i]) for axis, i in enumerate(best)]
        return [Box.of(*zip(*piece, strict=True)) for piece in itertools.product(*intervals)]

    def _cut_axis(self, box: Box, axis: int, units: int) -> list[tuple[int, int]]:
        """Cut an axis of the box into intervals of a number of units; the last may be shorter."""
        return _cut(box.start[axis], box.stop[axis], units * self._unit[axis], self._unit[axis])

    def _axis_cost(self, axis: int, intervals: Sequence[tuple[int, int]]) -> tuple[float, float]:
        """Return the input voxels along an axis of the longest interval and of all, margins included."""
        lengths = [self._read_length(axis, b - a) for a, b in intervals]
        return max(lengths), sum(lengths)

    def _read_length(self, axis: int, length: int) -> float:
        """Return the input voxels along an axis for an output length, margins included."""
        field = self._field
        span = float(field.stride[axis] * (length - 1) + field.high[axis] - field.low[axis] + 1)
        return min(span, self._input_shape[axis])

    def _cost(self, pieces: Sequence[Box]) -> float:
        """Return the input voxels that pieces read, margins included."""
        return sum(math.prod(self._read_length(axis, n) for axis, n in enumerate(piece.shape)) for piece in pieces)

    def begin(self, box: Box, before: Box | None, out: np.ndarray) -> tuple[Box, np.ndarray]:
        """Return the box and its output, to which pieces are written at once."""
        return box, out

    def run(self, task: BoxTask, values: Tensor) -> Tensor:
        """Return the predictions for the input boxes of pieces."""
        return self.network.run(values)

    def add(self, state: Any, task: BoxTask, predictions: Floats, finish: Finish) -> None:
        """Cut each piece out of the prediction for its input box and write it."""
        box, out = state
        for read_box, piece, prediction in zip(task.boxes, task.target, predictions, strict=True):
            rows = zip(read_box.start, self._field.stride, piece.start, strict=True)
            base = [p if axis == self.network.axis else int(a / s) for axis, (a, s, p) in enumerate(rows)]
            finish(piece, prediction[:, *piece.within(base)], out[:, *piece.within(box.start)])

    def end(self, state: Any, finish: Finish) -> None:
        """Do nothing: all pieces are written."""

    def shrink(self) -> bool:
        """Halve the voxels of a piece."""
        shrinkable, self._max_voxels = self._max_voxels > _LEAST_VOXELS, max(_LEAST_VOXELS, self._max_voxels // 2)
        return shrinkable


def _cut(low: int, high: int, step: int, unit: int) -> list[tuple[int, int]]:
    """Cut an interval into parts of equal length, except the first and the last, that start at multiples of a unit.

    Examples
    --------
    >>> _cut(4, 21, 12, 4)
    [(4, 16), (16, 21)]
    """
    edges = [low, *range(low // unit * unit + step, high, step), high]
    return list(itertools.pairwise(edges))


def _add_plane_axis(field: ReceptiveField, network: InferenceModel) -> ReceptiveField:
    """Return the receptive field along z, y, x; along the stacking axis of a 2D network it is the context slices."""
    if network.axis is None:
        return field
    n = network.spec.context_slices
    plane_axis = {"stride": Fraction(1), "low": Fraction(-n), "high": Fraction(n), "align": 1, "least": 1}
    values: dict[str, Any] = {}
    for name, value in plane_axis.items():
        in_plane = getattr(field, name)
        values[name] = (*in_plane[: network.axis], value, *in_plane[network.axis :])
    return replace(field, **values)
