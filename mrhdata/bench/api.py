"""What a method is given in a contest, what it gives back, and the table of methods.

```
Given (training and validation subjects, a task's settings, seed) --method--> Fitted --answer(subject)--> volume or table
```

A method is a function with the mark of :func:`method`; it fits every task of the kinds it names. The harness sees
to the rest: the same subjects, voxels and blocks for all, no truth where answers are given, scores, costs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrhdata.datasets.subjects import Subject
from mrhdata.errors import DataError

if TYPE_CHECKING:
    from torch import nn

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Kinds of tasks. What an answer is: values of histology, labels of a volume's tissue or nuclei, a stack's pixels,
#: a table of cells.
KINDS = ("histology", "tissue", "nuclei", "restoration", "cells")


@dataclass(frozen=True)
class TrainingData:
    """What a method learns from.

    Attributes
    ----------
    train, validation : sequence of Subject
        Those of `validation` say when to stop, and choose thresholds; no test subject is among either.
    settings : mapping
        Of the task: ``labels``, ``degradation``, ``radius_mm`` and the like.
    voxels : mapping of (n, 3) arrays
        By subject, the same for every method: voxels z, y, x that methods of voxels and of patches learn from.
    quick : bool
        Whether minutes are to be saved; such scores are marked.
    seed : int
    folder : path
        Of checkpoints: a run that was stopped goes on.
    """

    train: Sequence[Subject]
    validation: Sequence[Subject]
    settings: Mapping[str, Any]
    voxels: Mapping[str, Ints]
    quick: bool = True
    seed: int = 0
    folder: Path = Path()

    def rows(self, subjects: Sequence[Subject] | None = None) -> tuple[Floats, Floats]:
        """Inputs and truth at the voxels of subjects, the training ones by default: (n, channels), (n,)."""
        parts = [self._rows(s) for s in (self.train if subjects is None else subjects)]
        return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])

    def _rows(self, subject: Subject) -> tuple[Floats, Floats]:
        at = tuple(self.voxels[subject.id].T)
        return channels(subject)[at], np.asarray(subject.target.data)[at].astype(np.float64)


def channels(subject: Subject) -> Floats:
    """All inputs of a subject in memory: (z, y, x, channels)."""
    return np.stack([np.asarray(v.data, dtype=np.float64) for v in subject.inputs.values()], axis=-1)


#: Takes a subject without its truth.
Answer = Callable[[Subject], Any]


@dataclass(frozen=True)
class FittedMethod:
    """A fitted method: what answers, and the network behind it where there is one."""

    predict: Answer
    model: nn.Module | None = None


@dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Attributes
    ----------
    name : str
    kinds : tuple of str
        Of tasks that it fits.
    fit : callable
        Takes `TrainingData`, returns `FittedMethod` or a bare answering function.
    baseline : bool
        Whether it is one of those to be beaten.
    quick : bool
        Whether it has a quick form.
    """

    name: str
    kinds: tuple[str, ...]
    fit: Callable[[TrainingData], FittedMethod | Answer]
    baseline: bool = False
    quick: bool = True


#: Every method by its name.
METHODS: dict[str, Method] = {}


def method(name: str, *kinds: str, baseline: bool = False, quick: bool = True) -> Callable[[Any], Any]:
    """Enter a function as a method.

    Parameters
    ----------
    name : str
        Its row in the tables.
    *kinds : {"histology", "tissue", "nuclei", "restoration", "cells"}
        Of the tasks that it fits.
    baseline : bool
        Whether it is well known and there to be beaten.
    quick : bool
        Whether it can be done in a minute when ``given.quick``.

    Raises
    ------
    DataError
        There is no such kind, or another method has the name.

    Examples
    --------
    >>> @method("always the mean", "histology", baseline=True)
    ... def mean(given):
    ...     _, y = given.rows()
    ...     return lambda subject: xr.full_like(subject.first, y.mean())
    >>> METHODS.pop("always the mean").kinds
    ('histology',)
    """

    def enter(fit: Callable[[TrainingData], FittedMethod | Answer]) -> Callable[[TrainingData], FittedMethod | Answer]:
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or not kinds:
            raise DataError(f"{name}: a method is for one or more of {', '.join(KINDS)}, not {list(kinds)}")
        held = METHODS.get(name)
        if held is not None and (held.fit.__module__, held.fit.__qualname__) != (fit.__module__, fit.__qualname__):
            raise DataError(f"there are two methods called {name!r}; give one another name")
        METHODS[name] = Method(name, kinds, fit, baseline, quick)
        return fit

    return enter


def enter_file(path: str | Path) -> None:
    """Run a Python file of the user's own that enters methods.

    Raises
    ------
    DataError
        It is not there.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file} is no file; give a Python file with functions marked by mrhdata.bench.api.method")
    spec = importlib.util.spec_from_file_location(f"mrhdata_entry_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
