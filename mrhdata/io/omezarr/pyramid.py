"""Levels of a pyramid: their sizes, and downsampling of a block by two. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrhdata.volume.construct import SPATIAL

#: A chunk holds at most about this many bytes, with cubic edges from 16 to 64 voxels.
CHUNK_BYTES = 2_000_000
#: A shard is up to 2 chunks deep and 4 wide and high.
SHARD_CHUNKS = {"z": 2, "y": 4, "x": 4}
#: Halving stops when no axis is longer.
COARSEST = 64
#: Bytes of a piece that is halved at once, which fits in the processor's cache.
_PIECE_BYTES = 1_000_000


@dataclass(frozen=True)
class Level:
    """One level of a pyramid.

    Parameters
    ----------
    dims : tuple of str
        Names of the axes.
    shape, chunks, shards : tuple of int
        Voxels along each axis.
    spacing_mm, start_mm : tuple of float
        Spacing, and axis distance of the first voxel, along z, y, x.
    halved : tuple of str
        Axes that are half as long as in the finer level.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    start_mm: tuple[float, ...]
    halved: tuple[str, ...] = ()


def levels(
    dims: Sequence[str], shape: Sequence[int], itemsize: int, spacing_mm: np.ndarray, start_mm: np.ndarray
) -> list[Level]:
    """Return all levels of a pyramid, the finest first.

    Axes are halved until none is longer than `COARSEST`; a coarser axis is not halved until the others are
    as coarse. A voxel of any level lies in the middle of the finer voxels that it represents.

    Examples
    --------
    >>> for level in levels("zyx", (20, 300, 300), 2, np.array([.5, .1, .1]), np.zeros(3)):
    ...     level.shape, level.halved
    ((20, 300, 300), ())
    ((20, 150, 150), ('y', 'x'))
    ((20, 75, 75), ('y', 'x'))
    ((10, 37, 37), ('z', 'y', 'x'))
    """
    pyramid: list[Level] = []
    halved: list[str] = []
    steps, starts, lengths = np.array(spacing_mm), np.array(start_mm), tuple(shape)
    while True:
        sizes = dict(zip(dims, lengths, strict=True))
        chunks = chunk_shape(sizes, itemsize)
        shards = tuple(
            c * min(SHARD_CHUNKS.get(d, 1), math.ceil(n / c)) for d, n, c in zip(dims, lengths, chunks, strict=True)
        )
        spacing_and_start = (tuple(steps.tolist()), tuple(starts.tolist()))
        pyramid.append(Level(tuple(dims), lengths, chunks, shards, *spacing_and_start, tuple(halved)))
        halved = _halved_axes(sizes, steps)
        if not halved:
            return pyramid
        factors = np.array([2 if d in halved else 1 for d in SPATIAL])
        starts, steps = starts + (factors - 1) * steps / 2, steps * factors
        lengths = tuple(n // 2 if d in halved else n for d, n in sizes.items())


def chunk_shape(sizes: Mapping[str, int], itemsize: int) -> tuple[int, ...]:
    """Return a chunk shape for random patches: all channels, one time, and a cube of voxels.

    Examples
    --------
    >>> chunk_shape({"z": 500, "y": 500, "x": 30}, 2)
    (64, 64, 30)
    >>> chunk_shape({"c": 67, "z": 100, "y": 100, "x": 100}, 2)
    (67, 16, 16, 16)
    """
    channels = sizes.get("c", 1)
    edge = 64
    while edge > 16 and channels * edge**3 * itemsize > CHUNK_BYTES:
        edge //= 2
    limits = {"t": 1, "c": channels}
    return tuple(min(n, limits.get(d, edge)) for d, n in sizes.items())


def _halved_axes(sizes: Mapping[str, int], steps: np.ndarray) -> list[str]:
    """Return the axes to halve next: those less than twice as coarse as the finest, none for a small volume."""
    lengths = [sizes.get(d, 1) for d in SPATIAL]
    if max(lengths) <= COARSEST:
        return []
    finest = min(s for s, n in zip(steps, lengths, strict=True) if n > 1)
    return [d for d, s, n in zip(SPATIAL, steps, lengths, strict=True) if n > 1 and s < 2 * finest]


def halve(block: np.ndarray, axes: Sequence[int], kind: str, threads: ThreadPoolExecutor | None = None) -> np.ndarray:
    """Downsample a block by two along `axes`: images by mean, labels and masks by the most frequent value.

    An odd last voxel is left out. The mean of integers is rounded, halves upwards; among equally frequent
    labels the first in array order wins.

    Examples
    --------
    >>> halve(np.array([[1, 2, 9], [4, 4, 9]]), (0, 1), "image").tolist()
    [[3]]
    >>> halve(np.array([[1, 2, 9], [4, 4, 9]]), (0, 1), "labels").tolist()
    [[4]]
    """
    block = block[tuple(slice(n - n % 2) if i in axes else slice(None) for i, n in enumerate(block.shape))]
    shape = tuple(n // 2 if i in axes else n for i, n in enumerate(block.shape))
    out = np.empty(shape, dtype=block.dtype)
    if not out.size:
        return out
    function = _mean if kind == "image" else _mode
    # Pieces are cut along the first axis that is longer than one.
    along = next((i for i, n in enumerate(shape) if n > 1), 0)
    factor = 2 if along in axes else 1
    step = max(1, int(_PIECE_BYTES * shape[along] // block.nbytes))

    def halve_piece(first: int) -> None:
        target = _slab(along, first, first + step)
        source = _slab(along, first * factor, (first + step) * factor)
        out[target] = function(block[source], axes)

    list((threads.map if threads else map)(halve_piece, range(0, shape[along], step)))
    return out


def _slab(axis: int, first: int, last: int) -> tuple[Any, ...]:
    return (*(slice(None),) * axis, slice(first, last))


def _mean(block: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    integers = block.dtype.kind in "iu"
    wide: Any = block.dtype
    if integers:
        # Sums of eight integers of up to 32 bits fit in twice the bits; 64-bit integers have no wider type.
        wide = np.float64 if block.dtype.itemsize == 8 else f"{block.dtype.kind}{max(4, 2 * block.dtype.itemsize)}"
    elif block.dtype.itemsize < 4:
        wide = np.float32
    total = block
    for axis in axes:
        even, odd = (total[(*(slice(None),) * axis, slice(i, None, 2))] for i in (0, 1))
        total = np.add(even, odd, dtype=wide)
    if total.dtype.kind in "iu":
        total += total.dtype.type(2 ** len(axes) // 2)
        total >>= total.dtype.type(len(axes))
    else:
        total = total / 2 ** len(axes)
        if integers:
            total = np.floor(total + 0.5)
    return total.astype(block.dtype)


def _mode(block: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    values = block[..., None]
    for axis in axes:
        even, odd = (values[(*(slice(None),) * axis, slice(i, None, 2))] for i in (0, 1))
        values = np.concatenate([even, odd], axis=-1)
    if (values == values[..., :1]).all():
        return values[..., 0]
    # Restore array order: concatenation made the first axis the fastest.
    order = np.arange(2 ** len(axes)).reshape((2,) * len(axes)).transpose().ravel()
    values = values[..., order]
    counts = sum((values[..., i : i + 1] == values).astype(np.uint8) for i in range(values.shape[-1]))
    return np.take_along_axis(values, np.argmax(counts, -1)[..., None], -1)[..., 0]
