"""The command that scores every method on every task."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command, resumable
from mrhdata.errors import DataError

Names = Annotated[list[str] | None, typer.Option(help="Only this one; may be given several times.")]


@command("mrhdata bench benchmarks/ --quick", "mrhdata bench benchmarks/ --task phantom-cells --with my_method.py")
def bench(
    benchmarks: Annotated[Path, typer.Argument(help="Folder with tasks/*.toml.")],
    out: Annotated[Path, typer.Option(help="Gets volumes, checkpoints, results.jsonl and report.html.")] = Path(
        "mrhdata-bench"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Small volumes, short training: minutes, marked so.")] = False,
    task: Names = None,
    method: Names = None,
    entry: Annotated[
        list[Path] | None, typer.Option("--with", help="A Python file of your own that enters methods; it is run.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the tables to this file.")] = None,
    seed: options.Seed = 0,
    jobs: Annotated[int, typer.Option(min=0, help="Methods at a time, one thread each; 0 for this process.")] = 2,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Score every method on every task that it fits, baselines beside; a page and a table."""
    from mrhdata.bench import bench as run
    from mrhdata.bench import sections, standings
    from mrhdata.viz.report import write_markdown, write_page

    start = time.perf_counter()
    with resumable():
        made = run(
            benchmarks, out, quick=quick, tasks=task or (), methods=method or (), files=entry or (), seed=seed,
            jobs=jobs, progress=options.shown(progress),
        )  # fmt: skip
    parts, title = sections(made, out), "Methods and tasks" + (", quick form" if quick else "")
    write_page(out / "report.html", title, parts)
    for path in (out / "report.md", *([] if markdown is None else [markdown])):
        write_markdown(path, title, parts)
    failed = [r for r in made.records if "error" in r]
    best = {name: standings([r for r in made.records if r["task"] == name]) for name in made.tasks}
    told = {name: f"{t['method'].iloc[0]} {t['value'].iloc[0]:.3f}" for name, t in best.items() if len(t)}
    said = {"report": str(out / "report.html"), "results": len(made.records), "failed": len(failed)}
    options.answer({**said, "seconds": round(time.perf_counter() - start), "jobs": jobs, "best": told}, as_json)
    if failed:
        told_first = "{method} on {task} with {error}".format(**failed[0])
        raise DataError(f"{len(failed)} of {len(made.records)} methods failed, {told_first}")
