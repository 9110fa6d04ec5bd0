"""Leave-one-out prediction of four stains in four digital brains.

    python benchmarks/studies/leave_one_out.py

Two of the other three brains are for training, and the next one is for validation. Writes
``benchmarks/results/leave_one_out.json`` and ``.md``.
"""

import json
import platform
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from brains import BLOCK, THREADS, VALIDATION, blocks, centres, planned, subjects, threshold

import mrhdata
from mrhdata import models
from mrhdata.analysis.contrasts import sensitivity
from mrhdata.recipes.mrhnet import RECOMMENDED

RESULTS = Path(__file__).parents[1] / "results"
#: Stain -> side of the threshold that is positive, and the percentile of the training brains that it is.
STAINS = {"af": ("below", 20), "nf": ("above", 80), "mbp": ("above", 80), "nissl": ("above", 80)}
SUBJECTS, STRIDE = 4, 5
SETTINGS = replace(RECOMMENDED, epochs=8)


def held_out(brains, test, stain):
    """Train without one brain, and score its map."""
    validating = (test + 1) % len(brains)
    training = [brain for i, brain in enumerate(brains) if i not in (test, validating)]
    model = models.create("mrhnet", in_channels=67, loop_blocks=4, seed=test)
    train, validation = planned(training, stain, STRIDE), planned([brains[validating]], stain, VALIDATION)
    mrhdata.fit(model, train, validation, replace(SETTINGS, seed=test), progress=False)
    voxels = planned([brains[test]], stain, 1)
    truth, answer = centres(model, voxels)
    side, percentile = STAINS[stain]
    limit = threshold(training, stain, percentile)
    place = pd.DataFrame({"block": blocks(voxels)})
    result = sensitivity(place, truth, threshold=limit, positive_side=side, fits=(), predictions={"map": answer})
    row = {"stain": stain, "subject": test + 1, "threshold": limit, "voxels": result.rows, "patches": len(train)}
    return row | {k: float(v) for k, v in result.table.iloc[0].items() if k not in ("contrast", "model", "in_sample")}


def text(result):
    """The whole result in Markdown."""
    lines = [
        "# Leave one subject out",
        "",
        "`python benchmarks/studies/leave_one_out.py`",
        "",
        f"{SUBJECTS} digital brains of 0.2 mm; two others train (about {result['runs'][0]['patches']} patches, at most "
        f"{SETTINGS.epochs} epochs), the third validates, every voxel of the brain is scored. AUC: autofluorescence "
        "below percentile 20, the others above percentile 80, of the training brains. Intervals are 95 %, "
        f"over cubes of {BLOCK} voxels of that one brain. {THREADS} thread.",
        "",
        "| stain | subject | AUC | R2 |",
        "| --- | --- | --- | --- |",
    ]
    for row in result["runs"]:
        shown = [f"{row[s]:.3f} [{row[s + '_low']:.3f}, {row[s + '_high']:.3f}]" for s in ("auc", "r2")]
        lines.append(f"| {row['stain']} | {row['subject']} | {shown[0]} | {shown[1]} |")
    for stain in STAINS:
        values = np.array([[row["auc"], row["r2"]] for row in result["runs"] if row["stain"] == stain])
        mean, spread = values.mean(0), values.std(0, ddof=1)
        lines.append(f"| {stain} | mean (SD) | {mean[0]:.3f} ({spread[0]:.3f}) | {mean[1]:.3f} ({spread[1]:.3f}) |")
    return "\n".join(lines) + "\n"


def main():
    """Run, print and write."""
    torch.set_num_threads(THREADS)
    start = time.perf_counter()
    brains, runs = subjects(range(20, 20 + SUBJECTS)), []
    for stain in STAINS:
        for test in range(SUBJECTS):
            runs.append(held_out(brains, test, stain))
            print(runs[-1], flush=True)
    result = {
        "runs": runs,
        "seconds": round(time.perf_counter() - start),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    (RESULTS / "leave_one_out.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "leave_one_out.md").write_text(text(result))
    print(text(result), f"{result['seconds']} s")


if __name__ == "__main__":
    main()
