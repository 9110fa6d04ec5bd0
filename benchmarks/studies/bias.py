"""N4 on the means of coarse bins compared with SimpleITK's N4 on every voxel, on a phantom with a known field.

    python benchmarks/studies/bias.py            # fifteen minutes on two cores
    python benchmarks/studies/bias.py --quick

Both have the same mask, iterations and threads. CPU seconds are summed over all threads, and are more reliable than
wall time if the machine has other work. Each runs in its own process. Wall time is from the stored volume to the mean
of the corrected one, which is not written. Writes ``benchmarks/results/bias.json``.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dask
import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

import mrhdata
from mrhdata.preprocessing.bias import bias_field, n4
from mrhdata.volume.construct import from_array

RESULTS = Path(__file__).parents[1] / "results"
THREADS = os.cpu_count()


def planes(shape, first, last):
    """True field and mask of some planes of a head of this shape."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    z = z[first:last]
    field = np.exp(0.3 * z - 0.25 * y * y + 0.3 * x * y + 0.2 * np.sin(2 * x + z))
    return field, z * z + y * y + x * x < 0.85


def phantom(folder, shape):
    """A head of two tissues in blobs, 12 % noise, dark background; stored with its mask."""
    rng = np.random.default_rng(0)
    blobs = gaussian_filter(rng.standard_normal((64, *shape[1:])).astype(np.float32), 6, mode="wrap") > 0
    values, inside = np.empty(shape, np.uint16), np.empty(shape, np.uint8)
    for i in range(0, shape[0], 64):
        field, mask = planes(shape, i, i + 64)
        noise = rng.standard_normal(mask.shape, dtype=np.float32) * 60
        values[i : i + 64] = np.clip(500 * (1 + 0.5 * blobs[: len(mask)]) * field * mask + 100 * ~mask + noise, 0, None)
        inside[i : i + 64] = mask
    for name, data, kind in (("head", values, "image"), ("mask", inside, "mask")):
        mrhdata.write(from_array(data, spacing=(0.1, 0.1, 0.1), kind=kind, name=name), folder / f"{name}.zarr")


def whole(folder, iterations):
    """SimpleITK on every voxel: seconds, and the field."""
    start = time.perf_counter()
    image, mask = (sitk.GetImageFromArray(mrhdata.read(folder / f"{n}.zarr").values) for n in ("head", "mask"))
    image = sitk.Cast(image, sitk.sitkFloat32)
    n4_filter = sitk.N4BiasFieldCorrectionImageFilter()
    n4_filter.SetMaximumNumberOfIterations(iterations)
    corrected = n4_filter.Execute(image, mask)
    sitk.GetArrayViewFromImage(corrected).mean()
    seconds = time.perf_counter() - start
    return seconds, lambda: np.exp(sitk.GetArrayFromImage(n4_filter.GetLogBiasFieldAsImage(image)))


def coarse(folder, iterations, level):
    """The same by cells, of the finest level or fitted on a coarser one."""
    start = time.perf_counter()
    image, mask = (mrhdata.read(folder / f"{n}.zarr") for n in ("head", "mask"))
    fit_on = None if level == 0 else mrhdata.read(folder / "head.zarr", level=level)
    where = mask if level == 0 else mrhdata.read(folder / "mask.zarr", level=level)
    field = bias_field(image, mask=where, fit_on=fit_on, iterations=iterations)
    fitted = time.perf_counter() - start
    float((image.astype(np.float32) / field).mean())
    return time.perf_counter() - start, fitted, lambda: field.values


def kilobytes(key):
    """Memory of this process; unlike ``ru_maxrss`` without that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key)))


def work(tool, folder, iterations):
    """One run; what it took and how well its field agrees with the truth inside the head."""
    before, busy = kilobytes("VmRSS"), time.process_time()
    found = {}
    if tool == "whole":
        found["seconds"], field = whole(folder, iterations)
    elif tool == "stream":
        head = mrhdata.read(folder / "head.zarr")
        start = time.perf_counter()
        float(n4(head, iterations=iterations).mean())
        found["seconds"], field = time.perf_counter() - start, None
    else:
        found["seconds"], found["seconds_fit"], field = coarse(folder, iterations, int(tool.partition(" ")[2] or 0))
    found["processor_seconds"] = time.process_time() - busy
    found["peak_mb"] = (kilobytes("VmHWM") - before) // 1024
    if field is not None:
        values = field()
        truth, mask = planes(values.shape, 0, values.shape[0])
        found["correlation"] = float(np.corrcoef(values[mask], truth[mask])[0, 1])
    return found


def run(tool, folder, iterations):
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--work", tool, "--folder", str(folder), "--iterations", *map(str, iterations)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{tool} failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {key: round(value, 5 if key == "correlation" else 2) for key, value in found.items()}


def compare(shape, iterations):
    """All tools on one phantom."""
    with tempfile.TemporaryDirectory() as folder:
        phantom(Path(folder), shape)
        runs = {tool: run(tool, folder, iterations) for tool in ("cells", "cells 1", "whole")}
    return {"shape": shape, "iterations": iterations, "runs": runs}


def depths(shape, iterations):
    """Peak memory of ours on a volume and on one four times as deep."""
    found = {}
    for deep in (shape[0], 4 * shape[0]):
        with tempfile.TemporaryDirectory() as folder:
            phantom(Path(folder), (deep, *shape[1:]))
            found[deep] = run("stream", folder, iterations)
    return {"planes_of": shape[1:], "iterations": iterations, "runs": found}


def table(found):
    """The result as Markdown; the correlation is that with the true field, inside the head."""
    names = {"whole": "SimpleITK, every voxel", "cells": "n4", "cells 1": "n4, fitted on level 1"}
    lines = [
        "| volume | iterations | tool | seconds | of them fitting | processor seconds | correlation | peak MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in found["cases"]:
        size, iterations = " x ".join(map(str, case["shape"])), " + ".join(map(str, case["iterations"]))
        for tool, r in case["runs"].items():
            fit = r.get("seconds_fit", "")
            times = (r["seconds"], fit, r["processor_seconds"])
            row = (size, iterations, names[tool], *times, f"{r['correlation']:.4f}", r["peak_mb"])
            lines.append(f"| {' | '.join(map(str, row))} |")
    deep = found["depths"]["runs"]
    return "\n".join([*lines, "", *(f"{n} planes: {r['seconds']} s, peak {r['peak_mb']} MB." for n, r in deep.items())])


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small volumes; nothing is written")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--iterations", type=int, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(THREADS)
    dask.config.set(scheduler="threads", num_workers=THREADS)
    if args.work:
        print(json.dumps(work(args.work, args.folder, args.iterations)))
        return
    few, some, full = [4] * 3, [10] * 3, [50] * 4
    found = {"threads": THREADS, "python": platform.python_version(), "SimpleITK": sitk.Version_VersionString()}
    found["depths"] = depths([64, 128, 128] if args.quick else [256, 512, 512], few)
    found["cases"] = []
    for edge, iterations in [(96, few)] if args.quick else [(96, few), (96, full), (256, some)]:
        found["cases"].append(compare([edge] * 3, iterations))
        if not args.quick:
            (RESULTS / "bias.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
