"""Image stacks of fast scans, restored on the grid of a slow scan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mrhdata.bench.api import Answer, FittedMethod, TrainingData, method
from mrhdata.bench.methods.networks import answer_path, predict_in_memory, train_unet
from mrhdata.datasets.subjects import Subject
from mrhdata.degrade.published import PUBLISHED
from mrhdata.metrics.image import restoration_scores as psnr_and_ssim
from mrhdata.recipes import restoration
from mrhdata.registration.resampling import resample
from mrhdata.training.settings import TrainingConfig
from mrhdata.volume.dtypes import full_scale


def enlarge(subject: Subject, image: xr.DataArray, order: int) -> xr.DataArray:
    """Resample an image to the grid of the answer."""
    assert subject.target_grid is not None
    return resample(image.astype(np.float32), subject.target_grid, order=order)


@method("bilinear", "restoration", baseline=True)
def bilinear(_: TrainingData) -> Answer:
    """Enlarge by linear interpolation."""
    return lambda subject: enlarge(subject, subject.first, 1)


@method("bicubic", "restoration", baseline=True)
def bicubic(_: TrainingData) -> Answer:
    """Enlarge by cubic splines."""
    return lambda subject: enlarge(subject, subject.first, 3)


@method("non-local means, bicubic", "restoration", baseline=True)
def non_local(data: TrainingData) -> Answer:
    """Denoise each plane (scikit-image) with the strength that is best on the validation stack, then enlarge."""
    strengths = (0.4, 0.7, 1.0, 1.4)
    stack = data.validation[0]
    few_planes = {name: v.isel(z=slice(0, 4)).compute() for name, v in stack.inputs.items()}
    truth = stack.target.isel(z=slice(0, 4)).compute()
    sample = replace(stack, inputs=few_planes, target=truth)
    psnr = [float(psnr_and_ssim(truth.values, _denoise(sample, s).values)[0].mean()) for s in strengths]
    best = strengths[int(np.argmax(psnr))]
    return lambda subject: _denoise(subject, best)


def _denoise(subject: Subject, strength: float) -> xr.DataArray:
    from skimage.restoration import denoise_nl_means, estimate_sigma

    def denoise_plane(values: NDArray[Any]) -> NDArray[Any]:
        noise = float(np.mean(estimate_sigma(values)))  # type: ignore[no-untyped-call]
        return np.asarray(denoise_nl_means(values, 5, 7, strength * noise, sigma=noise), np.float32)

    image = subject.first.astype(np.float32).compute()
    denoised = image.copy(data=np.stack([denoise_plane(p) for p in image.values]))
    return enlarge(subject, denoised, 3)


@method("restorer", "restoration")
def restorer(data: TrainingData) -> FittedMethod:
    """Train the efficient network on single planes that are degraded during training."""
    return _train_restorer(data, 0)


@method("restorer, five planes", "restoration")
def restorer_of_planes(data: TrainingData) -> FittedMethod:
    """Train the efficient network on a plane and two neighbours on each side."""
    return _train_restorer(data, 2)


def _train_restorer(data: TrainingData, context_slices: int) -> FittedMethod:
    settings = replace(restoration.EFFICIENT, seed=data.seed)
    if data.quick:
        settings = replace(settings, epochs=5, patience=5)
    config: dict[str, Any] = {"width": 32, "blocks": 2} if data.quick else {"width": 48, "blocks": 3}
    model, _ = restoration.train(
        [s.target for s in data.train],
        [s.target for s in data.validation],
        PUBLISHED[data.settings["degradation"]],
        context_slices=context_slices,
        patch_size=64 if data.quick else 96,
        patches_per_epoch=400 if data.quick else 2000,
        settings=settings,
        folder=data.folder,
        progress=False,
        **config,
    )

    def answer(subject: Subject) -> xr.DataArray:
        stack = subject.first.compute()
        restored = restoration.restore(model, stack, answer_path(data, subject), overwrite=True, progress=False)
        return enlarge(subject, restored, 3)

    return FittedMethod(answer, model)


@method("3D U-Net on the enlarged scan", "restoration")
def unet(data: TrainingData) -> FittedMethod:
    """Train a U-Net to predict the slow scan from the linearly enlarged fast scan."""

    def enlarge_inputs(subject: Subject) -> Subject:
        inputs = {name: enlarge(subject, v, 1).compute() for name, v in subject.inputs.items()}
        return replace(subject, inputs=inputs)

    large = replace(
        data,
        train=[enlarge_inputs(s) for s in data.train],
        validation=[enlarge_inputs(s) for s in data.validation],
    )
    subjects = (*large.train, *large.validation)
    large = replace(large, voxels={s.id: _draw_voxels(s, len(data.voxels[s.id])) for s in subjects})
    truth = {s.id: s.target.astype(np.float32) for s in subjects}
    settings = TrainingConfig(batch_size=4, learning_rate=3e-3, seed=data.seed, precision="auto")
    settings = replace(settings, epochs=4 if data.quick else 20)
    model = train_unet(large, truth, settings, 48 if data.quick else 400, (8, 64, 64))

    def answer(subject: Subject) -> xr.DataArray:
        white = full_scale(subject.first.dtype)
        enlarged = enlarge_inputs(subject)
        return predict_in_memory(large, model, enlarged, mode="dense", memory="4 GB").clip(0, white)

    return FittedMethod(answer, model)


def _draw_voxels(subject: Subject, count: int) -> NDArray[np.int64]:
    """Draw voxels of an enlarged scan; those of the manifest index the original scan."""
    rng = np.random.default_rng(count)
    return rng.integers(0, subject.first.shape, (count, 3))
