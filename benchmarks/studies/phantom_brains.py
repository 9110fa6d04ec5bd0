"""Phantom subjects for the benchmarks of virtual histology, their patches, and a short training."""

from dataclasses import replace

import numpy as np
import torch

from mrhdata import models, patches, phantom
from mrhdata.recipes import mrhnet
from mrhdata.training.loop import fit

THREADS = 1
INPUTS = ("dwi2000", "dwi5000", "t2w", "mt_off", "mt_on")
TARGET = "af"
#: Positive are voxels below this percentile of the training subjects' histology.
PERCENTILE = 20
#: Seeds of the subjects.
TRAIN, VALIDATION, TEST = (0, 1), 2, 3
STRIDE = (4, 1, 4)
SETTINGS = replace(mrhnet.RECOMMENDED, epochs=8)

torch.set_num_threads(THREADS)


def brain(seed):
    """The volumes of one subject."""
    return phantom.mouse_brain(seed=seed)


def planned(subjects, shape=mrhnet.PATCH, stride=STRIDE, mask="mask", names=INPUTS, target=TARGET):
    """Coronal patches of several subjects."""
    return patches(
        [{name: s[name] for name in names} for s in subjects],
        [s[target] for s in subjects],
        shape=shape,
        stride=stride,
        plane="coronal",
        mask=[s[mask] for s in subjects],
    )


def threshold(subjects):
    """Histology below it is positive."""
    return float(np.percentile(np.concatenate([s[TARGET].values[s["mask"].values > 0] for s in subjects]), PERCENTILE))


def trained(training, validation, seed=0, settings=SETTINGS):
    """MRH-Net with 4 blocks, and the seconds that it took."""
    model = models.create("mrhnet", in_channels=len(training.channels), loop_blocks=4, seed=seed)
    history = fit(model, training, validation, replace(settings, seed=seed), progress=False)
    return model, history.seconds


def table(head, rows):
    """Markdown."""
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return lines + [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]


def _cell(value):
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def scored(row, score):
    """A score with its interval."""
    return f"{row[score]:.3f} [{row[f'{score}_low']:.3f}, {row[f'{score}_high']:.3f}]"
