"""Memory and time of whole heads, next to brainchop's network.

Run: python benchmarks/studies/whole_heads.py ../shared/data [--network synth-tissue] [--threads 2]
     writes benchmarks/results/whole_heads.md

Each head is segmented in a process of its own, whose peak memory is that of the system. The head is the T1w head of
``human-t1-whole`` in the middle of 256 x 256 x 256 voxels of 1 mm, and of 400 x 400 x 400 voxels of 0.5 mm.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import brainchop
import numpy as np
import torch
from tables import markdown

import mrhdata
from mrhdata import models
from mrhdata.inference.contrast import best_view
from mrhdata.inference.probabilities import TrunkModel
from mrhdata.inference.segmenter import segment
from mrhdata.preprocessing.pipeline import prepare
from mrhdata.preprocessing.regrid import crop_or_pad
from mrhdata.registration.resampling import coarsened, resample

RESULTS = Path(__file__).parents[1] / "results"
MEMORY = "2 GB"
SIZES = {"256 x 256 x 256, 1 mm": (256, 1.0), "400 x 400 x 400, 0.5 mm": (400, 0.5)}


def head(data: Path, size: int, spacing: float) -> Any:
    """The head in the middle of a cube."""
    volume = mrhdata.read(data / "human-t1-whole" / "bet.nii.gz").astype(np.float32)
    return resample(volume, crop_or_pad(coarsened(volume.mrh.grid, spacing), (size,) * 3)).compute()


def equal_to_one_pass(model: Any, volume: Any, labels: np.ndarray) -> bool:
    """Whether the labels are those of one pass over the prepared volume, which lies on the same grid."""
    prepared = prepare({model.spec.channels[0]: volume}, model.spec.prepare)
    prepared = {name: v.compute() for name, v in prepared.items()}
    trunk = TrunkModel(model, prepared, memory=10**11, device="cpu", precision="float32")
    values = best_view(trunk).values
    with torch.inference_mode():
        scores = model(torch.from_numpy((values - 0.5) / 0.25)[None])[0]
    inside = tuple(slice(a, a + n) for a, n in zip(trunk.start, labels.shape, strict=True))
    return bool((np.array(model.spec.labels)[scores.argmax(0).numpy()[inside]] == labels).all())


def measure(data: Path, network: str, size: int, spacing: float, check: bool) -> dict[str, Any]:
    """The time and the memory of one head in this process."""
    volume = head(data, size, spacing)
    if network == "brainchop":
        peer = brainchop.read_network(data / "meshnet" / "model20chan3cls")
        start = time.perf_counter()
        labels = brainchop.segment(peer, volume).values
    else:
        model = models.load(network)
        start = time.perf_counter()
        labels = segment(model, volume, memory=MEMORY, force=True, progress=False).values
    seconds = time.perf_counter() - start
    row = {"seconds": seconds, "GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
    return row | ({"equal to one pass": equal_to_one_pass(model, volume, labels)} if check else {})


def main() -> None:
    """All heads, each in a process; with --one, the measurement of one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--network", default="synth-tissue")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--one", nargs=3, metavar=("NETWORK", "SIZE", "SPACING"), help="for the processes of this study"
    )
    parser.add_argument("--check", action="store_true", help="compare with one pass, which takes much memory")
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(options.threads)
        network, size, spacing = options.one
        print(json.dumps(measure(options.data, network, int(size), float(spacing), options.check)))
        return
    rows = []
    for name, (size, spacing) in SIZES.items():
        for network in (options.network, "brainchop"):
            words = [sys.executable, __file__, str(options.data), "--threads", str(options.threads), "--one", network]
            words += [str(size), str(spacing), *(["--check"] if network != "brainchop" and spacing == 1 else [])]
            environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
            answer = subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout
            row = json.loads(answer.splitlines()[-1])
            texts = {k: f"{v:.1f}" if isinstance(v, float) else str(v) for k, v in row.items()}
            rows.append({"head": name, "network": Path(network).name, **texts})
    text = f"""# Whole heads

Threads {options.threads}; budget of mrhdata {MEMORY}. Peak memory of the process, with Python and PyTorch. mrhdata also
predicts the Dice of its labels. Brainchop's network is computed by PyTorch, in one pass, on 256 x 256 x 256 voxels of
1 mm for both heads.

{markdown(rows)}
"""
    (RESULTS / "whole_heads.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
