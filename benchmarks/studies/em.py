"""EM super-resolution by networks, x4 in plane: trained on cube-a, tested on cube-b, compared with classical methods.

Run: python benchmarks/studies/em.py DATA WORK [--tasks NAME ...] [--threads 1]

DATA is the folder with cube-a and cube-b. WORK stores checkpoints and networks, from which an interrupted run resumes.
The report has all results in WORK. Classical methods are in `em_floors.py`, and a stack larger than
the memory budget in `em_large.py`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from em_floors import AREA, FACTOR, NOISY, SIDE, SPACING_NM, TRUSTED
from tables import markdown, written
from torch.utils.flop_counter import FlopCounterMode

import mrhdata
from mrhdata import models
from mrhdata.degrade import Clip, Degradation, IntensityGaussian, Zoom, fit_degradation
from mrhdata.metrics.consistency import residuals
from mrhdata.metrics.fourier import fourier_correlation
from mrhdata.metrics.image import restoration_scores as psnr_and_ssim
from mrhdata.models.precision import resolve_precision
from mrhdata.recipes import restoration
from mrhdata.training.settings import TrainingConfig

#: Training and validation planes of cube-a, with a gap of more than five planes.
TRAINING, VALIDATION = slice(0, 215), slice(222, 250)
PATCH_SIZE, PATCHES_PER_EPOCH = 96, 2000


@dataclass(frozen=True)
class Task:
    """A training: degradation, network and epochs."""

    degradation: Degradation
    context_slices: int
    epochs: int
    network: str = "restorer"
    settings: TrainingConfig = restoration.EFFICIENT
    config: dict[str, Any] = field(default_factory=lambda: {"width": 48, "blocks": 3})


PUBLISHED = replace(restoration.PUBLISHED, precision="auto")
TASKS = {
    "noisy, 1 plane": Task(NOISY, 0, 12),
    "noisy, 5 planes": Task(NOISY, 2, 16),
    "area, 1 plane": Task(AREA, 0, 12),
    "noisy, 1 plane, published network": Task(NOISY, 0, 2, "pssr", PUBLISHED, {}),
}
#: Noise levels of the test scans: variance per intensity, 0.05 in training.
LEVELS = (0.0, 0.02, 0.05, 0.1, 0.2)


def cube(data: Path, name: str) -> xr.DataArray:
    """Return a cube in memory, cropped to a multiple of the factor."""
    volume = mrhdata.read(data / name, spacing=(SPACING_NM,) * 3, unit="nm").rename("em")
    return volume.isel(y=slice(0, SIDE), x=slice(0, SIDE)).compute()


def slug(task: str) -> str:
    """Return the folder name of a task."""
    return task.replace(", ", "-").replace(" ", "-")


def trained(task: str, data: Path, work: Path) -> Path:
    """Return the folder of a trained network, and train it if it is missing."""
    folder, training = work / slug(task), TASKS[task]
    if not (folder / "network").exists():
        folder.mkdir(parents=True, exist_ok=True)
        stack = cube(data, "cube-a")
        model, history = restoration.train(
            [stack.isel(z=TRAINING)],
            [stack.isel(z=VALIDATION)],
            training.degradation,
            network=training.network,
            context_slices=training.context_slices,
            patch_size=PATCH_SIZE,
            patches_per_epoch=PATCHES_PER_EPOCH,
            settings=replace(training.settings, epochs=training.epochs, patience=training.epochs),
            folder=folder,
            progress=False,
            **training.config,
        )
        (folder / "history.json").write_text(json.dumps(asdict(history)))
        models.save(model, folder / "network")
    return folder / "network"


def restored(model: Any, low: xr.DataArray, like: xr.DataArray, **options: Any) -> tuple[np.ndarray, float]:
    """Return the restored image on the truth's grid, from 0 to 1, and the seconds of the restoration."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        # The published network takes twice as long in float32 on a processor with bfloat16.
        options["precision"] = "auto" if model.spec.name == "pssr" else "float32"
        made = restoration.restore(model, low, Path(folder) / "restored.zarr", progress=False, **options)
        seconds = time.perf_counter() - start
        return mrhdata.resample(made, like, order=3).values / 255.0, seconds


