"""The application: its groups, the order of its commands, and the decorator that makes a function a command."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, TypeVar

import typer
from typer.core import TyperGroup


class _Group(TyperGroup):
    """Commands that the help lists under headings in a fixed order, each with its whole first line."""

    panels: ClassVar[Mapping[str, Sequence[str]]] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands in the order of the headings."""
        return [name for names in self.panels.values() for name in names]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands; Typer would write one list and cut long lines off."""
        width = max(map(len, self.commands))
        for heading, names in self.panels.items():
            with formatter.section(heading):
                formatter.write_dl([(f"{name:{width}}", _first_line(self.commands[name].help)) for name in names])


class _Main(_Group):
    panels = {  # noqa: RUF012  (a mapping that nobody changes)
        "Volumes": ("info", "convert", "crop", "view", "diff", "verify"),
        "Data sets": ("catalog", "fetch"),
        "Registration": ("register", "resample"),
        "Training": ("train", "models"),
        "Prediction": ("predict", "segment", "restore", "detect"),
        "Analysis": ("score", "sensitivity", "report", "count", "review", "review-apply"),
        "Demonstration and benchmark": ("demo", "bench", "doctor"),
    }


class _Catalog(_Group):
    panels = {"Commands": ("build", "list", "check")}  # noqa: RUF012


class _Train(_Group):
    panels = {  # noqa: RUF012
        "Commands": ("histology", "histology-study", "segmentation", "detection", "restoration")
    }


class _Models(_Group):
    panels = {"Commands": ("list", "export")}  # noqa: RUF012


class _Score(_Group):
    panels = {"Commands": ("labels", "images", "cells")}  # noqa: RUF012


app = typer.Typer(
    cls=_Main,
    help="Read brain volumes, train networks, predict whole-brain maps, score them.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
#: Groups of commands by name.
GROUPS = {
    "catalog": typer.Typer(cls=_Catalog, help="Build, list and check catalogues of volumes.", no_args_is_help=True),
    "train": typer.Typer(cls=_Train, help="Train a network for one of five tasks.", no_args_is_help=True),
    "score": typer.Typer(cls=_Score, help="Score labels, maps or cells against the truth.", no_args_is_help=True),
    "models": typer.Typer(cls=_Models, help="List the shipped networks, export trained ones.", no_args_is_help=True),
}
for _name, _group in GROUPS.items():
    app.add_typer(_group, name=_name)

Command = TypeVar("Command", bound=Callable[..., None])

#: Exit code after Ctrl-C: 128 and the number of the signal.
INTERRUPTED = 130


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"mrhdata {version('mrhdata')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def command(*examples: str) -> Callable[[Command], Command]:
    """Make a function a command. Its help ends with the examples, which also name it: ``mrhdata NAME ...``."""
    _, name, *words = examples[0].split()
    group, name = (GROUPS[name], words[0]) if name in GROUPS else (app, name)
    # Lines after \b keep their line breaks, so that they can be copied.
    epilog = "\n".join(["\b", "Examples:" if len(examples) > 1 else "Example:", *(f"  {line}" for line in examples)])

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def run(**arguments: Any) -> None:
            try:
                function(**arguments)
            except KeyboardInterrupt as stop:
                remedy = str(stop) or "no incomplete output was left behind"
                typer.echo(f"mrhdata: interrupted; {remedy}", err=True)
                raise typer.Exit(INTERRUPTED) from stop

        group.command(name, epilog=epilog)(run)
        return function

    return decorate


@contextmanager
def resumable() -> Iterator[None]:
    """Say after Ctrl-C that the same command resumes."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("run the same command again to resume") from stop


def _first_line(text: str | None) -> str:
    return " ".join((text or "").partition("\n\n")[0].split())
