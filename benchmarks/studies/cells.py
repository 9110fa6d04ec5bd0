"""Cells in cleared tissue: trained networks on phantom brains of complete truth, four-fold by brain, and real planes.

Run: python benchmarks/studies/cells.py DATA WORK [--tasks NAME ...] [--folds 1 2 ...] [--threads 1]

DATA holds `cells`. WORK keeps brains, networks, tables and scores: a run that was stopped goes on, and the report
is made of all that is there, also where only some tasks or folds were asked for; brains that WORK does not hold stay
as they were committed. Of each fold's six brains one says when to stop and which threshold is best; the other two are
scored once. Classical detectors are those of `cleared_phantom.py`.
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
from mrhdata.phantom import cleared
from mrhdata.recipes import cell_verification, cells
from mrhdata.recipes.cells import Recipe
from mrhdata.recipes.cross_validation import cross_validate, folds
from mrhdata.registration.resampling import resample

SEEDS, FOLDS, VOXEL_MM, MISSING, SEED = range(8), 4, 0.002, 1 / 3, 0
#: Of a match, in training voxels.
RADII = {"6 voxels": 6, "3 voxels": 3}
ROUNDS, ROUND_SEEDS = 2, range(3)
#: How far apart the planes of the real volume are said to be, and are taken to be: ten of them are what the network
#: sees. They are three sections of ten planes, each of which shows the same cells anew; the second one is marked.
STEPS_UM, SECTION, BEYOND = (5.0, 2.5), slice(10, 20), 14
#: Training boxes of each brain: five brains are learned from.
BOXES = 200
#: Figures of the report of 2020, which are of patches.
REPORTED = {"F1": 0.737, "AUC ROC": 0.916, "AUC PR": 0.791}


def brain(work: Path, seed: int, *, complete: bool = True) -> Subject:
    """A phantom brain, made once, with its marks."""
    place = work / "brains"
    if not (place / f"{seed}.parquet").exists():
        place.mkdir(parents=True, exist_ok=True)
        made = cleared(seed=seed, missing=MISSING)
        mrhdata.write(made.volume, place / f"{seed}.zarr", overwrite=True)
        mrhdata.write(made.regions, place / f"{seed}-regions.zarr", overwrite=True)
        made.cells.to_parquet(place / f"{seed}.parquet")
    table = pd.read_parquet(place / f"{seed}.parquet")
    marks = table if complete else table[table["annotated"]]
    volume = mrhdata.read(place / f"{seed}.zarr").rename("signal")
    return Subject(
        f"{seed:02d}", {"signal": volume}, points=marks[["X", "Y", "Z"]].to_numpy(), points_complete=complete
    )


def truth_of(work: Path, subject: str) -> pd.DataFrame:
    """Every cell of a brain."""
    return pd.read_parquet(work / "brains" / f"{int(subject)}.parquet")


def trainer(recipe: Recipe, **options: Any) -> Any:
    """What cross-validation calls: a network of the recipe."""

    def train(brains: Any, validation: Any, folder: Path) -> Any:
        start = time.perf_counter()
        radius = RADII["6 voxels"] * VOXEL_MM
        made = cells.train(recipe, brains, validation, radius_mm=radius, folder=folder, progress=False, **options)
        history = {"seconds": time.perf_counter() - start, "rounds": [asdict(h) for h in made.histories]}
        (folder / "history.json").write_text(json.dumps(history))
        return made.model

    return train


def tester(work: Path) -> Any:
    """What cross-validation calls: scores of a brain that was left out, against every cell of it."""

    def test(model: Any, case: Subject, folder: Path) -> pd.DataFrame:
        start = time.perf_counter()
        peaks = stored_peaks(model.spec)
        table = cells.candidates(model, case, folder / "tested" / case.id, peaks)
        seconds = time.perf_counter() - start
        found = table[table["score"] >= peaks.threshold]
        row = scored(work, case.id, found) | {"threshold": peaks.threshold, "seconds": seconds}
        volume = case.inputs["signal"]
        return pd.DataFrame([row | patched(model, work, case) | {"Mvoxel/s": volume.size / 1e6 / seconds}])

    return test


def scored(work: Path, subject: str, found: pd.DataFrame) -> dict[str, Any]:
    """F1 and counts of a table of cells."""
    truth, places = truth_of(work, subject), found[["X", "Y", "Z"]].to_numpy()
    held = {name: detection(truth[["X", "Y", "Z"]], places, n * VOXEL_MM) for name, n in RADII.items()}
    first = held["6 voxels"]
    regions = mrhdata.read(work / "brains" / f"{int(subject)}-regions.zarr")
    counted, true = (region_counts.count(t[["X", "Y", "Z"]], regions)["count"] for t in (found, truth))
    return {
        "subject": subject,
        **{f"F1, {name}": d.f1 for name, d in held.items()},
        "precision": first.precision,
        "recall": first.recall,
        "cells": len(truth),
        "found": len(found),
        "relative count error": first.relative_count_error,
        "largest count error of a region": float((counted / true - 1)[true > 0].abs().max()),
        "median distance, um": first.median_distance_mm * 1e3,
    }


def patched(model: Any, work: Path, case: Subject) -> dict[str, float]:
    """Single patches at ten negatives for each cell, 6 to 20 voxels from it, as the report scored them."""
    given = replace(case, cells=truth_of(work, case.id)[["X", "Y", "Z"]].to_numpy())
    truth, score = cells.patch_scores(model, given, shell_mm=(6 * VOXEL_MM, 20 * VOXEL_MM))
    right = (score >= 0.5) == truth
    return {
        "AUC ROC": auc(truth, score),
        "AUC PR": average_precision(truth, score),
        "accuracy of patches": float(right.mean()),
        "accuracy of background alone": float(1 - truth.mean()),
    }


CORRECTED, PUBLISHED = (replace(f(VOXEL_MM), each=BOXES) for f in (cells.recommended_recipe, cells.published_recipe))
RECIPES = {
    "corrected": (CORRECTED, True),
    "published": (PUBLISHED, True),
    "a third unmarked": (replace(CORRECTED, rounds=1), False),
}


def validated(name: str, work: Path, only: list[int]) -> None:
    """Four-fold by brain."""
    recipe, complete = RECIPES[name]
    given = [brain(work, s, complete=complete) for s in SEEDS]
    cross_validate(
        trainer(recipe), given, work / slug(name), test=tester(work), k=FOLDS, seed=SEED,
        about={"recipe": repr(recipe)}, only=only, progress=False,
    )  # fmt: skip


def slug(name: str) -> str:
    """A task's folder."""
    return name.replace(" ", "-")


