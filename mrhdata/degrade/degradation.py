"""Steps one after another, over images of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrhdata.degrade.steps import Floats, Step
from mrhdata.errors import DataError, GridError
from mrhdata.volume.dtypes import white_of


@dataclass(frozen=True)
class Degradation:
    """Steps one after another.

    Attributes
    ----------
    steps : tuple of Step
    white : float, optional
        The image's value that counts as 1. Without it 1 for floats, and the type's largest for integers.

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
    white: float | None = None

    def __call__(self, image: Any, seed: int | Sequence[int]) -> Any:
        """The image, degraded.

        Parameters
        ----------
        image : (..., y, x) NumPy array, Dask array or torch tensor
            Each plane is degraded by itself; Dask arrays stay lazy, with whole planes as chunks.
        seed : int or several
            The same seed gives plane by plane the same result, whatever holds the image.

        Returns
        -------
        low : of the image's kind and type
            Integers are rounded and kept in their range.
        """
        if len(image.shape) < 2:
            raise GridError(f"an image has axes (..., y, x), not the shape {tuple(image.shape)}; add the missing axis")
        key = _key(seed)
        leading = tuple(image.shape[:-2])
        if hasattr(image, "rechunk"):
            return self._lazily(image, key)
        number = np.arange(int(np.prod(leading))).reshape(leading)
        if hasattr(image, "new_tensor"):
            return image.new_tensor(self._planes(image.detach().cpu().numpy(), number, key))
        return self._planes(np.asarray(image), number, key)

    def moments(self, image: NDArray[Any], seed: int | Sequence[int], draws: int = 64) -> tuple[Floats, Floats]:
        """Mean and variance of each pixel of the result over several draws: what is expected, and how surely.

        Parameters
        ----------
        image : (..., y, x) NumPy array
        seed : int or several
        draws : int

        Returns
        -------
        mean, variance : arrays in the image's values, and their square
        """
        if draws < 2:
            raise DataError(f"a variance needs 2 draws or more, not {draws}; use some dozens")
        key, white = _key(seed), self._white(image.dtype)
        # Without a type's rounding and range, which are no part of the noise.
        values, exact = np.asarray(image, dtype=np.float64) / white, Degradation(self.steps)
        found = (exact(values, (*key, number)) for number in range(draws))
        mean = next(found)
        squares = np.zeros_like(mean)
        for number, low in enumerate(found, start=2):
            change = low - mean
            mean = mean + change / number
            squares += change * (low - mean)
        return mean * white, squares / (draws - 1) * white**2

    def _white(self, dtype: np.dtype[Any]) -> float:
        return white_of(dtype) if self.white is None else self.white

    def _size(self, shape: Sequence[int]) -> tuple[int, ...]:
        for step in self.steps:
            shape = [step.size(n) for n in shape]
        return tuple(shape)

    def _planes(self, values: NDArray[Any], number: NDArray[np.int64], key: tuple[int, ...]) -> NDArray[Any]:
        """Planes, each with the generator of its number among all planes."""
        shape = self._size(values.shape[-2:])
        out = np.empty((number.size, *shape), dtype=values.dtype)
        white = self._white(values.dtype)
        planes = values.reshape(number.size, *values.shape[-2:])
        for i, (plane, n) in enumerate(zip(planes, number.ravel(), strict=True)):
            rng = np.random.default_rng((*key, int(n)))
            low = plane / np.float64(white)
            for step in self.steps:
                low = step(low, rng)
            out[i] = _typed(low * white, values.dtype)
        return out.reshape(*number.shape, *shape)

    def _lazily(self, image: Any, key: tuple[int, ...]) -> Any:
        leading, shape = image.shape[:-2], self._size(image.shape[-2:])
        whole = image.rechunk({len(leading): -1, len(leading) + 1: -1})
        number = np.arange(int(np.prod(leading))).reshape(leading)

        def block(values: NDArray[Any], block_info: Any) -> NDArray[Any]:
            place = block_info[0]["array-location"][:-2]
            return self._planes(values, number[tuple(slice(*p) for p in place)], key)

        chunks = (*whole.chunks[:-2], (shape[0],), (shape[1],))
        return whole.map_blocks(block, chunks=chunks, dtype=image.dtype, meta=np.empty((0,) * image.ndim, image.dtype))


def _key(seed: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(int(s) for s in np.atleast_1d(seed))


def _typed(values: Floats, dtype: np.dtype[Any]) -> NDArray[Any]:
    if not np.issubdtype(dtype, np.integer):
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