def scores(truth: np.ndarray, image: np.ndarray) -> dict[str, float]:
    """Return the mean PSNR and SSIM over planes, as published."""
    psnr, ssim = psnr_and_ssim(truth, image)
    return {"PSNR": float(psnr.mean()), "SSIM": float(ssim.mean())}


def measured(task: str, data: Path, work: Path) -> dict[str, Any]:
    """Return the scores of a network on cube-b, and its costs."""
    degradation = TASKS[task].degradation
    model, stack = models.load(trained(task, data, work)), cube(data, "cube-b")
    history = json.loads((work / slug(task) / "history.json").read_text())
    low = restoration.degrade_stack(stack, degradation, seed=5)
    image, seconds = restored(model, low, stack)
    return {
        "task": task,
        **scores(stack.values / 255.0, image),
        "parameters": sum(p.numel() for p in model.parameters()),
        "kMAC per pixel": thousand_multiplications(model),
        "minutes of training": history["seconds"] / 60,
        "Mpixel/s": stack.size / 1e6 / seconds,
    }


def trust(task: str, data: Path, work: Path) -> dict[str, Any]:
    """Return the resolution by Fourier ring correlation, and the residual after degrading again."""
    degradation = TASKS[task].degradation
    model, stack = models.load(trained(task, data, work)), cube(data, "cube-b").isel(z=TRUSTED)
    truth = stack.values / 255.0
    lows = [restoration.degrade_stack(stack, degradation, seed=s) for s in (1, 2)]
    first, second = (restored(model, low, stack)[0] for low in lows)
    found: dict[str, Any] = {"task": task}
    if "noisy" in task:
        pair = fourier_correlation(first, second, spacing=SPACING_NM, planes=True)
        found["nm at 1/7, two draws"] = pair.resolution()
    found["nm at 0.5, truth"] = fourier_correlation(truth, first, spacing=SPACING_NM, planes=True).resolution(0.5)
    if "noisy" in task:
        again = residuals(lows[0].values[::2] / 255.0, *degradation.moments(first[::2], 3, draws=48))
        found |= {"bias": again.bias, "spread": again.spread, "structure": again.structure, "worst": again.worst}
    return found


def shifted(task: str, data: Path, work: Path) -> list[dict[str, Any]]:
    """Score a network on scans with other noise, and on stacks of thicker planes."""
    model, stack = models.load(trained(task, data, work)), cube(data, "cube-b")
    rows = []
    for level in LEVELS:
        noisy = Degradation((IntensityGaussian(level, width=3), Clip(), Zoom(FACTOR)))
        low = restoration.degrade_stack(stack, noisy, seed=7)
        fitted = fit_degradation(low.values[100:105] / 255.0, stack.values[100:105] / 255.0)
        rows.append(
            {
                "trained on": task,
                "tested on": f"variance {level:g} of intensity",
                **scores(stack.values / 255.0, restored(model, low, stack)[0]),
                "bilinear": scores(stack.values / 255.0, mrhdata.resample(low, stack, order=1).values / 255.0)["PSNR"],
                "fitted variance at 0": fitted.noise_offset,
                "fitted variance at 1": fitted.noise_offset + fitted.noise_slope,
                "fitted kind": fitted.kind,
            }
        )
    thick = stack.coarsen(z=4, boundary="trim").mean().astype(np.uint8).assign_attrs(stack.attrs)
    low = restoration.degrade_stack(thick, TASKS[task].degradation, seed=7)
    rows.append(
        {
            "trained on": task,
            "tested on": "planes of 40 nm",
            **scores(thick.values / 255.0, restored(model, low, thick)[0]),
            "bilinear": scores(thick.values / 255.0, mrhdata.resample(low, thick, order=1).values / 255.0)["PSNR"],
        }
    )
    return rows


