"""The application, and how a function becomes one of its commands."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import typer

app = typer.Typer(
    help="Brain volumes as training sets, maps and honest scores.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
catalog_app = typer.Typer(help="Catalogues of volumes.", no_args_is_help=True)
app.add_typer(catalog_app, name="catalog")

Command = TypeVar("Command", bound=Callable[..., None])

#: Exit code of what Ctrl-C ended: 128 and the number of the signal.
INTERRUPTED = 130


def command(*examples: str) -> Callable[[Command], Command]:
    """Make a function a command. Its help ends with the examples, and they name it: ``mrhdata NAME ...``."""
    _, name, *rest = examples[0].split()
    group, name = (catalog_app, rest[0]) if name == "catalog" else (app, name)
    # After \b lines stay as they are, to be copied.
    epilog = "\n".join(["\b", "Examples:" if len(examples) > 1 else "Example:", *(f"  {line}" for line in examples)])

    def made(run: Command) -> Command:
        @functools.wraps(run)
        def until_interrupted(**given: Any) -> None:
            try:
                run(**given)
            except KeyboardInterrupt as stop:
                kept = str(stop) or "nothing half-written stands under its name"
                typer.echo(f"mrhdata: interrupted; {kept}", err=True)
                raise typer.Exit(INTERRUPTED) from stop

        group.command(name, epilog=epilog)(until_interrupted)
        return run

    return made


@contextmanager
def resumable() -> Iterator[None]:
    """Work that the same command takes up again where Ctrl-C ended it, and says so."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("run the same command again to go on") from stop
