"""Super-resolution network that works at the low resolution and upsamples once, in its last layer.

Residual blocks without normalisation (Lim et al. 2017, CVPR workshops, EDSR) on two levels, and one pixel shuffle
(Shi et al. 2016, CVPR), whose output is added to the interpolated input. At a scale of 4 it processes a sixteenth
of the pixels of an interpolated image. Its receptive field is finite, so dense prediction in parts has no seams.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from mrhdata.errors import ModelError


class LowResSR(nn.Module):
    """Restoration network; (B, in_channels, h, w) to (B, 1, scale h, scale w), even h and w.

    Parameters
    ----------
    in_channels : int
        Number of planes, odd; the middle one is restored.
    scale : int
        Output pixels per input pixel along y and x.
    width : int
        Number of channels of the fine level; the coarse level has twice as many.
    blocks : int
        Number of residual blocks before, on and after the coarse level.

    Examples
    --------
    >>> LowResSR(in_channels=5, width=8, blocks=1)(torch.zeros(2, 5, 8, 10)).shape
    torch.Size([2, 1, 32, 40])
    """

    ndim = 2

    def __init__(self, in_channels: int = 1, scale: int = 4, width: int = 64, blocks: int = 3) -> None:
        super().__init__()
        if in_channels % 2 == 0:
            raise ModelError(f"in_channels must be an odd number of planes; got {in_channels}")
        self.in_channels, self.scale = in_channels, scale
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.fine = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.down = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.coarse = nn.Sequential(*(Block(2 * width) for _ in range(blocks)))
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.last = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.grow = nn.Sequential(nn.Conv2d(width, scale**2, 3, padding=1), nn.PixelShuffle(scale))
        nn.init.zeros_(self.grow[0].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.grow[0].bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, 1, scale h, scale w)."""
        x = x.contiguous(memory_format=torch.channels_last)
        middle = x[:, self.in_channels // 2 : self.in_channels // 2 + 1]
        fine = self.fine(self.first(x))
        y = self.last(fine + self.up(self.coarse(self.down(fine))))
        return self.grow(y) + f.interpolate(middle, scale_factor=float(self.scale), mode="bilinear")


class Block(nn.Module):
    """Residual block of two convolutions; the initial weights of the second are reduced tenfold."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.two.weight.data *= 0.1

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, h, w) to the same shape."""
        return x + self.two(f.relu(self.one(x)))
