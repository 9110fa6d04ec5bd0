"""Random patches of a compressed volume, compared with other readers.

Readers run one after another, each in its own process. FOLDER has the volumes and two environments,
which are created if they are missing. Results are medians, in benchmarks/results/patches.json, .md, .png.

    python benchmarks/studies/patches.py FOLDER [--repeats 3] [--quick]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import patch_fixtures
from patch_readers import BATCH, BUDGET, IN_FLIGHT, PATCH, QUEUE, READERS, WORKERS

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
CEILING, OURS = "array in memory", "mrhdata"
#: Environment of each reader that is not ours, by the first word of its name.
HOMES = {
    "tensorstore": "patches",
    "zarr-python": "patches",
    "xbatcher": "patches",
    "blosc2": "patches",
    "torchio": "patches",
    "zarrdataset": "patches-zarr2",
}
#: Patches that slow readers draw: their rate does not depend on how many.
FEWER = {
    "tensorstore cache 0": 1600,
    "tensorstore cache 256 MB": 4800,
    "zarr-python slice": 800,
    "xbatcher": 800,
    "zarrdataset draw_same_chunk": 6400,
    "zarrdataset across chunks": 800,
    "blosc2 (nnU-Net style)": 6400,
    "torchio Queue": 6 * QUEUE,
}
#: These have positions of their own.
GRID_ONLY = {"xbatcher", "zarrdataset draw_same_chunk", "zarrdataset across chunks"}
UNIFORM_ONLY = {"torchio Queue"}
TITLES = {
    "uniform-1": "Uniform, one patch volume per voxel",
    "uniform-4": "Uniform, four patch volumes per voxel",
    "grid": "Grid, shuffled",
}
#: In the environment of every process.
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "BLOSC_NTHREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
#: Megabytes above the budget that a process may take, for what is not voxels.
BESIDE = 200


def process(python, script, *words):
    """Return the last line that a process printed, or the end of its error."""
    command = [python, str(HERE / script), *map(str, words)]
    try:
        env = os.environ | THREADS
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=env)
    except subprocess.TimeoutExpired:
        return {"error": "took longer than 900 seconds"}
    if done.returncode:
        return {"error": done.stderr[-500:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def applies(reader, workload):
    """Whether a reader can draw the patches of a workload."""
    return reader not in (UNIFORM_ONLY if workload == "grid" else GRID_ONLY)


def rounds(folder, pythons, counts, repeats):
    """Every reader at every workload, as often as asked, in turn."""
    runs = []
    for number in range(repeats):
        for workload, whole in counts.items():
            for reader in READERS:
                python = pythons[HOMES.get(reader.split()[0])]
                if python is None or not applies(reader, workload):
                    continue
                n = min(whole, FEWER.get(reader, whole))
                found = process(python, "patch_readers.py", reader, folder, workload, n)
                runs.append({"reader": reader, "workload": workload, "repeat": number, **found})
                print(runs[-1], flush=True)
    return runs


def medians(runs):
    """One row for each reader of a workload: medians, and times ours."""
    rows = []
    for workload in TITLES:
        ours = [r for r in runs if r["workload"] == workload]
        for reader in READERS:
            mine = [r for r in ours if r["reader"] == reader and "error" not in r]
            if not mine:
                continue
            row = {"workload": workload, "reader": reader, "runs": len(mine)}
            for key in mine[0]:
                if key in ("workload", "reader", "repeat"):
                    continue
                values = [r[key] for r in mine]
                if key == "last_batch_exact":
                    row[key] = all(values)
                else:
                    row[key] = None if None in values else statistics.median(values)
            rates = [r["patches_per_second"] for r in mine]
            rows.append({**row, "slowest_and_fastest": [min(rates), max(rates)]})
    for row in rows:
        same = {r["reader"]: r["patches_per_second"] for r in rows if r["workload"] == row["workload"]}
        row["of_ceiling"] = _ratio(row["patches_per_second"], same.get(CEILING))
        row["mrhdata_is_times"] = _ratio(same.get(OURS), row["patches_per_second"])
    return rows


def _ratio(a, b):
    return None if not a or not b else round(a / b, 3)


def alone(folder, sizes, repeats):
    """Workloads that only ours has: medians of several processes."""
    voxels = 1
    for n in sizes["pair"]:
        voxels *= n
    counts = {
        "channels": 0,
        "channels-loop": 0,
        "pair": 4 * voxels // PATCH**3,
        "single": 4 * voxels // PATCH**3,
        "balanced": 4096 if sizes is patch_fixtures.FULL else 512,
    }
    runs = {name: [] for name in counts}
    for _ in range(repeats):
        for name, n in counts.items():
            runs[name].append(process(sys.executable, "patch_workloads.py", name, folder, n))
            print(runs[name][-1], flush=True)
    return {name: _middle(found) for name, found in runs.items()}


def _middle(found):
    good = [f for f in found if "error" not in f]
    if not good:
        return found[0]
    numbers = {k for k, v in good[0].items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {k: statistics.median(f[k] for f in good) if k in numbers else v for k, v in good[0].items()}


def cell(value):
    """A number for people."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def table(heads, rows):
    """Markdown."""
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    return [*lines, *("| " + " | ".join(map(cell, row)) + " |" for row in rows)]


