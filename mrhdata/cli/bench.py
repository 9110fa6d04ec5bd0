"""The command that scores every method on every task."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command, resumable
from mrhdata.errors import DataError, ParameterError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@command(
    "mrhdata bench benchmarks/ --quick",
    "mrhdata bench benchmarks/ -o work/ --task phantom-cells --method-file my_method.py",
)
def bench(
    benchmarks: Annotated[Path, options.argument("BENCHMARKS", "Folder with tasks/*.toml.")],
    out: Annotated[Path, options.output("Folder of volumes, checkpoints, results.jsonl and report.html.")] = Path(
        "mrhdata-bench"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="Use small volumes and short trainings: minutes, and results marked so.")
    ] = False,
    task: Annotated[list[str] | None, typer.Option(help="Name of a task; once per task. All by default.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Name of a method; once per method. All by default.")] = None,
    method_file: Annotated[
        list[Path] | None, typer.Option(help="Python file with your own methods, which is run; once per file.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Markdown file that gets the tables too.")] = None,
    publish: Annotated[
        Path | None,
        typer.Option(help="Markdown page of all committed results, which gets the new ones too; not with --quick."),
    ] = None,
    seed: options.Seed = 0,
    jobs: Annotated[
        int, typer.Option(min=0, help="Methods at a time, one process and thread each; 0 for this process.")
    ] = 2,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Score every method and baseline on every task.

    An interrupted run resumes when you run the command again.
    """
    from mrhdata.bench import run_bench, sections, standings
    from mrhdata.bench.publish import publish as publish_results
    from mrhdata.viz.report import write_markdown, write_page

    if publish is not None and quick:
        raise ParameterError("--publish needs full runs; leave out --quick")
    start = time.perf_counter()
    with resumable():
        result = run_bench(
            benchmarks, out, quick=quick, tasks=task or (), methods=method or (), files=method_file or (), seed=seed,
            jobs=jobs, progress=options.bars(progress),
        )  # fmt: skip
    parts, title = sections(result, out), "Methods and tasks" + (", quick form" if quick else "")
    write_page(out / "report.html", title, parts)
    for path in (out / "report.md", *([] if markdown is None else [markdown])):
        write_markdown(path, title, parts)
    if publish is not None:
        written_by = f"mrhdata bench {benchmarks} --publish {publish}"
        publish_results(result.records, benchmarks / "results", publish, command=written_by)
    failures = [record for record in result.records if "error" in record]
    tables = {name: standings([r for r in result.records if r["task"] == name]) for name in result.tasks}
    best = {name: f"{t['method'].iloc[0]} {t['value'].iloc[0]:.3f}" for name, t in tables.items() if len(t)}
    summary: dict[str, Any] = {
        "report": str(out / "report.html"),
        "results": len(result.records),
        "failed": len(failures),
        "seconds": round(time.perf_counter() - start),
        "jobs": jobs,
        "best": best,
    }
    if as_json:
        # All digits, so that two runs can be compared.
        summary["estimates"] = _estimates(result.records)
    options.answer(summary, as_json)
    if failures:
        first = failures[0]
        raise DataError(
            f"{len(failures)} of {len(result.records)} methods failed, {first['method']} on {first['task']} with "
            f"{first['error']}"
        )


def _estimates(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the estimates of each method on each task."""
    estimates: dict[str, dict[str, Any]] = {}
    for record in sorted(records, key=lambda record: (record["task"], record["method"])):
        if "error" not in record:
            of_task = estimates.setdefault(record["task"], {})
            of_task[record["method"]] = {name: record["estimates"][name] for name in record["shown"]}
    return estimates
