"""Layers: some with the results of those of PyTorch, but faster on a CPU, and a convolution of standardised weights."""

from __future__ import annotations

import math
from itertools import chain, product
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mrhdata.errors import ModelError

#: Offsets of a 3 x 3 x 3 kernel within 4 x 4 x 4 voxels.
_OFFSETS = tuple(product((0, 1), repeat=3))


class MaxPool3d(nn.MaxPool3d):
    """Max pooling in the data type of its input; autocast on a CPU would copy the tensor to float32.

    Examples
    --------
    >>> MaxPool3d(2)(torch.ones(1, 1, 4, 4, 4)).shape
    torch.Size([1, 1, 2, 2, 2])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Pool the input."""
        with torch.autocast("cpu", enabled=False):
            return super().forward(input)


class Voxelwise(nn.Conv3d):
    """Convolution with a kernel of one voxel.

    Examples
    --------
    >>> Voxelwise(3, 2)(torch.ones(1, 3, 4, 4, 4)).shape
    torch.Size([1, 2, 4, 4, 4])
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__(in_channels, width, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply the channels of each voxel by the weights."""
        return functional.linear(input.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class PooledConv(nn.Conv3d):
    """Convolution with a 3 x 3 x 3 kernel and max pooling by two, (B, C, z, y, x) to (B, width, z / 2 - 1, ...).

    Convolutions of one or two channels run at a hundredth of the speed of a matrix product. Without gradients both
    layers are one product: eight shifted kernels on windows of 4 x 4 x 4 voxels, followed by their maximum.

    Examples
    --------
    >>> PooledConv(1, 8)(torch.ones(1, 1, 12, 12, 12)).shape
    torch.Size([1, 8, 5, 5, 5])
    """

    #: Results of the convolution per result of the pooling.
    positions = len(_OFFSETS)
    #: Number of windows per product; their results stay in the cache of the CPU.
    _batch = 2048

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__(in_channels, width, 3)
        self.pool = MaxPool3d(2)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve and pool the input, of four voxels or more along each axis."""
        if min(input.shape[2:]) < 4:
            raise ModelError(
                f"{type(self).__name__} needs 4 voxels or more along z, y, x; got {tuple(input.shape[2:])}"
            )
        if torch.is_grad_enabled() or input.device.type != "cpu":
            return self.pool(super().forward(input))
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        with torch.autocast("cpu", enabled=False):
            return self._product(input.to(dtype))

    def _product(self, x: Tensor) -> Tensor:
        windows = _windows(x)
        kernels, bias = self._kernels().to(x.dtype), cast(Tensor, self.bias).to(x.dtype)
        out = x.new_empty(*windows.shape[:4], self.out_channels)
        buffer = x.new_empty(self._batch, kernels.shape[1])
        # Windows repeat each voxel eight times, so only those of one plane are copied at a time.
        for plane, out_plane in zip(chain.from_iterable(windows), chain.from_iterable(out), strict=True):
            batches = plane.flatten(0, 1).flatten(1).split(self._batch)
            for batch, out_batch in zip(batches, out_plane.flatten(0, 1).split(self._batch), strict=True):
                products = torch.mm(batch, kernels, out=buffer[: len(batch)])
                while products.shape[1] > self.out_channels:
                    first, second = products.chunk(2, 1)
                    products = torch.maximum(first, second, out=first)
                torch.add(products, bias, out=out_batch)
        return out.movedim(-1, 1)

    def _kernels(self) -> Tensor:
        """Return the kernel at each offset in a window as columns, rows in the order of :func:`_windows`."""
        shifted = [functional.pad(self.weight, [n for s in offset for n in (s, 1 - s)]) for offset in _OFFSETS]
        # (offset, width, C, a, i, b, j, c, k): corner a, b, c of a window, and its voxel i, j, k.
        kernels = torch.stack(shifted).view(self.positions, self.out_channels, self.in_channels, 2, 2, 2, 2, 2, 2)
        return kernels.permute(3, 5, 7, 2, 4, 6, 8, 0, 1).flatten(7).flatten(0, 6)


class StandardizedConv3d(nn.Conv3d):
    """Convolution whose kernels have mean 0 and a fixed variance, times a gain that is learned.

    Weight standardisation (Qiao et al. 2019, arXiv:1903.10520), with the scale of Brock et al. (2021, ICLR, section
    4.1): followed by a ReLU, a kernel of gain 1 keeps the variance of normal values. So a network needs no
    normalisation of its activations.

    Examples
    --------
    >>> x = torch.randn(1, 32, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> y = torch.relu(StandardizedConv3d(32, 64, 1)(x))
    >>> bool(0.8 < y.std() < 1.2)
    True
    """

    #: 1 over the standard deviation of the ReLU of a normal value.
    _RELU_GAIN = (2 / (1 - 1 / math.pi)) ** 0.5

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, **settings: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **settings)  # type: ignore[arg-type]
        self.gain = nn.Parameter(torch.ones(out_channels, 1, 1, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        """Convolve the input with the standardised kernels."""
        axes = (1, 2, 3, 4)
        inputs = self.weight[0].numel()
        variance, mean = torch.var_mean(self.weight, axes, correction=0, keepdim=True)
        scale = self._RELU_GAIN * self.gain * torch.rsqrt(variance * inputs + 1e-4)
        kernels = ((self.weight - mean) * scale).contiguous(memory_format=torch.channels_last_3d)
        return functional.conv3d(input, kernels, self.bias, self.stride, self.padding)


def _windows(x: Tensor) -> Tensor:
    """Return views of the 4 x 4 x 4 voxels of each result: (B, z, y, x, 2, 2, 2, 8 C), corners and their voxels."""
    count, channels, *lengths = x.shape
    depth, height, width = (n // 2 for n in lengths)
    even = x[:, :, : 2 * depth, : 2 * height, : 2 * width]
    blocks = even.view(count, channels, depth, 2, height, 2, width, 2)
    packed = blocks.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
    return packed.unfold(1, 2, 1).unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 1, 2, 3, 5, 6, 7, 4)


#: Layers that are not traced into when the receptive field is computed.
WHOLE = (MaxPool3d, Voxelwise, PooledConv, StandardizedConv3d)
