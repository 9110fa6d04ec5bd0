"""Verify detected cells: a second network scores each candidate with more context (Dou et al. 2016, section 2).

```
brain --first network, low threshold--> candidates --16 x 20 x 20 voxels around each--> second score
```

The second network learns from the candidates in the training brains only: detected cells and false positives.
Candidates are far fewer than voxels, so the second network may be large.
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
from mrhdata.recipes.cells import STRIDE, AnnotationRules, annotation_labels, score_patches
from mrhdata.training.augmentation import Augmentation
from mrhdata.training.history import History
from mrhdata.training.loop import fit
from mrhdata.training.settings import TrainingConfig

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from torch import nn

Floats = NDArray[np.float64]

#: Factor on the threshold of the first network: the second network sees only its candidates.
LOWERED = 0.4
TRAINING = TrainingConfig(
    epochs=8,
    batch_size=64,
    learning_rate=1e-3,
    weight_decay=1e-4,
    loss="cross-entropy",
    precision="auto",
    patience=8,
    augment=Augmentation(degrees=0, zoom=0, stretch=0, share=0, flip=(0, 1, 2), gain=0.2, offset=0.2, noise=0),
)


def train(
    first: nn.Module,
    brains: Sequence[Subject],
    validation: Sequence[Subject],
    rules: AnnotationRules,
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
        Network from :func:`mrhdata.recipes.cells.train`, trained on the same brains.
    brains, validation : sequence of Subject
        Training brains, and brains of other subjects for early stopping and for the threshold.
    rules : AnnotationRules
        Rules that label the candidates; ignored candidates are not used.
    radius_mm : float
        Maximum distance between a detection and an annotation to count as a match, in mm.
    settings : TrainingConfig
        Settings of the training.
    seed : int
        Random seed.
    folder : path, optional
        Folder for candidates and checkpoint, from which an interrupted run resumes.
    progress : bool
        Whether to show progress bars.

    Returns
    -------
    second : torch.nn.Module
        Second network; its ``spec.finish`` defines a detection.
    history : History
        History of the training.
    """
    check_disjoint(brains, validation)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary) if folder is None else folder
        tables = {b.id: screen(first, b.inputs, work / "candidates" / b.id) for b in (*brains, *validation)}
        training_patches, validation_patches = (
            _candidate_patches(part, tables, rules) for part in (brains, validation)
        )
        second = models.create("cells3d_second", seed=seed, in_channels=len(brains[0].inputs))
        second.spec = replace(second.spec, labels=(0, 1))  # type: ignore[type-var]
        checkpoint = None if folder is None else work / "second.pt"
        settings = replace(settings, seed=seed)
        history = fit(second, training_patches, validation_patches, settings, checkpoint=checkpoint, progress=progress)
        detections = []
        for brain in validation:
            points = tables[brain.id][["X", "Y", "Z"]].to_numpy()
            detections.append((brain.points, points, look(second, tables[brain.id], brain.inputs)))
    peaks = replace(stored_peaks(_spec(first)), threshold=best_threshold(detections, radius_mm))
    second.spec = replace(second.spec, finish=(("cells", asdict(peaks)),))  # type: ignore[type-var]
    return second, history


def screen(first: nn.Module, inputs: Mapping[str, xr.DataArray], folder: Path, **options: Any) -> pd.DataFrame:
    """Return the candidates: detections of the first network at a lowered threshold."""
    peaks = stored_peaks(_spec(first))
    folder.parent.mkdir(parents=True, exist_ok=True)
    named = {name: volume.rename(name) for name, volume in inputs.items()}
    lowered = replace(peaks, threshold=LOWERED * peaks.threshold)
    return detect(first, named, folder, peaks=lowered, **{"progress": False, "precision": "auto", **options})


def look(second: nn.Module, candidates: pd.DataFrame, inputs: Mapping[str, xr.DataArray]) -> Floats:
    """Return the scores (n,) of candidates by the second network, from 0 to 1."""
    if not len(candidates):
        return np.empty(0)
    dataset = patches(dict(inputs), shape=LOOKED_AT, sampler=_starts(candidates), padding="edge")
    scores = np.empty(len(candidates))
    scores[dataset.draw_index] = score_patches(second, dataset)
    return scores


def detect_twice(
    first: nn.Module, second: nn.Module, inputs: Mapping[str, xr.DataArray], store: Path, **options: Any
) -> pd.DataFrame:
    """Detect cells with both networks.

    Parameters
    ----------
    first, second : torch.nn.Module
        Screening network and verifying network.
    inputs : mapping of volumes
        Volumes by channel.
    store : path
        Folder, as for :func:`mrhdata.detect`; ``cells-2.parquet`` is the table of the cells that pass the second
        network, with its scores.
    **options
        Options of :func:`mrhdata.detect`.

    Returns
    -------
    cells : DataFrame
        Cells that pass both networks.
    """
    table = screen(first, inputs, store, **options)
    table = table.assign(score=look(second, table, inputs))
    table = table[table["score"] >= stored_peaks(_spec(second)).threshold].reset_index(drop=True)
    with atomic_write(store / "cells-2.parquet") as draft:
        table.to_parquet(draft, index=False)
    return table


def _candidate_patches(
    brains: Sequence[Subject], tables: Mapping[str, pd.DataFrame], rules: AnnotationRules
) -> Patches:
    """Return patches around candidates with the labels at their centres."""
    without_candidates = [b.id for b in brains if not len(tables[b.id])]
    if without_candidates:
        raise DataError(
            f"the first network detects no candidates in {without_candidates}; train it longer, or on similar brains"
        )
    return patches(
        [dict(b.inputs) for b in brains],
        [{"cells": annotation_labels(b, rules)} for b in brains],
        shape=LOOKED_AT,
        target_shape=1,
        grids="native",
        sampler=[_starts(tables[b.id]) for b in brains],
        padding="edge",
    )


def _starts(candidates: pd.DataFrame) -> NDArray[np.int64]:
    """Return the positions of patches around candidates, rounded to even voxels so that centres are those of scores."""
    centre = candidates[["z", "y", "x"]].to_numpy()
    return STRIDE * np.rint((centre - (np.array(LOOKED_AT) - 1) / 2) / STRIDE).astype(np.int64)


def _spec(model: nn.Module) -> Any:
    return model.spec
