"""Ways to run a network over a volume: what each output box reads, and how the answers are put together.

*Dense*: boxes with the exact margin of the receptive field, so the map is that of one pass over the
whole volume. *Windows*: overlapping windows of one size, blended. *Centres*: each voxel is the centre of
a patch of the training size, as published for MRH-Net.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from mrhdata.errors import ModelError
from mrhdata.inference.box_reader import Inside, Span, span
from mrhdata.models.receptive_field import Field
from mrhdata.models.spec import Spec, rescaled, scaled
from mrhdata.patching.positions import strided

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger("mrhdata")

Floats = NDArray[np.float32]
Three = tuple[int, int, int]

#: Windows are blended by these.
BLENDS = ("constant", "gaussian", "hann")
#: Voxels of windows that are run together.
_BATCH_VOXELS = 1_200_000
#: Two boxes at a time may read so much more: PyTorch convolves one alone without oneDNN, five times slower.
_DEARER = 1.1
#: Lengths of pieces that are compared: each is so much of the one before, and their number.
_LADDER, _RUNGS = 0.87, 32
#: Where no piece fits the memory, so many times the smallest is taken where that saves work.
_LARGER = 1.5
#: Work for margins, in times the work itself, that is said.
_WASTEFUL = 4.0
#: Standard deviation of the Gaussian, as a part of the window (as nnU-Net and MONAI have it).
_SIGMA = 1 / 8
#: No weight is smaller than this part of the largest, so that every voxel counts where it is covered once.
_LEAST = 1e-3


def _moved(model: nn.Module, device: str) -> nn.Module:
    """The network on a device, if there is such a one."""
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        found = "cpu and cuda" if torch.cuda.is_available() else "cpu alone"
        raise ModelError(f"there is no device {device!r} for this PyTorch; there is {found}") from error


class Network:
    """A trained network on boxes (n, C, z, y, x) of raw voxels; answers in the target's units.

    Parameters
    ----------
    model : torch.nn.Module
        With ``spec``, or plain: then it takes raw voxels.
    device : str
    precision : {"float32", "bfloat16"}
    """

    def __init__(self, model: nn.Module, device: str, precision: str) -> None:
        self.model, self._device, self._precision = _moved(model.eval(), device), device, precision
        spec: Spec | None = getattr(model, "spec", None)
        self.spec = spec if spec is not None else Spec(type(model).__name__)
        self.ndim = int(getattr(model, "ndim", 3))
        #: The axis that a network of planes is run along, None for one of volumes.
        self.axis = (self.spec.axis or 0) if self.ndim == 2 else None

    def __call__(self, values: Floats) -> Tensor:
        """Answers in this machine's memory, float32."""
        with torch.inference_mode(), torch.autocast(self._device, torch.bfloat16, self._precision == "bfloat16"):
            return self._run(torch.from_numpy(values).to(self._device)).cpu()

    def answer(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the answer for boxes of a shape, found without any voxels."""
        ghost = copy.copy(self)
        ghost.model = copy.deepcopy(self.model).to("meta")
        return tuple(ghost._run(torch.empty(tuple(shape), device="meta")).shape)

    def _run(self, x: Tensor) -> Tensor:
        if self.axis is None:
            return self._physical(x)
        # Each plane by itself, with its neighbours as channels where the network was trained so.
        axis, across = 2 + self.axis, 2 * self.spec.neighbours + 1
        x = x.movedim(axis, 1)  # (n, planes, C, h, w)
        if across > 1:
            x = x.unfold(1, across, 1).movedim(-1, 3).flatten(2, 3)  # (n, planes, C * across, h, w)
        n, planes = x.shape[:2]
        y = self._physical(x.flatten(0, 1))
        return y.reshape(n, planes, *y.shape[1:]).movedim(1, axis)

    def _physical(self, x: Tensor) -> Tensor:
        x = _together(x)
        y = self.model(x if self.spec.inputs is None else scaled(x, self.spec.inputs))
        if not isinstance(y, torch.Tensor):
            raise ModelError(f"{self.spec.name} returns {type(y).__name__}, not one tensor")
        return y.float() if self.spec.target is None else rescaled(y.float(), self.spec.target)


def _together(x: Tensor) -> Tensor:
    """The same with the channels of a voxel beside each other: few of them are convolved several times faster so."""
    if x.shape[1] == 1 and x.is_contiguous():
        # One channel lies so already; PyTorch would copy it.
        return x.as_strided(x.shape, (x.stride(0), 1, *x.stride()[2:]))
    return x.to(memory_format=torch.channels_last_3d if x.ndim == 5 else torch.channels_last)


@dataclass(frozen=True)
class Step:
    """Boxes of one size that are read and run together, and what is known of where they go."""

    boxes: tuple[Span, ...]
    place: Any = None


@dataclass(frozen=True)
class Windowing:
    """Windows that a network is run on, and how their answers become one.

    Attributes
    ----------
    shape : sequence of int or None
        Voxels along z, y, x; those of the training patches where None.
    overlap : float
        Part of a window that the next one covers again.
    blend : {"gaussian", "hann", "constant", "centre"} or None
        How windows are weighted. With ``"centre"`` every voxel is the centre of a window of its own, as
        published for MRH-Net, whose default it is; that of other networks is Gaussian.
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
        if self.blend not in (None, "centre", *BLENDS):
            raise ModelError(f"blend is one of {', '.join(BLENDS)} or centre, not {self.blend!r}")
        if self.shape is not None and (len(self.shape) != 3 or min(self.shape) < 1):
            raise ModelError(f"a window has three lengths along z, y, x, not {self.shape}")

    def of(self, network: Network) -> Windowing:
        """With the shape and the blending that a network has."""
        shape = network.spec.patch if self.shape is None else self.shape
        if shape is None:
            raise ModelError(
                f"{network.spec.name} was not trained on patches; give the shape of windows, or use mode='dense'"
            )
        # A network of planes takes one at a time.
        shape = _three(1 if axis == network.axis else int(n) for axis, n in enumerate(shape))
        blend = str(getattr(network.model, "blend", "gaussian")) if self.blend is None else self.blend
        batch = int(np.clip(_BATCH_VOXELS // math.prod(shape), 1, 1024)) if self.batch_size is None else self.batch_size
        return Windowing(shape, self.overlap, blend, batch)


#: Puts what is written for the answers of a box (C, z, y, x), which are used up, where it is told.
Finish = Callable[[Span, Floats, np.ndarray], None]


class Method(Protocol):
    """One way to run a network over a volume."""

    shape: Three
    channels: int
    jump: tuple[float, float, float]
    first: tuple[float, float, float]

    def steps(self, box: Span, before: Span | None) -> Iterator[Step]:
        """What is read for an output box, given the one that was made just before."""

    def needs(self, box: Span) -> Span:
        """The input voxels that an output box is about."""

    def begin(self, box: Span, before: Span | None, out: np.ndarray) -> Any:
        """What answers are put into, for what is written of a box: zeros, (C, z, y, x)."""

    def add(self, held: Any, step: Step, values: Floats, finish: Finish) -> None:
        """Run the network on a step's boxes and put the answers where they belong."""

    def end(self, held: Any, finish: Finish) -> None:
        """What is written of the box is complete."""


class Dense:
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
    jump, first : tuple of float
        Input voxels from one output voxel to the next, and the place of the first one.
    """

    def __init__(
        self, network: Network, field: Field, shape: Three, channels: int, inside: Inside, memory: int
    ) -> None:
        self._network, self._inside, self._input = network, inside, shape
        field = _of_volume(field, network)
        self._field = field
        self._padded, self.channels, self.shape = self._extent(shape, channels)
        self.jump = _three(float(j) for j in field.jump)
        # An answer in the middle of what it depends on; but answers as many as the voxels stand for them, also
        # where strides make the field reach further to one side, as in a U-Net.
        rows = zip(field.low, field.high, field.jump, self.shape, shape, strict=True)
        self.first = _three(0.0 if j == 1 and n == m else float(b + h) / 2 for b, h, j, n, m in rows)
        # Output pieces begin where input boxes may.
        self._unit = _three(max(1, int(a / j)) for a, j in zip(field.align, field.jump, strict=True))
        # Convolution holds a copy of its operands in another order; a finer answer has many voxels for one of input.
        self._most = max(4096, int(memory / (2 * field.live + 4 * channels / math.prod(self.jump))))
        self._warned = False

    def _extent(self, shape: Three, channels: int) -> tuple[Three, int, Three]:
        """Input shape that the network takes, and channels and shape of its answer, from shapes alone."""
        margins = [2 * self._network.spec.neighbours if i == self._network.axis else 0 for i in range(3)]
        padded = _three(-(-n // a) * a for n, a in zip(shape, self._field.align, strict=True))
        problem: Exception | None = None
        # At its far end a volume is padded where the network cannot take it as it is.
        for tried in (shape, padded):
            try:
                found = self._network.answer((1, channels, *(n + m for n, m in zip(tried, margins, strict=True))))
            except (RuntimeError, ValueError) as error:
                problem = error
                continue
            sizes = zip(found[2:], tried, shape, self._field.jump, strict=True)
            return tried, found[1], _three(n if t == s else min(n, math.ceil(s / j)) for n, t, s, j in sizes)
        raise ModelError(f"{self._network.spec.name} does not take a volume of {shape} voxels: {problem}")

    def needs(self, box: Span) -> Span:
        """Input voxels from the first to the last one that outputs stand for."""
        rows = list(zip(box.low, box.high, self.jump, self.first, strict=True))
        low = [math.floor(p * j + f) for p, _, j, f in rows]
        return span(
            low, [max(b + 1, math.ceil((p - 1) * j + f) + 1) for b, (_, p, j, f) in zip(low, rows, strict=True)]
        )

    def _reads(self, box: Span, least: Three = (1, 1, 1)) -> Span:
        """An input box whose answer holds an output box exactly, no shorter than `least` where the volume allows it."""
        field, low, high = self._field, [], []
        for axis, (p, q) in enumerate(zip(box.low, box.high, strict=True)):
            jump, align, length = field.jump[axis], field.align[axis], self._padded[axis]
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
        return span(low, high)

    def steps(self, box: Span, before: Span | None) -> Iterator[Step]:
        """Pieces of the box that hold something wanted, two of one size at a time where that costs little more."""
        pieces, batch = self._pieces(box, 1), 1
        halves = self._pieces(box, 2)
        if self._cost(halves) <= _DEARER * self._cost(pieces):
            pieces, batch = halves, 2
        sizes = np.array([self._reads(piece).lengths for piece in pieces]).max(axis=0)
        groups: dict[Three, list[tuple[Span, Span]]] = {}
        self._warn(pieces)
        for piece in pieces:
            if self._inside.any(self.needs(piece)):
                reads = self._reads(piece, _three(sizes))
                groups.setdefault(reads.lengths, []).append((reads, piece))
        for group in groups.values():
            for i in range(0, len(group), batch):
                reads_of, parts = zip(*group[i : i + batch], strict=True)
                yield Step(reads_of, parts)

    def _warn(self, pieces: Sequence[Span]) -> None:
        """Say once where most of the work is for margins."""
        share = self._cost(pieces) / sum(
            math.prod(n * j for n, j in zip(p.lengths, self.jump, strict=True)) for p in pieces
        )
        if share > _WASTEFUL and not self._warned:
            self._warned = True
            log.warning(
                "%s sees %s voxels, so within this memory each part is computed %.0f times over; give more memory, or "
                "mode='patch'",
                self._network.spec.name,
                " x ".join(map(str, self._field.lengths)),
                share,
            )

    def _pieces(self, box: Span, batch: int) -> list[Span]:
        """Parts of one size that fit the memory and whose margins are the least work.

        Along an axis without margins, as planes of a 2D network are stacked, cutting costs nothing.
        """
        ladders, longest, work = [], [], []
        for axis, (n, unit) in enumerate(zip(box.lengths, self._unit, strict=True)):
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
        return [span(*zip(*piece, strict=True)) for piece in itertools.product(*parts)]

    def _parts(self, box: Span, axis: int, units: int) -> list[tuple[int, int]]:
        """An axis of the box in parts of so many units, but the last."""
        return _cut(box.low[axis], box.high[axis], units * self._unit[axis], self._unit[axis])

    def _reach(self, axis: int, parts: Sequence[tuple[int, int]]) -> tuple[float, float]:
        """Input voxels along an axis of the longest part with its margins, and of all parts together."""
        lengths = [self._read(axis, b - a) for a, b in parts]
        return max(lengths), sum(lengths)

    def _read(self, axis: int, length: int) -> float:
        """Input voxels along an axis that an output of a length takes, margins included."""
        field = self._field
        return min(float(field.jump[axis] * (length - 1) + field.high[axis] - field.low[axis] + 1), self._input[axis])

    def _cost(self, pieces: Sequence[Span]) -> float:
        return sum(self._voxels(piece.lengths) for piece in pieces)

    def _voxels(self, lengths: Sequence[int]) -> float:
        """Input voxels that a piece reads, margins included."""
        return math.prod(self._read(axis, n) for axis, n in enumerate(lengths))

    def begin(self, box: Span, before: Span | None, out: np.ndarray) -> tuple[Span, np.ndarray]:
        """Pieces are written as they come."""
        return box, out

    def add(self, held: Any, step: Step, values: Floats, finish: Finish) -> None:
        """Each piece out of the answer for its box."""
        box, out = held
        for reads, piece, answer in zip(step.boxes, step.place, self._network(values).numpy(), strict=True):
            rows = zip(reads.low, self._field.jump, piece.low, strict=True)
            base = [p if axis == self._network.axis else int(a / j) for axis, (a, j, p) in enumerate(rows)]
            finish(piece, answer[:, *piece.slices(base)], out[:, *piece.slices(box.low)])

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


def _of_volume(field: Field, network: Network) -> Field:
    """The field along z, y, x; along the axis that planes are stacked on it is the neighbours."""
    if network.axis is None:
        return field
    n = network.spec.neighbours
    alone = {"jump": Fraction(1), "low": Fraction(-n), "high": Fraction(n), "align": 1, "least": 1}
    values: dict[str, Any] = {}
    for name, value in alone.items():
        found = getattr(field, name)
        values[name] = (*found[: network.axis], value, *found[network.axis :])
    return replace(field, **values)


class Windows:
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
        network: Network,
        shape: Three,
        channels: int,
        inside: Inside,
        windowing: Windowing,
    ) -> None:
        self._network, self.shape, self.channels, self._inside = network, shape, channels, inside
        self.jump, self.first = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
        self._window, self._batch, blend = _settled(windowing)
        strides = [max(1, round(w * (1 - windowing.overlap))) for w in self._window]
        grown = [max(n, w) for n, w in zip(shape, self._window, strict=True)]
        self._starts = [strided((n,), (w,), (s,))[:, 0] for n, w, s in zip(grown, self._window, strides, strict=True)]
        self._shares = [_shares(*rows, blend) for rows in zip(self._starts, self._window, grown, strict=True)]
        self._carried: Floats | None = None

    def needs(self, box: Span) -> Span:
        """The box itself."""
        return box

    def steps(self, box: Span, before: Span | None) -> Iterator[Step]:
        """Windows that reach into the box and were not run for the box above it."""
        begun = before.high[0] if before is not None and _follows(before, box) else None
        found = [
            [i for i, s in enumerate(starts) if s < b and s + w > a]
            for starts, w, a, b in zip(self._starts, self._window, box.low, box.high, strict=True)
        ]
        if begun is not None:
            found[0] = [i for i in found[0] if self._starts[0][i] >= begun]
        places: list[Three] = []
        for place in itertools.product(*found):
            low = [int(starts[i]) for starts, i in zip(self._starts, place, strict=True)]
            if self._inside.any(self._covered(span(low, [a + w for a, w in zip(low, self._window, strict=True)]))):
                places.append(_three(place))
        for i in range(0, len(places), self._batch):
            several = tuple(places[i : i + self._batch])
            yield Step(tuple(self._box(place) for place in several), several)

    def _box(self, place: Three) -> Span:
        low = [int(starts[i]) for starts, i in zip(self._starts, place, strict=True)]
        margin = [self._network.spec.neighbours if a == self._network.axis else 0 for a in range(3)]
        return span(
            [a - m for a, m in zip(low, margin, strict=True)],
            [a + w + m for a, w, m in zip(low, self._window, margin, strict=True)],
        )

    def _covered(self, box: Span) -> Span:
        return box.within(self.shape)

    def begin(self, box: Span, before: Span | None, out: np.ndarray) -> tuple[Span, Span, Floats, np.ndarray]:
        """Sums as deep as windows that begin in the box reach, with what those of the box above left."""
        deep = max(box.high[0], min(box.high[0] - 1 + self._window[0], max(self.shape[0], self._window[0])))
        reach = span(box.low, [deep, *box.high[1:]])
        sums = np.zeros((self.channels, *reach.lengths), np.float32)
        if before is not None and _follows(before, box) and self._carried is not None:
            sums[:, : self._carried.shape[1]] = self._carried[:, : sums.shape[1]]
        return box, reach, sums, out

    def add(self, held: Any, step: Step, values: Floats, finish: Finish) -> None:
        """Each answer by its share."""
        _, reach, sums, _ = held
        # In NumPy: on a busy machine PyTorch's threads wait for each other longer than this takes.
        for place, answer in zip(step.place, self._network(values).numpy(), strict=True):
            low = [int(starts[i]) for starts, i in zip(self._starts, place, strict=True)]
            both = span(
                [max(a, b) for a, b in zip(low, reach.low, strict=True)],
                [min(a + w, b) for a, w, b in zip(low, self._window, reach.high, strict=True)],
            )
            within, target = both.slices(low), both.slices(reach.low)
            z, y, x = (shares[i][w] for shares, i, w in zip(self._shares, place, within, strict=True))
            sums[:, *target] += answer[:, *within] * (z[:, None, None] * (y[:, None] * x))

    def end(self, held: Any, finish: Finish) -> None:
        """The box is written; what lies below it is kept for the next one."""
        box, _, sums, out = held
        deep = box.lengths[0]
        self._carried = sums[:, deep:].copy()
        finish(box, sums[:, :deep], out)


def _settled(windowing: Windowing) -> tuple[Three, int, str]:
    """Lengths of a window, how many are run together, and the blending, of a network's own windowing."""
    shape, batch, blend = windowing.shape, windowing.batch_size, windowing.blend
    if shape is None or batch is None or blend is None:
        raise ModelError("windows of no network in particular; this is a bug")
    return _three(shape), batch, blend


def _follows(before: Span, box: Span) -> bool:
    """Whether a box lies right below another one."""
    return (before.low[1:], before.high[1:], before.high[0]) == (box.low[1:], box.high[1:], box.low[0])


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


class Centres:
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
        network: Network,
        shape: Three,
        given: int,
        channels: int,
        inside: Inside,
        windowing: Windowing,
        memory: int,
    ) -> None:
        self._network, self.shape, self.channels, self._inside = network, shape, channels, inside
        self._patch, self._batch, _ = _settled(windowing)
        self._most = max(4096, memory // (8 * given))
        self.jump, self.first = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)

    def needs(self, box: Span) -> Span:
        """The box itself."""
        return box

    def steps(self, box: Span, before: Span | None) -> Iterator[Step]:
        """Parts of the box with half a patch around them."""
        plane = math.prod(box.lengths[1:])
        deep = max(1, self._most // plane)
        for low in range(box.low[0], box.high[0], deep):
            part = span([low, *box.low[1:]], [min(low + deep, box.high[0]), *box.high[1:]])
            if self._inside.any(part):
                before_, after = self._margins()
                yield Step(
                    (
                        span(
                            [a - m for a, m in zip(part.low, before_, strict=True)],
                            [b + m for b, m in zip(part.high, after, strict=True)],
                        ),
                    ),
                    part,
                )

    def _margins(self) -> tuple[list[int], list[int]]:
        return [(n - 1) // 2 for n in self._patch], [n // 2 for n in self._patch]

    def begin(self, box: Span, before: Span | None, out: np.ndarray) -> tuple[Span, np.ndarray]:
        """Parts are written as they come."""
        return box, out

    def add(self, held: Any, step: Step, values: Floats, finish: Finish) -> None:
        """The answer's centre for each voxel of the part that is wanted."""
        box, out = held
        part = step.place
        inside = self._inside.of(part)
        windows = sliding_window_view(np.moveaxis(values[0], 0, -1), self._patch, axis=(0, 1, 2))
        places = np.argwhere(inside)
        z, y, x = self._margins()[0]
        answers = np.zeros((self.channels, *part.lengths), np.float32)
        for start in range(0, len(places), self._batch):
            at = places[start : start + self._batch].T
            batch = np.ascontiguousarray(windows[tuple(at)])  # (n, C, z, y, x)
            answers[:, *at] = self._network(batch).numpy()[:, :, z, y, x].T
        finish(part, answers, out[:, *part.slices(box.low)])

    def end(self, held: Any, finish: Finish) -> None:
        """All parts are there."""


def _three(values: Any) -> Any:
    a, b, c = values
    return (a, b, c)
