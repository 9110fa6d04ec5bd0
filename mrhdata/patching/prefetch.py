"""Tiles read ahead by threads: each at the time the plan names, within a budget of bytes."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

#: Bytes of memory that is taken from the system at once.
_SLAB = 16_000_000
#: Batches ahead for which all threads read; beyond, only the first does.
_SOON = 2


@dataclass(frozen=True)
class Loads:
    """What is read and when: one row per reading, in the order of `first`.

    Attributes
    ----------
    tile : (n,) int array
    first, last : (n,) int array
        Batches from and to which it is needed.
    size : (n,) int array
        Bytes.
    needed : int
        Most bytes that are held at one time, copies of blocks included.
    copied : int
        Most bytes of such copies.
    """

    tile: Ints
    first: Ints
    last: Ints
    size: Ints
    needed: int
    copied: int

    def without(self, tiles: Mapping[int, object]) -> Loads:
        """The rest, where some tiles are there already."""
        if not tiles:
            return self
        kept = ~np.isin(self.tile, np.array(list(tiles), dtype=np.int64))
        return replace(self, tile=self.tile[kept], first=self.first[kept], last=self.last[kept], size=self.size[kept])


class BufferPool:
    """Memory that tiles are decoded into, used again and again.

    What a decoder allocates anew for every tile the system has to clear anew, which takes as long as a
    fifth of the decoding.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[BufferPool], tuple[()]]:
        return BufferPool, ()

    def take(self, size: int) -> np.ndarray:
        """Bytes for a tile."""
        with self._lock:
            free = self._free.setdefault(size, [])
            if not free:
                # Many at once, since memory of some megabytes comes in large pages.
                slab = np.empty((max(1, _SLAB // max(1, size)), size), dtype=np.uint8)
                free.extend(slab)
            return free.pop()

    def give(self, room: np.ndarray) -> None:
        """Bytes that are not used any more."""
        with self._lock:
            self._free[len(room)].append(room)


class ReadAhead:
    """Threads that keep the tiles in memory that batches are about to need.

    A tile is begun when all that come before it are begun and there is room for it, so the bytes held
    never exceed the larger of the budget and what one batch needs.

    Parameters
    ----------
    loads : Loads
    tiles : dict
        Filled, and emptied.
    read : callable
        Decodes a tile.
    budget : int
        Bytes.
    threads : int
    rooms : Rooms, optional
        Where tiles are put; each has memory of its own where None, for tiles that stay.
    """

    def __init__(
        self,
        loads: Loads,
        tiles: dict[int, np.ndarray],
        read: Callable[[int, np.ndarray | None], np.ndarray],
        budget: int,
        threads: int,
        rooms: BufferPool | None = None,
    ) -> None:
        self._loads, self._tiles, self._read, self._budget = loads, tiles, read, budget
        self._rooms, self._taken = rooms, dict[int, np.ndarray]()
        self._begun = self._held = self._now = 0
        self._missing = np.bincount(loads.first, minlength=1) if len(loads.first) else np.zeros(1, dtype=np.int64)
        self._frees: dict[int, list[int]] = {}
        for i, batch in enumerate(loads.last.tolist()):
            self._frees.setdefault(batch, []).append(i)
        # A tile may be read ahead for its next use before its last one ends, and even be there first.
        self._users: Counter[int] = Counter()
        self._latest: dict[int, int] = {}
        self._change = threading.Condition()
        #: By the batch that first needs what could not be read.
        self._errors: dict[int, BaseException] = {}
        self._stopped = False
        self._threads = [threading.Thread(target=self._work, args=(i > 0,), daemon=True) for i in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._change:
            self._stopped = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()
        for i in list(self._taken):
            self._give(i)

    def wait_for(self, batch: int) -> None:
        """Return when all tiles of a batch are there; batches are asked for in order."""
        with self._change:
            self._now = batch
            self._change.notify_all()
            while batch < len(self._missing) and self._missing[batch]:
                self._change.wait()
            if batch in self._errors:
                raise self._errors[batch]

    def done_with(self, batch: int) -> None:
        """Let go of the tiles that no batch after this one needs."""
        freed = self._frees.get(batch)
        if freed is None:
            return
        with self._change:
            for i in freed:
                tile = int(self._loads.tile[i])
                self._users[tile] -= 1
                if not self._users[tile]:
                    del self._users[tile], self._tiles[tile], self._latest[tile]
                self._held -= int(self._loads.size[i])
                self._give(i)
            self._change.notify_all()

    def _take(self, i: int) -> np.ndarray | None:
        if self._rooms is None or not self._loads.size[i]:
            return None
        self._taken[i] = self._rooms.take(int(self._loads.size[i]))
        return self._taken[i]

    def _give(self, i: int) -> None:
        room = self._taken.pop(i, None)
        if room is not None and self._rooms is not None:
            self._rooms.give(room)

    def _work(self, helper: bool) -> None:
        while (i := self._next(helper)) is not None:
            number = int(self._loads.tile[i])
            tile: np.ndarray | None
            try:
                tile = self._read(number, self._take(i))
            except BaseException as error:
                # What comes before it is still wanted.
                tile = None
                self._errors[int(self._loads.first[i])] = error
            with self._change:
                if tile is not None and self._latest.get(number, -1) < i:
                    # Memory of an earlier reading is given back earlier.
                    self._tiles[number], self._latest[number] = tile, i
                self._users[number] += 1
                self._missing[self._loads.first[i]] -= 1
                if not self._missing[self._loads.first[i]]:
                    self._change.notify_all()

    def _next(self, helper: bool) -> int | None:
        """Number of the next reading, when there is room for it; None at the end."""
        with self._change:
            while not self._stopped:
                i = self._begun
                if i == len(self._loads.tile):
                    return None
                size, first = int(self._loads.size[i]), int(self._loads.first[i])
                # Helpers only read what is wanted soon: decoding slows down the cutting beside it.
                room = self._held + size <= self._budget and not (helper and first > self._now + _SOON)
                if room or first <= self._now:
                    self._begun += 1
                    self._held += size
                    return i
                self._change.wait()
            return None


def decoders() -> int:
    """Threads that decode: the one that cuts waits for memory half of its time, and leaves room for them."""
    return min(8, os.cpu_count() or 2)
