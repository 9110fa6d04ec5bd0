"""Read random patches with one reader in its own process; run by patches.py, in the reader's environment.

Prints JSON: patches per second, seconds to the first batch, the peak memory minus the memory after
the imports, and the order of patches. Readers without prefetching threads have two processes.

    python benchmarks/studies/patch_readers.py READER FOLDER WORKLOAD N
"""

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

BATCH, CHUNK, PATCH = 64, 64, 32
BUDGET = 256_000_000
#: Reads of tensorstore that wait at one time.
IN_FLIGHT = 16
#: Patches that the queue of torchio holds.
QUEUE = 2048
WORKERS = 2


def du(folder):
    """Bytes of all files of a folder."""
    return sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())


def memory_of(children=False):
    """Bytes now and at the peak: resident of this process, or proportional of it and its children now."""
    if children:
        found = [os.getpid(), *_children()]
        now = sum(_kilobytes(f"/proc/{pid}/smaps_rollup", "Pss") for pid in found) * 1024
        return now, now
    now, peak = (_kilobytes("/proc/self/status", key) * 1024 for key in ("VmRSS", "VmHWM"))
    return now, peak


def _kilobytes(path, key):
    try:
        with open(path) as file:
            return next(int(line.split()[1]) for line in file if line.startswith(f"{key}:"))
    except (OSError, StopIteration):
        # A process that has just ended.
        return 0


def _children():
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found += (task / "children").read_text().split()
    return found


class Peak:
    """The peak of memory above what it is now, of this process or of it and its children."""

    def __init__(self, children):
        self._children, self._stop, self._peak = children, threading.Event(), 0
        Path("/proc/self/clear_refs").write_text("5")
        self._before = memory_of(children)[0]
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if children:
            self._thread.start()

    def _watch(self):
        while not self._stop.wait(0.1):
            self._peak = max(self._peak, memory_of(True)[0])

    def megabytes(self):
        """Now that it is over."""
        self._stop.set()
        if self._children:
            self._thread.join()
        return round((max(self._peak, memory_of(self._children)[1]) - self._before) / 1e6)


def slices(start):
    """The box of a patch."""
    return tuple(slice(int(a), int(a) + PATCH) for a in start)


def megabytes_touched(places, edges=(CHUNK,) * 3):
    """Megabytes of the chunks that a patch reaches into, on average: what a reader that keeps nothing decodes."""
    edges = np.array(edges)
    chunks = np.prod((places + PATCH - 1) // edges - places // edges + 1, axis=1).mean()
    return float(chunks * np.prod(edges) * 2 / 1e6)


class Slicing(torch.utils.data.Dataset):
    """Whole batches of slices of an array that each worker opens for itself."""

    def __init__(self, opened, places):
        self._opened, self._places, self._array = opened, places, None

    def __len__(self):
        return -(-len(self._places) // BATCH)

    def __getitem__(self, number):
        if self._array is None:
            self._array = self._opened()
        places = self._places[number * BATCH : (number + 1) * BATCH]
        out = np.empty((len(places), 1, PATCH, PATCH, PATCH), np.float32)
        for i, start in enumerate(places):
            out[i, 0] = self._array[slices(start)]
        return torch.from_numpy(out)


def sliced(opened, places):
    """Batches of slices by two processes."""
    return torch.utils.data.DataLoader(Slicing(opened, places), batch_size=None, num_workers=WORKERS)


def array_in_memory(folder, workload, places):
    """Slice and cast a NumPy array, into one batch."""
    full = np.load(folder / "full.npy")

    def batches():
        out = np.empty((BATCH, 1, PATCH, PATCH, PATCH), np.float32)
        for low in range(0, len(places), BATCH):
            some = places[low : low + BATCH]
            for i, start in enumerate(some):
                out[i, 0] = full[slices(start)]
            yield torch.from_numpy(out[: len(some)])

    return Again(batches), lambda: (places, 0.0)


class Again:
    """Iterable that can be iterated more than once."""

    def __init__(self, start):
        self._start = start

    def __iter__(self):
        return self._start()


def mrhdata_imports():
    """Import the modules of the first pass."""
    import mrhdata
    import mrhdata.io.omezarr
    import mrhdata.patching.loader

    tiny = mrhdata.volume.from_array(np.zeros((8, 8, 8), np.uint16), spacing=(1, 1, 1))
    list(mrhdata.patches(tiny, shape=4).loader(4))
    return mrhdata


def mrhdata_(folder, workload, places):
    """The loader, with a budget of 256 MB."""
    mrhdata = mrhdata_imports()
    volume = mrhdata.read(folder / "volume.zarr")
    at = None if workload == "grid" else mrhdata.samplers.Uniform(len(places))
    p = mrhdata.patches(volume, shape=PATCH, sampler=at, memory=BUDGET)

    def after():
        if not np.array_equal(np.unique(p.positions, axis=0), np.unique(places, axis=0)):
            raise SystemExit("the positions are not those of the others")
        plan = p.plan(BATCH)
        rows = plan.indices(True, 0, 1, BATCH)
        return p.positions[rows], float(plan.loads(rows, BATCH).size.sum()) / len(rows) / 1e6

    return p.loader(BATCH, seed=0), after


def tensorstore_(cache):
    """Reads in flight, with a cache of so many bytes."""

    def start(folder, workload, places):
        import tensorstore as ts

        limits = {"data_copy_concurrency": {"limit": 2}, "file_io_concurrency": {"limit": 2}}
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(folder / "volume.zarr" / "0")},
            "context": {"cache_pool": {"total_bytes_limit": cache}, **limits},
            "recheck_cached_data": "open",
        }
        store = ts.open(spec, read=True, open=True).result()

        def batches():
            waiting = [store[slices(start)].read() for start in places[:IN_FLIGHT]]
            for low in range(0, len(places), BATCH):
                length = min(BATCH, len(places) - low)
                out = np.empty((length, 1, PATCH, PATCH, PATCH), np.float32)
                for i in range(length):
                    out[i, 0] = waiting.pop(0).result()
                    for start in places[low + i + IN_FLIGHT : low + i + IN_FLIGHT + 1]:
                        waiting.append(store[slices(start)].read())
                yield torch.from_numpy(out)

        return batches(), lambda: (places, None if cache else megabytes_touched(places))

    return start


