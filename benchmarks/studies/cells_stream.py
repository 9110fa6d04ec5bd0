"""A brain of 20 GB, from raw planes to a table of cells, within a memory budget and interrupted once.

Run: python benchmarks/studies/cells_stream.py NETWORK BRAINS WORK [--planes 2400] [--memory '1 GB'] [--threads 2]

NETWORK is a folder of `mrhdata train detection` or of `cells.py`, BRAINS the folder of phantom brains of `cells.py`.
The large brain is a mosaic of them, each next to mirror images of others, so that its cells are known. WORK stores
TIFF planes, the store, scores and table. Each step runs in its own process; its peak memory is measured above the
memory after the imports.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
import torch
from patch_readers import Peak
from tables import markdown, written

import mrhdata
from mrhdata import models
from mrhdata.inference.detector import detect, scoring
from mrhdata.inference.strategies.network import InferenceModel
from mrhdata.metrics.detection import detection
from mrhdata.models.precision import resolve_precision

SHAPE, COPIES, VOXEL_MM = (256, 512, 512), (4, 4), 0.002
#: Seconds after which the first run is killed.
KILLED_AFTER = 120
#: Voxels of the boxes on which only the network is timed.
BOX = (1, 1, 64, 256, 256)


def part_of(z: int, row: int, column: int) -> tuple[int, tuple[bool, bool, bool]]:
    """Which brain lies at a place of the mosaic, and which of its axes are mirrored."""
    return (5 * z + 3 * row + column) % 8, (z % 2 == 1, row % 2 == 1, column % 2 == 1)


def planes(brains: Path, work: Path, count: int) -> None:
    """Raw planes, as a microscope writes them; those that are there are kept."""
    folder = work / "planes"
    folder.mkdir(parents=True, exist_ok=True)
    held = [np.asarray(mrhdata.read(brains / f"{i}.zarr").data) for i in range(8)]
    for number in range(count):
        path = folder / f"z{number:05d}.tif"
        if path.exists():
            continue
        layer, within = divmod(number, SHAPE[0])
        rows = []
        for row in range(COPIES[0]):
            parts = []
            for column in range(COPIES[1]):
                which, (flip_z, flip_y, flip_x) = part_of(layer, row, column)
                plane = held[which][SHAPE[0] - 1 - within if flip_z else within]
                parts.append(plane[:: -1 if flip_y else 1, :: -1 if flip_x else 1])
            rows.append(np.concatenate(parts, axis=1))
        draft = path.with_suffix(".partial")
        tifffile.imwrite(draft, np.concatenate(rows, axis=0))
        draft.rename(path)


def truth(brains: Path, count: int) -> np.ndarray:
    """Cells of the mosaic, z, y, x."""
    lists = [pd.read_parquet(brains / f"{i}.parquet")[["z", "y", "x"]].to_numpy() for i in range(8)]
    found = []
    for layer in range(-(-count // SHAPE[0])):
        for row, column in np.ndindex(*COPIES):
            which, mirrored = part_of(layer, row, column)
            places = np.where(mirrored, np.array(SHAPE) - 1 - lists[which], lists[which])
            found.append(places + np.array([layer, row, column]) * SHAPE)
    every = np.concatenate(found)
    return every[every[:, 0] <= count - 1]


def converted(work: Path, memory: str) -> dict[str, Any]:
    """Planes to a store."""
    peak, start = Peak(children=False), time.perf_counter()
    mrhdata.convert(
        work / "planes", work / "brain.zarr", spacing=VOXEL_MM * 1e3, unit="um", memory=memory, progress=False,
        overwrite=True,
    )  # fmt: skip
    return {"seconds": time.perf_counter() - start, "peak MB": peak.megabytes()}


def detected(network: Path, work: Path, memory: str, threads: int) -> dict[str, Any]:
    """Detect the cells of the store; an interrupted run resumes."""
    torch.set_num_threads(threads)
    model, volume = models.load(network), mrhdata.read(work / "brain.zarr").rename("signal")
    peak, start = Peak(children=False), time.perf_counter()
    table = detect(model, volume, work / "found", memory=memory, precision="auto", progress=False)
    return {"seconds": time.perf_counter() - start, "peak MB": peak.megabytes(), "cells": len(table)}


def alone(network: Path, threads: int) -> float:
    """Voxels per second of the network by itself, on boxes that are in memory."""
    torch.set_num_threads(threads)
    run = InferenceModel(scoring(models.load(network)), "cpu", "auto")
    values = np.full(BOX, 300, np.float32)
    run(values)
    start, times = time.perf_counter(), 8
    for _ in range(times):
        run(values)
    return times * float(np.prod(BOX)) / (time.perf_counter() - start)


def killed(network: Path, work: Path, memory: str, threads: int) -> float:
    """Start, and kill after a while: seconds that it ran."""
    context, start = multiprocessing.get_context("spawn"), time.perf_counter()
    process = context.Process(target=detected, args=(network, work, memory, threads))
    process.start()
    process.join(KILLED_AFTER)
    assert process.pid is not None
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return time.perf_counter() - start


def apart(step: Any, *given: Any) -> Any:
    """Called in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(step, *given).result()


def main() -> None:
    """Make, convert, kill, detect, score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", type=Path)
    parser.add_argument("brains", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--planes", type=int, default=2400)
    parser.add_argument("--memory", default="1 GB")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    planes(options.brains, options.work, options.planes)
    voxels = options.planes * COPIES[0] * SHAPE[1] * COPIES[1] * SHAPE[2]
    steps = {"convert": apart(converted, options.work, options.memory)}
    speed = apart(alone, options.network, options.threads)
    before = killed(options.network, options.work, options.memory, options.threads)
    steps["detect"] = apart(detected, options.network, options.work, options.memory, options.threads)
    steps["detect"]["seconds"] += before
    table = pd.read_parquet(options.work / "found" / "cells.parquet")
    places = table[["z", "y", "x"]].to_numpy() * VOXEL_MM
    held = detection(truth(options.brains, options.planes) * VOXEL_MM, places, 6 * VOXEL_MM)
    seconds = sum(step["seconds"] for step in steps.values())
    rows = [{"step": name, "MB/s": 2 * voxels / 1e6 / step["seconds"], **step} for name, step in steps.items()]
    found = {
        "bytes": 2 * voxels,
        "memory": options.memory,
        "threads": options.threads,
        "killed after, s": before,
        "steps": rows,
        "Mvoxel/s, detect": voxels / 1e6 / steps["detect"]["seconds"],
        "share of the network": voxels / speed / steps["detect"]["seconds"],
        "F1": held.f1,
        "relative count error": held.relative_count_error,
        "hours for a terabyte": 1e12 / (2 * voxels) * seconds / 3600,
    }
    report(found)


def report(found: dict[str, Any]) -> None:
    """The figures in words."""
    text = [
        "# A large brain, raw planes to cells",
        f"{found['bytes'] / 1e9:.1f} GB of TIFF planes, budget {found['memory']}, {found['threads']} threads, "
        f"{resolve_precision('auto')}. The first run of the detection was killed after "
        f"{found['killed after, s']:.0f} s, which are counted.",
        markdown(found["steps"], 1),
        markdown([{k: v for k, v in found.items() if isinstance(v, float)}], 3),
        "The share is the time that the network only takes for each voxel once; parts of the brain overlap by ten "
        "voxels, and peaks are searched after the scores. The mosaic holds mirror images of the brains that the "
        "network learned from: F1 says that nothing is lost on the way, not how well cells are found (`cells.md`).",
    ]
    written("cells_stream", text, json.loads(json.dumps(found)))


if __name__ == "__main__":
    main()
