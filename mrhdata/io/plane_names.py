"""Order, channels and times of plane files by their names.

Planes of a folder must have names that differ only in numbers. One running number orders the planes. Several are
planes, channels and times if letters say so (Z, C, T) or if the user says so in a pattern such as
``brain_Z{z}_C{c}.tif``; otherwise they are refused.
"""

from __future__ import annotations

import glob
import itertools
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from mrhdata.errors import FormatError

log = logging.getLogger("mrhdata")

_ENDINGS = (".tif", ".tiff", ".png")
#: Words of files that are not planes: projections of ImageJ and others, and pictures for viewing.
_NOT_PLANES = {
    *("max", "min", "avg", "sum", "std", "med", "mip", "proj", "projection", "maxproj"),
    *("thumb", "thumbs", "thumbnail", "preview", "overview", "macro", "montage"),
}
#: Word before a number -> dim that the number counts.
_ROLES = {
    **dict.fromkeys(("z", "slice", "sl", "plane", "section", "sec"), "z"),
    **dict.fromkeys(("c", "ch", "chan", "chn", "channel", "w", "wavelength"), "c"),
    **dict.fromkeys(("t", "tp", "time", "timepoint"), "t"),
}
#: Most files that a single number is taken to count channels of.
_MOST_CHANNELS = 8
_WORDS = {"z": "planes", "c": "channels", "t": "times"}
#: A number. A sign belongs to it unless it follows a letter or digit, as in "brain-001".
_NUMBER = re.compile(r"((?:(?<![A-Za-z0-9])[-+])?[0-9]+(?:\.[0-9]+)?)")
_PLACEHOLDER = re.compile(r"\{([zct])\}")
_WILDCARD = re.compile(r"(\{[zct]\}|\*|\?|\[[^\]]*\])")
_PLACEHOLDER_VALUES = {"z": r"[-+]?[0-9]+(?:\.[0-9]+)?", "t": "[0-9]+", "c": "[^/]+?"}


@dataclass(frozen=True)
class Arrangement:
    """Files of planes in the order of their dims.

    Attributes
    ----------
    paths : list of path
        Files, the last dim fastest.
    dims : tuple of str
        Some of ``t, c, z``, in this order.
    shape : tuple of int
        Number of values along `dims`.
    channels : list of str, optional
        Names of the channels.
    """

    paths: list[Path]
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    channels: list[str] | None = None


def is_pattern(path: Path) -> bool:
    """Return whether a path stands for several files.

    Its name has ``*``, ``?`` or ``[``, or it has a placeholder ``{z}``, ``{c}`` or ``{t}``.

    Examples
    --------
    >>> is_pattern(Path("scan/a_*.tif")), is_pattern(Path("scan/C{c}/Z{z}.tif")), is_pattern(Path("scan/a.tif"))
    (True, True, False)
    """
    wild = any(c in path.name for c in "*?[") or _PLACEHOLDER.search(str(path)) is not None
    return wild and not path.exists()


def planes_of(where: Path) -> list[Path]:
    """Return the plane files of a folder or pattern, in natural order: 2 before 10.

    Raises
    ------
    FormatError
        The files are of several formats.
    """
    files = where.iterdir() if where.is_dir() else _matches(where)
    planes = [p for p in files if p.suffix.lower() in _ENDINGS and not p.name.startswith(".") and p.is_file()]
    endings = {p.suffix.lower().replace("tiff", "tif") for p in planes}
    if len(endings) > 1:
        raise FormatError(
            f"{where} holds planes of several kinds, {sorted(endings)}; choose one with a pattern such as '*.tif'"
        )
    return sorted(planes, key=lambda path: _natural(str(path)))


def arranged(where: Path) -> Arrangement:
    """Return the planes of a folder or pattern in order.

    Raises
    ------
    FormatError
        No file matches, or the names leave the order open.
    """
    paths = planes_of(where)
    if not paths:
        raise FormatError(f"{where}: no TIFF or PNG file matches; check the pattern")
    if _PLACEHOLDER.search(str(where)):
        return _by_pattern(where, paths)
    paths = _without_pictures(where, paths)
    return _by_names(where, paths)


def folder_of(where: Path) -> Path:
    """Return the folder that contains all files of a pattern."""
    return where if where.is_dir() else _split(where)[0]


def _natural(text: str) -> list[tuple[int, str]]:
    # Texts and numbers alternate, so that only like is compared with like.
    pieces = re.split(r"([0-9]+)", text)
    return [(int(piece), "") if i % 2 else (0, piece.lower()) for i, piece in enumerate(pieces)]


def _split(pattern: Path) -> tuple[Path, str]:
    """Return the folder of a pattern, and the part with placeholders or wildcards."""
    parts = pattern.parts
    first = next((i for i, part in enumerate(parts) if _WILDCARD.search(part)), len(parts) - 1)
    return Path(*parts[:first]), "/".join(parts[first:])


