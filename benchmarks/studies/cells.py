"""Cells in cleared tissue: trained networks on phantom brains with complete truth, four-fold by brain, and real planes.

Run: python benchmarks/studies/cells.py DATA WORK [--tasks NAME ...] [--folds 1 2 ...] [--threads 1]

DATA has the folder `cells`. WORK stores brains, networks, tables and scores, from which an interrupted run resumes.
The report has all results in WORK, also those of earlier runs with other tasks or folds, and the committed results of
other brains. One of each fold's six training brains is for early stopping and the threshold; the two held-out brains
are scored once. The classical detectors are those of `cleared_phantom.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter, percentile_filter
from tables import RESULTS, committed, markdown, merged, written

import mrhdata
from mrhdata import models
from mrhdata.analysis import region_counts
from mrhdata.datasets.subjects import Subject
from mrhdata.inference.detector import stored_peaks
from mrhdata.io.cell_tables import read_points
from mrhdata.metrics.bootstrap import wilson_interval
from mrhdata.metrics.detection import detection, recall_only
from mrhdata.metrics.matching import match
from mrhdata.metrics.roc import auc, average_precision
from mrhdata.models.precision import resolve_precision
from mrhdata.phantom import cleared
from mrhdata.recipes import cell_verification, cells
from mrhdata.recipes.cells import Recipe
from mrhdata.recipes.cross_validation import cross_validate, folds
from mrhdata.registration.resampling import resample

SEEDS, FOLDS, VOXEL_MM, MISSING, SEED = range(8), 4, 0.002, 1 / 3, 0
#: Maximum distances of a match, in training voxels.
RADII = {"6 voxels": 6, "3 voxels": 3}
ROUNDS, ROUND_SEEDS = 2, range(3)
#: Spacing of the planes of the real volume: as documented, and as assumed so that ten planes fill the network's patch.
#: The volume has three sections of ten planes that show the same cells; the second section is annotated.
STEPS_UM, SECTION, BEYOND = (5.0, 2.5), slice(10, 20), 14
#: Training patches of each of the five training brains.
BOXES = 200
#: Scores of patches in the report of 2020.
REPORTED = {"F1": 0.737, "AUC ROC": 0.916, "AUC PR": 0.791}


def brain(work: Path, seed: int, *, complete: bool = True) -> Subject:
    """Return a phantom brain with its annotations, generated once."""
    folder = work / "brains"
    if not (folder / f"{seed}.parquet").exists():
        folder.mkdir(parents=True, exist_ok=True)
        phantom = cleared(seed=seed, missing=MISSING)
        mrhdata.write(phantom.volume, folder / f"{seed}.zarr", overwrite=True)
        mrhdata.write(phantom.regions, folder / f"{seed}-regions.zarr", overwrite=True)
        phantom.cells.to_parquet(folder / f"{seed}.parquet")
    table = pd.read_parquet(folder / f"{seed}.parquet")
    annotations = table if complete else table[table["annotated"]]
    points = annotations[["X", "Y", "Z"]].to_numpy()
    volume = mrhdata.read(folder / f"{seed}.zarr").rename("signal")
    return Subject(f"{seed:02d}", {"signal": volume}, points=points, points_complete=complete)


def truth_of(work: Path, subject: str) -> pd.DataFrame:
    """Return the table of all cells of a brain."""
    return pd.read_parquet(work / "brains" / f"{int(subject)}.parquet")


def trainer(recipe: Recipe, **options: Any) -> Any:
    """Return the training function of a recipe for cross-validation."""

    def train(brains: Any, validation: Any, folder: Path) -> Any:
        start = time.perf_counter()
        radius = RADII["6 voxels"] * VOXEL_MM
        trained = cells.train(recipe, brains, validation, radius_mm=radius, folder=folder, progress=False, **options)
        history = {"seconds": time.perf_counter() - start, "rounds": [asdict(h) for h in trained.histories]}
        (folder / "history.json").write_text(json.dumps(history))
        return trained.model

    return train


def tester(work: Path) -> Any:
    """Return the test function for cross-validation: scores of a held-out brain against all its cells."""

    def test(model: Any, subject: Subject, folder: Path) -> pd.DataFrame:
        start = time.perf_counter()
        peaks = stored_peaks(model.spec)
        table = cells.candidates(model, subject, folder / "tested" / subject.id, peaks)
        seconds = time.perf_counter() - start
        detections = table[table["score"] >= peaks.threshold]
        row = scored(work, subject.id, detections) | {"threshold": peaks.threshold, "seconds": seconds}
        volume = subject.inputs["signal"]
        return pd.DataFrame([row | score_patches(model, work, subject) | {"Mvoxel/s": volume.size / 1e6 / seconds}])

    return test


def scored(work: Path, subject: str, detections: pd.DataFrame) -> dict[str, Any]:
    """Return F1, counts and counts by region of a table of detections."""
    truth, points = truth_of(work, subject), detections[["X", "Y", "Z"]].to_numpy()
    scores = {name: detection(truth[["X", "Y", "Z"]], points, n * VOXEL_MM) for name, n in RADII.items()}
    first = scores["6 voxels"]
    regions = mrhdata.read(work / "brains" / f"{int(subject)}-regions.zarr")
    counted, true = (region_counts.count(t[["X", "Y", "Z"]], regions)["count"] for t in (detections, truth))
    return {
        "subject": subject,
        **{f"F1, {name}": d.f1 for name, d in scores.items()},
        "precision": first.precision,
        "recall": first.recall,
        "cells": len(truth),
        "found": len(detections),
        "relative count error": first.relative_count_error,
        "largest count error of a region": float((counted / true - 1)[true > 0].abs().max()),
        "median distance, um": first.median_distance_mm * 1e3,
    }


def score_patches(model: Any, work: Path, subject: Subject) -> dict[str, float]:
    """Score single patches as the report did: ten negatives for each cell, 6 to 20 voxels from it."""
    complete = replace(subject, points=truth_of(work, subject.id)[["X", "Y", "Z"]].to_numpy())
    truth, score = cells.patch_scores(model, complete, shell_mm=(6 * VOXEL_MM, 20 * VOXEL_MM))
    correct = (score >= 0.5) == truth
    return {
        "AUC ROC": auc(truth, score),
        "AUC PR": average_precision(truth, score),
        "accuracy of patches": float(correct.mean()),
        "accuracy of background only": float(1 - truth.mean()),
    }


RECOMMENDED = replace(cells.recommended_recipe(VOXEL_MM), patches_per_brain=BOXES)
PUBLISHED = replace(cells.published_recipe(VOXEL_MM), patches_per_brain=BOXES)
RECIPES = {
    "corrected": (RECOMMENDED, True),
    "published": (PUBLISHED, True),
    "a third unmarked": (replace(RECOMMENDED, rounds=1), False),
}


def validated(name: str, work: Path, only: list[int]) -> None:
    """Run the four-fold cross-validation of a recipe."""
    recipe, complete = RECIPES[name]
    brains = [brain(work, s, complete=complete) for s in SEEDS]
    cross_validate(
        trainer(recipe), brains, work / slug(name), test=tester(work), k=FOLDS, seed=SEED,
        about={"recipe": repr(recipe)}, only=only, progress=False,
    )  # fmt: skip


def slug(name: str) -> str:
    """Return the folder name of a task."""
    return name.replace(" ", "-")


def once(task: Any, path: Path, *arguments: Any) -> None:
    """Run a task that has no result yet."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(task(*arguments)))


