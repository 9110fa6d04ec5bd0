"""A U-Net whose trunk works at half the resolution, for images of any contrast on a processor.

A strided convolution halves the grid before the trunk. The trunk scores every voxel of the coarse grid; a light head
corrects these scores on the grid of the input. Most of the work of a U-Net is at its finest level, so this network is
several times as fast; its labels are still those of every voxel.

Activations are not normalised: images of random contrast differ so much that statistics of a batch are not
those of another, and statistics of a whole volume would make the result depend on its extent. Instead the weights are
standardised.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from mrhdata.models.layers import StandardizedConv3d


class HalfUNet(nn.Module):
    """U-Net with a trunk at half the resolution; (B, in_channels, z, y, x) to scores (B, classes, z, y, x).

    Axis lengths must be multiples of 2 to the power of the number of widths.

    Parameters
    ----------
    in_channels, classes : int
        Numbers of input channels and of classes.
    widths : sequence of int
        Number of channels of each level of the trunk, finest first.
    details, head : int
        Number of channels that the trunk gives to each voxel, and of the head.

    Attributes
    ----------
    multiple, trunk_channels : int
        Number of which all axis lengths are multiples, and number of channels of the trunk's answer.
    coarse : bool
        Whether the network returns the scores of the trunk, at half the resolution: for the first part of a training,
        whose steps are twice as fast so.

    Examples
    --------
    >>> model = HalfUNet(classes=5, widths=(4, 8, 16)).eval()
    >>> model(torch.zeros(1, 1, 16, 16, 24)).shape
    torch.Size([1, 5, 16, 16, 24])
    >>> model.coarse = True
    >>> model(torch.zeros(1, 1, 16, 16, 24)).shape
    torch.Size([1, 5, 8, 8, 12])
    """

    ndim = 3
    #: Voxels of the input from one voxel of the trunk to the next, and those about a voxel that correct its scores.
    trunk_stride, correction_reach = 2, 1
    #: Prefixes of the parameters that coarse scores do not depend on.
    fine_layers = ("leave", "head", "fine")

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        widths: Sequence[int] = (16, 32, 64, 96),
        details: int = 5,
        head: int = 12,
    ) -> None:
        super().__init__()
        self.in_channels, self.coarse = in_channels, False
        self.multiple, self.trunk_channels = 2 ** len(widths), widths[0]
        self.enter = Activated(in_channels, widths[0], kernel_size=4, stride=2)
        self.first = Activated(widths[0], widths[0])
        self.down = nn.ModuleList(
            nn.Sequential(nn.MaxPool3d(2), Activated(a, b), Activated(b, b)) for a, b in pairwise(widths)
        )
        pairs = list(pairwise(widths))[::-1]
        self.reduce = nn.ModuleList(nn.Conv3d(b, a, 1, bias=False) for a, b in pairs)
        self.join = nn.ModuleList(nn.Sequential(Activated(2 * a, a), Activated(a, a)) for a, _ in pairs)
        self.leave = nn.ConvTranspose3d(widths[0], details, 2, stride=2)
        self.head = Activated(details + in_channels, head)
        self.fine = nn.Conv3d(head, classes, 1)
        # The head begins without corrections.
        nn.init.zeros_(self.fine.weight)
        nn.init.zeros_(self.fine.bias)  # type: ignore[arg-type]
        self.answer = nn.Conv3d(widths[0], classes, 1)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Any:
        """Map (B, C, z, y, x) to (B, classes, z, y, x), or to half of the lengths if `coarse` is set."""
        y = self.trunk(x)
        return self.answer(y) if self.coarse else self.scores(y, x)

    def scores(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the scores (B, classes, z, y, x) of every voxel from the answer of the trunk and the image."""
        details = self.head(torch.cat([self.leave(y), x], 1))
        return self.fine(details) + f.interpolate(self.answer(y), scale_factor=2, mode="nearest")

    def trunk(self, x: Tensor) -> Tensor:
        """Return the features (B, widths[0], z / 2, y / 2, x / 2) of an image."""
        y = self.first(self.enter(x.contiguous(memory_format=torch.channels_last_3d)))
        skips = []
        for level in self.down:
            skips.append(y)
            y = level(y)
        for reduce, join, skip in zip(self.reduce, self.join, reversed(skips), strict=True):
            y = join(torch.cat([skip, f.interpolate(reduce(y), scale_factor=2, mode="nearest")], 1))
        return y


class Activated(nn.Module):
    """Convolution with standardised weights and a ReLU, which together keep the variance of random values."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = StandardizedConv3d(in_channels, channels, kernel_size, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, z, y, x) to (B, channels, ...)."""
        return f.relu(self.conv(x))
