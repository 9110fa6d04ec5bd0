"""Reference of the command line as Markdown, made from the commands themselves.

`docs/conf.py` puts it into the page `reference/commands`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from mrhdata.cli import app

#: Type of an option -> word for its value.
_KINDS = {Path: "path", int: "whole number", float: "number"}


def page() -> str:
    """Return a section per heading of ``mrhdata --help``, with each command below it."""
    main: Any = typer.main.get_command(app)
    lines = []
    for heading, names in type(main).panels.items():
        lines += [f"## {heading}", ""]
        for name in names:
            for words, command in _commands(name, main.commands[name]):
                lines += _section(words, command)
    return "\n".join(lines)


def _commands(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield a command, or those of a group in the order of its help."""
    if not hasattr(command, "commands"):
        yield words, command
        return
    for names in type(command).panels.values():
        for name in names:
            yield f"{words} {name}", command.commands[name]


def _section(words: str, command: Any) -> list[str]:
    """Return the help of a command: what it does, examples, arguments and options."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join([f"mrhdata {words}", *(_metavar(p) for p in arguments), "[OPTIONS]"])
    paragraphs = inspect.cleandoc(command.help).split("\n\n")
    examples = [line for line in (command.epilog or "").splitlines() if line.startswith("  ")]
    lines = [f"### mrhdata {words}", "", *(f"{' '.join(text.split())}\n" for text in paragraphs)]
    lines += ["```text", usage, "```", "", "```text", *(line.strip() for line in examples), "```", ""]
    lines += ["| argument or option | | |", "|---|---|---|"]
    return [*lines, *(_row(p) for p in [*arguments, *options]), ""]


def _metavar(parameter: Any) -> str:
    """Return the word for the value of a parameter, without braces and brackets."""
    return (parameter.metavar or parameter.name).strip("{}[]").upper() + ("..." if parameter.nargs == -1 else "")


def _row(parameter: Any) -> str:
    """Return names, kind of value and help of a parameter as a row of a table."""
    if parameter.param_type_name == "argument":
        names, kind = f"`{_metavar(parameter)}`", "required" if parameter.required else "optional"
    else:
        names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
        kind = (
            ""
            if parameter.is_flag
            else (parameter.metavar or _KINDS.get(parameter.type_descriptor.annotation, "text")).lower()
        )
        kind += " required" if parameter.required else ""
    text = " ".join((parameter.help or "").split()).replace("|", "\\|").replace("<", "&lt;")
    default = parameter.default
    if default not in (None, False, "", ()) and not callable(default) and parameter.param_type_name == "option":
        text += f" Default: {default}."
    return f"| {names} | {kind.strip()} | {text} |"
