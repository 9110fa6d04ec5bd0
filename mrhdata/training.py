"""Training a network on patches: scales fixed first, early stopping, the best weights kept."""

from __future__ import annotations

import dataclasses
import os
import pickle
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as f
from tqdm.auto import tqdm

from mrhdata.aligning import PLANES
from mrhdata.drafting import appearing
from mrhdata.errors import DataError, ModelError
from mrhdata.models.storage import Scale, Spec, network_on, scaled

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mrhdata.patching import Patches

#: Patches that intensity scales are measured on.
SCALE_PATCHES = 20_000
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

    def __post_init__(self) -> None:
        choices = {
            "optimizer": ("adamw", "sgd"),
            "schedule": ("one-cycle", "steps"),
            "loss": ("mse", "mae"),
            "scale": ("channel", "maximum"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ModelError(f"{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")


@dataclass
class History:
    """Losses of each epoch, in the target's scaled units, and the epoch whose weights were kept."""

    training: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best_epoch: int = -1
    seconds: float = 0.0


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
        validation loss, and ``model.spec`` the intensity scales measured on the training patches.
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
        Channels do not fit the network, or the checkpoint belongs to another run.

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
    model.spec = _measured(model.spec, patches, settings)  # type: ignore[assignment, arg-type]
    _check_channels(model, patches)
    run = _Run(model, patches, settings)
    path = Path(checkpoint) if checkpoint is not None else None
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
    model.load_state_dict(run.best)
    model.eval()
    run.history.seconds = time.perf_counter() - start
    return run.history


class _Run:
    """State of one training: everything that a checkpoint holds."""

    def __init__(self, model: nn.Module, patches: Patches, settings: Training) -> None:
        self.model, self.settings, self.history = model, settings, History()
        self.best = _copy(model)
        if settings.optimizer == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
                model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
            )
        else:
            self.optimizer = torch.optim.SGD(
                model.parameters(), lr=settings.learning_rate, momentum=0.9, weight_decay=settings.weight_decay
            )
        steps = -(-len(patches) // settings.batch_size)
        self.schedule: Any = (
            torch.optim.lr_scheduler.OneCycleLR(
                self.optimizer, settings.learning_rate, total_steps=steps * settings.epochs
            )
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
        self.history.validation.append(self._validate(validation))
        if self.history.validation[-1] <= min(self.history.validation):
            self.history.best_epoch, self.best = number, _copy(self.model)

    def _validate(self, validation: Patches) -> float:
        self.model.eval()
        total = 0.0
        with torch.inference_mode():
            for rows, parts in validation.stream(_VALIDATED, shuffle=False):
                x, y = self._scaled(parts)
                total += self._loss(network_on(self.model, x), y).item() * len(rows)
        return total / len(validation)

    def _scaled(self, parts: list[Any]) -> tuple[Tensor, Tensor]:
        x, y = (torch.from_numpy(part) for part in parts)
        spec: Spec = self.model.spec  # type: ignore[assignment]
        if spec.inputs is None or spec.target is None:
            raise ModelError("the intensity scales are missing; this is a bug")
        return scaled(x, spec.inputs), scaled(y, spec.target)

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


def _measured(spec: Spec, patches: Patches, settings: Training) -> Spec:
    """The spec with channels, patch and intensity scales of the training patches."""
    chosen = np.linspace(0, len(patches) - 1, min(len(patches), SCALE_PATCHES)).astype(np.int64)
    parts = patches.gather(chosen)
    if len(parts) != 2:
        raise DataError("the patches have no target; give target= to mrhdata.patches")
    for what, part in zip(("inputs", "target"), parts, strict=True):
        bad = ~np.isfinite(part).all(axis=(1, 2, 3, 4))
        if bad.any():
            where = patches.positions[chosen[bad][0]].tolist()
            raise DataError(f"{bad.sum()} patches have {what} that are not finite, the first at {where}; mask them out")
    flat = [axis for axis, n in enumerate(patches.shape) if n == 1]
    axis = PLANES[patches.plane] if patches.plane is not None else flat[0] if flat else None
    return dataclasses.replace(
        spec,
        channels=tuple(patches.channels),
        patch=patches.shape,
        axis=axis,
        spacing_mm=patches.spacing_mm,
        inputs=_scale(parts[0], settings.scale),
        target=_scale(parts[1], settings.scale),
    )


def _scale(part: np.ndarray, kind: str) -> Scale:
    channels = part.shape[1]
    if kind == "maximum":
        return Scale((0.0,) * channels, (float(part.max()) or 1.0,) * channels)
    values = part.astype(np.float64)
    spread = values.std(axis=(0, 2, 3, 4))
    return Scale(tuple(values.mean(axis=(0, 2, 3, 4)).tolist()), tuple(np.where(spread > 0, spread, 1.0).tolist()))


def _check_channels(model: nn.Module, patches: Patches) -> None:
    first = next(p for p in model.parameters() if p.ndim > 1)
    if first.shape[1] != len(patches.channels):
        raise ModelError(
            f"the network takes {first.shape[1]} channels but the patches have {len(patches.channels)}: "
            f"{patches.channels}; create it with in_channels={len(patches.channels)}"
        )
