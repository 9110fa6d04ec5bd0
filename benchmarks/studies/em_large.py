"""EM restoration of a stack whose result is larger than the memory budget.

Run: python benchmarks/studies/em_large.py DATA WORK [--memory 128 256 512] [--threads 1]

DATA and WORK are those of `em.py`, whose single-plane network is trained if WORK does not have it. The stack is cube-b,
degraded, next to its mirror images. Each budget has its own process, whose peak memory is measured above the memory
after a first small restoration. The values are compared with those of some planes restored with 4 GB.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from em import TASKS, cube, trained
from patch_readers import Peak
from tables import markdown, written

import mrhdata
from mrhdata import models
from mrhdata.io.omezarr.writer import give_back
from mrhdata.recipes import restoration

TASK, COPIES = "noisy, 1 plane", (2, 4, 4)
#: Planes that are restored again in much memory, and those of them that see no border of that part.
SOME, INNER = slice(200, 240), slice(4, -4)


def mosaic(data: Path) -> Any:
    """The low-resolution stack."""
    low = restoration.degrade_stack(cube(data, "cube-b"), TASKS[TASK].degradation, seed=5)
    many = np.pad(low.values, [(0, (n - 1) * size) for n, size in zip(COPIES, low.shape, strict=True)], "symmetric")
    return mrhdata.volume.from_array(many, spacing=low.mrh.spacing)


def restored(network: Path, folder: Path, megabytes: int, threads: int) -> dict[str, Any]:
    """One budget, in this process."""
    torch.set_num_threads(threads)
    model, source = models.load(network), mrhdata.read(folder / "low.zarr")
    options: dict[str, Any] = {"memory": megabytes * 10**6, "progress": False}
    restoration.restore(model, source.isel(z=slice(0, 2)), folder / f"{megabytes}-first.zarr", **options)
    give_back()
    peak, start = Peak(children=False), time.perf_counter()
    made = restoration.restore(model, source, folder / f"{megabytes}.zarr", **options)
    seconds, held = time.perf_counter() - start, peak.megabytes()
    again = restoration.restore(
        model, source.isel(z=SOME), folder / f"{megabytes}-some.zarr", memory="4 GB", progress=False
    )
    parts = (v.isel(z=z)[INNER].values.astype(int) for v, z in ((made, SOME), (again, slice(None))))
    return {
        "answer, MB": made.size / 1e6,
        "budget, MB": megabytes,
        "peak, MB": held,
        "Mpixel/s": made.size / 1e6 / seconds,
        "largest difference to planes in memory": int(np.abs(np.subtract(*parts)).max()),
    }


def main() -> None:
    """Each budget, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--memory", nargs="*", type=int, default=[256])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network, rows = trained(TASK, options.data, options.work), []
    with tempfile.TemporaryDirectory() as folder:
        mrhdata.write(mosaic(options.data), Path(folder) / "low.zarr")
        for megabytes in options.memory:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                rows.append(pool.submit(restored, network, Path(folder), megabytes, options.threads).result())
    text = [
        "# EM restoration of a stack larger than the memory",
        f"`python benchmarks/studies/em_large.py DATA WORK`, {options.threads} thread, the network of {TASK}, float32.",
        markdown(rows),
    ]
    written("em_large", text, rows)


if __name__ == "__main__":
    main()
