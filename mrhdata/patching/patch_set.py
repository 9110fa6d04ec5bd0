"""A set of planned patches, and how it is read: order, plan, prefetch and extraction put together."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from mrhdata.errors import DataError
from mrhdata.patching.extract import PatchExtractor, extract_nearby
from mrhdata.patching.plan import Plan
from mrhdata.patching.positions import Ints
from mrhdata.patching.prefetch import BufferPool, ReadAhead, decoders
from mrhdata.patching.sources import TensorNames
from mrhdata.patching.subjects import subject_name
from mrhdata.patching.tiles import TensorSource
from mrhdata.volume.construct import PLANES

if TYPE_CHECKING:
    import xarray as xr

    Inputs = xr.DataArray | Mapping[str, xr.DataArray]

Floats = NDArray[np.float32]

#: Subjects that are named where patches are shown.
_NAMED = 4

#: Batches in flight: one being cut, two waiting, one in the hands of the trainer.
_IN_FLIGHT = 4


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


class PatchSet:
    """Planned patches as they are read; :class:`mrhdata.patching.Patches` adds what users do with them.

    Attributes are those of :class:`mrhdata.patching.Patches`.
    """

    def __init__(
        self,
        streams: Sequence[Sequence[TensorSource]],
        names: TensorNames,
        drawn: Sequence[tuple[Ints, Ints | None]],
        plane: str | None,
        padding: str | None,
        squeeze: bool,
        memory: int,
        context_slices: int = 0,
    ) -> None:
        self.sources, self._names = [list(s) for s in streams], names
        self._padding, self._squeeze, self.memory = padding, squeeze, memory
        first = streams[0][0]
        self.shape, self.plane, self.context_slices = first.shape, plane, context_slices
        offsets = [f"{k:+d}" if k else "" for k in range(-context_slices, context_slices + 1)]
        self.channels = [channel + offset for channel in first.channels for offset in offsets]
        self.spacing_mm = tuple(float(s) for s in first.grid.spacing)
        positions = np.concatenate([p for p, _ in drawn])
        subject = np.repeat(np.arange(len(drawn)), [len(p) for p, _ in drawn])
        given = np.concatenate([np.arange(len(p)) for p, _ in drawn])
        # Rows of one chunk stand together: they run from one start to the next.
        ends = np.cumsum([0, *(int(np.prod(s[0].tiles)) for s in streams)])
        chunk = np.concatenate([b + s[0].cells(p) for b, s, (p, _) in zip(ends[:-1], streams, drawn, strict=True)])
        by = np.argsort(chunk, kind="stable")
        self.positions, self.subject, self.draw_index = positions[by], subject[by], given[by]
        self._chunk = chunk[by]
        self._starts = self._runs()
        known = [c for _, c in drawn if c is not None]
        self.classes = np.concatenate(known)[by] if len(known) == len(drawn) else None
        every = [stream for of_subject in self.sources for stream in of_subject]
        self.in_memory = 2 * sum(s.voxel_bytes * int(np.prod(s.grid.shape)) for s in every) <= memory
        if self.in_memory:
            for stream in every:
                stream.join()
        self._plans: dict[int, Plan] = {}
        self._tiles: dict[int, np.ndarray] = {}
        self._rooms = BufferPool()

    def _only(self, rows: Ints) -> Self:
        """The same patches, but fewer."""
        if not len(rows):
            raise DataError("a part has no patches; give it a larger share, or a smaller guard")
        # As when it is pickled: without plans, tiles and rooms.
        part = copy.copy(self)
        part.positions, part.subject, part.draw_index = self.positions[rows], self.subject[rows], self.draw_index[rows]
        part._chunk = self._chunk[rows]
        part._starts = part._runs()
        part.classes = None if self.classes is None else self.classes[rows]
        return part

    def _runs(self) -> Ints:
        """First row of every stored chunk, and the end."""
        return np.concatenate([[0], np.flatnonzero(np.diff(self._chunk)) + 1, [len(self)]])

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        numbers = np.unique(self.subject)
        return (
            f"Patches({len(self)} of {self.shape}, {_counted(len(self.channels), 'channel')}, "
            f"{_counted(len(numbers), 'subject')}{self._who(numbers)}, {_counted(len(self._starts) - 1, 'chunk')})"
        )

    def _who(self, numbers: Ints) -> str:
        """Names of a few subjects, where their files say them."""
        if len(numbers) > _NAMED:
            return ""
        of_each = [subject_name(source for stream in self.sources[n] for source in stream.origins) for n in numbers]
        known = [name for name in of_each if name is not None]
        return f" ({', '.join(known)})" if len(known) == len(numbers) else ""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tiles": {}, "_plans": {}, "_rooms": BufferPool()}

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"patch {index} of {len(self)}")
        return self.arranged([self.tensor(part[0]) for part in self.gather(np.array([index % len(self)]))])

    def batch_bytes(self, batch_size: int) -> int:
        """Bytes of one batch."""
        return batch_size * sum(4 * len(s.channels) * int(np.prod(s.shape)) for s in self.sources[0])

    def digest(self) -> int:
        """Number that stands for the positions and all else that their order hangs on."""
        content = hashlib.blake2s(repr((self.shape, self.memory, self._padding)).encode(), digest_size=6)
        for part in (self.positions, self.subject, self._chunk):
            content.update(part.tobytes())
        return int.from_bytes(content.digest(), "little")

    def plan(self, batch_size: int = 64) -> Plan:
        """The plan that batches of this size are read by."""
        if batch_size not in self._plans:
            left = self.memory - _IN_FLIGHT * self.batch_bytes(batch_size)
            if left <= 0:
                raise DataError(
                    f"memory of {self.memory} bytes does not hold {_IN_FLIGHT} batches of "
                    f"{self.batch_bytes(batch_size)} bytes; give more, or a smaller batch_size"
                )
            self._plans[batch_size] = Plan(
                self.sources, self.positions, self.subject, left, self._padding, self.in_memory
            )
        return self._plans[batch_size]

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
        rank: tuple[int, int] = (0, 1),
        worker: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Ints, list[Floats]]]:
        """Batches of one epoch as NumPy arrays, read and cut as they are asked for.

        Parameters
        ----------
        batch_size : int
        shuffle : bool
            Without it rows come chunk by chunk, each chunk once.
        seed, epoch : int
            The same give the same order.
        start : int
            Batches to leave out.
        rank, worker : (int, int)
            This one's number and how many there are. Ranks share out the rows; workers take batches in
            turn, so that together they give the order of one.

        Yields
        ------
        rows : (b,) int64 array
        arrays : list of (b, C, z, y, x) float32 arrays
            One for each tensor of a patch.
        """
        plan = self.plan(batch_size)
        rows = plan.rows(shuffle, seed, epoch, batch_size, *rank)
        batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)][start:][worker[0] :: worker[1]]
        if not batches:
            return
        if plan.in_memory and plan.covered_by(self._tiles):
            cutter = PatchExtractor(plan, self._tiles, 0)
            yield from ((batch, self._folded(cutter.cut(batch))) for batch in batches)
            return
        loads = plan.loads(np.concatenate(batches), batch_size).without(self._tiles)
        # Tiles that stay have memory of their own; the others take turns.
        tiles, rooms = (self._tiles, None) if plan.in_memory else ({}, self._rooms)
        with ReadAhead(loads, tiles, plan.read, plan.budget - loads.copied, decoders(), rooms) as ahead:
            cutter = PatchExtractor(plan, tiles, loads.copied)
            for number, batch in enumerate(batches):
                ahead.wait_for(number)
                arrays = cutter.cut(batch)
                ahead.done_with(number)
                yield batch, self._folded(arrays)

    def gather(self, rows: Ints) -> list[Floats]:
        """Inputs, and target if there is one, of any patches: (n, C, z, y, x) float32 arrays each.

        What rows of one chunk need is read once; nothing is kept.
        """
        rows = np.asarray(rows, dtype=np.int64)
        out = [np.empty((len(rows), len(s.channels), *s.shape), np.float32) for s in self.sources[0]]
        chunk = np.searchsorted(self._starts, rows, side="right")
        by = np.argsort(chunk, kind="stable")
        for chosen in np.split(by, np.flatnonzero(np.diff(chunk[by])) + 1) if len(rows) else []:
            for whole, stream in zip(out, self.sources[int(self.subject[rows[chosen[0]]])], strict=True):
                whole[chosen] = extract_nearby(stream, stream.starts(self.positions[rows[chosen]]), self._padding)
        return self._folded(out)

    def _folded(self, parts: list[Floats]) -> list[Floats]:
        """Neighbouring planes of the first tensor as channels: those of one channel stand together."""
        if not self.context_slices or self.plane is None:
            return parts
        axis = 2 + PLANES[self.plane]
        planes = np.moveaxis(parts[0], axis, 2)
        channels = planes.reshape(len(planes), -1, *planes.shape[3:])
        return [np.expand_dims(channels, axis), *parts[1:]]

    def arranged(self, parts: Sequence[Any]) -> Any:
        """Tensors as a patch hands them out: input, or (input, target), named where there are several."""
        return self._names.arranged(parts)

    def tensor(self, part: Floats) -> Any:
        """An array as a tensor, squeezed where asked; no copy."""
        import torch

        return torch.from_numpy(self._squeezed(part))

    def _squeezed(self, part: Floats) -> Floats:
        """Without the patch axes of length 1, where asked: the last three."""
        if not self._squeeze:
            return part
        return part.squeeze(tuple(axis - 3 for axis in range(3) if part.shape[axis - 3] == 1))

    def affine(self, rows: NDArray[np.integer[Any]] | None = None, stream: int = 0) -> NDArray[np.float64]:
        """From the voxel index (z, y, x, 1) within each patch to world (X, Y, Z, 1) mm: (n, 4, 4).

        Of the first tensor; those of volumes on other grids are `stream` 1 and so on.
        """
        chosen = np.arange(len(self)) if rows is None else np.asarray(rows)
        out = np.empty((len(chosen), 4, 4))
        for number, streams in enumerate(self.sources):
            mine = np.flatnonzero(self.subject[chosen] == number)
            affine, starts = streams[stream].grid.affine, streams[stream].starts(self.positions[chosen[mine]])
            out[mine] = affine
            if self.context_slices and self.plane is not None and not stream:
                # The plane in the middle is where the patch lies.
                starts = starts + self.context_slices * np.eye(3, dtype=np.int64)[PLANES[self.plane]]
            out[mine, :3, 3] += starts @ affine[:3, :3].T
        return out

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """Runs of rows, first and one after last, that lie in one stored chunk each."""
        return list(itertools.pairwise(self._starts.tolist()))

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name of each tensor, and its channels and lengths (C, z, y, x)."""
        found: dict[str, tuple[int, ...]] = {
            n: (len(s.channels), *s.shape) for n, s in zip(self._names.flat(), self.sources[0], strict=True)
        }
        if self.context_slices and self.plane is not None:
            first = self._names.flat()[0]
            lengths = list(self.shape)
            lengths[PLANES[self.plane]] = 1
            found[first] = (len(self.channels), *lengths)
        return found
