"""Optimiser, schedule, and learning rates by layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from mrhdata.errors import ModelError
from mrhdata.training.settings import TrainingConfig

if TYPE_CHECKING:
    from torch import nn

#: Trainable parameters by the factor on their learning rate.
Groups = dict[float, list["nn.Parameter"]]


@contextmanager
def trainable(model: nn.Module, settings: TrainingConfig) -> Iterator[Groups]:
    """Yield trainable parameters by the factor on their learning rate; frozen ones have no gradient meanwhile."""
    groups: Groups = {}
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


def optimizer_of(groups: Groups, settings: TrainingConfig) -> torch.optim.Optimizer:
    """Return the optimiser of the parameters."""
    rates = _rates(groups, settings)
    parameters = [{"params": ps, "lr": rate} for ps, rate in zip(groups.values(), rates, strict=True)]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, weight_decay=settings.weight_decay)
    return torch.optim.SGD(parameters, lr=rates[0], momentum=0.9, weight_decay=settings.weight_decay)


def schedule_of(settings: TrainingConfig, optimizer: torch.optim.Optimizer, groups: Groups, steps: int) -> Any:
    """Return the schedule of learning rates for a number of steps per epoch."""
    if settings.schedule == "one-cycle":
        rates = _rates(groups, settings)
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps * settings.epochs)
    if settings.schedule == "steps":
        return torch.optim.lr_scheduler.StepLR(optimizer, 10 * steps, 0.1)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 0)


def _rates(groups: Groups, settings: TrainingConfig) -> list[float]:
    return [factor * settings.learning_rate for factor in groups]
