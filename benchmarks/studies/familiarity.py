"""Volumes that bundled networks were made for, and volumes that they were not made for: which are refused.

Familiar are the validation and test phantoms of each network's task. The others are real volumes, phantoms of another
kind, and test phantoms with a fault.

Run: python benchmarks/studies/familiarity.py WORK ../shared/data
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tables import markdown, written
from zoo import HERE, SHIPPED, network_input, scale_of

import mrhdata
from mrhdata import models
from mrhdata.bench import read_task
from mrhdata.bench.subjects import parts_of
from mrhdata.inference.input_check import REFUSED, SUSPICIOUS, compare_with_training
from mrhdata.preprocessing.pipeline import prepare
from mrhdata.volume.construct import from_array

Volumes = Mapping[str, xr.DataArray]


def unfamiliar(name: str, volumes: Volumes) -> float:
    """Return the share of boxes that are unlike those of the training of a bundled network."""
    spec: Any = models.load(name).spec
    spec = replace(spec, inputs=scale_of(name, spec, volumes))
    familiarity = compare_with_training(spec, network_input(spec, volumes), 10**9)
    if familiarity is None:
        raise SystemExit(f"{name} has no profile; run zoo.py --profiles")
    return familiarity.unfamiliar


def familiar(work: Path) -> Iterator[tuple[str, str, Volumes]]:
    """Yield the phantoms of each network that it did not learn from."""
    for name, (task_name, _, _) in SHIPPED.items():
        parts = parts_of(read_task(HERE / "tasks" / f"{task_name}.toml"), work)
        for subject in parts["validation"] + parts["test"]:
            yield name, f"phantom {subject.id}", subject.inputs


def foreign(work: Path, data: Path) -> Iterator[tuple[str, str, Volumes]]:
    """Yield volumes that each network was not made for."""
    head = mrhdata.read(data / "human-t1-whole" / "bet.nii.gz")
    labels = mrhdata.read(data / "label-maps" / "training_seg_01.nii.gz", kind="labels")
    average = {kind: mrhdata.read(data / "human-multicontrast" / f"avg152{kind}.nii.gz") for kind in ("T2", "PD")}
    noise = from_array(np.random.default_rng(0).normal(100, 20, (64, 96, 96)).astype(np.float32), spacing=(1, 1, 1))
    em = mrhdata.read(data / "em-fibsem" / "cube-b", spacing=(10, 10, 10), unit="nm")
    cells = mrhdata.read(data / "cells" / "crop_planes" / "ch0", spacing=(5, 2, 2), unit="um").compute()
    human: dict[str, xr.DataArray] = {
        "T1w head": head,
        "T1w slab with skull": mrhdata.read(data / "human-t1-tissue" / "sub-01_T1w.nii.gz"),
        "T2w average": average["T2"],
        "PD average": average["PD"],
        "mouse T2w": mrhdata.read(data / "mouse-mri-histology" / "DSURQE_CCFv3_average_200um.mnc"),
        "label map": labels.astype(np.float32),
        "noise": noise,
    }
    for network, channel in (("phantom-tissue", "t1w"), ("phantom-nuclei", "qsm")):
        for what, volume in human.items():
            yield network, what, {channel: volume}
    for what, volume in {"FIB-SEM of a fly": em, "T1w head": head, "noise": noise}.items():
        yield "phantom-em", what, {"em": volume}
    finer = prepare({"signal": cells}, (("upright", {"spacing_mm": [0.002] * 3}),))["signal"]
    neurons = {"neurons, 5 x 2 x 2 um": cells, "neurons, 2 um": finer, "T1w head": head, "noise": noise}
    for what, volume in neurons.items():
        yield "phantom-cells", what, {"signal": volume}
    yield from faulty(work)


def faulty(work: Path) -> Iterator[tuple[str, str, Volumes]]:
    """Yield test phantoms with a fault, those of shape last."""
    heads, mice = (
        parts_of(read_task(HERE / "tasks" / f"{task}.toml"), work)["test"][0].inputs
        for task in ("phantom-tissue", "phantom-histology")
    )
    swapped = dict(zip(mice, [mice["MTR"], mice["T2w"], *list(mice.values())[2:]], strict=True))
    yield "phantom-nf", "T2w and MTR swapped", swapped
    yield "phantom-nf", "percent in place of fractions", {name: 100 * volume for name, volume in mice.items()}
    head = heads["t1w"].compute()
    yield "phantom-tissue", "inverted phantom", {"t1w": head.copy(data=head.values.max() - head.values)}
    yield "phantom-tissue", "half a phantom", {"t1w": head.isel(x=slice(0, head.sizes["x"] // 2))}
    yield "phantom-tissue", "phantom upside down", {"t1w": head.copy(data=head.values[::-1])}


def main() -> None:
    """Compare all volumes and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the phantoms, which are made there")
    parser.add_argument("data", type=Path, help="folder of the shared real volumes")
    options = parser.parse_args()
    known = [{"network": n, "volume": w, "unfamiliar": unfamiliar(n, v)} for n, w, v in familiar(options.work)]
    wrong = [
        {"network": n, "volume": w, "unfamiliar": unfamiliar(n, v)} for n, w, v in foreign(options.work, options.data)
    ]
    counts = {
        "familiar": len(known),
        "familiar, flagged": sum(row["unfamiliar"] >= SUSPICIOUS for row in known),
        "wrong": len(wrong),
        "wrong, refused": sum(row["unfamiliar"] >= REFUSED for row in wrong),
        "wrong, flagged": sum(SUSPICIOUS <= row["unfamiliar"] < REFUSED for row in wrong),
    }
    for row in (*known, *wrong):
        row["unfamiliar"] = round(row["unfamiliar"], 3)
    parts = [
        "# Volumes that a network was made for, and others",
        "Share of sampled boxes that are unlike those of the training. A volume is flagged from "
        f"{SUSPICIOUS} on and refused from {REFUSED} on. Shape is not compared, so half a brain and one that is upside "
        "down pass.",
        markdown([counts]),
        markdown([{**row, "answer": _answer(row["unfamiliar"])} for row in wrong]),
        f"The largest share of a familiar volume is {max(row['unfamiliar'] for row in known)}.",
    ]
    written("familiarity", parts, {"counts": counts, "familiar": known, "wrong": wrong})


def _answer(share: float) -> str:
    return "refused" if share >= REFUSED else "flagged" if share >= SUSPICIOUS else "**accepted**"


if __name__ == "__main__":
    main()
