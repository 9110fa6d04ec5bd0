"""The command that demonstrates the package from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command


@command(
    "mrhdata demo -o mrhdata-demo",
    "mrhdata demo --data ../shared/data",
)
def demo(
    out: Annotated[Path, options.output("Folder of everything that is written.")] = Path("mrhdata-demo"),
    data: Annotated[Path | None, typer.Option(help="Folder of real volumes, to run on instead of the phantom.")] = None,
    seed: options.Seed = 0,
    progress: Annotated[bool, typer.Option(help="Print each step.")] = True,
    as_json: options.Json = False,
) -> None:
    """Go from raw files to a scored map of histology."""
    from mrhdata.recipes import demo

    page = demo.run(out, data=data, seed=seed, progress=progress)
    options.answer({"written": str(page)}, as_json)
