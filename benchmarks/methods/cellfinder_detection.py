"""cellfinder's detection among the baselines for cells, in an environment that has it.

    pip install -c constraints.txt -e . -r benchmarks/requirements-cells.txt
    mrhdata bench benchmarks/ --task phantom-cells --method-file benchmarks/methods/cellfinder_detection.py

Only its filters and size rules are used (Tyson et al. 2021, PLOS Computational Biology 17:e1009074), with the settings
that have the best F1 on a training subject. The classifier that follows them is left out, because its weights are for
another microscope and are downloaded from a server.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from cellfinder.core.detect.detect import main as cellfinder

from mrhdata.bench.api import Answer, TrainingData, method
from mrhdata.datasets.subjects import Subject
from mrhdata.metrics.detection import detection

#: Settings that its manual recommends to change, default first. They are tuned one after the other.
SETTINGS = {
    "n_sds_above_mean_thresh": (10.0, 5.0, 20.0),
    "soma_diameter": (16.0, 12.0, 8.0),
    "ball_z_size": (15.0, 8.0),
    "ball_xy_size": (6.0, 4.0),
}
#: Edge, in voxels, of the part of a training subject on which settings are compared.
EDGE = 128


def detect(subject: Subject, settings: Mapping[str, Any]) -> pd.DataFrame:
    """Return the world points of the detections in the first input."""
    volume = subject.first
    cells = cellfinder(
        np.ascontiguousarray(volume.values), voxel_sizes=tuple(1e3 * volume.mrh.spacing), torch_device="cpu",
        n_free_cpus=(os.cpu_count() or 1) - 1, **settings,
    )  # fmt: skip
    voxels = np.array([(cell.z, cell.y, cell.x) for cell in cells], dtype=np.float64).reshape(-1, 3)
    return pd.DataFrame(volume.mrh.grid.world(voxels), columns=["X", "Y", "Z"])


def corner(subject: Subject) -> Subject:
    """Return the first corner of a subject."""
    volume = subject.first.isel(z=slice(EDGE), y=slice(EDGE), x=slice(EDGE)).compute()
    voxels = volume.mrh.grid.index(subject.points)
    inside = (voxels <= np.array(volume.shape) - 1).all(axis=1)
    return Subject(subject.id, {"signal": volume}, points=subject.points[inside])


@method("cellfinder, detection only", "cells", baseline=True)
def filters(data: TrainingData) -> Answer:
    """Detect with the filters of cellfinder 1.10, tuned for F1 on a part of the first training subject."""
    sample, radius = corner(data.train[0]), float(data.settings["radius_mm"])
    best, best_f1 = {name: values[0] for name, values in SETTINGS.items()}, -1.0
    for name, values in SETTINGS.items():
        for value in values if best_f1 < 0 else values[1:]:
            settings = best | {name: value}
            f1 = detection(sample.points, detect(sample, settings), radius).f1
            if f1 > best_f1:
                best, best_f1 = settings, f1
    return lambda subject: detect(subject, best)
