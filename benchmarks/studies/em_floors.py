"""Interpolation and classical methods for EM super-resolution, x4 in plane: lower bounds for networks.

    python benchmarks/studies/em_floors.py ../shared/data/em-fibsem

Methods are tuned on ranges of planes of cube-a, once for PSNR and once for SSIM, and scored on all planes of
cube-b as published (`mrhdata.metrics.image.restoration_scores`). Writes benchmarks/results/em_floors.json and .md.
"""

import argparse
import itertools
import json
import platform
import time
from pathlib import Path

import em_classical as classical
import numpy as np
import scipy
from scipy.ndimage import zoom

import mrhdata
from mrhdata.degrade import PUBLISHED, Area, Clip, Degradation, IntensityGaussian, Zoom
from mrhdata.metrics.consistency import residuals
from mrhdata.metrics.fourier import fourier_correlation
from mrhdata.metrics.image import restoration_scores

RESULTS = Path(__file__).parents[1] / "results"
FACTOR, SIDE, SPACING_NM, SEED = 4, 248, 10.0, 0
#: Planes of cube-a that methods are tuned on.
TUNING = [slice(start, start + 8) for start in (20, 120, 220)]
#: Planes of cube-b that the figures known from before are of, and draws of noise; planes whose resolution is measured.
SOME, DRAWS, TRUSTED = slice(0, 250, 10), 12, slice(100, 150)
ORDERS = {"nearest": 0, "bilinear": 1, "bicubic": 3}

NOISY = PUBLISHED["em_AG_D_sameas_preprint"]
BLACK_EDGE = Degradation((IntensityGaussian(0.05, width=3), Clip(), Zoom(4, mode="constant")))
AREA = Degradation((Area(4),))
#: Figures known from before: task, method -> PSNR, SSIM.
KNOWN = {
    ("noisy, black edge", "nearest"): (14.84, 0.181),
    ("noisy, black edge", "bilinear"): (16.08, 0.269),
    ("noisy, black edge", "bicubic"): (15.57, 0.241),
    ("area, shifted", "bilinear"): (22.29, 0.547),
    ("area, shifted", "bicubic"): (22.94, 0.602),
}


def planes(folder, cube):
    """A cube's planes, cropped to a multiple of the factor, from 0 to 1."""
    return np.asarray(mrhdata.read(folder / cube, spacing=(SPACING_NM,) * 3, unit="nm").values)[:, :SIDE, :SIDE] / 255.0


def corners(low, order):
    """As the known figures were made: SciPy's zoom in its own mode."""
    return zoom(low, (1, FACTOR, FACTOR), order=order)


def then_bicubic(denoise):
    """A denoiser of the low resolution, and bicubic interpolation."""
    return lambda low, **values: classical.upsampled(denoise(low, **values), FACTOR, 3)


def noisy_methods():
    """Name -> function of the low resolution, and the grid that it is tuned on."""
    widths, strengths = (
        {"width": [0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.05, 1.2]},
        {"strength": [0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3]},
    )
    patches = {"patch": [3, 5]}
    methods = {
        "Gaussian": (then_bicubic(classical.gaussian), widths),
        "total variation": (
            then_bicubic(classical.total_variation),
            {"weight": [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12]},
        ),
        "non-local means": (then_bicubic(classical.non_local_means), strengths | patches),
        "Richardson-Lucy": (
            lambda low, steps, width: classical.richardson_lucy(classical.upsampled(low, FACTOR, 1), steps, width),
            {"steps": [1, 2, 4, 8], "width": [0.5, 1.0, 1.5, 2.0, 3.0]},
        ),
        "Gaussian, 5 planes": (then_bicubic(classical.gaussian), widths | {"depth": [0.6, 1.0, 1.5, 2.0, 3.0]}),
        "Gaussian over 5 planes, total variation": (
            then_bicubic(
                lambda low, depth, weight: classical.total_variation(classical.gaussian(low, 0, depth), weight)
            ),
            {"depth": [1.0, 1.5, 2.0, 3.0], "weight": [0.01, 0.02, 0.03, 0.04, 0.06]},
        ),
        "non-local means, 5 planes": (
            then_bicubic(lambda low, **v: classical.non_local_means(low, depth=2, search=4, **v)),
            strengths | patches,
        ),
    }
    if classical.HAS_BM3D:
        methods["BM3D"] = (then_bicubic(classical.bm3d), {"strength": [0.6, 0.8, 1.0, 1.2, 1.5]})
    return methods


