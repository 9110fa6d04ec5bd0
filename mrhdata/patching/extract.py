"""Extraction of patches from decoded voxels: piece by piece from tiles, or many patches at a time.

Large patches are copied from the tiles that they touch and cast to float32 in one step. Small ones (a few voxels of
many channels) cost more in Python than in copying. So the voxels of all patches of one home tile are first joined,
channels last, and its patches of a batch are gathered in one step.
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
    """Extractor of batches from the tiles that are in memory.

    Parameters
    ----------
    plan : Plan
    tiles : mapping of int to array
        Decoded tiles by the plan's numbers; other threads add and remove tiles.
    cache_bytes : int
        Bytes of joined voxels that stay in memory for the next batch.
    """

    def __init__(self, plan: Plan, tiles: Mapping[int, np.ndarray], cache_bytes: int) -> None:
        self._plan, self._tiles, self._cache_bytes = plan, tiles, cache_bytes
        self._joined: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def cut(self, indices: Ints) -> list[Floats]:
        """Return the tensors of patches, (n, C, z, y, x) each."""
        subjects = _group_by_number(self._plan.subject[indices])
        return [self._tensor(i, indices, subjects) for i in range(len(self._plan.sources[0]))]

    def _tensor(self, i: int, indices: Ints, subjects: list[tuple[int, Ints]]) -> Floats:
        """Return the patches of one source; small ones have channels last in memory."""
        source = self._plan.sources[0][i]
        channels = len(source.channels)
        if source.small:
            out = np.moveaxis(np.empty((len(indices), *source.shape, channels), np.float32), -1, 1)
        else:
            out = np.empty((len(indices), channels, *source.shape), np.float32)
        for number, chosen in subjects:
            self._fill_subject(out, i, number, indices, chosen)
        return out

    def _fill_subject(self, out: Floats, i: int, number: int, indices: Ints, chosen: Ints) -> None:
        """Cut the patches of one subject into their rows of a tensor."""
        source = self._plan.sources[number][i]
        starts = source.starts(self._plan.positions[indices[chosen]])
        fits = self._fits(source, starts)
        if fits is not None:
            for row, start in zip(chosen[~fits].tolist(), starts[~fits], strict=True):
                out[row] = self._padded(i, number, start)
            chosen, starts = chosen[fits], starts[fits]
        if not source.small:
            piecewise(self._tile_lookup(number, i), source.tile, starts, out, chosen)
        elif source.tiles == (1, 1, 1):
            _gather_into(out, chosen, self._tiles[self._plan.offset(number, i)], starts, source)
        else:
            for home_tile, within in _group_by_number(self._plan.home_tile[indices[chosen]]):
                joined, corner = self._joined_voxels(number, i, home_tile)
                _gather_into(out, chosen[within], joined, starts[within] - corner, source)

    def _padded(self, i: int, number: int, start: Ints) -> np.ndarray:
        source = self._plan.sources[number][i]
        box = functools.partial(self._box, number, i)
        return padded(box, source.grid.shape, start, source.shape, str(self._plan.padding))

    def _fits(self, source: TensorSource, starts: Ints) -> NDArray[np.bool_] | None:
        """Return a mask of the patches that lie within the volume; None if all do."""
        if self._plan.padding is None:
            return None
        fits = source.holds(starts)
        return None if fits.all() else fits

    def _tile_lookup(self, subject: int, i: int) -> Callable[[int, int, int], np.ndarray]:
        offset, (_, ny, nx) = self._plan.offset(subject, i), self._plan.sources[subject][i].tiles
        tiles = self._tiles
        return lambda z, y, x: tiles[offset + (z * ny + y) * nx + x]

    def _joined_voxels(self, subject: int, i: int, home_tile: int) -> tuple[np.ndarray, Ints]:
        """Return the voxels (z, y, x, C) of all patches of a home tile, and the first voxel."""
        corners = self._plan.corners[i]
        if corners is None:
            raise GridError("large patches are cut from tiles; this is a bug")
        low, high = corners[0][home_tile], corners[1][home_tile]
        if (home_tile, i) in self._joined:
            self._joined.move_to_end((home_tile, i))
            return self._joined[home_tile, i], low
        joined = np.moveaxis(self._box(subject, i, Box.of(low, high)), 0, -1)
        self._joined[home_tile, i] = joined
        while len(self._joined) > 1 and sum(b.nbytes for b in self._joined.values()) > self._cache_bytes:
            self._joined.popitem(last=False)
        return joined, low

    def _box(self, subject: int, i: int, box: Box) -> np.ndarray:
        """Return the voxels (C, z, y, x) of a box; voxels of tiles that are not in memory are undefined."""
        source = self._plan.sources[subject][i]
        channels_last = np.empty((*box.shape, len(source.channels)), source.dtype)
        offset = self._plan.offset(subject, i)
        axes = zip(box.start, box.stop, source.tile, strict=True)
        tiles = (range(a // t, (b - 1) // t + 1) for a, b, t in axes)
        for number in itertools.product(*tiles):
            tile = self._tiles.get(offset + int(np.ravel_multi_index(number, source.tiles)))
            if tile is None:
                continue
            voxels = tile if source.small else np.moveaxis(tile, 0, -1)
            origin = tuple([n * t for n, t in zip(number, source.tile, strict=True)])
            end = tuple([a + n for a, n in zip(origin, voxels.shape, strict=False)])
            common = box.intersect(Box(origin, end))
            if common is not None:
                channels_last[common.within(box.start)] = voxels[common.within(origin)]
        return np.moveaxis(channels_last, -1, 0)


def extract_nearby(source: TensorSource, starts: Ints, padding: str | None) -> Floats:
    """Extract neighbouring patches of one source; the box around them is read once.

    Parameters
    ----------
    source : TensorSource
    starts : (n, 3) int array
        First voxel of each patch in the source.
    padding : str or None

    Returns
    -------
    patches : (n, C, z, y, x) float32 array
    """
    low, high = reach(starts, source.shape, source.grid.shape, padding)
    corner = low.min(axis=0)
    box = source.voxels(Box.of(corner, high.max(axis=0)))
    if padding is None:
        if source.small:
            patches = gathered(np.moveaxis(box, 0, -1), starts - corner, source.shape)
            return np.moveaxis(patches.astype(np.float32, copy=False), -1, 1)
        out = np.empty((len(starts), len(source.channels), *source.shape), np.float32)
        piecewise(lambda z, y, x: box, box.shape[1:], starts - corner, out, np.arange(len(starts)))
        return out

    def within(part: Box) -> np.ndarray:
        return np.asarray(box[:, *part.within(corner.tolist())])

    padded_patches = [padded(within, source.grid.shape, start, source.shape, padding) for start in starts]
    return np.stack(padded_patches).astype(np.float32, copy=False)


def _gather_into(out: Floats, rows: Ints, block: np.ndarray, starts: Ints, source: TensorSource) -> None:
    """Gather patches of a block into rows of a tensor that has channels last in memory."""
    channels_last = np.moveaxis(out, 1, -1)
    if len(rows) == len(out):
        channels_last[...] = gathered(block, starts, source.shape)
    elif len(rows):
        channels_last[rows] = gathered(block, starts, source.shape)


def _group_by_number(numbers: Ints) -> list[tuple[int, Ints]]:
    """Return each number that occurs, and its indices in the array."""
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
        Function of a tile's number along z, y, x that returns the decoded tile.
    tile : sequence of int
        Voxels of a tile.
    starts : (n, 3) int array
        First voxel of each patch.
    out : (m, C, z, y, x) float32 array
    rows : (n,) int array
        Rows of `out` that are filled.
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
    """Return, along one axis, the tiles that a patch touches, with the slice of the tile and of the patch."""
    spans = []
    for number in range(first, last + 1):
        # `start` counts from the first tile.
        begin = (number - first) * tile
        low, high = max(start, begin), min(start + length, begin + tile)
        spans.append((number, slice(low - begin, high - begin), slice(low - start, high - start)))
    return spans


def gathered(block: np.ndarray, starts: Ints, shape: Sequence[int]) -> np.ndarray:
    """Return the patches of a block (z, y, x, C) at positions within it, in one step: (n, z, y, x, C).

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
    # Voxels along x and their channels are contiguous, so each line of a patch is one copy.
    windows: Any = as_strided(
        block, (*free, shape[0], shape[1], shape[2] * channels), (*steps[:3], *steps[:2], block.itemsize)
    )
    patches = windows[starts[:, 0], starts[:, 1], starts[:, 2]]
    return np.asarray(patches.reshape(len(starts), *shape, channels))


