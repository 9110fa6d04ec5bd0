"""A set of planned patches: order, plan, prefetch and extraction combined into batches."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from mrhdata._runtime.arguments import described
from mrhdata._runtime.memory import reading_threads, remaining_memory
from mrhdata.errors import DataError, ParameterError
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

#: Most subjects that a summary of patches lists by name.
_MAX_SUBJECT_NAMES = 4

#: Batches in memory at a time: one being cut, two waiting, one in the training step.
_BATCHES_IN_FLIGHT = 4


def _pluralise(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


class PatchSet:
    """Planned patches and their batches; :class:`mrhdata.patching.Patches` adds loaders, exports, splits and summaries.

    Attributes are those of :class:`mrhdata.patching.Patches`.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[TensorSource]],
        names: TensorNames,
        drawn: Sequence[tuple[Ints, Ints | None]],
        plane: str | None,
        padding: str | None,
        squeeze: bool,
        memory: int,
        context_slices: int = 0,
    ) -> None:
        self.sources, self._names = [list(s) for s in sources], names
        self._padding, self._squeeze, self.memory = padding, squeeze, memory
        first = sources[0][0]
        self.shape, self.plane, self.context_slices = first.shape, plane, context_slices
        offsets = [f"{k:+d}" if k else "" for k in range(-context_slices, context_slices + 1)]
        self.channels = [channel + offset for channel in first.channels for offset in offsets]
        self.spacing_mm = tuple(float(s) for s in first.grid.spacing)
        positions = np.concatenate([p for p, _ in drawn])
        subject = np.repeat(np.arange(len(drawn)), [len(p) for p, _ in drawn])
        draw_index = np.concatenate([np.arange(len(p)) for p, _ in drawn])
        # Patches are sorted by chunk, so that those of one chunk are consecutive.
        ends = np.cumsum([0, *(int(np.prod(s[0].tiles)) for s in sources)])
        chunk = np.concatenate([b + s[0].home_tiles(p) for b, s, (p, _) in zip(ends[:-1], sources, drawn, strict=True)])
        by = np.argsort(chunk, kind="stable")
        self.positions, self.subject, self.draw_index = positions[by], subject[by], draw_index[by]
        self._chunk = chunk[by]
        self._first_of_chunk = self._chunk_starts()
        known = [c for _, c in drawn if c is not None]
        self.classes = np.concatenate(known)[by] if len(known) == len(drawn) else None
        all_sources = [source for subject_sources in self.sources for source in subject_sources]
        self._voxel_memory = self._remaining_memory(all_sources)
        voxels = sum(s.voxel_bytes * int(np.prod(s.grid.shape)) for s in all_sources)
        self.in_memory = 2 * voxels <= self._voxel_memory
        if self.in_memory:
            for source in all_sources:
                source.join()
        self._plans: dict[int, Plan] = {}
        self._tiles: dict[int, np.ndarray] = {}
        self._buffers = BufferPool()

    def _remaining_memory(self, sources: Sequence[TensorSource]) -> int:
        """Return the bytes for tiles and batches next to the part of a file that takes most while it is read.

        Raises
        ------
        ParameterError
            That part does not fit with a tile of its file.
        """
        largest = max(sources, key=lambda source: source.smallest_bytes)
        # Small patches are gathered from a joined copy.
        tile = int(np.prod(largest.tile)) * largest.voxel_bytes * (2 if largest.small else 1)
        self._decoders = reading_threads(largest.smallest_bytes, self.memory, decoders())
        return remaining_memory(largest.smallest_bytes, self.memory, ", ".join(sorted(largest.origins)), tile)

    def _subset(self, indices: Ints) -> Self:
        """Return a set of some of the patches."""
        if not len(indices):
            raise DataError("a part of a split must have patches; got none. Pass a larger share or a smaller guard")
        # Plans, tiles and buffers are not copied, as in pickling.
        part = copy.copy(self)
        part.positions, part.subject, part.draw_index = (
            self.positions[indices],
            self.subject[indices],
            self.draw_index[indices],
        )
        part._chunk = self._chunk[indices]
        part._first_of_chunk = part._chunk_starts()
        part.classes = None if self.classes is None else self.classes[indices]
        return part

    def _chunk_starts(self) -> Ints:
        """Return the index of the first patch of every stored chunk, and the number of patches."""
        return np.concatenate([[0], np.flatnonzero(np.diff(self._chunk)) + 1, [len(self)]])

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        numbers = np.unique(self.subject)
        channels, subjects, chunks = (
            _pluralise(count, noun)
            for count, noun in (
                (len(self.channels), "channel"),
                (len(numbers), "subject"),
                (len(self._first_of_chunk) - 1, "chunk"),
            )
        )
        return f"Patches({len(self)} of {self.shape}, {channels}, {subjects}{self._subject_names(numbers)}, {chunks})"

    def _subject_names(self, numbers: Ints) -> str:
        """Return the names of a few subjects in parentheses, if all their files name them."""
        if len(numbers) > _MAX_SUBJECT_NAMES:
            return ""
        names = [subject_name(origin for source in self.sources[n] for origin in source.origins) for n in numbers]
        known = [name for name in names if name is not None]
        return f" ({', '.join(known)})" if len(known) == len(numbers) else ""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tiles": {}, "_plans": {}, "_buffers": BufferPool()}

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, int | np.integer):
            raise ParameterError(f"index must be a whole number; got {described(index)}. Pass the number of a patch")
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be less than {len(self)} patches; got {index}")
        return self.arranged([self.tensor(array[0]) for array in self.gather(np.array([index % len(self)]))])

    def batch_bytes(self, batch_size: int) -> int:
        """Return the bytes of one batch."""
        return batch_size * sum(4 * len(s.channels) * int(np.prod(s.shape)) for s in self.sources[0])

    def digest(self) -> int:
        """Return a fingerprint of the positions, the patch shape and the memory budget.

        Two loaders with equal fingerprints yield patches in the same order.
        """
        content = hashlib.blake2s(repr((self.shape, self.memory, self._padding)).encode(), digest_size=6)
        for array in (self.positions, self.subject, self._chunk):
            content.update(array.tobytes())
        return int.from_bytes(content.digest(), "little")

    def plan(self, batch_size: int = 64) -> Plan:
        """Return the plan for batches of this size."""
        if batch_size not in self._plans:
            voxel_bytes = self._voxel_memory - _BATCHES_IN_FLIGHT * self.batch_bytes(batch_size)
            if voxel_bytes <= 0:
                raise ParameterError(
                    f"memory must hold {_BATCHES_IN_FLIGHT} batches of {self.batch_bytes(batch_size)} bytes; got "
                    f"{self.memory} bytes. Pass more memory or a smaller batch_size"
                )
            self._plans[batch_size] = Plan(
                self.sources, self.positions, self.subject, voxel_bytes, self._padding, self.in_memory
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
        even: bool = False,
        part: tuple[int, int] = (0, 1),
        reserve: int = 0,
    ) -> Iterator[tuple[Ints, list[Floats]]]:
        """Yield the batches of one epoch as NumPy arrays; each is read and cut on request.

        Parameters
        ----------
        batch_size : int
        shuffle : bool
            Draw the patches in random order. False yields them chunk by chunk, each chunk once.
        seed, epoch : int
            Equal values give the same order.
        start : int
            Number of batches to skip.
        rank, worker : (int, int)
            Number of this process, and number of processes. Ranks divide the patches; workers take batches in turn,
            so that together they yield the order of a single worker.
        even : bool
            Repeat one patch in ranks that have one less than others, so that all have as many.
        part : (int, int)
            Number of this process, and number of processes that share every batch. A process without a patch of a short
            batch gets its first one.
        reserve : int
            Bytes of the memory budget that the caller needs.

        Yields
        ------
        indices : (b,) int64 array
            Patches of the batch by index.
        arrays : list of (b, C, z, y, x) float32 arrays
            One array for each tensor of a patch.
        """
        plan = self.plan(batch_size)
        indices = plan.indices(shuffle, seed, epoch, batch_size, *rank, even=even)
        batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)][start:][
            worker[0] :: worker[1]
        ]
        # Every so many patches of a batch, so that no part of a short batch is longer than that of a full one.
        batches = [batch[part[0] :: part[1]] if len(batch) > part[0] else batch[:1] for batch in batches]
        if not batches:
            return
        if plan.in_memory and plan.covered_by(self._tiles):
            extractor = PatchExtractor(plan, self._tiles, 0)
            yield from ((batch, self._with_context_channels(extractor.cut(batch))) for batch in batches)
            return
        loads = plan.loads(np.concatenate(batches), len(batches[0])).without(self._tiles)
        # Tiles that stay in memory own it; the others share buffers.
        tiles, buffers = (self._tiles, None) if plan.in_memory else ({}, self._buffers)
        with ReadAhead(loads, tiles, plan.read, plan.budget - loads.copied - reserve, self._decoders, buffers) as ahead:
            extractor = PatchExtractor(plan, tiles, loads.copied)
            for number, batch in enumerate(batches):
                ahead.wait_for(number)
                arrays = extractor.cut(batch)
                ahead.done_with(number)
                yield batch, self._with_context_channels(arrays)

    def gather(self, indices: Ints) -> list[Floats]:
        """Return the input and target arrays of some patches: (n, C, z, y, x) float32 arrays each.

        The box around the patches of one chunk is read once; nothing stays in memory.
        """
        indices = np.asarray(indices, dtype=np.int64)
        out = [np.empty((len(indices), len(s.channels), *s.shape), np.float32) for s in self.sources[0]]
        chunk = np.searchsorted(self._first_of_chunk, indices, side="right")
        by = np.argsort(chunk, kind="stable")
        for chosen in np.split(by, np.flatnonzero(np.diff(chunk[by])) + 1) if len(indices) else []:
            for array, source in zip(out, self.sources[int(self.subject[indices[chosen[0]]])], strict=True):
                array[chosen] = extract_nearby(source, source.starts(self.positions[indices[chosen]]), self._padding)
        return self._with_context_channels(out)

    def _with_context_channels(self, arrays: list[Floats]) -> list[Floats]:
        """Turn the context slices of the first tensor into channels; slices of one channel are consecutive."""
        if not self.context_slices or self.plane is None:
            return arrays
        axis = 2 + PLANES[self.plane]
        planes = np.moveaxis(arrays[0], axis, 2)
        channels = planes.reshape(len(planes), -1, *planes.shape[3:])
        return [np.expand_dims(channels, axis), *arrays[1:]]

    def arranged(self, arrays: Sequence[Any]) -> Any:
        """Return tensors as a patch delivers them: input, or (input, target); several volumes are a mapping by name."""
        return self._names.arranged(arrays)

    def tensor(self, array: Floats) -> Any:
        """Return an array as a tensor without a copy, squeezed if the patches are."""
        import torch

        return torch.from_numpy(self._squeezed(array))

    def _squeezed(self, array: Floats) -> Floats:
        """Drop those of the last three axes that have length 1, if `squeeze` was passed."""
        if not self._squeeze:
            return array
        return array.squeeze(tuple(axis - 3 for axis in range(3) if array.shape[axis - 3] == 1))

    def affine(self, indices: NDArray[np.integer[Any]] | None = None, stream: int = 0) -> NDArray[np.float64]:
        """Return the affines from the voxel index (z, y, x, 1) within a patch to world (X, Y, Z, 1) mm: (n, 4, 4).

        Parameters
        ----------
        indices : int array, optional
            Patches by index; all by default.
        stream : int
            Number of the tensor. The first is 0; volumes on other grids have their own affines.
        """
        chosen = np.arange(len(self)) if indices is None else np.asarray(indices)
        out = np.empty((len(chosen), 4, 4))
        for number, sources in enumerate(self.sources):
            own = np.flatnonzero(self.subject[chosen] == number)
            affine, starts = sources[stream].grid.affine, sources[stream].starts(self.positions[chosen[own]])
            out[own] = affine
            if self.context_slices and self.plane is not None and not stream:
                # The affine is that of the middle slice.
                starts = starts + self.context_slices * np.eye(3, dtype=np.int64)[PLANES[self.plane]]
            out[own, :3, 3] += starts @ affine[:3, :3].T
        return out

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """Ranges of patches that lie in one stored chunk each: first index, and the index after the last."""
        return list(itertools.pairwise(self._first_of_chunk.tolist()))

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape (C, z, y, x) of each tensor by name."""
        shapes: dict[str, tuple[int, ...]] = {
            n: (len(s.channels), *s.shape) for n, s in zip(self._names.flat(), self.sources[0], strict=True)
        }
        if self.context_slices and self.plane is not None:
            first = self._names.flat()[0]
            lengths = list(self.shape)
            lengths[PLANES[self.plane]] = 1
            shapes[first] = (len(self.channels), *lengths)
        return shapes
