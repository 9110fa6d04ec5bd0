"""The command line, a file per kind of command. Each loads what it needs when it runs, so that help is quick."""

from __future__ import annotations

import logging
import sys

import typer

from mrhdata.cli import (  # noqa: F401  (their commands)
    bench,
    catalogs,
    cells,
    detection,
    labels,
    networks,
    restoration,
    reviewing,
    scores,
    volumes,
)
from mrhdata.cli.app import app
from mrhdata.errors import MrhdataError

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; mistakes that the user can put right end with one sentence and exit code 2."""
    try:
        logging.basicConfig(format="mrhdata: %(message)s", level=logging.WARNING)
        app()
    except MrhdataError as error:
        typer.echo(f"mrhdata: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("mrhdata: interrupted; nothing half-written stands under its name", err=True)
        sys.exit(130)
