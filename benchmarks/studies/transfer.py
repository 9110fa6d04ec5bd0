"""From autofluorescence to the MBP map of one brain with few patches: fine-tuned, frozen, or from scratch.

    python benchmarks/studies/transfer.py [--seeds 5]

A network learns autofluorescence from two digital brains. Coronal blocks of another brain then give a
few patches of MBP, and a block between them is for early stopping. The rest of that brain (three planes
away) and a further brain are scored. All variants have the same patches, epochs and early stopping; with the
fewest patches, training from scratch is also run with four times the epochs.
Writes ``benchmarks/results/transfer.json`` and ``.md``.
"""

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from brains import THREADS, VALIDATION, centres, cut, planned, subjects, threshold

import mrhdata
from mrhdata import models
from mrhdata.metrics.image import r2
from mrhdata.metrics.roc import auc
from mrhdata.patching.samplers import Uniform
from mrhdata.recipes.mrhnet import RECOMMENDED, TRANSFER, frozen, transfer

RESULTS = Path(__file__).parents[1] / "results"
SIZES, SCORES, PLACES = (500, 2000), ("r2", "auc"), ("same brain", "another brain")
#: Coronal planes; three lie between two blocks, as wide as a patch.
BLOCKS = {
    "train": ((3, 11), (25, 33), (47, 53)),
    "validation": ((14, 22),),
    "test": ((36, 44), (56, 63)),
}
BUDGET = {"epochs": 20, "batch_size": 64, "patience": 5}
BLOCKS_OF_NETWORK, STAIN, PERCENTILE = 4, "mbp", 80


def ways(pretrained, seed, size):
    """Name -> network and settings, with the same budget; of the fewest patches scratch with four times as much too."""
    tuned, plain = replace(TRANSFER, seed=seed, **BUDGET), replace(RECOMMENDED, seed=seed, **BUDGET)
    found = {
        "scratch": (fresh(seed), plain),
        "transfer": (transfer(pretrained, seed), tuned),
        "transfer, frozen": (transfer(pretrained, seed), frozen(tuned, BLOCKS_OF_NETWORK)),
    }
    if size == min(SIZES):
        longer = {key: 4 * BUDGET[key] for key in ("epochs", "patience")}
        found["scratch, 4 x epochs"] = (fresh(seed), replace(plain, **longer))
    return found


def fresh(seed):
    """A network that has learnt nothing."""
    return models.create("mrhnet", in_channels=67, loop_blocks=BLOCKS_OF_NETWORK, seed=seed)


def scores(model, patches, limit):
    """R2 and AUC of the centres of patches."""
    truth, answer = centres(model, patches)
    return {"r2": float(r2(truth, answer)), "auc": float(auc(truth > limit, answer))}


def run(seeds):
    """One row per size, seed and way."""
    brains = subjects(range(10, 15))
    pretrained = fresh(0)
    history = mrhdata.fit(
        pretrained, planned(brains[:2], "af"), planned(brains[2:3], "af", VALIDATION), RECOMMENDED, progress=False
    )
    print(f"autofluorescence: validation RMSE {min(history.rmse):.4f}, {history.seconds:.0f} s", flush=True)
    parts = {role: [cut(brains[3], *planes) for planes in blocks] for role, blocks in BLOCKS.items()}
    limit = threshold(parts["train"], STAIN, PERCENTILE)
    held = planned(parts["validation"], STAIN, 3)
    places = dict(zip(PLACES, (planned(parts["test"], STAIN, 2), planned(brains[4:], STAIN, VALIDATION)), strict=True))
    found = []
    for size in SIZES:
        for seed in range(seeds):
            given = planned(parts["train"], STAIN, sampler=Uniform(size), seed=seed)
            for name, (model, settings) in ways(pretrained, seed, size).items():
                history = mrhdata.fit(model, given, held, settings, progress=False)
                row = {"patches": size, "seed": seed, "way": name, "epochs": len(history.rmse)}
                row |= {place: scores(model, patches, limit) for place, patches in places.items()}
                found.append(row | {"validation_rmse": min(history.rmse), "seconds": round(history.seconds, 1)})
                print(found[-1], flush=True)
    return found, limit, {place: len(patches) for place, patches in places.items()} | {"validation": len(held)}


def summary(found):
    """Mean over seeds of each way, and of its difference to scratch seed by seed, with the standard deviations."""
    table = []
    for size in SIZES:
        for place in PLACES:
            held = {}
            for row in found:
                if row["patches"] == size:
                    held.setdefault(row["way"], []).append([row[place][s] for s in SCORES])
            held = {way: np.array(values) for way, values in held.items()}
            for way, values in held.items():
                more = values - held["scratch"]
                line = {"patches": size, "scored on": place, "way": way}
                for i, score in enumerate(SCORES):
                    line[score] = f"{values[:, i].mean():.3f}"
                    line[f"{score} less scratch"] = (
                        ""
                        if way == "scratch"
                        else f"{more[:, i].mean():+.3f} (SD {more[:, i].std(ddof=1):.3f}, "
                        f"higher in {(more[:, i] > 0).sum()} of {len(more)})"
                    )
                table.append(line)
    return table


def text(result):
    """The whole result in Markdown."""
    table = result["summary"]
    lines = [
        "# Transfer of MRH-Net from autofluorescence to MBP",
        "",
        f"`python benchmarks/studies/transfer.py --seeds {result['seeds']}`",
        "",
        f"Few patches of one digital brain. {BUDGET['epochs']} epochs at most, batches of {BUDGET['batch_size']}, "
        f"early stopping after {BUDGET['patience']} on {result['voxels']['validation']} patches of a block of the same "
        f"brain, for all. AUC: MBP above {result['threshold']:.3f}, percentile {PERCENTILE} of the training blocks. "
        f"Means over {result['seeds']} seeds of patches and fresh weights; there is one pretrained network, so the "
        f"spread does not hold that of pretraining. {result['voxels'][PLACES[0]]} and {result['voxels'][PLACES[1]]} "
        f"voxels are scored. {THREADS} thread.",
        "",
        "| " + " | ".join(table[0]) + " |",
        "|" + " --- |" * len(table[0]),
        *("| " + " | ".join(str(v) for v in row.values()) + " |" for row in table),
    ]
    return "\n".join(lines) + "\n"


def main(seeds):
    """Run, print and write."""
    torch.set_num_threads(THREADS)
    start = time.perf_counter()
    found, limit, voxels = run(seeds)
    result = {
        "seeds": seeds,
        "threshold": limit,
        "voxels": voxels,
        "summary": summary(found),
        "runs": found,
        "seconds": round(time.perf_counter() - start),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    (RESULTS / "transfer.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "transfer.md").write_text(text(result))
    print(text(result), f"{result['seconds']} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    main(parser.parse_args().seeds)
