"""3D networks that find cells in cleared tissue: one that screens a volume, one that looks again at what it found.

Both follow Dou et al. (2016, IEEE Trans. Med. Imaging 35:1182), whose fully connected layers are convolutions,
so that a whole volume is scored in one pass. The screening network's patches are 12 x 12 x 12 here, as in the
CLARITY system (2020): three convolutions, one pooling, two fully connected layers, and a receptive field of
exactly 12 voxels at a stride of 2. Score ``o`` stands for the voxels from ``2 o`` to ``2 o + 11``: its centre is
``2 o + 5.5``, between two voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mrhdata.errors import ModelError
from mrhdata.models.layers import Greatest, PooledConv, Voxelwise

#: Voxels along z, y, x that the networks see for one answer.
SCREENED, LOOKED_AT = (12, 12, 12), (16, 20, 20)


class Cells3D(nn.Module):
    """The screening network; (B, in_channels, z, y, x) to (B, 2, ...) scores of background and cell.

    Parameters
    ----------
    in_channels : int
    classes : int
        2, background and cell.
    widths : sequence of int
        Channels of the three convolutions and of the first connected layer.
    dropout : float
        Before each connected layer, whole channels.
    answer : {"classes", "score"}
        With ``"score"`` the answer is one channel, the cell's score less that of the background: its sigmoid
        is the softmax's second channel.

    Examples
    --------
    >>> model = Cells3D().eval()
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
        _check(classes, answer)
        self.in_channels, self.answer = in_channels, answer
        first, second, third, joined = (int(w) for w in widths)
        self.body = nn.Sequential(
            PooledConv(in_channels, first),  # 12 -> 10 -> 5
            nn.ReLU(inplace=True),
            nn.Conv3d(first, second, 3),  # 3
            nn.ReLU(inplace=True),
            nn.Conv3d(second, third, 3),  # 1
            nn.ReLU(inplace=True),
            *_connected(third, (joined,), (1, 1, 1), dropout),
            Voxelwise(joined, classes),
        )
        _begin(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, z, y, x) to one score for each 2 x 2 x 2 voxels at which the receptive field fits."""
        return _answered(self.body(x), self.answer)


class Discriminator(nn.Module):
    """The network that looks again at candidates; (B, in_channels, 16, 20, 20) to (B, 2, 1, 1, 1).

    Parameters
    ----------
    in_channels, classes, dropout, answer
        As for :class:`Cells3D`.
    widths : sequence of int
        Channels of the two convolutions and of the two connected layers.

    Examples
    --------
    >>> model = Discriminator().eval()
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
        _check(classes, answer)
        self.in_channels, self.answer = in_channels, answer
        first, second, *joined = (int(w) for w in widths)
        self.body = nn.Sequential(
            nn.Conv3d(in_channels, first, (5, 7, 7)),  # 16, 20, 20 -> 12, 14, 14
            Greatest(2),  # 6, 7, 7
            nn.ReLU(inplace=True),
            nn.Conv3d(first, second, (3, 5, 5)),  # 4, 3, 3
            nn.ReLU(inplace=True),
            *_connected(second, joined, (4, 3, 3), dropout),
            Voxelwise(joined[-1], classes),
        )
        _begin(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, z, y, x) to scores, one for each 2 x 2 x 2 voxels at which the receptive field fits."""
        return _answered(self.body(x), self.answer)


def _check(classes: int, answer: str) -> None:
    if classes != 2:
        raise ModelError(f"these networks tell cells from background, 2 classes, not {classes}")
    if answer not in ("classes", "score"):
        raise ModelError(f"answer is classes or score, not {answer!r}")


def _connected(given: int, widths: Sequence[int], size: tuple[int, int, int], dropout: float) -> list[nn.Module]:
    """Fully connected layers as convolutions, the first over all that is left of a patch."""
    layers: list[nn.Module] = []
    for width in widths:
        layer = Voxelwise(given, width) if size == (1, 1, 1) else nn.Conv3d(given, width, size)
        layers += [nn.Dropout3d(dropout), layer, nn.ReLU(inplace=True)]
        given, size = width, (1, 1, 1)
    return layers


def _begin(model: nn.Module) -> None:
    """Weights for ReLU (He et al. 2015, ICCV)."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def _answered(scores: Tensor, answer: str) -> Tensor:
    return scores[:, 1:2] - scores[:, 0:1] if answer == "score" else scores
