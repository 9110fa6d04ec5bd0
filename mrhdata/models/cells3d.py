"""3D networks that find cells in cleared tissue: one screens a volume, the other verifies the candidates.

Both follow Dou et al. (2016, IEEE Trans. Med. Imaging 35:1182): fully connected layers are convolutions, so one
pass scores a whole volume. The patches of the screening network are 12 x 12 x 12, as in the CLARITY system (2020):
three convolutions, one pooling, two fully connected layers, and a receptive field of exactly 12 voxels at a stride
of 2. Score ``o`` depends on voxels ``2 o`` to ``2 o + 11``, so its centre ``2 o + 5.5`` lies between two voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mrhdata.errors import ModelError
from mrhdata.models.layers import MaxPool3d, PooledConv, Voxelwise

#: Receptive fields of the two networks along z, y, x, in voxels.
SCREENED, LOOKED_AT = (12, 12, 12), (16, 20, 20)


class CellNet3D(nn.Module):
    """Screening network; (B, in_channels, z, y, x) to scores (B, 2, ...) of background and cell.

    Parameters
    ----------
    in_channels : int
        Number of input channels.
    classes : int
        Number of classes, always 2 (background and cell).
    widths : sequence of int
        Numbers of channels of the three convolutions and of the first fully connected layer.
    dropout : float
        Probability of dropping a whole channel before each fully connected layer.
    answer : {"classes", "score"}
        Output: both scores, or one channel with the score of cell minus that of background, whose sigmoid equals
        the softmax probability of cell.

    Examples
    --------
    >>> model = CellNet3D().eval()
    >>> model(torch.zeros(1, 1, 12, 12, 12)).shape, model(torch.zeros(1, 1, 44, 20, 12)).shape
    (torch.Size([1, 2, 1, 1, 1]), torch.Size([1, 2, 17, 5, 1]))
    >>> sum(p.numel() for p in model.parameters())
    233156
    """

    ndim = 3

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        widths: Sequence[int] = (64, 64, 64, 150),
        dropout: float = 0.0,
        answer: str = "classes",
    ) -> None:
        super().__init__()
        _check_settings(classes, answer)
        self.in_channels, self.answer = in_channels, answer
        first, second, third, joined = (int(w) for w in widths)
        self.body = nn.Sequential(
            PooledConv(in_channels, first),  # 12 -> 10 -> 5
            nn.ReLU(inplace=True),
            nn.Conv3d(first, second, 3),  # 3
            nn.ReLU(inplace=True),
            nn.Conv3d(second, third, 3),  # 1
            nn.ReLU(inplace=True),
            *_fully_connected(third, (joined,), (1, 1, 1), dropout),
            Voxelwise(joined, classes),
        )
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, z, y, x) to scores at every second voxel along each axis, inside the valid region."""
        return _format_scores(self.body(x), self.answer)


class VerificationNet(nn.Module):
    """Verification network for candidates; (B, in_channels, 16, 20, 20) to (B, 2, 1, 1, 1).

    Parameters
    ----------
    in_channels, classes, dropout, answer
        As for :class:`CellNet3D`.
    widths : sequence of int
        Numbers of channels of the two convolutions and of the two fully connected layers.

    Examples
    --------
    >>> model = VerificationNet().eval()
    >>> model(torch.zeros(1, 1, 16, 20, 20)).shape
    torch.Size([1, 2, 1, 1, 1])
    >>> round(sum(p.numel() for p in model.parameters()) / 1e6, 2)
    1.36
    """

    ndim = 3

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        widths: Sequence[int] = (32, 64, 500, 100),
        dropout: float = 0.3,
        answer: str = "classes",
    ) -> None:
        super().__init__()
        _check_settings(classes, answer)
        self.in_channels, self.answer = in_channels, answer
        first, second, *joined = (int(w) for w in widths)
        self.body = nn.Sequential(
            nn.Conv3d(in_channels, first, (5, 7, 7)),  # 16, 20, 20 -> 12, 14, 14
            MaxPool3d(2),  # 6, 7, 7
            nn.ReLU(inplace=True),
            nn.Conv3d(first, second, (3, 5, 5)),  # 4, 3, 3
            nn.ReLU(inplace=True),
            *_fully_connected(second, joined, (4, 3, 3), dropout),
            Voxelwise(joined[-1], classes),
        )
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, z, y, x) to scores at every second voxel along each axis, inside the valid region."""
        return _format_scores(self.body(x), self.answer)


def _check_settings(classes: int, answer: str) -> None:
    if classes != 2:
        raise ModelError(f"classes must be 2 (background and cell); got {classes}")
    if answer not in ("classes", "score"):
        raise ModelError(f"answer must be one of classes, score; got {answer!r}")


def _fully_connected(
    in_channels: int, widths: Sequence[int], size: tuple[int, int, int], dropout: float
) -> list[nn.Module]:
    """Return fully connected layers as convolutions, the first with a kernel of `size`."""
    layers: list[nn.Module] = []
    for width in widths:
        layer = Voxelwise(in_channels, width) if size == (1, 1, 1) else nn.Conv3d(in_channels, width, size)
        layers += [nn.Dropout3d(dropout), layer, nn.ReLU(inplace=True)]
        in_channels, size = width, (1, 1, 1)
    return layers


def _initialize(model: nn.Module) -> None:
    """Initialise the weights for ReLU (He et al. 2015, ICCV)."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def _format_scores(scores: Tensor, answer: str) -> Tensor:
    return scores[:, 1:2] - scores[:, 0:1] if answer == "score" else scores
