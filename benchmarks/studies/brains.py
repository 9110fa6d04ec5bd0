"""Digital mouse brains for the benchmarks of MRH-Net: subjects, patches, and predictions for every voxel."""

import numpy as np
import torch

import mrhdata
from mrhdata import phantom
from mrhdata.models.spec import predict_raw
from mrhdata.preprocessing.diffusion import tensor_maps
from mrhdata.preprocessing.gradients import Gradients
from mrhdata.recipes import mrhnet

INPUTS = ("dwi2000", "dwi5000", "t2w", "mt_off", "mt_on")
#: Two threads of PyTorch wait for each other where anything else runs, and a step is then 30 times slower.
THREADS = 1
#: Strides of training and of validation patches within each coronal slice.
TRAINING, VALIDATION = 4, 5
#: Edge of the blocks that intervals resample, in voxels.
BLOCK = 8


def subjects(numbers):
    """Brains of 0.2 mm voxels, one per seed."""
    return [phantom.mouse_brain(seed=n) for n in numbers]


def cut(brain, low, high):
    """Coronal planes of a brain."""
    return {name: volume.isel(y=slice(low, high)) for name, volume in brain.items()}


def planned(brains, stain, stride=TRAINING, *, sampler=None, masked=True, seed=0):
    """Patches of some brains, whose centres lie in the brain unless `masked` is false."""
    return mrhdata.patches(
        [{name: brain[name] for name in INPUTS} for brain in brains],
        [brain[stain] for brain in brains],
        shape=mrhnet.PATCH,
        stride=stride,
        plane="coronal",
        sampler=sampler,
        mask=[brain["mask"] for brain in brains] if masked else None,
        seed=seed,
    )


def answers(model, patches, change=None):
    """Truth and answer of all voxels of all patches, (n, 9) each, in the stain's units.

    `change` may alter the inputs (n, C, z, y, x) of rows.
    """
    truth, answer = (np.empty((len(patches), 9), np.float32) for _ in range(2))
    with torch.inference_mode():
        for rows, (x, y) in patches.batches(512, shuffle=False):
            given = torch.from_numpy(x if change is None else change(x, rows))
            truth[rows], answer[rows] = y.reshape(-1, 9), predict_raw(model, given).numpy().reshape(-1, 9)
    return truth.astype(np.float64), answer.astype(np.float64)


def centres(model, patches, change=None):
    """Truth and answer of the centre of each patch, which is what a map is made of: (n,) each."""
    return tuple(values[:, 4] for values in answers(model, patches, change))


def threshold(brains, stain, percentile):
    """Percentile of a stain over the voxels of some brains."""
    return float(np.percentile(np.concatenate([b[stain].values[b["mask"].values != 0] for b in brains]), percentile))


def blocks(patches):
    """Number of the block that each patch lies in: (n,)."""
    cubes = patches.positions // BLOCK
    return np.unique(np.ravel_multi_index(tuple(cubes.T), tuple(cubes.max(0) + 1)), return_inverse=True)[1]


def anisotropy(brain):
    """FA of the lower shell."""
    b, count = phantom.Protocol().shells[0], phantom.Protocol().directions
    # The phantom lists its directions z, y, x; gradients are world X, Y, Z.
    table = Gradients(np.r_[0, 0, np.full(count, b)], np.r_[np.zeros((2, 3)), phantom.directions(count)[:, ::-1]])
    return tensor_maps(brain["dwi2000"], table, maps=("fa",), mask=brain["mask"]).isel(c=0, drop=True).compute()