def padded(
    box: Callable[[Box], np.ndarray], grid: Sequence[int], start: Ints, shape: Sequence[int], padding: str
) -> np.ndarray:
    """Return one patch (C, z, y, x) that reaches beyond the volume; voxels outside come from the padding.

    Parameters
    ----------
    box : callable
        Function of a box within the volume that returns its voxels (C, z, y, x).
    grid, start, shape : sequences of int
        Shape of the volume, first voxel of the patch, and shape of the patch.
    padding : {"constant", "edge", "reflect"}
        0, the nearest voxel, or the mirror image about the centre of the border voxel.
    """
    wanted = [np.arange(s, s + n) for s, n in zip(start, shape, strict=True)]
    tops = [n - 1 for n in grid]
    if padding == "reflect":
        # A triangle wave also serves patches that are longer than the volume.
        wanted = [t - np.abs(t - w % (2 * t)) if t else w * 0 for w, t in zip(wanted, tops, strict=True)]
    voxels = [np.clip(w, 0, t) for w, t in zip(wanted, tops, strict=True)]
    low = np.array([v.min() for v in voxels])
    values = box(Box.of(low, (v.max() + 1 for v in voxels)))
    out = values[:, *np.ix_(*(v - b for v, b in zip(voxels, low, strict=True)))]
    if padding == "constant":
        inside = [v == w for v, w in zip(voxels, wanted, strict=True)]
        out = np.where(inside[0][:, None, None] & inside[1][:, None] & inside[2], out, 0)
    return np.asarray(out)
