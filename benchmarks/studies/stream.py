"""A network over whole volumes, compared with other tools; memory, a long stream, and the network only.

Runs follow one another, each in its own process. FOLDER has the volumes (25 GB) and the environment of the other
tools, which are created if they are missing. Results are medians, in benchmarks/results/stream.json and .md.

    python benchmarks/studies/stream.py FOLDER [--repeats 3] [--quick]
"""

import argparse
import json
import os
import platform
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from patch_fixtures import environment, slabs
from patches import process, table
from stream_methods import METHODS, OVERLAP, THREADS, WINDOW

import mrhdata
from mrhdata.volume.construct import from_array

RESULTS = Path(__file__).parents[1] / "results"
BAR = "MONAI, in memory"
#: Workloads whose figures vary from run to run: each twice.
REPEATED = ("depth", "stream", "copy")


def fixtures(folder, shape):
    """The volume that all methods map, as a store and as an array."""
    if not (folder / "volume.npy").exists():
        values = np.concatenate([slab for _, slab in slabs(shape, 0)])
        mrhdata.write(from_array(values, spacing=(1, 1, 1), name="volume"), folder / "volume.zarr", overwrite=True)
        np.save(folder / "volume.npy", values)


def compared(folder, python, repeats):
    """Every method, in turn; ours once more with the identity, to see that windows give back what they are given."""
    runs = []
    for number in range(repeats):
        for name in METHODS:
            mine = sys.executable if name.startswith("mrhdata") else python
            found = process(mine, "stream_methods.py", name, folder, "conv")
            runs.append({"method": name, "repeat": number, **found})
            print(runs[-1], flush=True)
    rows = []
    for name in METHODS:
        good = [r for r in runs if r["method"] == name and "error" not in r]
        if not good:
            rows.append({"method": name, "error": next(r["error"] for r in runs if r["method"] == name)})
            continue
        own = name.startswith("mrhdata")
        identity = process(sys.executable, "stream_methods.py", name, folder, "identity") if own else {"error": ""}
        middle = {key: statistics.median(r[key] for r in good) for key in good[0] if key not in ("method", "repeat")}
        off = identity["largest_error"] / identity["largest"] if "error" not in identity else None
        rows.append({"method": name, **middle, "identity_error": off})
    bar = next(r["seconds"] for r in rows if r["method"] == BAR)
    return [r | ({"times_monai": round(bar / r["seconds"], 2)} if "seconds" in r else {}) for r in rows]


def text(result):
    """Return the results as Markdown."""
    made, own = result["settings"], result["alone"]
    lines = [
        "# A network over whole volumes",
        "",
        f"`python benchmarks/studies/stream.py FOLDER --repeats {made['repeats']}`",
        "",
        f"{made['shape']} voxels, uint16, one 3^3 convolution, windows of {WINDOW}^3 that overlap by {OVERLAP}. "
        f"{made['cpus']} CPUs, {THREADS} threads. mrhdata reads an OME-Zarr store and writes one with all its levels, "
        "within 256 MB; the "
        "others have the volume in memory or mapped from a plain file, and MONAI's merger writes Zarr. Medians of "
        f"{made['repeats']} runs in turn; reading the volume is counted for all. Peaks are above the memory after the "
        "imports. Largest error: of one pass over the whole volume for the convolution (windows are padded with zeros, "
        "dense boxes are not), and of the volume itself for the identity, relative to its largest value.",
        "",
        *table(
            ["method", "seconds", "MONAI in memory takes times", "peak MB", "error, convolution", "error, identity"],
            [
                [r["method"], r.get("seconds", r.get("error")), r.get("times_monai"), r.get("peak_mb"),
                 r.get("largest_error"), r.get("identity_error")]
                for r in result["methods"]
            ],
        ),
        "",
        "## Single measurements",
        "",
    ]  # fmt: skip
    lines += [f"- {name}: {json.dumps(found)}" for name, found in own.items()]
    return "\n".join(lines) + "\n"


def main():
    """Measure and write."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("folder", type=Path)
    words.add_argument("--repeats", type=int, default=3)
    words.add_argument("--quick", action="store_true", help="small volumes, nothing is written to results")
    asked = words.parse_args()
    folder = (asked.folder / ("quick" if asked.quick else "full")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    shape = (64, 128, 128) if asked.quick else (320, 384, 384)
    fixtures(folder, shape)
    python, error = environment(asked.folder.absolute(), "stream")
    if error:
        sys.exit(error)
    methods = compared(folder, python, 1 if asked.quick else asked.repeats)
    planes = 128 if asked.quick else 1600
    wanted = {
        "one convolution, 1024 planes": ("depth", 128 if asked.quick else 1024),
        "one convolution, 4096 planes": ("depth", 512 if asked.quick else 4096),
        "stream": ("stream", planes),
        "reading and writing only": ("copy", planes),
        "detector": ("detector", planes),
        "a terabyte, two blocks stored": ("sparse", 5000),
    }
    own = {}
    for name, (workload, number) in wanted.items():
        times = 1 if asked.quick or workload not in REPEATED else 2
        runs = [process(sys.executable, "stream_workloads.py", workload, folder, number) for _ in range(times)]
        own[name] = runs[0] if times == 1 else runs
        print(name, own[name], flush=True)
    settings = {"repeats": asked.repeats, "shape": shape, "cpus": os.cpu_count(), "machine": platform.machine()}
    result = {"settings": settings | {"torch": torch.__version__}, "methods": methods, "alone": own}
    if not asked.quick:
        (RESULTS / "stream.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "stream.md").write_text(text(result))
    print(text(result))


if __name__ == "__main__":
    main()
