"""A U-Net whose trunk works at half the resolution, for a processor.

A strided convolution halves the grid before the trunk (space to depth, Shi et al. 2016, CVPR), and a transposed one
doubles it after the trunk. A light head joins the result with the input. Most of the work of a U-Net is at its finest
level, so this network is about five times as fast; its labels are still those of every voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from mrhdata.models.unet import UNet


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

    Examples
    --------
    >>> HalfUNet(classes=5, widths=(4, 8, 16)).eval()(torch.zeros(1, 1, 16, 16, 24)).shape
    torch.Size([1, 5, 16, 16, 24])
    """

    ndim = 3

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        widths: Sequence[int] = (24, 48, 80, 112),
        details: int = 8,
        head: int = 16,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.enter = nn.Conv3d(in_channels, widths[0], 4, stride=2, padding=1, bias=False)
        self.enter_norm = nn.BatchNorm3d(widths[0])
        self.trunk = UNet(widths[0], 2 * widths[0], widths)
        self.leave = nn.ConvTranspose3d(2 * widths[0], details, 2, stride=2, bias=False)
        self.leave_norm = nn.BatchNorm3d(details)
        self.head = nn.Conv3d(details + in_channels, head, 3, padding=1, bias=False)
        self.head_norm = nn.BatchNorm3d(head)
        self.answer = nn.Conv3d(head, classes, 1)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Any:
        """Map (B, C, z, y, x) to (B, classes, z, y, x)."""
        x = x.contiguous(memory_format=torch.channels_last_3d)
        y = self.trunk(f.relu(self.enter_norm(self.enter(x))))
        y = f.relu(self.leave_norm(self.leave(f.relu(y))))
        return self.answer(f.relu(self.head_norm(self.head(torch.cat([y, x], 1)))))
