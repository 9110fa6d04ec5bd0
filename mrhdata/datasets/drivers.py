"""Drivers that catalogues may name, with their arguments and the types of these."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from mrhdata.io.formats import Options

#: Driver of catalogues within catalogues.
NESTED = "yaml_file_cat"

#: Words for the expected value of an argument, and the function that tells whether a value is one.
Rule: TypeAlias = tuple[str, Callable[[Any], bool]]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", value)


def _is_path(value: Any) -> bool:
    return _is_text(value) and bool(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_scalar(value: Any) -> bool:
    return _is_text(value) or _is_number(value)


def _are_three(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == len("zyx") and all(map(_is_number, value))


def _is_number_or_three(value: Any) -> bool:
    return _is_number(value) or _are_three(value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


_TEXT: Rule = ("text", _is_text)
_PATH: Rule = ("a path or URL", _is_path)
_SCALAR: Rule = ("text or a number", _is_scalar)
_WHOLE: Rule = ("a whole number", _is_whole)
_OPTIONS: Rule = ("a mapping", _is_mapping)

#: Options of `mrhdata.read` with other values than text and numbers.
_VOLUME_OPTIONS: dict[str, Rule] = {
    **dict.fromkeys(("axes", "unit", "space", "kind", "units", "modality", "name", "dataset"), _TEXT),
    "spacing": ("a number or three", _is_number_or_three),
    "origin": ("three numbers", _are_three),
    **dict.fromkeys(("level", "time"), _WHOLE),
    "storage_options": _OPTIONS,
}
#: Options that a catalogue may set. Those of type bool give permissions, which the author of a catalogue cannot give.
_ALLOWED = [name for name, kind in Options.__annotations__.items() if "bool" not in str(kind)]

#: Driver -> arguments, each with the expected type. All of them only read data.
DRIVERS: dict[str, dict[str, Rule]] = {
    "mrh_volume": {"urlpath": _PATH, **{name: _VOLUME_OPTIONS.get(name, _SCALAR) for name in _ALLOWED}},
    **{name: {"urlpath": _PATH, "component": _TEXT, "storage_options": _OPTIONS} for name in ("zarr", "ndzarr")},
    NESTED: {"path": _PATH},
}
