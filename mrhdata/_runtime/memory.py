"""Memory budgets."""

from __future__ import annotations

import math
import os

from mrhdata.errors import ParameterError

#: Smallest budget, enough for one shard and its neighbours.
LEAST_BYTES = 10_000_000
#: Share of a budget within which parts of a source are decoded at the same time.
_READ_SHARE = 1 / 4
#: Bytes that other work takes next to a source of hundreds of MB: blocks of one shard, and encoded ones.
_WORK_BYTES = 64_000_000


def parse_memory(memory: int | str, least: int = LEAST_BYTES) -> int:
    """Return a memory budget such as ``"512 MB"`` in bytes.

    Parameters
    ----------
    memory : int or str
        Number of bytes, or a size with a unit.
    least : int
        Smallest budget allowed, in bytes; by default enough for one shard and its neighbours.

    Raises
    ------
    ParameterError
        If `memory` is not a size, or is below `least`.

    Examples
    --------
    >>> parse_memory("1.5 GB")
    1500000000
    """
    from dask.utils import parse_bytes

    try:
        size = int(parse_bytes(memory))
    except (ValueError, AttributeError, TypeError) as error:
        raise ParameterError(f"memory must be a number of bytes or a size such as '500 MB'; got {memory!r}") from error
    if size < least:
        raise ParameterError(f"memory must be at least {least / 1e6:g} MB; got {memory!r}. Pass a larger budget")
    return size


def remaining_memory(needed: int, memory: int, label: str, least: int = 0) -> int:
    """Return the budget next to a source: all of it, or less if the smallest part of the source takes much of it.

    Parameters
    ----------
    needed : int
        Bytes in memory while the smallest part of the source is read
        (:func:`mrhdata.volume.file_arrays.bytes_at_once`).
    memory : int
        Budget in bytes.
    label : str
        Name of the source in the error.
    least : int
        Smallest budget of the other work in bytes.

    Raises
    ------
    ParameterError
        The smallest part of the source does not fit.

    Examples
    --------
    >>> remaining_memory(1_000_000, 500_000_000, "a.nii.gz"), remaining_memory(200_000_000, 500_000_000, "a.nii.gz")
    (500000000, 300000000)
    """
    if needed <= memory * _READ_SHARE:
        return memory
    least = max(least, min(_WORK_BYTES, needed // 4))
    if memory - needed < least:
        raise ParameterError(
            f"memory must be at least {_rounded_up(needed + least)} for {label}, of which {needed / 1e6:.0f} MB are "
            f"needed at once; got {memory / 1e6:.0f} MB. Pass a larger budget"
        )
    return memory - needed


def reading_threads(needed: int, memory: int | None, most: int | None = None) -> int:
    """Return the number of threads that read a source at the same time.

    Parameters
    ----------
    needed : int
        Bytes in memory while the smallest part of the source is read.
    memory : int, optional
        Budget in bytes.
    most : int, optional
        Largest number of threads, by default the number of processors.
    """
    most = most or os.cpu_count() or 1
    return most if memory is None else max(1, min(most, int(memory * _READ_SHARE) // max(1, needed)))


def _rounded_up(size: int) -> str:
    """Return a number of bytes, rounded up, in MB or GB."""
    return f"{math.ceil(size / 1e6)} MB" if size < 1e9 else f"{math.ceil(size / 1e7) / 100:.2f} GB"
