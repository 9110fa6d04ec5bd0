"""Training a network on patches: scales fixed first, early stopping, the best weights kept; fine-tuning by layer."""

from __future__ import annotations

import dataclasses
import os
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as f
from tqdm.auto import tqdm

from mrhdata.drafting import appearing
from mrhdata.errors import DataError, ModelError
from mrhdata.models.storage import Spec, network_on, rescaled, scaled
from mrhdata.scaling import measured

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mrhdata.patching import Patches

#: Patches of a batch of validation.
_VALIDATED = 256


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes
    ----------
    epochs, batch_size, seed : int
    learning_rate : float
        The highest, for the one-cycle schedule; the first, for steps.
    optimizer : {"adamw", "sgd"}
        ``sgd`` has momentum 0.9.
    schedule : {"one-cycle", "steps"}
        ``steps`` divides by 10 every 10 epochs.
    weight_decay, clip : float
        `clip` bounds the norm of the gradient.
    loss : {"mse", "mae"}
    patience : int
        Epochs without a lower validation loss before training stops.
    noise : float
        Standard deviation of Gaussian noise added to the scaled inputs.
    scale : {"channel", "maximum"}
        Inputs are centred and scaled channel by channel, or (published) divided by one maximum.
    rates : tuple of (str, float)
        Layers, by the beginning of their parameters' names, and the factor on their learning rate. The
        first that fits counts, ``""`` fits all, and those that none fits have 1. A factor of 0 freezes:
        no gradient, no weight decay. ``(("conv5", 10), ("", 0))`` trains the last layer alone.
    keep : {"best", "last"}
        Weights of the epoch with the lowest validation loss, or of the last.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    optimizer: str = "adamw"
    schedule: str = "one-cycle"
    weight_decay: float = 1e-2
    clip: float = 1.0
    loss: str = "mse"
    patience: int = 10
    noise: float = 0.0
    scale: str = "channel"
    seed: int = 0
    rates: tuple[tuple[str, float], ...] = ()
    keep: str = "best"

    def __post_init__(self) -> None:
        choices = {
            "optimizer": ("adamw", "sgd"),
            "schedule": ("one-cycle", "steps"),
            "loss": ("mse", "mae"),
            "scale": ("channel", "maximum"),
            "keep": ("best", "last"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ModelError(f"{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        for prefix, factor in self.rates:
            if factor < 0:
                raise ModelError(f"the learning rate of {prefix!r} has the factor {factor}; give 0 to freeze, or more")


@dataclass
class History:
    """What happened in each epoch.

    Attributes
    ----------
    training, validation : list of float
        Losses, in the target's scaled units.
    rmse : list of float
        Root of the mean squared error of the validation patches, in the target's own units.
    rate : list of float
        Learning rate at the first step, of layers without a factor.
    best_epoch : int
        The one with the lowest validation loss.
    seconds : float
    """

    training: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best_epoch: int = -1
    seconds: float = 0.0
    rmse: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)


def fit(
    model: nn.Module,
    patches: Patches,
    validation: Patches,
    settings: Training | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> History:
    """Train a network in place.

    Parameters
    ----------
    model : torch.nn.Module
        From :func:`mrhdata.models.create`; afterwards it holds the weights of the epoch with the lowest
        validation loss, and ``model.spec`` the intensity scales measured on the training patches. A network
        with input scales but none of a target, as :func:`mrhdata.methods.mrhnet.transfer` makes, keeps the
        former: they are what its weights know.
    patches, validation : Patches
        With a target. They must share no voxel; slice the volumes, or use other subjects.
    settings : Training, optional
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
        one of ``settings.rates``.

    Examples
    --------
    >>> import mrhdata
    >>> values = np.random.default_rng(0).random((4, 8, 8), dtype=np.float32)
    >>> mri = mrhdata.volume.from_array(values, spacing=(1, 1, 1), name="t2")
    >>> p = mrhdata.patches(mri, target=mri, shape=3, stride=1, plane="axial")
    >>> model = mrhdata.models.create("mrhnet", in_channels=1, blocks=1)
    >>> history = fit(model, p, p, Training(epochs=3), progress=False)
    >>> history.validation[-1] < history.validation[0]
    True
    """
    settings = settings or Training()
    start = time.perf_counter()
    model.spec = measured(model.spec, patches, settings.scale)  # type: ignore[assignment, arg-type]
    _check_channels(model, patches)
    with _trainable(model, settings) as groups:
        run = _Run(model, groups, patches, settings)
        _train(run, patches, validation, Path(checkpoint) if checkpoint is not None else None, progress)
    if settings.keep == "best":
        model.load_state_dict(run.best)
    model.eval()
    run.history.seconds = time.perf_counter() - start
    return run.history


def _train(run: _Run, patches: Patches, validation: Patches, path: Path | None, progress: bool) -> None:
    """All epochs that are left, unless patience ends first."""
    settings = run.settings
    if path is not None and path.exists():
        run.resume(path)
    bar = tqdm(range(len(run.history.training), settings.epochs), desc="training", unit="epoch", disable=not progress)
    for _ in bar:
        if run.stale() >= settings.patience:
            break
        run.epoch(patches, validation)
        bar.set_postfix(validation=f"{run.history.validation[-1]:.4f}", best=f"{min(run.history.validation):.4f}")
        if path is not None:
            run.save(path)


@contextmanager
def _trainable(model: nn.Module, settings: Training) -> Iterator[dict[float, list[nn.Parameter]]]:
    """Parameters by the factor on their rate, without the frozen ones, which take no gradient for as long."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        factor = next((float(factor) for prefix, factor in settings.rates if _begins(name, prefix)), 1.0)
        groups.setdefault(factor, []).append(parameter)
    for prefix, _ in settings.rates:
        if not any(_begins(name, prefix) for name, _ in model.named_parameters()):
            layers = ", ".join(name for name, _ in model.named_children())
            raise ModelError(f"no layer is called {prefix!r}; there are {layers}")
    frozen = [parameter for parameter in groups.pop(0.0, []) if parameter.requires_grad]
    if not groups:
        raise ModelError(f"the rates {settings.rates} freeze every layer; leave one to train")
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
        self, model: nn.Module, groups: dict[float, list[nn.Parameter]], patches: Patches, settings: Training
    ) -> None:
        self.model, self.settings, self.history = model, settings, History()
        spec: Spec = model.spec  # type: ignore[assignment]
        if spec.inputs is None or spec.target is None:
            raise ModelError("the intensity scales are missing; this is a bug")
        self.inputs, self.target = spec.inputs, spec.target
        self.best = _copy(model)
        self.factor = next(iter(groups))
        rates = [factor * settings.learning_rate for factor in groups]
        parts = [{"params": ps, "lr": rate} for ps, rate in zip(groups.values(), rates, strict=True)]
        if settings.optimizer == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(parts, weight_decay=settings.weight_decay)
        else:
            self.optimizer = torch.optim.SGD(parts, lr=rates[0], momentum=0.9, weight_decay=settings.weight_decay)
        steps = -(-len(patches) // settings.batch_size)
        self.schedule: Any = (
            torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rates, total_steps=steps * settings.epochs)
            if settings.schedule == "one-cycle"
            else torch.optim.lr_scheduler.StepLR(self.optimizer, 10 * steps, 0.1)
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
        for rows, parts in patches.stream(settings.batch_size, seed=settings.seed, epoch=number):
            x, y = self._scaled(parts)
            if self.settings.noise:
                x = x + self.settings.noise * torch.randn(x.shape, generator=generator)
            self.optimizer.zero_grad()
            loss = self._loss(network_on(self.model, x), y)
            if not torch.isfinite(loss):
                raise DataError(
                    f"the loss is {loss.item()} in epoch {number + 1}; look for NaN, or lower the learning rate"
                )
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.item() * len(rows))
        self.history.training.append(sum(losses) / len(patches))
        found, rmse = self._validate(validation)
        self.history.validation.append(found)
        self.history.rmse.append(rmse)
        if self.history.validation[-1] <= min(self.history.validation):
            self.history.best_epoch, self.best = number, _copy(self.model)

    def _validate(self, validation: Patches) -> tuple[float, float]:
        """The loss, and the root mean squared error in the target's units."""
        self.model.eval()
        total = squares = 0.0
        with torch.inference_mode():
            for rows, parts in validation.stream(_VALIDATED, shuffle=False):
                x, y = self._scaled(parts)
                answer = network_on(self.model, x)
                total += self._loss(answer, y).item() * len(rows)
                error = rescaled(answer, self.target) - torch.from_numpy(parts[1])
                squares += error.square().mean().item() * len(rows)
        return total / len(validation), float(np.sqrt(squares / len(validation)))

    def _scaled(self, parts: list[Any]) -> tuple[Tensor, Tensor]:
        x, y = (torch.from_numpy(part) for part in parts)
        return scaled(x, self.inputs), scaled(y, self.target)

    def _loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return f.mse_loss(prediction, target) if self.settings.loss == "mse" else f.l1_loss(prediction, target)

    def save(self, path: Path) -> None:
        state = {
            "settings": dataclasses.asdict(self.settings),
            "history": dataclasses.asdict(self.history),
            "model": self.model.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        with appearing(path) as draft:
            torch.save(state, draft)

    def resume(self, path: Path) -> None:
        try:
            state = torch.load(path, weights_only=True)
            if state["settings"] != dataclasses.asdict(self.settings):
                raise ModelError(f"{path} belongs to a run with {state['settings']}; give another checkpoint path")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
        except (pickle.UnpicklingError, RuntimeError, KeyError, ValueError, OSError, EOFError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{path} is no checkpoint of this training; remove it to start anew") from error
        self.best, self.history = state["best"], History(**state["history"])


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _check_channels(model: nn.Module, patches: Patches) -> None:
    first = next(p for p in model.parameters() if p.ndim > 1)
    if first.shape[1] != len(patches.channels):
        raise ModelError(
            f"the network takes {first.shape[1]} channels but the patches have {len(patches.channels)}: "
            f"{patches.channels}; create it with in_channels={len(patches.channels)}"
        )
