"""Predicted against true Dice on synthetic volumes, and volumes that a network refuses, warns of, or accepts.

Run: python benchmarks/studies/predicted_dice.py ../shared/data [--network synth-tissue] [--volumes 200]
     writes benchmarks/results/predicted_dice.md and .json

The synthetic volumes have other seeds than those of the calibration; half of them come from the label maps of the
training. Real heads are in benchmarks/results/real_heads.md.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.stats import spearmanr
from synthetic_networks import RECIPE, read_maps
from tables import markdown, written

import mrhdata
from mrhdata import models
from mrhdata.errors import MrhdataError
from mrhdata.inference.segmenter import segment
from mrhdata.recipes import synthetic
from mrhdata.recipes.synthetic_quality import measure
from mrhdata.registration.resampling import resample
from mrhdata.synthesis.structures import FREESURFER
from mrhdata.synthesis.synthesizer import Synthesizer
from mrhdata.volume.construct import from_array

#: Seed of the volumes, which differs from that of the calibration.
SEED = 7


def synthetic_pairs(model: Any, labels: Path, number: int) -> list[tuple[float, float]]:
    """Predicted and true mean Dice of synthetic volumes."""
    maps = read_maps(labels)
    validation = synthetic.validation_names(maps, RECIPE.validation_maps)
    others = [name for name in maps if name not in validation][: len(validation)]
    parts = [
        Synthesizer([maps[n] for n in names], RECIPE.synthesis, FREESURFER, targets=RECIPE.targets)
        for names in (validation, others)
    ]
    pairs = []
    for index in range(number):
        features, dice = measure(model, parts[index % 2], [SEED, index])
        if not np.isfinite(dice).any():
            continue
        predicted = model.spec.quality.predict(features.certainty, features.symmetry)
        present = features.voxels > 0
        pairs.append((float(predicted[present].mean()) if present.any() else 0.0, float(np.nanmean(dice))))
    return pairs


def familiar(data: Path) -> Iterator[tuple[str, xr.DataArray]]:
    """Whole heads in a contrast that the network was made for, and other spacings of one."""
    head = mrhdata.read(data / "human-t1-whole" / "bet.nii.gz")
    yield "T1w head", head
    for spacing in (0.8, 1.5, (3.0, 1.0, 1.0)):
        yield f"T1w head, {spacing} mm", resample(head.astype(np.float32), spacing_mm=spacing)
    yield "T1w head, other values", head.copy(data=(head.values.astype(np.float32) * 7.3) ** 0.9)
    yield "average T1w", mrhdata.read(data / "human-multicontrast" / "avg152T1.nii.gz")
    yield "CIT168 T1w", mrhdata.read(data / "dgm-atlas" / "CIT168toMNI152-2009c_T1w_brain.nii.gz")


def wrong(data: Path) -> Iterator[tuple[str, xr.DataArray]]:
    """Volumes that the network was not made for, and faults."""
    head = mrhdata.read(data / "human-t1-whole" / "bet.nii.gz")
    values, left = head.values, head.sizes["x"] // 2
    mouse = data / "mouse-mri-histology"
    yield "head upside down", head.copy(data=values[::-1].copy())
    yield "head back to front", head.copy(data=values[:, ::-1].copy())
    edge = min(values.shape)
    cube = values[:edge, :edge, :edge]
    yield "axes swapped", from_array(np.ascontiguousarray(cube.transpose(2, 0, 1)), spacing=(1, 1, 1))
    yield "half a head", head.isel(x=slice(0, left))
    yield "half a head, 0 elsewhere", head.copy(data=np.where(np.arange(values.shape[2]) < left, values, 0))
    yield "lower half of a head", head.isel(z=slice(0, values.shape[0] // 2))
    yield "front half of a head", head.isel(y=slice(values.shape[1] // 2, None))
    yield "voxels of 2 mm that are of 1 mm", from_array(values, spacing=(2, 2, 2))
    yield "voxels of 0.5 mm that are of 1 mm", from_array(values, spacing=(0.5, 0.5, 0.5))
    rng = np.random.default_rng(0)
    yield "noise", head.copy(data=rng.integers(1, 255, values.shape).astype(np.uint8))
    yield "a head in noise", head.copy(data=values + rng.normal(0, 120, values.shape).astype(np.float32))
    blocks = [np.roll(part, 40 * i, axis=2) for i, part in enumerate(np.array_split(values, 12))]
    yield "shuffled slices", head.copy(data=np.concatenate(blocks))
    yield "labels as an image", mrhdata.read(data / "label-maps" / "training_seg_01.nii.gz").astype(np.float32)
    yield "mask as an image", head.copy(data=(values > 0).astype(np.float32))
    yield "mouse T2w", mrhdata.read(mouse / "DSURQE_CCFv3_average_200um.mnc")
    yield "mouse labels", mrhdata.read(mouse / "annotation_100.nrrd").astype(np.float32)
    yield (
        "mouse T2w in voxels of 1 mm",
        from_array(mrhdata.read(mouse / "DSURQE_CCFv3_average_200um.mnc").values, spacing=(2.5, 2.5, 2.5)),
    )
    yield (
        "mouse brain, fluorescence",
        mrhdata.read(data / "mouse-brain-planes" / "downsampled_standard.tiff", spacing=(100, 100, 100), unit="um"),
    )
    em = mrhdata.read(data / "em-fibsem" / "cube-b", spacing=(10, 10, 10), unit="nm").compute()
    yield "FIB-SEM in voxels of 1 mm", from_array(em.values, spacing=(1, 1, 1))
    cells = mrhdata.read(data / "cells" / "crop_planes" / "ch0", spacing=(5, 2, 2), unit="um").compute()
    yield "neurons in voxels of 1 mm", from_array(cells.values, spacing=(5, 0.3, 0.3))


class Warnings(logging.Handler):
    """Keeps the messages of a log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.messages.append(record.getMessage())


