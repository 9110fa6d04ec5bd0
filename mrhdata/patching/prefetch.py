"""Threads that decode tiles ahead, in the order of the plan and within a budget of bytes."""

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

#: Bytes that are requested from the system at once.
_ALLOCATION_BYTES = 16_000_000
#: Batches ahead of the current one that all threads decode for. Only the first thread decodes for later ones.
_HELPER_BATCHES = 2


@dataclass(frozen=True)
class Loads:
    """Schedule of tiles to decode: one item per reading, in the order of `first`.

    Attributes
    ----------
    tile : (n,) int array
        Number of the tile.
    first, last : (n,) int array
        First and last batch that need it.
    size : (n,) int array
        Bytes.
    needed : int
        Peak bytes in memory, joined copies included.
    copied : int
        Peak bytes of joined copies.
    """

    tile: Ints
    first: Ints
    last: Ints
    size: Ints
    needed: int
    copied: int

    def without(self, tiles: Mapping[int, object]) -> Loads:
        """Return the schedule less some tiles that are in memory already."""
        if not tiles:
            return self
        rest = ~np.isin(self.tile, np.array(list(tiles), dtype=np.int64))
        return replace(self, tile=self.tile[rest], first=self.first[rest], last=self.last[rest], size=self.size[rest])


class BufferPool:
    """Reusable memory that tiles are decoded into.

    The system clears memory that is newly allocated, which takes a fifth of the time of decoding a tile.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[BufferPool], tuple[()]]:
        return BufferPool, ()

    def take(self, size: int) -> np.ndarray:
        """Return a buffer of some bytes."""
        with self._lock:
            free = self._free.setdefault(size, [])
            if not free:
                # Requests of several megabytes are served in large pages.
                free.extend(np.empty((max(1, _ALLOCATION_BYTES // max(1, size)), size), dtype=np.uint8))
            return free.pop()

    def give(self, buffer: np.ndarray) -> None:
        """Take back a buffer that is no longer used."""
        with self._lock:
            self._free[len(buffer)].append(buffer)


class ReadAhead:
    """Threads that decode tiles before batches need them.

    Tiles are begun in order, each when its bytes fit the budget. So the bytes in memory never exceed the larger of the
    budget and the tiles of one batch.

    Parameters
    ----------
    loads : Loads
    tiles : dict
        Tiles in memory by number; tiles are added and removed.
    read : callable
        Function of a tile's number and a buffer (or None) that decodes the tile.
    budget : int
        Bytes.
    threads : int
    buffers : BufferPool, optional
        Memory to decode into. By default each tile has its own memory, for tiles that stay.
    """

    def __init__(
        self,
        loads: Loads,
        tiles: dict[int, np.ndarray],
        read: Callable[[int, np.ndarray | None], np.ndarray],
        budget: int,
        threads: int,
        buffers: BufferPool | None = None,
    ) -> None:
        self._loads, self._tiles, self._read, self._budget = loads, tiles, read, budget
        self._buffers, self._lent = buffers, dict[int, np.ndarray]()
        self._next_index = self._bytes_in_memory = self._current_batch = 0
        self._missing = np.bincount(loads.first, minlength=1) if len(loads.first) else np.zeros(1, dtype=np.int64)
        self._last_uses: dict[int, list[int]] = {}
        for i, batch in enumerate(loads.last.tolist()):
            self._last_uses.setdefault(batch, []).append(i)
        # A tile may be decoded for its next use before its last one ends, and the later reading may finish first.
        self._users: Counter[int] = Counter()
        self._latest: dict[int, int] = {}
        self._change = threading.Condition()
        #: Errors of tiles, by the first batch that needs the tile.
        self._errors: dict[int, BaseException] = {}
        self._stopped = False
        self._threads = [threading.Thread(target=self._work, args=(i > 0,), daemon=True) for i in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._change:
            self._stopped = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()
        for i in list(self._lent):
            self._return_buffer(i)

    def wait_for(self, batch: int) -> None:
        """Wait until all tiles of a batch are in memory; batches must come in order."""
        with self._change:
            self._current_batch = batch
            self._change.notify_all()
            while batch < len(self._missing) and self._missing[batch]:
                self._change.wait()
            if batch in self._errors:
                raise self._errors[batch]

    def done_with(self, batch: int) -> None:
        """Remove the tiles that no later batch needs."""
        freed = self._last_uses.get(batch)
        if freed is None:
            return
        with self._change:
            for i in freed:
                tile = int(self._loads.tile[i])
                self._users[tile] -= 1
                if not self._users[tile]:
                    del self._users[tile], self._tiles[tile], self._latest[tile]
                self._bytes_in_memory -= int(self._loads.size[i])
                self._return_buffer(i)
            self._change.notify_all()

    def _take_buffer(self, i: int) -> np.ndarray | None:
        if self._buffers is None or not self._loads.size[i]:
            return None
        self._lent[i] = self._buffers.take(int(self._loads.size[i]))
        return self._lent[i]

    def _return_buffer(self, i: int) -> None:
        buffer = self._lent.pop(i, None)
        if buffer is not None and self._buffers is not None:
            self._buffers.give(buffer)

    def _work(self, helper: bool) -> None:
        while (i := self._next(helper)) is not None:
            number = int(self._loads.tile[i])
            tile: np.ndarray | None = None
            failure: BaseException | None = None
            try:
                tile = self._read(number, self._take_buffer(i))
            except BaseException as error:
                failure = error
            with self._change:
                if failure is not None:
                    # Raised by `wait_for`: batches before this one are still valid.
                    self._errors.setdefault(int(self._loads.first[i]), failure)
                if tile is not None and self._latest.get(number, -1) < i:
                    # The latest reading counts: the buffer of an earlier one is returned earlier.
                    self._tiles[number], self._latest[number] = tile, i
                self._users[number] += 1
                self._missing[self._loads.first[i]] -= 1
                if not self._missing[self._loads.first[i]]:
                    self._change.notify_all()

    def _next(self, helper: bool) -> int | None:
        """Return the index of the next reading once it fits the budget; None at the end."""
        with self._change:
            while not self._stopped:
                i = self._next_index
                if i == len(self._loads.tile):
                    return None
                size, first = int(self._loads.size[i]), int(self._loads.first[i])
                # Helpers decode only for batches that come soon: decoding slows down the thread that cuts patches.
                fits = self._bytes_in_memory + size <= self._budget and not (
                    helper and first > self._current_batch + _HELPER_BATCHES
                )
                if fits or first <= self._current_batch:
                    self._next_index += 1
                    self._bytes_in_memory += size
                    return i
                self._change.wait()
            return None


def decoders() -> int:
    """Return the number of decoding threads.

    They may take all cores: the thread that cuts patches waits for memory half of its time.
    """
    return min(8, os.cpu_count() or 2)
