"""Real human heads: a network from label maps next to brainchop's, by contrast, by resolution, and its predicted Dice.

Run: python benchmarks/studies/real_heads.py ../shared/data [--network synth-tissue] [--slabs 12] [--remapped 4]
     writes benchmarks/results/real_heads.md and .json

Grey and white matter of whole heads are compared with tissue fractions above a half; hippocampus, amygdala, deep nuclei
and cerebellar cortex count as grey matter, and the brain stem as white matter.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import brainchop
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import spearmanr
from tables import markdown

import mrhdata
from mrhdata import models
from mrhdata.inference.segmenter import segment
from mrhdata.preprocessing.refinement import refine
from mrhdata.registration.resampling import resample

RESULTS = Path(__file__).parents[1] / "results"
#: Tissue of each structure of the network: in whole heads, and in the slabs, whose deep grey matter is a class.
GREY, WHITE, FLUID, DEEP = (2, 4, 8, 9, 10, 11, 12, 13, 14), (3, 5, 6, 7), (1,), (8, 9, 10, 11, 12)
CORTEX = (2, 4, 13, 14)
#: Subjects whose slabs choose the trust of the refinement, and are not scored; and the trusts that are compared.
TUNING, TRUSTS = range(13, 17), (0.25, 0.5, 1.0, 2.0)
#: Spacings (z, y, x) in mm of the whole head.
SPACINGS = ((3.0, 1.0, 1.0), (1.0, 1.0, 3.0), (2.0, 2.0, 2.0), (0.7, 0.7, 0.7))

Values = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A head with the voxels of each tissue that its ground truth has."""

    name: str
    image: xr.DataArray
    truth: Mapping[str, Values]


def dice(a: Values, b: Values) -> float:
    """Dice of two masks."""
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))


def tissues(labels: Values, truth: Mapping[str, Values]) -> dict[str, Values]:
    """Masks of the tissues of a ground truth in the labels of the network."""
    grey = CORTEX if "deep" in truth else GREY
    members = {"fluid": FLUID, "grey": grey, "white": WHITE, "deep": DEEP}
    return {name: np.isin(labels, members[name]) for name in truth}


def whole_head(data: Path) -> Case:
    """The T1w head with the fractions of FAST; two artificial spheres outside the brain are left out."""
    folder = data / "human-t1-whole"
    image, grey, white = (mrhdata.read(folder / f"{name}.nii.gz") for name in ("bet", "pve_1", "pve_2"))
    parts, count = ndimage.label(image.values > 0)
    brain = parts == 1 + np.argmax(ndimage.sum_labels(np.ones_like(parts), parts, range(1, count + 1)))
    truth = {"grey": (grey.values >= 0.5) & brain, "white": (white.values >= 0.5) & brain}
    return Case("whole head", image.copy(data=np.where(brain, image.values, 0)), truth)


def slabs(data: Path, subjects: Iterable[int]) -> Iterator[Case]:
    """Slabs of 18 slices with four tissues."""
    for subject in subjects:
        image, labels = (
            mrhdata.read(data / "human-t1-tissue" / f"sub-{subject:02d}_{name}.nii.gz") for name in ("T1w", "tissue")
        )
        names = {"fluid": 1, "grey": 2, "white": 3, "deep": 4}
        yield Case(f"slab {subject:02d}", image, {name: labels.values == value for name, value in names.items()})


def averages(data: Path) -> Iterator[Case]:
    """Averages of 152 heads of three contrasts, with priors of the tissues."""
    folder = data / "human-multicontrast"
    names = {"fluid": "csf", "grey": "grey", "white": "white"}
    priors = {name: mrhdata.read(folder / f"{file}.nii.gz").values for name, file in names.items()}
    truth = {name: values > 0.5 * (255 if values.max() > 2 else 1) for name, values in priors.items()}
    for contrast in ("T1", "T2", "PD"):
        yield Case(f"average {contrast}w", mrhdata.read(folder / f"avg152{contrast}.nii.gz").astype(np.float32), truth)


