"""Volumes, positions and environments for patches.py; existing ones are reused."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import dask.array as da
import numcodecs
import numpy as np
import zarr
from patch_readers import BATCH, CHUNK, PATCH, du
from scipy.ndimage import gaussian_filter, zoom

import mrhdata
from mrhdata.patching.samplers import Uniform
from mrhdata.volume.construct import from_array

HERE = Path(__file__).parent
#: Edge of the volume, and shapes of the others.
FULL = {"edge": 768, "pair": (512, 512, 384), "small": (67, 80, 130, 110), "labels": (1280, 1440, 1408)}
QUICK = {"edge": 192, "pair": (128, 128, 128), "small": (5, 40, 60, 50), "labels": (256, 256, 256)}


def requirements(name):
    """Return the requirements of an environment."""
    return (HERE.parent / f"requirements-{name}.txt").read_text()


def environment(folder, name):
    """Return the Python of an environment with pinned requirements, or the reason of its failure."""
    wanted = requirements(name)
    place = folder / f"environment-{name}"
    python, stamp = place / "bin" / "python", place / "installed.txt"
    if stamp.is_file() and stamp.read_text() == wanted:
        return str(python), None
    error = ""
    for _ in range(2):
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "-r", str(HERE.parent / f"requirements-{name}.txt")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        except subprocess.TimeoutExpired:
            error = "pip took longer than 900 seconds"
            continue
        if not done.returncode:
            stamp.write_text(wanted)
            return str(python), None
        error = done.stderr[-500:]
    return None, error


def once(path, make):
    """Make a file or folder unless it is there; it appears under its name when it is complete."""
    if path.exists():
        return
    draft = path.with_name(f"draft-{path.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.unlink(missing_ok=True)
    make(draft)
    draft.rename(path)


def slabs(shape, seed, depth=CHUNK):
    """Smooth structure about 2000 +- 600 with noise of 60, slab by slab along the first axis."""
    rng = np.random.default_rng(seed)
    edge = 100
    coarse = gaussian_filter(rng.standard_normal((edge,) * 3, dtype=np.float32), 2)
    coarse /= coarse.std()
    for low in range(0, shape[0], depth):
        at = np.arange(low, min(low + depth, shape[0])) * (edge - 1) / shape[0]
        below, part = at.astype(int), (at % 1).astype(np.float32)[:, None, None]
        planes = coarse[below] * (1 - part) + coarse[below + 1] * part
        smooth = zoom(planes, (1, shape[1] / edge, shape[2] / edge), order=1)
        noise = rng.standard_normal(smooth.shape, dtype=np.float32) * 60
        yield low, np.clip(2000 + 600 * smooth + noise, 0, 65535).astype(np.uint16)


def volume(shape, seed):
    """All slabs as one array."""
    return np.concatenate([slab for _, slab in slabs(shape, seed)])


def main_volume(folder, edge):
    """The volume as Zarr 2 within OME-Zarr 0.4, and as .npy; how much the store is compressed."""
    store = folder / "volume.zarr"
    shape = (edge,) * 3

    def written(draft):
        group = zarr.open_group(draft, mode="w", zarr_format=2)
        blosc = numcodecs.Blosc("zstd", 3, numcodecs.Blosc.SHUFFLE)
        array = group.create_array("0", shape=shape, chunks=(CHUNK,) * 3, dtype="u2", compressors=blosc)
        axes = [{"name": d, "type": "space", "unit": "millimeter"} for d in "zyx"]
        scale = [{"type": "scale", "scale": [0.01] * 3}]
        datasets = [{"path": "0", "coordinateTransformations": scale}]
        group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
        for low, slab in slabs(shape, 0):
            array[low : low + len(slab)] = slab

    def as_npy(draft):
        array = zarr.open_group(store, mode="r")["0"]
        out = np.lib.format.open_memmap(draft, mode="w+", dtype=np.uint16, shape=shape)
        for low in range(0, edge, CHUNK):
            out[low : low + CHUNK] = array[low : low + CHUNK]
        out.flush()

    once(store, written)
    once(folder / "full.npy", as_npy)
    ratio = edge**3 * 2 / du(store)
    if not 1.5 <= ratio <= 2.5:
        raise SystemExit(f"the volume is compressed {ratio:.2f} times, which is no longer like a microscope's")
    return round(ratio, 2)


def positions(folder, edge):
    """First voxels of the patches of every workload in random order, the same for all readers."""
    v = mrhdata.read(folder / "volume.zarr")
    whole = (edge // PATCH) ** 3
    counts = {"grid": whole, "uniform-1": whole, "uniform-4": 4 * whole}
    for name in counts:
        at = None if name == "grid" else Uniform(counts[name])
        found = mrhdata.patches(v, shape=PATCH, sampler=at, memory="256 MB").positions
        np.save(folder / f"positions-{name}.npy", np.random.default_rng(1).permutation(found))
    return counts


def small(folder, shape):
    """67 channels of an in-memory size, its mask, and how it is chunked."""
    rng = np.random.default_rng(2)
    store = folder / "channels.zarr"
    mask = np.zeros(shape[1:], np.uint8)
    mask[5:-5, 5:-5, 5:-5] = 1

    def written(draft):
        values = rng.integers(0, 4000, shape, dtype=np.uint16)
        mrhdata.write(from_array(values, dims="czyx", spacing=(0.1,) * 3), draft.with_suffix(".zarr"))

    once(store, written)
    once(folder / "mask.zarr", lambda draft: mrhdata.write(from_array(mask, spacing=(0.1,) * 3, kind="mask"), draft))
    return list(zarr.open_array(store / "scale0" / "image", mode="r").chunks)


def pair(folder, shape):
    """Two volumes, and a target at twice their spacing that begins half a voxel later."""
    half = tuple(n // 2 for n in shape)
    for seed, (name, lengths, step) in enumerate([("a", shape, 0.1), ("b", shape, 0.1), ("target", half, 0.2)]):
        affine = np.diag([step, step, step, 1.0])
        affine[:3, 3] = (step - 0.1) / 2

        def written(draft, seed=seed, lengths=lengths, affine=affine):
            mrhdata.write(from_array(volume(lengths, seed + 3), dims="zyx", affine=_zyx(affine)), draft)

        once(folder / f"{name}.zarr", written)


def _zyx(affine):
    """The affine of an array whose axes lie along world Z, Y, X."""
    turned = affine.copy()
    turned[:3, :3] = affine[:3, :3][:, ::-1]
    return turned


def labels(folder, shape):
    """Five classes in blobs, written a shard at a time."""
    coarse = gaussian_filter(np.random.default_rng(9).standard_normal([n // 8 for n in shape]), 3)
    classes = np.digitize(coarse, np.quantile(coarse, [0.7, 0.85, 0.95, 0.99])).astype(np.uint8)

    def block(small):
        return small.repeat(8, 0).repeat(8, 1).repeat(8, 2)

    def written(draft):
        parts = da.from_array(classes, chunks=(16, 32, 32))
        whole = parts.map_blocks(block, dtype=np.uint8, chunks=tuple(tuple(8 * n for n in c) for c in parts.chunks))
        mrhdata.write(from_array(whole, spacing=(0.01,) * 3, kind="labels"), draft)

    once(folder / "labels.zarr", written)
    return {
        "gigabytes": round(float(np.prod(shape)) / 1e9, 2),
        "voxels_of_each_class": (512 * np.bincount(classes.ravel())).tolist(),
    }


def blosc2_copy(folder, python):
    """The copy that the Blosc2 reader needs: seconds and megabytes, from the run that made it."""
    note = folder / "blosc2.json"
    if not note.is_file():
        command = [python, str(HERE / "patch_readers.py"), "convert-blosc2", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"error": done.stderr[-500:]}
        note.write_text(done.stdout.strip().splitlines()[-1])
    return json.loads(note.read_text())


def make(folder, sizes):
    """All volumes and positions; what there is to say about them."""
    begun = time.perf_counter()
    said = {
        "edge": sizes["edge"],
        "compressed_times": main_volume(folder, sizes["edge"]),
        "patches": positions(folder, sizes["edge"]),
        "channels_chunk": small(folder, sizes["small"]),
        "labels": labels(folder, sizes["labels"]),
        "batch": BATCH,
    }
    pair(folder, sizes["pair"])
    print(f"fixtures ready after {time.perf_counter() - begun:.0f} s", said, flush=True)
    return said
