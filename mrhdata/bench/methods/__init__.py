"""The methods of the harness, a file per kind of task: ours, and the well-known ones that they are compared with.

Each is a recipe of `mrhdata.recipes`, or a few lines around a well-kept library. A method of your own is a file like
these, given to ``mrhdata bench --method-file``.
"""

from __future__ import annotations

import importlib

#: Files of this folder.
HOME = ("histology", "labels", "restoration", "cells")


def enter() -> None:
    """Put every method into :data:`mrhdata.bench.api.METHODS`."""
    for name in HOME:
        importlib.import_module(f"{__name__}.{name}")
