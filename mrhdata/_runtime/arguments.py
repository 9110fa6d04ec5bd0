"""Checks of arguments with one form of message: ``NAME must be EXPECTED; got VALUE``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mrhdata.errors import ParameterError


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise `ParameterError` if a value is not one of those allowed.

    Examples
    --------
    >>> check_choice("padding", "edge", (None, "edge", "reflect"))
    """
    if value not in allowed:
        raise ParameterError(f"{name} must be one of {', '.join(map(str, allowed))}; got {value!r}")


def refuse_unknown(
    function: Callable[..., Any], unknown: Mapping[str, Any], synonyms: Mapping[str, str] | None = None
) -> None:
    """Raise `TypeError` for keyword arguments that a function does not have, and suggest the right name.

    Parameters
    ----------
    function : callable
    unknown : mapping
        Keyword arguments that it does not have.
    synonyms : mapping of str to str, optional
        Names that users of other packages type, and the name here.

    Examples
    --------
    >>> def patches(volume, *, shape): ...
    >>> refuse_unknown(patches, {"patch_size": 64}, {"patch_size": "shape"})
    Traceback (most recent call last):
    TypeError: patches() has no argument 'patch_size'; use shape=
    """
    for name in unknown:
        known = [n for n, p in inspect.signature(function).parameters.items() if p.kind != p.VAR_KEYWORD]
        near = (synonyms or {}).get(name) or next(iter(difflib.get_close_matches(name, known, 1)), None)
        remedy = f"use {near}=" if near else f"it has {', '.join(known)}"
        raise TypeError(f"{getattr(function, '__name__', function)}() has no argument {name!r}; {remedy}")
