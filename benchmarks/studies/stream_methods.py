"""Run one network over one volume with one method, in its own process; run by stream.py.

Prints JSON: seconds, the peak memory minus the memory after the imports, and the difference
from the truth where all methods should agree with it.

    python benchmarks/studies/stream_methods.py METHOD FOLDER NETWORK
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from patch_readers import Peak

WINDOW, OVERLAP, BUDGET = 64, 0.5, "256 MB"
THREADS = 2


def network(name):
    """The same everywhere: one convolution, or nothing at all."""
    if name == "identity":
        return torch.nn.Identity()
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, 1, 3, padding=1).requires_grad_(False).eval()


def array(folder):
    """The volume in memory, (1, 1, z, y, x)."""
    return torch.from_numpy(np.load(folder / "volume.npy").astype(np.float32))[None, None]


def monai_memory(folder, net):
    """Sliding window with everything in memory."""
    from monai.inferers import sliding_window_inference

    x = yield
    x = array(folder)
    yield sliding_window_inference(x, (WINDOW,) * 3, 4, net, overlap=OVERLAP, mode="gaussian")[0, 0].numpy()


def monai_store(folder, net):
    """Patches merged in a Zarr array; their weights are all one."""
    import zarr
    from monai.inferers import PatchInferer, ZarrAvgMerger

    yield
    values = np.load(folder / "volume.npy", mmap_mode="r")
    shape = values.shape
    step = int(WINDOW * (1 - OVERLAP))
    starts = [[*range(0, n - WINDOW, step), n - WINDOW] for n in shape]

    def patches():
        for z in starts[0]:
            for y in starts[1]:
                for x in starts[2]:
                    box = values[z : z + WINDOW, y : y + WINDOW, x : x + WINDOW]
                    yield torch.from_numpy(box.astype(np.float32))[None, None], (z, y, x)

    out = folder / f"monai-{os.getpid()}.zarr"
    infer = PatchInferer(
        splitter=None,
        merger_cls=ZarrAvgMerger,
        batch_size=4,
        merged_shape=(1, 1, *shape),
        chunks=(1, 1, 64, 64, 64),
        store=str(out),
        thread_locking=False,
    )
    merged = infer(patches(), net)
    yield np.asarray(zarr.open_array(str(out), mode="r")[0, 0]) if out.exists() else np.asarray(merged[0, 0])


def torchio_grid(folder, net):
    """Grid sampler and aggregator, Hann."""
    import torchio

    yield
    subject = torchio.Subject(image=torchio.ScalarImage(tensor=array(folder)[0]))
    sampler = torchio.inference.GridSampler(subject, WINDOW, int(WINDOW * OVERLAP))
    aggregator = torchio.inference.GridAggregator(sampler, overlap_mode="hann")
    loader = torchio.SubjectsLoader(sampler, batch_size=4)
    with torch.inference_mode():
        for batch in loader:
            aggregator.add_batch(net(batch["image"][torchio.DATA]), batch[torchio.LOCATION])
    yield aggregator.get_output_tensor()[0].numpy()


def ours(mode):
    """Out of a store, into a store."""

    def method(folder, net):
        import mrhdata
        from mrhdata.inference.strategies.sliding_window import SlidingWindow

        volume = mrhdata.read(folder / "volume.zarr")
        # Imports are not counted, of any method: among these is what PyTorch imports when it is asked for shapes.
        import torch.fx.experimental.symbolic_shapes  # noqa: F401
        import zarrs  # noqa: F401

        import mrhdata.inference.predictor
        from mrhdata.io.omezarr import writer  # noqa: F401

        yield
        windows = SlidingWindow(shape=(WINDOW,) * 3, overlap=OVERLAP, blend="gaussian")
        out = folder / f"ours-{mode}-{os.getpid()}.zarr"
        found = mrhdata.predict(
            net, volume, out, mode=mode, windows=windows, memory=BUDGET, device="cpu", progress=False
        )
        yield found

    return method


METHODS = {
    "MONAI, in memory": monai_memory,
    "MONAI, Zarr merger": monai_store,
    "torchio": torchio_grid,
    "mrhdata, windows": ours("sliding_window"),
    "mrhdata, dense": ours("dense"),
}


def main():
    """Run one method; the answer is looked at after the clock has stopped."""
    torch.set_num_threads(THREADS)
    name, folder, net = sys.argv[1], Path(sys.argv[2]), network(sys.argv[3])
    run = METHODS[name](folder, net)
    with torch.inference_mode():
        next(run)
        peak, start = Peak(children=False), time.perf_counter()
        answer = next(run)
        seconds = time.perf_counter() - start
    megabytes = peak.megabytes()
    answer = np.asarray(answer)
    wanted = np.load(folder / "volume.npy").astype(np.float32)
    if sys.argv[3] != "identity":
        with torch.inference_mode():
            wanted = net(torch.from_numpy(wanted[:80])[None, None])[0, 0, :64].numpy()
        answer = answer[:64]
    off = np.abs(answer - wanted)
    print(
        json.dumps(
            {
                "seconds": round(seconds, 2),
                "peak_mb": round(megabytes),
                "largest_error": float(off.max()),
                "median_error": float(np.median(off)),
                "largest": float(np.abs(wanted).max()),
            }
        )
    )


if __name__ == "__main__":
    main()
