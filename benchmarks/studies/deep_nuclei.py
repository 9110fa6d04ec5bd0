"""Deep nuclei of two atlases' brains, by a network that saw neither and by registration of one to the other.

Run: python benchmarks/studies/deep_nuclei.py ../shared/data [--network synth-tissue]
     writes benchmarks/results/deep_nuclei.md and .json

Drawn labels of PD25 (a fusion of T1w and T2*w) and CIT168 (T1w). Left and right count together, as do the two parts of
the pallidum, because the maps that the network was trained from do not separate the parts. Red nucleus, substantia
nigra and subthalamic nucleus are not among those labels, so the network does not know them.
"""

from __future__ import annotations

import argparse
import logging
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from dgm_atlas import atlases
from numpy.typing import NDArray
from registration import dice, timed
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


def nuclei(labels: NDArray[Any], names: list[str]) -> dict[str, Mask]:
    """The masks of the nuclei that an atlas has."""
    unsided = [re.sub("^(left|right|l|r) ", "", name.lower()) for name in names]
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
    model = models.load(options.network)
    heads = {who: (image, nuclei(labels, names)) for who, (image, labels, names) in atlases(options.data).items()}
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
