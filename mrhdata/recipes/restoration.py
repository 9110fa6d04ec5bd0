"""Restore fast scans of electron microscopy with a network trained on degraded pairs ("decrappification", PSSR).

Good stacks are degraded while they are read: a patch of the good stack is the target, and its degraded copy, with as
many planes as the network takes, the input. The target is sampled at the pixel centres of the network's output, a grid
with `scale` times the pixels of the degraded image. Otherwise a degradation that keeps the corners in place (PSSR's
own) would shift detail by up to 1.5 pixels, by a different distance at each position.

PSSR (Fang et al. 2021, Nat. Methods 18:406): mean squared error, Adam with decoupled weight decay 1e-3, one cycle
up to 4e-4, flips and quarter turns, rotations up to 10 degrees, zoom; 100 epochs on many stacks and GPUs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from mrhdata import models
from mrhdata._runtime.memory import parse_memory
from mrhdata._runtime.progress import Progress
from mrhdata.degrade import Degradation, Reduction
from mrhdata.errors import DataError, ModelError, ParameterError
from mrhdata.inference.input_check import require_familiar
from mrhdata.inference.output import Output
from mrhdata.inference.predictor import predict
from mrhdata.inference.strategies.sliding_window import SlidingWindow
from mrhdata.models.spec import ModelSpec
from mrhdata.patching import samplers
from mrhdata.patching.create import patches
from mrhdata.patching.dataset import Patches
from mrhdata.patching.sources import one_grid
from mrhdata.registration.resampling import resample
from mrhdata.training.augmentation import Augmentation
from mrhdata.training.history import History
from mrhdata.training.loop import fit
from mrhdata.training.normalization import keep_input_scale
from mrhdata.training.settings import TrainingConfig
from mrhdata.volume.assumptions import geometry_attrs
from mrhdata.volume.construct import SPATIAL, place
from mrhdata.volume.dtypes import full_scale
from mrhdata.volume.grid import Grid

if TYPE_CHECKING:
    from torch import nn

Floats = NDArray[np.float32]

#: Rotation and zoom of good patches before they are degraded.
TURNS = Augmentation(degrees=10, zoom=0.2, stretch=0.0, gain=0.0, offset=0.0, gamma=0.0, noise=0.0, share=0.5)
PUBLISHED = TrainingConfig(epochs=100, batch_size=8, learning_rate=4e-4, weight_decay=1e-3, patience=100)
EFFICIENT = TrainingConfig(
    epochs=12, batch_size=16, learning_rate=1e-3, weight_decay=1e-3, patience=12, precision="auto"
)


@dataclass(frozen=True)
class Pairs:
    """Transform from good patches to pairs of degraded and good ones, for ``mrhdata.fit(..., batch_transform=)``.

    Attributes
    ----------
    degradation : Degradation
        Degradation with one step that reduces the number of pixels.
    white : float
        Image value that counts as 1.
    turns : Augmentation or None
        Augmentation of the good patches; None also disables flips and quarter turns.
    """

    degradation: Degradation
    white: float = 255.0
    turns: Augmentation | None = TURNS

    def __call__(self, parts: list[Any], seed: tuple[int, ...]) -> list[Any]:
        """Return degraded planes (B, planes, 1, h / s, w / s) and the middle good one (B, 1, 1, h, w).

        `parts` has one array of good planes (B, planes, 1, h, w).

        Examples
        --------
        >>> from mrhdata.degrade import PUBLISHED
        >>> planes = np.random.default_rng(0).random((2, 5, 1, 64, 64), dtype=np.float32)
        >>> low, high = Pairs(PUBLISHED["em_AG_D_sameas_preprint"], white=1.0)([planes], (0,))
        >>> low.shape, high.shape
        ((2, 5, 1, 16, 16), (2, 1, 1, 64, 64))
        """
        high = np.asarray(parts[0], dtype=np.float32) / np.float32(self.white)
        if self.turns is not None:
            high = self._augment(high, seed)
        low = np.asarray(self.degradation(high[:, :, 0], seed), dtype=np.float32)
        middle = high[:, high.shape[1] // 2, 0]
        target = np.stack([run_blind(plane, reduction(self.degradation)) for plane in middle])
        return [low[:, :, None], target[:, None, None]]

    def _augment(self, high: Floats, seed: tuple[int, ...]) -> Floats:
        """Rotate by a few degrees and zoom, then apply one of the eight symmetries of a square."""
        rng = np.random.default_rng(seed)
        assert self.turns is not None
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        x = torch.from_numpy(high)
        rotated, _ = self.turns(x, x[:, :1], (1.0, 1.0, 1.0), generator)
        out = rotated.numpy()
        for i, (quarters, mirrored) in enumerate(
            zip(rng.integers(4, size=len(out)), rng.integers(2, size=len(out)), strict=True)
        ):
            plane = np.rot90(out[i], int(quarters), axes=(-2, -1))
            out[i] = plane[..., ::-1] if mirrored else plane
        return out


def reduction(degradation: Degradation) -> Reduction:
    """Return the step of a degradation that reduces the number of pixels.

    Raises
    ------
    DataError
        The degradation has no such step, or more than one.
    """
    reductions = [step for step in degradation.steps if isinstance(step, Reduction)]
    if len(reductions) != 1:
        raise DataError(
            f"the degradation must have one step that reduces the pixels, such as Area(4); got {len(reductions)}"
        )
    return reductions[0]


def run_blind(plane: NDArray[Any], step: Reduction) -> NDArray[Any]:
    """Resample a good plane to the pixels of the network's output: ``step.factor`` per pixel of the degraded plane.

    Examples
    --------
    >>> from mrhdata.degrade import Area, Zoom
    >>> row = np.tile(np.arange(16.0), (16, 1))
    >>> run_blind(row, Area(4))[0, :3].tolist(), run_blind(row, Zoom(4))[5, 4:7].round(3).tolist()
    ([0.0, 1.0, 2.0], [3.125, 4.375, 5.625])
    """
    rows = [step.places(n) for n in plane.shape]
    steps = [s / step.factor for _, s in rows]
    first = [a - s * (step.factor - 1) / 2 for (a, _), s in zip(rows, steps, strict=True)]
    shape = tuple(step.size(n) * step.factor for n in plane.shape)
    if np.allclose(steps, 1) and np.allclose(first, 0):
        return plane[: shape[0], : shape[1]]
    return np.asarray(affine_transform(plane, steps, first, output_shape=shape, order=3, mode="nearest"))


def degrade_stack(volume: xr.DataArray, degradation: Degradation, seed: int) -> xr.DataArray:
    """Simulate a fast scan of a stack, with the spacing and the position of its pixels.

    Parameters
    ----------
    volume : volume (z, y, x)
        Stack of planes along z.
    degradation : Degradation
        Degradation with one step that reduces the number of pixels.
    seed : int
        Random seed of the noise.

    Examples
    --------
    >>> from mrhdata.degrade import Area
    >>> from mrhdata.volume.construct import from_array
    >>> stack = from_array(np.zeros((2, 8, 8), np.uint8), spacing=(1e-5, 1e-5, 1e-5))
    >>> low = degrade_stack(stack, Degradation((Area(4),)), seed=0)
    >>> low.shape, [round(float(v), 7) for v in low.mrh.spacing], round(float(low.y[0]), 7)
    ((2, 2, 2), [1e-05, 4e-05, 4e-05], 1.5e-05)
    """
    if volume.dims != SPATIAL:
        raise DataError(f"a stack must have the axes z, y, x; got {volume.dims}. Select a channel.")
    step = reduction(degradation)
    rows = [(0.0, 1.0), *(step.places(n) for n in volume.shape[1:])]
    spacing = volume.mrh.spacing
    starts = [float(volume.coords[d][0]) + a * s for d, (a, _), s in zip(SPATIAL, rows, spacing, strict=True)]
    attributes = geometry_attrs(volume) | {k: volume.attrs[k] for k in ("units",) if k in volume.attrs}
    return place(
        degradation(volume.data, seed),
        SPATIAL,
        [s * step_size for s, (_, step_size) in zip(spacing, rows, strict=True)],
        volume.attrs["affine"],
        start=starts,
        space=volume.mrh.space,
        kind="image",
        name=str(volume.name),
        **attributes,
    )


def train(  # noqa: PLR0913 (settings of one training)
    stacks: Sequence[xr.DataArray],
    validation: Sequence[xr.DataArray],
    degradation: Degradation,
    *,
    network: str = "restorer",
    context_slices: int = 0,
    patch_size: int = 128,
    patches_per_epoch: int = 1000,
    tissue: Sequence[xr.DataArray] | None = None,
    settings: TrainingConfig = EFFICIENT,
    folder: str | Path | None = None,
    progress: bool = True,
    **config: Any,
) -> tuple[nn.Module, History]:
    """Train a network to undo a degradation.

    Parameters
    ----------
    stacks, validation : sequence of volume (z, y, x)
        Good images of one dtype. Validation has other files, or other blocks of planes with a gap between them.
    degradation : Degradation
        Degradation to undo.
    network : {"restorer", "pssr"}
        Name of the network.
    context_slices : int
        Number of planes on each side that are further input channels: 2 means five planes, of which the middle one
        is restored.
    patch_size : int
        Edge of the good patches, in pixels.
    patches_per_epoch : int
        Patches per epoch, at random positions.
    tissue : sequence of mask volume, optional
        Masks of the patch centres, for example without empty resin.
    settings : TrainingConfig
        Settings of the training.
    folder : path, optional
        Folder of the checkpoint.
    progress : bool
        Whether to show progress bars.
    **config
        Settings of the network.

    Returns
    -------
    model : torch.nn.Module
        Trained network.
    history : History
        History of the training.
    """
    if context_slices < 0:
        raise ParameterError(f"context_slices must be 0 or more planes on each side; got {context_slices}")
    pairs = Pairs(degradation, full_scale(stacks[0].dtype))

    def draw_patches(volumes: Sequence[xr.DataArray], count: int, masks: Any, seed: int) -> Patches:
        return patches(
            [{"em": stack} for stack in volumes],
            shape=(1, patch_size, patch_size),
            sampler=samplers.Uniform(count),
            mask=masks,
            plane="axial",
            context_slices=context_slices,
            seed=seed,
        )

    training_patches = draw_patches(stacks, patches_per_epoch, tissue, settings.seed)
    validation_patches = draw_patches(validation, max(16, patches_per_epoch // 10), None, settings.seed + 1)
    model = models.create(network, seed=settings.seed, in_channels=2 * context_slices + 1, **config)
    checkpoint = None if folder is None else Path(folder) / "checkpoint.pt"
    history = fit(
        model, training_patches, validation_patches, settings, batch_transform=pairs, checkpoint=checkpoint,
        progress=progress,
    )  # fmt: skip
    # The network's input is the degraded image, so patch and spacing are those of the degraded pixels.
    factor = reduction(degradation).factor
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    spacing = None if spec.spacing_mm is None else tuple(np.multiply(spec.spacing_mm, (1, factor, factor)).tolist())
    input_patch = (1, patch_size // factor, patch_size // factor)
    model.spec = replace(spec, patch=input_patch, spacing_mm=spacing)  # type: ignore[assignment]
    return model, history


def restore(
    model: nn.Module,
    stack: xr.DataArray,
    out: str | Path,
    *,
    memory: int | str = "1 GB",
    device: str | None = None,
    precision: str = "float32",
    force: bool = False,
    overwrite: bool = False,
    progress: Progress = True,
) -> xr.DataArray:
    """Restore a stack of any size with bounded memory; the result has the finer spacing.

    Parameters
    ----------
    model : torch.nn.Module
        Network from :func:`train`, or loaded.
    stack : volume (z, y, x)
        Integers of any width, or floats from 0 to 1.
    out : path
        OME-Zarr store, or a file of any writable format. An interrupted run resumes.
    memory, device, precision, force, overwrite, progress
        Options of :func:`mrhdata.predict`.

    Returns
    -------
    restored : volume
        Restored stack with the dtype and range of the input, on the finer grid of the network's output.

    Notes
    -----
    ``restorer`` runs densely, and its result does not depend on the blocks. The receptive field of ``pssr`` is its
    whole patch, so windows of the training size overlap by half and are blended.
    """
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    if spec.inputs is None or spec.target is None or spec.patch is None:
        raise ModelError(
            f"{spec.name} was not trained; train it with mrhdata.recipes.restoration.train, or load a trained network"
        )
    white = full_scale(stack.dtype)
    name = spec.channels[len(spec.channels) // 2]
    output = Output() if white == 1.0 else Output(dtype=str(stack.dtype), value_range=(0.0, white))
    # A shallow copy shares the weights and leaves the scales of the model unchanged.
    network, image = copy.copy(model), stack.rename(name)
    strategy: dict[str, Any] = {"mode": "dense"}
    if spec.name == "pssr":
        factor = int(spec.config.get("scale", 4))
        network = models.copy(model, scale=1)
        image = resample(image, finer(image.mrh.grid, factor)).rename(name)
        strategy = {
            "mode": "sliding_window",
            "windows": SlidingWindow(shape=(1, *(factor * n for n in spec.patch[1:]))),
        }
    scaled = replace(spec, inputs=spec.inputs.times(white), target=spec.target.times(white))
    budget = parse_memory(memory)
    attributes = require_familiar(scaled, one_grid({name: stack}, (1, 1, 1), None, False), budget, force)
    # The image is compared once, and as it was before it became finer.
    network.spec = replace(scaled, profile=None)  # type: ignore[assignment]
    restored = predict(
        network,
        {name: image},
        out,
        output=output,
        memory=memory,
        device=device,
        precision=precision,
        overwrite=overwrite,
        progress=progress,
        name="restored",
        **strategy,
    )
    return restored.assign_attrs(attributes)


def finer(grid: Grid, factor: int) -> Grid:
    """Return a grid with the same plane edges and `factor` times the pixels along y and x.

    Examples
    --------
    >>> finer(Grid((1, 2, 2), np.eye(4)[[2, 1, 0, 3]]), 4).world((0, 0, 0)).tolist()
    [-0.375, -0.375, 0.0]
    """
    scale = np.diag([1.0, 1 / factor, 1 / factor, 1.0])
    scale[1:3, 3] = (1 / factor - 1) / 2
    z, y, x = grid.shape
    return Grid((z, factor * y, factor * x), grid.affine @ scale)


def fine_tune(
    model: nn.Module,
    pairs: Sequence[tuple[xr.DataArray, xr.DataArray]],
    validation: Sequence[tuple[xr.DataArray, xr.DataArray]],
    *,
    patch_size: int = 128,
    patches_per_epoch: int = 400,
    settings: TrainingConfig = replace(EFFICIENT, epochs=6, learning_rate=2e-4),  # noqa: B008
    progress: bool = True,
) -> nn.Module:
    """Continue training with acquired pairs of a few planes.

    Parameters
    ----------
    model : torch.nn.Module
        Network from :func:`train` with ``restorer``; it is not changed.
    pairs, validation : sequence of (low, high) volumes (z, y, x)
        Registered pairs; the high-resolution volume has the pixels of the network's output.
    patch_size, patches_per_epoch, settings, progress
        As for :func:`train`.

    Returns
    -------
    model : torch.nn.Module
        Fine-tuned copy.
    """
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    name, factor = spec.channels[len(spec.channels) // 2], int(spec.config.get("scale", 4))
    tuned = models.copy(model)
    tuned.spec = keep_input_scale(spec)  # type: ignore[assignment]

    def draw_patches(volumes: Sequence[tuple[xr.DataArray, xr.DataArray]], count: int, seed: int) -> Patches:
        return patches(
            [{name: _as_fraction(low)} for low, _ in volumes],
            [{"good": _as_fraction(high)} for _, high in volumes],
            shape=(1, patch_size // factor, patch_size // factor),
            target_shape=(1, patch_size, patch_size),
            grids="native",
            sampler=samplers.Uniform(count),
            plane="axial",
            context_slices=spec.context_slices,
            seed=seed,
        )

    fit(
        tuned,
        draw_patches(pairs, patches_per_epoch, settings.seed),
        draw_patches(validation, max(16, patches_per_epoch // 10), 1),
        settings,
        progress=progress,
    )
    fitted: ModelSpec = tuned.spec  # type: ignore[assignment]
    tuned.spec = replace(spec, target=fitted.target, profile=fitted.profile)  # type: ignore[assignment]
    return tuned


def _as_fraction(stack: xr.DataArray) -> xr.DataArray:
    """Return values as fractions of full scale."""
    if not np.issubdtype(stack.dtype, np.integer):
        return stack
    return (stack.astype(np.float32) / np.float32(full_scale(stack.dtype))).assign_attrs(stack.attrs)
