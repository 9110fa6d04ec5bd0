"""PSSR's super-resolution network (Fang et al. 2021, Nat. Methods 18:406), as in the published code.

A U-Net on images that were interpolated to four times the pixels along each axis: a residual encoder with weight
normalisation and pooled shortcuts, down to one global vector (the published encoder keeps the average pooling),
five decoder blocks with pixel shuffle and a blur, and self-attention at an eighth of the resolution. The global
vector and the attention depend on the whole patch, so the network is trained and run at one patch size, and dense
prediction refuses it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as f
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

_DEPTHS, _WIDTHS = (3, 4, 6, 3), (64, 128, 256, 512)


class PSSR(nn.Module):
    """PSSR; (B, in_channels, h, w) to (B, 1, scale h, scale w).

    Parameters
    ----------
    in_channels : int
        Number of planes: 1, or 5 neighbouring ones.
    scale : int
        Output pixels per input pixel along each axis: 4 as published, 1 for images that are already interpolated,
        whose windows :func:`mrhdata.predict` can blend.
    attention : bool
        Whether to use self-attention at an eighth of the resolution.

    Examples
    --------
    >>> model = PSSR().eval()
    >>> model(torch.zeros(1, 1, 16, 16)).shape, round(sum(p.numel() for p in model.parameters()) / 1e6, 1)
    (torch.Size([1, 1, 64, 64]), 48.9)
    """

    ndim = 2

    def __init__(self, in_channels: int = 1, scale: int = 4, attention: bool = True) -> None:
        super().__init__()
        self.in_channels, self.scale = in_channels, scale
        self.stem = nn.Sequential(_conv(in_channels, 32, stride=2), _conv(32, 32), _conv(32, 64))
        self.pool = nn.MaxPool2d(3, 2, 1)
        stages, channels = [], 64
        for depth, width in zip(_DEPTHS, _WIDTHS, strict=True):
            first = Residual(channels, width, 1 if width == 64 else 2)
            stages.append(nn.Sequential(first, *(Residual(width, width) for _ in range(depth - 1))))
            channels = width
        self.stages = nn.ModuleList(stages)
        self.middle = nn.Sequential(
            nn.BatchNorm2d(512), nn.ReLU(), _conv(512, 1024, bias=True), _conv(1024, 512, bias=True)
        )
        ups, skips = (512, 768, 640, 448, 288), (512, 256, 128, 64, 64)
        self.up = nn.ModuleList(
            Up(u, s, out, attend=attention and s == 128)
            for u, s, out in zip(ups, skips, (None, None, None, None, 104), strict=True)
        )
        self.last_up = Shuffle(104, 104)
        joined = 104 + in_channels
        self.joined = nn.Sequential(_conv(joined, joined // 2, bias=True), _conv(joined // 2, joined, bias=True))
        self.answer = weight_norm(nn.Conv2d(joined, 1, 1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, 1, scale h, scale w)."""
        x = x.contiguous(memory_format=torch.channels_last)
        if self.scale > 1:
            x = f.interpolate(x, scale_factor=float(self.scale), mode="bilinear", align_corners=False)
        skips = [self.stem(x)]
        y = self.pool(skips[0])
        for stage in self.stages:
            y = stage(y)
            skips.append(y)
        y = self.middle(f.adaptive_avg_pool2d(y, 1))
        for up, skip in zip(self.up, skips[::-1], strict=True):
            y = up(y, skip)
        y = _resize_to(self.last_up(y), x)
        y = torch.cat([y, x], 1)
        return self.answer(y + self.joined(y))


def _conv(
    in_channels: int, width: int, *, stride: int = 1, size: int = 3, bias: bool = False, act: bool = True
) -> nn.Module:
    layer = weight_norm(nn.Conv2d(in_channels, width, size, stride, size // 2, bias=bias))
    return nn.Sequential(layer, nn.ReLU()) if act else layer


class Residual(nn.Module):
    """Residual block: a 1 x 1 and a 3 x 3 convolution, with a pooled shortcut."""

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(in_channels, width, size=1), _conv(width, width, stride=stride, act=False))
        shortcut: list[nn.Module] = [nn.AvgPool2d(2, ceil_mode=True)] if stride > 1 else []
        if in_channels != width:
            shortcut.append(_conv(in_channels, width, size=1, act=False))
        self.around = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, width, h / stride, w / stride)."""
        return f.relu(self.body(x) + self.around(x))


class Shuffle(nn.Module):
    """Upsampling by two with pixel shuffle and ICNR initialisation, optionally blurred over 2 x 2 pixels."""

    def __init__(self, in_channels: int, width: int, blur: bool = False) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels, 4 * width, 1)
        weights = nn.init.kaiming_normal_(torch.empty(width, in_channels, 1, 1))
        # ICNR: the four output pixels of an input pixel start with equal weights.
        conv.weight.data.copy_(weights.repeat_interleave(4, 0))
        self.grow = nn.Sequential(weight_norm(conv), nn.ReLU(), nn.PixelShuffle(2))
        self.blur = blur

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, width, 2 h, 2 w)."""
        x = self.grow(x)
        return f.avg_pool2d(f.pad(x, (1, 0, 1, 0), mode="replicate"), 2, stride=1) if self.blur else x


class Up(nn.Module):
    """Decoder block: upsample, concatenate the skip connection, and convolve twice."""

    def __init__(self, in_channels: int, skip: int, out: int | None, attend: bool) -> None:
        super().__init__()
        self.grow = Shuffle(in_channels, in_channels // 2, blur=True)
        self.norm = nn.BatchNorm2d(skip)
        joined = in_channels // 2 + skip
        out = joined if out is None else out
        self.body = nn.Sequential(_conv(joined, out, bias=True), _conv(out, out, bias=True))
        self.attend = Attention(out) if attend else nn.Identity()

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (B, in_channels, h, w), and a skip connection of about twice the size, to the size of the latter."""
        x = _resize_to(self.grow(x), skip)
        return self.attend(self.body(f.relu(torch.cat([x, self.norm(skip)], 1))))


class Attention(nn.Module):
    """Self-attention over all pixels (Zhang et al. 2019, ICML, SAGAN); its initial weight is 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = (spectral_norm(nn.Conv1d(width, width // 8, 1, bias=False)) for _ in range(2))
        self.value = spectral_norm(nn.Conv1d(width, width, 1, bias=False))
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, h, w) to the same shape."""
        flat = x.flatten(2)
        # The attention operator of ONNX requires an axis of heads, here of length 1.
        query, key, value = (layer(flat).transpose(1, 2)[:, None] for layer in (self.query, self.key, self.value))
        # PyTorch's function avoids a matrix of all pixel pairs; scale=1 because SAGAN does not scale.
        attended = f.scaled_dot_product_attention(query, key, value, scale=1.0)[:, 0]
        return x + self.gamma * attended.transpose(1, 2).reshape(x.shape)


def _resize_to(x: Tensor, like: Tensor) -> Tensor:
    """Resize to the height and width of `like` by nearest-neighbour interpolation."""
    shape: Sequence[int] = like.shape[-2:]
    return x if x.shape[-2:] == like.shape[-2:] else f.interpolate(x, size=tuple(shape), mode="nearest")