COLUMNS = {
    "reader": "reader",
    "patches/s": "patches_per_second",
    "first pass": "first_pass",
    "of the ceiling": "of_ceiling",
    "mrhdata is times": "mrhdata_is_times",
    "first batch s": "first_batch_seconds",
    "peak MB": "peak_mb",
    "decoded MB/patch": "decoded_mb_per_patch",
    "chunks/batch": "chunks_per_batch",
    "voxels to next": "voxels_to_next",
    "drift": "drift",
    "patches": "patches",
    "exact": "last_batch_exact",
}


def text(result):
    """The whole result in Markdown."""
    made, fixed = result["fixtures"], result["settings"]
    lines = [
        "# Random patches out of a compressed volume",
        "",
        f"`python benchmarks/studies/patches.py FOLDER --repeats {fixed['repeats']}`",
        "",
        f"{made['edge']}^3 uint16 in 64^3 chunks, Zarr 2, Blosc zstd 3 with shuffle, {made['compressed_times']} times "
        f"smaller than raw; patches of {PATCH}^3 as float32 tensors, batches of {BATCH}. {fixed['cpus']} CPUs, warm "
        "page cache, one thread each for torch, OpenMP and Blosc. mrhdata and the cache of tensorstore have 256 MB. "
        f"tensorstore keeps {IN_FLIGHT} reads in flight; zarr-python, xbatcher, zarrdataset and Blosc2 have {WORKERS} "
        f"worker processes; the queue of torchio holds {QUEUE} patches and draws its own positions.",
        "",
        "Rates of mrhdata and of the array in memory are those of the second pass in a process (in the first one the "
        "system clears the memory that is touched anew, as it did for the array when it was loaded); the others are "
        "measured on their first. "
        f"Imports are not counted, planning is. Medians of {fixed['repeats']} runs in turn. Peaks are above the memory "
        "after the imports; the Blosc2 reader's has its mapped file in it, that of `array in memory` and of torchio "
        "the volume.",
        "",
        "Chunks per batch: different 64^3 chunks that the patches of a batch begin in. Drift: variance of the mean "
        "position of a batch, over that of shuffled batches; 1 is as random as shuffling. Slow readers draw fewer "
        "patches.",
    ]
    for workload, title in TITLES.items():
        rows = [r for r in result["readers"] if r["workload"] == workload]
        lines += ["", f"## {title}", "", *table(COLUMNS, [[r.get(k) for k in COLUMNS.values()] for r in rows])]
    lines += ["", f"The Blosc2 copy: {json.dumps(result['blosc2_copy'])}.", "", *others(result)]
    if result["failed"]:
        lines += ["", "## What failed", "", *(f"- {f['what']}: {f['error']}" for f in result["failed"])]
    return "\n".join(lines) + "\n"