def once(task: Any, path: Path, *given: Any) -> None:
    """Do what has no result yet."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(task(*given)))


def parts(work: Path, fold: int) -> tuple[list[Subject], list[Subject], list[Subject]]:
    """Training, stopping and test brains of a fold of the corrected recipe."""
    shared = folds([brain(work, s) for s in SEEDS], FOLDS, SEED)
    left_out = shared.pop(fold)
    rest = [case for part in shared for case in part]
    return rest[1:], rest[:1], left_out


def second(work: Path, only: list[int]) -> None:
    """Both networks, on the folds of the corrected recipe."""
    for fold in only:
        place, rows = work / "second-look" / f"fold-{fold + 1}", []
        if (place / "scores.csv").exists():
            continue
        learned, stopping, tested = parts(work, fold)
        model = models.load(work / "corrected" / f"fold-{fold + 1}" / "network")
        place.mkdir(parents=True, exist_ok=True)
        radius, marking = RADII["6 voxels"] * VOXEL_MM, CORRECTED.marking
        again, _ = cell_verification.train(
            model, learned, stopping, marking, radius_mm=radius, folder=place, progress=False
        )
        for case in tested:
            start = time.perf_counter()
            found = cell_verification.detect_twice(model, again, case.inputs, place / "tested" / case.id)
            rows.append(scored(work, case.id, found) | {"fold": fold + 1, "seconds": time.perf_counter() - start})
        pd.DataFrame(rows).to_csv(place / "scores.csv", index=False)


def rounds(_: Path, work: Path) -> list[dict[str, Any]]:
    """Both brains of the first fold before and after each round with what was wrong, over seeds.

    Seeds that were committed are not made again.
    """
    rows = list(committed("cells").get("rounds", []))
    learned, stopping, tested = parts(work, 0)
    recipe = replace(CORRECTED, rounds=ROUNDS)
    for seed in sorted(set(ROUND_SEEDS) - {row["seed"] for row in rows}):
        place = work / "rounds" / str(seed)
        radius = RADII["6 voxels"] * VOXEL_MM
        made = cells.train(recipe, learned, stopping, radius_mm=radius, seed=seed, folder=place, progress=False)
        row: dict[str, Any] = {"seed": seed}
        for number, model in enumerate(made.rounds):
            peaks, f1 = stored_peaks(model.spec), []
            for case in tested:
                table = cells.candidates(model, case, place / f"tested-{number + 1}" / case.id, peaks)
                f1.append(scored(work, case.id, table[table["score"] >= peaks.threshold])["F1, 6 voxels"])
            row["before" if not number else f"after round {number}"] = float(np.mean(f1))
        rows.append(row)
    return rows


def coarse(_: Path, work: Path) -> dict[str, float]:
    """The report's other split: patches at random, of the same brains on both sides."""
    rng, training, testing = np.random.default_rng(SEED), [], []
    for seed in SEEDS:
        whole = brain(work, seed)
        first = rng.random(len(whole.cells)) < 0.5
        training.append(replace(whole, cells=whole.cells[first]))
        testing.append(replace(whole, cells=whole.cells[~first]))
    place = work / "coarse"
    # Threshold and stopping do not matter here: patches are ranked.
    watched = [replace(training[0], subject="watched")]
    radius = RADII["6 voxels"] * VOXEL_MM
    model = cells.train(CORRECTED, training, watched, radius_mm=radius, folder=place, progress=False).model
    held = [cells.patch_scores(model, b, shell_mm=(6 * VOXEL_MM, 20 * VOXEL_MM)) for b in testing]
    return {
        "AUC ROC": float(np.mean([auc(t, s) for t, s in held])),
        "AUC PR": float(np.mean([average_precision(t, s) for t, s in held])),
    }


