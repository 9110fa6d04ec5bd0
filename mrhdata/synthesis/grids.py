"""The grid of a sample, and the finer grid on which it is painted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mrhdata.errors import ParameterError

Triple = tuple[int, int, int]

#: Voxels of the painted grid are at most this many times as large as those of the map.
_COARSEST = 1.25


@dataclass(frozen=True)
class Grids:
    """Grid of the output, and the number of painted voxels per voxel of the output.

    Attributes
    ----------
    shape : (z, y, x)
        Size of the output.
    spacing_mm : (3,) tuple of float
        Voxel size of the output.
    factors : (3,) tuple of int
        Painted voxels per output voxel along each axis: odd, so that one of them lies at its centre.

    Examples
    --------
    >>> grids = Grids.choose((4, 64, 64), (3.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    >>> grids.factors, grids.fine_shape, grids.fine_mm
    ((3, 1, 1), (12, 64, 64), (1.0, 1.0, 1.0))
    """

    shape: Triple
    spacing_mm: tuple[float, ...]
    factors: tuple[int, ...]

    @classmethod
    def choose(cls, shape: Sequence[int], spacing_mm: Sequence[float], map_mm: Sequence[float]) -> Grids:
        """Choose the factors for a map of a voxel size.

        Raises
        ------
        ParameterError
            If a size or a length is not positive, or there are not three.
        """
        if len(shape) != 3 or min(shape) < 1:
            raise ParameterError(f"shape must be three sizes of 1 or more; got {tuple(shape)}. Pass shape=(z, y, x).")
        if len(spacing_mm) != 3 or min(spacing_mm) <= 0:
            raise ParameterError(f"spacing_mm must be three lengths above 0; got {spacing_mm}. Pass (z, y, x) in mm.")
        ratios = [own / other / _COARSEST for own, other in zip(spacing_mm, map_mm, strict=True)]
        factors = tuple(2 * max(0, math.ceil((ratio - 1) / 2)) + 1 for ratio in ratios)
        z, y, x = (int(size) for size in shape)
        return cls((z, y, x), tuple(float(length) for length in spacing_mm), factors)

    @property
    def fine_shape(self) -> Triple:
        """Size of the painted grid."""
        z, y, x = (size * factor for size, factor in zip(self.shape, self.factors, strict=True))
        return z, y, x

    @property
    def fine_mm(self) -> tuple[float, ...]:
        """Voxel size of the painted grid."""
        return tuple(length / factor for length, factor in zip(self.spacing_mm, self.factors, strict=True))

    def at_centres(self, fine: Tensor) -> Tensor:
        """Return the painted voxels at the centres of the output's."""
        return fine[tuple(slice(factor // 2, None, factor) for factor in self.factors)]
