"""Tissue of T1w slabs: the five published networks and a U-Net, four-fold by subject; a whole head; other grids.

Run: python benchmarks/studies/tissue.py DATA WORK [--networks A B ...] [--folds 1 2 ...] [--threads 1]

DATA has `human-t1-tissue` and `human-t1-whole`. WORK stores networks, labels and scores, from which an interrupted run
resumes. Networks that WORK does not have keep their committed results in the report. There are sixteen subjects; two of
each fold's twelve are for early stopping.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from tables import committed, markdown, merged, written

import mrhdata
from mrhdata import models
from mrhdata.datasets.subjects import Subject, find_subjects
from mrhdata.inference.segmenter import segment
from mrhdata.metrics.overlap import accuracy, overlap, pool_over_subjects
from mrhdata.models.precision import resolve_precision
from mrhdata.recipes import segmentation, tissue2d
from mrhdata.recipes.cross_validation import cross_validate
from mrhdata.registration.resampling import resample

CLASSES = {1: "CSF", 2: "GM", 3: "WM", 4: "deep GM"}
LABELS = (0, *CLASSES)
FOLDS, VALIDATION, SEED = 4, 2, 0
#: Epochs within 20 minutes a fold on one thread, most of them far below.
EPOCHS = {
    "tissue2d_0_0": 4, "tissue2d_1_0": 3, "tissue2d_2_0": 3, "tissue2d_3_0": 6, "tissue2d_4_0": 2, "unet3d": 20,
}  # fmt: skip


def recipe(network: str) -> segmentation.Recipe:
    """With the epochs that the budget allows."""
    made = tissue2d.unet() if network == "unet3d" else tissue2d.slices(network)
    epochs = EPOCHS[network]
    return replace(made, training=tuple(replace(t, epochs=epochs, patience=epochs) for t in made.training))


def validate(network: str, cases: list[Subject], work: Path, only: list[int] | None) -> pd.DataFrame:
    """Scores of every subject by a network that never saw it."""
    made = recipe(network)

    def train(training: Any, validation: Any, folder: Path) -> Any:
        trained = segmentation.train(
            made, training, validation, labels=LABELS, seed=SEED, folder=folder, progress=False
        )
        (folder / "history.json").write_text(json.dumps([asdict(h) for h in trained.histories[0]]))
        return trained.model

    about = {"network": network, "training": [asdict(t) for t in made.training]}
    return cross_validate(
        train, cases, work / network, k=FOLDS, validation=VALIDATION, seed=SEED, about=about, only=only, progress=False
    )


def background(cases: list[Subject]) -> dict[str, Any]:
    """Return the accuracy of a network that predicts background everywhere."""
    scores = [accuracy(case.target, np.zeros(case.target.shape)) for case in cases if case.target is not None]
    return {"network": "all background", "accuracy": float(np.mean(scores)), "parameters": 0}


def row(network: str, scores: pd.DataFrame, work: Path) -> dict[str, Any]:
    """Return one row of the table."""
    histories = [
        json.loads((work / network / f"fold-{i}" / "history.json").read_text())[0] for i in scores.fold.unique()
    ]
    per_subject = scores.drop_duplicates("subject")
    found = {
        "network": network,
        "parameters": sum(
            p.numel() for p in models.create(network, classes=len(LABELS), **recipe(network).config).parameters()
        ),
        "subjects": len(per_subject),
        "epochs": EPOCHS[network],
        "best_epochs": [h["best_epoch"] + 1 for h in histories],
        "minutes": [round(h["seconds"] / 60) for h in histories],
        "loader_share": sum(h["waited"] for h in histories) / sum(h["seconds"] for h in histories),
        "accuracy": float(per_subject.accuracy.mean()),
        "accuracy_inside": float(per_subject.accuracy_inside.mean()),
    }
    for label, held in pool_over_subjects(scores, "dice").items():
        found[CLASSES[int(label)]] = str(held)
    for label, held in pool_over_subjects(scores, "precision").items():
        found[f"{CLASSES[int(label)]} precision"] = str(held)
    return found


def whole_head(network: str, data: Path, work: Path) -> dict[str, Any]:
    """The first fold's network on another scanner's whole head, against FAST's grey and white matter."""
    folder = data / "human-t1-whole"
    head = mrhdata.read(folder / "bet.nii.gz").rename("t1w").compute()
    grey, white = (mrhdata.read(folder / f"pve_{i}.nii.gz").compute() for i in (1, 2))
    truth = np.where(np.maximum(grey, white) >= 0.5, np.where(white > grey, 3, 2), 0)
    kept = spheres(head)
    model = models.load(work / network / "fold-1" / "network")
    # The whole head is stripped of its skull, the slabs are not: a network that saw skulls is what is tested.
    found = segment(model, head)
    labels = np.where(found == 4, 2, found)  # FAST counts deep grey matter as grey
    table = overlap(np.where(kept, truth, 0), np.where(kept, labels, 0), (2, 3), head.mrh.spacing)
    return {"network": network, "masked voxels": int((~kept).sum()), "GM": table.dice[0], "WM": table.dice[1]}


def spheres(head: xr.DataArray) -> np.ndarray:
    """True outside the two artificial spheres, which touch nothing: all but the largest connected part."""
    from scipy import ndimage

    parts, _ = ndimage.label(np.asarray(head.data) > 0)
    largest = 1 + np.bincount(parts.ravel())[1:].argmax()
    return np.asarray((parts == largest) | (parts == 0))