def zarr_python(folder, workload, places):
    """Slices of a zarr array."""
    import zarr

    opened = sliced(lambda: zarr.open_array(folder / "volume.zarr" / "0", mode="r"), places)
    return iter(opened), lambda: (places, megabytes_touched(places))


def blosc2_(folder, workload, places):
    """Slices of a Blosc2 file, memory-mapped."""
    import blosc2

    def opened():
        blosc2.set_nthreads(1)
        return blosc2.open(urlpath=str(folder / "volume.b2nd"), mode="r", dparams={"nthreads": 1}, mmap_mode="r")

    blocks = opened().blocks
    return iter(sliced(opened, places)), lambda: (places, megabytes_touched(places, blocks))


def xbatcher_(folder, workload, places):
    """The map-style data set of xbatcher over a Dask array, in the order of the others."""
    import dask
    import dask.array as da
    import xarray as xr
    import xbatcher.loaders.torch

    dask.config.set(scheduler="single-threaded")
    array = xr.DataArray(da.from_zarr(str(folder / "volume.zarr" / "0")), dims=("z", "y", "x"))
    generator = xbatcher.BatchGenerator(array, input_dims=dict.fromkeys("zyx", PATCH), preload_batch=False)
    steps = np.array(array.shape) // PATCH
    order = np.ravel_multi_index(tuple((places // PATCH).T), steps).tolist()
    data = xbatcher.loaders.torch.MapDataset(generator, transform=lambda x: torch.from_numpy(x.values.astype("f4")))
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, sampler=order, num_workers=WORKERS)
    return (batch[:, None] for batch in loader), lambda: (places, megabytes_touched(places))


def as_float(values):
    """The transform of zarrdataset."""
    return values.astype(np.float32)


def zarrdataset_(same_chunk):
    """Its grid of patches, a chunk at a time or across chunks."""

    def start(folder, workload, places):
        import random

        import zarrdataset as zds

        random.seed(0)
        torch.manual_seed(0)
        spec = zds.ImagesDatasetSpecs(
            filenames=str(folder / "volume.zarr"), data_group="0", source_axes="ZYX", axes="ZYX", transform=as_float
        )
        sampler = zds.PatchSampler(patch_size=dict.fromkeys("ZYX", PATCH))
        options = {"shuffle": True, "draw_same_chunk": same_chunk, "return_positions": True}
        data = zds.ZarrDataset([spec], patch_sampler=sampler, **options)
        init = zds.zarrdataset_worker_init_fn
        loader = torch.utils.data.DataLoader(data, batch_size=BATCH, num_workers=WORKERS, worker_init_fn=init)
        seen = []

        def batches():
            left = len(places)
            for where, batch in loader:
                seen.append(where[:, -3:, 0].numpy())
                yield batch[:, None]
                left -= len(batch)
                if left <= 0:
                    return

        return batches(), lambda: (np.concatenate(seen), None)

    return start


def torchio_(folder, workload, places):
    """The queue of torchio over the volume in memory; it draws its own positions."""
    import torchio as tio

    torch.manual_seed(0)
    full = torch.from_numpy(np.load(folder / "full.npy")[None])
    subject = tio.Subject(image=tio.ScalarImage(tensor=full))
    length = min(QUEUE, len(places))
    data = tio.SubjectsDataset([subject] * -(-len(places) // length))
    queue = tio.Queue(data, max_length=length, samples_per_volume=length, sampler=tio.UniformSampler(PATCH))
    seen = []

    def batches():
        for batch in tio.SubjectsLoader(queue, batch_size=BATCH, num_workers=0):
            seen.append(batch[tio.LOCATION][:, :3].numpy())
            yield batch["image"][tio.DATA].to(torch.float32)

    return batches(), lambda: (np.concatenate(seen), 0.0)


READERS = {
    "array in memory": array_in_memory,
    "mrhdata": mrhdata_,
    "tensorstore cache 0": tensorstore_(0),
    "tensorstore cache 256 MB": tensorstore_(BUDGET),
    "zarr-python slice": zarr_python,
    "xbatcher": xbatcher_,
    "zarrdataset draw_same_chunk": zarrdataset_(True),
    "zarrdataset across chunks": zarrdataset_(False),
    "blosc2 (nnU-Net style)": blosc2_,
    "torchio Queue": torchio_,
}
#: These have processes of their own.
TREES = {
    "zarr-python slice",
    "xbatcher",
    "zarrdataset draw_same_chunk",
    "zarrdataset across chunks",
    "blosc2 (nnU-Net style)",
}
#: These are measured on a second pass of the same process, like those that read one volume for hours.
TWICE = {"array in memory", "mrhdata"}
#: What each imports, so that it is not measured.
IMPORTS = {
    "tensorstore": ["tensorstore"],
    "zarr-python": ["zarr"],
    "xbatcher": ["dask.array", "xarray", "zarr", "xbatcher.loaders.torch"],
    "zarrdataset": ["zarrdataset"],
    "blosc2": ["blosc2"],
    "torchio": ["torchio"],
}


def randomness(order):
    """Chunks per batch, distance of one patch to the next, and how far batches drift through the volume.

    Drift is the variance of the mean positions of batches, as a multiple of that of shuffled batches.
    """
    batches = [order[i : i + BATCH] for i in range(0, len(order) - BATCH + 1, BATCH)]
    means = np.array([b.mean(axis=0) for b in batches])
    expected = order.var(axis=0).sum() / BATCH * (len(order) - BATCH) / (len(order) - 1)
    return {
        "chunks_per_batch": round(float(np.mean([len(np.unique(b // CHUNK, axis=0)) for b in batches])), 1),
        "voxels_to_next": round(float(np.linalg.norm(np.diff(order, axis=0), axis=1).mean()), 1),
        "drift": round(float(means.var(axis=0).sum() / expected), 2) if expected else None,
    }


def consume(batches):
    """Draw all batches: patches, seconds, seconds to the first batch, the last batch."""
    begun = time.perf_counter()
    count, first, last = 0, None, None
    for last in batches:
        count += len(last)
        first = time.perf_counter() - begun if first is None else first
        assert last.dtype == torch.float32
    return count, time.perf_counter() - begun, first, last


def convert_blosc2(folder):
    """A Blosc2 copy of the volume, with the codec and blocks of nnU-Net: seconds and size."""
    import blosc2
    import zarr

    source = zarr.open_array(folder / "volume.zarr" / "0", mode="r")
    begun = time.perf_counter()
    parameters = {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": WORKERS}
    layout = {"chunks": (CHUNK,) * 3, "blocks": (16, 16, 32), "cparams": parameters}
    path = folder / "volume.b2nd"
    out = blosc2.empty(source.shape, dtype=np.uint16, urlpath=str(path), mode="w", **layout)
    for low in range(0, source.shape[0], CHUNK):
        out[low : low + CHUNK] = source[low : low + CHUNK]
    seconds = time.perf_counter() - begun
    print(json.dumps({"seconds": round(seconds, 1), "megabytes": round(path.stat().st_size / 1e6)}))


def main(reader, folder, workload, n):
    """Draw the patches, and print what it took."""
    folder = Path(folder)
    places = np.load(folder / f"positions-{workload}.npy")[: int(n)]
    for name in IMPORTS.get(reader.split()[0], []):
        __import__(name)
    if reader == "mrhdata":
        mrhdata_imports()
    torch.set_num_threads(1)
    for path in (folder / "volume.zarr" / "0").iterdir():
        path.read_bytes()
    peak = Peak(reader in TREES)
    begun = time.perf_counter()
    batches, after = READERS[reader](folder, workload, places)
    setup = time.perf_counter() - begun
    count, seconds, first, last = consume(batches)
    first_pass = round(count / seconds, 1)
    if reader in TWICE:
        count, seconds, first, last = consume(batches)
    megabytes = peak.megabytes()
    order, decoded = after()
    full = np.load(folder / "full.npy", mmap_mode="r")
    expected = np.stack([full[slices(start)] for start in order[count - len(last) : count]])
    result = {
        "reader": reader,
        "workload": workload,
        "patches": count,
        "patches_per_second": round(count / seconds, 1),
        "first_pass": first_pass,
        "first_batch_seconds": round(first, 3),
        "setup_seconds": round(setup, 3),
        "peak_mb": megabytes,
        "decoded_mb_per_patch": None if decoded is None else round(decoded, 3),
        "last_batch_exact": bool((last.numpy()[:, 0] == expected).all()),
        **randomness(order[:count]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1] == "convert-blosc2":
        convert_blosc2(Path(sys.argv[2]))
    else:
        main(*sys.argv[1:])
