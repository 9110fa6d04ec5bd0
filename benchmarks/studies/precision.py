"""Seconds of a training step of each recipe's network with float32, bfloat16 and auto, on one thread.

A step is the forward and the backward pass of one batch, smaller than that of the recipe; the first step of a network
is not counted. On a processor with instructions for bfloat16 the steps are timed once more in a process in which
oneDNN and PyTorch use none beyond AVX2.

Run: python benchmarks/studies/precision.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import torch
from tables import markdown, written

from mrhdata import models
from mrhdata.models.precision import PRECISIONS, has_bfloat16, resolve_precision
from mrhdata.recipes import cells, dgm, tissue2d

#: Recipe -> network, its settings, and the shape of a batch (patches, channels, z, y, x or y, x).
NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "mrhnet": ("mrhnet", {"in_channels": 4}, (32, 4, 3, 3)),
    "tissue2d": ("tissue2d_0_0", {"in_channels": 1, "classes": 4}, (1, 1, 64, 64)),
    "unet": ("unet3d", {"in_channels": 1, "classes": 4, **tissue2d.unet().config}, (1, 1, 8, 32, 32)),
    "dgm": ("fcn3d", {"in_channels": 1, "classes": 11}, (1, 1, 21, 27, 27)),
    "dgm-unet": ("unet3d", {"in_channels": 1, "classes": 11, **dgm.unet().config}, (1, 1, 8, 32, 32)),
    "restoration": ("restorer", {"in_channels": 1}, (2, 1, 32, 32)),
    "restoration, published": ("pssr", {"in_channels": 1}, (2, 1, 32, 32)),
    "cells": ("cells3d", {"in_channels": 1, **cells.NARROW}, (1, 1, 28, 28, 28)),
    "cells, second network": ("cells3d_second", {"in_channels": 1}, (1, 1, 24, 24, 24)),
}
#: Environment that hides instructions beyond AVX2 from oneDNN and PyTorch.
MASKED = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def seconds_of_step(network: torch.nn.Module, x: torch.Tensor, precision: str) -> float:
    """Return the time of one step."""
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, resolve_precision(precision) == "bfloat16"):
        answer = network(x)
    first = answer[0] if isinstance(answer, tuple) else answer
    first.float().square().mean().backward()
    return time.perf_counter() - start


def fastest_steps(network: torch.nn.Module, x: torch.Tensor, steps: int) -> dict[str, float]:
    """Return the time of the fastest step of each type; the types take turns, and the first turn is not counted."""
    turns = [{name: seconds_of_step(network, x, name) for name in PRECISIONS} for _ in range(1 + steps)]
    return {name: min(turn[name] for turn in turns[1:]) for name in PRECISIONS}


def measured(steps: int) -> list[dict[str, Any]]:
    """Return the seconds of a step of each network, and how often bfloat16 takes as long as float32."""
    torch.set_num_threads(1)
    rows = []
    for recipe, (name, settings, shape) in NETWORKS.items():
        network, x = models.create(name, seed=0, **settings).train(), torch.rand(shape)
        row = {f"{precision}, s": seconds for precision, seconds in fastest_steps(network, x, steps).items()}
        ratio = row["bfloat16, s"] / row["float32, s"]
        rows.append({"recipe": recipe, "network": name, "batch": str(shape), **row, "bfloat16 / float32": ratio})
        print(recipe, row, flush=True)
    return rows


def measured_masked(steps: int) -> list[dict[str, Any]]:
    """Return the same of a process that uses no instructions beyond AVX2."""
    words = [sys.executable, __file__, "--steps", str(steps), "--rows"]
    answer = subprocess.run(words, env={**os.environ, **MASKED}, capture_output=True, text=True, check=True)
    return list(json.loads(answer.stdout.splitlines()[-1]))


def main() -> None:
    """Measure the steps, and write or print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3, help="Steps that are timed.")
    parser.add_argument("--rows", action="store_true", help="Print the rows as JSON and write no report.")
    options = parser.parse_args()
    rows = measured(options.steps)
    if options.rows:
        print(json.dumps(rows))
        return
    capability, load = torch.backends.cpu.get_cpu_capability(), os.getloadavg()[0]
    values = {"capability": capability, "auto": resolve_precision("auto"), "torch": torch.__version__, "rows": rows}
    text = [
        "# Precision of training steps",
        f"`python benchmarks/studies/precision.py`: one thread, fastest of {options.steps} steps of a small batch, "
        f"PyTorch {torch.__version__}, processor of capability {capability}; `auto` is {values['auto']} on it. "
        f"The machine did other work at the same time (load {load:.1f}), so compare the columns of a row, not seconds; "
        "columns of one type differ by the load.",
        markdown(rows, 3),
    ]
    if has_bfloat16("cpu"):
        values["masked"] = measured_masked(options.steps)
        text += ["Without instructions beyond AVX2 (`auto` asks the processor and does not know of the mask):"]
        text += [markdown(values["masked"], 3)]
    else:
        text += ["A second table, with instructions hidden, needs a processor with bfloat16."]
    written("precision", text, values)


if __name__ == "__main__":
    main()
