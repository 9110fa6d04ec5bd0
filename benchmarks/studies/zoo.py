"""Bundled networks: those of the benchmark on phantoms, with cards from its records.

Run: mrhdata bench benchmarks/ -o WORK, then python benchmarks/studies/zoo.py WORK [--only NAME ...]
With --profiles, only the profiles of the training volumes are measured, without a bench.
With --published FOLDER, the MATLAB files of the published MRH-Nets are converted, without a bench.

Weights of more than 5 MB are rounded to 16 bits, and the card says so.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from safetensors.torch import save_file
from tables import markdown

from mrhdata import models
from mrhdata._runtime.atomic import atomic_write
from mrhdata.bench import read_task, standings
from mrhdata.bench.manifest import read_manifest
from mrhdata.bench.runner import Run, read_results
from mrhdata.bench.subjects import parts_of
from mrhdata.models.cards import WEIGHTS, Card, digest_of
from mrhdata.models.spec import IntensityScale
from mrhdata.models.storage import write_settings
from mrhdata.patching.sources import one_grid
from mrhdata.preprocessing.pipeline import prepare
from mrhdata.training.normalization import profile_of
from mrhdata.volume.dtypes import full_scale

HERE = Path(__file__).parents[1]
PHANTOM = "trained on phantoms only: on real volumes, use it as a starting point for training"
#: Name: task, method, and what else is to be known.
SHIPPED: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "phantom-nf": ("phantom-histology", "MRH-Net", ("needs all five contrasts in the same order and units",)),
    "phantom-tissue": ("phantom-tissue", "2D network 1_0", ("sees single slices", "heads stand upright and whole")),
    "phantom-nuclei": ("phantom-nuclei", "3D U-Net", ("susceptibility in ppm, referenced to zero mean",)),
    "phantom-em": ("phantom-em", "restorer", ("one kind of noise and of downsampling: em_AG_D_sameas_preprint",)),
    "phantom-cells": ("phantom-cells", "cell detector", ("voxels of 2 um; cells of 8 to 16 um",)),
}
MOST_BYTES = 5_000_000
#: Name: MATLAB file of the authors.
PUBLISHED = {
    "mrhnet-af-5": "net_5layerV3Res_HRJG_allMRIs_Fluo.mat",
    "mrhnet-af-10": "net_10layerV3Res_HRJG_allMRIs_Fluo.mat",
}


def run_of(work: Path, task: str, method: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record of the network, and those of all methods of its task."""
    records = [r for r in read_results(work / "results.jsonl") if r["task"] == task and not r["quick"]]
    newest = {r["method"]: r for r in records if "error" not in r}
    return newest[method], list(newest.values())


def add_profile(name: str, work: Path) -> None:
    """Put the profile of its training volumes into the settings of a shipped network."""
    task = read_task(HERE / "tasks" / f"{SHIPPED[name][0]}.toml")
    model: Any = models.load(WEIGHTS / name)
    spec, subjects = model.spec, parts_of(task, work)["training"]
    volumes = [network_input(spec, subject.inputs) for subject in subjects]
    scale = scale_of(name, spec, subjects[0].inputs)
    write_settings(replace(spec, profile=profile_of(volumes, scale, spec.context_slices)), WEIGHTS / name)


def network_input(spec: Any, inputs: Mapping[str, xr.DataArray]) -> Any:
    """The channels of a subject as a network gets them."""
    prepared = {key: volume.compute() for key, volume in prepare(inputs, spec.prepare).items()}
    return one_grid(prepared, (1, 1, 1), None, False)


def scale_of(name: str, spec: Any, inputs: Mapping[str, xr.DataArray]) -> IntensityScale:
    """The scale of a network's inputs; restoration scales integers by the range of their type."""
    first = next(iter(inputs.values()))
    return spec.inputs.times(full_scale(first.dtype) if SHIPPED[name][0] == "phantom-em" else 1.0)