def _matches(pattern: Path) -> list[Path]:
    folder, rest = _split(pattern)
    return [p for p in folder.glob(_PLACEHOLDER.sub("*", rest)) if _expression(rest).fullmatch(_relative(p, folder))]


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _expression(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern; a repeated placeholder has one value."""
    seen: set[str] = set()
    text = ""
    for piece in _WILDCARD.split(pattern):
        if match := _PLACEHOLDER.fullmatch(piece):
            name = match[1]
            text += f"(?P={name})" if name in seen else f"(?P<{name}>{_PLACEHOLDER_VALUES[name]})"
            seen.add(name)
        elif piece in ("*", "?"):
            text += "[^/]*" if piece == "*" else "[^/]"
        else:
            is_set = len(piece) > 2 and piece[0] == "["
            text += piece.replace("[!", "[^", 1) if is_set else re.escape(piece)
    return re.compile(text)


def _by_pattern(where: Path, paths: list[Path]) -> Arrangement:
    """Arrange files by the placeholders of a pattern."""
    folder, rest = _split(where)
    expression = _expression(rest)
    matches = [expression.fullmatch(_relative(path, folder)) for path in paths]
    return _grid(where, paths, [match.groupdict() for match in matches if match is not None])


def _grid(where: Path, paths: Sequence[Path], keys: Sequence[dict[str, str]]) -> Arrangement:
    """Arrange files by their values along each dim. Every combination of values must have one file."""
    dims = tuple(d for d in ("t", "c", "z") if d in keys[0])
    texts = {d: {_rank(key[d], d): key[d] for key in keys} for d in dims}
    files: dict[tuple[Any, ...], Path] = {}
    for path, key in zip(paths, keys, strict=True):
        place = tuple(_rank(key[d], d) for d in dims)
        if place in files:
            raise FormatError(f"{where} must have one file per number; got {files[place].name} and {path.name}")
        files[place] = path
    wanted = list(itertools.product(*(sorted(texts[d]) for d in dims)))
    missing = [place for place in wanted if place not in files]
    if missing:
        words = ", ".join(f"{d} = {texts[d][rank]}" for d, rank in zip(dims, missing[0], strict=True))
        raise FormatError(f"{where} must have {len(wanted)} planes; {len(missing)} are missing, the first at {words}")
    if dims and dims[-1] == "z":
        _warn_of_gaps(where, sorted(texts["z"]), files, wanted)
    channels = [texts["c"][rank] for rank in sorted(texts["c"])] if "c" in dims else None
    return Arrangement([files[place] for place in wanted], dims, tuple(len(texts[d]) for d in dims), channels)


def _rank(text: str, dim: str) -> Any:
    """Return what a dim is sorted by: numbers, or the names of channels."""
    return tuple(_natural(text)) if dim == "c" else Decimal(text)


def _warn_of_gaps(where: Path, numbers: Sequence[Decimal], files: dict[Any, Path], wanted: Sequence[Any]) -> None:
    """Warn about missing planes: all planes after a gap would be misplaced by its length."""
    steps = np.diff(np.array([float(number - numbers[0]) for number in numbers]))
    if len(steps) < 2:
        return
    gaps = np.flatnonzero(steps > 1.5 * np.median(steps))
    if len(gaps):
        log.warning(
            "%s: planes are missing after %s (%d gaps); gaps are not filled",
            where, files[wanted[gaps[0]]].name, len(gaps),
        )  # fmt: skip


def _without_pictures(where: Path, paths: list[Path]) -> list[Path]:
    """Return the files without projections and previews, if others remain, and warn about them."""
    planes = [path for path in paths if not _NOT_PLANES & {word.lower() for word in re.split(r"[^A-Za-z]+", path.stem)}]
    left_out = len(paths) - len(planes)
    if not left_out or not planes:
        return paths
    name = next(path.name for path in paths if path not in planes)
    log.warning(
        "%s: %d projections or previews are left out, such as %s; pass a pattern to choose",
        where, left_out, name,
    )  # fmt: skip
    return planes


def _by_names(where: Path, paths: list[Path]) -> Arrangement:
    """Arrange files whose names differ in their numbers only."""
    # Texts have even places, numbers odd ones.
    names = [_NUMBER.split(path.stem) for path in paths]
    _check_texts(where, paths, names)
    running = [i for i in range(1, len(names[0]), 2) if len({name[i] for name in names}) > 1]
    for i in running:
        _check_number(where, paths[0].suffix, names, i)
    if not running:
        return _grid(where, paths, [{"z": str(k)} for k in range(len(paths))])
    roles = _roles(where, paths[0].suffix, names, running)
    return _grid(where, paths, [{dim: name[i] for i, dim in roles.items()} for name in names])


def _check_texts(where: Path, paths: list[Path], names: list[list[str]]) -> None:
    """Raise FormatError if names differ in more than numbers. Names without numbers are in alphabetical order."""
    kinds: dict[tuple[str, ...], list[Path]] = {}
    for path, name in zip(paths, names, strict=True):
        kinds.setdefault(tuple(text.lower() for text in name[::2]), []).append(path)
    if len(kinds) == 1:
        return
    if max(map(len, names)) == 1:
        log.warning("%s: the names hold no numbers; planes are in alphabetical order", where)
        return
    patterns = {
        _NUMBER.sub("*", glob.escape(p.stem)) + p.suffix: len(files) for files in kinds.values() for p in files[:1]
    }
    listed = ", ".join(f"{pattern} ({count})" for pattern, count in patterns.items())[:300]
    raise FormatError(
        f"{where} must hold planes whose names differ in numbers only; got {len(kinds)} kinds: {listed}. Pass one as a "
        "pattern, or read the kinds as channels with a pattern that has {c} for their words and {z} for the number"
    )


def _check_number(where: Path, suffix: str, names: list[list[str]], i: int) -> None:
    """Raise FormatError if a running number can be read in two ways that give different orders."""
    numbers = [name[i] for name in names]
    before = names[0][i - 1]
    decimal = any("." in number for number in numbers)
    # "brain-0.5" has a sign or a hyphen; "_-001", "_-002" have signs only if they are not counted.
    hyphen = before.endswith("-") and decimal
    signs = not decimal and len(numbers) > 1 and all(number[0] == "-" for number in numbers)
    parts = [tuple(int(part) for part in number.lstrip("+-").split(".")) for number in numbers]
    counted = decimal and all(len(part) == 2 for part in parts) and not any(number[0] == "-" for number in numbers)
    orders = [sorted(range(len(numbers)), key=k) for k in (lambda j: Decimal(numbers[j]), lambda j: parts[j])]
    if not (hyphen or signs or (counted and orders[0] != orders[1])):
        return
    text, number = names[0][i - 1 : i + 1]
    ways = {hyphen: (text[:-1], text), signs: (text, f"{text}-")}.get(True, (text, f"{text}{number.split('.')[0]}."))
    rest = "".join(names[0][i + 1 :]) + suffix
    patterns = " or ".join("".join(names[0][: i - 1]) + way + "{z}" + rest for way in ways)
    raise FormatError(
        f"{where}: the order of numbers such as {number} and {names[-1][i]} is not certain: signs or hyphens, decimals "
        f"or two numbers. Pass a pattern such as {patterns}"
    )


def _roles(where: Path, suffix: str, names: list[list[str]], running: list[int]) -> dict[int, str]:
    """Return the dim of each running number."""
    known = {i: _ROLES.get(_word(names[0][i - 1])) for i in running}
    roles = {i: dim for i, dim in known.items() if dim is not None}
    index = _common_order([[Decimal(name[i]) for name in names] for i in running])
    index = 0 if len(running) == 1 else index
    if not {"c", "t"} & set(roles.values()) and index is not None:
        return {running[index]: "z"}
    if len(running) == 1 and list(roles.values()) == ["c"] and len(names) > _MOST_CHANNELS:
        # "ch00000.tif" to "ch00029.tif" are the planes of one channel, as cellfinder names them.
        roles = {running[0]: "z"}
    if len(roles) < len(running) or len(set(roles.values())) < len(roles):
        unique = next((i for i in running if len({name[i] for name in names}) == len(names)), None)
        letters = dict(zip(running, "ctz"[-len(running) :], strict=False))
        example = _pattern(names[0], letters if unique is None else dict.fromkeys(running, "*") | {unique: "z"}, suffix)
        raise FormatError(
            f"{where}: the names have {len(running)} running numbers. Say which are planes, channels and times with a "
            f"pattern such as {example}"
        )
    listed = " and ".join(_WORDS[dim] for dim in roles.values())
    pattern = _pattern(names[0], roles, suffix)
    log.warning("%s: numbers in the names are read as %s, as in the pattern %s", where, listed, pattern)
    return roles


def _common_order(columns: list[list[Decimal]]) -> int | None:
    """Return the number that orders all files if the other ones never run against it, otherwise None."""
    for index, column in enumerate(columns):
        order = sorted(range(len(column)), key=column.__getitem__)
        rising = all(other[a] <= other[b] for other in columns for a, b in itertools.pairwise(order))
        if len(set(column)) == len(column) and rising:
            return index
    return None


def _word(text: str) -> str:
    """Return the last word of the text before a number, in lower case: "z" of ``brain_Z``, "ch" of ``brainCh-``."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)
    return str(words[-1]).lower() if words else ""


def _pattern(name: list[str], roles: dict[int, str], suffix: str) -> str:
    texts = {i: role if role == "*" else f"{{{role}}}" for i, role in roles.items()}
    return "".join(texts.get(i, piece) for i, piece in enumerate(name)) + suffix
