"""Rotate, scale and shade batches at random while a network is trained.

Rotations and scales apply in millimetres, so voxels of 1 x 1 x 3 mm are not sheared as by libraries that work in voxels
(kornia, TorchIO on arrays). PyTorch's ``grid_sample`` interpolates.
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
    """Ranges of random changes, drawn for each patch independently.

    Attributes
    ----------
    degrees : float
        Largest rotation about each axis; patches of one plane rotate only within it.
    zoom : float
        Largest relative change of size.
    stretch : float
        Largest relative change of size along each axis independently.
    gain, offset : float
        Largest change of a channel's contrast and brightness, in its standard deviations.
    gamma : float
        Largest change of the logarithm of the exponent.
    noise : float
        Largest standard deviation of Gaussian noise.
    share : float
        Fraction of patches that are rotated and scaled; the others are only shaded and keep sharp voxels.
    flip : tuple of int
        Axes (0 z, 1 y, 2 x) along which half of the patches are mirrored. Empty by default, since left and right
        may be different labels.
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
        """Return changed inputs and targets.

        Parameters
        ----------
        x : (B, C, z, y, x) tensor
            Scaled input, interpolated linearly.
        y : (B, 1, z, y, x) tensor
            Target about the same centre, interpolated by nearest neighbour.
        spacing_mm : (3,) sequence of float
            Voxel size along z, y, x, in mm.
        generator : torch.Generator
            Source of random numbers, on the processor; only noise is drawn on the device of `x`.

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
            matrices = self._draw_matrices(int(chosen.sum()), x.shape, generator)
            x, y = x.clone(), y.clone()
            rows, matrices = chosen.nonzero()[:, 0].to(x.device), matrices.to(x.device)
            x[rows] = _transform(x[rows], matrices, spacing_mm, "bilinear")
            y[rows] = _transform(y[rows], matrices, spacing_mm, "nearest")
        for axis in self.flip:
            mirrored = (torch.rand(len(x), generator=generator) < 0.5).reshape(-1, 1, 1, 1, 1).to(x.device)
            x, y = (torch.where(mirrored, v.flip(2 + axis), v) for v in (x, y))
        shades = any((self.gain, self.offset, self.gamma, self.noise))
        return self._shade(x, generator) if shades else x, y

    def _draw_matrices(self, count: int, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Return matrices (count, 3, 3) that map output to input positions, in mm along z, y, x."""
        flat = [axis for axis in range(3) if shape[2 + axis] == 1]
        rotations = torch.eye(3).repeat(count, 1, 1)
        for axis in flat or range(3):
            angles = self._draw_uniform(self.degrees * math.pi / 180, (count,), generator)
            a, b = (other for other in range(3) if other != axis)
            rotation = torch.eye(3).repeat(count, 1, 1)
            rotation[:, a, a] = rotation[:, b, b] = angles.cos()
            rotation[:, a, b], rotation[:, b, a] = -angles.sin(), angles.sin()
            rotations = rotations @ rotation
        scales = 1 + self._draw_uniform(self.zoom, (count, 1), generator)
        scales = scales + self._draw_uniform(self.stretch, (count, 3), generator)
        scales[:, flat] = 1.0
        return rotations * scales.unsqueeze(1)

    def _shade(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Change contrast, brightness and exponent, and add noise, for each channel independently."""
        per_channel = (*x.shape[:2], 1, 1, 1)
        low = x.amin((2, 3, 4), keepdim=True)
        width = (x.amax((2, 3, 4), keepdim=True) - low).clamp(min=1e-6)
        gamma, gain, offset = (
            self._draw_uniform(largest, per_channel, generator).to(x.device)
            for largest in (self.gamma, self.gain, self.offset)
        )
        x = low + width * ((x - low) / width) ** gamma.exp()
        x = x * (1 + gain) + offset
        noise = self.noise * torch.rand((len(x), 1, 1, 1, 1), generator=generator)
        return x + noise.to(x.device) * standard_noise(x, generator)

    @staticmethod
    def _draw_uniform(largest: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return largest * (2 * torch.rand(shape, generator=generator) - 1)


def standard_noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return Gaussian noise of the shape of `x` on its device; the generator seeds that of another device."""
    if x.device == generator.device:
        return torch.randn(x.shape, generator=generator)
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    return torch.randn(x.shape, generator=torch.Generator(x.device).manual_seed(seed), device=x.device)


def _transform(x: Tensor, matrices: Tensor, spacing_mm: Sequence[float], mode: str) -> Tensor:
    """Interpolate (B, C, z, y, x) at positions that matrices in mm map to; beyond the edge it is repeated."""
    half = torch.tensor([s * n / 2 for s, n in zip(spacing_mm, x.shape[2:], strict=True)]).to(x.device)
    # grid_sample uses coordinates from -1 to 1 over the whole extent, x first.
    normalized = matrices * half.reshape(1, 1, 3) / half.reshape(1, 3, 1)
    theta = torch.cat([normalized.flip(1, 2), torch.zeros(len(x), 3, 1, device=x.device)], 2)
    grid = f.affine_grid(theta, list(x.shape), align_corners=False)
    return f.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=False)
