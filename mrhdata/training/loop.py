"""Train a network on patches, with early stopping, learning rates by layer, and checkpoints that resume."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from mrhdata._runtime.arguments import described
from mrhdata._runtime.atomic import atomic_write, check_target
from mrhdata._runtime.progress import Progress
from mrhdata.errors import ModelError, ParameterError
from mrhdata.models.device import resolve_device
from mrhdata.models.precision import resolve_precision
from mrhdata.training.checkpoints import fingerprint_patches
from mrhdata.training.first_process import shared
from mrhdata.training.history import History
from mrhdata.training.losses import OF_CLASSES
from mrhdata.training.normalization import measured
from mrhdata.training.optimization import trainable
from mrhdata.training.processes import current_processes, lost_process_errors
from mrhdata.training.run import BatchTransform, TrainingRun
from mrhdata.training.settings import TrainingConfig

if TYPE_CHECKING:
    from torch import nn

    from mrhdata.patching.dataset import Patches

log = logging.getLogger("mrhdata")

#: Seconds after which a checkpoint is written within an epoch.
_CHECKPOINT_SECONDS = 300.0
#: Steps of the first epoch that a profile shows: after the first ones, which prepare memory.
_PROFILED = {"wait": 2, "warmup": 3, "active": 10, "repeat": 1}
_PROFILED_STEPS = 6, 15


def fit(
    model: nn.Module,
    patches: Patches,
    validation: Patches,
    settings: TrainingConfig | None = None,
    *,
    batch_transform: BatchTransform | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress = True,
) -> History:
    """Train a network in place.

    Parameters
    ----------
    model : torch.nn.Module
        Network from :func:`mrhdata.models.create`. Afterwards it holds the weights of the epoch with the lowest
        validation loss, and ``model.spec`` the intensity scales measured on the training patches. Input scales
        without target scales, as :func:`mrhdata.recipes.mrhnet.transfer` sets them, are kept, since the weights were
        trained with them.
    patches, validation : Patches
        Training and validation patches with a target. They must share no voxel; slice the volumes, or use other
        subjects.
    settings : TrainingConfig, optional
        Settings of the run, with the device and the precision; ``"auto"`` is resolved first.
    batch_transform : callable, optional
        Function of the arrays of a batch and the numbers that seed it, which returns the arrays to learn from. An
        example is :class:`mrhdata.recipes.restoration.Pairs`, which degrades a good image to get the input. Validation
        batches get the same seeds in every epoch.
    checkpoint : path, optional
        File for the state after each epoch, and every five minutes within one. An interrupted run resumes from it with
        the same result on the processor, also in the middle of an epoch, and may resume on another device.
    progress : bool or callable
        Whether to show a progress bar, or a function of (epochs done, total epochs).

    Returns
    -------
    history : History
        Losses and scores of each epoch.

    Raises
    ------
    DataError
        If patches have no target, or values are not finite.
    ModelError
        If channels do not fit the network, the checkpoint belongs to another run, no parameter has a prefix of
        ``settings.layer_learning_rates``, the device has too little memory, or another process of the training ended.
    ParameterError
        If the device does not exist.
    FormatError
        If the folder of the checkpoint or of the profile does not exist.

    Notes
    -----
    Several processes train one network if ``torch.distributed`` is initialised or ``torchrun`` started them: each takes
    its part of every batch, so the steps are those of one process with the whole batch. Batch normalisation uses the
    whole batch on GPUs, and the part of each process on processors. The first process writes.

    The network returns to the device on which it was.

    Examples
    --------
    >>> import numpy as np, mrhdata
    >>> values = np.random.default_rng(0).random((4, 8, 8), dtype=np.float32)
    >>> mri = mrhdata.volume.from_array(values, spacing=(1, 1, 1), name="t2")
    >>> p = mrhdata.patches(mri, target=mri, shape=3, stride=1, plane="axial")
    >>> model = mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1)
    >>> history = fit(model, p, p, TrainingConfig(epochs=3), progress=False)
    >>> history.validation[-1] < history.validation[0]
    True
    """
    settings = settings or TrainingConfig()
    _check_arguments(model, patches, validation, settings)
    path = None if checkpoint is None else Path(checkpoint).absolute()
    call = {"model": model, "patches": patches, "validation": validation, "settings": settings}
    with shared(**call, batch_transform=batch_transform, checkpoint=path, progress=False):
        return _fit(model, patches, validation, settings, batch_transform, path, progress)


def _check_arguments(model: Any, patches: Any, validation: Any, settings: Any) -> None:
    """Raise ParameterError if arguments are of a wrong kind, such as a mapping of settings or an array."""
    if not isinstance(model, torch.nn.Module):
        raise ParameterError(f"model must be a network; got {described(model)}. Make one with mrhdata.models.create")
    for name, value in (("patches", patches), ("validation", validation)):
        if not hasattr(value, "batches"):
            raise ParameterError(f"{name} must be patches; got {described(value)}. Plan them with mrhdata.patches")
    if not isinstance(settings, TrainingConfig):
        raise ParameterError(
            f"settings must be a TrainingConfig; got {described(settings)}. Pass mrhdata.training.TrainingConfig(...)"
        )


def _fit(
    model: nn.Module,
    patches: Patches,
    validation: Patches,
    settings: TrainingConfig,
    batch_transform: BatchTransform | None,
    path: Path | None,
    progress: Progress,
) -> History:
    """Train a network in place, in this process or together with others."""
    for file in (path, settings.profile):
        if file is not None:
            check_target(Path(file), overwrite=True)
    device = resolve_device(settings.device)
    settings = dataclasses.replace(settings, precision=resolve_precision(settings.precision, device.type))
    if getattr(model, "spec", None) is None:
        raise ModelError(
            f"{type(model).__name__} has no spec to record its training data. Set model.spec = "
            "mrhdata.models.spec.ModelSpec(a name), or take a network from mrhdata.models.create"
        )
    classes = _output_channels(model) if settings.loss in OF_CLASSES else None
    model.spec = measured(model.spec, patches, settings.normalization, classes, batch_transform)  # type: ignore[assignment, arg-type]
    _check_channels(model, patches)
    with lost_process_errors(), _on_device(model, device, settings), trainable(model, settings) as groups:
        run = TrainingRun(
            model,
            groups,
            patches,
            settings,
            device=device,
            processes=current_processes(),
            batch_transform=batch_transform,
        )
        with _profiler(settings.profile if run.processes.first else None) as after_step:
            _train(run, patches, validation, path, progress, after_step)
        if settings.restore_best:
            model.load_state_dict(run.best)
    model.eval()
    return run.history


def _train(
    run: TrainingRun,
    patches: Patches,
    validation: Patches,
    path: Path | None,
    progress: Progress,
    after_step: Callable[[], None],
) -> None:
    """Run the remaining epochs, or fewer if patience ends."""
    settings = run.settings
    run.check(patches)
    if path is not None:
        run.data = [fingerprint_patches(patches), fingerprint_patches(validation)]
        if path.exists():
            run.resume(path)
        # No process may write the file before all have read it.
        run.processes.wait()
    # The time before an interruption counts too.
    start = time.perf_counter() - run.history.seconds
    checkpoints = _Checkpoints(run, path, start)

    def between_steps() -> None:
        after_step()
        checkpoints.write_if_due()

    epochs = range(len(run.history.training), settings.epochs)
    hidden = callable(progress) or not progress or not run.processes.first
    bar = tqdm(epochs, desc="training", unit="epoch", disable=hidden)
    for number in bar:
        if run.stale() >= settings.patience:
            break
        run.epoch(patches, validation, between_steps)
        bar.set_postfix(validation=f"{run.history.validation[-1]:.4f}", best=f"{min(run.history.validation):.4f}")
        checkpoints.write()
        if callable(progress) and run.processes.first:
            progress(number + 1, settings.epochs)


class _Checkpoints:
    """The checkpoint file of a run, which is written after epochs and from time to time within one."""

    def __init__(self, run: TrainingRun, path: Path | None, start: float) -> None:
        self._run, self._path, self._start = run, path, start
        self._last = time.perf_counter()

    def write_if_due(self) -> None:
        """Write the file if the last one is older than `_CHECKPOINT_SECONDS`."""
        if time.perf_counter() - self._last >= _CHECKPOINT_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the file, if there is one, and update the duration of the run."""
        self._last = time.perf_counter()
        self._run.history.seconds = self._last - self._start
        if self._path is not None:
            self._run.save(self._path)


