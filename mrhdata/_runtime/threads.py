"""Work that runs ahead in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def in_thread(items: Iterable[Item], ahead: int, leaving: Callable[[], None] | None = None) -> Iterator[Item]:
    """The items, made in a thread of their own, no more than `ahead` before they are taken.

    Whoever stops taking them waits for the one that is being made; `leaving` is called before, so that it can be
    given up half-way.

    Examples
    --------
    >>> list(in_thread(range(3), ahead=2))
    [0, 1, 2]
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, iterator, end) for _ in range(max(1, ahead)))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, iterator, end))
                yield item  # type: ignore[misc]
        finally:
            if leaving is not None:
                leaving()
            for future in waiting:
                future.cancel()
            # In its own thread, after what it is just making.
            pool.submit(getattr(iterator, "close", tuple)).result()
