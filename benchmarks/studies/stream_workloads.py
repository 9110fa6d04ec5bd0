"""Predictions that measure memory, a long stream or the network only, in their own process; run by stream.py.

Prints JSON.

    python benchmarks/studies/stream_workloads.py {depth,stream,copy,detector,sparse} FOLDER [NUMBER]
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import zarr
import zarrs  # noqa: F401
from patch_readers import Peak
from stream_methods import THREADS

import mrhdata
import mrhdata.inference.predictor
from mrhdata._runtime.atomic import remove
from mrhdata.inference.output import Output
from mrhdata.inference.strategies.network import InferenceModel
from mrhdata.io import omezarr
from mrhdata.io.omezarr.writer import Writer, open_array
from mrhdata.volume.construct import place

MEMORY = "256 MB"
#: Budget of the detector, whose first layer makes 512 bytes of every voxel.
DETECTOR_MEMORY = "1 GB"
#: Voxels of the part that the detector is run on.
PART = (128, 512, 512)


class Planes:
    """A volume of any size: noise about structure, the same 64 planes shifted."""

    dtype = np.dtype(np.uint16)

    def __init__(self, shape):
        rng = np.random.default_rng(0)
        smooth = 400 * np.sin(np.arange(shape[1]) / 50)[:, None] * np.sin(np.arange(shape[2]) / 70)
        noise = rng.standard_normal((64, *shape[1:]), dtype=np.float32) * 30
        self._base = (1000 + smooth + noise).astype(np.uint16)

    def blocks(self, boxes):
        """Blocks of it."""
        for box in boxes:
            z, y, x = box
            planes = [np.roll(self._base[i % 64], i // 64, axis=0)[y, x] for i in range(z.start, z.stop)]
            yield np.stack(planes)


def write(folder, shape, levels=None):
    """Such a volume as a store, which appears when it is complete."""
    target = folder / f"planes-{'x'.join(map(str, shape))}.zarr"
    if not target.exists():
        import dask.array as da

        draft = target.with_name(f"draft-{target.name}")
        remove(draft)
        volume = place(da.zeros(shape, dtype=np.uint16, chunks=-1), "zyx", (1, 1, 1), np.eye(4), space="scanner")
        volume = volume.rename("planes")
        made, name = omezarr.create(volume, draft)
        paths = [draft / omezarr.level_path(n, name) for n in range(len(made))]
        Writer(Planes(shape), made, paths, "image", 500_000_000).run({}, lambda *_: None)
        omezarr.finish(volume, draft)
        draft.rename(target)
    return mrhdata.read(target)


def depth(folder, planes):
    """Peak of one convolution over volumes of any depth."""
    volume = write(folder, (planes, 512, 512))
    torch.manual_seed(0)
    net = torch.nn.Conv3d(1, 1, 3, padding=1).requires_grad_(False)
    # What is made once, whatever the volume.
    mrhdata.predict(net, volume.isel(z=slice(0, 4)).load(), folder / "warm.zarr", mode="dense", progress=False)
    remove(folder / "warm.zarr")
    found = {}
    for mode in ("dense", "patch"):
        peak, start = Peak(children=False), time.perf_counter()
        windows = mrhdata.inference.strategies.sliding_window.SlidingWindow(shape=(64, 64, 64))
        out = folder / f"depth-{mode}.zarr"
        mrhdata.predict(net, volume, out, mode=mode, windows=windows, memory=MEMORY, progress=False)
        found[mode] = {"peak_mb": peak.megabytes(), "seconds": round(time.perf_counter() - start, 1)}
        remove(out)
    return found


def stream(folder, planes):
    """The trivial network: every voxel as it is, uint16 to uint16."""
    volume = write(folder, (planes, 2500, 2500))
    out = folder / "stream.zarr"
    remove(out)
    peak, start = Peak(children=False), time.perf_counter()
    output = Output(dtype="uint16", value_range=(0, 65535))
    mrhdata.predict(torch.nn.Identity(), volume, out, mode="dense", output=output, memory=MEMORY, progress=False)
    seconds = time.perf_counter() - start
    found = {"seconds": round(seconds, 1), "peak_mb": peak.megabytes(), "bytes": volume.nbytes}
    found["mb_per_second"] = round(volume.nbytes / 1e6 / seconds)
    rng = np.random.default_rng(0)
    places = [int(rng.integers(0, planes)) for _ in range(3)]
    mapped = mrhdata.read(out)
    found["exact"] = all(bool((mapped[z].values == volume[z].values).all()) for z in places)
    remove(out)
    return found


def copy(folder, planes):
    """Only read and write the same chunks with zarrs, shard by shard, of the finest level and of all."""
    volume = write(folder, (planes, 2500, 2500))
    out = folder / "copy.zarr"
    remove(out)
    made, name = omezarr.create(volume, out)
    start, found = time.perf_counter(), {"bytes": volume.nbytes}
    for number, level in enumerate(made):
        source = open_array(folder / f"planes-{planes}x2500x2500.zarr" / omezarr.level_path(number, "planes"))
        target = open_array(out / omezarr.level_path(number, name))
        _copied(source, target, level)
        seconds = time.perf_counter() - start
        what = {"seconds": round(seconds, 1), "mb_per_second": round(volume.nbytes / 1e6 / seconds)}
        found["all levels" if number else "finest level"] = what
    remove(out)
    return found


def _copied(source, target, level):
    def shard(place):
        box = tuple(slice(i * s, (i + 1) * s) for i, s in zip(place, level.shards, strict=True))
        target[box] = source[box]

    counts = [-(-n // s) for n, s in zip(level.shape, level.shards, strict=True)]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(shard, np.ndindex(*counts)))


def detector_network():
    """Receptive field 12, stride 2."""
    torch.manual_seed(0)
    nn = torch.nn
    layers = [nn.Conv3d(1, 64, 3), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(64, 64, 3), nn.ReLU(), nn.Conv3d(64, 64, 3)]
    layers += [nn.ReLU(), nn.Conv3d(64, 150, 1), nn.ReLU(), nn.Conv3d(150, 2, 1)]
    return nn.Sequential(*layers).requires_grad_(False).eval()


def detector(folder, planes):
    """Time the detector over a part of the stream, and only its network in the same boxes, three times each."""
    volume = write(folder, (planes, 2500, 2500))[: PART[0], 300 : 300 + PART[1], 300 : 300 + PART[2]]
    mrhdata.write(volume, folder / "part.zarr", overwrite=True)
    net = detector_network()
    out, part = folder / "detector.zarr", mrhdata.read(folder / "part.zarr")
    values = np.asarray(part.values, np.float32)
    network, boxes = InferenceModel(net, "cpu", "float32"), _boxes(folder, net)
    whole, alone, own = [], [], []
    peak = Peak(children=False)
    for _ in range(3):
        remove(out)
        start = time.perf_counter()
        mrhdata.predict(net, part, out, mode="dense", memory=DETECTOR_MEMORY, progress=False)
        whole.append(time.perf_counter() - start)
        start = time.perf_counter()
        for box in boxes:
            network(np.ascontiguousarray(values[box])[None, None])
        alone.append(time.perf_counter() - start)
        start = time.perf_counter()
        with torch.inference_mode():
            for box in boxes:
                net(torch.from_numpy(values[box].copy())[None, None])
        own.append(time.perf_counter() - start)
    remove(out)
    found = {"seconds": whole, "network only": alone, "in PyTorch's own layout": own}
    found = {name: [round(s, 1) for s in runs] for name, runs in found.items()}
    # Ratios within one repetition, because the machine's speed changes between repetitions.
    over = {
        "over the network only": np.median(np.divide(whole, alone)) - 1,
        "over PyTorch's own layout": np.median(np.divide(whole, own)) - 1,
    }
    found |= {name: round(float(share), 3) for name, share in over.items()} | {"peak_mb": peak.megabytes()}
    return found | {"mvoxels_per_second": round(np.prod(PART) / 1e6 / float(np.median(whole)), 3)}


def _boxes(folder, net):
    """Return the boxes that the detector reads."""
    from mrhdata.inference.region import RegionOfInterest
    from mrhdata.inference.strategies.dense import DenseStrategy
    from mrhdata.models.receptive_field import receptive_field_of
    from mrhdata.patching import sources
    from mrhdata.volume.box import Box

    volume = mrhdata.read(folder / "part.zarr")
    read = sources.one_grid(volume, (1, 1, 1), None, False)
    memory = int(mrhdata.inference.predictor._TENSORS * 1e9)
    dense = DenseStrategy(
        InferenceModel(net, "cpu", "float32"),
        receptive_field_of(net, 1),
        PART,
        1,
        RegionOfInterest(None, volume, read),
        memory,
    )
    tasks = dense.tasks(Box.of((0, 0, 0), dense.shape), None)
    return [box.within() for task in tasks for box in task.boxes]


def sparse(folder, planes):
    """A volume of a terabyte of which two blocks are stored: planned, and its stored part mapped."""
    shape = (planes, 10_000, 10_000)
    store = folder / "sparse.zarr"
    remove(store)
    import dask.array as da

    volume = place(da.zeros(shape, dtype=np.uint16, chunks=-1), "zyx", (1, 1, 1), np.eye(4), space="scanner")
    _, name = omezarr.create(volume.rename("sparse"), store)
    omezarr.finish(volume.rename("sparse"), store)
    array = zarr.open_array(store / omezarr.level_path(0, name), mode="r+")
    rng = np.random.default_rng(0)
    filled = [(128, 256, 512), (planes // 2 // 128 * 128, 5120, 7680)]
    for z, y, x in filled:
        array[z : z + 128, y : y + 256, x : x + 256] = rng.integers(1, 4000, (128, 256, 256))
    volume, out = mrhdata.read(store), folder / "sparse-map.zarr"
    remove(out)
    first = []

    def told(done, total):
        if not first:
            first.append(time.perf_counter() - start)

    peak, start = Peak(children=False), time.perf_counter()
    net = torch.nn.Conv3d(1, 1, 3, padding=1).requires_grad_(False)
    mapped = mrhdata.predict(net, volume, out, mode="dense", mask="stored", memory=MEMORY, progress=told)
    found = {
        "terabytes": round(volume.nbytes / 1e12, 2),
        "seconds_to_first_block": round(first[0], 2),
        "seconds": round(time.perf_counter() - start, 1),
        "peak_mb": peak.megabytes(),
    }
    z, y, x = filled[1]
    found["mapped"] = bool((mapped[z + 5, y + 5 : y + 20, x + 5].values != 0).all())
    remove(out)
    remove(store)
    return found


WORKLOADS = {"depth": depth, "stream": stream, "copy": copy, "detector": detector, "sparse": sparse}

if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    print(json.dumps(WORKLOADS[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))))
