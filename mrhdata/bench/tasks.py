"""Tasks: what is to be answered, from which subjects, and how it is scored. A task is a TOML file, data alone."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from mrhdata.bench.api import KINDS
from mrhdata.errors import DataError

log = logging.getLogger("mrhdata")

#: Parts of a split, in the order in which they are used.
PARTS = ("training", "validation", "test")


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes
    ----------
    name : str
        Of its file.
    title, kind : str
        `kind` is one of `KINDS`.
    data : mapping
        Where subjects come from: ``phantom`` and its ``settings``, or ``catalog``, a path beside the task; names of
        ``inputs``, ``truth`` and ``mask``.
    split : mapping
        For each of `PARTS`, the subjects: seeds of a phantom, names in a catalogue, or tables of ``subject`` and
        ranges of voxels such as ``z = [0, 100]``; ``guard_mm`` between ranges of one subject.
    settings : mapping
        For methods and scores.
    block_mm : (3,) tuple of float
        Edges of the blocks of the test volumes that intervals weight, z, y, x; 0 for the whole length.
    voxels : int
        Of each training subject that methods of voxels learn from.
    needs : str
        A folder beside the task without which it is left out; none where empty.
    quick : bool
    """

    name: str
    title: str
    kind: str
    data: Mapping[str, Any]
    split: Mapping[str, Any]
    block_mm: tuple[float, float, float]
    settings: Mapping[str, Any] = field(default_factory=dict)
    voxels: int = 4000
    needs: str = ""
    quick: bool = False
    folder: Path = field(default=Path(), compare=False)

    @property
    def slug(self) -> str:
        """A name that tells the quick form apart."""
        return slug_of(self.name, quick=self.quick)


def slug_of(name: str, *, quick: bool) -> str:
    """A task's name that tells its quick form apart."""
    return name + ("-quick" if quick else "")


def read_task(path: str | Path, *, quick: bool = False) -> Task:
    """Read a task.

    Parameters
    ----------
    path : path
        TOML, with the fields of :class:`Task`; a table ``quick`` overrides what is smaller in the quick form, and
        without one there is none.
    quick : bool

    Raises
    ------
    DataError
        It is no TOML, or a field is missing, unknown or of no use.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "myelin.toml"
    >>> _ = file.write_text('''
    ... title = "Virtual myelin"
    ... kind = "histology"
    ... block_mm = [2, 2, 2]
    ... [data]
    ... phantom = "mouse"
    ... inputs = ["t2w"]
    ... truth = "mbp"
    ... [split]
    ... training = [1]
    ... validation = [2]
    ... test = [3]
    ... [quick]
    ... voxels = 100
    ... ''')
    >>> read_task(file).voxels, read_task(file, quick=True).slug
    (4000, 'myelin-quick')
    """
    file = Path(path)
    try:
        held = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror}); give a task file or a folder with tasks/"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not TOML: {error}") from error
    smaller = held.pop("quick", None)
    if quick and smaller is None:
        raise DataError(f"{file} has no table [quick], and so no quick form; leave it out, or run it in full")
    if quick:
        held = _over(held, smaller)
    known = {f.name for f in fields(Task)} - {"name", "quick", "folder"}
    wrong = sorted(set(held) - known)
    missing = sorted({"title", "kind", "data", "split", "block_mm"} - set(held))
    if wrong or missing:
        raise DataError(
            f"{file}: {wrong} are no fields of a task and {missing} are missing; fields are {sorted(known)}"
        )
    task = Task(name=file.stem, quick=quick, folder=file.parent, **{**held, "block_mm": tuple(held["block_mm"])})
    _check(task, file)
    return task


def _over(held: Mapping[str, Any], smaller: Mapping[str, Any]) -> dict[str, Any]:
    """Tables with some of their fields replaced."""
    found = dict(held)
    for key, value in smaller.items():
        found[key] = _over(found.get(key, {}), value) if isinstance(value, Mapping) else value
    return found


def _check(task: Task, file: Path) -> None:
    if task.kind not in KINDS:
        raise DataError(f"{file}: kind is one of {', '.join(KINDS)}, not {task.kind!r}")
    empty = [part for part in PARTS if not task.split.get(part)]
    if empty:
        raise DataError(f"{file}: the split has no subjects for {empty}; it names those of {', '.join(PARTS)}")
    if ("phantom" in task.data) == ("catalog" in task.data):
        raise DataError(
            f"{file}: data come from a phantom or from a catalog; name one of them, not {sorted(task.data)}"
        )
    if np.shape(task.block_mm) != (3,) or min(task.block_mm) < 0:
        raise DataError(f"{file}: block_mm is three lengths along z, y, x, not {list(task.block_mm)}")


def tasks_of(folder: str | Path, *, quick: bool = False, only: list[str] | None = None) -> list[Task]:
    """Every task of a folder, of its ``tasks/`` or itself, or those that are named.

    Tasks whose data are not there are left out with a warning, those without a quick form in silence.

    Raises
    ------
    DataError
        There are none, or one that was named is missing.
    """
    place = Path(folder)
    files = sorted((place / "tasks").glob("*.toml")) or sorted(place.glob("*.toml"))
    if not files:
        raise DataError(f"{place} has no tasks/*.toml; give the folder that has, such as benchmarks/")
    names = [file.stem for file in files]
    missing = sorted(set(only or []) - set(names))
    if missing:
        raise DataError(f"there are no tasks {missing} in {place}; there are {names}")
    if only:
        return [read_task(file, quick=quick) for file in files if file.stem in only]
    found = [read_task(file, quick=quick) for file in files if not quick or "[quick]" in file.read_text("utf-8")]
    for task in found:
        if task.needs and not (task.folder / task.needs).exists():
            log.warning("%s is left out: %s is not there", task.name, task.folder / task.needs)
    return [task for task in found if not task.needs or (task.folder / task.needs).exists()]