def others(result):
    """The workloads that only ours has, in Markdown."""
    found, made = result["alone"], result["fixtures"]
    if bad := {k: v["error"] for k, v in found.items() if "error" in v}:
        return [f"{k} failed: {v}" for k, v in bad.items()]
    small, loop = found["channels"], found["channels-loop"]
    pair, single, balanced = found["pair"], found["single"], found["balanced"]
    lines = ["## In-plane 3 x 3, 67 channels, in memory", "", f"Chunks {made['channels_chunk']}, budget 1 GB.", ""]
    heads = ["reader", "first epoch, patches/s", "later epochs", "patches"]
    rows = [[n, f["first_epoch"], f["steady"], f["patches"]] for n, f in [("mrhdata", small), ("loop", loop)]]
    exact = "as the loop cuts them" if small["last_batch_exact"] else "NOT those of the loop"
    said = f"Later epochs are {small['steady'] / loop['steady']:.2f} times the loop; the patches are {exact}."
    lines += [*table(heads, rows), "", said, ""]
    lines += ["## Two inputs and a target at twice the spacing, density 4", ""]
    heads = ["", "patches/s", "MB/s delivered", "decoded MB/patch", "peak MB", "patches"]
    keys = ["patches_per_second", "mb_per_second", "decoded_mb_per_patch", "peak_mb", "patches"]
    rows = [[n, *(f[k] for k in keys)] for n, f in [("two and a target", pair), ("one volume", single)]]
    ratio = pair["mb_per_second"] / single["mb_per_second"]
    lines += [*table(heads, rows), "", f"Per byte delivered: {ratio:.2f} times the rate of one volume.", ""]
    limit = BUDGET / 1e6 + BESIDE
    said = "within" if balanced["peak_mb"] <= limit else "NOT within"
    lines += [f"## Class-balanced from labels of {made['labels']['gigabytes']} GB, budget 256 MB", ""]
    heads = ["index s", "index kept s", "peak MB", "peak MB of choosing", "patches/s", "patches"]
    keys = ["index_seconds", "index_kept_seconds", "peak_mb", "choosing_peak_mb", "patches_per_second", "patches"]
    return [*lines, *table(heads, [[balanced[k] for k in keys]]), "", f"The peak is {said} {limit:.0f} MB."]


def plot(result, path):
    """Patches per second of all readers, one panel for each workload."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(TITLES), figsize=(15, 4.2), layout="constrained", sharex=True)
    for axis, (workload, title) in zip(axes, TITLES.items(), strict=True):
        rows = sorted(
            (r for r in result["readers"] if r["workload"] == workload), key=lambda r: r["patches_per_second"]
        )
        colours = {OURS: "tab:orange", CEILING: "0.6"}
        rates = [r["patches_per_second"] for r in rows]
        bars = axis.barh([r["reader"] for r in rows], rates, color=[colours.get(r["reader"], "tab:blue") for r in rows])
        axis.bar_label(bars, [cell(r) for r in rates], padding=3, fontsize=8)
        axis.set(title=title, xscale="log", xlabel="patches per second")
        axis.set_xlim(min(rates) / 2, 4 * max(rates))
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def settings(args):
    """Return the versions of all tools."""
    return {
        "quick": args.quick,
        "repeats": args.repeats,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "threads": {"torch": 1, **THREADS},
        "peers": [line for n in sorted(set(HOMES.values())) for line in patch_fixtures.requirements(n).splitlines()],
        "worker_processes": WORKERS,
        "budget_bytes": BUDGET,
        "page_cache": "warm",
    }


def main():
    """Make what is missing, run everything in turn, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where volumes and environments are, or are made")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="small volumes, to see that it runs; results stay in FOLDER"
    )
    args = parser.parse_args()
    sizes = patch_fixtures.QUICK if args.quick else patch_fixtures.FULL
    folder = args.folder / ("quick" if args.quick else "full")
    folder.mkdir(parents=True, exist_ok=True)
    pythons, failed = {None: sys.executable}, []
    for name in dict.fromkeys(HOMES.values()):
        pythons[name], error = patch_fixtures.environment(args.folder, name)
        failed += [{"what": name, "error": error}] if error else []
    made = patch_fixtures.make(folder, sizes)
    copy = patch_fixtures.blosc2_copy(folder, pythons["patches"]) if pythons["patches"] else {}
    begun = time.perf_counter()
    runs = rounds(folder, pythons, made["patches"], args.repeats)
    found = alone(folder, sizes, args.repeats)
    print(f"measured for {time.perf_counter() - begun:.0f} s", flush=True)
    failed += [{"what": f"{r['reader']}, {r['workload']}", "error": r["error"]} for r in runs if "error" in r]
    result = {"settings": settings(args), "fixtures": made, "blosc2_copy": copy, "readers": medians(runs)}
    result |= {"alone": found, "failed": failed, "runs": runs}
    place = folder if args.quick else RESULTS
    (place / "patches.json").write_text(json.dumps(result, indent=2) + "\n")
    (place / "patches.md").write_text(text(result))
    plot(result, place / "patches.png")
    print(text(result))


if __name__ == "__main__":
    main()
