"""Memory budgets."""

from __future__ import annotations

from mrhdata.errors import ParameterError

#: Smallest budget, enough for one shard and its neighbours.
LEAST_BYTES = 10_000_000


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
