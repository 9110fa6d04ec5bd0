"""Workloads that no other tool has, each in its own process; run by patches.py. Prints JSON.

Run: python benchmarks/studies/patch_workloads.py {channels,channels-loop,pair,single,balanced} FOLDER PATCHES
"""

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from patch_readers import BATCH, BUDGET, PATCH, Peak, consume, mrhdata_imports

import mrhdata
from mrhdata.patching.samplers import ClassBalanced, Uniform

#: Batches of small patches, and the budget that holds their volume.
SMALL_BATCH, SMALL_BUDGET = 128, 1_000_000_000
EPOCHS = 5


def planned(folder):
    """3 x 3 coronal patches of all channels within the mask, every sixth voxel along the others."""
    volume, mask = (mrhdata.read(folder / f"{name}.zarr") for name in ("channels", "mask"))
    return mrhdata.patches(volume, shape=3, stride=6, plane="coronal", mask=mask, memory=SMALL_BUDGET)


def channels(folder, n):
    """First epoch and later ones of the loader."""
    begun = time.perf_counter()
    p = planned(folder)
    setup = time.perf_counter() - begun
    loader = p.loader(SMALL_BATCH, seed=0)
    rates = []
    for _ in range(EPOCHS):
        count, seconds, _, last = consume(loader)
        rates.append(count / seconds)
    exact = _same(p, folder, p.plan(SMALL_BATCH).indices(True, 0, EPOCHS - 1, SMALL_BATCH)[-len(last) :], last.numpy())
    assert p.plan(SMALL_BATCH).in_memory
    steady = round(statistics.median(rates[1:]))
    return {
        "patches": len(p),
        "setup_seconds": round(setup, 3),
        "first_epoch": round(rates[0]),
        "steady": steady,
        **exact,
    }


def _same(p, folder, rows, batch):
    values = mrhdata.read(folder / "channels.zarr").values
    low = p.positions[rows]
    boxes = [tuple(slice(a, a + n) for a, n in zip(place, p.shape, strict=True)) for place in low]
    return {
        "last_batch_exact": all(bool((values[(slice(None), *b)] == x).all()) for b, x in zip(boxes, batch, strict=True))
    }


def channels_loop(folder, n):
    """Slices of the array in memory, cast into one batch."""
    p = planned(folder)
    values = mrhdata.read(folder / "channels.zarr").values
    out = np.empty((SMALL_BATCH, len(values), *p.shape), np.float32)
    rates = []
    for epoch in range(EPOCHS):
        places = np.random.default_rng(epoch).permutation(p.positions)
        begun = time.perf_counter()
        for i, (z, y, x) in enumerate(places):
            out[i % SMALL_BATCH] = values[:, z : z + p.shape[0], y : y + p.shape[1], x : x + p.shape[2]]
        rates.append(len(places) / (time.perf_counter() - begun))
    return {"patches": len(p), "first_epoch": round(rates[0]), "steady": round(statistics.median(rates[1:]))}


def delivered(loader):
    """Patches and bytes that a loader hands out, and seconds."""
    begun = time.perf_counter()
    count = size = 0
    for batch in loader:
        inputs, *targets = batch if isinstance(batch, tuple) else (batch,)
        tensors = [*(inputs.values() if isinstance(inputs, dict) else [inputs]), *targets]
        count, size = count + len(tensors[0]), size + sum(t.nbytes for t in tensors)
    seconds = time.perf_counter() - begun
    rate = {"patches_per_second": round(count / seconds, 1), "mb_per_second": round(size / seconds / 1e6, 1)}
    return {"patches": count, **rate}


def _several(folder, n, both):
    a, b, target = (mrhdata.read(folder / f"{name}.zarr") for name in ("a", "b", "target"))
    options = {"shape": PATCH, "sampler": Uniform(n), "memory": BUDGET}
    peak = Peak(False)
    if both:
        p = mrhdata.patches({"a": a, "b": b}, target=target, grids="native", **options)
    else:
        p = mrhdata.patches(a, **options)
    found = delivered(p.loader(BATCH, seed=0))
    plan = p.plan(BATCH)
    decoded = plan.loads(plan.indices(True, 0, 0, BATCH), BATCH).size.sum() / len(p) / 1e6
    return {**found, "peak_mb": peak.megabytes(), "decoded_mb_per_patch": round(float(decoded), 3)}


def pair(folder, n):
    """Two inputs and a target at twice their spacing."""
    return _several(folder, n, True)


def single(folder, n):
    """Measure only the first volume, at the same density."""
    return _several(folder, n, False)


def balanced(folder, n):
    """Patches drawn by class, from labels that are read for it and from the counts that are kept then."""
    (folder / "labels.zarr.index.json").unlink(missing_ok=True)
    volume = mrhdata.read(folder / "labels.zarr")
    peak = Peak(False)
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        p = mrhdata.patches(volume, shape=PATCH, sampler=ClassBalanced(n, volume), memory=BUDGET)
        seconds.append(round(time.perf_counter() - begun, 2))
    chosen_mb = peak.megabytes()
    found = delivered(p.loader(BATCH, seed=0))
    classes = np.unique(p.classes, return_counts=True)[1].tolist()
    times = {"index_seconds": seconds[0], "index_kept_seconds": seconds[1]}
    return {**found, **times, "choosing_peak_mb": chosen_mb, "peak_mb": peak.megabytes(), "of_each_class": classes}


WORKLOADS = {f.__name__.replace("_", "-"): f for f in (channels, channels_loop, pair, single, balanced)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    mrhdata_imports()
    print(json.dumps({"workload": sys.argv[1], **WORKLOADS[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))}))
