"""Patches of co-registered volumes: planned as integers, read block by block, cut many at a time.

A *plan* is an array of positions sorted by block, a block being one stored chunk (or shard) of a
subject's inputs. A block is read once, kept while the memory budget lasts, and all its patches are
gathered from it in one vectorised step.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from mrhdata.errors import DataError, GridError
from mrhdata.sampling import Ints, centre_voxels, fraction_inside, strided
from mrhdata.volume import SPATIAL, mask_on, stack

if TYPE_CHECKING:
    import xarray as xr
    from torch.utils.data import DataLoader

    Inputs = xr.DataArray | Mapping[str, xr.DataArray]

Floats = NDArray[np.float32]

#: The axis that each anatomical plane holds fixed.
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}


def patches(
    inputs: Inputs | Sequence[Inputs],
    target: Inputs | Sequence[Inputs] | None = None,
    *,
    shape: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    plane: str | None = None,
    where: xr.DataArray | Sequence[xr.DataArray] | None = None,
    inside: float | None = None,
    squeeze: bool = False,
    memory: str | int = "1 GB",
) -> Patches:
    """Plan patches over the volumes of one or several subjects.

    Parameters
    ----------
    inputs : volume, mapping of volumes, or a sequence of either (one item per subject)
        The volumes of a subject lie on one grid and are stacked along C in the given order.
    target : the same, optional
        On the grid of its subject's inputs.
    shape, stride : int or (3,) sequence of int
        Voxels along z, y, x; one number stands for all axes but the fixed one of `plane`. The stride
        is the shape where it is not given.
    plane : {"axial", "coronal", "sagittal"}, optional
        Flat patches: length 1, stride 1 along z, y or x.
    where : mask volume, or one per subject, optional
        Patches are kept where it is not zero.
    inside : float, optional
        Share of a patch's voxels that must lie in the mask; by default the centre voxel must.
    squeeze : bool
        Drop the patch axes of length 1.
    memory : str or int
        Bytes that decoded blocks may take, such as ``"512 MB"``.

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
    subjects = _per_subject(inputs)
    targets = _per_subject(target) if target is not None else [None] * len(subjects)
    masks = _per_subject(where) if where is not None else [None] * len(subjects)
    if not len(subjects) == len(targets) == len(masks) > 0:
        raise GridError(
            f"there are {len(subjects)} subjects of inputs, {len(targets)} of targets and {len(masks)} masks; "
            "give one of each per subject"
        )
    size, step = _lengths(shape, plane, "shape"), _lengths(shape if stride is None else stride, plane, "stride")
    sources = [_Source(i, t) for i, t in zip(subjects, targets, strict=True)]
    for source in sources[1:]:
        if source.channels != sources[0].channels:
            raise GridError(f"subjects have different inputs: {sources[0].channels} and {source.channels}")
    plans = [_plan(s, m, size, step, inside) for s, m in zip(sources, masks, strict=True)]
    if not sum(len(positions) for positions, _ in plans):
        raise DataError("the mask leaves no patch; check that it is not empty and lies over the inputs")
    return Patches(sources, plans, size, plane, squeeze, _bytes(memory))


def _per_subject(given: Any) -> list[Any]:
    return list(given) if isinstance(given, Sequence) else [given]


def _lengths(given: int | Sequence[int], plane: str | None, what: str) -> tuple[int, int, int]:
    lengths = [given] * 3 if isinstance(given, int) else [int(n) for n in given]
    if len(lengths) != 3:
        raise GridError(f"{what} is one number or three along z, y, x, not {given}")
    if plane is not None:
        if plane not in PLANES:
            raise GridError(f"plane is one of {', '.join(PLANES)}, not {plane!r}")
        lengths[PLANES[plane]] = 1
    return (lengths[0], lengths[1], lengths[2])


def _bytes(memory: str | int) -> int:
    if isinstance(memory, int):
        return memory
    from dask.utils import parse_bytes

    return int(parse_bytes(memory))


class _Source:
    """The stacked inputs and target of one subject, (C, z, y, x) each, and the grid of blocks."""

    def __init__(self, inputs: Inputs, target: Inputs | None) -> None:
        stacked = stack(inputs)
        self.channels = [str(c) for c in stacked.c.values]
        self.grid = stacked.mrh.grid
        self.inputs = _one_block_of_channels(stacked)
        self.target = None
        self.volume = stacked
        if target is not None:
            self.target = _one_block_of_channels(stack(target).mrh.like(stacked.isel(c=0)))

    def block_of(self, positions: Ints) -> Ints:
        """Number of the block that holds each position."""
        where = [
            np.searchsorted(np.cumsum(chunks), positions[:, axis], side="right")
            for axis, chunks in enumerate(self.inputs.chunks[1:])
        ]
        return np.ravel_multi_index(where, self.inputs.numblocks[1:]).astype(np.int64)

    def box(self, low: Ints, high: Ints) -> tuple[Floats, Floats | None]:
        """Decoded voxels of a box, channels last for fast gathering: (z, y, x, C) float32."""
        key = (slice(None), *(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)))
        arrays = [self.inputs[key]] if self.target is None else [self.inputs[key], self.target[key]]
        (decoded,) = da.compute([a.astype(np.float32) for a in arrays])
        last = [np.ascontiguousarray(np.moveaxis(a, 0, -1)) for a in decoded]
        return last[0], last[1] if len(last) > 1 else None


