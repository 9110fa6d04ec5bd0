"""Training steps that wait for the patches of one loader, in its own process; run by gpu.py.

A step sleeps, as a training step on a GPU leaves the processor free, so that the figures of a loader can be had without
one. Prints JSON: the loader's share of the time, steps per second, and peak memory with all child processes.

    python benchmarks/studies/gpu_loaders.py LOADER FOLDER MILLISECONDS SECONDS
"""

import json
import sys
import time
from pathlib import Path

import torch
from patch_readers import Peak

#: Voxels of a patch, patches per batch, and patches that peers cut from a volume that they have loaded.
EDGE, BATCH, PER_VOLUME = 96, 2, 8
#: Bytes for the patch engine; the volumes are larger.
BUDGET = 256_000_000
#: Worker processes of the peers, one for each core.
WORKERS = 2
#: Steps before the measurement, in which loaders start.
WARM_UP = 8
#: A peer that waits longer than this for a batch is measured with fewer steps.
LEAST_STEPS = 12


def patches_of(folder):
    """Return the patches of the engine, within its budget."""
    import mrhdata
    from mrhdata.patching.samplers import Uniform

    subjects = [{"image": mrhdata.read(path)} for path in sorted(folder.glob("subject-*.zarr"))]
    return mrhdata.patches(subjects, shape=EDGE, sampler=Uniform(400), memory=BUDGET)


def mrhdata_(folder):
    """Return batches of the patch engine: threads of this process."""
    loader = patches_of(folder).loader(BATCH, seed=0)

    def batches():
        while True:
            yield from loader

    return batches()


def monai(folder):
    """Return batches of MONAI's DataLoader: each worker loads a volume and crops patches at random."""
    from monai.data import DataLoader, Dataset
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RandSpatialCropSamplesd

    crop = RandSpatialCropSamplesd("image", (EDGE,) * 3, num_samples=PER_VOLUME, random_size=False)
    steps = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), crop])
    dataset = Dataset([{"image": path} for path in sorted(folder.glob("*.nii.gz"))], steps)
    loader = DataLoader(dataset, batch_size=1, shuffle=True, num_workers=WORKERS, persistent_workers=True)

    def batches():
        while True:
            for batch in loader:
                yield from batch["image"].as_tensor().split(BATCH)

    return batches()


def torchio(folder):
    """Return batches of TorchIO's Queue: workers load volumes, the main process cuts patches."""
    import torchio as tio

    subjects = [tio.Subject(image=tio.ScalarImage(path)) for path in sorted(folder.glob("*.nii.gz"))]
    dataset = tio.SubjectsDataset(subjects)
    sampler = tio.data.UniformSampler(EDGE)
    queue = tio.Queue(dataset, 4 * PER_VOLUME, PER_VOLUME, sampler, num_workers=WORKERS)
    loader = tio.SubjectsLoader(queue, batch_size=BATCH, num_workers=0)

    def batches():
        while True:
            for batch in loader:
                yield batch["image"][tio.DATA]

    return batches()


LOADERS = {"mrhdata": mrhdata_, "MONAI": monai, "TorchIO": torchio}


def measured(batches, step_s, seconds):
    """Return the numbers of steps and the seconds that they waited and took in all."""
    for _ in range(WARM_UP):
        next(batches)
    count, waited, begun = 0, 0.0, time.perf_counter()
    while count < LEAST_STEPS or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - start
        assert batch.shape[0] <= BATCH
        assert tuple(batch.shape[-3:]) == (EDGE,) * 3
        time.sleep(step_s)
        count += 1
    return count, waited, time.perf_counter() - begun


def main(name, folder, milliseconds, seconds):
    """Measure one loader and print what it took."""
    torch.set_num_threads(1)
    children = name != "mrhdata"
    peak = Peak(children)
    count, waited, total = measured(LOADERS[name](Path(folder)), float(milliseconds) / 1e3, float(seconds))
    result = {
        "loader": name,
        "step_ms": float(milliseconds),
        "steps": count,
        "waiting": round(waited / total, 4),
        "patches_per_second": round(BATCH * count / total, 2),
        "peak_mb": peak.megabytes(),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