def other_grids(network: str, cases: list[Subject], work: Path) -> list[dict[str, Any]]:
    """The first fold's subjects at other resolutions, orientations and crops, scored on their own grids.

    The nearest label lies up to half a voxel away: where grids differ, so carried labels disagree with right ones.
    """
    model = models.load(work / network / "fold-1" / "network")
    plan = json.loads((work / network / "plan.json").read_text())
    chosen = [case for case in cases if case.id in plan["folds"][0]]
    changes: dict[str, Any] = {
        "aligned": lambda v: v,
        "mirrored and turned axes": lambda v: v.isel(y=slice(None, None, -1), x=slice(None, None, -1)),
        "0.8 mm": lambda v: resample(v, spacing_mm=(1, 0.8, 0.8), order=3),
        "1.25 mm in plane": lambda v: resample(v, spacing_mm=(1, 1.25, 1.25), order=3),
        "cropped": lambda v: v.isel(y=slice(20, -12), x=slice(15, -10)),
        "tilted by 10 degrees": tilted,
    }
    rows = []
    for name, change in changes.items():
        scores, by_share = [], []
        for case in chosen:
            image, labels = change(case.inputs["t1w"]).compute(), change(case.target).compute()
            found = segment(model, image)
            if not found.mrh.grid.same_as(image.mrh.grid):
                raise SystemExit(f"{name}: labels came back on another grid")
            scores.append(overlap(labels.values, found.values, list(CLASSES)).dice)
            by_share.append(overlap(largest_share(case.target, image), found.values, list(CLASSES)).dice)
        mean, other = np.mean(scores, axis=0), float(np.mean(by_share))
        row = {"network": network, "grid": name, **dict(zip(CLASSES.values(), mean, strict=True))}
        rows.append(row | {"mean": mean.mean(), "mean, labels of the largest share": other})
    return rows


def largest_share(labels: xr.DataArray, like: xr.DataArray) -> np.ndarray:
    """Labels on another grid: at each voxel the one with most of it, by linear interpolation."""
    alone = labels.drop_attrs().assign_attrs({k: v for k, v in labels.attrs.items() if k != "kind"})
    shares = [resample((alone == label).astype(np.float32), like, order=1, antialias=False) for label in LABELS]
    return np.stack([share.values for share in shares]).argmax(axis=0)


def tilted(volume: xr.DataArray) -> xr.DataArray:
    """On a grid turned in plane by 10 degrees."""
    grid, angle = volume.mrh.grid, np.deg2rad(10)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    middle = grid.world((np.array(grid.shape) - 1) / 2)
    affine = np.eye(4)
    affine[:3, :3] = turn @ grid.affine[:3, :3]
    affine[:3, 3] = middle + turn @ (grid.affine[:3, 3] - middle)
    return resample(volume, mrhdata.volume.Grid(grid.shape, affine), order=3)


def report(data: Path, work: Path, cases: list[Subject], threads: int) -> None:
    """Tables of what is there."""
    before = committed("tissue")
    rows, heads, grids = [background(cases)], [], before.get("grids", [])
    for network in EPOCHS:
        tables = [pd.read_csv(p, dtype={"subject": str}) for p in sorted((work / network).glob("fold-*/scores.csv"))]
        if not tables:
            continue
        rows.append(row(network, pd.concat(tables), work))
        if (work / network / "fold-1" / "scores.csv").exists():
            heads.append(whole_head(network, data, work))
    if (work / "unet3d" / "fold-1" / "scores.csv").exists():
        grids = other_grids("unet3d", cases, work)
    rows = merged(before.get("networks", []), rows, "network")
    heads = merged(before.get("whole head", []), heads, "network")
    found = {"threads": threads, "torch": torch.__version__, "networks": rows, "whole head": heads, "grids": grids}
    text = [
        "# Tissue of T1w images",
        f"`human-t1-tissue`, 16 subjects, {FOLDS}-fold by subject, {VALIDATION} of each fold's twelve for early "
        f"stopping; {threads} thread, {resolve_precision('auto')} "
        f"convolutions. Intervals over subjects (95 %). Minutes of each fold, "
        "on a machine with other work.",
        markdown(rows),
        "`human-t1-whole` against FSL FAST's grey and white matter, the spheres left out; the network of fold 1:",
        markdown(heads),
        "Mean Dice of the subjects left out of fold 1 on other grids, each scored on its own against labels that are "
        "carried by the nearest voxel, and in the last column against those with the largest share of each voxel:",
        markdown(grids),
    ]
    written("tissue", text, found)


def main() -> None:
    """Train what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--networks", nargs="*", default=list(EPOCHS))
    parser.add_argument("--folds", nargs="*", type=int, default=None)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = find_subjects(options.data / "human-t1-tissue", {"t1w": "T1w"}, "tissue")
    only = None if options.folds is None else [i - 1 for i in options.folds]
    for network in options.networks:
        scores = validate(network, cases, options.work, only)
        print(network, {CLASSES[int(k)]: str(v) for k, v in pool_over_subjects(scores, "dice").items()}, flush=True)
    report(options.data, options.work, cases, options.threads)


if __name__ == "__main__":
    main()
