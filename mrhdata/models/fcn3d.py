"""3D fully convolutional networks that label deep grey matter on QSM (segDGM_CNN; after Dolz et al. 2018).

Two generations. The first (2017) is that of Dolz et al. (NeuroImage 170:456): nine valid 3 x 3 x 3
convolutions in three groups, whose outputs are cut to one size and joined, then 1 x 1 x 1 layers. The
second has three valid 3 x 7 x 7 convolutions with batch normalisation and dropout, and joins the voxel's
place (x, y, z) where the groups are joined.

The published networks keep one PReLU slope per voxel, which ties them to one patch size; here it is one
per channel, as in Dolz et al., so that any size is labelled in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from mrhdata.errors import ModelError

#: Settings of the two generations: the published patch is (21, 27, 27) and (9, 27, 27), its core (3, 9, 9).
VARIANTS: dict[str, dict[str, object]] = {
    "": {"kernel": (3, 3, 3), "depth": 3},
    "_aniso": {"kernel": (3, 7, 7), "depth": 1, "locations": 3, "normalise": True, "dropout": 0.2},
}


class FCN3D(nn.Module):
    """The network; (B, in_channels + locations, z, y, x) to scores (B, classes, ...).

    Parameters
    ----------
    in_channels, classes : int
        Images, and classes with the background.
    kernel : (3,) sequence of int
        Of the valid convolutions along z, y, x.
    depth : int
        Convolutions in each of the three groups.
    locations : int
        Further channels that are joined late, not convolved: a voxel's place.
    normalise : bool
        Batch normalisation after each PReLU.
    dropout : float
        After each 1 x 1 x 1 layer but the last.
    widths, joined : sequence of int
        Channels of the three groups, and of the 1 x 1 x 1 layers.
    border : {"valid", "replicate"}
        With ``"valid"`` the answer is smaller by :attr:`margin` on each side, which is how patches are
        trained. With ``"replicate"`` the edge of what is given is repeated, so the answer is as large and
        whole volumes are covered to their borders.

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
            raise ModelError(f"border is valid or replicate, not {border!r}")
        self.images, self.in_channels, self.border = in_channels, in_channels + locations, border
        self._step = tuple(depth * (int(k) // 2) for k in kernel)
        groups, given = [], in_channels
        for width in widths:
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers += [nn.Conv3d(given, width, _three(kernel)), *_after(width, normalise, 0.0)]
                given = width
            groups.append(nn.Sequential(*layers))
        self.fine, self.middle, self.coarse = groups
        last: list[nn.Module] = []
        given = sum(widths) + locations
        for width in joined:
            last += [nn.Conv3d(given, width, 1), *_after(width, normalise, dropout)]
            given = width
        # The published networks have a PReLU before the softmax, too.
        self.joined = nn.Sequential(*last, nn.Conv3d(given, classes, 1), nn.PReLU(classes, init=0.0))
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    @property
    def margin(self) -> tuple[int, int, int]:
        """Voxels along z, y, x on each side that an answer depends on."""
        z, y, x = (3 * n for n in self._step)
        return (z, y, x)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, z, y, x) to (B, classes, z, y, x), less the margin where the border is valid."""
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if self.border == "replicate":
            z, y, w = self.margin
            x = f.pad(x, (w, w, y, y, z, z), mode="replicate")
        fine = self.fine(x[:, : self.images])
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        parts = [self._cut(fine, 2), self._cut(middle, 1), coarse]
        if self.in_channels > self.images:
            parts.append(self._cut(x[:, self.images :], 3))
        return self.joined(torch.cat(parts, 1))

    def _cut(self, x: Tensor, groups: int) -> Tensor:
        """Without the voxels that so many more groups take away on each side."""
        z, y, w = (groups * n for n in self._step)
        return x[:, :, z:-z, y:-y, w:-w]


def _three(values: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = values
    return (z, y, x)


def _after(width: int, normalise: bool, dropout: float) -> list[nn.Module]:
    """What follows a convolution: Keras's values of slope, epsilon and momentum."""
    layers: list[nn.Module] = [nn.PReLU(width, init=0.0)]
    if normalise:
        layers.append(nn.BatchNorm3d(width, eps=1e-3, momentum=0.01))
    if dropout:
        layers.append(nn.Dropout(dropout))
    return layers
