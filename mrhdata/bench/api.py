"""Interface between the benchmark and its methods, and the table of methods.

```
TrainingData (training and validation subjects, settings, seed) --method--> FittedMethod --predict(subject)--> answer
```

A method is a function decorated with :func:`method`. It runs on every task of the kinds that it names. The benchmark
gives all methods the same subjects, voxels and blocks, withholds the ground truth of the test subjects, and measures
scores and costs.
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

#: Kinds of tasks. Answers are histology values, labels of tissue or nuclei, an image stack, or a table of cells.
KINDS = ("histology", "tissue", "nuclei", "restoration", "cells")


@dataclass(frozen=True)
class TrainingData:
    """Data and settings from which a method learns.

    Attributes
    ----------
    train, validation : sequence of Subject
        Training subjects, and validation subjects for early stopping and thresholds. Neither has a test subject.
    settings : mapping
        Settings of the task: ``labels``, ``degradation``, ``radius_mm`` and the like.
    voxels : mapping of (n, 3) arrays
        Training voxels (z, y, x) of each subject, the same for every method.
    quick : bool
        Whether to train for a minute only; such scores are marked.
    seed : int
        Random seed.
    folder : path
        Folder for checkpoints, from which an interrupted run resumes.
    """

    train: Sequence[Subject]
    validation: Sequence[Subject]
    settings: Mapping[str, Any]
    voxels: Mapping[str, Ints]
    quick: bool = True
    seed: int = 0
    folder: Path = Path()

    def rows(self, subjects: Sequence[Subject] | None = None) -> tuple[Floats, Floats]:
        """Return inputs (n, channels) and targets (n,) at the voxels of subjects, by default the training subjects."""
        parts = [self._rows(s) for s in (self.train if subjects is None else subjects)]
        return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])

    def _rows(self, subject: Subject) -> tuple[Floats, Floats]:
        index = tuple(self.voxels[subject.id].T)
        return channels(subject)[index], np.asarray(subject.target.data)[index].astype(np.float64)


def channels(subject: Subject) -> Floats:
    """Return all inputs of a subject in memory: (z, y, x, channels)."""
    return np.stack([np.asarray(v.data, dtype=np.float64) for v in subject.inputs.values()], axis=-1)


#: Function that answers for a subject without ground truth.
Answer = Callable[[Subject], Any]


@dataclass(frozen=True)
class FittedMethod:
    """A fitted method: its prediction function, and its network if it has one."""

    predict: Answer
    model: nn.Module | None = None


@dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Attributes
    ----------
    name : str
        Name in the tables.
    kinds : tuple of str
        Kinds of tasks that the method fits.
    fit : callable
        Function of `TrainingData` that returns a `FittedMethod` or a prediction function.
    baseline : bool
        Whether the method is a baseline.
    quick : bool
        Whether the method has a quick form.
    """

    name: str
    kinds: tuple[str, ...]
    fit: Callable[[TrainingData], FittedMethod | Answer]
    baseline: bool = False
    quick: bool = True


#: Every method by its name.
METHODS: dict[str, Method] = {}


def method(name: str, *kinds: str, baseline: bool = False, quick: bool = True) -> Callable[[Any], Any]:
    """Register a function as a method.

    Parameters
    ----------
    name : str
        Name in the tables.
    *kinds : {"histology", "tissue", "nuclei", "restoration", "cells"}
        Kinds of tasks that the method fits.
    baseline : bool
        Whether the method is a well-known baseline for comparison.
    quick : bool
        Whether the method takes about a minute if ``data.quick`` is set.

    Raises
    ------
    DataError
        A kind is unknown, or another method has the same name.

    Examples
    --------
    >>> @method("always the mean", "histology", baseline=True)
    ... def mean(data):
    ...     _, y = data.rows()
    ...     return lambda subject: xr.full_like(subject.first, y.mean())
    >>> METHODS.pop("always the mean").kinds
    ('histology',)
    """

    def register(
        fit: Callable[[TrainingData], FittedMethod | Answer],
    ) -> Callable[[TrainingData], FittedMethod | Answer]:
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or not kinds:
            raise DataError(f"{name}: kinds must be one or more of {', '.join(KINDS)}; got {list(kinds)}")
        other = METHODS.get(name)
        if other is not None and (other.fit.__module__, other.fit.__qualname__) != (fit.__module__, fit.__qualname__):
            raise DataError(f"two methods have the name {name!r}; rename one of them")
        METHODS[name] = Method(name, kinds, fit, baseline, quick)
        return fit

    return register


def enter_file(path: str | Path) -> None:
    """Run a Python file that registers methods.

    Raises
    ------
    DataError
        The file does not exist.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file} does not exist; pass a Python file that defines methods with @mrhdata.bench.method")
    spec = importlib.util.spec_from_file_location(f"mrhdata_entry_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
