"""Progress of long runs, shown as a bar or passed to a callback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

Progress = bool | Callable[[int, int], None]


@contextmanager
def progress_bar(
    progress: Progress, total: int, already: int, label: tuple[str, int, str]
) -> Iterator[Callable[[int], None]]:
    """Yield a function that reports finished bytes.

    Parameters
    ----------
    progress : bool or callable
        Whether to show a bar, or a function of (bytes done, total bytes).
    total, already : int
        Bytes of the whole run, and bytes that an earlier run has finished.
    label : (str, int, str)
        Description of the bar, bytes per unit, and name of the unit.
    """
    if callable(progress):
        done = already

        def report(size: int) -> None:
            nonlocal done
            done += size
            progress(done, total)

        yield report
        return
    description, unit_bytes, unit = label
    with tqdm(
        total=total // unit_bytes,
        initial=already // unit_bytes,
        unit=unit,
        unit_scale=True,
        disable=not progress,
        desc=description,
    ) as bar:
        yield lambda size: bar.update(size // unit_bytes)
