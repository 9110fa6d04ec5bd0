"""Options of every train command that say where and how it runs, and several processes that run one command."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mrhdata.cli import options

#: Type of the parameter `machine`, which these options replace.
Machine = Any

#: Settings of :class:`mrhdata.TrainingConfig`, and the type of their option.
_SETTINGS: dict[str, Any] = {
    "precision": Annotated[
        str | None,
        typer.Option(
            help="Precision of the training: float32, bfloat16, float16, or auto, the fastest on this machine; that of "
            "the recipe by default."
        ),
    ],
    "device": options.Device,
    "accumulate": Annotated[
        int | None,
        typer.Option(min=1, help="Parts in which each batch is computed, to need less memory; 1 by default."),
    ],
    "channels_last": Annotated[
        bool | None, typer.Option("--channels-last", help="Store channels as last axis, which is faster on GPUs.")
    ],
    "compile": Annotated[
        bool | None, typer.Option("--compile", help="Compile the network first, which takes minutes; steps are faster.")
    ],
    "profile": Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="JSON file for a trace of some steps, for Perfetto or chrome://tracing."),
    ],
}


def machine_options(function: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `machine` of a train command by these options.

    The function gets the options that were passed as a dict. If ``torchrun`` started several processes, the first one
    runs it.
    """

    @functools.wraps(function)
    def run(**arguments: Any) -> None:
        passed = {name: arguments.pop(name) for name in _SETTINGS}
        command = functools.partial(function, **arguments, machine=options.set_options(**passed))
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            command()
            return
        from mrhdata.training.first_process import run_in_first_process
        from mrhdata.training.loop import fit

        run_in_first_process(command, fit)

    signature = inspect.signature(function, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name != "machine":
            parameters.append(parameter)
            continue
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters += [inspect.Parameter(n, kind, default=None, annotation=a) for n, a in _SETTINGS.items()]
    ordered = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = signature.replace(parameters=ordered)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in ordered}
    return run
