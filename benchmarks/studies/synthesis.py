"""Rate of the synthesis of training images on one thread, and a contact sheet with real images among the samples.

    python benchmarks/studies/synthesis.py DATA [--sheet SHEET.png]

DATA has the folder ``label-maps``; the sheet takes real images from the folders next to it. Times are seconds of the
processor, because they hardly depend on other processes of the machine. Writes ``benchmarks/results/synthesis.*``.
"""

import argparse
import cProfile
import pstats
import statistics
import time
from pathlib import Path

import torch
from tables import markdown, written

import mrhdata
from mrhdata.synthesis import Synthesizer
from mrhdata.viz import contact_sheet

MAPS = 4
SHAPES = ((64, 64, 64), (96, 96, 96), (160, 192, 160))
#: Samples of each shape; whole heads take seconds.
COUNTS = (200, 60, 12)
#: Step -> the functions that it consists of.
STEPS = {
    "place and shape": ("draw_pose", "draw_view"),
    "labels of the patch": ("_sample_structures",),
    "intensities, clusters, texture, mixed voxels": ("draw_contrast", "paint"),
    "bias field": ("add_bias",),
    "motion": ("add_motion",),
    "ringing": ("add_ringing",),
    "resolution and noise": ("acquire",),
    "edge of stripped brains": ("draw_brain",),
    "range and exponent": ("scale",),
}
REAL = {
    "T1w": "human-t1-whole/bet.nii.gz",
    "T1w slab": "human-t1-tissue/sub-01_T1w.nii.gz",
    "T1w of 152": "human-multicontrast/avg152T1.nii.gz",
    "T2w of 152": "human-multicontrast/avg152T2.nii.gz",
    "PD of 152": "human-multicontrast/avg152PD.nii.gz",
    "T1w and T2*w": "dgm-atlas/PD25-fusion-template-1mm.nii.gz",
}


def milliseconds(synthesizer, shape, count):
    """Return the mean time of a sample of the processor, after three to warm up."""
    for seed in range(3):
        synthesizer.sample(seed, shape)
    times = []
    for seed in range(count):
        start = time.process_time()
        synthesizer.sample(seed, shape)
        times.append(1000 * (time.process_time() - start))
    return statistics.mean(times), statistics.quantiles(times, n=20)[-1]


def by_shape(maps):
    """Rows of shape, mean, 95th percentile and rate, with all default ranges."""
    rows = []
    for shape, count in zip(SHAPES, COUNTS, strict=True):
        mean, most = milliseconds(Synthesizer(maps), shape, count)
        row = {"patch": shape, "samples": count, "mean ms": mean, "95th percentile ms": most}
        rows.append(row | {"samples per second": 1000 / mean})
        print(rows[-1], flush=True)
    return rows


def by_step(maps, count=200):
    """Rows of the share of each step in the time of a 64^3 sample, by the profiler."""
    synthesizer, profile = Synthesizer(maps), cProfile.Profile(time.process_time)
    for seed in range(count):
        profile.runcall(synthesizer.sample, seed, SHAPES[0])
    seconds = {key[2]: row[3] for key, row in pstats.Stats(profile).stats.items() if "synthesis" in key[0]}
    rows = {step: sum(seconds[name] for name in names) for step, names in STEPS.items()}
    return [{"step": step, "share in %": 100 * value / sum(rows.values())} for step, value in rows.items()]


def main():
    """Measure, write, and draw the sheet if asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    files = sorted((options.data / "label-maps").glob("*.nii.gz"))[:MAPS]
    maps = Synthesizer([mrhdata.read(file, kind="labels") for file in files]).maps
    shapes, steps = by_shape(maps), by_step(maps)
    parts = [
        "# Rate of the synthesis of training images",
        "`python benchmarks/studies/synthesis.py DATA`",
        f"{MAPS} label maps of whole heads, all default ranges, one thread, seconds of the processor "
        "(other processes ran at the same time).",
        markdown([row | {"patch": "x".join(map(str, row["patch"]))} for row in shapes], 1),
        "Share of each step in the time of 64 x 64 x 64 samples; a step that is drawn in some samples counts in those:",
        markdown(steps, 1),
    ]
    written("synthesis", parts, {"shapes": shapes, "steps": steps})
    if options.sheet:
        real = {name: mrhdata.read(options.data / path) for name, path in REAL.items()}
        contact_sheet(Synthesizer(maps), options.sheet, real=real)


if __name__ == "__main__":
    main()