def thousand_multiplications(model: Any) -> float:
    """Return the multiply-adds per output pixel of one training patch, in thousands."""
    side = PATCH_SIZE // FACTOR
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, model.in_channels, side, side))
    return counter.get_total_flops() / 2 / PATCH_SIZE**2 / 1e3


def seams(task: str, data: Path, work: Path) -> dict[str, Any]:
    """Return the largest difference between blockwise and whole restoration, and the gradient at window borders."""
    model, stack = models.load(trained(task, data, work)), cube(data, "cube-b").isel(z=slice(0, 24))
    low = restoration.degrade_stack(stack, TASKS[task].degradation, seed=5)
    whole, parts = (restored(model, low, stack, memory=memory)[0] for memory in ("4 GB", "24 MB"))
    found: dict[str, Any] = {"task": task, "largest difference": float(np.abs(whole - parts).max() * 255)}
    if TASKS[task].network == "pssr":
        found["gradient at borders"] = steepness(model, stack, low, whole)
    return found


def steepness(model: Any, stack: xr.DataArray, low: xr.DataArray, whole: np.ndarray) -> float:
    """Return the mean gradient within 4 pixels of window borders, relative to the same pixels inside other windows.

    Windows overlap by half. The other windows start a quarter of a window later.
    """
    step = PATCH_SIZE // 2
    later = step // 2
    begun = {axis: slice(later // FACTOR, None) for axis in ("y", "x")}
    after = {axis: slice(later, None) for axis in ("y", "x")}
    other, _ = restored(model, low.isel(begun), stack.isel(after))
    slopes = [np.hypot(*np.gradient(image, axis=(1, 2))) for image in (whole[:, later:, later:], other)]
    near = [np.abs(np.arange(n) % step - later) <= 4 for n in other.shape[1:]]
    border = (near[0][:, None] | near[1][None, :])[step:-step, step:-step]
    at, amid = (slope[:, step:-step, step:-step][:, border].mean() for slope in slopes)
    return float(at / amid)


def once(what: Any, task: str, data: Path, work: Path) -> Any:
    """Return a stored result, and measure it if it is missing."""
    path = work / slug(task) / f"{what.__name__}.json"
    if not path.exists():
        path.write_text(json.dumps(what(task, data, work)))
    return json.loads(path.read_text())


def report(data: Path, work: Path, threads: int) -> None:
    """Write the report of all results in WORK."""
    finished = [task for task in TASKS if (work / slug(task) / "network").exists()]
    rows, trusted, joins = ([once(what, task, data, work) for task in finished] for what in (measured, trust, seams))
    ours = [task for task in finished if TASKS[task].network == "restorer"]
    shifts = [row for task in ours if task.startswith("noisy") for row in once(shifted, task, data, work)]
    text = [
        "# EM super-resolution by networks",
        f"FIB-SEM, {SPACING_NM:g} nm, x{FACTOR} in plane: trained on {TRAINING.stop} planes of cube-a, with early "
        f"stopping on {VALIDATION.stop - VALIDATION.start} others, tested on cube-b. {threads} thread, "
        f"{resolve_precision('auto')}. "
        "Classical methods are in `em_floors.md`.",
        markdown(rows),
        "Resolution, and the residual of the scan when the restored image is degraded again (1 is the noise itself):",
        markdown(trusted),
        "Other noise and thicker planes:",
        markdown(shifts),
        "Largest difference between restorations with 24 MB and in one pass, in grey values of 255; for the network "
        "whose receptive field is its whole window, also the mean gradient within 4 pixels of window borders relative "
        "to that of the same pixels inside other windows:",
        markdown(joins, 4),
    ]
    values = {"threads": threads, "scores": rows, "trust": trusted, "shift": shifts, "seams": joins}
    written("em", text, values)


def main() -> None:
    """Train what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for task in options.tasks:
        trained(task, options.data, options.work)
    report(options.data, options.work, options.threads)


if __name__ == "__main__":
    main()
