"""Patches out of decoded voxels: piece by piece from tiles, or many at a time.

Large patches are copied straight from the tiles that they touch, in the cast to float32. Small ones (a
few voxels of many channels) cost more in Python than in copying, so the voxels of a cell's patches are
first joined, channels last, and all its patches of a batch gathered in one step.
"""

from __future__ import annotations

import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from mrhdata.errors import GridError
from mrhdata.patching.plan import Plan
from mrhdata.patching.positions import Ints, reach
from mrhdata.patching.tiles import TensorSource
from mrhdata.volume.box import Box

Floats = NDArray[np.float32]


class PatchExtractor:
    """Cuts batches of a plan out of the tiles that are in memory.

    Parameters
    ----------
    plan : Plan
    tiles : mapping of int to array
        By the plan's numbers; it changes as tiles come and go.
    kept : int
        Bytes of joined blocks that are kept for the next batch.
    """

    def __init__(self, plan: Plan, tiles: Mapping[int, np.ndarray], kept: int) -> None:
        self._plan, self._tiles, self._kept = plan, tiles, kept
        self._joined: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def cut(self, rows: Ints) -> list[Floats]:
        """Tensors of patches, (n, C, z, y, x) each."""
        subjects = _groups(self._plan.subject[rows])
        return [self._tensor(i, rows, subjects) for i in range(len(self._plan.sources[0]))]

    def _tensor(self, i: int, rows: Ints, subjects: list[tuple[int, Ints]]) -> Floats:
        """Patches of one stream; small ones lie channels last in memory."""
        stream = self._plan.sources[0][i]
        channels = len(stream.channels)
        if stream.small:
            out = np.moveaxis(np.empty((len(rows), *stream.shape, channels), np.float32), -1, 1)
        else:
            out = np.empty((len(rows), channels, *stream.shape), np.float32)
        for number, chosen in subjects:
            self._fill(out, i, number, rows, chosen)
        return out

    def _fill(self, out: Floats, i: int, number: int, rows: Ints, chosen: Ints) -> None:
        """Cut the patches of one subject into their places."""
        stream = self._plan.sources[number][i]
        starts = stream.starts(self._plan.positions[rows[chosen]])
        fits = self._fits(stream, starts)
        if fits is not None:
            for at, start in zip(chosen[~fits].tolist(), starts[~fits], strict=True):
                out[at] = self._padded(i, number, start)
            chosen, starts = chosen[fits], starts[fits]
        if not stream.small:
            piecewise(self._lookup(number, i), stream.tile, starts, out, chosen)
        elif stream.tiles == (1, 1, 1):
            _gather_into(out, chosen, self._tiles[self._plan.offset(number, i)], starts, stream)
        else:
            for cell, within in _groups(self._plan.cell[rows[chosen]]):
                joined, corner = self._joined_cell(number, i, cell)
                _gather_into(out, chosen[within], joined, starts[within] - corner, stream)

    def _padded(self, i: int, number: int, start: Ints) -> np.ndarray:
        stream = self._plan.sources[number][i]
        box = functools.partial(self._box, number, i)
        return padded(box, stream.grid.shape, start, stream.shape, str(self._plan.padding))

    def _fits(self, stream: TensorSource, starts: Ints) -> NDArray[np.bool_] | None:
        """Which patches lie within the volume; None for all."""
        if self._plan.padding is None:
            return None
        fits = stream.holds(starts)
        return None if fits.all() else fits

    def _lookup(self, subject: int, i: int) -> Callable[[int, int, int], np.ndarray]:
        offset, (_, ny, nx) = self._plan.offset(subject, i), self._plan.sources[subject][i].tiles
        tiles = self._tiles
        return lambda z, y, x: tiles[offset + (z * ny + y) * nx + x]

    def _joined_cell(self, subject: int, i: int, cell: int) -> tuple[np.ndarray, Ints]:
        """Voxels (z, y, x, C) of the patches of a cell, and the first of them."""
        corners = self._plan.corners[i]
        if corners is None:
            raise GridError("large patches are cut from tiles; this is a bug")
        low, high = corners[0][cell], corners[1][cell]
        if (cell, i) in self._joined:
            self._joined.move_to_end((cell, i))
            return self._joined[cell, i], low
        joined = np.moveaxis(self._box(subject, i, Box.of(low, high)), 0, -1)
        self._joined[cell, i] = joined
        while len(self._joined) > 1 and sum(b.nbytes for b in self._joined.values()) > self._kept:
            self._joined.popitem(last=False)
        return joined, low

    def _box(self, subject: int, i: int, box: Box) -> np.ndarray:
        """Return the voxels (C, z, y, x) of a box; those of tiles that are not in memory have any value."""
        stream = self._plan.sources[subject][i]
        channels_last = np.empty((*box.shape, len(stream.channels)), stream.dtype)
        offset = self._plan.offset(subject, i)
        rows = zip(box.start, box.stop, stream.tile, strict=True)
        tiles = (range(a // t, (b - 1) // t + 1) for a, b, t in rows)
        for number in itertools.product(*tiles):
            tile = self._tiles.get(offset + int(np.ravel_multi_index(number, stream.tiles)))
            if tile is None:
                continue
            voxels = tile if stream.small else np.moveaxis(tile, 0, -1)
            origin = tuple([n * t for n, t in zip(number, stream.tile, strict=True)])
            end = tuple([a + n for a, n in zip(origin, voxels.shape, strict=False)])
            common = box.intersect(Box(origin, end))
            if common is not None:
                channels_last[common.within(box.start)] = voxels[common.within(origin)]
        return np.moveaxis(channels_last, -1, 0)


def extract_nearby(stream: TensorSource, starts: Ints, padding: str | None) -> Floats:
    """Patches of one stream that lie near each other, from one reading of the box around them.

    Parameters
    ----------
    stream : Stream
    starts : (n, 3) int array
        First voxel of each in the stream.
    padding : str or None

    Returns
    -------
    patches : (n, C, z, y, x) float32 array
    """
    low, high = reach(starts, stream.shape, stream.grid.shape, padding)
    corner = low.min(axis=0)
    box = stream.voxels(Box.of(corner, high.max(axis=0)))
    if padding is None:
        if stream.small:
            found = gathered(np.moveaxis(box, 0, -1), starts - corner, stream.shape)
            return np.moveaxis(found.astype(np.float32, copy=False), -1, 1)
        out = np.empty((len(starts), len(stream.channels), *stream.shape), np.float32)
        piecewise(lambda z, y, x: box, box.shape[1:], starts - corner, out, np.arange(len(starts)))
        return out

    def within(part: Box) -> np.ndarray:
        return np.asarray(box[:, *part.within(corner.tolist())])

    cut = [padded(within, stream.grid.shape, start, stream.shape, padding) for start in starts]
    return np.stack(cut).astype(np.float32, copy=False)


def _gather_into(out: Floats, rows: Ints, block: np.ndarray, starts: Ints, stream: TensorSource) -> None:
    """Gather patches of a block into rows of a tensor that lies channels last in memory."""
    last = np.moveaxis(out, 1, -1)
    if len(rows) == len(out):
        last[...] = gathered(block, starts, stream.shape)
    elif len(rows):
        last[rows] = gathered(block, starts, stream.shape)


def _groups(numbers: Ints) -> list[tuple[int, Ints]]:
    """Each number that occurs, and where."""
    if not len(numbers):
        return []
    first = int(numbers[0])
    if (numbers == first).all():
        return [(first, np.arange(len(numbers)))]
    return [(int(n), np.flatnonzero(numbers == n)) for n in np.unique(numbers)]


def piecewise(
    tile_of: Callable[[int, int, int], np.ndarray], tile: Sequence[int], starts: Ints, out: Floats, rows: Ints
) -> None:
    """Cut patches that lie within the volume from tiles (C, z, y, x), casting while copying.

    Parameters
    ----------
    tile_of : callable
        Decoded tile of a tile's number along z, y, x.
    tile : sequence of int
        Voxels of a tile.
    starts : (n, 3) int array
        First voxel of each patch.
    out : (m, C, z, y, x) float32 array
    rows : (n,) int array
        Which of `out` are filled.
    """
    shape = out.shape[2:]
    first = starts // tile
    last = (starts + (np.array(shape) - 1)) // tile
    within = starts - first * tile
    single = (first == last).all(axis=1).tolist()
    ends = last.tolist()
    for i, (row, number, (z, y, x)) in enumerate(zip(rows.tolist(), first.tolist(), within.tolist(), strict=True)):
        if single[i]:
            out[row] = tile_of(*number)[:, z : z + shape[0], y : y + shape[1], x : x + shape[2]]
            continue
        zs, ys, xs = (_spans(*n) for n in zip(number, ends[i], (z, y, x), shape, tile, strict=True))
        for a, ta, oa in zs:
            for b, tb, ob in ys:
                for c, tc, oc in xs:
                    out[row, :, oa, ob, oc] = tile_of(a, b, c)[:, ta, tb, tc]


def _spans(first: int, last: int, start: int, length: int, tile: int) -> list[tuple[int, slice, slice]]:
    """Along one axis: tiles that a patch touches, its part of each, and where that lies in the patch."""
    found = []
    for number in range(first, last + 1):
        # `start` counts from the first tile.
        begin = (number - first) * tile
        low, high = max(start, begin), min(start + length, begin + tile)
        found.append((number, slice(low - begin, high - begin), slice(low - start, high - start)))
    return found


def gathered(block: np.ndarray, starts: Ints, shape: Sequence[int]) -> np.ndarray:
    """Patches of a block (z, y, x, C) at positions within it, in one step: (n, z, y, x, C).

    Examples
    --------
    >>> gathered(np.arange(8).reshape(1, 2, 4, 1), np.array([[0, 0, 1]]), (1, 2, 2))[..., 0].tolist()
    [[[[1, 2], [5, 6]]]]
    """
    channels = block.shape[3]
    if block.strides[2:] != (channels * block.itemsize, block.itemsize):
        block = np.ascontiguousarray(block)
    free = [n - s + 1 for n, s in zip(block.shape[:3], shape, strict=True)]
    steps = block.strides
    # Voxels along x stand beside their channels: one run for each row of a patch.
    windows: Any = as_strided(
        block, (*free, shape[0], shape[1], shape[2] * channels), (*steps[:3], *steps[:2], block.itemsize)
    )
    found = windows[starts[:, 0], starts[:, 1], starts[:, 2]]
    return np.asarray(found.reshape(len(starts), *shape, channels))


def padded(
    box: Callable[[Box], np.ndarray], grid: Sequence[int], start: Ints, shape: Sequence[int], padding: str
) -> np.ndarray:
    """One patch that leaves the volume, (C, z, y, x): what lies outside is made from what lies inside.

    Parameters
    ----------
    box : callable
        Voxels (C, z, y, x) of a box within the volume.
    grid, start, shape : sequences of int
        Of the volume, and the patch's first voxel and lengths.
    padding : {"constant", "edge", "reflect"}
        0, the nearest voxel, or the mirror image about the centre of the border voxel.
    """
    wanted = [np.arange(s, s + n) for s, n in zip(start, shape, strict=True)]
    tops = [n - 1 for n in grid]
    if padding == "reflect":
        # A triangle wave, also for patches longer than the volume.
        wanted = [t - np.abs(t - w % (2 * t)) if t else w * 0 for w, t in zip(wanted, tops, strict=True)]
    places = [np.clip(w, 0, t) for w, t in zip(wanted, tops, strict=True)]
    low = np.array([p.min() for p in places])
    values = box(Box.of(low, (p.max() + 1 for p in places)))
    out = values[:, *np.ix_(*(p - b for p, b in zip(places, low, strict=True)))]
    if padding == "constant":
        inside = [p == w for p, w in zip(places, wanted, strict=True)]
        out = np.where(inside[0][:, None, None] & inside[1][:, None] & inside[2], out, 0)
    return np.asarray(out)
