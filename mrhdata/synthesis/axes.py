"""Matrices that act along one axis of an image: blur, slices, interpolation, splines, cosines.

Every linear step of the synthesis is a product of such matrices. Products are fast on processors and GPUs, and each
step defines its own behaviour at the edge of the patch. Positions and widths are in voxels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mrhdata.synthesis.draws import Draws

#: Standard deviation of a 3-D cubic B-spline with independent coefficients of deviation 1.
_SPLINE_SD = (151 / 315) ** 1.5
#: Blurs below this deviation, in voxels, change a voxel by less than a thousandth and are left out.
_LEAST_BLUR = 0.2
#: Full width at half maximum of a Gaussian of deviation 1.
FWHM = 2 * math.sqrt(2 * math.log(2))


def apply(image: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Multiply an image by a matrix (new size, size) along one of its last three axes (0 z, 1 y, 2 x).

    Examples
    --------
    >>> apply(torch.ones(2, 3, 4), torch.ones(5, 3), 1).shape
    torch.Size([2, 5, 4])
    """
    matrix = matrix.to(image.device)
    if axis == 2:
        return image @ matrix.T
    if axis == 1:
        return matrix @ image
    return (matrix @ image.flatten(-2)).reshape(*image.shape[:-3], -1, *image.shape[-2:])


def blur(image: Tensor, deviations: Sequence[float]) -> Tensor:
    """Blur by a Gaussian of one standard deviation per axis; the edge renormalises it.

    Examples
    --------
    >>> blur(torch.ones(4, 5, 6), (1.0, 0.0, 2.0)).allclose(torch.ones(4, 5, 6))
    True
    """
    for axis, deviation in enumerate(deviations):
        if deviation >= _LEAST_BLUR:
            image = apply(image, gaussian(image.shape[axis - 3], deviation), axis)
    return image


def gaussian(size: int, deviation: float) -> Tensor:
    """Return the matrix (size, size) of a Gaussian blur.

    Examples
    --------
    >>> gaussian(3, 0.5)[1]
    tensor([0.1065, 0.7870, 0.1065])
    """
    at = torch.arange(size, dtype=torch.float32)
    return _normalized(torch.exp(-0.5 * ((at - at[:, None]) / deviation) ** 2))


def slices(size: int, centres: Tensor, thickness: float, *, box: bool) -> Tensor:
    """Return the matrix (slices, size) of slice profiles: a box, or a Gaussian of the same width at half maximum.

    Examples
    --------
    >>> slices(4, torch.tensor([0.5, 2.5]), 2.0, box=True)
    tensor([[0.5000, 0.5000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.5000, 0.5000]])
    """
    distance = (torch.arange(size, dtype=torch.float32) - centres[:, None]).abs()
    if box:
        # The overlap of a voxel of width 1 with the box.
        return _normalized((thickness / 2 + 0.5 - distance).clamp(0, min(1.0, thickness)))
    return _normalized(torch.exp(-0.5 * (distance * FWHM / thickness) ** 2))


def linear(size: int, positions: Tensor) -> Tensor:
    """Return the matrix (positions, size) of linear interpolation; the edge is repeated.

    Examples
    --------
    >>> linear(3, torch.tensor([0.5, 2.0, 7.0]))
    tensor([[0.5000, 0.5000, 0.0000],
            [0.0000, 0.0000, 1.0000],
            [0.0000, 0.0000, 1.0000]])
    """
    at = torch.arange(size, dtype=torch.float32)
    return (1 - (positions.clamp(0, size - 1)[:, None] - at).abs()).clamp(min=0)


def nearest(size: int, positions: Tensor) -> Tensor:
    """Return the matrix (positions, size) that takes the nearest value.

    Examples
    --------
    >>> nearest(3, torch.tensor([0.6, 7.0])).argmax(1).tolist()
    [1, 2]
    """
    return torch.eye(size)[positions.round().long().clamp(0, size - 1)]


def spline(size: int, node: float) -> Tensor:
    """Return the matrix (size, nodes) of cubic B-splines with nodes a distance apart, in voxels.

    Examples
    --------
    >>> spline(9, 4.0).shape
    torch.Size([9, 5])
    """
    count = math.ceil((size - 1) / node) + 3
    distance = (torch.arange(size)[:, None] / node + 1 - torch.arange(count)).abs()
    inner = 2 / 3 - distance**2 + distance**3 / 2
    return torch.where(distance < 1, inner, (2 - distance).clamp(min=0) ** 3 / 6)


@functools.lru_cache(maxsize=16)
def cosines(size: int) -> Tensor:
    """Return the orthonormal cosine transform (size, size): k-space of the line continued by its mirror image.

    Rows are frequencies, from low to high. The mirror image keeps opposite edges of a patch apart, which the Fourier
    transform would join.

    Examples
    --------
    >>> cosines(2)
    tensor([[ 0.7071,  0.7071],
            [ 0.7071, -0.7071]])
    """
    at = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi / size * (at + 0.5) * at[:, None]) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows.float()


def keep_frequencies(weights: Tensor) -> Tensor:
    """Return the matrix (size, size) that multiplies the frequencies of a line by weights (size,).

    Examples
    --------
    The lowest frequency is the mean:

    >>> keep_frequencies(torch.tensor([1.0, 0.0])) @ torch.tensor([2.0, 4.0])
    tensor([3.0000, 3.0000])
    """
    basis = cosines(len(weights))
    return basis.T @ (weights[:, None] * basis)


def smooth_field(shape: Sequence[int], nodes: Sequence[float], draws: Draws, channels: int = 1) -> Tensor:
    """Return smooth random fields (channels, z, y, x) of mean 0 and deviation 1.

    Parameters
    ----------
    shape : (z, y, x)
    nodes : (3,) sequence of float
        Distance between independent values along each axis, in voxels.
    draws : Draws
        Random numbers.
    channels : int
        Number of independent fields.

    Examples
    --------
    >>> smooth_field((8, 8, 8), (4, 4, 4), Draws(0), channels=3).shape
    torch.Size([3, 8, 8, 8])
    """
    matrices = [spline(size, max(node, 1.0)) for size, node in zip(shape, nodes, strict=True)]
    field = draws.normals(channels, *(matrix.shape[1] for matrix in matrices)) / _SPLINE_SD
    for axis, matrix in enumerate(matrices):
        field = apply(field, matrix, axis)
    return field


def _normalized(matrix: Tensor) -> Tensor:
    return matrix / matrix.sum(1, keepdim=True).clamp(min=1e-12)
