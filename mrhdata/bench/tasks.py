"""Tasks: TOML files that name the subjects, the question and the settings of scoring."""

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

#: Parts of a split, in the order of their use.
PARTS = ("training", "validation", "test")


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes
    ----------
    name : str
        Name of the file without its ending.
    title, kind : str
        Title in the report, and one of `KINDS`.
    data : mapping
        Source of the subjects: ``phantom`` and its ``settings``, or ``catalog``, a path relative to the task; names of
        ``inputs``, ``truth`` and ``mask``.
    split : mapping
        Subjects of each of `PARTS`: seeds of a phantom, names in a catalogue, or tables with ``subject`` and
        ranges of voxels such as ``z = [0, 100]``; ``guard_mm`` is the distance between ranges of one subject.
    settings : mapping
        Settings of methods and scores.
    block_mm : (3,) tuple of float
        Edges z, y, x of the blocks of the test volumes that intervals resample, in mm; 0 for the whole length.
    voxels : int
        Number of voxels of each training subject for voxelwise methods.
    needs : str
        Folder, relative to the task, without which the task is skipped; empty by default.
    quick : bool
        Whether this is the quick form.
    folder : path
        Folder of the task file.
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
        """Name with a suffix for the quick form."""
        return slug_of(self.name, quick=self.quick)


def slug_of(name: str, *, quick: bool) -> str:
    """Return the name of a task with a suffix for the quick form."""
    return name + ("-quick" if quick else "")


def read_task(path: str | Path, *, quick: bool = False) -> Task:
    """Read a task.

    Parameters
    ----------
    path : path
        TOML file with the fields of :class:`Task`. The optional table ``[quick]`` overrides fields for a fast run.
    quick : bool
        Whether to return the quick form.

    Raises
    ------
    DataError
        The file is not valid TOML, or a field is missing, unknown or invalid.

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
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror}); pass a task file or a folder with tasks/"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not valid TOML: {error}") from error
    overrides = table.pop("quick", None)
    if quick and overrides is None:
        raise DataError(f"{file} has no quick form; add a table [quick], or run the task without --quick")
    if quick:
        table = _merge(table, overrides)
    known = {f.name for f in fields(Task)} - {"name", "quick", "folder"}
    unknown = sorted(set(table) - known)
    missing = sorted({"title", "kind", "data", "split", "block_mm"} - set(table))
    if unknown or missing:
        raise DataError(f"{file}: unknown fields {unknown}, missing fields {missing}; fields are {sorted(known)}")
    task = Task(name=file.stem, quick=quick, folder=file.parent, **{**table, "block_mm": tuple(table["block_mm"])})
    _check(task, file)
    return task


def _merge(table: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables with some of their fields replaced."""
    merged = dict(table)
    for key, value in overrides.items():
        merged[key] = _merge(merged.get(key, {}), value) if isinstance(value, Mapping) else value
    return merged


def _check(task: Task, file: Path) -> None:
    if task.kind not in KINDS:
        raise DataError(f"{file}: kind must be one of {', '.join(KINDS)}; got {task.kind!r}")
    empty = [part for part in PARTS if not task.split.get(part)]
    if empty:
        raise DataError(f"{file}: the split has no subjects for {empty}; name subjects for each of {', '.join(PARTS)}")
    if ("phantom" in task.data) == ("catalog" in task.data):
        raise DataError(f"{file}: [data] must name either a phantom or a catalog; got {sorted(task.data)}")
    if np.shape(task.block_mm) != (3,) or min(task.block_mm) < 0:
        raise DataError(f"{file}: block_mm must be three lengths along z, y, x in mm; got {list(task.block_mm)}")


def tasks_of(folder: str | Path, *, quick: bool = False, only: list[str] | None = None) -> list[Task]:
    """Read the tasks of a folder, from its ``tasks/`` or from the folder itself: all, or those named in `only`.

    Tasks without their data are skipped with a warning, and tasks without a quick form without one.

    Raises
    ------
    DataError
        The folder has no tasks, or a named task does not exist.
    """
    root = Path(folder)
    files = sorted((root / "tasks").glob("*.toml")) or sorted(root.glob("*.toml"))
    if not files:
        raise DataError(f"{root} has no tasks/*.toml; pass a folder that has, such as benchmarks/")
    names = [file.stem for file in files]
    missing = sorted(set(only or []) - set(names))
    if missing:
        raise DataError(f"tasks must be among {names}, the tasks of {root}; got {missing}")
    if only:
        return [read_task(file, quick=quick) for file in files if file.stem in only]
    tasks = [read_task(file, quick=quick) for file in files if not quick or "[quick]" in file.read_text("utf-8")]
    for task in tasks:
        if task.needs and not (task.folder / task.needs).exists():
            log.warning("task %s is skipped: %s does not exist", task.name, task.folder / task.needs)
    return [task for task in tasks if not task.needs or (task.folder / task.needs).exists()]
