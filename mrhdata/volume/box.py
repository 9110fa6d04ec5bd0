"""Boxes of voxels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """A box of voxels, from `start` to before `stop` along each axis.

    A box may reach beyond the array that it belongs to. Axes are those of the array, usually ``z, y, x``.

    Parameters
    ----------
    start, stop : tuple of int
        First voxel, and the voxel after the last.

    Examples
    --------
    >>> box = Box((2, 0), (6, 4))
    >>> box.shape, box.slices
    ((4, 4), (slice(2, 6, None), slice(0, 4, None)))
    >>> box.intersect(Box((4, 1), (9, 2)))
    Box(start=(4, 1), stop=(6, 2))
    >>> box.grow((1, 0)).clip((5, 4))
    Box(start=(1, 0), stop=(5, 4))
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @classmethod
    def of(cls, start: Iterable[int], stop: Iterable[int]) -> Box:
        """Return a box from any whole numbers, such as those of NumPy arrays."""
        return cls(tuple(map(int, start)), tuple(map(int, stop)))

    @classmethod
    def tiles(cls, shape: Sequence[int], lengths: Sequence[int]) -> Iterator[Box]:
        """Yield the boxes of a regular tiling of an array, of which the last along an axis may be shorter.

        Examples
        --------
        >>> [box.shape for box in Box.tiles((40, 10), (32, 16))]
        [(32, 10), (8, 10)]
        """
        for low in itertools.product(*(range(0, n, s) for n, s in zip(shape, lengths, strict=True))):
            yield cls.of(low, [min(a + s, n) for a, s, n in zip(low, lengths, shape, strict=True)])

    @classmethod
    def from_slices(cls, slices: Iterable[slice]) -> Box:
        """Return the box of slices that have a start and a stop."""
        bounds = [(s.start, s.stop) for s in slices]
        return cls(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.start)

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple([b - a for a, b in zip(self.start, self.stop, strict=True)])

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index of an array."""
        return tuple([slice(a, b) for a, b in zip(self.start, self.stop, strict=True)])

    def shift(self, offset: Sequence[int]) -> Box:
        """Return the box moved by some voxels."""
        return Box(
            tuple([a + o for a, o in zip(self.start, offset, strict=True)]),
            tuple([b + o for b, o in zip(self.stop, offset, strict=True)]),
        )

    def within(self, origin: Sequence[int]) -> tuple[slice, ...]:
        """Return the box as an index of an array whose first voxel is `origin`."""
        rows = zip(self.start, self.stop, origin, strict=True)
        return tuple([slice(a - o, b - o) for a, b, o in rows])

    def grow(self, before: Sequence[int], after: Sequence[int] | None = None) -> Box:
        """Return the box with margins before and after it along each axis, equal ones by default."""
        after = before if after is None else after
        return Box(
            tuple([a - m for a, m in zip(self.start, before, strict=True)]),
            tuple([b + m for b, m in zip(self.stop, after, strict=True)]),
        )

    def clip(self, shape: Sequence[int]) -> Box:
        """Return the part that lies in an array, or the nearest border voxels if no part does."""
        start = tuple([min(max(a, 0), n - 1) for a, n in zip(self.start, shape, strict=True)])
        stop = tuple([min(max(b, a + 1), n) for a, b, n in zip(start, self.stop, shape, strict=True)])
        return Box(start, stop)

    def intersect(self, other: Box) -> Box | None:
        """Return the intersection with another box, or None if it is empty."""
        start = tuple([max(a, b) for a, b in zip(self.start, other.start, strict=True)])
        stop = tuple([min(a, b) for a, b in zip(self.stop, other.stop, strict=True)])
        return Box(start, stop) if all(a < b for a, b in zip(start, stop, strict=True)) else None

    def halve(self, axes: Sequence[int]) -> Box:
        """Return the box in an array that is half as long along `axes`."""
        return Box(
            tuple([a // 2 if i in axes else a for i, a in enumerate(self.start)]),
            tuple([b // 2 if i in axes else b for i, b in enumerate(self.stop)]),
        )

    def pieces(self, chunks: Sequence[int], most: int) -> Iterator[Box]:
        """Cut the box along its first axes into parts of whole chunks, each of at most `most` voxels or one chunk.

        Parameters
        ----------
        chunks : sequence of int
            Voxels of a chunk along each axis; chunks begin at 0.
        most : int
            Voxels of a part.

        Examples
        --------
        >>> [*Box((2, 0), (6, 4)).pieces((2, 2), most=8)]
        [Box(start=(2, 0), stop=(4, 4)), Box(start=(4, 0), stop=(6, 4))]
        """
        if not self.ndim:
            yield self
            return
        first, last = self.start[0], self.stop[0]
        rest = Box(self.start[1:], self.stop[1:])
        step = max(1, most // rest.size // chunks[0]) * chunks[0]
        for low in range(first // step * step, last, step):
            a, b = max(low, first), min(low + step, last)
            for part in rest.pieces(chunks[1:], max(1, most // (b - a))):
                yield Box((a, *part.start), (b, *part.stop))