def parts(work: Path, fold: int) -> tuple[list[Subject], list[Subject], list[Subject]]:
    """Return the training, validation and test brains of a fold of the recommended recipe."""
    others = folds([brain(work, s) for s in SEEDS], FOLDS, SEED)
    held_out = others.pop(fold)
    rest = [subject for part in others for subject in part]
    return rest[1:], rest[:1], held_out


def second(work: Path, only: list[int]) -> None:
    """Train and score the second network on the folds of the recommended recipe."""
    for fold in only:
        folder, rows = work / "second-look" / f"fold-{fold + 1}", []
        if (folder / "scores.csv").exists():
            continue
        training, validation, test = parts(work, fold)
        model = models.load(work / "corrected" / f"fold-{fold + 1}" / "network")
        folder.mkdir(parents=True, exist_ok=True)
        radius = RADII["6 voxels"] * VOXEL_MM
        verifier, _ = cell_verification.train(
            model, training, validation, RECOMMENDED.rules, radius_mm=radius, folder=folder, progress=False
        )
        for subject in test:
            start = time.perf_counter()
            table = cell_verification.detect_twice(model, verifier, subject.inputs, folder / "tested" / subject.id)
            rows.append(scored(work, subject.id, table) | {"fold": fold + 1, "seconds": time.perf_counter() - start})
        pd.DataFrame(rows).to_csv(folder / "scores.csv", index=False)