def _one_block_of_channels(stacked: xr.DataArray) -> da.Array:
    return da.asarray(stacked.transpose("c", *SPATIAL).data).rechunk({0: -1})


def _plan(
    source: _Source, mask: xr.DataArray | None, size: Sequence[int], step: Sequence[int], inside: float | None
) -> tuple[Ints, Ints]:
    """Positions sorted by block, and the block of each."""
    positions = strided(source.grid.shape, size, step)
    if mask is not None:
        voxels = mask_on(mask, source.volume)
        if inside is None:
            keep = voxels[tuple(centre_voxels(positions, size).T)]
        else:
            keep = fraction_inside(voxels, positions, size) >= inside
        positions = positions[keep]
    blocks = source.block_of(positions)
    order = np.argsort(blocks, kind="stable")
    return positions[order], blocks[order]


class Patches:
    """Planned patches; made by :func:`patches`.

    ``len(p)``, ``p[i]`` -> ``(input, target)`` tensors (only ``input`` without a target), float32,
    (C, z, y, x). Works as a map-style data set in any ``DataLoader``; :meth:`loader` is faster.

    Attributes
    ----------
    positions : (n, 3) int64 array
        First voxel of each patch in its subject's inputs, z, y, x.
    subject : (n,) int64 array
        Number of the subject.
    shape : tuple of int
        Patch length along z, y, x.
    plane : str or None
    channels : list of str
    """

    def __init__(
        self,
        sources: Sequence[_Source],
        plans: Sequence[tuple[Ints, Ints]],
        shape: tuple[int, int, int],
        plane: str | None,
        squeeze: bool,
        memory: int,
    ) -> None:
        self._sources, self._squeeze, self._memory = list(sources), squeeze, memory
        self.shape, self.plane = shape, plane
        self.channels = sources[0].channels
        self.spacing_mm = tuple(float(s) for s in sources[0].grid.spacing)
        self.positions = np.concatenate([positions for positions, _ in plans])
        self.subject = np.repeat(np.arange(len(plans)), [len(positions) for positions, _ in plans])
        # Rows of one block stand together: a block is the run of rows from one start to the next.
        keys = np.stack([self.subject, np.concatenate([blocks for _, blocks in plans])])
        changes = np.flatnonzero((np.diff(keys, axis=1) != 0).any(axis=0)) + 1
        self._starts = np.concatenate([[0], changes, [len(self.positions)]])
        self._resident: OrderedDict[int, tuple[Ints, Floats, Floats | None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        return (
            f"Patches({len(self)} of {self.shape}, {len(self.channels)} channels, {len(self._sources)} subjects, "
            f"{len(self._starts) - 1} blocks)"
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_resident": OrderedDict()}

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"patch {index} of {len(self)}")
        position = self.positions[index]
        source = self._sources[int(self.subject[index])]
        box = source.box(position, position + self.shape)
        return self._tensors([np.moveaxis(part, -1, 0) for part in box if part is not None])

    def gather(self, rows: NDArray[np.integer[Any]]) -> list[Floats]:
        """Inputs, and target if there is one, of many patches: (n, C, z, y, x) float32 arrays each."""
        rows = np.asarray(rows)
        blocks = np.searchsorted(self._starts, rows, side="right") - 1
        out: list[Floats] = []
        for block in np.unique(blocks):
            chosen = np.flatnonzero(blocks == block)
            low, *arrays = self._block(int(block))
            for i, array in enumerate(a for a in arrays if a is not None):
                cut = _cut(array, self.positions[rows[chosen]] - low, self.shape)
                if len(chosen) == len(rows):
                    out.append(cut)
                    continue
                if len(out) <= i:
                    out.append(np.empty((len(rows), *cut.shape[1:]), np.float32))
                out[i][chosen] = cut
        return out

    def _block(self, block: int) -> tuple[Ints, Floats, Floats | None]:
        """First voxel and decoded voxels of a block, from memory where it is resident."""
        if block in self._resident:
            self._resident.move_to_end(block)
            return self._resident[block]
        positions = self.positions[self._starts[block] : self._starts[block + 1]]
        low, high = positions.min(axis=0), positions.max(axis=0) + self.shape
        inputs, target = self._sources[int(self.subject[self._starts[block]])].box(low, high)
        self._resident[block] = (low, inputs, target)
        while len(self._resident) > 1 and self._resident_bytes() > self._memory:
            self._resident.popitem(last=False)
        return low, inputs, target

    def _resident_bytes(self) -> int:
        return sum(i.nbytes + (0 if t is None else t.nbytes) for _, i, t in self._resident.values())

    def batches(self, size: int, *, shuffle: bool, seed: int, epoch: int = 0) -> Iterator[NDArray[np.int64]]:
        """Rows of each batch of one epoch: the same for the same seed and epoch.

        Blocks come in random order; as many as half the memory budget holds are mixed.
        """
        rng = np.random.default_rng((seed, epoch))
        count = len(self._starts) - 1
        order = rng.permutation(count) if shuffle else np.arange(count)
        left = np.empty(0, dtype=np.int64)
        for window in self._windows(order):
            rows = np.concatenate([np.arange(self._starts[b], self._starts[b + 1]) for b in window])
            rows = np.concatenate([left, rng.permutation(rows) if shuffle else rows])
            full = len(rows) // size * size
            yield from rows[:full].reshape(-1, size)
            left = rows[full:]
        if len(left):
            yield left

    def _windows(self, order: NDArray[np.int64]) -> Iterator[list[int]]:
        window: list[int] = []
        held = 0
        for block in order.tolist():
            positions = self.positions[self._starts[block] : self._starts[block + 1]]
            extent = np.ptp(positions, axis=0) + self.shape
            needed = 4 * int(np.prod(extent)) * (len(self.channels) + 1)
            if window and held + needed > self._memory // 2:
                yield window
                window, held = [], 0
            window.append(block)
            held += needed
        yield window

    def loader(self, batch_size: int, *, shuffle: bool = True, seed: int = 0) -> DataLoader[Any]:
        """A ``DataLoader`` of batches ``(input, target)``, (B, C, z, y, x) float32.

        Each pass over it is the next epoch, in another order; the same seed gives the same orders.
        """
        from torch.utils.data import DataLoader

        return DataLoader(_epochs(self, batch_size, shuffle, seed), batch_size=None)

    def to_dask(self) -> Any:
        """All patches as Dask arrays ``(input, target)``, (n, C, z, y, x), in the order of `positions`.

        One task reads one block.
        """
        from dask.delayed import delayed

        parts: list[list[da.Array]] = []
        widths = [len(self.channels)]
        if self._sources[0].target is not None:
            widths.append(self._sources[0].target.shape[0])
        for start, stop in zip(self._starts[:-1], self._starts[1:], strict=True):
            block = delayed(self.gather, pure=False)(np.arange(start, stop))
            shapes = [(int(stop - start), width, *self.shape) for width in widths]
            parts.append([da.from_delayed(block[i], s, np.float32) for i, s in enumerate(shapes)])
        joined = tuple(da.concatenate(list(arrays)) for arrays in zip(*parts, strict=True))
        return joined if len(joined) > 1 else joined[0]

    def _tensors(self, parts: list[Floats]) -> Any:
        import torch

        tensors = tuple(torch.from_numpy(np.ascontiguousarray(self._squeezed(p))) for p in parts)
        return tensors if len(tensors) > 1 else tensors[0]

    def _squeezed(self, part: Floats) -> Floats:
        if not self._squeeze:
            return part
        flat = [axis - 3 for axis, n in enumerate(self.shape) if n == 1]
        return part.squeeze(tuple(flat))


def _cut(array: Floats, positions: Ints, shape: tuple[int, int, int]) -> Floats:
    """Patches of (z, y, x, C) voxels at positions (n, 3): (n, C, z, y, x)."""
    windows = sliding_window_view(array, shape, axis=(0, 1, 2))
    cut: Floats = windows[tuple(positions.T)]
    return cut


def _epochs(patches: Patches, batch_size: int, shuffle: bool, seed: int) -> Any:
    from torch.utils.data import IterableDataset, get_worker_info

    class Epochs(IterableDataset[Any]):
        epoch = -1

        def __len__(self) -> int:
            return -(-len(patches) // batch_size)

        def __iter__(self) -> Iterator[Any]:
            if get_worker_info() is not None:
                raise DataError(
                    "this loader runs in one process and would repeat itself in each worker; use num_workers=0"
                )
            self.epoch += 1
            for rows in patches.batches(batch_size, shuffle=shuffle, seed=seed, epoch=self.epoch):
                yield patches._tensors(patches.gather(rows))

    return Epochs()
