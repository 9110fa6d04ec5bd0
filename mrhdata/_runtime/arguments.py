"""Checks of arguments with one form of message: ``NAME must be EXPECTED; got VALUE``."""

from __future__ import annotations

import difflib
import inspect
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mrhdata.errors import ParameterError

#: Characters of a value that messages repeat.
_LONGEST = 80


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise `ParameterError` if a value is not one of those allowed.

    Examples
    --------
    >>> check_choice("padding", "edge", (None, "edge", "reflect"))
    """
    if value not in allowed:
        raise ParameterError(f"{name} must be one of {', '.join(map(str, allowed))}; got {value!r}")


def check_path(name: str, value: Any) -> None:
    """Raise `ParameterError` if a value is not a path.

    Examples
    --------
    >>> check_path("path", "t2w.nii.gz")
    """
    if not isinstance(value, str | os.PathLike):
        raise ParameterError(f"{name} must be a path or URL; got {described(value)}. Pass the name of a file or folder")


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Raise `ParameterError` if a value is not a whole number of at least `least`.

    Examples
    --------
    >>> check_whole("batch_size", 8)
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ParameterError(f"{name} must be a whole number; got {described(value)}. Pass one of {least} or more")
    if value < least:
        raise ParameterError(f"{name} must be {least} or more; got {value}")


def described(value: Any) -> str:
    """Return a value in a few words: numbers and short texts as they are, others by their type and shape.

    Examples
    --------
    >>> described("64"), described(None), described([[1.0, 2.0]])
    ("'64'", 'None', 'a list of length 1')
    """
    if value is None or isinstance(value, numbers.Number | str | bytes | os.PathLike):
        text = repr(value)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = type(value).__name__
    if isinstance(shape := getattr(value, "shape", None), tuple):
        return f"{kind} of shape {shape}"
    return f"a {kind} of length {len(value)}" if isinstance(value, list | tuple | dict | set) else f"a {kind}"


def refuse_unknown(
    function: Callable[..., Any], unknown: Mapping[str, Any], synonyms: Mapping[str, str] | None = None
) -> None:
    """Raise `TypeError` for keyword arguments that a function does not have, and suggest the right name.

    Parameters
    ----------
    function : callable
    unknown : mapping
        Keyword arguments, of which those that it has are accepted.
    synonyms : mapping of str to str, optional
        Names that users of other packages type, and the name here.

    Examples
    --------
    >>> def patches(volume, *, shape): ...
    >>> refuse_unknown(patches, {"patch_size": 64}, {"patch_size": "shape"})
    Traceback (most recent call last):
    TypeError: patches() has no argument 'patch_size'; use shape=
    """
    known = [n for n, p in inspect.signature(function).parameters.items() if p.kind != p.VAR_KEYWORD]
    for name in unknown:
        if name in known:
            continue
        near = (synonyms or {}).get(name) or next(iter(difflib.get_close_matches(name, known, 1)), None)
        remedy = f"use {near}=" if near else f"it has {', '.join(known)}"
        raise TypeError(f"{getattr(function, '__name__', function)}() has no argument {name!r}; {remedy}")