def counts(work: Path) -> int:
    """Regions of all brains whose count is not that of the phantom's own list."""
    wrong = 0
    for seed in SEEDS:
        table = truth_of(work, str(seed))
        regions = mrhdata.read(work / "brains" / f"{seed}-regions.zarr")
        counted = region_counts.count(table[["X", "Y", "Z"]], regions)["count"]
        listed = table["region"].value_counts().reindex(counted.index, fill_value=0)
        wrong += int((counted != listed).sum())
    return wrong


def real(data: Path, work: Path, fold: int = 0) -> dict[str, Any]:
    """Marks of another program in planes of a mouse's cortex: recall alone, since many cells have none.

    Cells there are ten planes long, which are said to be 5 um apart; the phantom's are as long as wide. So the network
    is also scored as if planes were nearer, and after it went on learning from the marks of one half of the planes,
    on the other half: threshold and weights know nothing of the marks that are scored.
    """
    folder = data / "cells"
    planes = mrhdata.read(folder / "crop_planes" / "ch0", spacing=(5, 2, 2), unit="um").compute()
    marks = read_points(folder / "integration_detection_cell_classification.xml", planes)
    marks = marks[marks["type"] == 2]
    model = models.load(work / "corrected" / f"fold-{fold + 1}" / "network")
    threshold, everywhere, rows = stored_peaks(model.spec).threshold, ([-np.inf] * 3, [np.inf] * 3), []
    for step in STEPS_UM:
        fine, places = as_trained(planes, marks, step, work)
        table = found_in(model, fine, work / "real" / f"{step:g}")
        rows.append({"network": "as trained", "step, um": step, **counted(places, table, threshold, everywhere)})
    middle, shown = float(np.median(places[:, 0])), []
    halves = {"right": ([middle, -np.inf, -np.inf], [np.inf] * 3), "left": ([-np.inf] * 3, [middle, np.inf, np.inf])}
    for half, box in halves.items():
        learned = next(b for name, b in halves.items() if name != half)
        place = work / "real" / half
        chosen = threshold_of(model, fine, places, learned, place)
        table = found_in(gone_on(model, fine, places, learned, place), fine, place / "all")
        rows.append({"network": f"gone on, {half} half", "step, um": step, **counted(places, table, chosen, box)})
        shown.append((places, table, chosen, box))
    picture(planes, marks, shown)
    found, given, detections = (sum(r[k] for r in rows[-2:]) for k in ("found", "marks", "detections"))
    return {"rows": rows, "recall": str(wilson_interval(found, given)), "detections": detections}


