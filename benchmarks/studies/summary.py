"""Write ``RESULTS.md`` from what the benchmarks left; nothing is measured here.

Run: python benchmarks/studies/summary.py [WORK]

WORK is the folder of a full bench (``mrhdata bench benchmarks/ --out WORK``), whose lines are kept in
``results/bench.jsonl``, each in place of an earlier one of the same task, method and seed. A bench that is to go on
elsewhere starts with that file as ``WORK/results.jsonl``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tables import RESULTS, committed, markdown

from mrhdata.bench import sections
from mrhdata.bench.runner import Bench, read_results
from mrhdata.bench.tasks import tasks_of
from mrhdata.viz.report import as_markdown

HERE = Path(__file__).parents[1]
RECORDS, SUMMARY = RESULTS / "bench.jsonl", HERE / "RESULTS.md"
#: Of draws, which are two thirds of a record.
DIGITS = 6
#: Reports of their own: what each says, and the command that made it.
REPORTS = {
    "mrhnet_recipe": ("MRH-Net, as published and as corrected", "mrhnet_recipe.py"),
    "leave_one_out": ("what single contrasts of MRI tell of histology", "leave_one_out.py"),
    "transfer": ("MRH-Net carried over to other data", "transfer.py"),
    "misregistration": ("sensitivity where MRI and histology are not aligned", "misregistration.py"),
    "robustness": ("sensitivity under noise, bias and other changes", "robustness.py"),
    "coverage": ("whether intervals hold what they promise", "coverage.py"),
    "tissue": ("tissue of T1w slabs, four-fold by subject", "tissue.py DATA WORK"),
    "dgm": ("deep grey matter on QSM, 15 subjects train and 5 test", "dgm.py WORK"),
    "dgm_atlas": ("deep grey matter of one atlas, tested on another", "dgm_atlas.py DATA WORK"),
    "em": ("EM scans restored", "em.py DATA WORK"),
    "em_floors": ("EM: classical methods and the published floors", "em_floors.py DATA"),
    "em_large": ("EM: a stack larger than its budget", "em_large.py DATA WORK"),
    "cells": ("cells in cleared tissue, four-fold by brain, and real planes", "cells.py DATA WORK"),
    "cleared_phantom": ("classical detectors of cells on the same phantom", "cleared_phantom.py"),
    "cells_stream": ("cells of a brain of 20 GB, raw planes to table", "cells_stream.py NETWORK BRAINS WORK"),
    "patches": ("patches per second beside the peers", "patches.py FOLDER --repeats 3"),
    "stream": ("networks over whole volumes beside the peers", "stream.py FOLDER --repeats 3"),
}


def kept(work: Path) -> None:
    """Lines of a full bench beside those of earlier ones."""
    lines = [*read_results(RECORDS), *(r for r in read_results(work / "results.jsonl") if not r["quick"])]
    newest = {(r["task"], r["method"], r["seed"]): shortened(r) for r in lines if "error" not in r}
    RECORDS.write_text("".join(json.dumps(r) + "\n" for _, r in sorted(newest.items())), encoding="utf-8")


def shortened(record: dict[str, Any]) -> dict[str, Any]:
    """A record with fewer digits of its draws."""
    drawn = {name: [_short(v) for v in values] for name, values in record["replicates"].items()}
    return record | {"replicates": drawn, "blocks": [_short(v) for v in record["blocks"]]}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def scoreboard() -> str:
    """All tasks and methods as Markdown, headed as a part of a page."""
    records = read_results(RECORDS)
    every, measured = {t.name: t for t in tasks_of(HERE)}, {r["task"] for r in records}
    tasks = {name: task for name, task in every.items() if name in measured}
    # Pictures are in the page of the bench, which is not kept.
    parts = [replace(part, figures=()) for part in sections(Bench(tasks, {}, records), RESULTS)]
    board = as_markdown("Results", parts).strip()
    left = sorted(set(every) - measured)
    return board + (f"\n\nNot measured yet: {', '.join(left)}." if left else "")


def quick() -> str:
    """What the quick form took: the answer of ``mrhdata bench benchmarks/ --quick --json``, kept as quick.json."""
    said = committed("quick")
    return (
        f"The quick form (`mrhdata bench benchmarks/ --quick`) runs {said['results']} methods on {len(said['best'])} "
        f"tasks of phantoms in {said['seconds'] / 60:.1f} minutes, {said['jobs']} at a time; {said['failed']} fail."
    )


def pairs() -> Iterable[str]:
    """Fits and networks on the published voxel pairs."""
    found = committed("paired_voxels")
    yield "## Published fits and MRH-Net on the voxel pairs"
    yield "`python benchmarks/studies/paired_voxels.py PAIRED_VOXELS`"
    yield markdown([{"fit, all rows": r["contrast"], "R2": r["r2"], "RMSE (n - p)": r["rmse"]}
                    for r in found["in_sample"] if r["contrast"] in ("linear", "quadratic")], 5)  # fmt: skip
    yield markdown([{"last 20 %": r["contrast"], "AUC, AF < 0.4": held(r, "auc"), "R2": held(r, "r2")}
                    for r in found["test"]])  # fmt: skip
    yield "\n".join(f"- {name}: {value}" for name, value in found["differences"].items())


def held(row: dict[str, Any], score: str) -> str:
    """A figure with its interval."""
    return f"{row[score]:.3f} [{row[f'{score}_low']:.3f}, {row[f'{score}_high']:.3f}]"


def speed() -> Iterable[str]:
    """Tables of speed, of reports that are longer."""
    yield "## Speed beside the peers"
    yield "Patches of a compressed volume, one patch volume per voxel (`results/patches.md` has the other workloads):"
    yield table_of("patches")
    yield "A network over a whole volume (`results/stream.md`):"
    yield table_of("stream")
    found = committed("conversion")
    rows = [
        {"tool": tool, "seconds": found["seconds_best"][tool], "times mrhdata": times,
         "peak MB less imports": found["peak_mb_less_imports"][tool]}
        for tool, times in sorted(found["times_slower_than_mrhdata"].items(), key=lambda item: item[1])
    ]  # fmt: skip
    yield f"{found['task']}, {found['gigabytes']:.1f} GB, budget {found['budget_mb']} MB; the others compute no sums:"
    yield markdown(rows, 2)


def table_of(name: str) -> str:
    """The first table of a report."""
    lines = (RESULTS / f"{name}.md").read_text("utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    last = next((i for i in range(first, len(lines)) if not lines[i].startswith("|")), len(lines))
    return "\n".join(lines[first:last])


def reports() -> Iterable[str]:
    """Where the rest is."""
    yield "## Reports of their own"
    rows = [
        {"report": f"[{about}](results/{name}.md)", "command": f"`python benchmarks/{command}`"}
        for name, (about, command) in REPORTS.items()
        if (RESULTS / f"{name}.md").exists()
    ]
    yield markdown(rows)


def main() -> None:
    """Keep, and write."""
    if len(sys.argv) > 1:
        kept(Path(sys.argv[1]))
    told = (
        "Written by `python benchmarks/studies/summary.py`; do not edit. Methods are scored by `mrhdata bench "
        "benchmarks/`, everything else by the command beside it. Intervals are 95 %."
    )
    title, board = scoreboard().split("\n", 1)
    parts = [title, told, board.strip(), quick(), *speed(), *pairs(), *reports()]
    SUMMARY.write_text("\n\n".join(parts) + "\n", "utf-8")


if __name__ == "__main__":
    main()
