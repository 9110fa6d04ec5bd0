"""The command that scores every method on every task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrhdata.cli.app import app


@app.command()
def bench(
    benchmarks: Annotated[Path, typer.Argument(help="Folder with tasks/*.toml.")],
    out: Annotated[Path, typer.Option(help="Folder of volumes, checkpoints, results.jsonl and report.html.")] = Path(
        "mrhdata-bench"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Small volumes, short training: minutes, marked so.")] = False,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given several times.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only this method; may be given several times.")] = None,
    entry: Annotated[
        list[Path] | None, typer.Option("--with", help="A Python file of your own that enters methods; it is run.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the tables as Markdown.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, samples and splits within methods.")] = 0,
    jobs: Annotated[int, typer.Option(help="Methods at a time, one thread each.")] = 2,
) -> None:
    """Score every method on every task that it fits, beside baselines; a page and a table.

    Killed and run again it goes on behind the last finished method.

    Example: mrhdata bench benchmarks/ --quick
    """
    from mrhdata.errors import DataError
    from mrhdata.harness import bench as run
    from mrhdata.harness import sections
    from mrhdata.reporting import write_markdown, write_page

    made = run(
        benchmarks, out, quick=quick, tasks=task or (), methods=method or (), files=entry or (), seed=seed, jobs=jobs
    )
    parts = sections(made, out)
    title = "Methods and tasks" + (", quick form" if quick else "")
    write_page(out / "report.html", title, parts)
    write_markdown(out / "report.md", title, parts)
    if markdown is not None:
        write_markdown(markdown, title, parts)
    typer.echo(f"{len(made.records)} results of {len(made.tasks)} tasks: {out / 'report.html'}")
    failed = [r for r in made.records if "error" in r]
    if failed:
        first = failed[0]
        raise DataError(
            f"{len(failed)} of {len(made.records)} methods failed, {first['method']} on {first['task']} with "
            f"{first['error']}"
        )
