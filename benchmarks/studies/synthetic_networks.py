"""Networks that learned from label maps only: their training, and the shipped ones with their cards.

Run: python benchmarks/studies/synthetic_networks.py train LABELS WORK [--name synth-tissue] [--start NETWORK]
     python benchmarks/studies/synthetic_networks.py ship LABELS WORK/network --hours 2.5 [--name ...] [--training TEXT]
     (after benchmarks/studies/real_heads.py with that network, whose scores the card has)

LABELS is the folder of 20 whole heads that SynthSeg was trained from (Apache-2.0). The training resumes.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tables import markdown

import mrhdata
from mrhdata import models
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
#: The same with three contrasts, for a network that begins with one that knows T1w-like images: from random weights
#: three contrasts are not learned in hours.
THREE_CONTRASTS = replace(
    RECIPE,
    hardening=(0.0, 0.4),
    coarse_share=0.88,
    synthesis=replace(RECIPE.synthesis, modalities=("t1w", "t2w", "pd")),
    training=replace(RECIPE.training, epochs=84, learning_rate=2e-3),
)


@dataclass(frozen=True)
class Network:
    """A shipped network: how it is trained, and what its card says."""

    recipe: synthetic.SyntheticRecipe
    title: str
    alternatives: tuple[str, ...]
    limits: tuple[str, ...]


LIMITS = (
    "thin slabs are of children, with the skull, four tissues; fluid around the brain is labelled worst",
    "adults without lesions; left and right have one label",
)
NETWORKS = {
    "synth-tissue": Network(
        RECIPE,
        "Tissues and deep structures of human heads, from label maps only",
        ("synth-contrast",),
        ("knows T1w-like images; volumes of other contrasts are labelled by synth-contrast", *LIMITS),
    ),
    "synth-contrast": Network(
        THREE_CONTRASTS,
        "Tissues and deep structures of human heads of T1w, T2w and PD, from label maps only",
        (),
        ("T1w-like images are labelled better by synth-tissue, which takes this network for others", *LIMITS),
    ),
}


def read_maps(labels: Path) -> dict[str, xr.DataArray]:
    """The label maps of a folder by name."""
    return {path.name.partition(".")[0]: mrhdata.read(path, kind="labels") for path in sorted(labels.glob("*.nii.gz"))}


def train(labels: Path, work: Path, recipe: synthetic.SyntheticRecipe, start: str | None) -> None:
    """Train the network, with checkpoints in WORK."""
    begin = None if start is None else models.load(start)
    model, history = synthetic.train(recipe, read_maps(labels), start=begin, folder=work)
    models.save(model, work / "network")
    print(f"{history.seconds / 3600:.1f} h, Dice on synthetic images {history.dice[-1]:.3f}")


def score_of(name: str, scores: dict[str, Any]) -> tuple[dict[str, Any], list[str], str]:
    """The score of a card, the volumes of its test, and the first limit, from the report on real heads."""
    rows = {row["case"]: row for row in scores["plain"] if row["method"] in (name, f"{name} only")}
    head = rows["whole head"]
    limit = f"a whole T1w head: grey matter {head['grey']:.2f}, white matter {head['white']:.2f} against FAST"
    if name == "synth-tissue":
        means = [row["mean"] for row in scores["slabs"]]
        return {"name": "Dice of 4 tissues", **interval(means)}, [f"human-t1-tissue, {len(means)} slabs"], limit
    averages = [row for case, row in rows.items() if case != "whole head"]
    values = [row[tissue] for row in averages for tissue in ("grey", "white")]
    mean = {"value": float(np.mean(values)), "low": min(values), "high": max(values)}
    return (
        {"name": "Dice of GM and WM of 3 averages (range)", **mean},
        ["human-multicontrast, averages of 152 heads"],
        limit,
    )


def interval(values: list[float]) -> dict[str, float]:
    """The mean with its 95 % interval over subjects, by bootstrap."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (10_000, len(values))).mean(1)
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return {"value": float(np.mean(values)), "low": low, "high": high}


def ship(labels: Path, folder: Path, name: str, training: str, hours: float) -> Card:
    """Put a trained network and its card where the package finds them."""
    network, model = NETWORKS[name], models.load(folder)
    spec: Any = model.spec
    model.spec = replace(spec, alternatives=network.alternatives)  # type: ignore[assignment]
    scores = json.loads((RESULTS / "real_heads.json").read_text())
    score, test, limit = score_of(name, scores)
    names = list(read_maps(labels))
    validation = synthetic.validation_names(names, network.recipe.validation_maps)
    parts = {"training": [name for name in names if name not in validation], "validation": validation}
    target = WEIGHTS / name
    models.save(model, target)
    card = Card(
        name=name,
        title=network.title,
        task="tissue",
        network=spec.name,
        inputs=tuple(spec.channels),
        spacing_mm=tuple(spec.spacing_mm),
        data="synthetic images of 20 label maps (SynthSeg, Apache-2.0), no real image; "
        f"{training}; {hours:.1f} h of one processor core",
        split={**parts, "test": test},
        score=score,
        baseline={},
        limits=(limit, *network.limits),
        parameters=sum(p.numel() for p in model.parameters()),
        megabytes=(target / "model.safetensors").stat().st_size / 1e6,
        sha256=digest_of(target),
    )
    card.write(target)
    return card


def main() -> None:
    """Train or ship."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    training, shipping = actions.add_parser("train"), actions.add_parser("ship")
    for action in (training, shipping):
        action.add_argument("labels", type=Path)
        action.add_argument("folder", type=Path)
        action.add_argument("--name", choices=NETWORKS, default="synth-tissue")
    training.add_argument("--epochs", type=int)
    training.add_argument("--start")
    shipping.add_argument("--hours", type=float, required=True)
    shipping.add_argument("--training", required=True, help="epochs of the training, for the card")
    options = parser.parse_args()
    recipe = NETWORKS[options.name].recipe
    if options.action == "train":
        epochs = options.epochs or recipe.training.epochs
        recipe = replace(recipe, training=replace(recipe.training, epochs=epochs))
        train(options.labels, options.folder, recipe, options.start)
    else:
        card = ship(options.labels, options.folder, options.name, options.training, options.hours)
        print(markdown([card.row()]))


if __name__ == "__main__":
    main()