def remaps(case: Case) -> dict[str, Values]:
    """Ten changes of the values of an image, which keep 0."""
    values = case.image.values.astype(np.float64)
    tissue = values > 0.05 * np.percentile(values, 99.5)
    x = np.clip(values / np.percentile(values, 99.5), 0, 1)
    grey = float(np.median(x[case.truth["grey"]]))
    white = float(np.median(x[case.truth["white"]]))
    folded = np.where(x <= grey, x / grey, 1 - 0.6 * (x - grey) / (1 - grey))
    changed = {
        "exponent 0.5": x**0.5,
        "exponent 2": x**2,
        "sigmoid": 1 / (1 + np.exp(-8 * (x - (grey + white) / 2))),
        "8 levels": np.round(7 * x) / 7,
        "inverted": 1.05 - x,
        "inverted, exponent 0.5": (1.05 - x) ** 0.5,
        "inverted, exponent 2": (1.05 - x) ** 2,
        "inverted, 8 levels": np.round(7 * (1.05 - x)) / 7 + 0.05,
        "T2-like": np.exp(-2 * x),
        "grey matter brightest": folded,
    }
    return {name: np.where(tissue, new, 0).astype(np.float32) for name, new in changed.items()}


class Scorer:
    """Scores of a network, with its predicted Dice."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network, self.pairs = network, []  # type: ignore[var-annotated]

    def __call__(self, case: Case) -> dict[str, Any]:
        """The Dice of each tissue, the time, and the prediction."""
        start = time.perf_counter()
        labels = self.segment(case.image)
        seconds = time.perf_counter() - start
        masks = tissues(labels.values, case.truth)
        scores = {name: dice(masks[name], truth) for name, truth in case.truth.items()}
        quality = labels.attrs.get("quality", {})
        row = scores | {"mean": float(np.mean(list(scores.values()))), "seconds": seconds}
        if quality:
            predicted = self._predicted(quality["labels"], scores)
            self.pairs.append((predicted, row["mean"]))
            row |= {"predicted": predicted, "contrast": quality["contrast"], "by": quality.get("network", "")}
        return row

    def segment(self, image: xr.DataArray) -> xr.DataArray:
        """The labels of a volume, in the numbers of structures."""
        return segment(self.network, image, force=True, progress=False)

    def _predicted(self, labels: Mapping[str, float], tissues: Iterable[str]) -> float:
        """The mean predicted Dice of some tissues: that of their largest label, or the mean of all deep structures."""
        names = self.network.spec.names  # type: ignore[union-attr]
        main_labels = {"fluid": FLUID, "grey": (2,), "white": (3,), "deep": DEEP}
        values = [[labels.get(names[label], 0.0) for label in main_labels[tissue]] for tissue in tissues]
        return float(np.mean([np.mean(row) for row in values]))


def peer(data: Path) -> Callable[[Case], dict[str, Any]]:
    """Scores of brainchop's network of grey and white matter."""
    network = brainchop.read_network(data / "meshnet" / "model20chan3cls")

    def score(case: Case) -> dict[str, Any]:
        start = time.perf_counter()
        labels = brainchop.segment(network, case.image).values
        masks = {"grey": labels == 2, "white": labels == 1}
        scores = {name: dice(masks[name], case.truth[name]) for name in masks}
        return scores | {"mean": float(np.mean(list(scores.values()))), "seconds": time.perf_counter() - start}

    return score


def remap_rows(method: Scorer, cases: Iterator[Case], plain: Mapping[str, float]) -> list[dict[str, Any]]:
    """The scores of cases with changed values, and the Dice that they lose to the plain ones."""
    rows = []
    for case in cases:
        for name, values in remaps(case).items():
            row = method(Case(case.name, case.image.copy(data=values), case.truth))
            lost = plain[case.name] - row["mean"]
            rows.append({"case": case.name, "remap": name, "plain": plain[case.name], "lost": lost, **row})
    return rows