def rounds(_: Path, work: Path) -> list[dict[str, Any]]:
    """Score the first fold before and after each round of training on errors, for several seeds.

    Committed seeds are not repeated.
    """
    rows = list(committed("cells").get("rounds", []))
    training, validation, test = parts(work, 0)
    recipe = replace(RECOMMENDED, rounds=ROUNDS)
    for seed in sorted(set(ROUND_SEEDS) - {row["seed"] for row in rows}):
        folder = work / "rounds" / str(seed)
        radius = RADII["6 voxels"] * VOXEL_MM
        trained = cells.train(recipe, training, validation, radius_mm=radius, seed=seed, folder=folder, progress=False)
        row: dict[str, Any] = {"seed": seed}
        for number, model in enumerate(trained.rounds):
            peaks, f1 = stored_peaks(model.spec), []
            for subject in test:
                table = cells.candidates(model, subject, folder / f"tested-{number + 1}" / subject.id, peaks)
                f1.append(scored(work, subject.id, table[table["score"] >= peaks.threshold])["F1, 6 voxels"])
            row["before" if not number else f"after round {number}"] = float(np.mean(f1))
        rows.append(row)
    return rows


def coarse(_: Path, work: Path) -> dict[str, float]:
    """Score the report's other split: random patches, with the same brains in training and test."""
    rng, training, testing = np.random.default_rng(SEED), [], []
    for seed in SEEDS:
        whole = brain(work, seed)
        first = rng.random(len(whole.points)) < 0.5
        training.append(replace(whole, points=whole.points[first]))
        testing.append(replace(whole, points=whole.points[~first]))
    # The scores rank patches, so they depend neither on the threshold nor on early stopping.
    validation = [replace(training[0], id="watched")]
    radius = RADII["6 voxels"] * VOXEL_MM
    trained = cells.train(RECOMMENDED, training, validation, radius_mm=radius, folder=work / "coarse", progress=False)
    scores = [cells.patch_scores(trained.model, b, shell_mm=(6 * VOXEL_MM, 20 * VOXEL_MM)) for b in testing]
    return {
        "AUC ROC": float(np.mean([auc(t, s) for t, s in scores])),
        "AUC PR": float(np.mean([average_precision(t, s) for t, s in scores])),
    }


def counts(work: Path) -> int:
    """Count the regions of all brains whose number of cells differs from the phantom's list."""
    wrong = 0
    for seed in SEEDS:
        table = truth_of(work, str(seed))
        regions = mrhdata.read(work / "brains" / f"{seed}-regions.zarr")
        counted = region_counts.count(table[["X", "Y", "Z"]], regions)["count"]
        listed = table["region"].value_counts().reindex(counted.index, fill_value=0)
        wrong += int((counted != listed).sum())
    return wrong


