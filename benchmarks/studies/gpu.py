"""Loaders that keep a training step busy, compared with MONAI and TorchIO; on a GPU also training and prediction.

A step that sleeps stands for a GPU, which leaves the processor free, so the loaders are measured on any machine. With
``--device cuda`` three networks are trained from the same stores and, as their ceiling, on tensors that are on the
device already; a volume is predicted next to MONAI's sliding window. FOLDER has the volumes and the environment of the
peers, which are made if they are missing. Results are in benchmarks/results/gpu.json and .md.

    python benchmarks/studies/gpu.py FOLDER [--device cuda] [--seconds 40] [--quick]
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch
from gpu_loaders import BATCH, BUDGET, EDGE, LOADERS, WORKERS, patches_of
from patch_fixtures import environment, once, volume
from patches import process
from tables import markdown, written

import mrhdata
from mrhdata.volume.construct import from_array

#: Milliseconds of a step, and edges and numbers of the volumes.
STEPS_MS = (5, 20, 100)
FULL, QUICK = (320, 10), (128, 2)


def fixtures(folder, edge, count):
    """Write the volumes as OME-Zarr for the patch engine and as .nii.gz for the peers."""
    for number in range(count):

        def image(number=number):
            return from_array(volume((edge,) * 3, number), spacing=(0.1,) * 3, name="image")

        for ending in ("zarr", "nii.gz"):
            path = folder / f"subject-{number:02d}.{ending}"
            once(path, lambda draft, path=path, image=image: _write(image(), draft, path))


def _write(image, draft, path):
    """Write an image to a draft, whose name ends as that of the path."""
    target = draft.with_name(f"draft-of-{path.name}")
    mrhdata.write(image, target, overwrite=True)
    target.rename(draft)


def limit(folder, seconds):
    """Return megabytes that the engine decodes per patch, and its patches per second if no step is in the way."""
    patches = patches_of(folder)
    plan = patches.plan(BATCH)
    size = float(plan.loads(plan.indices(True, 0, 0, BATCH), BATCH).size.sum())
    rate = process(sys.executable, "gpu_loaders.py", "mrhdata", folder, 0, seconds)["patches_per_second"]
    return {"decoded_mb_per_patch": round(size / len(patches) / 1e6, 2), "patches_per_second": rate}


def compared(folder, python, seconds, repeats):
    """Return a row for each step and loader: the median share of waiting of runs in turn."""
    rows = []
    for milliseconds in STEPS_MS:
        runs = {name: [] for name in LOADERS}
        for _ in range(repeats):
            for name in LOADERS:
                own = sys.executable if name == "mrhdata" else python
                runs[name].append(process(own, "gpu_loaders.py", name, folder, milliseconds, seconds))
                print(runs[name][-1], flush=True)
        for name, results in runs.items():
            good = sorted((r for r in results if "error" not in r), key=lambda r: r["waiting"])
            rows.append(good[len(good) // 2] if good else {"loader": name, "step_ms": milliseconds, **results[0]})
    return rows


def report(values):
    """Return the parts of the report."""
    cores, most = values["cpus"], values["limit"]
    shortest = 1e3 * BATCH / most["patches_per_second"]
    columns = {"loader": "loader", "step_ms": "step, ms", "waiting": "share of waiting", "steps": "steps",
               "patches_per_second": "patches/s", "peak_mb": "peak MB"}  # fmt: skip
    parts = [
        "# Loaders and training steps",
        f"Batches of {BATCH} patches of {EDGE}^3 from {values['count']} volumes of {values['edge']}^3 uint16 "
        f"({values['raw_mb']} MB decoded, budget of the engine {BUDGET // 10**6} MB). The step sleeps, as a GPU leaves "
        f"the processor free. {cores} CPU cores; the engine decodes in threads of one process, the peers load whole "
        f".nii.gz files in {WORKERS} worker processes and cut several patches from each. Medians of "
        f"{values['repeats']} runs in turn, after a warm-up. Peaks are above the memory after the imports.",
        markdown([{title: r.get(key, r.get("error")) for key, title in columns.items()} for r in values["loaders"]]),
        f"Without a step the engine gives {most['patches_per_second']:.0f} patches/s: it decodes "
        f"{most['decoded_mb_per_patch']} MB per patch ({most['decoded_mb_per_patch'] * most['patches_per_second']:.0f} "
        f"MB/s) and copies {4 * EDGE**3 / 1e6:.1f} MB, and both cores are busy. So steps of {shortest:.0f} ms or more "
        "need not wait; shorter ones wait for the processor.",
    ]
    return [*parts, *device_parts(values)]


def device_parts(values):
    """Return the parts about a GPU, or a sentence if it was not measured."""
    if "device" not in values:
        return ["No GPU was at hand: training and prediction on one are not measured here."]
    from gpu_device import parts

    return parts(values["device"])


def main():
    """Make what is missing, run everything in turn, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where volumes and environments are, or are made")
    parser.add_argument("--seconds", type=float, default=40, help="seconds of each run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cuda also trains and predicts on the GPU")
    parser.add_argument("--quick", action="store_true", help="small volumes; the report is only printed")
    args = parser.parse_args()
    edge, count = QUICK if args.quick else FULL
    folder = args.folder / f"volumes-{edge}"
    folder.mkdir(parents=True, exist_ok=True)
    fixtures(folder, edge, count)
    python, error = environment(args.folder, "stream")
    if error:
        print(f"the peers cannot be installed: {error}", flush=True)
    values = {
        "edge": edge,
        "count": count,
        "raw_mb": round(count * edge**3 * 2 / 1e6),
        "cpus": os.cpu_count(),
        "repeats": args.repeats,
        "limit": limit(folder, args.seconds),
        "loaders": compared(folder, python or sys.executable, args.seconds, args.repeats),
    }
    if args.device != "cpu" or args.quick:
        from gpu_device import measured_on

        values["device"] = measured_on(args.device, folder, quick=args.quick)
    if args.quick:
        print("\n\n".join(report(values)))
        return
    written("gpu", report(values), values)


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.seterr(all="raise")
    main()
