"""Super-resolution that works at the low resolution and grows once, at its end.

Residual blocks without normalisation (Lim et al. 2017, CVPR workshops, EDSR) on a U of two levels, one pixel
shuffle (Shi et al. 2016, CVPR), and the interpolated input added: a sixteenth of the pixels that a network on
an interpolated image works on. It sees a fixed neighbourhood, so dense prediction of a stack in parts is
exact: there are no seams.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from mrhdata.errors import ModelError


class Restorer(nn.Module):
    """The network; (B, in_channels, h, w) to (B, 1, scale h, scale w), even h and w.

    Parameters
    ----------
    in_channels : int
        Planes, an odd number; the middle one is restored.
    scale : int
        Pixels of the answer for each along y and x.
    width : int
        Channels at the low resolution, twice as many at half of it.
    blocks : int
        Residual blocks on the way down, below, and on the way up.

    Examples
    --------
    >>> Restorer(in_channels=5, width=8, blocks=1)(torch.zeros(2, 5, 8, 10)).shape
    torch.Size([2, 1, 32, 40])
    """

    ndim = 2

    def __init__(self, in_channels: int = 1, scale: int = 4, width: int = 64, blocks: int = 3) -> None:
        super().__init__()
        if in_channels % 2 == 0:
            raise ModelError(f"{in_channels} planes have no middle one; give an odd number")
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
    """Two convolutions, the second of which starts small, around which the input goes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.two.weight.data *= 0.1

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, h, w) to the same."""
        return x + self.two(f.relu(self.one(x)))