def real(data: Path, work: Path, fold: int = 0) -> dict[str, Any]:
    """Measure the recall of annotations by another program in planes of a mouse's cortex, where many cells have none.

    Cells there extend over ten planes with a documented spacing of 5 um; those of the phantom are round. Therefore the
    network is also scored with a smaller assumed spacing, and after further training on the annotations of one half of
    the planes, on the other half: neither threshold nor weights depend on the scored annotations.
    """
    folder = data / "cells"
    planes = mrhdata.read(folder / "crop_planes" / "ch0", spacing=(5, 2, 2), unit="um").compute()
    marks = read_points(folder / "integration_detection_cell_classification.xml", planes)
    marks = marks[marks["type"] == 2]
    model = models.load(work / "corrected" / f"fold-{fold + 1}" / "network")
    threshold, everywhere, rows = stored_peaks(model.spec).threshold, ([-np.inf] * 3, [np.inf] * 3), []
    for step in STEPS_UM:
        fine, places = as_trained(planes, marks, step, work)
        table = candidates_in(model, fine, work / "real" / f"{step:g}")
        rows.append({"network": "as trained", "step, um": step, **counted(places, table, threshold, everywhere)})
    middle, shown = float(np.median(places[:, 0])), []
    halves = {"right": ([middle, -np.inf, -np.inf], [np.inf] * 3), "left": ([-np.inf] * 3, [middle, np.inf, np.inf])}
    for half, box in halves.items():
        learned = next(b for name, b in halves.items() if name != half)
        place = work / "real" / half
        chosen = threshold_of(model, fine, places, learned, place)
        table = candidates_in(continue_training(model, fine, places, learned, place), fine, place / "all")
        rows.append({"network": f"fine-tuned, {half} half", "step, um": step, **counted(places, table, chosen, box)})
        shown.append((places, table, chosen, box))
    picture(planes, marks, shown)
    matched, annotated, detections = (sum(r[k] for r in rows[-2:]) for k in ("found", "marks", "detections"))
    return {"rows": rows, "recall": str(wilson_interval(matched, annotated)), "detections": detections}


def as_trained(planes: Any, marks: Any, step: float, work: Path) -> tuple[Any, np.ndarray]:
    """Resample the annotated section to the training voxels, and return it with the world points of the annotations.

    The section is padded with background, and its contrast is scaled to that of the training brains.
    """
    section = planes.values[SECTION].astype(np.float32)
    ground = gaussian_filter(percentile_filter(section.mean(axis=0), 30, size=41), 5)
    dark, bright = np.percentile(mrhdata.read(work / "brains" / "0.zarr").values, [50, 99.9])
    gain = (bright - dark) / (np.percentile(planes.values, 99.9) - np.median(planes.values))
    even = np.pad((section - ground) * gain, ((BEYOND, BEYOND), (0, 0), (0, 0))) + dark
    padded = mrhdata.volume.from_array(even.astype(np.float32), spacing=(step / 1e3, VOXEL_MM, VOXEL_MM))
    fine = resample(padded, spacing_mm=(VOXEL_MM,) * 3, order=1).compute().rename("signal")
    within = marks[["z", "y", "x"]].to_numpy() + np.array([BEYOND - SECTION.start, 0, 0])
    return fine, padded.mrh.world(within)


def candidates_in(model: Any, fine: Any, folder: Path) -> pd.DataFrame:
    """Return the candidates with their rows and columns."""
    table = cells.candidates(model, Subject("real", {"signal": fine}), folder, stored_peaks(model.spec))
    index = fine.mrh.grid.index(table[["X", "Y", "Z"]].to_numpy())
    return table.assign(row=index[:, 1], column=index[:, 2])


def threshold_of(model: Any, fine: Any, places: np.ndarray, box: Any, folder: Path) -> float:
    """Choose the threshold for a network of one half, from annotations on which it was not trained.

    One network is trained on the annotations above the middle row of the half and scored on those below, and another
    the other way round, because scores are higher on training annotations.
    """
    low, high = np.array(box[0]), np.array(box[1])
    middle, chosen = float(np.median(places[((places >= low) & (places <= high)).all(axis=1)][:, 1])), []
    for name, learned, judged in (("above", 0, 1), ("below", 1, 0)):
        parts = [
            (low, np.where([False, True, False], middle, high)),
            (np.where([False, True, False], middle, low), high),
        ]
        tuned = continue_training(model, fine, places, parts[learned], folder / name)
        table = candidates_in(tuned, fine, folder / name / "all")
        chosen.append(fewest(places, table, parts[judged]))
    return float(np.mean(chosen))


