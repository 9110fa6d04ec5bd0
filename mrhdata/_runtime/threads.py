"""Iterators that are consumed ahead of time in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def run_ahead(items: Iterable[Item], ahead: int, on_close: Callable[[], None] | None = None) -> Iterator[Item]:
    """Yield items that a thread computes in advance.

    Closing the iterator waits for the item in progress.

    Parameters
    ----------
    items : iterable
    ahead : int
        Largest number of items computed before they are requested.
    on_close : callable, optional
        Function called before that wait, which may cancel the item in progress.

    Examples
    --------
    >>> list(run_ahead(range(3), ahead=2))
    [0, 1, 2]
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        futures = deque(pool.submit(next, iterator, end) for _ in range(max(1, ahead)))
        try:
            while (item := futures.popleft().result()) is not end:
                futures.append(pool.submit(next, iterator, end))
                yield item  # type: ignore[misc]
        finally:
            if on_close is not None:
                on_close()
            for future in futures:
                future.cancel()
            # A generator may be closed only after its current item, so the same thread closes it.
            pool.submit(getattr(iterator, "close", tuple)).result()
