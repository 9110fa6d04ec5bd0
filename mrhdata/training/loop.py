"""Train a network on patches, with early stopping, learning rates by layer, and checkpoints that resume."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from mrhdata._runtime.atomic import atomic_write
from mrhdata._runtime.progress import Progress
from mrhdata.errors import DataError, ModelError
from mrhdata.models.precision import resolve_precision
from mrhdata.models.spec import IGNORE_INDEX, ModelSpec, run_on_patches, scaled, to_target_units
from mrhdata.training.history import History
from mrhdata.training.losses import OF_CLASSES, centre, loss
from mrhdata.training.normalization import measured
from mrhdata.training.settings import TrainingConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mrhdata.patching.dataset import Patches

#: Patches per validation batch, and the epoch number that seeds their transform.
_VALIDATION_BATCH, _VALIDATION_EPOCH = 256, 2**31


#: Patches in the fingerprint of a run's data.
_FINGERPRINT_PATCHES = 64


#: Maps the arrays of a batch and the numbers that seed it to the arrays to learn from.
BatchTransform = Callable[[list[Any], tuple[int, ...]], list[Any]]


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
        Settings of the run; a `precision` of ``"auto"`` is resolved first.
    batch_transform : callable, optional
        Function of the arrays of a batch and the numbers that seed it, which returns the arrays to learn from. An
        example is :class:`mrhdata.recipes.restoration.Pairs`, which degrades a good image to get the input. Validation
        batches get the same seeds in every epoch.
    checkpoint : path, optional
        File for the state after each epoch. An interrupted run resumes from it with the same result.
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
        If channels do not fit the network, the checkpoint belongs to another run, or no parameter has a prefix of
        ``settings.layer_learning_rates``.

    Examples
    --------
    >>> import mrhdata
    >>> values = np.random.default_rng(0).random((4, 8, 8), dtype=np.float32)
    >>> mri = mrhdata.volume.from_array(values, spacing=(1, 1, 1), name="t2")
    >>> p = mrhdata.patches(mri, target=mri, shape=3, stride=1, plane="axial")
    >>> model = mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1)
    >>> history = fit(model, p, p, TrainingConfig(epochs=3), progress=False)
    >>> history.validation[-1] < history.validation[0]
    True
    """
    settings = settings or TrainingConfig()
    settings = dataclasses.replace(settings, precision=resolve_precision(settings.precision))
    if getattr(model, "spec", None) is None:
        raise ModelError(
            f"{type(model).__name__} has no spec to record its training data. Set model.spec = "
            "mrhdata.models.spec.ModelSpec(a name), or take a network from mrhdata.models.create"
        )
    classes = _output_channels(model) if settings.loss in OF_CLASSES else None
    model.spec = measured(model.spec, patches, settings.normalization, classes, batch_transform)  # type: ignore[assignment, arg-type]
    _check_channels(model, patches)
    with _trainable(model, settings) as groups:
        run = _Run(model, groups, patches, settings, batch_transform)
        _train(run, patches, validation, Path(checkpoint) if checkpoint is not None else None, progress)
    if settings.restore_best:
        model.load_state_dict(run.best)
    model.eval()
    return run.history


def _train(run: _Run, patches: Patches, validation: Patches, path: Path | None, progress: Progress) -> None:
    """Run the remaining epochs, or fewer if patience ends."""
    settings = run.settings
    run.check(patches)
    if path is not None:
        run.data = [_fingerprint(patches), _fingerprint(validation)]
        if path.exists():
            run.resume(path)
    # The time before an interruption counts too.
    start = time.perf_counter() - run.history.seconds
    epochs = range(len(run.history.training), settings.epochs)
    bar = tqdm(epochs, desc="training", unit="epoch", disable=callable(progress) or not progress)
    for number in bar:
        if run.stale() >= settings.patience:
            break
        run.epoch(patches, validation)
        run.history.seconds = time.perf_counter() - start
        bar.set_postfix(validation=f"{run.history.validation[-1]:.4f}", best=f"{min(run.history.validation):.4f}")
        if path is not None:
            run.save(path)
        if callable(progress):
            progress(number + 1, settings.epochs)


