"""Budgets of memory."""

from __future__ import annotations

from mrhdata.errors import ParameterError


def in_bytes(memory: int | str, least: int = 10_000_000) -> int:
    """Bytes of a budget such as ``"512 MB"``.

    Parameters
    ----------
    memory : int or str
    least : int
        Fewer bytes are refused; by default those that one shard and its neighbours need.

    Raises
    ------
    ParameterError
        It is no size, or too small.

    Examples
    --------
    >>> in_bytes("1.5 GB")
    1500000000
    """
    from dask.utils import parse_bytes

    try:
        found = int(parse_bytes(memory))
    except (ValueError, AttributeError, TypeError) as error:
        raise ParameterError(f"memory must be a number of bytes or a size such as '500 MB'; got {memory!r}") from error
    if found < least:
        raise ParameterError(f"memory must be at least {least / 1e6:g} MB; got {memory!r}. Pass a larger budget")
    return found
