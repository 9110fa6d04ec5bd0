"""One training run: its steps, its validation, and the state that a checkpoint stores."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mrhdata.errors import DataError, ModelError
from mrhdata.models.precision import autocast
from mrhdata.models.spec import IGNORE_INDEX, ModelSpec, run_on_patches, scaled, to_target_units
from mrhdata.models.transfer import pinned_bytes, to_device
from mrhdata.training.augmentation import standard_noise
from mrhdata.training.checkpoints import read_checkpoint, write_checkpoint
from mrhdata.training.history import History
from mrhdata.training.losses import OF_CLASSES, centre, loss
from mrhdata.training.optimization import Groups, optimizer_of, schedule_of
from mrhdata.training.processes import Processes
from mrhdata.training.settings import TrainingConfig

if TYPE_CHECKING:
    from torch import Tensor

    from mrhdata.patching.dataset import Patches

log = logging.getLogger("mrhdata")

#: Patches per validation batch, and the epoch number that seeds their transform.
_VALIDATION_BATCH, _VALIDATION_EPOCH = 256, 2**31

#: Maps the arrays of a batch and the numbers that seed it to the arrays to learn from.
BatchTransform = Callable[[list[Any], tuple[int, ...]], list[Any]]


class _OnPatches(nn.Module):
    """A network as a module that takes patches (B, C, z, y, x), also a network of planes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        """Return predictions for patches."""
        return run_on_patches(self.model, x)


