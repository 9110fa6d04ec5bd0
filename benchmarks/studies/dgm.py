"""Deep grey matter on the QSM phantom: the published network in two rounds, and a U-Net.

Run: python benchmarks/studies/dgm.py WORK [--methods published unet] [--threads 1]

Fifteen phantom subjects are for training (two of them for early stopping) and five for the test, as published. WORK
stores checkpoints and networks, from which an interrupted run resumes. Methods that WORK does not have keep their
committed results in the report.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tables import committed, markdown, merged, written

from mrhdata import models, phantom
from mrhdata.datasets.subjects import Subject
from mrhdata.inference.segmenter import score_labels, segment
from mrhdata.metrics.overlap import agreement, pool_over_subjects, roi_table
from mrhdata.models.precision import resolve_precision
from mrhdata.recipes import dgm, segmentation

TRAINING, VALIDATION, TEST = range(13), range(13, 15), range(15, 20)
LABELS = (0, *dgm.LABELS)
RECIPES = {"published": dgm.published, "unet": dgm.unet}


def subject(seed: int) -> Subject:
    """One phantom brain."""
    group = phantom.deep_grey(seed)
    return Subject(f"{seed:02d}", {"qsm": group["qsm"].rename("qsm")}, group["labels"])


def trained(method: str, work: Path) -> None:
    """Train what is not there yet."""
    place = work / method
    if (place / "history.json").exists():
        return
    place.mkdir(parents=True, exist_ok=True)
    found = segmentation.train(
        RECIPES[method](),
        [subject(s) for s in TRAINING],
        [subject(s) for s in VALIDATION],
        labels=LABELS,
        folder=place,
        progress=False,
    )
    for number, network in enumerate(found.rounds, start=1):
        models.save(network, place / f"round-{number}")
    (place / "history.json").write_text(json.dumps([[asdict(h) for h in hs] for hs in found.histories]))


def tested(method: str, work: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Scores of each round on the test subjects, and values in the regions of the last."""
    rows, regions = [], []
    cases = [subject(s) for s in TEST]
    rounds = sorted((work / method).glob("round-?"))
    for place in rounds:
        network = models.load(place)
        tables = []
        for case in cases:
            found = segment(network, case.inputs)
            tables.append(score_labels(case, found, LABELS))
            if place == rounds[-1]:
                regions.append(_regions(case, found).assign(subject=case.id))
        table = pd.concat(tables)
        row: dict[str, Any] = {
            "method": f"{method}, {place.name}",
            "mean Dice": str(pool_over_subjects(table, "dice", by=None)["all"]),
        }
        for score in ("dice", "precision", "hd95_mm", "volume_error"):
            for label, name in dgm.LABELS.items():
                row[f"{name} {score}"] = float(table[table.label == label][score].mean())
        rows.append(row | {"accuracy": float(table.drop_duplicates("subject").accuracy.mean())})
    return rows, _values(pd.concat(regions))


def _regions(case: Subject, found: Any) -> pd.DataFrame:
    """Mean susceptibility within found and true labels, in the same map."""
    qsm = case.inputs["qsm"].values
    tables = [roi_table(qsm, labels.values, dgm.LABELS, 3.0) for labels in (found, case.target)]
    return tables[0].assign(true_mean=tables[1]["mean"], true_volume_mm3=tables[1].volume_mm3)


def _values(table: pd.DataFrame) -> dict[str, Any]:
    errors = (table["mean"] - table.true_mean).abs()
    by_name = {name: float(errors[table.name == name].mean()) for name in dgm.LABELS.values()}
    limits = agreement(table.true_mean, table["mean"])
    return {
        "mean absolute error of ROI means, ppm": by_name,
        "largest error of one ROI of one subject, ppm": float(errors.max()),
        "ROI means of all test subjects together": {
            name: float(abs((table["mean"] - table.true_mean)[table.name == name].mean()))
            for name in dgm.LABELS.values()
        },
        "Bland-Altman, ppm": asdict(limits),
        "missing": int(table["mean"].isna().sum()),
    }


def cost(method: str, work: Path) -> dict[str, Any]:
    """Return training time, size and the time of the loader."""
    histories = [h for part in json.loads((work / method / "history.json").read_text()) for h in part]
    network = models.load(sorted((work / method).glob("round-?"))[-1])
    seconds = sum(h["seconds"] for h in histories)
    return {
        "method": method,
        "parameters": sum(p.numel() for p in network.parameters()),
        "minutes of training": seconds / 60,
        "epochs": [len(h["training"]) for h in histories],
        "best epochs": [h["best_epoch"] + 1 for h in histories],
        "loader's share": sum(h["waited"] for h in histories) / seconds,
    }


def report(work: Path, threads: int) -> None:
    """Tables of what is there."""
    there = [m for m in RECIPES if (work / m / "history.json").exists()]
    before = committed("dgm")
    rows, values = [], before.get("values", {})
    for method in there:
        found, values[method] = tested(method, work)
        rows += found
    rows = merged(before.get("scores", []), rows, "method")
    costs = merged(before.get("cost", []), [cost(method, work) for method in there], "method")
    dice = [
        {"method": r["method"], **{n: r[f"{n} dice"] for n in dgm.LABELS.values()}, "mean": r["mean Dice"]}
        for r in rows
    ]
    precision = [{"method": r["method"], **{n: r[f"{n} precision"] for n in dgm.LABELS.values()}} for r in rows]
    surfaces = [{"method": r["method"], **{n: r[f"{n} hd95_mm"] for n in dgm.LABELS.values()}} for r in rows]
    text = [
        "# Deep grey matter on QSM",
        f"Twenty phantom subjects: {len(TRAINING)} for training, {len(VALIDATION)} for early stopping, {len(TEST)} for "
        f"the test. {threads} thread, {resolve_precision('auto')} "
        f"convolutions. Minutes were measured on a machine with other work.",
        "Dice (mean over subjects; the last column with a 95 % interval over subjects):",
        markdown(dice),
        "Precision:",
        markdown(precision),
        "95 % Hausdorff distance, mm (the larger of both directions):",
        markdown(surfaces, 1),
        "Cost:",
        markdown(costs),
        "Susceptibility in found against true regions of the same maps, mean absolute difference in ppm:",
        markdown([{"method": m, **v["mean absolute error of ROI means, ppm"]} for m, v in values.items()], 4),
        markdown(
            [
                {
                    "method": m,
                    "bias, ppm": v["Bland-Altman, ppm"]["bias"],
                    "limits of agreement, ppm": [v["Bland-Altman, ppm"]["low"], v["Bland-Altman, ppm"]["high"]],
                    "largest of one ROI, ppm": v["largest error of one ROI of one subject, ppm"],
                    "regions not found": v["missing"],
                }
                for m, v in values.items()
            ],
            4,
        ),
    ]
    found = {
        "threads": threads,
        "torch": torch.__version__,
        "scores": rows,
        "values": values,
        "cost": costs,
    }
    written("dgm", text, found)


def main() -> None:
    """Train what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--methods", nargs="*", default=list(RECIPES))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for method in options.methods:
        trained(method, options.work)
    report(options.work, options.threads)


if __name__ == "__main__":
    main()
