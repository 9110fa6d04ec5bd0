"""Results as tables: each method with its interval, its difference from the best baseline, and its costs."""

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
    """Return the methods of one task, best first.

    Returns
    -------
    table : DataFrame
        ``method``, ``baseline``, ``value``, ``low``, ``high`` of the deciding score. If there is a baseline, also
        ``difference``, ``difference_low``, ``difference_high`` from the best one, over the same resamplings, and
        ``p``, Holm-adjusted over the other methods.
    """
    rows = [r for r in records if "error" not in r]
    if not rows:
        return pd.DataFrame(columns=["method", "baseline", "value", "low", "high"])
    score = rows[0]["shown"][0]
    rows = sorted(rows, key=lambda r: -_number(r["estimates"][score]))
    best_baseline = next((r for r in rows if r["baseline"]), None)
    table = pd.DataFrame([_line(r, score, best_baseline) for r in rows])
    if "p" in table:
        others = table["p"].notna()
        table.loc[others, "p"] = holm_adjust(table.loc[others, "p"])
    return table


def _number(value: float | None) -> float:
    return -np.inf if value is None or np.isnan(value) else float(value)


def _line(record: Mapping[str, Any], score: str, best_baseline: Mapping[str, Any] | None) -> dict[str, Any]:
    estimate, replicates = record["estimates"][score], np.array(record["replicates"][score], dtype=np.float64)
    bounds = interval(estimate, replicates)
    line = {"method": record["method"], "baseline": record["baseline"], "value": estimate}
    line |= {"low": bounds.low, "high": bounds.high}
    if best_baseline is not None and best_baseline is not record:
        differences = replicates - np.array(best_baseline["replicates"][score], dtype=np.float64)
        difference = interval(estimate - best_baseline["estimates"][score], differences)
        line |= {"difference": difference.estimate, "difference_low": difference.low, "p": p_value(differences)}
        line |= {"difference_high": difference.high}
    return line


def board(task: Task, records: Sequence[Mapping[str, Any]], work: Path) -> Section:
    """Return the report section of one task: description, table, ranking, and the worst blocks of the best methods."""
    table = standings(records)
    failures = [r for r in records if "error" in r]
    text = [_description(task, records), *_verdict(table), *(f"{r['method']} failed: {r['error']}" for r in failures)]
    if not len(table):
        return Section(task.title, text)
    by_method = {r["method"]: r for r in records if "error" not in r}
    score = next(iter(by_method.values()))["shown"][0]
    figures: list[Any] = [(ranking(table, score), f"{task.title}: {score} of each method with its interval.")]
    for name, role in _best_of_each(table):
        # Records may outlast their pictures.
        if by_method[name]["worst"] and (work / by_method[name]["worst"]).exists():
            picture = Picture(base64.b64encode((work / by_method[name]["worst"]).read_bytes()).decode("ascii"))
            figures.append((picture, f"The test block with the lowest {score} of {name}, the {role}."))
    return Section(task.title, text, _format_table(table, by_method), figures)


def _description(task: Task, records: Sequence[Mapping[str, Any]]) -> str:
    source = f"Phantom '{task.data['phantom']}'" if "phantom" in task.data else f"Catalogue {task.data['catalog']}"
    counts = ", ".join(f"{len(task.split[part])} {part}" for part in ("training", "validation", "test"))
    blocks = max((len(r.get("blocks", [])) for r in records), default=0)
    form = " Quick form: small volumes, short training." if task.quick else ""
    return (
        f"{source}; subjects or parts: {counts}. Intervals (95 %) resample {blocks} blocks of the test volumes. They "
        f"describe these test subjects and do not generalise to a population.{form}"
    )


def _verdict(table: pd.DataFrame) -> list[str]:
    """Return one sentence that compares the best method with the best baseline."""
    if "difference" not in table or table["baseline"].all():
        return []
    method = table[~table["baseline"]].iloc[0]
    baseline = table[table["baseline"]].iloc[0]
    difference = f"{method['difference']:+.3f} [{method['difference_low']:.3f}, {method['difference_high']:.3f}]"
    if method["difference_low"] > 0:
        return [
            f"{method['method']} beats the best baseline, {baseline['method']}, by {difference} (Holm p "
            f"{method['p']:.3f})."
        ]
    return [
        f"No method is significantly better than the best baseline, {baseline['method']}: {method['method']} "
        f"{difference}."
    ]


def _best_of_each(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the names and roles of the best method and the best baseline."""
    groups = [(table[~table["baseline"]], "best method"), (table[table["baseline"]], "best baseline")]
    return [(rows["method"].iloc[0], role) for rows, role in groups if len(rows)]


def _format_table(table: pd.DataFrame, by_method: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return the standings with formatted scores and costs."""
    rows = []
    for line in table.to_dict("records"):
        record = by_method[line["method"]]
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
            row["against the best baseline"] = "" if line["baseline"] else "no baseline"
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


def sections(bench: Bench, work: Path) -> list[Section]:
    """Return a report section per task, and one about the measurement."""
    by_task = {name: [r for r in bench.records if r["task"] == name] for name in bench.tasks}
    boards = [board(task, by_task[name], work) for name, task in bench.tasks.items()]
    first = bench.records[0] if bench.records else None
    environment = {} if first is None else first["environment"] | {"threads": first["threads"]}
    method = (
        f"Differences and p values come from {BOOTSTRAP.replicates} resamplings of blocks that all methods share. Each "
        "method ran in one process, at the same time as other methods; seconds and memory are those of its process, "
        "and memory includes Python and its libraries."
    )
    versions = ", ".join(f"{name} {value}" for name, value in environment.items()) + "."
    return [*boards, Section("How it was measured", [method, versions])]
