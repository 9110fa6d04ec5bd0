"""Stacks of 2D convolutions that label tissue slice by slice (minc_keras, as presented in 2018).

Padded convolutions of one kernel size, each with an activation and dropout, and a 1 x 1 convolution to the
classes. The named variants follow the slides of the course. The slide of ``model_4_0`` lists the widths of
``model_2_0``, but its count of 532,435 parameters requires the widths used here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mrhdata.errors import ModelError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
_WIDE = (16, 16, 32, 32, 64, 64)
_DEEP = (16, 16, 32, 32, 32, 64, 64, 64, 128)
#: Settings of the published variants.
VARIANTS: dict[str, dict[str, object]] = {
    "0_0": {"widths": _WIDE},
    "1_0": {"widths": _DEEP},
    "2_0": {"widths": _WIDE, "kernel": 5},
    "3_0": {"widths": (8, 8, 8, 16, 16, 16, 32, 32)},
    "4_0": {"widths": _DEEP, "kernel": 5, "dropout": 0.25},
}


class Tissue2D(nn.Module):
    """Stack of 2D convolutions; (B, in_channels, h, w) to scores (B, classes, h, w), any h and w.

    Parameters
    ----------
    in_channels, classes : int
        Numbers of input channels and of classes.
    widths : sequence of int
        Number of channels of each hidden convolution.
    kernel : int
        Edge of the kernels, an odd number.
    dilations : sequence of int, optional
        Dilation of each hidden convolution, 1 by default.
    dropout : float
        Dropout probability after each hidden convolution.
    activation : str
        Name of the activation, one of `ACTIVATIONS`.

    Examples
    --------
    >>> model = Tissue2D(classes=3)
    >>> model(torch.zeros(1, 1, 20, 30)).shape, sum(p.numel() for p in model.parameters())
    (torch.Size([1, 3, 20, 30]), 71987)
    """

    ndim = 2

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 3,
        widths: Sequence[int] = _WIDE,
        kernel: int = 3,
        dilations: Sequence[int] | None = None,
        dropout: float = 0.0,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        dilations = (1,) * len(widths) if dilations is None else dilations
        if len(dilations) != len(widths) or not widths:
            raise ModelError(f"there must be one dilation per width; got {len(dilations)} for {len(widths)} widths")
        if kernel % 2 == 0:
            raise ModelError(f"kernel must be odd; got {kernel}")
        if activation not in ACTIVATIONS:
            raise ModelError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
        layers: list[nn.Module] = []
        for channels, width, dilation in zip((in_channels, *widths), widths, dilations, strict=False):
            layers += [
                nn.Conv2d(channels, width, kernel, padding=dilation * (kernel // 2), dilation=dilation),
                ACTIVATIONS[activation](),
                nn.Dropout(dropout),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], classes, 1))
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)  # as Keras does
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, classes, h, w)."""
        return self.layers(x.contiguous(memory_format=torch.channels_last))
