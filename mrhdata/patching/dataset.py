"""Patches of co-registered volumes: planned as integers, each chunk read once, cut where it lies.

Positions are known before a voxel is read. `schedule` orders them, `planning` says which tiles that
takes and when, `reading` decodes them ahead, `cutting` copies patches out of them.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrhdata._runtime.memory import in_bytes
from mrhdata.errors import DataError, GridError
from mrhdata.patching import sources
from mrhdata.patching.extract import Cutter, cut_alone
from mrhdata.patching.plan import Plan
from mrhdata.patching.positions import Ints, shares
from mrhdata.patching.prefetch import ReadAhead, Rooms, decoders
from mrhdata.patching.samplers import Field, chooser
from mrhdata.patching.sources import Names
from mrhdata.patching.splits import folds_of, parts_of, shared_with
from mrhdata.patching.tiles import Part, Stream
from mrhdata.volume.construct import PLANES

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from mrhdata.patching.loader import Batches, Loader
    from mrhdata.patching.summary import Diagnosis, Explanation

    Inputs = xr.DataArray | Mapping[str, xr.DataArray]

Floats = NDArray[np.float32]

PADDING = ("constant", "edge", "reflect")
#: Subjects that are named where patches are shown.
_NAMED = 4
#: Who was scanned, in a path such as BIDS has them.
_SUBJECT = re.compile(r"(?:^|[/\\])(sub-[A-Za-z0-9]+)")
#: Batches in flight: one being cut, two waiting, one in the hands of the trainer.
_IN_FLIGHT = 4


def patches(  # noqa: PLR0913  (one call says all about a training set)
    inputs: Inputs | Sequence[Inputs],
    target: Inputs | Sequence[Inputs] | None = None,
    *,
    shape: int | Sequence[int] | Mapping[str, Any],
    target_shape: int | Sequence[int] | Mapping[str, Any] | None = None,
    stride: int | Sequence[int] | None = None,
    at: Any = None,
    plane: str | None = None,
    neighbours: int = 0,
    where: xr.DataArray | Sequence[xr.DataArray] | None = None,
    inside: float | None = None,
    align: str = "same",
    padding: str | None = None,
    weights: Sequence[float] | None = None,
    squeeze: bool = False,
    memory: str | int = "1 GB",
    seed: int = 0,
) -> Patches:
    """Plan patches over the volumes of one or several subjects.

    Parameters
    ----------
    inputs : volume, mapping of volumes, or a sequence of either (one item per subject)
        The volumes of a subject lie on one grid and are stacked along C in the given order; for other
        grids see `align`.
    target : the same, optional
    shape, stride : int or (3,) sequence of int
        Voxels along z, y, x of the first input; one number stands for all axes but the fixed one of
        `plane`. The stride is the shape where it is not given. With ``align="own"`` `shape` may be a
        mapping with an item for some of the inputs, the first one among them.
    target_shape : the same, optional
        Where the target is larger or smaller than the input; both have one centre.
    at : chooser or (n, 3) int array (or one per subject), optional
        Instead of the grid of `stride`: one of :mod:`mrhdata.patching.samplers` (`Uniform`, `Balanced`, `Weighted`,
        `Around`), or first voxels of your own.
    plane : {"axial", "coronal", "sagittal"}, optional
        Flat patches: length 1, stride 1 along z, y or x.
    neighbours : int
        Planes on each side of `plane` that the first input has as further channels (2.5D).
    where : mask volume, or one per subject, optional
        Patches are kept where it is not zero.
    inside : float, optional
        Share of a patch's voxels that must lie in the mask; by default the centre voxel must.
    align : {"same", "own", "first"}
        ``"same"`` refuses volumes that do not lie on the grid of the first input. ``"first"`` resamples
        them to its voxels while reading: images linearly, labels and masks from the nearest voxel, from
        the stored level of an OME-Zarr nearest in spacing. ``"own"`` reads each at its own voxels, about
        the same world point; then patches are mappings by name. Patches lie where all volumes have
        voxels for them, unless there is `padding`.
    padding : {"constant", "edge", "reflect"}, optional
        Let patches reach beyond the volume, and what is there: 0, the nearest voxel, a mirror image.
    weights : sequence of float, optional
        Share of each subject in the patches of a chooser that draws a number; equal by default.
    squeeze : bool
        Drop the patch axes of length 1.
    memory : str or int
        Bytes that decoded voxels and batches may take together, such as ``"512 MB"``.
    seed : int
        For choosers that draw.

    Returns
    -------
    patches : Patches

    Raises
    ------
    GridError
        Grids or spaces of one subject differ, channels differ between subjects, or no patch fits.
    DataError
        The mask leaves no patch.

    Examples
    --------
    >>> import mrhdata
    >>> t2 = mrhdata.volume.from_array(np.arange(64).reshape(4, 4, 4), spacing=(1, 1, 1))
    >>> p = mrhdata.patches({"t2": t2}, target=t2, shape=2)
    >>> len(p), p.positions[1].tolist(), [tuple(t.shape) for t in p[1]]
    (8, [0, 0, 2], [(1, 2, 2, 2), (1, 2, 2, 2)])
    """
    if align not in sources.ALIGN:
        raise GridError(f"align is one of {', '.join(sources.ALIGN)}, not {align!r}")
    if padding not in (None, *PADDING):
        raise GridError(f"padding is one of {', '.join(PADDING)}, not {padding!r}")
    subjects = _per_subject(inputs)
    targets = _one_name(_per_subject(target)) if target is not None else [None] * len(subjects)
    masks = _per_subject(where) if where is not None else [None] * len(subjects)
    if not len(subjects) == len(targets) == len(masks) > 0:
        raise GridError(
            f"there are {len(subjects)} subjects of inputs, {len(targets)} of targets and {len(masks)} masks; "
            "give one of each per subject"
        )
    shapes = sources.Shapes(shape, target_shape, plane, neighbours)
    layout = _laid_out(subjects, targets, shapes, align)
    how = chooser(at, sources.lengths(layout[0][1][0].shape if stride is None else stride, plane, "stride"))
    fields = []
    for number, (given, (_, streams), mask) in enumerate(zip(subjects, layout, masks, strict=True)):
        with _said_of(number, given, len(subjects) > 1):
            fields.append(Field(_first(given), streams, mask, inside, padding is not None, align != "same"))
    rng = np.random.default_rng((seed, len(fields)))
    share = [1.0] * len(fields) if weights is None else [float(w) for w in weights]
    if len(share) != len(fields):
        raise GridError(f"there are {len(share)} weights for {len(fields)} subjects; give one for each")
    counts = [0] * len(fields) if how.n is None else shares(how.n, share)
    drawn = [how.draw(field, i, n, rng) for i, (field, n) in enumerate(zip(fields, counts, strict=True))]
    if not sum(len(positions) for positions, _ in drawn):
        raise DataError(
            "the mask leaves no patch; check that it is not empty and lies over the inputs"
            if where is not None
            else "there is no place where all volumes have the voxels of a patch; use padding=, or smaller patches"
        )
    every = [streams for _, streams in layout]
    return Patches(every, layout[0][0], drawn, plane, padding, squeeze, in_bytes(memory, least=0), neighbours)


def _laid_out(
    subjects: Sequence[Inputs], targets: Sequence[Inputs | None], shapes: sources.Shapes, align: str
) -> list[tuple[Names, list[Stream]]]:
    """Names and streams of every subject, which are alike."""
    layout: list[tuple[Names, list[Stream]]] = []
    for number, (given, target) in enumerate(zip(subjects, targets, strict=True)):
        with _said_of(number, given, len(subjects) > 1):
            names, streams = sources.streams_of(given, target, shapes, align)
            layout.append((names, streams))
            _check_alike(layout[0], layout[-1])
    return layout


def _check_alike(first_one: tuple[Names, list[Stream]], other: tuple[Names, list[Stream]]) -> None:
    """Raise `GridError` where a subject has other volumes, or patches of other shapes, than the first."""
    (of_first, firsts), (of_other, others) = ((names.apart(s), s) for names, s in (first_one, other))
    said = ("subjects have different inputs", "subjects have different targets")
    for sentence, theirs, ours in zip(said, of_first, of_other, strict=True):
        if theirs != ours:
            remedy = (
                "give all mappings in one order"
                if sorted(theirs) == sorted(ours)
                else f'give all mappings with the same names, such as {{"{(theirs or ours)[0]}": volume}}'
            )
            raise GridError(f"{sentence}: {theirs} and {ours}; {remedy}")
    for mine, first in zip(others, firsts, strict=True):
        if mine.shape != first.shape:
            raise GridError(
                f"patches of subjects would be {first.shape} and {mine.shape} voxels, as their spacings differ; "
                "give shape= or target_shape= an item for every volume"
            )


@contextmanager
def _said_of(number: int, inputs: Inputs, several: bool) -> Iterator[None]:
    """Say of which subject an error speaks, where there are several."""
    try:
        yield
    except GridError as error:
        if not several:
            raise
        known = _person(source for volume in sources.named(inputs).values() for source in Part(volume).source)
        who = f"{number} ({known})" if known else f"{number}"
        raise GridError(f"subject {who}: {error}") from error


def _person(sources: Iterable[str]) -> str | None:
    """Whose volumes these are, by the names of their files and folders; None where those do not say, or disagree."""
    found = {named[-1] for source in sources if (named := _SUBJECT.findall(source))}
    return found.pop() if len(found) == 1 else None


def _first(inputs: Inputs) -> xr.DataArray:
    return next(iter(sources.named(inputs).values()))


def _per_subject(given: Any) -> list[Any]:
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def _one_name(targets: list[Any]) -> list[Any]:
    """Targets that are given by themselves are one target, whatever their files are called."""
    if any(target is None or isinstance(target, Mapping) for target in targets):
        return targets
    return [target.rename(targets[0].name) for target in targets]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


class Patches:
    """Planned patches; made by :func:`mrhdata.patches`.

    ``len(p)``, ``p[i]`` -> ``(input, target)`` tensors (only ``input`` without a target), float32,
    (C, z, y, x). Works as a map-style data set in any ``DataLoader``; :meth:`loader` is faster.

    Attributes
    ----------
    positions : (n, 3) int64 array
        First voxel of each patch in its subject's first input, z, y, x; those of one stored chunk
        stand together.
    subject : (n,) int64 array
        Number of the subject.
    given : (n,) int64 array
        Where each stood among the positions of its subject as they were chosen or given.
    classes : (n,) int64 array or None
        Class that a patch was drawn for, by choosers that know one.
    shape : tuple of int
        Patch length along z, y, x, neighbouring planes included.
    plane : str or None
    neighbours : int
        Planes on each side that are channels of the first tensor.
    channels : list of str
    streams : list of list of Stream
        What the tensors of each subject are cut from.
    resident : bool
        All voxels fit half of the memory and stay there after the first pass.
    """

    def __init__(
        self,
        streams: Sequence[Sequence[Stream]],
        names: Names,
        drawn: Sequence[tuple[Ints, Ints | None]],
        plane: str | None,
        padding: str | None,
        squeeze: bool,
        memory: int,
        neighbours: int = 0,
    ) -> None:
        self.streams, self._names = [list(s) for s in streams], names
        self._padding, self._squeeze, self.memory = padding, squeeze, memory
        first = streams[0][0]
        self.shape, self.plane, self.neighbours = first.shape, plane, neighbours
        offsets = [f"{k:+d}" if k else "" for k in range(-neighbours, neighbours + 1)]
        self.channels = [channel + offset for channel in first.channels for offset in offsets]
        self.spacing_mm = tuple(float(s) for s in first.grid.spacing)
        positions = np.concatenate([p for p, _ in drawn])
        subject = np.repeat(np.arange(len(drawn)), [len(p) for p, _ in drawn])
        given = np.concatenate([np.arange(len(p)) for p, _ in drawn])
        # Rows of one chunk stand together: they run from one start to the next.
        ends = np.cumsum([0, *(int(np.prod(s[0].tiles)) for s in streams)])
        chunk = np.concatenate([b + s[0].cells(p) for b, s, (p, _) in zip(ends[:-1], streams, drawn, strict=True)])
        by = np.argsort(chunk, kind="stable")
        self.positions, self.subject, self.given = positions[by], subject[by], given[by]
        self._chunk = chunk[by]
        self._starts = self._runs()
        known = [c for _, c in drawn if c is not None]
        self.classes = np.concatenate(known)[by] if len(known) == len(drawn) else None
        every = [stream for of_subject in self.streams for stream in of_subject]
        self.resident = 2 * sum(s.voxel_bytes * int(np.prod(s.grid.shape)) for s in every) <= memory
        if self.resident:
            for stream in every:
                stream.join()
        self._plans: dict[int, Plan] = {}
        self._tiles: dict[int, np.ndarray] = {}
        self._rooms = Rooms()

    def _only(self, rows: Ints) -> Patches:
        """The same patches, but fewer."""
        if not len(rows):
            raise DataError("a part has no patches; give it a larger share, or a smaller guard")
        # As when it is pickled: without plans, tiles and rooms.
        part = copy.copy(self)
        part.positions, part.subject, part.given = self.positions[rows], self.subject[rows], self.given[rows]
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
        of_each = [_person(source for stream in self.streams[n] for source in stream.sources) for n in numbers]
        known = [name for name in of_each if name is not None]
        return f" ({', '.join(known)})" if len(known) == len(numbers) else ""

    def _repr_html_(self) -> str:
        from mrhdata.patching.summary import as_html

        return as_html(self)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tiles": {}, "_plans": {}, "_rooms": Rooms()}

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"patch {index} of {len(self)}")
        return self.arranged([self.tensor(part[0]) for part in self.gather(np.array([index % len(self)]))])

    def batch_bytes(self, batch_size: int) -> int:
        """Bytes of one batch."""
        return batch_size * sum(4 * len(s.channels) * int(np.prod(s.shape)) for s in self.streams[0])

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
                self.streams, self.positions, self.subject, left, self._padding, self.resident
            )
        return self._plans[batch_size]

    def stream(
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
        if plan.resident and plan.covered_by(self._tiles):
            cutter = Cutter(plan, self._tiles, 0)
            yield from ((batch, self._folded(cutter.cut(batch))) for batch in batches)
            return
        loads = plan.loads(np.concatenate(batches), batch_size).without(self._tiles)
        # Tiles that stay have memory of their own; the others take turns.
        tiles, rooms = (self._tiles, None) if plan.resident else ({}, self._rooms)
        with ReadAhead(loads, tiles, plan.read, plan.budget - loads.copied, decoders(), rooms) as ahead:
            cutter = Cutter(plan, tiles, loads.copied)
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
        out = [np.empty((len(rows), len(s.channels), *s.shape), np.float32) for s in self.streams[0]]
        chunk = np.searchsorted(self._starts, rows, side="right")
        by = np.argsort(chunk, kind="stable")
        for chosen in np.split(by, np.flatnonzero(np.diff(chunk[by])) + 1) if len(rows) else []:
            for whole, stream in zip(out, self.streams[int(self.subject[rows[chosen[0]]])], strict=True):
                whole[chosen] = cut_alone(stream, stream.starts(self.positions[rows[chosen]]), self._padding)
        return self._folded(out)

    def _folded(self, parts: list[Floats]) -> list[Floats]:
        """Neighbouring planes of the first tensor as channels: those of one channel stand together."""
        if not self.neighbours or self.plane is None:
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

    def dataset(
        self,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: tuple[int, int] | None = None,
        drop_last: bool = False,
        transform: Callable[..., Any] | None = None,
        each: bool = False,
        info: bool = False,
    ) -> Batches:
        """An ``IterableDataset`` of whole batches, for any ``DataLoader`` with ``batch_size=None``.

        Parameters
        ----------
        batch_size, shuffle, seed
            The same give the same orders.
        rank : (int, int), optional
            Number of this process and how many share the patches; PyTorch's own where it runs distributed.
        drop_last : bool
            Leave out the last batch where it is not full; all ranks then have as many.
        transform : callable, optional
            Takes input and target (or the input alone) and returns them, a batch at a time, or with
            `each` a patch at a time.
        info : bool
            Batches end in a mapping of ``subject`` (b,), ``position`` (b, 3) and ``affine`` (b, 4, 4).
        """
        from mrhdata.patching.loader import Batches

        return Batches(
            self,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            rank=rank,
            drop_last=drop_last,
            transform=transform,
            each=each,
            info=info,
        )

    def loader(
        self,
        batch_size: int,
        *,
        ahead: int | None = None,
        num_workers: int = 0,
        start_method: str = "forkserver",
        pin_memory: bool = False,
        device: Any = None,
        **options: Any,
    ) -> Loader:
        """Batches ``(input, target)``, (B, C, z, y, x) float32, cut ahead of the training step.

        Each pass over it is the next epoch, in another order. It can be stopped after any batch and go
        on from its ``state_dict``.

        Parameters
        ----------
        batch_size : int
        ahead : int, optional
            Batches (or groups of small ones) that wait, made by a thread of this process; 2, or 0 for small
            patches of volumes that stay in memory, which cost less to cut than to hand over.
        num_workers : int
            Processes that make batches instead, for a transform that is slow. Each decodes what its
            batches need, and has `memory` to itself.
        start_method : {"forkserver", "spawn", "fork"}
            Of those processes.
        pin_memory : bool
            Batches lie in memory that a GPU copies from without waiting.
        device : optional
            Where batches are moved to, ahead of the step.
        **options
            As for :meth:`dataset`.

        Examples
        --------
        >>> import mrhdata
        >>> t2 = mrhdata.volume.from_array(np.arange(64).reshape(4, 4, 4), spacing=(1, 1, 1))
        >>> loader = mrhdata.patches(t2, shape=2).loader(4, seed=1)
        >>> [tuple(x.shape) for x in loader], loader.state_dict()["batch"]
        ([(4, 1, 2, 2, 2), (4, 1, 2, 2, 2)], 2)
        """
        from mrhdata.patching.loader import Loader

        return Loader(
            self.dataset(batch_size, **options),
            ahead=ahead,
            num_workers=num_workers,
            start_method=start_method,
            pin_memory=pin_memory,
            device=device,
        )

    def affine(self, rows: NDArray[np.integer[Any]] | None = None, stream: int = 0) -> NDArray[np.float64]:
        """From the voxel index (z, y, x, 1) within each patch to world (X, Y, Z, 1) mm: (n, 4, 4).

        Of the first tensor; those of volumes on other grids are `stream` 1 and so on.
        """
        chosen = np.arange(len(self)) if rows is None else np.asarray(rows)
        out = np.empty((len(chosen), 4, 4))
        for number, streams in enumerate(self.streams):
            mine = np.flatnonzero(self.subject[chosen] == number)
            affine, starts = streams[stream].grid.affine, streams[stream].starts(self.positions[chosen[mine]])
            out[mine] = affine
            if self.neighbours and self.plane is not None and not stream:
                # The plane in the middle is where the patch lies.
                starts = starts + self.neighbours * np.eye(3, dtype=np.int64)[PLANES[self.plane]]
            out[mine, :3, 3] += starts @ affine[:3, :3].T
        return out

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """Runs of rows, first and one after last, that lie in one stored chunk each."""
        return list(itertools.pairwise(self._starts.tolist()))

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """Name of each tensor, and its channels and lengths (C, z, y, x)."""
        found: dict[str, tuple[int, ...]] = {
            n: (len(s.channels), *s.shape) for n, s in zip(self._names.flat(), self.streams[0], strict=True)
        }
        if self.neighbours and self.plane is not None:
            first = self._names.flat()[0]
            lengths = list(self.shape)
            lengths[PLANES[self.plane]] = 1
            found[first] = (len(self.channels), *lengths)
        return found

    def to_torchio(self, index: int) -> Any:
        """One patch as a ``torchio.Subject``: an image (a label map for labels) per tensor, with its affine."""
        from mrhdata.patching.export import as_torchio

        return as_torchio(self, index)

    def to_monai(self, index: int) -> dict[str, Any]:
        """One patch as ``monai.data.MetaTensor`` by name, each with its affine."""
        from mrhdata.patching.export import as_monai

        return as_monai(self, index)

    def to_dask(self) -> Any:
        """All patches as Dask arrays, (n, C, z, y, x) each, in the order of `positions`: (input, target).

        One task reads and cuts what lies in one chunk.
        """
        from mrhdata.patching.export import as_dask

        return self.arranged(as_dask(self))

    def to_xarray(self) -> xr.Dataset:
        """All patches as a lazy ``xarray.Dataset`` along ``patch``, with subject, position and world centre."""
        from mrhdata.patching.export import as_dataset

        return as_dataset(self)

    def to_zarr(
        self, store: str | os.PathLike[str], *, seed: int = 0, shuffle: bool = True, overwrite: bool = False
    ) -> None:
        """Write a frozen training set: the variables of :meth:`to_xarray`, in the order of one shuffled epoch.

        Parameters
        ----------
        store : path
            Zarr folder; it appears when it is complete.
        seed, shuffle
            Of the order in which patches are written; ``row`` says which each is.
        overwrite : bool
        """
        from mrhdata.patching.export import write_patches

        write_patches(self, store, seed=seed, shuffle=shuffle, overwrite=overwrite)

    def split(
        self, sizes: Sequence[float], *, by: str = "subject", guard: int | None = None, seed: int = 0
    ) -> list[Patches]:
        """Parts that share no voxel, such as training, validation and test.

        Parameters
        ----------
        sizes : sequence of float
            Share of each part.
        by : {"subject", "z", "y", "x"}
            Whole subjects, or blocks along an axis of every subject; x puts mirror images of a brain on
            both sides.
        guard : int, optional
            Voxels that lie between patches of two parts, along the axis; the longest side of a patch by
            default. Patches within it are in no part. A network that sees beyond its patch needs its
            receptive field on top.
        seed : int
            Of the order of subjects.

        Examples
        --------
        >>> import mrhdata
        >>> v = mrhdata.volume.from_array(np.zeros((20, 4, 4)), spacing=(1, 1, 1))
        >>> train, test = mrhdata.patches(v, shape=2).split([0.5, 0.5], by="z")
        >>> train.positions[:, 0].tolist()[-1], test.positions[:, 0].tolist()[0]
        (6, 12)
        """
        return [self._only(rows) for rows in parts_of(self, sizes, by, guard, seed)]

    def folds(
        self, k: int, *, by: str = "subject", guard: int | None = None, seed: int = 0
    ) -> list[tuple[Patches, Patches]]:
        """Training and test patches of each of `k` folds, by subject or by blocks along an axis, as :meth:`split`."""
        return [(self._only(a), self._only(b)) for a, b in folds_of(self, k, by, guard, seed)]

    def check_leakage(self, other: Patches) -> None:
        """Prove that no voxel of any input or target lies in patches of both sets.

        Volumes that come from one file or one array are the same subject, also where they were sliced. A file that was
        loaded into memory twice is two arrays, and a copy of a file is another one.

        Raises
        ------
        DataError
            Patches share voxels; it says how many, and where the first lies.
        """
        shared = np.flatnonzero(shared_with(self, other))
        if len(shared):
            at = self.positions[shared[0]].tolist()
            raise DataError(
                f"{len(shared)} of {len(self)} patches share voxels with the other set, the first at {at} of subject "
                f"{self.subject[shared[0]]}; use split or folds, which keep a guard between parts"
            )

    def explain(self, batch_size: int = 64) -> Explanation:
        """What one pass costs: bytes, chunks, decodes beside naive reading, memory, and advice; nothing is read.

        Examples
        --------
        >>> import mrhdata
        >>> v = mrhdata.volume.from_array(np.zeros((64, 64, 64), np.uint16), spacing=(1, 1, 1))
        >>> mrhdata.patches(v, shape=32).explain().patches
        8
        """
        from mrhdata.patching.summary import explained

        return explained(self, batch_size)

    def diagnose(self, n: int = 1000, *, batch_size: int = 64, seed: int = 0) -> Diagnosis:
        """Coverage, class balance, intensity and how well batches are mixed, from the first `n` patches of an epoch."""
        from mrhdata.patching.summary import diagnosed

        return diagnosed(self, n, batch_size, seed)

    def plot(self, *, subject: int = 0, n: int = 50, seed: int = 0) -> Figure:
        """Boxes of some patches over three slices of a subject's first volume, as a Matplotlib figure."""
        from mrhdata.patching.summary import plotted

        return plotted(self, subject, n, seed)
