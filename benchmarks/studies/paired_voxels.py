"""Voxelwise MRH-Net on the published paired voxels, compared with polynomials and gradient boosting.

    python benchmarks/studies/paired_voxels.py ../shared/data/mrhnet/paired_voxels.csv.gz [--chosen]

The last 20 % of the rows (in raster order) are for the test only. The strength of
the noise on the inputs has the lowest five-fold error on the first 80 % (contiguous folds). Writes
``benchmarks/results/paired_voxels.json``.
"""

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import HistGradientBoostingRegressor

from mrhdata.analysis.contrasts import row_blocks, sensitivity
from mrhdata.inference.voxelwise import predict_rows
from mrhdata.recipes import mrhnet

RESULTS = Path(__file__).parents[1] / "results" / "paired_voxels.json"
THRESHOLD, FOLDS, NOISES = 0.4, 5, (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def cross_validate(table, target, noise):
    """Networks of all folds, and each fold's mean squared error on its own validation rows."""
    networks = mrhnet.fold_ensemble(table, target, replace(mrhnet.VOXELWISE, noise=noise), progress=False)
    folds = np.array_split(np.arange(len(table)), FOLDS)
    errors = [np.mean((predict_rows(n, table.iloc[f]) - target[f]) ** 2) for n, f in zip(networks, folds, strict=True)]
    return networks, np.array(errors)


def choose(table, target):
    """Print and store the cross-validated errors of every level."""
    errors = {}
    for noise in NOISES:
        errors[str(noise)] = cross_validate(table, target, noise)[1].tolist()
        mean, error = np.mean(errors[str(noise)]), np.std(errors[str(noise)], ddof=1) / np.sqrt(FOLDS)
        print(f"noise {noise:.1f}: cross-validated MSE {mean:.5f}, standard error {error:.5f}", flush=True)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(found | {"cross_validated_mse": errors}, indent=1) + "\n")


def records(table):
    """Rows as JSON holds them."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def score(table, target, train):
    """Compare networks at the best cross-validated level with fits and boosting on the test rows."""
    errors = json.loads(RESULTS.read_text())["cross_validated_mse"]
    chosen = float(min(errors, key=lambda noise: np.mean(errors[noise])))
    print(f"noise of the lowest cross-validated error: {chosen:.1f}")
    networks, again = cross_validate(table[train], target[train], chosen)
    print(f"its errors, trained again: {again.round(5).tolist()}")
    rows = len(table)
    maps = {f"mrhnet {i}": predict_rows(n, table) for i, n in enumerate(networks)}
    maps["mrhnet ensemble"] = np.mean(list(maps.values()), axis=0)
    boosting = HistGradientBoostingRegressor(max_iter=200, learning_rate=0.05, random_state=0)
    maps["gradient boosting"] = boosting.fit(table[train], target[train]).predict(table)

    blocks = row_blocks(rows, 50)
    in_sample = sensitivity(table, target, threshold=THRESHOLD, blocks=blocks)
    result = sensitivity(table, target, threshold=THRESHOLD, blocks=blocks, train_mask=train, predictions=maps)
    print(f"\nin-sample, all {rows} rows")
    print(in_sample.table.round(5).to_string())
    print(f"\ntest: the last {result.rows} rows, AF < {THRESHOLD} in {result.positives}, {result.blocks} blocks")
    print(result.table.round(4).to_string())
    seeds = result.table[result.table.contrast.str.fullmatch(r"mrhnet \d")]
    print(f"mean of {len(seeds)} seeds: R2 {seeds.r2.mean():.4f}, AUC {seeds.auc.mean():.4f}")
    differences = {}
    for other in ("quadratic", "FA", "gradient boosting"):
        for what in ("auc", "r2"):
            differences[f"ensemble - {other}, {what}"] = str(result.difference("mrhnet ensemble", other, what))
            print(f"ensemble - {other}, {what}: {differences[f'ensemble - {other}, {what}']}")
    RESULTS.write_text(
        json.dumps(
            {
                "threads": torch.get_num_threads(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "cross_validated_mse": errors,
                "chosen_noise": chosen,
                "in_sample": records(in_sample.table.round(5)),
                "test": records(result.table.round(4)),
                "mean_of_seeds": {"r2": round(seeds.r2.mean(), 4), "auc": round(seeds.auc.mean(), 4)},
                "differences": differences,
            },
            indent=1,
        )
        + "\n"
    )


def main():
    """Print and write the figures."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("path", type=Path)
    words.add_argument("--chosen", action="store_true", help="take the cross-validated errors that are kept")
    asked = words.parse_args()
    table = pd.read_csv(asked.path)
    target = table.pop("AF").to_numpy()
    train = np.arange(len(table)) < int(0.8 * len(table))
    print(f"{train.sum()} training and {(~train).sum()} test rows, {torch.get_num_threads()} threads")
    if not asked.chosen:
        choose(table[train], target[train])
    score(table, target, train)


if __name__ == "__main__":
    main()