def area_methods():
    """For means of squares without noise."""
    steps = {"steps": [1, 2, 4, 8, 16, 32]}
    return {
        "Richardson-Lucy": (
            lambda low, steps: classical.richardson_lucy(
                classical.upsampled(low, FACTOR, 3, "areas"), steps, box=FACTOR
            ),
            steps,
        ),
        "Richardson-Lucy on squares": (lambda low, steps: classical.squares_richardson_lucy(low, FACTOR, steps), steps),
    }


def scores(truth, restored):
    """Mean PSNR and SSIM over planes."""
    return [round(float(s.mean()), 4) for s in restoration_scores(truth, restored)]


def tuned(method, grid, runs, scan):
    """The values with the best PSNR and those with the best SSIM on the tuning runs."""
    lows = [scan(run, (SEED, number)) for number, run in enumerate(runs)]
    found = {}
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        found[values] = np.mean(
            [scores(run, method(low, **chosen)) for run, low in zip(runs, lows, strict=True)], axis=0
        )
    return [dict(zip(grid, max(found, key=lambda v, which=which: found[v][which]), strict=True)) for which in (0, 1)]


def reproduced(truth):
    """Rows of the figures known from before: means over planes, and their deviation over draws of noise."""
    rows = []
    for (task, name), known in KNOWN.items():
        scan, draws = (AREA, 1) if task.startswith("area") else (BLACK_EDGE, DRAWS)
        found = [scores(truth, corners(scan(truth, seed), ORDERS[name])) for seed in range(draws)]
        mean, deviation = np.mean(found, axis=0).tolist(), np.std(found, axis=0, ddof=min(1, draws - 1)).tolist()
        rows.append({"task": task, "method": name, "psnr": mean[0], "ssim": mean[1], "known": known, "draws": draws})
        rows[-1] |= {"psnr_deviation": deviation[0], "ssim_deviation": deviation[1]}
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    return rows


def measured(task, low, truth, methods, runs=None, scan=None):
    """Rows of a task: plain methods, then tuned ones, with what they are tuned to."""
    rows = []
    for name, (method, grid) in methods.items():
        choices = tuned(method, grid, runs, scan) if grid else [{}]
        for which, values in zip(("PSNR", "SSIM"), choices, strict=False):
            if which == "SSIM" and values == choices[0]:
                continue
            begun = time.perf_counter()
            restored = method(low, **values)
            seconds = time.perf_counter() - begun
            psnr, ssim = scores(truth, restored)
            row = {"task": task, "method": name, "psnr": psnr, "ssim": ssim, "mpixel_per_s": truth.size / seconds / 1e6}
            row |= {"tuned_for": which, "values": values} if grid else {}
            rows.append(row)
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return rows


def plain(upsample):
    """Interpolations as methods without values."""
    return {name: (lambda low, order=order: upsample(low, order), {}) for name, order in ORDERS.items()}


def trust(truth, methods):
    """Return the resolution in nm by Fourier ring correlation, and the residual after degrading again."""
    lows = [NOISY(truth, (SEED, 1, number)) for number in range(2)]
    rows = []
    for name, (method, values) in methods.items():
        first, second = (method(low, **values) for low in lows)
        pair = fourier_correlation(first, second, spacing=SPACING_NM, planes=True)
        against = fourier_correlation(truth, first, spacing=SPACING_NM, planes=True)
        left = residuals(lows[0][::2], *NOISY.moments(first[::2], (SEED, 2), draws=48))
        rows.append(
            {"method": name, "nm_at_1/7": pair.resolution(), "nm_at_0.5": against.resolution(0.5)}
            | {key: getattr(left, key) for key in ("bias", "spread", "beyond_3", "structure", "worst")}
        )
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    return rows