def means_by_remap(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The means over the cases, and the contrasts in which the network saw them."""
    means = []
    for name in dict.fromkeys(row["remap"] for row in rows):
        of_name = [row for row in rows if row["remap"] == name]
        values = {key: float(np.mean([row[key] for row in of_name])) for key in ("plain", "mean", "lost")}
        choices = {f"{r.get('contrast', '')} {r.get('by', '')}".strip() for r in of_name}
        means.append({"remap": name, **values, "shown": ", ".join(sorted(choices))})
    return means


def spacing_rows(network: torch.nn.Module, head: Case, plain: Mapping[str, float]) -> list[dict[str, Any]]:
    """The scores of a head at other resolutions, on the grid of its ground truth.

    Its labels have the voxels of the image, or 1 mm as by ``mrhdata segment --label-spacing 1``.
    """
    rows = []
    for spacing in SPACINGS:
        image = resample(head.image.astype(np.float32), spacing_mm=spacing).compute()
        answers = {"of the image": segment(network, image, force=True, progress=False)}
        if max(spacing) > 1:
            fine = resample(image, spacing_mm=1.0).compute()
            answers["1 mm"] = segment(network, fine, force=True, progress=False)
        for voxels, labels in answers.items():
            masks = tissues(resample(labels, head.image, order=0).values, head.truth)
            scores = {name: dice(masks[name], truth) for name, truth in head.truth.items()}
            lost = {f"lost {name}": plain[name] - scores[name] for name in scores}
            rows.append(
                {"spacing": " x ".join(f"{s:g}" for s in spacing), "voxels of the labels": voxels, **scores, **lost}
            )
    return rows


def trust_rows(network: Any, cases: Iterator[Case]) -> list[dict[str, Any]]:
    """The mean Dice of cases without refinement, and by the trust in the labels that refinement has."""
    (settings,) = [dict(settings) for name, settings in network.spec.finish if name == "refine"] or [{}]
    plain = models.copy(network)
    plain.spec = replace(network.spec, finish=())
    scores: dict[str, list[float]] = {}
    for case in cases:
        labels = segment(plain, case.image, force=True, progress=False)
        answers = {"none": labels}
        if settings:
            answers |= {f"{t:g}": refine(labels, case.image, **settings | {"trust": t}) for t in TRUSTS}
        for name, answer in answers.items():
            masks = tissues(answer.values, case.truth)
            scores.setdefault(name, []).append(float(np.mean([dice(masks[k], v) for k, v in case.truth.items()])))
    return [{"trust": name, "mean": float(np.mean(values))} for name, values in scores.items()]


def table_of(rows: list[dict[str, Any]]) -> str:
    """A table of rows, numbers with three digits."""
    return markdown([{k: f"{v:.3f}" if isinstance(v, float) else str(v) for k, v in row.items()} for row in rows])


def main() -> None:
    """All scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--network", default="synth-tissue")
    parser.add_argument("--slabs", type=int, default=12)
    parser.add_argument("--remapped", type=int, default=4, help="number of slabs that are remapped")
    parser.add_argument("--without-peer", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "real_heads")
    options = parser.parse_args()
    logging.getLogger("mrhdata").setLevel(logging.ERROR)
    ours = Scorer(models.load(options.network))
    own_name = Path(options.network).name
    methods: dict[str, Callable[[Case], dict[str, Any]]] = {own_name: ours}
    # Those that label the volumes that they know better; here they label all.
    methods |= {f"{name} only": Scorer(models.load(name)) for name in ours.network.spec.alternatives}
    if not options.without_peer:
        methods["brainchop"] = peer(options.data)
    head = whole_head(options.data)
    plain = [
        {"case": case.name, "method": name, **method(case)}
        for case in (head, *averages(options.data))
        for name, method in methods.items()
    ]
    slab_rows = [{"case": case.name, **ours(case)} for case in slabs(options.data, range(1, options.slabs + 1))]
    numbers = [key for key, value in slab_rows[0].items() if isinstance(value, float)]
    mean = {key: float(np.mean([row[key] for row in slab_rows])) for key in numbers}
    remapped = remap_rows(
        ours, slabs(options.data, range(1, options.remapped + 1)), {r["case"]: r["mean"] for r in slab_rows}
    )
    trust = trust_rows(ours.network, slabs(options.data, TUNING))
    by_remap, by_spacing = means_by_remap(remapped), spacing_rows(ours.network, head, plain[0])
    predicted, true = np.array(ours.pairs).T if ours.pairs else (np.zeros(2), np.ones(2))
    quality = {
        "volumes": len(predicted),
        "spearman": float(spearmanr(predicted, true)[0]),
        "mean error": float(np.abs(predicted - true).mean()),
    }
    text = f"""# Real heads

Network {own_name}; threads {torch.get_num_threads()}. Dice. The network saw no real image.

{table_of(plain)}

## {len(slab_rows)} slabs, skull in (mean)

{table_of([mean])}

Trust of the refinement, on the slabs {TUNING.start} to {TUNING.stop - 1}, which are not scored:

{table_of(trust)}

## Ten remaps of {options.remapped} slabs

{table_of(by_remap)}

## Whole head at other resolutions

{table_of(by_spacing)}

## Predicted Dice against the true one, over all volumes above

{table_of([quality])}
"""
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    content = {
        "plain": plain,
        "slabs": slab_rows,
        "remaps": remapped,
        "spacings": by_spacing,
        "trust": trust,
        "quality": quality,
    }
    options.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