def continue_training(model: Any, fine: Any, places: np.ndarray, box: Any, folder: Path) -> Any:
    """Return the network after some epochs on the annotations in a box, with early stopping on the same planes."""
    rows, columns = fine.mrh.grid.index(np.array([box[0], box[1]]).clip(-1, 1e3)).T[1:]
    cut = {axis: slice(*sorted(np.clip(np.rint(ends), 0, fine.sizes[axis]).astype(int)))
           for axis, ends in (("y", rows), ("x", columns))}  # fmt: skip
    part = {"signal": fine.isel(cut)}
    marked = places[((places >= box[0]) & (places <= box[1])).all(axis=1)]
    # Both are the same planes; the names must differ.
    training, validation = (
        [Subject(name, part, points=marked, points_complete=False)] for name in ("learned", "watched")
    )
    settings = replace(RECOMMENDED.training, epochs=8, patience=8, learning_rate=1e-3)
    recipe = replace(RECOMMENDED, training=settings, targeted_fraction=0.7, patches_per_brain=100)
    radius = RADII["6 voxels"] * VOXEL_MM
    return cells.train(recipe, training, validation, radius_mm=radius, start=model, folder=folder, progress=False).model


def counted(places: np.ndarray, table: pd.DataFrame, threshold: float, box: Any) -> dict[str, Any]:
    """Return the recall of the annotations in a box, and the number of detections there."""
    detections = table[table["score"] >= threshold]
    scores = recall_only(places, detections[["X", "Y", "Z"]], 6 * VOXEL_MM, "not every cell is annotated", box=box)
    row = {"threshold": threshold, "found": round(scores.recall.estimate * scores.marks), "marks": scores.marks}
    return row | {"recall": str(scores.recall), "detections": scores.detections}


def fewest(places: np.ndarray, table: pd.DataFrame, box: Any) -> float:
    """Return the threshold with the highest recall in a box; of several, the one with the fewest detections."""
    rows = [counted(places, table, float(threshold), box) for threshold in np.arange(0.05, 0.9, 0.05)]
    return float(min((-row["found"], row["detections"], row["threshold"]) for row in rows)[-1])


