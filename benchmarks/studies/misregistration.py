"""Cost of misregistered training targets, with small and large patches.

    python benchmarks/studies/misregistration.py

MRH-Net is trained on phantom subjects whose histology was displaced within coronal planes (smooth random
fields, B-splines over a 1 mm grid), with patches of 1 x 1, 3 x 3 and 7 x 7 voxels. It is scored on a test
subject, against the true histology and against histology that is displaced as in training. All patch sizes have
the same subjects, fields, numbers of patches and epochs.
"""

import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
from phantom_brains import (
    PERCENTILE,
    SETTINGS,
    TEST,
    THREADS,
    TRAIN,
    VALIDATION,
    brain,
    planned,
    scored,
    table,
    threshold,
    trained,
)
from scipy.ndimage import binary_erosion

from mrhdata.analysis.robustness import held_out
from mrhdata.inference.voxelwise import predict_patches
from mrhdata.registration.simulate import displace, displacement

RESULTS = Path(__file__).parents[1] / "results"
#: Root of the mean squared displacement in voxels of 0.2 mm.
RMS = (0.0, 0.5, 1.0, 2.0, 4.0)
TEST_STRIDE = (4, 1, 4)
SIZES = (1, 3, 7)
STRIDE = (6, 1, 6)

#: Voxels from the border that the core leaves out: there displaced histology is background.
EDGE = 3
#: What the map is scored against, and where.
AGAINST = {"true": ("af", "mask"), "core": ("af", "core"), "moved": ("af_moved", "mask")}
TITLES = {
    "true": "Against the histology as it is",
    "core": f"The same, {EDGE} voxels and more from the border of the brain",
    "moved": "Against histology displaced as in training",
}


def moved(subject, rms, seed):
    """A subject with ``af_moved``: its histology, displaced; and the ``core`` of its mask."""
    field = displacement(subject["af"], rms / np.sqrt(2), seed=seed)
    core = binary_erosion(subject["mask"].values > 0, iterations=EDGE).astype(np.uint8)
    return subject | {"af_moved": displace(subject["af"], field), "core": subject["mask"].copy(data=core)}


def main():
    """Measure and write."""
    start = time.perf_counter()
    brains = {seed: brain(seed) for seed in (*TRAIN, VALIDATION, TEST)}
    limit = threshold([brains[s] for s in TRAIN])
    rows = []
    for rms in RMS:
        subjects = {seed: moved(one, rms, 100 + seed) for seed, one in brains.items()}
        for size in SIZES:
            shape = (size, 1, size)
            training, validation = (
                planned([subjects[s] for s in group], shape, STRIDE, target="af_moved")
                for group in (TRAIN, (VALIDATION,))
            )
            model, seconds = trained(training, validation)
            row = {"rms_voxels": rms, "patch": size, "patches": len(training), "seconds": round(seconds, 1)}
            for against, (target, where) in AGAINST.items():
                held = held_out(planned([subjects[TEST]], shape, TEST_STRIDE, where, target=target), limit)
                found = held.row(predict_patches(model, held.inputs)[:, 0])
                row |= {f"{against}_{name}": value for name, value in found.items()}
            rows.append(row)
            print({k: round(v, 3) for k, v in row.items() if not k.endswith(("low", "high"))}, flush=True)
    settings = {
        "threads": THREADS,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "threshold": limit,
        "epochs": SETTINGS.epochs,
        "seconds": round(time.perf_counter() - start),
        "cpu_seconds": round(time.process_time()),
    }
    (RESULTS / "misregistration.json").write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
    (RESULTS / "misregistration.md").write_text(text(settings, rows))
    print(text(settings, rows))


def text(settings, rows):
    """The result in Markdown."""
    lines = [
        "# Misregistered training targets",
        "",
        "`python benchmarks/studies/misregistration.py`",
        "",
        f"MRH-Net, 4 blocks, 67 channels, {settings['epochs']} epochs, phantom at 0.2 mm: two training subjects, one "
        f"for validation, one for test. Autofluorescence of all was displaced in coronal planes; positive is below "
        f"percentile {PERCENTILE} of the training subjects. 95 % intervals over blocks of 8 voxels; one training for "
        f"each row. Threads: {settings['threads']}; {settings['seconds']} s in all, "
        f"{settings['cpu_seconds']} s of the processor.",
        "",
    ]
    found = {(row["rms_voxels"], row["patch"]): row for row in rows}
    for against, title in TITLES.items():
        lines += [f"## {title}", ""]
        for score in ("auc", "r2"):
            cells = [[rms, *(scored(found[rms, size], f"{against}_{score}") for size in SIZES)] for rms in RMS]
            head = [f"{score.upper()}, displacement (voxels, rms)", *(f"{n} x {n}" for n in SIZES)]
            lines += [*table(head, cells), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
