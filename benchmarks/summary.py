"""Run the main job on the phantom and on real volumes, and write ``RESULTS.md`` from what they report.

    python benchmarks/summary.py ../shared/data

The voxel-pair benchmark, which takes ten minutes, is read from its committed results.
"""

import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch

from mrhdata import demo

HERE = Path(__file__).parent


def body(report):
    """Text of a report without its title."""
    return (report.parent / "report.md").read_text().partition("\n")[2].strip()


def pairs():
    """What the voxel-pair benchmark found."""
    found = json.loads((HERE / "results" / "paired_voxels.json").read_text())
    in_sample = {row["contrast"]: row for row in found["in_sample"]}
    test = {row["contrast"]: row for row in found["test"]}
    lines = [
        "## Published fits and MRH-Net on the voxel pairs",
        "",
        "`python benchmarks/paired_voxels.py PAIRED_VOXELS`",
        "",
    ]
    lines += ["| fit, all rows | R2 | RMSE (n - p) |", "| --- | --- | --- |"]
    lines += [f"| {n} | {in_sample[n]['r2']:.4f} | {in_sample[n]['rmse']:.5f} |" for n in ("linear", "quadratic")]
    lines += ["", "| last 20 % | AUC, AF < 0.4 | R2 |", "| --- | --- | --- |"]
    for name, row in test.items():
        lines.append(
            f"| {name} | {row['auc']:.3f} [{row['auc_low']:.3f}, {row['auc_high']:.3f}] "
            f"| {row['r2']:.3f} [{row['r2_low']:.3f}, {row['r2_high']:.3f}] |"
        )
    mean = found["mean_of_seeds"]
    lines += [
        "",
        f"Mean of five seeds: R2 {mean['r2']:.4f}, AUC {mean['auc']:.4f}. Noise {found['chosen_noise']} on the",
    ]
    lines += ["scaled inputs, that of the lowest cross-validated error.", ""]
    return "\n".join(lines + [f"- {name}: {value}" for name, value in found["differences"].items()])


def conversion():
    """What the conversion benchmark found."""
    found = json.loads((HERE / "results" / "conversion.json").read_text())
    slower, peak = found["times_slower_than_mrhdata"], found["peak_mb_less_imports"]
    lines = [
        "## Conversion of a TIFF stack to OME-Zarr",
        "",
        "`python benchmarks/conversion.py --rivals PYTHON`",
        "",
        f"{found['task']}, {found['gigabytes']:.1f} GB, chunks {found['chunks']}, shards {found['shards']}, "
        f"{found['codec']}, budget {found['budget_mb']} MB, {found['cpu_threads']} threads. Best of "
        f"{len(found['runs']) // len(slower)} runs; the others compute no checksums.",
        "",
        "| tool | seconds | times mrhdata | peak MB less imports |",
        "| --- | --- | --- | --- |",
    ]
    for tool in sorted(slower, key=slower.get):
        lines.append(f"| {tool} | {found['seconds_best'][tool]} | {slower[tool]} | {peak[tool]} |")
    deep = found["twice_as_deep"]
    lines += ["", f"A stack twice as deep: {deep['seconds']} s, peak {deep['peak_mb']} MB."]
    return "\n".join(lines)


def main(data):
    """Run, and write."""
    parts = [
        "# Results",
        "Written by `python benchmarks/summary.py DATA`; do not edit. Intervals are 95 %, block bootstrap.",
        f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads on the CPU.",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for command, where in (("mrhdata demo", None), ("mrhdata demo --data DATA", data)):
            start = time.perf_counter()
            report = demo.run(Path(folder) / str(len(parts)), data=where)
            parts += [f"`{command}`: {time.perf_counter() - start:.0f} s", body(report)]
    (HERE / "RESULTS.md").write_text("\n\n".join([*parts, pairs(), conversion()]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
