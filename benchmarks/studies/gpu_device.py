"""Training and prediction on a device, next to the same steps on tensors that are there already; part of gpu.py."""

import time

import numpy as np
import torch
from tables import markdown

import mrhdata
from mrhdata.inference.strategies.sliding_window import SlidingWindow
from mrhdata.models.device import resolve_device
from mrhdata.patching.samplers import Uniform
from mrhdata.training import TrainingConfig
from mrhdata.training.normalization import measured
from mrhdata.training.processes import Processes
from mrhdata.training.run import TrainingRun

BUDGET = 256_000_000
#: Networks, their settings, patches, batch size, and number of patches of an epoch for each subject.
NETWORKS = {
    "MRH-Net, 3 x 3": ("mrhnet", {"loop_blocks": 4}, {"shape": 3, "plane": "coronal"}, 256, 20_000),
    "3D U-Net, 96^3": ("unet3d", {"classes": 1, "widths": (32, 64, 128, 256)}, {"shape": 96}, 2, 60),
    "restorer, 96 x 96": ("restorer", {"scale": 1}, {"shape": 96, "plane": "axial"}, 16, 1000),
}
PRECISIONS = ("float32", "bfloat16", "float16")
#: Steps before and within a measurement.
WARM_UP, STEPS = 10, 100


def measured_on(device, folder, quick):
    """Return the device's name, the rows of training, and the row of prediction."""
    place = resolve_device(device)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "processor, 1 thread"
    subjects = [{"image": mrhdata.read(p), "target": mrhdata.read(p)} for p in sorted(folder.glob("subject-*.zarr"))]
    precisions = PRECISIONS if place.type == "cuda" else PRECISIONS[:1]
    rows = [training(n, subjects, place, p, quick) for n in NETWORKS for p in precisions]
    return {"name": name, "training": rows, "prediction": prediction(folder, place, quick)}


def training(label, subjects, device, precision, quick):
    """Return patches per second from the store and from tensors on the device, and the share of waiting."""
    name, config, options, batch_size, number = NETWORKS[label]
    steps, warm_up = (3, 1) if quick else (STEPS, WARM_UP)
    sampler = Uniform(2 * batch_size if quick else number)
    patches = mrhdata.patches(subjects, target="target", sampler=sampler, memory=BUDGET, **options)
    model = mrhdata.models.create(name, in_channels=1, **config)
    settings = TrainingConfig(
        batch_size=batch_size, precision=precision, device=str(device), channels_last=device.type == "cuda"
    )
    model.spec = measured(model.spec, patches, "channel", None, None)
    layout = torch.channels_last_3d if model.ndim == 3 else torch.channels_last
    model.to(device=device, memory_format=layout)
    groups = {1.0: list(model.parameters())}
    run = TrainingRun(model, groups, patches, settings, device=device, processes=Processes())
    waited, seconds = _timed(run, patches, run._time_waits(_endless(run, patches)), steps, warm_up)
    first = next(run._batches(patches, 0))[1]
    _, ceiling = _timed(run, patches, iter(lambda: (None, first), None), steps, warm_up)
    return {
        "network": label,
        "precision": precision,
        "patches_per_second": round(batch_size * steps / seconds, 1),
        "ceiling": round(batch_size * steps / ceiling, 1),
        "share_of_ceiling": round(ceiling / seconds, 3),
        "waiting": round(waited / seconds, 4),
    }


def _endless(run, patches):
    """Yield the batches of one epoch after another."""
    epoch = 0
    while True:
        run.steps_done = 0
        yield from run._batches(patches, epoch)
        epoch += 1


def _timed(run, patches, batches, steps, warm_up):
    """Return the seconds of waiting and of all steps, after a warm-up."""
    run.model.train()
    for number in range(warm_up + steps):
        if number == warm_up:
            _synchronize(run.device)
            start, before = time.perf_counter(), run.history.waited
        _, (x, y) = next(batches)
        # A fixed place in the epoch, so that all batches are whole.
        run.steps_done = 0
        run._step(x, y, patches)
    _synchronize(run.device)
    return run.history.waited - before, time.perf_counter() - start


def _synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def prediction(folder, device, quick):
    """Return seconds of a 3D U-Net over a volume, in windows, dense, and with MONAI's sliding window if it is there."""
    edge = 128 if quick else 1024
    from patch_fixtures import once, volume

    path = folder / f"predicted-{edge}.npy"

    def make(draft):
        with draft.open("wb") as file:
            np.save(file, volume((edge,) * 3, 99))

    once(path, make)
    values = np.load(path, mmap_mode="r")
    stored = folder / f"predicted-{edge}.zarr"
    if not stored.exists():
        mrhdata.write(mrhdata.volume.from_array(np.asarray(values), spacing=(1, 1, 1)), stored)
    torch.manual_seed(0)
    model = mrhdata.models.create("unet3d", in_channels=1, classes=2, widths=(16, 32, 64))
    del model.spec
    row = {"voxels": edge**3}
    windows = SlidingWindow((96, 96, 96), overlap=0.25)
    for mode in ("sliding_window", "dense"):
        out = folder / f"out-{mode}.zarr"
        start = time.perf_counter()
        options = {"windows": windows} if mode == "sliding_window" else {}
        mrhdata.predict(
            model, mrhdata.read(stored), out, mode=mode, memory="4 GB", device=str(device), overwrite=True,
            progress=False, **options,
        )  # fmt: skip
        row[mode] = round(time.perf_counter() - start, 1)
    row["MONAI"] = _monai(model, values, device)
    return row


def _monai(model, values, device):
    """Return the seconds of MONAI's sliding window over the volume in memory, or a note if it is missing."""
    try:
        from monai.inferers import sliding_window_inference
    except ImportError:
        return "MONAI is not installed"
    model.to(device)
    start = time.perf_counter()
    image = torch.from_numpy(np.asarray(values, np.float32))[None, None]
    with torch.inference_mode():
        sliding_window_inference(
            image, (96,) * 3, 4, model, overlap=0.25, mode="gaussian", sw_device=device, device="cpu"
        )
    return round(time.perf_counter() - start, 1)


def parts(values):
    """Return the parts of the report."""
    columns = {"network": "network", "precision": "precision", "patches_per_second": "patches/s", "ceiling": "ceiling",
               "share_of_ceiling": "share of the ceiling", "waiting": "share of waiting"}  # fmt: skip
    row = values["prediction"]
    return [
        f"## {values['name']}",
        "Training from the stores, and the same steps on one batch that stays on the device (the ceiling).",
        markdown([{title: r[key] for key, title in columns.items()} for r in values["training"]]),
        f"A 3D U-Net over {row['voxels'] / 1e9:.2f} Gvoxel, store to store: {row['sliding_window']} s in windows of "
        f"96^3, {row['dense']} s dense; MONAI's sliding window over the volume in memory: {row['MONAI']} s.",
    ]