def as_trained(planes: Any, marks: Any, step: float, work: Path) -> tuple[Any, np.ndarray]:
    """The section that holds the marks, at the voxels of training, and their world places.

    Beyond the section lies its own background, and cells are as bright over theirs as those that were trained on.
    """
    section = planes.values[SECTION].astype(np.float32)
    ground = gaussian_filter(percentile_filter(section.mean(axis=0), 30, size=41), 5)
    dark, bright = np.percentile(mrhdata.read(work / "brains" / "0.zarr").values, [50, 99.9])
    gain = (bright - dark) / (np.percentile(planes.values, 99.9) - np.median(planes.values))
    even = np.pad((section - ground) * gain, ((BEYOND, BEYOND), (0, 0), (0, 0))) + dark
    given = mrhdata.volume.from_array(even.astype(np.float32), spacing=(step / 1e3, VOXEL_MM, VOXEL_MM))
    fine = resample(given, spacing_mm=(VOXEL_MM,) * 3, order=1).compute().rename("signal")
    within = marks[["z", "y", "x"]].to_numpy() + np.array([BEYOND - SECTION.start, 0, 0])
    return fine, given.mrh.world(within)


def found_in(model: Any, fine: Any, folder: Path) -> pd.DataFrame:
    """Candidates, with their rows and columns."""
    table = cells.candidates(model, Subject("real", {"signal": fine}), folder, stored_peaks(model.spec))
    index = fine.mrh.grid.index(table[["X", "Y", "Z"]].to_numpy())
    return table.assign(row=index[:, 1], column=index[:, 2])


def threshold_of(model: Any, fine: Any, places: np.ndarray, box: Any, folder: Path) -> float:
    """The threshold for a network of one half, from marks that it did not learn from.

    Networks learn from the marks above the middle row of the half and are judged by those below, and the other way
    round: on its own marks a network is surer than on others.
    """
    low, high = np.array(box[0]), np.array(box[1])
    middle, chosen = float(np.median(places[((places >= low) & (places <= high)).all(axis=1)][:, 1])), []
    for name, learned, judged in (("above", 0, 1), ("below", 1, 0)):
        parts = [
            (low, np.where([False, True, False], middle, high)),
            (np.where([False, True, False], middle, low), high),
        ]
        again = gone_on(model, fine, places, parts[learned], folder / name)
        table = found_in(again, fine, folder / name / "all")
        chosen.append(fewest(places, table, parts[judged]))
    return float(np.mean(chosen))


def gone_on(model: Any, fine: Any, places: np.ndarray, box: Any, folder: Path) -> Any:
    """The network after some epochs on the marks in a box; the same planes say when to stop."""
    rows, columns = fine.mrh.grid.index(np.array([box[0], box[1]]).clip(-1, 1e3)).T[1:]
    cut = {axis: slice(*sorted(np.clip(np.rint(ends), 0, fine.sizes[axis]).astype(int)))
           for axis, ends in (("y", rows), ("x", columns))}  # fmt: skip
    part = {"signal": fine.isel(cut)}
    marked = places[((places >= box[0]) & (places <= box[1])).all(axis=1)]
    learned, watched = (Subject(name, part, points=marked, points_complete=False) for name in ("learned", "watched"))
    training = replace(CORRECTED.training, epochs=8, patience=8, learning_rate=1e-3)
    recipe = replace(CORRECTED, training=training, about=0.7, each=100)
    radius = RADII["6 voxels"] * VOXEL_MM
    return cells.train(recipe, [learned], [watched], radius_mm=radius, start=model, folder=folder, progress=False).model


def counted(places: np.ndarray, table: pd.DataFrame, threshold: float, box: Any) -> dict[str, Any]:
    """Recall of the marks in a box, and the detections there."""
    found = table[table["score"] >= threshold]
    held = recall_only(places, found[["X", "Y", "Z"]], 6 * VOXEL_MM, "not every cell is marked", box=box)
    row = {"threshold": threshold, "found": round(held.recall.estimate * held.marks), "marks": held.marks}
    return row | {"recall": str(held.recall), "detections": held.detections}


def fewest(places: np.ndarray, table: pd.DataFrame, box: Any) -> float:
    """The threshold that finds most of the marks in a box, and of those the one with the fewest detections."""
    rows = [counted(places, table, float(threshold), box) for threshold in np.arange(0.05, 0.9, 0.05)]
    return float(min((-row["found"], row["detections"], row["threshold"]) for row in rows)[-1])


