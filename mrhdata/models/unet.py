"""A residual U-Net in two or three dimensions (Ronneberger et al. 2015; Cicek et al. 2016; He et al. 2016).

It uses batch normalisation with running statistics instead of instance normalisation. The output of a voxel then
depends only on its receptive field, so labelling a volume in parts gives exactly the result of one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from mrhdata.errors import ModelError


class UNet(nn.Module):
    """Residual U-Net; (B, in_channels, ...) to scores (B, classes, ...).

    Axis lengths must be multiples of the product of the strides.

    Parameters
    ----------
    in_channels, classes : int
        Numbers of input channels and of classes.
    widths : sequence of int
        Number of channels of each level, finest first.
    strides : sequence of int or of (ndim,) sequences, optional
        Strides from each level to the next, z, y, x; 2 by default.
    ndim : int
        Number of spatial axes, 2 or 3.
    supervision : bool
        Whether to return scores of all levels except the two coarsest during training, finest first (deep
        supervision, Lee et al. 2015); :func:`mrhdata.fit` halves the weight from level to level.

    Examples
    --------
    >>> model = UNet(classes=5, widths=(4, 8, 16), strides=((1, 2, 2), 2)).eval()
    >>> model(torch.zeros(1, 1, 6, 16, 20)).shape
    torch.Size([1, 5, 6, 16, 20])
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        widths: Sequence[int] = (16, 32, 64, 128),
        strides: Sequence[int | Sequence[int]] | None = None,
        ndim: int = 3,
        supervision: bool = False,
    ) -> None:
        super().__init__()
        if ndim not in (2, 3) or len(widths) < 2:
            raise ModelError(f"a U-Net must have 2 or 3 axes and at least two levels; got {ndim} and {len(widths)}")
        strides = [2] * (len(widths) - 1) if strides is None else list(strides)
        if len(strides) != len(widths) - 1:
            raise ModelError(
                f"there must be one stride between each two of {len(widths)} levels; got {len(strides)} strides"
            )
        steps = [(s,) * ndim if isinstance(s, int) else tuple(s) for s in strides]
        self.ndim, self.in_channels, self.supervision = ndim, in_channels, supervision
        conv: Any = nn.Conv2d if ndim == 2 else nn.Conv3d
        up: Any = nn.ConvTranspose2d if ndim == 2 else nn.ConvTranspose3d
        self.first = Block(ndim, in_channels, widths[0])
        self.down = nn.ModuleList(Block(ndim, a, b, s) for a, b, s in zip(widths, widths[1:], steps, strict=False))
        pairs = list(zip(widths[1:], widths, steps, strict=False))[::-1]
        self.up = nn.ModuleList(up(a, b, s, stride=s, bias=False) for a, b, s in pairs)
        self.join = nn.ModuleList(Block(ndim, 2 * b, b) for _, b, _ in pairs)
        output_widths = [b for _, b, _ in pairs][-max(1, len(pairs) - 1) if supervision else -1 :]
        self.answer = nn.ModuleList(conv(b, classes, 1) for b in output_widths)
        self._format = torch.channels_last if ndim == 2 else torch.channels_last_3d
        self.to(memory_format=self._format)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map (B, C, ...) to (B, classes, ...); during training with supervision, to a tuple of levels."""
        x = self.first(x.contiguous(memory_format=self._format))
        skips = []
        for level in self.down:
            skips.append(x)
            x = level(x)
        levels = []
        for up, join, skip in zip(self.up, self.join, reversed(skips), strict=True):
            x = join(torch.cat([skip, up(x)], 1))
            levels.append(x)
        if not (self.training and self.supervision):
            return self.answer[-1](x)
        outputs = zip(self.answer, levels[-len(self.answer) :], strict=True)
        return tuple(answer(level) for answer, level in outputs)[::-1]


class Block(nn.Module):
    """Residual block of two convolutions with batch normalisation."""

    def __init__(self, ndim: int, in_channels: int, width: int, stride: Sequence[int] | int = 1) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if ndim == 2 else nn.Conv3d
        norm: Any = nn.BatchNorm2d if ndim == 2 else nn.BatchNorm3d
        self.one, self.one_norm = conv(in_channels, width, 3, stride=stride, padding=1, bias=False), norm(width)
        self.two, self.two_norm = conv(width, width, 3, padding=1, bias=False), norm(width)
        same_shape = in_channels == width and stride == 1
        self.around = (
            nn.Identity()
            if same_shape
            else nn.Sequential(conv(in_channels, width, 1, stride=stride, bias=False), norm(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, ...) to (B, width, ...)."""
        y = f.relu(self.one_norm(self.one(x)))
        return f.relu(self.two_norm(self.two(y)) + self.around(x))
