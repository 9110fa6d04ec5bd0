"""Sequences of degradation steps for NumPy arrays, Dask arrays and torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrhdata.degrade.steps import Floats, Step
from mrhdata.errors import DataError, GridError
from mrhdata.volume.dtypes import full_scale


@dataclass(frozen=True)
class Degradation:
    """Sequence of degradation steps.

    Attributes
    ----------
    steps : tuple of Step
        Steps in the order in which they are applied.
    full_scale : float, optional
        Image value that counts as 1. By default 1 for floats and the largest value of the type for integers.

    Examples
    --------
    >>> from mrhdata.degrade import Blur, Clip, IntensityGaussian, Points
    >>> scan = Degradation((Blur(1.0), IntensityGaussian(0.05), Clip(), Points(4)))
    >>> image = np.full((2, 64, 64), 128, np.uint8)
    >>> low = scan(image, seed=0)
    >>> low.shape, low.dtype, bool((low[0] == low[1]).all())
    ((2, 16, 16), dtype('uint8'), False)
    """

    steps: tuple[Step, ...]
    full_scale: float | None = None

    def __call__(self, image: Any, seed: int | Sequence[int]) -> Any:
        """Degrade an image.

        Parameters
        ----------
        image : (..., y, x) NumPy array, Dask array or torch tensor
            Image whose planes are degraded one by one. Dask arrays stay lazy, with whole planes as chunks.
        seed : int or several
            Random seed. The same seed gives the same planes for every type of array.

        Returns
        -------
        low : array of the image's type and dtype
            Degraded image. Integers are rounded and clipped to the range of their type.
        """
        if len(image.shape) < 2:
            raise GridError(
                f"image must have axes (..., y, x); got the shape {tuple(image.shape)}. Add the missing axis."
            )
        seeds = _seed_tuple(seed)
        leading = tuple(image.shape[:-2])
        if hasattr(image, "rechunk"):
            return self._degrade_lazily(image, seeds)
        number = np.arange(int(np.prod(leading))).reshape(leading)
        if hasattr(image, "new_tensor"):
            return image.new_tensor(self._degrade_planes(image.detach().cpu().numpy(), number, seeds))
        return self._degrade_planes(np.asarray(image), number, seeds)

    def moments(self, image: NDArray[Any], seed: int | Sequence[int], draws: int = 64) -> tuple[Floats, Floats]:
        """Estimate mean and variance of each pixel of the degraded image over several draws.

        Parameters
        ----------
        image : (..., y, x) NumPy array
            Image to degrade.
        seed : int or several
            Random seed.
        draws : int
            Number of degraded images.

        Returns
        -------
        mean, variance : (..., y, x) arrays
            Mean in the units of the image, and variance in their square.
        """
        if draws < 2:
            raise DataError(f"draws must be 2 or more for a variance; got {draws}. Use some dozens.")
        seeds, white = _seed_tuple(seed), self._white(image.dtype)
        # Floats avoid rounding and clipping to the type, which do not belong to the noise.
        values, float_degradation = np.asarray(image, dtype=np.float64) / white, Degradation(self.steps)
        degraded = (float_degradation(values, (*seeds, number)) for number in range(draws))
        # Welford's update keeps only the mean and the sum of squares in memory.
        mean = next(degraded)
        squares = np.zeros_like(mean)
        for number, low in enumerate(degraded, start=2):
            change = low - mean
            mean = mean + change / number
            squares += change * (low - mean)
        return mean * white, squares / (draws - 1) * white**2

    def _white(self, dtype: np.dtype[Any]) -> float:
        return full_scale(dtype) if self.full_scale is None else self.full_scale

    def _degraded_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        for step in self.steps:
            shape = [step.size(n) for n in shape]
        return tuple(shape)

    def _degrade_planes(self, values: NDArray[Any], number: NDArray[np.int64], seeds: tuple[int, ...]) -> NDArray[Any]:
        """Degrade planes, each with a generator seeded by its number among all planes."""
        shape = self._degraded_shape(values.shape[-2:])
        out = np.empty((number.size, *shape), dtype=values.dtype)
        white = self._white(values.dtype)
        planes = values.reshape(number.size, *values.shape[-2:])
        for i, (plane, n) in enumerate(zip(planes, number.ravel(), strict=True)):
            rng = np.random.default_rng((*seeds, int(n)))
            low = plane / np.float64(white)
            for step in self.steps:
                low = step(low, rng)
            out[i] = _cast(low * white, values.dtype)
        return out.reshape(*number.shape, *shape)

    def _degrade_lazily(self, image: Any, seeds: tuple[int, ...]) -> Any:
        leading, shape = image.shape[:-2], self._degraded_shape(image.shape[-2:])
        whole_planes = image.rechunk({len(leading): -1, len(leading) + 1: -1})
        number = np.arange(int(np.prod(leading))).reshape(leading)

        def degrade_chunk(values: NDArray[Any], block_info: Any) -> NDArray[Any]:
            bounds = block_info[0]["array-location"][:-2]
            return self._degrade_planes(values, number[tuple(slice(*b) for b in bounds)], seeds)

        chunks = (*whole_planes.chunks[:-2], (shape[0],), (shape[1],))
        meta = np.empty((0,) * image.ndim, image.dtype)
        return whole_planes.map_blocks(degrade_chunk, chunks=chunks, dtype=image.dtype, meta=meta)


def _seed_tuple(seed: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(int(s) for s in np.atleast_1d(seed))


def _cast(values: Floats, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Cast to a type; integers are rounded and clipped."""
    if not np.issubdtype(dtype, np.integer):
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
