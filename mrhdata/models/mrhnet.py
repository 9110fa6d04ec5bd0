"""MRH-Net: from multi-contrast MRI to virtual histology (Liang et al. 2022, eLife 11:e72331).

A residual network without normalisation or pooling. Layers, names and counts follow the authors'
saved networks. Skip connections start after the ReLU. The published "5-layer" and "10-layer" networks have 4
and 9 loop blocks, the released training code builds 30.

The network was trained on 3 x 3 patches that every layer pads with zeros, and the published output is the centre
voxel of a patch. Dense prediction over a slice is a different function: the same weights then depend on real
neighbours, up to ``2 * blocks + 6`` voxels away, instead of zeros. :func:`mrhdata.predict` supports both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as f

FEATURES = 64


class MRHNet(nn.Module):
    """MRH-Net; (B, in_channels, h, w) to (B, 1, h, w), any h and w.

    Parameters
    ----------
    in_channels : int
        Number of input channels; 67 as published: two shells of 2 b0 and 30 directions, T2, and an MT pair.
    blocks : int
        Number of loop blocks: 4, 9 (published networks), 29 or 30.

    Examples
    --------
    >>> MRHNet(in_channels=3, loop_blocks=1)(torch.zeros(2, 3, 5, 7)).shape
    torch.Size([2, 1, 5, 7])
    """

    ndim = 2
    #: Each voxel of a map is the centre of its own patch.
    inference_mode = "patch_centre"

    def __init__(self, in_channels: int = 67, loop_blocks: int = 30) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels)
        self.conv2 = _conv(FEATURES)
        self.conv3 = _conv(FEATURES)
        self.conv3_1 = _conv(FEATURES)
        self.conv_loop1 = nn.ModuleList(_conv(FEATURES) for _ in range(loop_blocks))
        self.conv_loop2 = nn.ModuleList(_conv(FEATURES) for _ in range(loop_blocks))
        self.conv4 = _conv(FEATURES)
        self.conv5 = _conv(FEATURES, 1)
        # Patches of 3 x 3 voxels run twice as fast with channels last.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def receptive_field(self) -> int:
        """Edge of the receptive field in dense prediction, in voxels."""
        return 2 * sum(isinstance(m, nn.Conv2d) for m in self.modules()) + 1

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, 1, h, w)."""
        x = x.contiguous(memory_format=torch.channels_last)
        skip = f.relu(self.conv2(f.relu(self.conv1(x))))  # (B, 64, h, w)
        x = self.conv3_1(f.relu(self.conv3(skip))) + skip
        for first, second in zip(self.conv_loop1, self.conv_loop2, strict=True):
            skip = f.relu(x)
            x = second(f.relu(first(skip))) + skip
        x = f.relu(self.conv4(f.relu(x)))
        return self.conv5(x)  # (B, 1, h, w)


def _conv(channels: int, out: int = FEATURES) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out, 3, padding=1)
    # The authors' saved networks use this initialiser; the paper states an orthogonal one.
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