class TrainingRun:
    """A network in training, with its optimiser and history."""

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        patches: Patches,
        settings: TrainingConfig,
        *,
        device: torch.device,
        processes: Processes,
        batch_transform: BatchTransform | None = None,
    ) -> None:
        self.model, self.settings, self.history = model, settings, History()
        self.device, self.processes, self.batch_transform = device, processes, batch_transform
        spec: ModelSpec = model.spec  # type: ignore[assignment]
        if spec.inputs is None or spec.target is None:
            raise ModelError("the intensity scales are missing; this is a bug")
        self._inputs, self._target = spec.inputs, spec.target
        self._outputs = len(spec.target.offset)
        self.labels = spec.labels if settings.loss in OF_CLASSES else ()
        self.best = _copy(model)
        #: Fingerprints of the training and validation patches, for the checkpoint.
        self.data: list[str] = []
        self._factor = next(iter(groups))
        self._optimizer = optimizer_of(groups, settings)
        steps = -(-len(patches) // settings.batch_size)
        self._schedule = schedule_of(settings, self._optimizer, groups, steps)
        self._scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
        self._network = processes.wrap(_OnPatches(model), device)
        if settings.compile:
            self._network = torch.compile(self._network)  # type: ignore[assignment]
        #: Progress within the epoch: losses and numbers of patches of the steps done, and the generator of noise.
        self._losses: list[tuple[Any, int]] = []
        self._generator = torch.Generator()
        self.steps_done = 0

    def check(self, patches: Patches) -> None:
        """Raise ModelError unless the network's predictions for a patch fit its target."""
        first = iter([(np.zeros(1, np.int64), patches.gather(np.zeros(1, np.int64)))])
        _, (raw_x, raw_y) = next(to_device(self._prepare(first, 0, 0), self.device))
        x, y = self._scale(raw_x, raw_y)
        self.model.eval()
        try:
            with self._memory_errors(1), torch.inference_mode(), self._autocast():
                prediction = run_on_patches(self.model, x)
        except ModelError:
            raise
        except (RuntimeError, ValueError, IndexError, NotImplementedError) as error:
            raise ModelError(
                f"the network cannot take patches of {tuple(x.shape[1:])} (channels, z, y, x): {error}. Check its "
                "ndim and layers, or pass patches of another shape"
            ) from error
        shape = tuple((prediction[0] if isinstance(prediction, tuple) else prediction).shape[1:])
        expected = (self._outputs if self.labels else y.shape[1], *y.shape[2:])
        if len(shape) != len(expected) or shape[0] != expected[0] or any(np.less(shape[1:], expected[1:])):
            raise ModelError(
                f"the network predicts {shape} (channels, z, y, x) but the target of a patch is {tuple(expected)}. It "
                "needs as many channels as targets or classes, and predictions no smaller than target_shape="
            )

    def stale(self) -> int:
        """Return the number of epochs since the best one."""
        return len(self.history.validation) - 1 - self.history.best_epoch if self.history.validation else 0

    def epoch(self, patches: Patches, validation: Patches, after_step: Callable[[], None] = lambda: None) -> None:
        """Train for one epoch, or for what remains of it; validate, and keep the weights if they are the best."""
        start, waited = time.perf_counter(), self.history.waited
        number = len(self.history.training)
        if not self.steps_done:
            # One seed per epoch, so that a resumed run draws the same noise.
            self._generator.manual_seed(hash((self.settings.seed, number)) % 2**63)
            self.history.rate.append(self._schedule.get_last_lr()[0] / self._factor)
        self.model.train()
        for _, (raw_x, raw_y) in self._time_waits(self._batches(patches, number)):
            with self._memory_errors(len(raw_x)):
                self._step(raw_x, raw_y, patches)
            after_step()
        self.history.training.append(self._mean_loss(len(patches), number))
        self._losses, self.steps_done = [], 0
        trained = time.perf_counter()
        self._validate(validation)
        if self.history.validation[-1] <= min(self.history.validation):
            self.history.best_epoch, self.best = number, _copy(self.model)
        self._log_times(number, start, trained, self.history.waited - waited)

    def _log_times(self, number: int, start: float, trained: float, waited: float) -> None:
        """Log the shares of an epoch's time: the wait for patches, steps, and validation."""
        end = time.perf_counter()
        shares = [waited, trained - start - waited, end - trained]
        percent = [100 * share / (end - start) for share in shares]
        log.info("epoch %d: %.1f s, %.0f %% waiting for patches, %.0f %% in steps, %.0f %% in validation",
                 number + 1, end - start, *percent)  # fmt: skip

    def _batches(self, patches: Patches, number: int) -> Iterator[Any]:
        """Yield this process's part of each remaining batch of an epoch, on the device."""
        settings = self.settings
        reserve = pinned_bytes(patches.batch_bytes(settings.batch_size), self.device)
        batches = patches.batches(
            settings.batch_size,
            seed=settings.seed,
            epoch=number,
            start=self.steps_done,
            part=(self.processes.rank, self.processes.count),
            reserve=reserve,
        )
        return to_device(self._prepare(batches, number, self.steps_done), self.device)

    def _prepare(self, batches: Iterator[Any], epoch: int, first: int) -> Iterator[Any]:
        """Apply the batch transform with different seeds for each batch, and turn labels into class numbers."""
        seed = self.settings.seed
        for number, (indices, arrays) in enumerate(batches, first):
            prepared = arrays if self.batch_transform is None else self.batch_transform(arrays, (seed, epoch, number))
            if self.labels:
                prepared = [prepared[0], _class_numbers(prepared[1], self.labels)]
            yield indices, prepared

    def _time_waits(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield batches and add the time spent waiting for them to the history."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.history.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def _step(self, raw_x: Tensor, raw_y: Tensor, patches: Patches) -> None:
        """Change the weights once, by the gradient of this process's part of a batch."""
        settings = self.settings
        x, y = self._scale(raw_x, raw_y)
        if settings.augment is not None:
            x, y = settings.augment(x, y, patches.spacing_mm, self._generator)
        if settings.noise:
            x = x + settings.noise * standard_noise(x, self._generator)
        whole = min(settings.batch_size, len(patches) - self.steps_done * settings.batch_size)
        count = self._part_length(whole)
        self._optimizer.zero_grad()
        value = self._backward(x, y, count * self.processes.count / whole)
        if self.device.type == "cpu":
            self._check_finite(value.item(), len(self.history.training))
        self._scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        self._losses.append((value.item() if self.device.type == "cpu" else value, count))
        self.steps_done += 1

    def _backward(self, x: Tensor, y: Tensor, weight: float) -> Tensor:
        """Add up the gradients of a batch, in several parts if settings say so; return the mean loss."""
        parts = min(self.settings.accumulate, len(x))
        edges = [len(x) * i // parts for i in range(parts + 1)]
        total: Any = 0
        for first, last in itertools.pairwise(edges):
            share = (last - first) / len(x)
            # Gradients of all processes are averaged once, after the last part.
            context = self._network.no_sync if last < len(x) and self.processes.count > 1 else contextlib.nullcontext
            with context():  # type: ignore[operator]
                value = self._loss_of(x[first:last], y[first:last])
                scaled_value = value if share * weight == 1 else value * (share * weight)
                self._scaler.scale(scaled_value).backward()  # type: ignore[no-untyped-call]
            total = total + value.detach() * share if parts > 1 else value.detach()
        return total

    def _loss_of(self, x: Tensor, y: Tensor) -> Tensor:
        with self._autocast():
            prediction = self._network(x)
        return loss(self.settings.loss, prediction, y, self.settings.dice_smoothing)

    @contextlib.contextmanager
    def _memory_errors(self, count: int) -> Iterator[None]:
        """Raise a lack of memory on the device as ModelError."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{self.device} has too little memory for a batch of {count} patches. Pass a larger accumulate= "
                f"(now {self.settings.accumulate}), or a smaller batch_size= or shape="
            ) from error

    def _autocast(self) -> Any:
        return autocast(self.device.type, self.settings.precision)

    def _part_length(self, whole: int) -> int:
        """Return the number of patches of a batch that are this process's."""
        return max(0, -(-(whole - self.processes.rank) // self.processes.count))

    def _mean_loss(self, patches: int, number: int) -> float:
        """Return the mean loss of an epoch over all processes."""
        values = self._loss_values()
        for value in values:
            self._check_finite(value, number)
        total = sum(value * count for value, (_, count) in zip(values, self._losses, strict=True))
        return float(self.processes.sum(total)) / patches

    def _loss_values(self) -> list[float]:
        """Return the losses of the steps done; a GPU is asked for all of them at once."""
        pending = [value for value, _ in self._losses if isinstance(value, torch.Tensor)]
        numbers = iter(torch.stack(pending).tolist() if pending else ())
        return [next(numbers) if isinstance(value, torch.Tensor) else value for value, _ in self._losses]

    def _check_finite(self, value: float, number: int) -> None:
        if not np.isfinite(value):
            raise DataError(f"the loss is {value} in epoch {number + 1}. Look for NaN, or lower the learning rate")

    def _validate(self, validation: Patches) -> None:
        """Add the validation loss, and the RMSE in the target's units or the mean Dice, to the history."""
        self.model.eval()
        sums: Any = np.zeros(2)
        overlap = np.zeros((2, self._outputs))
        size = min(_VALIDATION_BATCH, 4 * self.settings.batch_size)
        part = (self.processes.rank, self.processes.count)
        batches = validation.batches(size, shuffle=False, part=part)
        with torch.inference_mode(), self._memory_errors(min(size, len(validation))):
            prepared = to_device(self._prepare(batches, _VALIDATION_EPOCH, 0), self.device)
            for number, (_, (raw_x, raw_y)) in enumerate(prepared):
                count = self._part_length(min(size, len(validation) - number * size))
                if not count:
                    continue
                x, y = self._scale(raw_x, raw_y)
                with self._autocast():
                    prediction = run_on_patches(self.model, x)
                prediction = centre(prediction, y.shape[2:]).float()
                sums[0] += loss(self.settings.loss, prediction, y, self.settings.dice_smoothing).item() * count
                if self.labels:
                    overlap += _overlap(prediction, y)
                else:
                    error = to_target_units(prediction, self._target) - raw_y
                    sums[1] += error.square().mean().item() * count
        sums = self.processes.sum(sums)
        self.history.validation.append(float(sums[0]) / len(validation))
        if self.labels:
            overlap = self.processes.sum(overlap)
            self.history.dice.append(float(np.mean(overlap[0, 1:] / np.maximum(overlap[1, 1:], 1))))
        else:
            self.history.rmse.append(float(np.sqrt(sums[1] / len(validation))))

    def _scale(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return scaled input and target; class numbers stay as they are."""
        x = scaled(x, self._inputs)
        if self.settings.channels_last:
            x = x.contiguous(memory_format=torch.channels_last_3d)
        return x, y if self.labels else scaled(y, self._target)

    def save(self, path: Path) -> None:
        """Write a checkpoint, in the first process only."""
        if not self.processes.first:
            return
        losses = [(value, count) for value, (_, count) in zip(self._loss_values(), self._losses, strict=True)]
        write_checkpoint(
            path,
            self.settings,
            self.data,
            {
                "history": dataclasses.asdict(self.history),
                "model": self.model.state_dict(),
                "best": self.best,
                "optimizer": self._optimizer.state_dict(),
                "schedule": self._schedule.state_dict(),
                "scaler": self._scaler.state_dict(),
                "losses": losses,
                "random": {"noise": self._generator.get_state(), **_random_states(self.device)},
            },
        )

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint of the same run, which may come from another device."""
        state = read_checkpoint(path, self.settings, self.data)
        try:
            self.model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._schedule.load_state_dict(state["schedule"])
            self._scaler.load_state_dict(state["scaler"])
            self.history = History(**state["history"])
            self._losses, random = state["losses"], state["random"]
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise ModelError(f"{path} is not a checkpoint of this network. Remove it to start again") from error
        self.steps_done = len(self._losses)
        self.best = {name: value.to(self.device) for name, value in state["best"].items()}
        _restore_random_states(self.device, self._generator, random)


def _random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of PyTorch's own generators, from which layers such as dropout draw."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _restore_random_states(device: torch.device, noise: torch.Generator, states: dict[str, Tensor]) -> None:
    """Restore the states of generators; a GPU that the run had not used before keeps its own."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    noise.set_state(states["noise"])


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _class_numbers(values: np.ndarray, labels: tuple[int, ...]) -> np.ndarray:
    """Return the class number of each label; values that are not labels become `IGNORE_INDEX`."""
    table = np.asarray(labels, dtype=np.float32)
    order = np.argsort(table)
    index = np.searchsorted(table[order], values).clip(max=len(table) - 1)
    classes = order[index]
    return np.where(table[classes] == values, classes, IGNORE_INDEX).astype(np.float32)


def _overlap(scores: Tensor, truth: Tensor) -> np.ndarray:
    """Return numerator and denominator of the Dice coefficient of each class: (2, classes)."""
    predicted, y = scores.argmax(1).cpu().numpy(), truth[:, 0].cpu().numpy().astype(np.int64)
    known, count = y != IGNORE_INDEX, scores.shape[1]
    y, predicted = y[known], predicted[known]
    common = np.bincount(y[y == predicted], minlength=count)
    return np.stack([2 * common, np.bincount(y, minlength=count) + np.bincount(predicted, minlength=count)])