def picture(planes: Any, marks: Any, halves: list[Any]) -> None:
    """Plot the maximum of the section with detections as circles and annotations as crosses, red if missed."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    ax = figure.subplots()
    brightest = planes.values[SECTION].max(axis=0)
    ax.imshow(brightest, cmap="gray", vmax=np.percentile(brightest, 99.7))
    for places, table, threshold, box in halves:
        inside = ((places >= box[0]) & (places <= box[1])).all(axis=1)
        there = ((table[["X", "Y", "Z"]] >= box[0]) & (table[["X", "Y", "Z"]] <= box[1])).all(axis=1)
        found = table[there & (table["score"] >= threshold)]
        ax.plot(found["column"], found["row"], "o", mfc="none", mec="tab:orange", ms=9, mew=0.8)
        hit = np.isin(np.arange(len(places)), match(places, found[["X", "Y", "Z"]], 6 * VOXEL_MM).truth)
        for kind, colour in ((inside & hit, "tab:cyan"), (inside & ~hit, "red")):
            ax.plot(marks["x"][kind], marks["y"][kind], "+", color=colour, ms=8)
    ax.set_axis_off()
    ax.set_title("Maximum of ten planes: detections (circles), annotations (crosses), misses (red)", fontsize=10)
    figure.savefig(RESULTS / "cells_real.jpg", dpi=90, pil_kwargs={"quality": 80})


SINGLE = {"rounds": rounds, "coarse": coarse, "real": real}


def summary(name: str, table: pd.DataFrame) -> dict[str, Any]:
    """Return the mean scores over brains."""
    row: dict[str, Any] = {"method": name, "brains": len(table)}
    for key in ("F1, 6 voxels", "F1, 3 voxels", "precision", "recall", "AUC ROC", "AUC PR", "Mvoxel/s"):
        if key in table:
            row[key] = float(table[key].mean())
    row["lowest F1"], row["highest F1"] = float(table["F1, 6 voxels"].min()), float(table["F1, 6 voxels"].max())
    if "relative count error" in table:
        row["count error"] = float(table["relative count error"].abs().mean())
    return row


def brains_scored(place: Path) -> list[dict[str, Any]]:
    """Return the rows of all finished folds of a task."""
    tables = [pd.read_csv(path, dtype={"subject": str}) for path in sorted(place.glob("fold-*/scores.csv"))]
    return [row for table in tables for row in table.to_dict("records")]


def report(work: Path, threads: int) -> None:
    """Write the report of all results in WORK."""
    names, before = (*RECIPES, "second look"), committed("cells")
    tables = {n: pd.DataFrame(merged(before.get(n, []), brains_scored(work / slug(n)), "subject")) for n in names}
    tables = {n: table.sort_values("fold", kind="stable") for n, table in tables.items() if len(table)}
    read = {n: before[n] for n in SINGLE if n in before}
    read |= {n: json.loads(p.read_text()) for n in SINGLE if (p := work / slug(n) / "result.json").exists()}
    done: dict[str, Any] = {"counts": counts(work)} | read
    text = [
        "# Cells in cleared tissue",
        f"`python benchmarks/studies/cells.py DATA WORK`, {threads} thread, "
        f"{resolve_precision('auto')}. Eight phantom brains of 256 x "
        f"512 x 512 voxels of 2 um, four-fold by brain, {BOXES} training patches of each; matches one to one within 6 "
        f"voxels ({6e3 * VOXEL_MM:g} um) or 3 ({3e3 * VOXEL_MM:g} um), means over brains.",
        markdown([summary(name, t) for name, t in tables.items()]),
    ]
    floors = committed("cleared_phantom").get("floors", [])
    if floors:
        text += ["Classical detectors, tuned on crops of six of the brains, on the other two (`cleared_phantom.md`):"]
        text += [markdown([{"detector": r["detector"], "F1, 6 voxels": float(np.mean(r["F1"]))} for r in floors])]
    if "rounds" in done:
        text += ["F1 before and after rounds of training on errors:", markdown(done["rounds"], 4)]
    if "coarse" in done:
        text += [
            "Patches of the same brains split at random, and the scores of the report of 2020 on other brains:",
            markdown([{"figures": "split at random", **done["coarse"]}, {"figures": "report", **REPORTED}]),
        ]
    text += [f"Regions whose count differs from the phantom's: {done['counts']}."]
    if "real" in done:
        real = done["real"]
        text += [
            "Planes of a mouse's cortex with 56 annotations by another program and many cells without one "
            f"(`cells_real.jpg`): recall {real['recall']} with {real['detections']} detections after further training "
            "on the annotations of one half, scored on the other half, both ways. The first rows are without it.",
            markdown(real["rows"]),
        ]
    for name, t in tables.items():
        text += [f"Each brain, {name}:", markdown(t.to_dict("records"))]
    written("cells", text, done | {name: t.to_dict("records") for name, t in tables.items()})


def main() -> None:
    """Run the tasks, then write the report."""
    every = [*RECIPES, "second look", *SINGLE]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tasks", nargs="*", default=every)
    parser.add_argument("--folds", nargs="*", type=int, default=range(1, FOLDS + 1))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    only = [n - 1 for n in options.folds]
    for name in options.tasks:
        if name in RECIPES:
            validated(name, options.work, only)
        elif name in SINGLE:
            once(SINGLE[name], options.work / slug(name) / "result.json", options.data, options.work)
        else:
            second(options.work, only)
    report(options.work, options.threads)


if __name__ == "__main__":
    main()
