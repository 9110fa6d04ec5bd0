"""cellfinder's detection among the baselines for cells, in an environment that has it.

    pip install -c constraints.txt -e . -r benchmarks/requirements-cells.txt
    mrhdata bench benchmarks/ --task phantom-cells --method-file benchmarks/methods/cellfinder_detection.py

Its filters and size rules alone (Tyson et al. 2021, PLOS Computational Biology 17:e1009074), set to what finds most on
a training subject. The classifier that follows them is left out: its weights are of another microscope, and are
fetched from a server.
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

#: What its manual says to change, its default first; one after the other, each with the best of those before.
SETTINGS = {
    "n_sds_above_mean_thresh": (10.0, 5.0, 20.0),
    "soma_diameter": (16.0, 12.0, 8.0),
    "ball_z_size": (15.0, 8.0),
    "ball_xy_size": (6.0, 4.0),
}
#: Voxels along an edge of the part of a training subject on which settings are compared.
EDGE = 128


def found(subject: Subject, settings: Mapping[str, Any]) -> pd.DataFrame:
    """World places of what it finds in the first input."""
    volume = subject.first
    cells = cellfinder(
        np.ascontiguousarray(volume.values), voxel_sizes=tuple(1e3 * volume.mrh.spacing), torch_device="cpu",
        n_free_cpus=(os.cpu_count() or 1) - 1, **settings,
    )  # fmt: skip
    voxels = np.array([(cell.z, cell.y, cell.x) for cell in cells], dtype=np.float64).reshape(-1, 3)
    return pd.DataFrame(volume.mrh.grid.world(voxels), columns=["X", "Y", "Z"])


def part(subject: Subject) -> Subject:
    """The first corner of a subject."""
    volume = subject.first.isel(z=slice(EDGE), y=slice(EDGE), x=slice(EDGE)).compute()
    voxels = volume.mrh.grid.index(subject.points)
    inside = (voxels <= np.array(volume.shape) - 1).all(axis=1)
    return Subject(subject.id, {"signal": volume}, subject.target[inside])


@method("cellfinder, detection alone", "cells", baseline=True)
def detected(given: TrainingData) -> Answer:
    """Filters of cellfinder 1.10 with the settings of the best F1 on a part of the first training subject."""
    sample, radius = part(given.train[0]), float(given.settings["radius_mm"])
    truth = sample.points
    best, most = {name: values[0] for name, values in SETTINGS.items()}, -1.0
    for name, values in SETTINGS.items():
        for value in values if most < 0 else values[1:]:
            tried = best | {name: value}
            f1 = detection(truth, found(sample, tried), radius).f1
            if f1 > most:
                best, most = tried, f1
    return lambda subject: found(subject, best)
