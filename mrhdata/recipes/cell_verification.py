"""A second network that looks again at what the first one found, with more around it (Dou et al. 2016, section 2).

```
brain --cells (screening, low threshold)--> candidates --16 x 20 x 20 voxels about each--> a score of their own
```

It learns from the candidates of the training brains alone: cells that the first network found, and what it took
for cells. Candidates are many times fewer than voxels, so the second network may be large.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrhdata import models
from mrhdata._runtime.atomic import atomic_write
from mrhdata.datasets.subjects import Subject, check_disjoint
from mrhdata.errors import DataError
from mrhdata.inference.detector import detect, stored_peaks
from mrhdata.metrics.detection import best_threshold
from mrhdata.models.cells3d import LOOKED_AT
from mrhdata.patching.create import patches
from mrhdata.patching.dataset import Patches
from mrhdata.recipes.cells import STRIDE, Marking, patches_scored, taught
from mrhdata.training.augmentation import Augmentation
from mrhdata.training.history import History
from mrhdata.training.loop import fit
from mrhdata.training.settings import TrainingConfig

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from torch import nn

Floats = NDArray[np.float64]

#: The first network's threshold is lowered to this part of it: what it misses nobody looks at again.
LOWERED = 0.4
TRAINING = TrainingConfig(
    epochs=8,
    batch_size=64,
    learning_rate=1e-3,
    weight_decay=1e-4,
    loss="cross-entropy",
    precision="bfloat16",
    patience=8,
    augment=Augmentation(degrees=0, zoom=0, stretch=0, share=0, flip=(0, 1, 2), gain=0.2, offset=0.2, noise=0),
)


def train(
    first: nn.Module,
    brains: Sequence[Subject],
    validation: Sequence[Subject],
    marking: Marking,
    *,
    radius_mm: float,
    settings: TrainingConfig = TRAINING,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = True,
) -> tuple[nn.Module, History]:
    """Train the second network on the candidates of the first.

    Parameters
    ----------
    first : torch.nn.Module
        From :func:`mrhdata.recipes.cells.train`, on the same brains.
    brains, validation : sequence of Brain
        Those of validation say when to stop and which threshold is best.
    marking : Marking
        What marks teach; candidates that it leaves out are not learned from.
    radius_mm : float
        Of a match.
    settings : Training
    seed : int
    folder : path, optional
        Of candidates and checkpoint: a run that was stopped goes on from there.
    progress : bool

    Returns
    -------
    second : torch.nn.Module
        Its ``spec.finish`` says what counts as a cell.
    history : History
    """
    check_disjoint(brains, validation)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary) if folder is None else folder
        tables = {b.id: screen(first, b.inputs, work / "candidates" / b.id) for b in (*brains, *validation)}
        learned, watched = (_about(part, tables, marking) for part in (brains, validation))
        second = models.create("cells3d_second", seed=seed, in_channels=len(brains[0].inputs))
        second.spec = replace(second.spec, labels=(0, 1))  # type: ignore[type-var]
        checkpoint = None if folder is None else work / "second.pt"
        settings = replace(settings, seed=seed)
        history = fit(second, learned, watched, settings, checkpoint=checkpoint, progress=progress)
        given = []
        for brain in validation:
            places = tables[brain.id][["X", "Y", "Z"]].to_numpy()
            given.append((brain.points, places, look(second, tables[brain.id], brain.inputs)))
    peaks = replace(stored_peaks(_spec(first)), threshold=best_threshold(given, radius_mm))
    second.spec = replace(second.spec, finish=(("cells", asdict(peaks)),))  # type: ignore[type-var]
    return second, history


def screen(first: nn.Module, inputs: Mapping[str, xr.DataArray], folder: Path, **options: Any) -> pd.DataFrame:
    """Candidates: what the first network finds at a lowered threshold."""
    peaks = stored_peaks(_spec(first))
    folder.parent.mkdir(parents=True, exist_ok=True)
    named = {name: volume.rename(name) for name, volume in inputs.items()}
    lowered = replace(peaks, threshold=LOWERED * peaks.threshold)
    return detect(first, named, folder, peaks=lowered, **{"progress": False, "precision": "bfloat16", **options})


def look(second: nn.Module, candidates: pd.DataFrame, inputs: Mapping[str, xr.DataArray]) -> Floats:
    """Scores of candidates, from 0 to 1: (n,)."""
    if not len(candidates):
        return np.empty(0)
    seen = patches(dict(inputs), shape=LOOKED_AT, sampler=_starts(candidates), padding="edge")
    found = np.empty(len(candidates))
    found[seen.draw_index] = patches_scored(second, seen)
    return found


def detect_twice(
    first: nn.Module, second: nn.Module, inputs: Mapping[str, xr.DataArray], store: Path, **options: Any
) -> pd.DataFrame:
    """Find cells with both networks.

    Parameters
    ----------
    first, second : torch.nn.Module
    inputs : mapping of volumes
    store : path
        As for :func:`mrhdata.detect`; ``cells-2.parquet`` is the table of the cells that the second one lets pass,
        whose ``score`` is its own.
    **options
        As for :func:`mrhdata.detect`.

    Returns
    -------
    cells : DataFrame
    """
    table = screen(first, inputs, store, **options)
    table = table.assign(score=look(second, table, inputs))
    table = table[table["score"] >= stored_peaks(_spec(second)).threshold].reset_index(drop=True)
    with atomic_write(store / "cells-2.parquet") as draft:
        table.to_parquet(draft, index=False)
    return table


def _about(brains: Sequence[Subject], tables: Mapping[str, pd.DataFrame], marking: Marking) -> Patches:
    """Candidates with what marks teach at their centres."""
    bare = [b.id for b in brains if not len(tables[b.id])]
    if bare:
        raise DataError(f"the first network finds no candidate in {bare}; train it further, or on brains alike")
    return patches(
        [dict(b.inputs) for b in brains],
        [{"cells": taught(b, marking)} for b in brains],
        shape=LOOKED_AT,
        target_shape=1,
        grids="native",
        sampler=[_starts(tables[b.id]) for b in brains],
        padding="edge",
    )


def _starts(candidates: pd.DataFrame) -> NDArray[np.int64]:
    """First voxels of the patches nearest about candidates, even ones: their centres are those of scores."""
    centre = candidates[["z", "y", "x"]].to_numpy()
    return STRIDE * np.rint((centre - (np.array(LOOKED_AT) - 1) / 2) / STRIDE).astype(np.int64)


def _spec(model: nn.Module) -> Any:
    return model.spec
