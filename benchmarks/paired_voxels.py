"""MRH-Net voxel by voxel on the published paired voxels, beside polynomials and gradient boosting.

    python benchmarks/paired_voxels.py ../shared/data/mrhnet/paired_voxels.csv.gz

The last 20 % of the rows (which are in raster order) are for testing and chose nothing: the strength of
the noise on the inputs is that of the lowest five-fold error on the first 80 % (contiguous folds). Writes
``benchmarks/results/paired_voxels.json``.
"""

import json
import platform
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import HistGradientBoostingRegressor

from mrhdata.contrasts import row_blocks, sensitivity
from mrhdata.methods import mrhnet
from mrhdata.prediction import predict_rows
from mrhdata.scoring.image import r2

THRESHOLD, FOLDS, NOISES = 0.4, 5, (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def cross_validate(table, target, noise):
    """Networks of all folds, and each fold's mean squared error on its own validation rows."""
    networks = mrhnet.fold_ensemble(table, target, replace(mrhnet.VOXELWISE, noise=noise), progress=False)
    folds = np.array_split(np.arange(len(table)), FOLDS)
    errors = [np.mean((predict_rows(n, table.iloc[f]) - target[f]) ** 2) for n, f in zip(networks, folds, strict=True)]
    return networks, np.array(errors)


def main(path):
    """Print and write the figures."""
    table = pd.read_csv(path)
    target = table.pop("AF").to_numpy()
    rows = len(table)
    train = np.arange(rows) < int(0.8 * rows)
    print(f"{train.sum()} training and {(~train).sum()} test rows, {torch.get_num_threads()} threads")

    runs = {}
    for noise in NOISES:
        runs[noise] = cross_validate(table[train], target[train], noise)
        mean, error = runs[noise][1].mean(), runs[noise][1].std(ddof=1) / np.sqrt(FOLDS)
        print(f"noise {noise:.1f}: cross-validated MSE {mean:.5f}, standard error {error:.5f}", flush=True)
    chosen = min(runs, key=lambda n: runs[n][1].mean())
    print(f"chosen, the lowest: {chosen:.1f}")

    networks = runs[chosen][0]
    maps = {f"mrhnet {i}": predict_rows(n, table) for i, n in enumerate(networks)}
    maps["mrhnet ensemble"] = np.mean(list(maps.values()), axis=0)
    boosting = HistGradientBoostingRegressor(max_iter=200, learning_rate=0.05, random_state=0)
    maps["gradient boosting"] = boosting.fit(table[train], target[train]).predict(table)

    blocks = row_blocks(rows, 50)
    in_sample = sensitivity(table, target, threshold=THRESHOLD, blocks=blocks)
    result = sensitivity(table, target, threshold=THRESHOLD, blocks=blocks, train=train, predictions=maps)
    print(f"\nin-sample, all {rows} rows")
    print(in_sample.table.round(5).to_string())
    print(f"\ntest: the last {result.rows} rows, AF < {THRESHOLD} in {result.positives}, {result.blocks} blocks")
    print(result.table.round(4).to_string())
    seeds = result.table[result.table.contrast.str.fullmatch(r"mrhnet \d")]
    print(f"mean of {len(seeds)} seeds: R2 {seeds.r2.mean():.4f}, AUC {seeds.auc.mean():.4f}")
    differences = {}
    for other in ("quadratic", "FA", "gradient boosting"):
        for score in ("auc", "r2"):
            differences[f"ensemble - {other}, {score}"] = str(result.difference("mrhnet ensemble", other, score))
            print(f"ensemble - {other}, {score}: {differences[f'ensemble - {other}, {score}']}")
    spread = {
        n: r2(target[~train], np.mean([predict_rows(m, table[~train]) for m in r[0]], axis=0)) for n, r in runs.items()
    }
    print("test R2 of the ensemble at each noise, for information:", {n: round(v, 4) for n, v in spread.items()})

    out = Path(__file__).parent / "results" / "paired_voxels.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(
        json.dumps(
            {
                "threads": torch.get_num_threads(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "cross_validated_mse": {str(n): r[1].tolist() for n, r in runs.items()},
                "chosen_noise": chosen,
                "in_sample": in_sample.table.round(5).to_dict("records"),
                "test": result.table.round(4).to_dict("records"),
                "mean_of_seeds": {"r2": round(seeds.r2.mean(), 4), "auc": round(seeds.auc.mean(), 4)},
                "differences": differences,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main(sys.argv[1])
