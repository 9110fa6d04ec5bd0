"""Deep nuclei of two atlases' brains, by a network that saw neither and by registration of one to the other.

Run: python benchmarks/studies/deep_nuclei.py ../shared/data [--network synth-tissue]
     writes benchmarks/results/deep_nuclei.md and .json

Drawn labels of PD25 (a fusion of T1w and T2*w) and CIT168 (T1w). Left and right count together, as do the two parts of
the pallidum, because the maps that the network was trained from do not separate the parts. Red nucleus, substantia
nigra and subthalamic nucleus are not among those labels, so the network does not know them.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from registration import LABELS, cit168, dice, timed
from tables import markdown, written

import mrhdata
from mrhdata import models
from mrhdata.inference.segmenter import segment

#: Parts of each nucleus in the atlases, without their sides.
PARTS = {
    "caudate": ("caudate",),
    "putamen": ("putamen",),
    "pallidum": ("globus pallidus externa", "globus pallidus interna"),
    "thalamus": ("thalamus",),
    "accumbens": ("nucleus accumbens",),
}
#: Nuclei that both atlases have, and that registration can carry from one to the other.
BOTH = ("caudate", "putamen", "pallidum")
Mask = NDArray[np.bool_]


def atlases(data: Path) -> dict[str, tuple[xr.DataArray, dict[str, Mask]]]:
    """The image of each atlas, and its nuclei on the same grid."""
    folder = data / "dgm-atlas"
    images = {
        "PD25": mrhdata.read(folder / "PD25-fusion-template-1mm.nii.gz"),
        "CIT168": mrhdata.read(folder / "CIT168toMNI152-2009c_T1w_brain.nii.gz"),
    }
    drawn = mrhdata.read(folder / "PD25-subcortical-1mm.nii.gz", kind="labels")
    labels = {
        "PD25": mrhdata.resample(drawn, images["PD25"]).values,
        "CIT168": cit168(mrhdata.read(folder / "CIT168.nii.gz"), images["CIT168"]),
    }
    return {name: (image, nuclei(folder / LABELS[name], labels[name])) for name, image in images.items()}


def nuclei(names: Path, labels: NDArray[Any]) -> dict[str, Mask]:
    """The masks of the nuclei that an atlas has."""
    sided = [name.strip().lower() for name in json.loads(names.read_text())["labels"]]
    unsided = [
        name.removeprefix("left ").removeprefix("right ").removeprefix("l ").removeprefix("r ") for name in sided
    ]
    members = {nucleus: [i for i, name in enumerate(unsided) if name in parts] for nucleus, parts in PARTS.items()}
    return {nucleus: np.isin(labels, values) for nucleus, values in members.items() if values}


def by_network(model: Any, image: xr.DataArray, truth: dict[str, Mask]) -> dict[str, Any]:
    """Dice of each nucleus in the labels of a network."""
    start = time.perf_counter()
    labels = segment(model, image, progress=False)
    seconds = round(time.perf_counter() - start, 1)
    numbers = {name: label for label, name in model.spec.names.items()}
    scores = {name: dice(labels.values == numbers[name], mask) for name, mask in truth.items()}
    return scores | {"seconds": seconds, "predicted": {n: labels.attrs["quality"]["labels"][n] for n in truth}}


def by_registration(
    kind: str, moving: tuple[xr.DataArray, dict[str, Mask]], fixed: tuple[xr.DataArray, dict[str, Mask]]
) -> dict[str, Any]:
    """Dice of each nucleus that registration carries from one atlas to the other."""
    transform, seconds = timed(moving[0], fixed[0], kind)
    scores = {}
    for name in BOTH:
        mask = moving[0].copy(data=moving[1][name].astype(np.uint8)).assign_attrs(kind="labels")
        scores[name] = dice(mrhdata.resample(mask, fixed[0], transform).values > 0, fixed[1][name])
    return scores | {"seconds": seconds}


def main() -> None:
    """All scores."""
    logging.getLogger("mrhdata").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--network", default="synth-tissue")
    options = parser.parse_args()
    model, heads = models.load(options.network), atlases(options.data)
    name = Path(options.network).name
    rows = []
    for atlas, other in (("PD25", "CIT168"), ("CIT168", "PD25")):
        answers = {name: by_network(model, *heads[atlas])}
        for kind in ("affine", "affine+deform"):
            answers[f"{kind} from {other}"] = by_registration(kind, heads[other], heads[atlas])
        for method, answer in answers.items():
            known = [nucleus for nucleus in PARTS if nucleus in answer]
            shared = float(np.mean([answer[nucleus] for nucleus in BOTH]))
            mean = float(np.mean([answer[nucleus] for nucleus in known]))
            rows.append({"atlas": atlas, "method": method, "mean of the shared": shared, "mean": mean, **answer})
    columns = ("atlas", "method", *PARTS, "mean of the shared", "mean", "seconds")
    table = [{c: f"{r[c]:.3f}" if isinstance(r.get(c), float) else str(r.get(c, "")) for c in columns} for r in rows]
    parts = [
        "# Deep nuclei of two atlases' brains",
        f"{__doc__.splitlines()[0]} Dice; threads {torch.get_num_threads()}. Red nucleus, substantia nigra and "
        "subthalamic nucleus are not among the labels that the network was trained on.",
        markdown(table),
    ]
    written("deep_nuclei", parts, {"threads": torch.get_num_threads(), "rows": rows})


if __name__ == "__main__":
    main()
