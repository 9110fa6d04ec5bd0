"""Batches turned, scaled and shaded at random while a network is trained.

Turns and scales are in millimetres, so voxels of 1 x 1 x 3 mm are not sheared, which libraries that work
in voxels (kornia, TorchIO's array faces) would do. Sampling is PyTorch's own ``grid_sample``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as f


@dataclass(frozen=True)
class Augmentation:
    """How much batches vary; each patch is drawn by itself.

    Attributes
    ----------
    degrees : float
        Greatest turn about each axis (about the fixed one alone, for patches of one plane).
    zoom : float
        Greatest change of size, as a part.
    stretch : float
        The same, along each axis by itself.
    gain, offset : float
        Greatest change of a channel's contrast and brightness, in its standard deviations.
    gamma : float
        Greatest change of the exponent.
    noise : float
        Highest standard deviation of Gaussian noise.
    share : float
        Of the patches that are turned and scaled; the others are only shaded, and so keep sharp voxels.
    flip : tuple of int
        Axes (0 z, 1 y, 2 x) along which half of the patches are mirrored. None by default: left and right
        are different labels.
    """

    degrees: float = 12.0
    zoom: float = 0.15
    stretch: float = 0.05
    gain: float = 0.2
    offset: float = 0.1
    gamma: float = 0.2
    noise: float = 0.1
    share: float = 0.5
    flip: tuple[int, ...] = ()

    def __call__(
        self, x: Tensor, y: Tensor, spacing_mm: Sequence[float], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Input (B, C, z, y, x), scaled, and target (B, 1, z, y, x) about the same centre, nearest voxels.

        Examples
        --------
        >>> x = torch.rand(2, 1, 4, 8, 8)
        >>> generator = torch.Generator().manual_seed(0)
        >>> a, b = Augmentation()(x, (x > 0.5).float(), (3.0, 1.0, 1.0), generator)
        >>> a.shape, sorted(b.unique().tolist())
        (torch.Size([2, 1, 4, 8, 8]), [0.0, 1.0])
        """
        chosen = torch.rand(len(x), generator=generator) < self.share
        if chosen.any():
            turns = self._turns(int(chosen.sum()), x.shape, generator)
            x, y = x.clone(), y.clone()
            x[chosen] = _sampled(x[chosen], turns, spacing_mm, "bilinear")
            y[chosen] = _sampled(y[chosen], turns, spacing_mm, "nearest")
        for axis in self.flip:
            mirrored = (torch.rand(len(x), generator=generator) < 0.5).reshape(-1, 1, 1, 1, 1)
            x, y = (torch.where(mirrored, v.flip(2 + axis), v) for v in (x, y))
        shaded = any((self.gain, self.offset, self.gamma, self.noise))
        return self._shaded(x, generator) if shaded else x, y

    def _turns(self, count: int, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Matrices (count, 3, 3) on millimetres z, y, x, from where a voxel goes to where it comes from."""
        flat = [axis for axis in range(3) if shape[2 + axis] == 1]
        turned = torch.eye(3).repeat(count, 1, 1)
        for axis in flat or range(3):
            angles = self._within(self.degrees * math.pi / 180, (count,), generator)
            a, b = (other for other in range(3) if other != axis)
            turn = torch.eye(3).repeat(count, 1, 1)
            turn[:, a, a] = turn[:, b, b] = angles.cos()
            turn[:, a, b], turn[:, b, a] = -angles.sin(), angles.sin()
            turned = turned @ turn
        sizes = 1 + self._within(self.zoom, (count, 1), generator) + self._within(self.stretch, (count, 3), generator)
        sizes[:, flat] = 1.0
        return turned * sizes.unsqueeze(1)

    def _shaded(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Contrast, brightness, exponent and noise, of each channel by itself."""
        per_channel = (*x.shape[:2], 1, 1, 1)
        low = x.amin((2, 3, 4), keepdim=True)
        wide = (x.amax((2, 3, 4), keepdim=True) - low).clamp(min=1e-6)
        x = low + wide * ((x - low) / wide) ** self._within(self.gamma, per_channel, generator).exp()
        x = x * (1 + self._within(self.gain, per_channel, generator))
        x = x + self._within(self.offset, per_channel, generator)
        noise = self.noise * torch.rand((len(x), 1, 1, 1, 1), generator=generator)
        return x + noise * torch.randn(x.shape, generator=generator)

    @staticmethod
    def _within(most: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return most * (2 * torch.rand(shape, generator=generator) - 1)


def _sampled(x: Tensor, matrices: Tensor, spacing_mm: Sequence[float], mode: str) -> Tensor:
    """Voxels (B, C, z, y, x) from where the matrices say, the edge repeated."""
    half = torch.tensor([s * n / 2 for s, n in zip(spacing_mm, x.shape[2:], strict=True)])
    # grid_sample counts from -1 to 1 over the whole extent, x first.
    unit = matrices * half.reshape(1, 1, 3) / half.reshape(1, 3, 1)
    theta = torch.cat([unit.flip(1, 2), torch.zeros(len(x), 3, 1)], 2)
    grid = f.affine_grid(theta, list(x.shape), align_corners=False)
    return f.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=False)
