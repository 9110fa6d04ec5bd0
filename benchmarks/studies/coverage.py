"""Coverage of the confidence intervals on simulated brains with spatially correlated voxels.

A histology and two contrasts are smooth random fields with known correlations. The true AUC and its difference between
the contrasts come from a very large sample. Blocks are chosen as in
``mrhdata.sensitivity``, from the measured correlation. Writes
``benchmarks/results/coverage.json`` and ``.md``.

    python benchmarks/studies/coverage.py [--trials 125]
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
from patches import table as markdown
from scipy.ndimage import gaussian_filter

from mrhdata.analysis.contrasts import sensitivity
from mrhdata.metrics import roc
from mrhdata.metrics.bootstrap import Bootstrap

RESULTS = Path(__file__).parents[1] / "results"
#: Correlation of either contrast with the histology, and the part of it that is positive.
GOOD, POOR, POSITIVE = 0.7, 0.5, 0.2
#: Shapes, and how wide the Gaussian is that makes neighbours alike, in voxels.
CASES = (((32, 32, 32), 1.0), ((32, 32, 32), 2.0), ((24, 40, 32), 3.0), ((1, 160, 160), 2.0))


def smooth(rng, shape, width):
    """A random field of unit spread."""
    margin = [int(4 * width) if n > 1 else 0 for n in shape]
    noise = rng.standard_normal([n + 2 * m for n, m in zip(shape, margin, strict=True)])
    field = gaussian_filter(noise, [width if n > 1 else 0 for n in shape])
    # Its spread is known: that of a white field behind the filter.
    kernel = gaussian_filter(np.eye(1, 2 * int(6 * width) + 1, int(6 * width))[0], width)
    dims = sum(n > 1 for n in shape)
    inner = tuple(slice(m, m + n) for m, n in zip(margin, shape, strict=True))
    return field[inner] / np.sqrt((kernel**2).sum()) ** dims


def brain(rng, shape, width):
    """Histology and two contrasts, and where each voxel is."""
    truth, first, second = (smooth(rng, shape, width).ravel() for _ in range(3))
    place = np.argwhere(np.ones(shape))
    columns = {
        "good": GOOD * truth + np.sqrt(1 - GOOD**2) * first,
        "poor": POOR * truth + np.sqrt(1 - POOR**2) * second,
        "nothing": smooth(rng, shape, width).ravel(),
    }
    return pd.DataFrame(columns | dict(zip("zyx", place.T, strict=True))), truth


def true_scores(limit, count=4_000_000):
    """AUC of the contrasts, from independent voxels."""
    rng = np.random.default_rng(0)
    truth, first, second = rng.standard_normal((3, count))
    values = {"good": GOOD * truth + np.sqrt(1 - GOOD**2) * first, "poor": POOR * truth + np.sqrt(1 - POOR**2) * second}
    found = {name: roc.auc(truth > limit, v) for name, v in values.items()}
    return found | {"nothing": 0.5}


def trial(seed, shape, width, truth_of, limit):
    """Whether each interval holds the truth, and the blocks that were chosen."""
    table, truth = brain(np.random.default_rng(seed), shape, width)
    bootstrap = Bootstrap(replicates=500, seed=seed)
    found = sensitivity(table, truth, threshold=limit, positive_side="above", fits=[], bootstrap=bootstrap)
    rows = found.table.set_index("contrast")
    # One that points the wrong way by chance is turned by its own line, in the sample: not counted here.
    held = {name: rows.auc_low[name] <= truth_of[name] <= rows.auc_high[name] for name in ("good", "poor")}
    pair = found.difference("good", "poor")
    held["difference"] = pair.low <= truth_of["good"] - truth_of["poor"] <= pair.high
    low, high = rows.loc["nothing", ["partial_correlation_low", "partial_correlation_high"]]
    held["nothing adds nothing"] = low <= 0 <= high
    return held | {"blocks": found.blocks, "edge": found.block_voxels}


def main():
    """Print and write the figures."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--trials", type=int, default=125)
    trials = words.parse_args().trials
    limit = -np.quantile(np.random.default_rng(1).standard_normal(4_000_000), POSITIVE)
    truth_of, rows = true_scores(limit), []
    for shape, width in CASES:
        start = time.perf_counter()
        held = pd.DataFrame([trial(seed, shape, width, truth_of, limit) for seed in range(trials)])
        shares = {name: round(float(held[name].mean()), 4) for name in held if name not in ("blocks", "edge")}
        rows.append({"shape": shape, "width": width, **shares, "edge": int(held.edge.median())})
        rows[-1] |= {"blocks": int(held.blocks.median()), "seconds": round(time.perf_counter() - start, 1)}
        print(rows[-1], flush=True)
    shares = [name for name in rows[0] if name not in ("shape", "width", "edge", "blocks", "seconds")]
    pooled = {name: round(float(np.mean([row[name] for row in rows])), 4) for name in shares}
    print("all", pooled)
    write(trials, [*rows, {"shape": f"all {trials * len(rows)}", "width": "", **pooled}])


def write(trials, rows):
    """The table, as JSON and Markdown."""
    heads = list(rows[0])
    text = [
        "# How often 95 % intervals hold the truth",
        "",
        f"`python benchmarks/studies/coverage.py --trials {trials}`: part of {trials} simulated data sets. Edges and "
        "blocks are medians of what `mrhdata.sensitivity` chose.",
        "",
        *markdown(heads, [[str(row.get(h, "")) for h in heads] for row in rows]),
    ]
    (RESULTS / "coverage.json").write_text(json.dumps({"trials": trials, "cases": rows}, indent=1) + "\n")
    (RESULTS / "coverage.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
