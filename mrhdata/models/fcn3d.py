"""3D fully convolutional networks that label deep grey matter on QSM (segDGM_CNN; after Dolz et al. 2018).

There are two generations. The first (2017) is that of Dolz et al. (NeuroImage 170:456): nine valid 3 x 3 x 3
convolutions in three groups, whose outputs are cropped to one size and concatenated, then 1 x 1 x 1 layers. The
second has three valid 3 x 7 x 7 convolutions with batch normalisation and dropout; the coordinates (x, y, z) of
the voxel are concatenated with the outputs of the groups.

The published networks have one PReLU slope per voxel, which ties them to one patch size. Here the slope is per
channel, as in Dolz et al., so volumes of any size can be labelled in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from mrhdata.errors import ModelError

#: Settings of the two generations. Their published patches are (21, 27, 27) and (9, 27, 27), the output (3, 9, 9).
VARIANTS: dict[str, dict[str, object]] = {
    "": {"kernel": (3, 3, 3), "depth": 3},
    "_aniso": {"kernel": (3, 7, 7), "depth": 1, "locations": 3, "normalise": True, "dropout": 0.2},
}


class FCN3D(nn.Module):
    """Fully convolutional network; (B, in_channels + locations, z, y, x) to scores (B, classes, ...).

    Parameters
    ----------
    in_channels, classes : int
        Number of images, and number of classes including the background.
    kernel : (3,) sequence of int
        Kernel size of the valid convolutions along z, y, x.
    depth : int
        Number of convolutions in each of the three groups.
    locations : int
        Number of coordinate channels, which bypass the convolutions.
    normalise : bool
        Whether to use batch normalisation after each PReLU.
    dropout : float
        Dropout probability after each 1 x 1 x 1 layer except the last.
    widths, joined : sequence of int
        Numbers of channels of the three groups, and of the 1 x 1 x 1 layers.
    border : {"valid", "replicate"}
        ``"valid"`` returns an output smaller by :attr:`margin` on each side, as in training. ``"replicate"``
        repeats the edge voxels of the input, so the output covers the whole volume.

    Examples
    --------
    >>> model = FCN3D()
    >>> model(torch.zeros(1, 1, 21, 27, 27)).shape, model.margin
    (torch.Size([1, 11, 3, 9, 9]), (9, 9, 9))
    >>> sum(p.numel() for m in model.modules() if isinstance(m, nn.Conv3d) for p in m.parameters())
    781036
    """

    ndim = 3

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 11,
        kernel: Sequence[int] = (3, 3, 3),
        depth: int = 3,
        locations: int = 0,
        normalise: bool = False,
        dropout: float = 0.0,
        widths: Sequence[int] = (25, 50, 75),
        joined: Sequence[int] = (400, 200, 150),
        border: str = "valid",
    ) -> None:
        super().__init__()
        if border not in ("valid", "replicate"):
            raise ModelError(f"border must be one of valid, replicate; got {border!r}")
        self.images, self.in_channels, self.border = in_channels, in_channels + locations, border
        self._group_margin = tuple(depth * (int(k) // 2) for k in kernel)
        groups, channels = [], in_channels
        for width in widths:
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers += [nn.Conv3d(channels, width, _as_triple(kernel)), *_activation(width, normalise, 0.0)]
                channels = width
            groups.append(nn.Sequential(*layers))
        self.fine, self.middle, self.coarse = groups
        last: list[nn.Module] = []
        channels = sum(widths) + locations
        for width in joined:
            last += [nn.Conv3d(channels, width, 1), *_activation(width, normalise, dropout)]
            channels = width
        # The published networks also have a PReLU before the softmax.
        self.joined = nn.Sequential(*last, nn.Conv3d(channels, classes, 1), nn.PReLU(classes, init=0.0))
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    @property
    def margin(self) -> tuple[int, int, int]:
        """Voxels on each side that an output voxel depends on, along z, y, x."""
        z, y, x = (3 * n for n in self._group_margin)
        return (z, y, x)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, z, y, x) to (B, classes, z, y, x), minus the margin if the border is valid."""
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if self.border == "replicate":
            z, y, w = self.margin
            x = f.pad(x, (w, w, y, y, z, z), mode="replicate")
        fine = self.fine(x[:, : self.images])
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        features = [self._crop(fine, 2), self._crop(middle, 1), coarse]
        if self.in_channels > self.images:
            features.append(self._crop(x[:, self.images :], 3))
        return self.joined(torch.cat(features, 1))

    def _crop(self, x: Tensor, groups: int) -> Tensor:
        """Remove the voxels that this number of groups would remove on each side."""
        z, y, w = (groups * n for n in self._group_margin)
        return x[:, :, z:-z, y:-y, w:-w]


def _as_triple(values: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = values
    return (z, y, x)


def _activation(width: int, normalise: bool, dropout: float) -> list[nn.Module]:
    """Return the layers after a convolution."""
    # Slope, epsilon and momentum are the defaults of Keras.
    layers: list[nn.Module] = [nn.PReLU(width, init=0.0)]
    if normalise:
        layers.append(nn.BatchNorm3d(width, eps=1e-3, momentum=0.01))
    if dropout:
        layers.append(nn.Dropout(dropout))
    return layers