def score_lines(rows):
    """Scores in Markdown."""
    lines = [
        "- *noisy*: noise of variance 0.05 G3(x), clipped, then linear interpolation at a quarter of the points.",
        "- *area*: means of 4 x 4 without noise, interpolated where the means lie.",
        "",
        "| task | method | PSNR | SSIM | tuned for, to | Mpixel/s |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        values = f"{r['tuned_for']}: " + ", ".join(f"{k} {v}" for k, v in r["values"].items()) if "values" in r else ""
        lines.append(
            f"| {r['task']} | {r['method']} | {r['psnr']:.2f} | {r['ssim']:.3f} | {values} | {r['mpixel_per_s']:.1f} |"
        )
    return lines


def reproduced_lines(rows):
    """Return earlier published numbers as Markdown, with their errors."""
    lines = [
        "## Figures from before, made again",
        "",
        f"Every tenth plane, which gives those without noise to the last digit; noise in {DRAWS} draws, mean and "
        "standard deviation.",
        "",
        "- *noisy, black edge*: `scipy.ndimage.zoom` in its own mode loses the last row and column of 248 pixels to "
        "rounding. They are black: 0.8 to 1.5 dB that a network can win back without restoring anything.",
        "- *area, shifted*: interpolated from corner to corner, which puts means of squares up to 1.5 pixels off.",
        "",
        "Floors to beat are therefore those of the table above.",
        "",
        "| task | method | PSNR | SSIM | known |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        psnr, ssim = f"{r['psnr']:.3f}", f"{r['ssim']:.4f}"
        if r["draws"] > 1:
            psnr, ssim = f"{psnr} +- {r['psnr_deviation']:.3f}", f"{ssim} +- {r['ssim_deviation']:.4f}"
        lines.append(f"| {r['task']} | {r['method']} | {psnr} | {ssim} | {r['known'][0]} / {r['known'][1]} |")
    return lines


def trust_lines(rows):
    """Resolution and residuals in Markdown."""
    return [
        "## Resolution, and invented detail",
        "",
        f"Task *noisy*, planes {TRUSTED.start} to {TRUSTED.stop - 1}: resolution by Fourier ring correlation (1/7 "
        "between two draws of noise, 0.5 of one draw against the truth), and the residual of the input after degrading "
        "again, in standard deviations of its noise: bias 0 and spread 1 for the truth. 1/7 between two draws sees "
        "what repeats, and aliases repeat as detail does: 20 nm, the limit of the grid, says that it never falls.",
        "",
        "| method | nm at 1/7 | nm at 0.5 | bias | spread | beyond 3 | structure | worst square |",
        "|---|---|---|---|---|---|---|---|",
    ] + [
        f"| {r['method']} | {r['nm_at_1/7']:.1f} | {r['nm_at_0.5']:.1f} | {r['bias']:.2f} | {r['spread']:.2f} | "
        f"{r['beyond_3']:.4f} | {r['structure']:.2f} | {r['worst']:.1f} |"
        for r in rows
    ]


def text(result):
    """The result in Markdown."""
    number = sum(t.stop - t.start for t in TUNING)
    lines = [
        "# Floors of EM super-resolution",
        "",
        "`python benchmarks/studies/em_floors.py FOLDER`",
        "",
        f"FIB-SEM, 10 nm, x4 in the plane; tuned on {number} planes of cube-a, scored on {result['planes']} planes of "
        f"cube-b, {SIDE} x {SIDE}, PSNR and SSIM as published (gain and offset out, mean over planes). One thread.",
        "",
        *score_lines(result["scores"]),
        "",
        *reproduced_lines(result["reproduced"]),
        "",
        *trust_lines(result["trust"]),
    ]
    if not result["bm3d"]:
        lines += ["", "BM3D is not installed here and not among them."]
    return "\n".join(lines) + "\n"


def main():
    """Measure and write."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("folder", type=Path)
    asked = words.parse_args()
    truth, training = planes(asked.folder, "cube-b"), planes(asked.folder, "cube-a")
    runs = [training[part] for part in TUNING]
    noisy, area = NOISY(truth, SEED), AREA(truth, SEED)
    again = reproduced(truth[SOME])
    by_corners = plain(lambda low, order: classical.upsampled(low, FACTOR, order))
    rows = measured("noisy", noisy, truth, by_corners | noisy_methods(), runs, NOISY)
    by_areas = plain(lambda low, order: classical.upsampled(low, FACTOR, order, "areas"))
    rows += measured("area", area, truth, by_areas | area_methods(), runs, AREA)
    chosen = {r["method"]: r.get("values", {}) for r in reversed(rows) if r["task"] == "noisy"}
    every = by_corners | noisy_methods()
    checked = {"the truth": (lambda low: truth[TRUSTED], {})} | {n: (every[n][0], chosen[n]) for n in every}
    result = {
        "planes": len(truth),
        "seed": SEED,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "bm3d": classical.HAS_BM3D,
        "reproduced": again,
        "scores": rows,
        "trust": trust(truth[TRUSTED], checked),
    }
    (RESULTS / "em_floors.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "em_floors.md").write_text(text(result))
    print(text(result))


if __name__ == "__main__":
    main()
