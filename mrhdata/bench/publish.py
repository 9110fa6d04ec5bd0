"""Publish results: merge records into the committed ones, and write all results of the repository as one page."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mrhdata._runtime.atomic import atomic_write
from mrhdata.bench.leaderboard import sections
from mrhdata.bench.runner import Bench, read_results
from mrhdata.bench.tasks import tasks_of
from mrhdata.viz.report import as_markdown

#: Significant digits of published replicates, which are two thirds of a record.
_DIGITS = 6


def publish(
    source: str | Path | Sequence[Mapping[str, Any]], results: str | Path, target: str | Path, *, command: str = ""
) -> None:
    """Merge records into ``bench.jsonl`` of a results folder, and write the page of all results.

    A new record replaces that of the same task, method and seed. The page has the tables of the benchmark and of the
    other studies in the folder, and links to their reports, which ``reports.toml`` lists. Nothing is measured.

    Parameters
    ----------
    source : path or sequence of mapping
        Work folder of a benchmark, or its records. Records of quick runs and of failed methods are left out.
    results : path
        Folder of committed results, in the folder of the benchmarks.
    target : path
        Markdown page.
    command : str
        Command that writes the page, for its first line.
    """
    folder = Path(results)
    new = read_results(Path(source) / "results.jsonl") if isinstance(source, str | Path) else source
    records = _merge(read_results(folder / "bench.jsonl"), new)
    if new:
        with atomic_write(folder / "bench.jsonl", overwrite=True) as draft:
            draft.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    written_by = f"Written by `{command or 'mrhdata.bench.publish'}`; do not edit. "
    introduction = (
        written_by + "`mrhdata bench benchmarks/` scores the methods; every other table names its command. Intervals "
        "are 95 % confidence intervals."
    )
    title, boards = _scoreboard(records, folder).split("\n", 1)
    parts = [title, introduction, boards.strip(), *_quick_form(folder), *_speed(folder), *_voxel_pairs(folder)]
    with atomic_write(Path(target), overwrite=True) as draft:
        draft.write_text("\n\n".join([*parts, *_reports(folder)]) + "\n", encoding="utf-8")


def _merge(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the newest record of each task, method and seed, sorted by them."""
    lines = [*old, *(record for record in new if not record["quick"])]
    newest = {(r["task"], r["method"], r["seed"]): _shorten(r) for r in lines if "error" not in r}
    return [record for _, record in sorted(newest.items())]


def _shorten(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with fewer digits of its replicates and block scores."""
    replicates = {name: [_round(v) for v in values] for name, values in record["replicates"].items()}
    return {**record, "replicates": replicates, "blocks": [_round(v) for v in record["blocks"]]}


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _scoreboard(records: Sequence[dict[str, Any]], folder: Path) -> str:
    """Return the tables of all tasks with records as Markdown, in the order of the task files."""
    home = folder.parent
    tasks = {task.name: task for task in tasks_of(home, only=[file.stem for file in (home / "tasks").glob("*.toml")])}
    measured = {record["task"] for record in records}
    bench = Bench({name: task for name, task in tasks.items() if name in measured}, {}, list(records))
    # The page of a benchmark run has figures; they are not committed.
    board = as_markdown("Results", [replace(part, figures=()) for part in sections(bench, folder)]).strip()
    missing = sorted(set(tasks) - measured)
    return board + (f"\n\nNot measured yet: {', '.join(missing)}." if missing else "")


def _quick_form(folder: Path) -> Iterator[str]:
    """Yield the costs of the quick form: ``quick.json`` is the output of ``mrhdata bench --quick --json``."""
    summary = _read_json(folder, "quick")
    if summary:
        yield (
            f"The quick form (`mrhdata bench benchmarks/ --quick`) runs {summary['results']} methods on "
            f"{len(summary['best'])} tasks of phantoms in {summary['seconds'] / 60:.1f} minutes, {summary['jobs']} at "
            f"a time; {summary['failed']} fail."
        )


def _speed(folder: Path) -> Iterator[str]:
    """Yield the tables of speed, which are parts of longer reports."""
    conversion = _read_json(folder, "conversion")
    if not conversion:
        return
    yield "## Speed compared with other tools"
    yield "Patches of a compressed volume, one patch volume per voxel (`results/patches.md` has the other workloads):"
    yield _first_table(folder / "patches.md")
    yield "A network over a whole volume (`results/stream.md`):"
    yield _first_table(folder / "stream.md")
    rows = [
        {
            "tool": tool,
            "seconds": conversion["seconds_best"][tool],
            "times mrhdata": times,
            "peak MB less imports": conversion["peak_mb_less_imports"][tool],
        }
        for tool, times in sorted(conversion["times_slower_than_mrhdata"].items(), key=lambda item: item[1])
    ]
    size = f"{conversion['gigabytes']:.1f} GB, memory budget {conversion['budget_mb']} MB"
    yield f"{conversion['task']}, {size}; the other tools compute no checksums:"
    yield markdown_table(rows, 2)


def _first_table(report: Path) -> str:
    """Return the first table of a Markdown report."""
    lines = report.read_text("utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    last = next((i for i in range(first, len(lines)) if not lines[i].startswith("|")), len(lines))
    return "\n".join(lines[first:last])


def _voxel_pairs(folder: Path) -> Iterator[str]:
    """Yield the tables of fits and networks on the published voxel pairs."""
    study = _read_json(folder, "paired_voxels")
    if not study:
        return
    yield "## Published fits and MRH-Net on the voxel pairs"
    yield "`python benchmarks/studies/paired_voxels.py PAIRED_VOXELS`"
    in_sample = [row for row in study["in_sample"] if row["contrast"] in ("linear", "quadratic")]
    yield markdown_table(
        [{"fit, all rows": r["contrast"], "R2": r["r2"], "RMSE (n - p)": r["rmse"]} for r in in_sample], 5
    )
    yield markdown_table(
        [
            {"last 20 %": r["contrast"], "AUC, AF < 0.4": _with_interval(r, "auc"), "R2": _with_interval(r, "r2")}
            for r in study["test"]
        ]
    )
    yield "\n".join(f"- {name}: {value}" for name, value in study["differences"].items())


def _with_interval(row: Mapping[str, Any], score: str) -> str:
    return f"{row[score]:.3f} [{row[f'{score}_low']:.3f}, {row[f'{score}_high']:.3f}]"


def _reports(folder: Path) -> Iterator[str]:
    """Yield the table of separate reports, those of ``reports.toml`` that exist."""
    path = folder / "reports.toml"
    listed = tomllib.loads(path.read_text("utf-8")) if path.exists() else {}
    rows = [
        {
            "report": f"[{report['title']}]({folder.name}/{name}.md)",
            "command": f"`python benchmarks/studies/{report['command']}`",
        }
        for name, report in listed.items()
        if (folder / f"{name}.md").exists()
    ]
    if rows:
        yield "## Separate reports"
        yield markdown_table(rows)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    """Return the values of a study, empty if it has none."""
    path = folder / f"{name}.json"
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}


def markdown_table(rows: Sequence[Mapping[str, Any]], digits: int = 3) -> str:
    """Return rows as a Markdown table; a missing value leaves an empty field.

    Examples
    --------
    >>> print(markdown_table([{"tool": "a", "seconds": 1.5}, {"tool": "b"}], 2))
    | tool | seconds |
    | --- | --- |
    | a | 1.50 |
    | b |  |
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    fields = [[_format_value(row.get(key, ""), digits) for key in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *fields])


def _format_value(value: Any, digits: int) -> str:
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    if isinstance(value, list | tuple):
        return ", ".join(_format_value(v, digits) for v in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
