"""Results as tables: each method with its interval, its distance from the best baseline, and what it costs."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mrhdata.bench.figures import ranking
from mrhdata.bench.runner import Bench
from mrhdata.bench.scores import BOOTSTRAP
from mrhdata.bench.tasks import Task
from mrhdata.metrics.bootstrap import holm_adjust, interval, p_value
from mrhdata.viz.report import Picture, Section


def standings(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Methods of one task, best first.

    Returns
    -------
    table : DataFrame
        ``method``, ``baseline``, ``value``, ``low``, ``high`` of the score that decides; where there is a baseline,
        ``difference``, ``difference_low``, ``difference_high`` from the best one, over the same resamplings, and
        ``p``, Holm-adjusted over the other methods.
    """
    rows = [r for r in records if "error" not in r]
    if not rows:
        return pd.DataFrame(columns=["method", "baseline", "value", "low", "high"])
    score = rows[0]["shown"][0]
    rows = sorted(rows, key=lambda r: -_number(r["estimates"][score]))
    best = next((r for r in rows if r["baseline"]), None)
    table = pd.DataFrame([_line(r, score, best) for r in rows])
    if "p" in table:
        others = table["p"].notna()
        table.loc[others, "p"] = holm_adjust(table.loc[others, "p"])
    return table


def _number(value: float | None) -> float:
    return -np.inf if value is None or np.isnan(value) else float(value)


def _line(record: Mapping[str, Any], score: str, best: Mapping[str, Any] | None) -> dict[str, Any]:
    estimate, drawn = record["estimates"][score], np.array(record["replicates"][score], dtype=np.float64)
    held = interval(estimate, drawn)
    line = {"method": record["method"], "baseline": record["baseline"], "value": estimate}
    line |= {"low": held.low, "high": held.high}
    if best is not None and best is not record:
        apart = drawn - np.array(best["replicates"][score], dtype=np.float64)
        difference = interval(estimate - best["estimates"][score], apart)
        line |= {"difference": difference.estimate, "difference_low": difference.low, "p": p_value(apart)}
        line |= {"difference_high": difference.high}
    return line


def board(task: Task, records: Sequence[Mapping[str, Any]], work: Path) -> Section:
    """One task: what it is, its table, its picture, and where the best method and the best baseline are worst."""
    table = standings(records)
    failed = [r for r in records if "error" in r]
    text = [_about(task, records), *_verdict(table), *(f"{r['method']} failed: {r['error']}" for r in failed)]
    if not len(table):
        return Section(task.title, text)
    held = {r["method"]: r for r in records if "error" not in r}
    score = next(iter(held.values()))["shown"][0]
    figures: list[Any] = [(ranking(table, score), f"{task.title}: {score} of each method with its interval.")]
    for name, what in _extremes(table):
        # Records are kept longer than the pictures beside them.
        if held[name]["worst"] and (work / held[name]["worst"]).exists():
            picture = Picture(base64.b64encode((work / held[name]["worst"]).read_bytes()).decode("ascii"))
            figures.append((picture, f"The test block with the lowest {score} of {name}, the {what}."))
    return Section(task.title, text, _shown(table, held), figures)


def _about(task: Task, records: Sequence[Mapping[str, Any]]) -> str:
    source = f"Phantom '{task.data['phantom']}'" if "phantom" in task.data else f"Catalogue {task.data['catalog']}"
    counts = ", ".join(f"{len(task.split[part])} {part}" for part in ("training", "validation", "test"))
    blocks = max((len(r.get("blocks", [])) for r in records), default=0)
    form = " Quick form: small volumes, short training." if task.quick else ""
    return (
        f"{source}; subjects or parts: {counts}. Intervals (95 %) weight {blocks} blocks of the test volumes: they "
        f"speak of these subjects, not of all that there are.{form}"
    )


def _verdict(table: pd.DataFrame) -> list[str]:
    """Whether the best of ours beats the best baseline, in a sentence."""
    if "difference" not in table or table["baseline"].all():
        return []
    ours = table[~table["baseline"]].iloc[0]
    best = table[table["baseline"]].iloc[0]
    apart = f"{ours['difference']:+.3f} [{ours['difference_low']:.3f}, {ours['difference_high']:.3f}]"
    if ours["difference_low"] > 0:
        return [f"{ours['method']} beats the best baseline, {best['method']}, by {apart} (Holm p {ours['p']:.3f})."]
    return [f"No method beats the best baseline, {best['method']}, beyond doubt: {ours['method']} {apart}."]


def _extremes(table: pd.DataFrame) -> list[tuple[str, str]]:
    found = [(table[~table["baseline"]], "best method"), (table[table["baseline"]], "best baseline")]
    return [(part["method"].iloc[0], what) for part, what in found if len(part)]


def _shown(table: pd.DataFrame, held: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The table as a reader wants it."""
    rows = []
    for line in table.to_dict("records"):
        record = held[line["method"]]
        score, *others = record["shown"]
        row = {"method": line["method"] + (" (baseline)" if line["baseline"] else "")}
        row[score] = f"{line['value']:.3f} [{line['low']:.3f}, {line['high']:.3f}]"
        row |= {name: _digits(record["estimates"][name]) for name in others}
        if "difference" in line and np.isfinite(line["difference"]):
            row["against the best baseline"] = (
                f"{line['difference']:+.3f} [{line['difference_low']:.3f}, {line['difference_high']:.3f}], "
                f"p {line['p']:.3f}"
            )
        else:
            row["against the best baseline"] = "" if line["baseline"] else "none to compare with"
        rows.append(row | _costs(record))
    return pd.DataFrame(rows)


def _costs(record: Mapping[str, Any]) -> dict[str, str]:
    seconds = record["seconds"]
    return {
        "parameters": "" if record["parameters"] is None else f"{record['parameters']:,}",
        "kMAC/voxel": "" if record["kmac_per_voxel"] is None else f"{record['kmac_per_voxel']:.3g}",
        "fitting, s": f"{seconds['fitting']:.0f}",
        "answering, s": f"{seconds['answering']:.1f}",
        "peak, MB": f"{record['peak_mb']:.0f}",
    }


def _digits(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.3f}"


def sections(made: Bench, work: Path) -> list[Section]:
    """All tasks, and what they were measured on."""
    by_task = {name: [r for r in made.records if r["task"] == name] for name in made.tasks}
    found = [board(task, by_task[name], work) for name, task in made.tasks.items()]
    told = made.records[0]["environment"] | {"threads": made.records[0]["threads"]} if made.records else {}
    how = (
        f"Differences and p values are of {BOOTSTRAP.replicates} resamplings of blocks that all methods share. Seconds "
        "and memory are those of one process per method, beside others that ran at the same time; memory counts "
        "what Python and its libraries take."
    )
    return [*found, Section("How it was measured", [how, ", ".join(f"{k} {v}" for k, v in told.items()) + "."])]