@contextmanager
def _on_device(model: nn.Module, device: torch.device, settings: TrainingConfig) -> Iterator[None]:
    """Move a network to a device, and back at the end."""
    before = next(model.parameters()).device
    layouts = {3: torch.channels_last_3d, 2: torch.channels_last}
    layout = layouts[int(model.ndim)] if settings.channels_last else torch.preserve_format  # type: ignore[arg-type]
    try:
        model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        yield
    finally:
        model.to(device=before, memory_format=torch.contiguous_format if settings.channels_last else layout)  # type: ignore[call-overload]


@contextmanager
def _profiler(path: str | os.PathLike[str] | None) -> Iterator[Callable[[], None]]:
    """Yield the function to call after each step; write a trace of some steps to a file, if there is one."""
    if path is None:
        yield lambda: None
        return
    target = Path(path)

    def write(profile: torch.profiler.profile) -> None:
        with atomic_write(target, overwrite=True) as draft:
            profile.export_chrome_trace(str(draft))

    schedule = torch.profiler.schedule(**_PROFILED)
    with torch.profiler.profile(schedule=schedule, on_trace_ready=write, record_shapes=True) as profile:
        yield profile.step
    if not target.exists():
        log.warning("the training had too few steps for a profile; it shows steps %d to %d", *_PROFILED_STEPS)


def _output_channels(model: nn.Module) -> int:
    """Return the number of output channels of the last layer."""
    return int([p for p in model.parameters() if p.ndim > 1][-1].shape[0])


def _check_channels(model: nn.Module, patches: Patches) -> None:
    first = next(p for p in model.parameters() if p.ndim > 1)
    in_channels = int(getattr(model, "in_channels", first.shape[1]))
    if in_channels != len(patches.channels):
        raise ModelError(
            f"the network takes {in_channels} channels but the patches have {len(patches.channels)}: "
            f"{patches.channels}. Create it with in_channels={len(patches.channels)}"
        )
