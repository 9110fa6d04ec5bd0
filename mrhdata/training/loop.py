"""Training a network on patches: scales fixed first, early stopping, the best weights kept; fine-tuning by layer."""

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
from mrhdata.errors import DataError, ModelError
from mrhdata.models.spec import IGNORE_INDEX, ModelSpec, run_on_patches, scaled, to_target_units
from mrhdata.training.history import History
from mrhdata.training.losses import OF_CLASSES, centre, loss
from mrhdata.training.normalization import measured
from mrhdata.training.settings import TrainingConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mrhdata.patching.dataset import Patches

#: Patches of a batch of validation, and the number of its epoch.
_VALIDATED, _VALIDATION = 256, 2**31


#: Patches whose voxels tell a run's data from another's.
_TOLD = 64


#: Arrays of a batch and the numbers that seed it, to the arrays that are learned from.
Change = Callable[[list[Any], tuple[int, ...]], list[Any]]


def fit(
    model: nn.Module,
    patches: Patches,
    validation: Patches,
    settings: TrainingConfig | None = None,
    *,
    batch_transform: Change | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> History:
    """Train a network in place.

    Parameters
    ----------
    model : torch.nn.Module
        From :func:`mrhdata.models.create`; afterwards it holds the weights of the epoch with the lowest
        validation loss, and ``model.spec`` the intensity scales measured on the training patches. A network
        with input scales but none of a target, as :func:`mrhdata.recipes.mrhnet.transfer` makes, keeps the
        former: they are what its weights know.
    patches, validation : Patches
        With a target. They must share no voxel; slice the volumes, or use other subjects.
    settings : Training, optional
    batch_transform : callable, optional
        Takes the arrays of a batch and the numbers that seed it, and returns those to learn from, such as
        :class:`mrhdata.recipes.restoration.Pairs`, which makes a degraded input of a good image. Batches of validation
        are seeded alike in every epoch.
    checkpoint : path, optional
        State after each epoch; a run that was stopped goes on from there and ends as it would have.
    progress : bool
        Show a bar.

    Returns
    -------
    history : History

    Raises
    ------
    DataError
        Patches have no target, or values are not finite.
    ModelError
        Channels do not fit the network, the checkpoint belongs to another run, or no layer is called as
        one of ``settings.layer_learning_rates``.

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
    if getattr(model, "spec", None) is None:
        raise ModelError(
            f"{type(model).__name__} has no spec for what it learned from; set model.spec = "
            "mrhdata.models.spec.ModelSpec(a name), or take a network from mrhdata.models.create"
        )
    classes = _classes(model) if settings.loss in OF_CLASSES else None
    model.spec = measured(model.spec, patches, settings.normalization, classes, batch_transform)  # type: ignore[assignment, arg-type]
    _check_channels(model, patches)
    with _trainable(model, settings) as groups:
        run = _Run(model, groups, patches, settings, batch_transform)
        _train(run, patches, validation, Path(checkpoint) if checkpoint is not None else None, progress)
    if settings.restore_best:
        model.load_state_dict(run.best)
    model.eval()
    return run.history


def _train(run: _Run, patches: Patches, validation: Patches, path: Path | None, progress: bool) -> None:
    """All epochs that are left, unless patience ends first."""
    settings = run.settings
    run.check(patches)
    if path is not None:
        run.data = [_told(patches), _told(validation)]
        if path.exists():
            run.resume(path)
    # Of a run that was stopped, what it took before counts too.
    start = time.perf_counter() - run.history.seconds
    bar = tqdm(range(len(run.history.training), settings.epochs), desc="training", unit="epoch", disable=not progress)
    for _ in bar:
        if run.stale() >= settings.patience:
            break
        run.epoch(patches, validation)
        run.history.seconds = time.perf_counter() - start
        bar.set_postfix(validation=f"{run.history.validation[-1]:.4f}", best=f"{min(run.history.validation):.4f}")
        if path is not None:
            run.save(path)


@contextmanager
def _trainable(model: nn.Module, settings: TrainingConfig) -> Iterator[dict[float, list[nn.Parameter]]]:
    """Parameters by the factor on their rate, without the frozen ones, which take no gradient for as long."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        factor = next((float(factor) for prefix, factor in settings.layer_learning_rates if _begins(name, prefix)), 1.0)
        groups.setdefault(factor, []).append(parameter)
    for prefix, _ in settings.layer_learning_rates:
        if not any(_begins(name, prefix) for name, _ in model.named_parameters()):
            layers = ", ".join(name for name, _ in model.named_children())
            raise ModelError(f"no layer is called {prefix!r}; there are {layers}")
    frozen = [parameter for parameter in groups.pop(0.0, []) if parameter.requires_grad]
    if not groups:
        raise ModelError(f"the rates {settings.layer_learning_rates} freeze every layer; leave one to train")
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield groups
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _begins(name: str, prefix: str) -> bool:
    """Whole names only: ``conv3`` is not the beginning of ``conv3_1.weight``."""
    return not prefix or f"{name}.".startswith(f"{prefix}.")


class _Run:
    """State of one training: everything that a checkpoint holds."""

    def __init__(
        self,
        model: nn.Module,
        groups: dict[float, list[nn.Parameter]],
        patches: Patches,
        settings: TrainingConfig,
        change: Change | None = None,
    ) -> None:
        self.model, self.settings, self.history, self.change = model, settings, History(), change
        spec: ModelSpec = model.spec  # type: ignore[assignment]
        if spec.inputs is None or spec.target is None:
            raise ModelError("the intensity scales are missing; this is a bug")
        self.inputs, self.target = spec.inputs, spec.target
        self.labels = spec.labels if settings.loss in OF_CLASSES else ()
        self.best = _copy(model)
        #: What tells the patches of this run from others, for its checkpoint.
        self.data: list[str] = []
        self.factor = next(iter(groups))
        rates = [factor * settings.learning_rate for factor in groups]
        parts = [{"params": ps, "lr": rate} for ps, rate in zip(groups.values(), rates, strict=True)]
        if settings.optimizer == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(parts, weight_decay=settings.weight_decay)
        else:
            self.optimizer = torch.optim.SGD(parts, lr=rates[0], momentum=0.9, weight_decay=settings.weight_decay)
        steps = -(-len(patches) // settings.batch_size)
        self.schedule: Any = _schedule(settings, self.optimizer, rates, steps)

    def check(self, patches: Patches) -> None:
        """Raise `ModelError` unless the network's answers to a patch are of the kind of its target."""
        _, parts = next(self._changed(iter([(0, patches.gather(np.zeros(1, np.int64)))]), 0))
        x, y = self._scaled(parts)
        self.model.eval()
        try:
            with torch.inference_mode():
                answer = self._answer(x)
        except (RuntimeError, ValueError, IndexError, NotImplementedError) as error:
            raise ModelError(
                f"the network cannot take patches of {tuple(x.shape[1:])} (channels, z, y, x): {error}; look at its "
                "ndim and layers, or give patches of another shape"
            ) from error
        answered = tuple((answer[0] if isinstance(answer, tuple) else answer).shape[1:])
        wanted = (len(self.target.offset) if self.labels else y.shape[1], *y.shape[2:])
        if len(answered) != len(wanted) or answered[0] != wanted[0] or any(np.less(answered[1:], wanted[1:])):
            raise ModelError(
                f"the network answers {answered} (channels, z, y, x) and the target of a patch is {tuple(wanted)}; it "
                "needs as many channels as targets or classes, and answers no smaller than target_shape="
            )

    def stale(self) -> int:
        """Epochs since the best one."""
        return len(self.history.validation) - 1 - self.history.best_epoch if self.history.validation else 0

    def epoch(self, patches: Patches, validation: Patches) -> None:
        number = len(self.history.training)
        # A generator of its own for each epoch: a resumed run draws the same noise.
        generator = torch.Generator().manual_seed(hash((self.settings.seed, number)) % 2**63)
        self.model.train()
        losses = []
        settings = self.settings
        self.history.rate.append(self.schedule.get_last_lr()[0] / self.factor)
        batches = self._changed(patches.batches(settings.batch_size, seed=settings.seed, epoch=number), number)
        for rows, parts in self._arriving(batches):
            x, y = self._scaled(parts)
            if settings.augment is not None:
                x, y = settings.augment(x, y, patches.spacing_mm, generator)
            if settings.noise:
                x = x + settings.noise * torch.randn(x.shape, generator=generator)
            self.optimizer.zero_grad()
            found = loss(settings.loss, self._answer(x), y)
            if not torch.isfinite(found):
                raise DataError(
                    f"the loss is {found.item()} in epoch {number + 1}; look for NaN, or lower the learning rate"
                )
            found.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
            self.optimizer.step()
            self.schedule.step()
            losses.append(found.item() * len(rows))
        self.history.training.append(sum(losses) / len(patches))
        self._validate(validation)
        if self.history.validation[-1] <= min(self.history.validation):
            self.history.best_epoch, self.best = number, _copy(self.model)

    def _changed(self, batches: Iterator[Any], epoch: int) -> Iterator[Any]:
        """Batches, each changed with numbers of its own."""
        for number, (rows, parts) in enumerate(batches):
            yield rows, parts if self.change is None else self.change(parts, (self.settings.seed, epoch, number))

    def _arriving(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Batches, while the wait for them is measured."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.history.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def _answer(self, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16, self.settings.precision == "bfloat16"):
            return run_on_patches(self.model, x)

    def _validate(self, validation: Patches) -> None:
        """The loss, and the root mean squared error in the target's units or the mean Dice."""
        self.model.eval()
        total = squares = 0.0
        overlap = np.zeros((2, len(self.target.offset)))
        with torch.inference_mode():
            batches = validation.batches(min(_VALIDATED, 4 * self.settings.batch_size), shuffle=False)
            for rows, parts in self._changed(batches, _VALIDATION):
                x, y = self._scaled(parts)
                answer = centre(self._answer(x), y.shape[2:]).float()
                total += loss(self.settings.loss, answer, y).item() * len(rows)
                if self.labels:
                    overlap += _overlap(answer, y)
                else:
                    error = to_target_units(answer, self.target) - torch.from_numpy(parts[1])
                    squares += error.square().mean().item() * len(rows)
        self.history.validation.append(total / len(validation))
        if self.labels:
            self.history.dice.append(float(np.mean(overlap[0, 1:] / np.maximum(overlap[1, 1:], 1))))
        else:
            self.history.rmse.append(float(np.sqrt(squares / len(validation))))

    def _scaled(self, parts: list[Any]) -> tuple[Tensor, Tensor]:
        x = scaled(torch.from_numpy(parts[0]), self.inputs)
        if self.labels:
            return x, torch.from_numpy(_numbered(parts[1], self.labels))
        return x, scaled(torch.from_numpy(parts[1]), self.target)

    def save(self, path: Path) -> None:
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
        try:
            state = torch.load(path, weights_only=True)
            if state["settings"] != dataclasses.asdict(self.settings):
                raise ModelError(f"{path} belongs to a run with {state['settings']}; give another checkpoint path")
            if state["data"] != self.data:
                raise ModelError(
                    f"{path} belongs to a run on other patches; give another checkpoint path, or remove it"
                )
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
        except (pickle.UnpicklingError, RuntimeError, KeyError, ValueError, OSError, EOFError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{path} is no checkpoint of this training; remove it to start anew") from error
        self.best, self.history = state["best"], History(**state["history"])


def _told(patches: Patches) -> str:
    """What tells patches from others: how many there are, and the voxels of some."""
    rows = np.unique(np.linspace(0, len(patches) - 1, _TOLD).astype(np.int64))
    held = hashlib.sha256(f"{len(patches)} {patches.channels}".encode())
    for part in patches.gather(rows):
        held.update(np.ascontiguousarray(part).tobytes())
    return held.hexdigest()


def _schedule(settings: TrainingConfig, optimizer: torch.optim.Optimizer, rates: list[float], steps: int) -> Any:
    """How rates change from step to step, `steps` of which make an epoch."""
    if settings.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps * settings.epochs)
    if settings.schedule == "steps":
        return torch.optim.lr_scheduler.StepLR(optimizer, 10 * steps, 0.1)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 0)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _classes(model: nn.Module) -> int:
    """How many a network answers: those of its last layer."""
    return int([p for p in model.parameters() if p.ndim > 1][-1].shape[0])


def _numbered(values: np.ndarray, labels: tuple[int, ...]) -> np.ndarray:
    """Labels as numbers of their classes; those that are none become `IGNORE_INDEX`."""
    table = np.asarray(labels, dtype=np.float32)
    order = np.argsort(table)
    place = np.searchsorted(table[order], values).clip(max=len(table) - 1)
    found = order[place]
    return np.where(table[found] == values, found, IGNORE_INDEX).astype(np.float32)


def _overlap(answer: Tensor, truth: Tensor) -> np.ndarray:
    """Twice the voxels that answer and truth share, and those of both, of each class: (2, classes)."""
    classes, y = answer.argmax(1).numpy(), truth[:, 0].numpy().astype(np.int64)
    known, count = y != IGNORE_INDEX, answer.shape[1]
    y, classes = y[known], classes[known]
    both = np.bincount(y[y == classes], minlength=count)
    return np.stack([2 * both, np.bincount(y, minlength=count) + np.bincount(classes, minlength=count)])


def _check_channels(model: nn.Module, patches: Patches) -> None:
    first = next(p for p in model.parameters() if p.ndim > 1)
    taken = int(getattr(model, "in_channels", first.shape[1]))
    if taken != len(patches.channels):
        raise ModelError(
            f"the network takes {taken} channels but the patches have {len(patches.channels)}: "
            f"{patches.channels}; create it with in_channels={len(patches.channels)}"
        )
