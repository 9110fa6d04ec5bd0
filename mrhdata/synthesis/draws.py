"""Random numbers of one sample, from one generator on the processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mrhdata.errors import ParameterError

T = TypeVar("T")


class Draws:
    """Random numbers from a seed or a generator.

    Parameters
    ----------
    seed : int or torch.Generator
        Random seed, or a generator on the processor.
    device : torch.device or str
        Device to which noise is copied. The numbers do not depend on it.

    Examples
    --------
    >>> Draws(0).uniform((1.0, 2.0)) == Draws(torch.Generator().manual_seed(0)).uniform((1.0, 2.0))
    True
    """

    def __init__(self, seed: int | torch.Generator, device: torch.device | str = "cpu") -> None:
        self._generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        if self._generator.device.type != "cpu":
            raise ParameterError(
                f"seed must be a generator on the processor; got one on {self._generator.device}. "
                "Pass torch.Generator() or a whole number."
            )
        self.device = torch.device(device)

    def uniforms(self, between: tuple[float, float], count: int) -> Tensor:
        """Return numbers spread evenly over a range, (count,), on the processor."""
        low, high = between
        return low + (high - low) * torch.rand(count, generator=self._generator)

    def uniform(self, between: tuple[float, float]) -> float:
        """Return one number of a range."""
        return float(self.uniforms(between, 1))

    def chance(self, probability: float) -> bool:
        """Return whether an event of a probability occurs."""
        return self.uniform((0.0, 1.0)) < probability

    def integer(self, stop: int) -> int:
        """Return a whole number from 0 to `stop`, which is excluded."""
        return int(torch.randint(stop, (1,), generator=self._generator))

    def choice(self, options: Sequence[T]) -> T:
        """Return one of several options."""
        return options[self.integer(len(options))]

    def normals(self, *shape: int) -> Tensor:
        """Return Gaussian numbers of mean 0 and deviation 1 on the device."""
        return torch.randn(shape, generator=self._generator).to(self.device)

    def normal(self) -> float:
        """Return one Gaussian number."""
        return float(torch.randn(1, generator=self._generator))
