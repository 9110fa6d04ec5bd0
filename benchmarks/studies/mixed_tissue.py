"""Tissue of T1w slabs by networks that saw synthetic and real images, four-fold by subject; a head of another study.

Run: python benchmarks/studies/mixed_tissue.py ../shared/data WORK [--start synth-tissue] [--folds 1 2 ...]
     writes benchmarks/results/mixed_tissue.md and .json

The folds are those of benchmarks/studies/tissue.py, whose supervised U-Net is the row to compare with. Half of the
batches show slabs of the training subjects. WORK stores networks and scores, from which an interrupted run resumes.
The whole head is labelled by the network of the first fold.
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
from real_heads import Scorer, whole_head
from synthetic_networks import RECIPE, read_maps
from tables import committed, markdown, written
from tissue import CLASSES, FOLDS, SEED, VALIDATION

from mrhdata import models
from mrhdata.datasets.subjects import Subject, find_subjects
from mrhdata.metrics.overlap import pool_over_subjects
from mrhdata.recipes import synthetic
from mrhdata.recipes.cross_validation import cross_validate
from mrhdata.recipes.synthetic_labels import TISSUES

#: For each tissue, a structure that the scorer of whole heads counts as the same matter.
STRUCTURES = {1: 1, 2: 2, 3: 3, 4: 8, 5: 4, 6: 5, 7: 6}


def recipe() -> synthetic.SyntheticRecipe:
    """A short training, because it begins with a network that has learned from label maps."""
    base = synthetic.SyntheticRecipe()
    return replace(
        base,
        other_shapes={(32, 96, 96): 0.3},
        hardening=(-1.0, -0.5),
        coarse_share=0.5,
        patches=150,
        quality_volumes=0,
        synthesis=RECIPE.synthesis,
        training=replace(base.training, epochs=8, learning_rate=1.5e-3),
    )


def labels_of_structures(labels: Any) -> Any:
    """Tissue labels as those of structures, which the scorer of whole heads counts."""
    table = np.zeros(8, np.uint8)
    table[list(STRUCTURES)] = list(STRUCTURES.values())
    return labels.copy(data=table[labels.values])


class TissueScorer(Scorer):
    """The scorer of heads for a network of tissues."""

    def segment(self, image: Any) -> Any:
        """The labels of a volume."""
        return labels_of_structures(super().segment(image))


def main() -> None:
    """All folds, and the head."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--start", default="synth-tissue")
    parser.add_argument("--folds", type=int, nargs="*")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    maps = read_maps(options.data / "label-maps")
    cases = find_subjects(options.data / "human-t1-tissue", {"t1w": "*T1w*"}, "*tissue*")
    settings, start = recipe(), models.load(options.start)

    def train(training: list[Subject], validation: list[Subject], folder: Path) -> Any:
        model, history = synthetic.train(
            settings, maps, subjects=training, validation=validation, start=start, seed=SEED, folder=folder,
            progress=False,
        )  # fmt: skip
        (folder / "minutes.txt").write_text(str(history.seconds / 60))
        return model

    only = None if not options.folds else [fold - 1 for fold in options.folds]
    scores = cross_validate(
        train, cases, options.work, k=FOLDS, validation=VALIDATION, seed=SEED, about={"recipe": repr(settings)},
        only=only, progress=False,
    )  # fmt: skip
    report(scores[scores.label.isin(CLASSES)], options)


def report(scores: pd.DataFrame, options: argparse.Namespace) -> None:
    """The table of the slabs next to the supervised U-Net, and the scores of the head."""
    row: dict[str, Any] = {"network": "synthetic and real", "subjects": scores.subject.nunique()}
    row |= {CLASSES[int(label)]: str(value) for label, value in pool_over_subjects(scores, "dice").items()}
    row["mean"] = f"{scores.groupby('subject').dice.mean().mean():.3f}"
    supervised = [r for r in committed("tissue").get("networks", []) if r.get("network") == "unet3d"]
    keys = ("network", "subjects", *CLASSES.values())
    rows = [row, *({key: other.get(key, "") for key in keys} | {"mean": ""} for other in supervised)]
    network: Any = models.load(options.work / "fold-1" / "network")
    head = whole_head(options.data)
    answers = {}
    for name, finish in (("as it is", ()), ("refined", TISSUES.finish)):
        network.spec = replace(network.spec, finish=finish)
        answers[name] = TissueScorer(network)(head)
    heads = [{"labels": n, **{k: f"{a[k]:.3f}" for k in ("grey", "white")}} for n, a in answers.items()]
    minutes = [float(path.read_text()) for path in sorted(options.work.glob("fold-*/minutes.txt"))]
    parts = [
        "# Tissue by networks that saw synthetic and real images",
        f"Dice over {FOLDS} folds; threads {options.threads}; minutes of each fold: "
        f"{', '.join(f'{m:.0f}' for m in minutes)}.",
        markdown(rows),
        "## Whole head of another study, by the network of the first fold",
        markdown(heads),
    ]
    written(
        "mixed_tissue", parts, {"rows": rows, "heads": heads, "minutes": minutes, "start": Path(options.start).name}
    )


if __name__ == "__main__":
    main()
