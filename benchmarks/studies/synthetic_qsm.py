"""Deep grey matter on QSM, by a network that saw no QSM image: only label maps, and the prior of the modality.

Run: python benchmarks/studies/synthetic_qsm.py WORK [--epochs 30] [--threads 1]
     writes benchmarks/results/synthetic_qsm.md and .json

The label maps are those of the phantom's subjects 0 to 14 (nuclei, fluid, grey and white matter at 1 mm), two of which
are for validation. The test is that of benchmarks/studies/dgm.py: QSM of the subjects 15 to 19, with slices of 3 mm.
WORK stores label maps and checkpoints, from which an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from dgm import LABELS, TEST, TRAINING, VALIDATION, subject
from tables import committed, markdown, written

import mrhdata
from mrhdata import models, phantom
from mrhdata.inference.segmenter import score_labels, segment
from mrhdata.metrics.overlap import pool_over_subjects
from mrhdata.recipes import dgm
from mrhdata.recipes.synthetic import SyntheticRecipe, train
from mrhdata.synthesis.structures import Anatomy, Structure

#: Labels of nuclei in the maps follow those of the tissues.
FIRST = 10
#: Tissues of the nuclei, whose intensities the prior of QSM has.
TISSUES = {"RN": "pallidum", "SN": "pallidum", "GP": "pallidum", "PU": "striatum", "CN": "striatum"}
SIDES = {"L": "left", "R": "right"}


def anatomy() -> Anatomy:
    """Structures of the maps."""
    tissues = (
        Structure(phantom.MATTER["CSF"], "fluid", "csf", brain=True),
        Structure(phantom.MATTER["GM"], "grey matter", "grey"),
        Structure(phantom.MATTER["WM"], "white matter", "white"),
    )
    nuclei = []
    for name, label in phantom.ROIS.items():
        nucleus, side = name.split()
        nuclei.append(Structure(FIRST + label, f"{SIDES[side]} {nucleus}", TISSUES[nucleus]))
    return Anatomy((*tissues, *nuclei))


def label_map(seed: int, folder: Path) -> xr.DataArray:
    """Nuclei and tissues of a subject at 1 mm; the file is made once."""
    path = folder / f"{seed:02d}.nii.gz"
    if not path.exists():
        group = phantom.deep_grey(seed, spacing_mm=(1.0, 1.0, 1.0))
        nuclei, matter = group["labels"].values, group["tissue"]
        values = np.where(nuclei > 0, FIRST + nuclei, matter.values).astype(np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        mrhdata.write(matter.copy(data=values), path)
    return mrhdata.read(path, kind="labels")


def recipe(epochs: int) -> SyntheticRecipe:
    """Images like QSM, without tissues around the brain."""
    base = SyntheticRecipe()
    ranges = replace(
        base.synthesis,
        modalities=("qsm",),
        random_share=0.5,
        contrast_width=(0.05, 0.3),
        surroundings={"drawn": 1.0},
        neck_probability=0.0,
    )
    return replace(
        base,
        targets={FIRST + label: label for label in dgm.LABELS},
        names=dgm.LABELS,
        label_share=0.7,
        finish=(("largest", {}),),
        quality_volumes=0,
        validation_maps=len(VALIDATION),
        synthesis=ranges,
        training=replace(base.training, epochs=epochs, learning_rate=2.5e-3),
    )


def main() -> None:
    """Train, and test."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    maps = {f"{s:02d}": label_map(s, options.work / "maps") for s in (*TRAINING, *VALIDATION)}
    place = options.work / "network"
    if not place.exists():
        model, history = train(recipe(options.epochs), maps, anatomy=anatomy(), folder=options.work)
        models.save(model, place)
        (options.work / "seconds.txt").write_text(str(history.seconds))
    network = models.load(place)
    tables = []
    for seed in TEST:
        case = subject(seed)
        image = next(iter(case.inputs.values())).rename("image")
        labels = segment(network, image, force=True, progress=False)
        tables.append(score_labels(case, labels, LABELS))
    table = pd.concat(tables)
    row: dict[str, Any] = {name: float(table[table.label == label].dice.mean()) for label, name in dgm.LABELS.items()}
    row["mean"] = str(pool_over_subjects(table, "dice", by=None)["all"])
    hours = float((options.work / "seconds.txt").read_text()) / 3600
    rows = [{"method": "label maps only", **row}]
    for other in committed("dgm").get("scores", []):
        scores = {name: other[f"{name} dice"] for name in dgm.LABELS.values()}
        rows.append({"method": f"QSM images, {other['method']}", **scores, "mean": other["mean Dice"]})
    text = [
        "# Deep grey matter on QSM, without a QSM image",
        f"{__doc__.splitlines()[0]} Dice, mean over {len(TEST)} subjects. Training: {hours:.1f} h of one core. "
        "The rows below are networks that were trained on QSM images of the same phantom (benchmarks/studies/dgm.py).",
        markdown(rows),
    ]
    written("synthetic_qsm", text, {"threads": options.threads, "hours": hours, "rows": rows})


if __name__ == "__main__":
    main()
