"""Progress of long work: a bar, or a function of the caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

Progress = bool | Callable[[int, int], None]


@contextmanager
def steps(progress: Progress, total: int, already: int, shown: tuple[str, int, str]) -> Iterator[Callable[[int], None]]:
    """A function that is told of bytes as they are done; `already` were done by an earlier run."""
    if callable(progress):
        so_far = already

        def tell(size: int) -> None:
            nonlocal so_far
            so_far += size
            progress(so_far, total)

        yield tell
        return
    what, each, unit = shown
    with tqdm(
        total=total // each, initial=already // each, unit=unit, unit_scale=True, disable=not progress, desc=what
    ) as bar:
        yield lambda size: bar.update(size // each)
