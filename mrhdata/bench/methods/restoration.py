"""Stacks of fast scans, restored onto the grid of a slow one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mrhdata.bench.api import Answer, FittedMethod, TrainingData, method
from mrhdata.bench.methods.networks import mapped, regress, store_of
from mrhdata.datasets.subjects import Subject
from mrhdata.degrade.published import PUBLISHED
from mrhdata.metrics.image import restoration_scores as psnr_and_ssim
from mrhdata.recipes import restoration
from mrhdata.registration.resampling import resample
from mrhdata.training.settings import TrainingConfig
from mrhdata.volume.dtypes import full_scale


def enlarged(subject: Subject, image: xr.DataArray, order: int) -> xr.DataArray:
    """An image on the grid of the answer."""
    assert subject.target_grid is not None
    return resample(image.astype(np.float32), subject.target_grid, order=order)


@method("bilinear", "restoration", baseline=True)
def bilinear(_: TrainingData) -> Answer:
    """Pixels between those that were scanned."""
    return lambda subject: enlarged(subject, subject.first, 1)


@method("bicubic", "restoration", baseline=True)
def bicubic(_: TrainingData) -> Answer:
    """The same with cubic splines."""
    return lambda subject: enlarged(subject, subject.first, 3)


@method("non-local means, bicubic", "restoration", baseline=True)
def non_local(given: TrainingData) -> Answer:
    """Denoised plane by plane (scikit-image), as strongly as is best on the validation part, then enlarged."""
    strengths = (0.4, 0.7, 1.0, 1.4)
    stack = given.validation[0]
    few = {name: v.isel(z=slice(0, 4)).compute() for name, v in stack.inputs.items()}
    truth = stack.target.isel(z=slice(0, 4)).compute()
    sample = replace(stack, inputs=few, target=truth)
    worth = [float(psnr_and_ssim(truth.values, _denoised(sample, s).values)[0].mean()) for s in strengths]
    best = strengths[int(np.argmax(worth))]
    return lambda subject: _denoised(subject, best)


def _denoised(subject: Subject, strength: float) -> xr.DataArray:
    from skimage.restoration import denoise_nl_means, estimate_sigma

    def plane(values: NDArray[Any]) -> NDArray[Any]:
        noise = float(np.mean(estimate_sigma(values)))  # type: ignore[no-untyped-call]
        return np.asarray(denoise_nl_means(values, 5, 7, strength * noise, sigma=noise), np.float32)

    image = subject.first.astype(np.float32).compute()
    even = image.copy(data=np.stack([plane(p) for p in image.values]))
    return enlarged(subject, even, 3)


@method("restorer", "restoration")
def restorer(given: TrainingData) -> FittedMethod:
    """The efficient network, plane by plane, on pairs that are degraded while it learns."""
    return _restorer(given, 1)


@method("restorer, five planes", "restoration")
def restorer_of_planes(given: TrainingData) -> FittedMethod:
    """The same, of a plane and two neighbours on either side."""
    return _restorer(given, 5)


def _restorer(given: TrainingData, planes: int) -> FittedMethod:
    settings = replace(restoration.EFFICIENT, seed=given.seed)
    if given.quick:
        settings = replace(settings, epochs=5, patience=5)
    config: dict[str, Any] = {"width": 32, "blocks": 2} if given.quick else {"width": 48, "blocks": 3}
    model, _ = restoration.train(
        [s.target for s in given.train],
        [s.target for s in given.validation],
        PUBLISHED[given.settings["degradation"]],
        context_slices=planes // 2,
        patch_size=64 if given.quick else 96,
        patches_per_epoch=400 if given.quick else 2000,
        settings=settings,
        folder=given.folder,
        progress=False,
        **config,
    )

    def answer(subject: Subject) -> xr.DataArray:
        stack = subject.first.compute()
        found = restoration.restore(model, stack, store_of(given, subject), overwrite=True, progress=False)
        return enlarged(subject, found, 3)

    return FittedMethod(answer, model)


@method("3D U-Net on the enlarged scan", "restoration")
def unet(given: TrainingData) -> FittedMethod:
    """Values of the good stack from the bilinear one."""

    def large(subject: Subject) -> Subject:
        inputs = {name: enlarged(subject, v, 1).compute() for name, v in subject.inputs.items()}
        return replace(subject, inputs=inputs)

    seen = replace(given, train=[large(s) for s in given.train], validation=[large(s) for s in given.validation])
    everywhere = {s.id: _places(s, len(given.voxels[s.id])) for s in (*seen.train, *seen.validation)}
    seen = replace(seen, voxels=everywhere)
    truth = {s.id: s.target.astype(np.float32) for s in (*seen.train, *seen.validation)}
    settings = TrainingConfig(batch_size=4, learning_rate=3e-3, seed=given.seed, precision="bfloat16")
    settings = replace(settings, epochs=4 if given.quick else 20)
    model = regress(seen, truth, settings, 48 if given.quick else 400, (8, 64, 64))

    def answer(subject: Subject) -> xr.DataArray:
        white = full_scale(subject.first.dtype)
        return mapped(seen, model, large(subject), mode="dense", memory="4 GB").clip(0, white)

    return FittedMethod(answer, model)


def _places(subject: Subject, count: int) -> NDArray[np.int64]:
    """Voxels of an enlarged scan, anywhere: those of the manifest are the scan's."""
    rng = np.random.default_rng(count)
    return rng.integers(0, subject.first.shape, (count, 3))
