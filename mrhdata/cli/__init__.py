"""The command line, one file per kind of command. Each command imports libraries when it runs, so that help is quick.

Exit codes: 0; 1 if ``diff`` finds a difference; 2 for user errors; 130 after Ctrl-C.
"""

from __future__ import annotations

import logging
import sys

import typer

from mrhdata.cli import (  # noqa: F401  (importing registers the commands)
    analysis,
    bench,
    cells,
    datasets,
    demo,
    doctor,
    histology,
    models,
    restoration,
    scores,
    segment,
    segmentation,
    volumes,
)
from mrhdata.cli.app import app
from mrhdata.errors import MrhdataError

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; a user error ends with one sentence and exit code 2."""
    # Warnings only: an error that ends a command is raised, not logged.
    logging.basicConfig(format="mrhdata: warning: %(message)s", level=logging.WARNING)
    # After Ctrl-C asyncio logs tasks that did not finish, which the user cannot act on.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        app()
    except MrhdataError as error:
        _exit(str(error))
    except OSError as error:
        # For example a folder where a file was expected, or no permission.
        _exit(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _exit(sentence: str) -> None:
    typer.echo(f"mrhdata: {' '.join(sentence.split())}", err=True)
    sys.exit(2)
