"""The command that describes the machine and the installation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command


@command("mrhdata doctor", "mrhdata doctor --folder /scratch --json")
def doctor(
    folder: Annotated[
        Path | None, typer.Option(help="Folder whose disk is measured; that of temporary files by default.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Describe the machine, the installation, their weak points.

    It writes a file of 64 MB to measure the disk, and removes it.
    """
    from mrhdata.bench.machine import describe_machine
    from mrhdata.errors import ParameterError

    if folder is not None and not folder.is_dir():
        raise ParameterError(f"--folder must be a folder; got {folder}. Pass one that exists")
    description: dict[str, Any] = describe_machine(folder)
    if as_json:
        options.answer(description, as_json)
        return
    notes = description.pop("notes")
    options.answer({key: _words(value) for key, value in description.items()}, as_json)
    for note in notes:
        typer.echo(f"note: {note}")


def _words(value: Any) -> str:
    """Return a value as text: of a mapping each entry, of an empty list "none"."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {'none' if v is None else v}" for key, v in value.items())
    return (", ".join(value) or "none") if isinstance(value, list) else str(value)