def picture(planes: Any, marks: Any, halves: list[Any]) -> None:
    """The brightest of the section, found cells as circles, marks as crosses: red where none was found."""
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
    ax.set_title("Maximum of ten planes: found (circles), marked (crosses), marked and missed (red)", fontsize=10)
    figure.savefig(RESULTS / "cells_real.jpg", dpi=90, pil_kwargs={"quality": 80})


SINGLE = {"rounds": rounds, "coarse": coarse, "real": real}


def summary(name: str, table: pd.DataFrame) -> dict[str, Any]:
    """Means over brains."""
    row: dict[str, Any] = {"method": name, "brains": len(table)}
    for key in ("F1, 6 voxels", "F1, 3 voxels", "precision", "recall", "AUC ROC", "AUC PR", "Mvoxel/s"):
        if key in table:
            row[key] = float(table[key].mean())
    row["lowest F1"], row["highest F1"] = float(table["F1, 6 voxels"].min()), float(table["F1, 6 voxels"].max())
    if "relative count error" in table:
        row["count error"] = float(table["relative count error"].abs().mean())
    return row


def brains_scored(place: Path) -> list[dict[str, Any]]:
    """Rows of all folds of a task that are there."""
    tables = [pd.read_csv(path, dtype={"subject": str}) for path in sorted(place.glob("fold-*/scores.csv"))]
    return [row for table in tables for row in table.to_dict("records")]


def report(work: Path, threads: int) -> None:
    """Tables of what is there."""
    names, before = (*RECIPES, "second look"), committed("cells")
    tables = {n: pd.DataFrame(merged(before.get(n, []), brains_scored(work / slug(n)), "subject")) for n in names}
    tables = {n: table.sort_values("fold", kind="stable") for n, table in tables.items() if len(table)}
    read = {n: before[n] for n in SINGLE if n in before}
    read |= {n: json.loads(p.read_text()) for n in SINGLE if (p := work / slug(n) / "result.json").exists()}
    done: dict[str, Any] = {"counts": counts(work)} | read
    text = [
        "# Cells in cleared tissue",
        f"`python benchmarks/studies/cells.py DATA WORK`, {threads} thread, bfloat16. Eight phantom brains of 256 x "
        f"512 x 512 voxels of 2 um, four-fold by brain, {BOXES} training boxes of each; matches one to one within 6 "
        f"voxels ({6e3 * VOXEL_MM:g} um) or 3 ({3e3 * VOXEL_MM:g} um), means over brains.",
        markdown([summary(name, t) for name, t in tables.items()]),
    ]
    floors = committed("cleared_phantom").get("floors", [])
    if floors:
        text += ["Classical detectors, tuned on crops of six of the brains, on the other two (`cleared_phantom.md`):"]
        text += [markdown([{"detector": r["detector"], "F1, 6 voxels": float(np.mean(r["F1"]))} for r in floors])]
    if "rounds" in done:
        text += ["F1 before and after rounds with what was found wrongly:", markdown(done["rounds"], 4)]
    if "coarse" in done:
        text += [
            "Patches of the same brains split at random, and what the report of 2020 says of patches of other brains:",
            markdown([{"figures": "split at random", **done["coarse"]}, {"figures": "report", **REPORTED}]),
        ]
    text += [f"Regions whose count is not the phantom's own: {done['counts']}."]
    if "real" in done:
        real = done["real"]
        text += [
            "Planes of a mouse's cortex with 56 marks of another program, many cells unmarked (`cells_real.jpg`): "
            f"recall {real['recall']} with {real['detections']} detections after the network went on learning from the "
            "marks of one half, on the other half, both ways; before, as the rows say.",
            markdown(real["rows"]),
        ]
    for name, t in tables.items():
        text += [f"Each brain, {name}:", markdown(t.to_dict("records"))]
    written("cells", text, done | {name: t.to_dict("records") for name, t in tables.items()})


def main() -> None:
    """Do what is asked, then report."""
    every = [*RECIPES, "second look", *SINGLE]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tasks", nargs="*", default=every)
    parser.add_argument("--folds", nargs="*", type=int, default=range(1, FOLDS + 1))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    only = [n - 1 for n in given.folds]
    for name in given.tasks:
        if name in RECIPES:
            validated(name, given.work, only)
        elif name in SINGLE:
            once(SINGLE[name], given.work / slug(name) / "result.json", given.data, given.work)
        else:
            second(given.work, only)
    report(given.work, given.threads)


if __name__ == "__main__":
    main()