def shipped(name: str, work: Path) -> Card:
    """Put a network and its card where the package finds them."""
    task_name, method, limits = SHIPPED[name]
    record, records = run_of(work, task_name, method)
    task = read_task(HERE / "tasks" / f"{task_name}.toml")
    run = Run(HERE, work, task_name, method, quick=False, seed=record["seed"])
    source = run.folder(read_manifest(task, HERE / "manifests")) / "network"
    model: Any = models.load(source)
    table = standings(records)
    ours, best = table[table["method"] == method].iloc[0], table[table["baseline"]].iloc[0]
    with atomic_write(WEIGHTS / name) as draft:
        shutil.copytree(source, draft)
        size = (draft / "model.safetensors").stat().st_size
        if size > MOST_BYTES:
            kept = model.state_dict().items()
            state = {key: (v.half() if v.dtype == torch.float32 else v).contiguous() for key, v in kept}
            save_file(state, draft / "model.safetensors")
            write_settings(model.spec, draft)
            limits = (*limits, "weights rounded to 16 bits; the score is that of 32 bits")
        card = Card(
            name=name,
            title=task.title,
            task=task.kind,
            network=model.spec.name,
            inputs=tuple(model.spec.channels),
            spacing_mm=tuple(model.spec.spacing_mm),
            data=f"the phantom '{task.data['phantom']}' of mrhdata",
            split={part: list(task.split[part]) for part in ("training", "validation", "test")},
            score={"name": record["shown"][0], **{key: float(ours[key]) for key in ("value", "low", "high")}},
            baseline={"method": best["method"], **{key: float(best[key]) for key in ("value", "low", "high")}},
            limits=(PHANTOM, *limits),
            parameters=sum(p.numel() for p in model.parameters()),
            megabytes=(draft / "model.safetensors").stat().st_size / 1e6,
            sha256=digest_of(draft),
        )
        card.write(draft)
    return card


def publish(name: str, folder: Path) -> Card:
    """Convert a published MRH-Net, and write its card."""
    model: Any = models.load_matlab(folder / PUBLISHED[name])
    target = WEIGHTS / name
    models.save(model, target)
    blocks = model.spec.config["loop_blocks"]
    card = Card(
        name=name,
        title=f"Autofluorescence of ex vivo mouse brains, the published MRH-AF of {blocks + 1} blocks",
        task="histology",
        network=model.spec.name,
        inputs=tuple(model.spec.channels),
        spacing_mm=tuple(model.spec.spacing_mm),
        data="6 ex vivo mouse brains at 7 T, and the autofluorescence of the Allen reference brain",
        split={"training": ["6 mice of the authors"], "validation": ["1000 of their patches"], "test": []},
        score={},
        baseline={},
        limits=(
            "needs the 67 images of the authors' protocol, in their order; that of the MT pair is uncertain",
            "the authors did not publish what inputs were divided by: pass maximum=, the highest value of the scan",
            "without a score, since the test data are not public",
            "values are fractions of the highest one of the training",
        ),
        parameters=sum(p.numel() for p in model.parameters()),
        megabytes=(target / "model.safetensors").stat().st_size / 1e6,
        sha256=digest_of(target),
        source="Liang et al. 2022, eLife 11:e72331; (c) 2021 liangzifei, MIT licence",
    )
    card.write(target)
    return card


def main() -> None:
    """All networks, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, nargs="?", default=Path("bench"))
    parser.add_argument("--only", nargs="*", default=list(SHIPPED))
    parser.add_argument("--profiles", action="store_true", help="only measure the profiles of the training volumes")
    parser.add_argument("--published", type=Path, help="folder of the MATLAB files of the published MRH-Nets")
    options = parser.parse_args()
    if options.published:
        print(markdown([publish(name, options.published).row() for name in PUBLISHED]))
        return
    if options.profiles:
        for name in options.only:
            add_profile(name, options.work)
        return
    WEIGHTS.mkdir(exist_ok=True)
    print(markdown([shipped(name, options.work).row() for name in options.only]))


if __name__ == "__main__":
    main()