@contextmanager
def _trainable(model: nn.Module, settings: TrainingConfig) -> Iterator[dict[float, list[nn.Parameter]]]:
    """Yield trainable parameters by the factor on their learning rate; frozen ones have no gradient meanwhile."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        factor = next(
            (float(factor) for prefix, factor in settings.layer_learning_rates if _has_prefix(name, prefix)), 1.0
        )
        groups.setdefault(factor, []).append(parameter)
    for prefix, _ in settings.layer_learning_rates:
        if not any(_has_prefix(name, prefix) for name, _ in model.named_parameters()):
            layers = ", ".join(name for name, _ in model.named_children())
            raise ModelError(f"layer_learning_rates must name layers, which are {layers}; got {prefix!r}")
    frozen = [parameter for parameter in groups.pop(0.0, []) if parameter.requires_grad]
    if not groups:
        raise ModelError(f"layer_learning_rates {settings.layer_learning_rates} freeze every layer. Leave one to train")
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield groups
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _has_prefix(name: str, prefix: str) -> bool:
    """Return whether a name starts with whole components: ``conv3`` is not a prefix of ``conv3_1.weight``."""
    return not prefix or f"{name}.".startswith(f"{prefix}.")


class _Run:
    """State of a training run, which a checkpoint stores."""

    def __init__(
        self,
        model: nn.Module,
        groups: dict[float, list[nn.Parameter]],
        patches: Patches,
        settings: TrainingConfig,
        batch_transform: BatchTransform | None = None,
    ) -> None:
        self.model, self.settings, self.history = model, settings, History()
        self.batch_transform = batch_transform
        spec: ModelSpec = model.spec  # type: ignore[assignment]
        if spec.inputs is None or spec.target is None:
            raise ModelError("the intensity scales are missing; this is a bug")
        self.inputs, self.target = spec.inputs, spec.target
        self.labels = spec.labels if settings.loss in OF_CLASSES else ()
        self.best = _copy(model)
        #: Fingerprints of the training and validation patches, for the checkpoint.
        self.data: list[str] = []
        self.factor = next(iter(groups))
        rates = [factor * settings.learning_rate for factor in groups]
        parameters = [{"params": ps, "lr": rate} for ps, rate in zip(groups.values(), rates, strict=True)]
        if settings.optimizer == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, weight_decay=settings.weight_decay)
        else:
            self.optimizer = torch.optim.SGD(parameters, lr=rates[0], momentum=0.9, weight_decay=settings.weight_decay)
        steps = -(-len(patches) // settings.batch_size)
        self.schedule: Any = _schedule(settings, self.optimizer, rates, steps)

    def check(self, patches: Patches) -> None:
        """Raise ModelError unless the network's predictions for a patch fit its target."""
        _, arrays = next(self._transform(iter([(0, patches.gather(np.zeros(1, np.int64)))]), 0))
        x, y = self._scale(arrays)
        self.model.eval()
        try:
            with torch.inference_mode():
                prediction = self._predict(x)
        except (RuntimeError, ValueError, IndexError, NotImplementedError) as error:
            raise ModelError(
                f"the network cannot take patches of {tuple(x.shape[1:])} (channels, z, y, x): {error}. Check its "
                "ndim and layers, or pass patches of another shape"
            ) from error
        shape = tuple((prediction[0] if isinstance(prediction, tuple) else prediction).shape[1:])
        expected = (len(self.target.offset) if self.labels else y.shape[1], *y.shape[2:])
        if len(shape) != len(expected) or shape[0] != expected[0] or any(np.less(shape[1:], expected[1:])):
            raise ModelError(
                f"the network predicts {shape} (channels, z, y, x) but the target of a patch is {tuple(expected)}. It "
                "needs as many channels as targets or classes, and predictions no smaller than target_shape="
            )

    def stale(self) -> int:
        """Return the number of epochs since the best one."""
        return len(self.history.validation) - 1 - self.history.best_epoch if self.history.validation else 0

    def epoch(self, patches: Patches, validation: Patches) -> None:
        """Train for one epoch, validate, and keep the weights if they are the best."""
        number = len(self.history.training)
        # One generator per epoch, so that a resumed run draws the same noise.
        generator = torch.Generator().manual_seed(hash((self.settings.seed, number)) % 2**63)
        self.model.train()
        losses = []
        settings = self.settings
        self.history.rate.append(self.schedule.get_last_lr()[0] / self.factor)
        batches = self._transform(patches.batches(settings.batch_size, seed=settings.seed, epoch=number), number)
        for indices, arrays in self._time_waits(batches):
            x, y = self._scale(arrays)
            if settings.augment is not None:
                x, y = settings.augment(x, y, patches.spacing_mm, generator)
            if settings.noise:
                x = x + settings.noise * torch.randn(x.shape, generator=generator)
            self.optimizer.zero_grad()
            batch_loss = loss(settings.loss, self._predict(x), y)
            if not torch.isfinite(batch_loss):
                raise DataError(
                    f"the loss is {batch_loss.item()} in epoch {number + 1}. Look for NaN, or lower the learning rate"
                )
            batch_loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
            self.optimizer.step()
            self.schedule.step()
            losses.append(batch_loss.item() * len(indices))
        self.history.training.append(sum(losses) / len(patches))
        self._validate(validation)
        if self.history.validation[-1] <= min(self.history.validation):
            self.history.best_epoch, self.best = number, _copy(self.model)

    def _transform(self, batches: Iterator[Any], epoch: int) -> Iterator[Any]:
        """Apply the batch transform, if any, with different seeds for each batch."""
        for number, (indices, arrays) in enumerate(batches):
            if self.batch_transform is not None:
                arrays = self.batch_transform(arrays, (self.settings.seed, epoch, number))
            yield indices, arrays

    def _time_waits(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield batches and add the time spent waiting for them to the history."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.history.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def _predict(self, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16, self.settings.precision == "bfloat16"):
            return run_on_patches(self.model, x)

    def _validate(self, validation: Patches) -> None:
        """Add the validation loss, and the RMSE in the target's units or the mean Dice, to the history."""
        self.model.eval()
        total = squares = 0.0
        overlap = np.zeros((2, len(self.target.offset)))
        with torch.inference_mode():
            batches = validation.batches(min(_VALIDATION_BATCH, 4 * self.settings.batch_size), shuffle=False)
            for indices, arrays in self._transform(batches, _VALIDATION_EPOCH):
                x, y = self._scale(arrays)
                prediction = centre(self._predict(x), y.shape[2:]).float()
                total += loss(self.settings.loss, prediction, y).item() * len(indices)
                if self.labels:
                    overlap += _overlap(prediction, y)
                else:
                    error = to_target_units(prediction, self.target) - torch.from_numpy(arrays[1])
                    squares += error.square().mean().item() * len(indices)
        self.history.validation.append(total / len(validation))
        if self.labels:
            self.history.dice.append(float(np.mean(overlap[0, 1:] / np.maximum(overlap[1, 1:], 1))))
        else:
            self.history.rmse.append(float(np.sqrt(squares / len(validation))))

    def _scale(self, arrays: list[Any]) -> tuple[Tensor, Tensor]:
        """Return scaled input and target; labels become class numbers."""
        x = scaled(torch.from_numpy(arrays[0]), self.inputs)
        if self.labels:
            return x, torch.from_numpy(_class_numbers(arrays[1], self.labels))
        return x, scaled(torch.from_numpy(arrays[1]), self.target)

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        state = {
            "settings": dataclasses.asdict(self.settings),
            "data": self.data,
            "history": dataclasses.asdict(self.history),
            "model": self.model.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        with atomic_write(path) as draft:
            torch.save(state, draft)

    def resume(self, path: Path) -> None:
        """Read a checkpoint of the same run."""
        try:
            state = torch.load(path, weights_only=True)
            _check_same_settings(path, state["settings"], dataclasses.asdict(self.settings))
            if state["data"] != self.data:
                raise ModelError(
                    f"{path} belongs to a run on other patches. Pass another checkpoint path, or remove it"
                )
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
        except (pickle.UnpicklingError, RuntimeError, KeyError, ValueError, OSError, EOFError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{path} is not a checkpoint of this network. Remove it to start again") from error
        self.best, self.history = state["best"], History(**state["history"])


def _check_same_settings(path: Path, stored: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise ModelError if a checkpoint has other settings; a precision that another machine chose is named."""
    differing = [key for key in settings if stored.get(key) != settings[key]]
    if differing == ["precision"]:
        raise ModelError(
            f"{path} was trained with precision {stored['precision']}; got {settings['precision']}, which 'auto' may "
            f"be on another machine. Pass precision={stored['precision']!r} (--precision), or remove it to start again"
        )
    if stored != settings:
        raise ModelError(f"{path} belongs to a run with {stored}. Pass another checkpoint path")


def _fingerprint(patches: Patches) -> str:
    """Return a fingerprint of the number of patches, their channels and the voxels of some."""
    indices = np.unique(np.linspace(0, len(patches) - 1, _FINGERPRINT_PATCHES).astype(np.int64))
    digest = hashlib.sha256(f"{len(patches)} {patches.channels}".encode())
    for array in patches.gather(indices):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _schedule(settings: TrainingConfig, optimizer: torch.optim.Optimizer, rates: list[float], steps: int) -> Any:
    """Return the schedule of learning rates for a number of steps per epoch."""
    if settings.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps * settings.epochs)
    if settings.schedule == "steps":
        return torch.optim.lr_scheduler.StepLR(optimizer, 10 * steps, 0.1)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 0)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _output_channels(model: nn.Module) -> int:
    """Return the number of output channels of the last layer."""
    return int([p for p in model.parameters() if p.ndim > 1][-1].shape[0])


def _class_numbers(values: np.ndarray, labels: tuple[int, ...]) -> np.ndarray:
    """Return the class number of each label; values that are not labels become `IGNORE_INDEX`."""
    table = np.asarray(labels, dtype=np.float32)
    order = np.argsort(table)
    index = np.searchsorted(table[order], values).clip(max=len(table) - 1)
    classes = order[index]
    return np.where(table[classes] == values, classes, IGNORE_INDEX).astype(np.float32)


def _overlap(scores: Tensor, truth: Tensor) -> np.ndarray:
    """Return numerator and denominator of the Dice coefficient of each class: (2, classes)."""
    predicted, y = scores.argmax(1).numpy(), truth[:, 0].numpy().astype(np.int64)
    known, count = y != IGNORE_INDEX, scores.shape[1]
    y, predicted = y[known], predicted[known]
    common = np.bincount(y[y == predicted], minlength=count)
    return np.stack([2 * common, np.bincount(y, minlength=count) + np.bincount(predicted, minlength=count)])


def _check_channels(model: nn.Module, patches: Patches) -> None:
    first = next(p for p in model.parameters() if p.ndim > 1)
    in_channels = int(getattr(model, "in_channels", first.shape[1]))
    if in_channels != len(patches.channels):
        raise ModelError(
            f"the network takes {in_channels} channels but the patches have {len(patches.channels)}: "
            f"{patches.channels}. Create it with in_channels={len(patches.channels)}"
        )
