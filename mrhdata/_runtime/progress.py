"""Progress of long runs, shown as a bar or passed to a callback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm.auto import tqdm

Progress = bool | Callable[[int, int], None]


@dataclass(frozen=True)
class ProgressLabel:
    """Text and unit of a progress bar.

    Parameters
    ----------
    text : str
        Description of the bar.
    unit_bytes : int
        Bytes per unit.
    unit : str
        Name of the unit.
    """

    text: str
    unit_bytes: int
    unit: str


@contextmanager
def progress_bar(progress: Progress, total: int, already: int, label: ProgressLabel) -> Iterator[Callable[[int], None]]:
    """Yield a function that reports finished bytes.

    Parameters
    ----------
    progress : bool or callable
        Whether to show a bar, or a function of (bytes done, total bytes).
    total, already : int
        Bytes of the whole run, and bytes that an earlier run has finished.
    label : ProgressLabel
    """
    if callable(progress):
        done = already

        def report(size: int) -> None:
            nonlocal done
            done += size
            progress(done, total)

        yield report
        return
    with tqdm(
        total=total // label.unit_bytes,
        initial=already // label.unit_bytes,
        unit=label.unit,
        unit_scale=True,
        disable=not progress,
        desc=label.text,
    ) as bar:
        yield lambda size: bar.update(size // label.unit_bytes)
