"""The command line, a file per kind of command. Each loads what it needs when it runs, so that help is quick.

Exit codes: 0; 1 where ``diff`` finds a difference; 2 for what the user can put right; 130 after Ctrl-C.
"""

from __future__ import annotations

import logging
import sys

import typer

from mrhdata.cli import (  # noqa: F401  (their commands)
    analysis,
    bench,
    cells,
    datasets,
    detection,
    histology,
    models,
    restoration,
    reviewing,
    segmentation,
    studies,
    volumes,
)
from mrhdata.cli.app import app
from mrhdata.errors import MrhdataError

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; mistakes that the user can put right end with one sentence and exit code 2."""
    # Nothing that ends a command is logged: mistakes are raised.
    logging.basicConfig(format="mrhdata: warning: %(message)s", level=logging.WARNING)
    # What Ctrl-C leaves unfinished is none of the user's concern.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        app()
    except MrhdataError as error:
        _end(str(error))
    except OSError as error:
        # Such as a folder where a file was expected, or no permission.
        _end(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _end(sentence: str) -> None:
    typer.echo(f"mrhdata: {' '.join(sentence.split())}", err=True)
    sys.exit(2)
