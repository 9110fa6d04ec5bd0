"""Deep grey matter of real anatomy: train a network on the brain of one atlas and test it on the other, both ways.

Run: python benchmarks/studies/dgm_atlas.py DATA WORK [--threads 1]

The data are PD25's fusion template and the T1w brain of CIT168, each with its own drawn labels. With two brains of
different contrast, this study tests the pipeline and does not show the accuracy of networks trained on many subjects.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from registration import LABELS, SHARED, cit168
from tables import markdown, written

import mrhdata
from mrhdata import models
from mrhdata.datasets.subjects import Subject
from mrhdata.inference.segmenter import score_labels, segment
from mrhdata.recipes import segmentation, tissue2d

NAMES = {
    1 + 2 * i + j: f"{nucleus} {side}" for i, nucleus in enumerate(SHARED) for j, side in enumerate(("left", "right"))
}


def atlases(data: Path) -> dict[str, tuple[xr.DataArray, Any, list[str]]]:
    """The image of each atlas, its labels on the same grid, and their names."""
    folder = data / "dgm-atlas"
    names = {k: [n.strip() for n in json.loads((folder / f).read_text())["labels"]] for k, f in LABELS.items()}
    images = {
        "PD25": mrhdata.read(folder / "PD25-fusion-template-1mm.nii.gz"),
        "CIT168": mrhdata.read(folder / "CIT168toMNI152-2009c_T1w_brain.nii.gz"),
    }
    drawn = mrhdata.read(folder / "PD25-subcortical-1mm.nii.gz", kind="labels")
    # Labels on a cropped grid of their own: outside it is background, too.
    landed = mrhdata.resample(drawn, images["PD25"]).compute()
    if int((landed > 0).sum()) != int((drawn > 0).sum()):
        raise SystemExit(f"{int((landed > 0).sum())} of {int((drawn > 0).sum())} voxels of PD25's labels landed")
    print(f"all {int((landed > 0).sum()):,} label voxels of PD25 land in its template")
    given = {"PD25": landed.values, "CIT168": cit168(mrhdata.read(folder / "CIT168.nii.gz"), images["CIT168"])}
    return {who: (image, given[who], names[who]) for who, image in images.items()}


def brains(data: Path) -> list[Subject]:
    """Both, with the nuclei that they share."""
    cases = []
    for who, (image, given, names) in atlases(data).items():
        labels = np.zeros(image.shape, np.uint8)
        for number, name in NAMES.items():
            nucleus, side = name.rsplit(" ", 1)
            if who == "PD25":
                values = [names.index(f"{side.capitalize()} {nucleus}")]
            else:
                values = [names.index(f"{side[0].upper()} {part}") for part in SHARED[nucleus]]
            labels[np.isin(given, values)] = number
        truth = image.copy(data=labels).assign_attrs(kind="labels")
        cases.append(Subject(who, {"t1": image.rename("t1")}, truth))
    return cases


def recipe() -> segmentation.Recipe:
    """The U-Net of tissue on boxes about the nuclei; nobody is left to choose an epoch by."""
    made = tissue2d.unet()
    steps = (("upright", {"spacing_mm": [1.0, 1.0, 1.0]}), ("normalise", {"how": "percentile"}))
    # As many steps as the U-Net of twenty subjects takes: at half of them small nuclei are not found in training.
    training = replace(made.training[0], epochs=40, learning_rate=3e-3, restore_best=False, patience=40)
    training = replace(training, augment=replace(training.augment, share=0.8, gamma=0.4, gain=0.4, offset=0.3))
    config = {**made.config, "strides": (2, 2, 2)}
    crops = segmentation.Crops((48, 48, 48), each=40, labelled=0.9)
    return replace(made, prepare=steps, sampling=crops, training=(training,), config=config, finish=(("largest", {}),))


def main() -> None:
    """Train on each, test on the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = brains(options.data)
    rows: list[dict[str, Any]] = []
    for case, other in (cases, cases[::-1]):
        place = options.work / case.id
        place.mkdir(parents=True, exist_ok=True)
        made = recipe()
        if not (place / "network").exists():
            trained = segmentation.train(made, [case], [], labels=(0, *NAMES), folder=place, progress=False)
            models.save(trained.model, place / "network")
        network = models.load(place / "network")
        for where in (case, other):
            table = score_labels(where, segment(network, where.inputs), (0, *NAMES))
            rows.append(
                {
                    "trained on": case.id,
                    "tested on": where.id + (" (itself)" if where is case else ""),
                    **{NAMES[int(r.label)]: float(r.dice) for r in table.itertuples()},
                    "mean Dice": float(table.dice.mean()),
                }
            )
    turned = [
        {"nucleus": name, **{f"{r['trained on']} to {r['tested on']}": r[name] for r in rows}}
        for name in (*NAMES.values(), "mean Dice")
    ]
    parts = ["# Deep grey matter of two atlases' brains", f"{__doc__.splitlines()[-2]} Dice:", markdown(turned)]
    written("dgm_atlas", parts, {"threads": options.threads, "rows": rows})


if __name__ == "__main__":
    main()