def judged(model: torch.nn.Module, volume: xr.DataArray) -> dict[str, Any]:
    """The answer to a volume: refused, warned of or accepted, with the predicted Dice."""
    log, warnings = logging.getLogger("mrhdata"), Warnings()
    log.addHandler(warnings)
    try:
        labels = segment(model, volume, progress=False)
    except MrhdataError as error:
        return {"answer": "refused", "predicted": "", "reason": str(error).partition(". ")[0][:160]}
    finally:
        log.removeHandler(warnings)
    predicted = f"{labels.attrs['quality']['predicted_dice']:.2f}"
    answer = "warning" if warnings.messages else "**accepted**"
    return {"answer": answer, "predicted": predicted, "reason": "; ".join(warnings.messages)[:160]}


def main() -> None:
    """Synthetic volumes, familiar and wrong ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--network", default="synth-tissue")
    parser.add_argument("--volumes", type=int, default=200)
    options = parser.parse_args()
    model = models.load(options.network)
    rows: dict[str, list[dict[str, Any]]] = {"familiar": [], "wrong": []}
    for kind, volumes in (("familiar", familiar(options.data)), ("wrong", wrong(options.data))):
        for name, volume in volumes:
            rows[kind].append({"volume": name, **judged(model, volume)})
            print(kind, *rows[kind][-1].values(), flush=True)
    pairs = synthetic_pairs(model, options.data / "label-maps", options.volumes)
    predicted, true = np.array(pairs).T
    summary = {
        "synthetic volumes": len(pairs),
        "Spearman": round(float(spearmanr(predicted, true)[0]), 3),
        "mean error": round(float(np.abs(predicted - true).mean()), 3),
        "true Dice, smallest and largest": f"{true.min():.2f} to {true.max():.2f}",
        "wrong": len(rows["wrong"]),
        "refused": sum(row["answer"] == "refused" for row in rows["wrong"]),
        "warned of": sum(row["answer"] == "warning" for row in rows["wrong"]),
        "familiar": len(rows["familiar"]),
        "familiar, refused or warned of": sum(row["answer"] != "**accepted**" for row in rows["familiar"]),
    }
    parts = [
        "# Predicted Dice, and volumes that a network refuses",
        f"Network {Path(options.network).name}; threads {torch.get_num_threads()}.",
        markdown([summary]),
        "## Wrong volumes",
        markdown(rows["wrong"]),
        "## Familiar volumes",
        markdown(rows["familiar"]),
    ]
    written("predicted_dice", parts, {"summary": summary, "pairs": pairs, **rows})


if __name__ == "__main__":
    main()
