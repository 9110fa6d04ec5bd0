"""Networks that learned from label maps only: their training, and the shipped ones with their cards.

Run: python benchmarks/studies/synthetic_networks.py train LABELS WORK [--epochs 136]
     python benchmarks/studies/synthetic_networks.py ship LABELS WORK/network --hours 2.5 [--training TEXT]
     (after benchmarks/studies/real_heads.py, whose scores of the slabs the card has)

LABELS is the folder of 20 whole heads that SynthSeg was trained from (Apache-2.0). The training resumes.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tables import markdown

import mrhdata
from mrhdata import models
from mrhdata._runtime.atomic import atomic_write
from mrhdata.inference.contrast import CONTRASTS
from mrhdata.models.cards import WEIGHTS, Card, digest_of
from mrhdata.recipes import synthetic
from mrhdata.recipes.synthetic_labels import STRUCTURES

RESULTS = Path(__file__).parents[1] / "results"
BASE = synthetic.SyntheticRecipe()
#: T1w-like images with random intensities up to 40 % of the way, of whole heads and of thin views. Other contrasts are
#: shown to the network in the way that it knows.
RECIPE = replace(
    BASE,
    targets=STRUCTURES.targets,
    names=STRUCTURES.names,
    contrasts=tuple(CONTRASTS),
    finish=STRUCTURES.finish,
    other_shapes={(32, 96, 96): 0.3, (96, 32, 96): 0.1, (96, 96, 32): 0.1},
    coarse_share=0.74,
    hardening=(0.2, 0.6),
    synthesis=replace(
        BASE.synthesis,
        modalities=("t1w",),
        random_share=0.5,
        contrast_width=(0.05, 0.4),
        view_probability=0.5,
        view_share=(0.15, 0.95),
    ),
    training=replace(BASE.training, epochs=136, learning_rate=2.5e-3),
)
NAME = "synth-tissue"


def read_maps(labels: Path) -> dict[str, xr.DataArray]:
    """The label maps of a folder by name."""
    return {path.name.partition(".")[0]: mrhdata.read(path, kind="labels") for path in sorted(labels.glob("*.nii.gz"))}


def train(labels: Path, work: Path, epochs: int) -> None:
    """Train the network, with checkpoints in WORK."""
    maps = read_maps(labels)
    recipe = replace(RECIPE, training=replace(RECIPE.training, epochs=epochs))
    model, history = synthetic.train(recipe, maps, folder=work)
    models.save(model, work / "network")
    print(f"{history.seconds / 3600:.1f} h, Dice on synthetic images {history.dice[-1]:.3f}")


def interval(values: list[float]) -> dict[str, float]:
    """The mean with its 95 % interval over subjects, by bootstrap."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (10_000, len(values))).mean(1)
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return {"value": float(np.mean(values)), "low": low, "high": high}


def ship(labels: Path, folder: Path, training: str, hours: float) -> Card:
    """Put a trained network and its card where the package finds them."""
    model: Any = models.load(folder)
    scores = json.loads((RESULTS / "real_heads.json").read_text())
    slabs, head = scores["slabs"], scores["plain"][0]
    names = list(read_maps(labels))
    validation = synthetic.validation_names(names, RECIPE.validation_maps)
    parts = {"training": [name for name in names if name not in validation], "validation": validation}
    with atomic_write(WEIGHTS / NAME) as draft:
        shutil.copytree(folder, draft)
        card = Card(
            name=NAME,
            title="Tissues and deep structures of human heads, from label maps only",
            task="tissue",
            network=model.spec.name,
            inputs=tuple(model.spec.channels),
            spacing_mm=tuple(model.spec.spacing_mm),
            data="synthetic images of 20 label maps (SynthSeg, Apache-2.0), no real image; "
            f"{training}; {hours:.1f} h of one processor core",
            split={**parts, "test": [f"human-t1-tissue, {len(slabs)} slabs of children"]},
            score={"name": "Dice of 4 tissues", **interval([row["mean"] for row in slabs])},
            baseline={},
            limits=(
                f"a whole T1w head: grey matter {head['grey']:.2f}, white matter {head['white']:.2f} against FAST",
                "knows T1w-like images; others are inverted or folded, which costs Dice",
                "thin slabs with the skull are labelled badly, as the score says; whole heads are not",
                "adults without lesions; left and right have one label",
            ),
            parameters=sum(p.numel() for p in model.parameters()),
            megabytes=(draft / "model.safetensors").stat().st_size / 1e6,
            sha256=digest_of(draft),
        )
        card.write(draft)
    return card


def main() -> None:
    """Train or ship."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    training = actions.add_parser("train")
    training.add_argument("labels", type=Path)
    training.add_argument("work", type=Path)
    training.add_argument("--epochs", type=int, default=RECIPE.training.epochs)
    shipping = actions.add_parser("ship")
    shipping.add_argument("labels", type=Path)
    shipping.add_argument("network", type=Path)
    shipping.add_argument("--hours", type=float, required=True)
    shipping.add_argument("--training", default=f"{RECIPE.training.epochs} epochs of {RECIPE.patches} patches")
    options = parser.parse_args()
    if options.action == "train":
        train(options.labels, options.work, options.epochs)
    else:
        print(markdown([ship(options.labels, options.network, options.training, options.hours).row()]))


if __name__ == "__main__":
    main()
