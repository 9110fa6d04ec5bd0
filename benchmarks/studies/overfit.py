"""Whether the network of whole heads can learn one image by heart: a check that nothing is wrong with it.

Run: python benchmarks/studies/overfit.py LABELS [--steps 500] [--threads 1]
     writes benchmarks/results/overfit.md and .json

One cube of 96 voxels of the first label map, with all fourteen structures, in one T1w-like image without artefacts.
The network begins at random and sees the same cube in every step.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from registration import dice
from tables import markdown, written

import mrhdata
from mrhdata import models
from mrhdata.models.spec import run_on_patches
from mrhdata.patching.samplers import Fixed
from mrhdata.recipes.synthetic import SyntheticRecipe
from mrhdata.recipes.synthetic_labels import STRUCTURES
from mrhdata.synthesis import FREESURFER, SynthesisConfig, Synthesizer

#: Length of the cube, and steps between two validations.
LENGTH, STEPS = 96, 10


def cube(path: Path) -> tuple[xr.DataArray, xr.DataArray]:
    """An image and its labels, of a hemisphere about the brain stem."""
    config = SynthesisConfig.exact(modalities=("t1w",), spreads=(0.02, 0.02))
    volume = mrhdata.read(path, kind="labels")
    synthesizer = Synthesizer([volume], config, FREESURFER, targets=STRUCTURES.targets)
    centres = synthesizer.centres(0, 1000)
    low = np.concatenate(list(centres.values())).min(0)
    thalamus, stem = (centres[label].mean(0) for label in (8, 6))
    start = np.array([stem[0] - 30, thalamus[1] - LENGTH * 0.6, low[2]])
    image, labels = synthesizer.sample(0, (LENGTH,) * 3, map_index=0, position=start.round().astype(int).tolist())
    spacing = tuple(float(s) for s in volume.mrh.spacing)
    return (
        mrhdata.from_array(image[0].numpy(), spacing=spacing, name="image"),
        mrhdata.from_array(labels.numpy(), spacing=spacing, kind="labels"),
    )


def main() -> None:
    """Train, and compare."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    image, labels = cube(sorted(options.labels.glob("*.nii.gz"))[0])
    present = sorted(set(np.unique(labels.values).tolist()) - {0})
    if present != list(STRUCTURES.names):
        raise SystemExit(f"the cube must have the labels {list(STRUCTURES.names)}; got {present}")
    patches = mrhdata.patches(image, target=labels, shape=LENGTH, sampler=Fixed(np.zeros((STEPS, 3), np.int64)))
    validation = mrhdata.patches(image, target=labels, shape=LENGTH, sampler=Fixed(np.zeros((1, 3), np.int64)))
    recipe = SyntheticRecipe()
    settings = replace(recipe.training, epochs=options.steps // STEPS, batch_size=1)
    model = models.create(recipe.network, seed=0, in_channels=1, classes=15)
    model.spec = replace(model.spec, labels=tuple(range(15)))
    start = time.perf_counter()
    mrhdata.fit(model, patches, validation, settings, progress=False)
    minutes = (time.perf_counter() - start) / 60
    with torch.inference_mode():
        scores = run_on_patches(model.eval(), torch.from_numpy(patches.gather([0])[0]))
    answer = scores[0].argmax(0).numpy()
    rows = [
        {"structure": name, "voxels": int((labels.values == v).sum()), "Dice": dice(answer == v, labels.values == v)}
        for v, name in STRUCTURES.names.items()
    ]
    parts = [
        "# One image learned by heart",
        f"{__doc__.splitlines()[0]} {options.steps} steps in {minutes:.0f} minutes; threads {options.threads}.",
        markdown([{**row, "Dice": f"{row['Dice']:.3f}", "voxels": str(row["voxels"])} for row in rows]),
    ]
    written("overfit", parts, {"threads": options.threads, "steps": options.steps, "minutes": minutes, "rows": rows})


if __name__ == "__main__":
    main()
