"""What happens to a plane: noise, blur, lines that shift, charge, and fewer pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, zoom

Floats = NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True)
class Between:
    """A number drawn uniformly for each plane.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> noise = Gaussian(Between(0.0, 0.2))
    >>> [round(float(noise(np.zeros((64, 64)), rng).std()), 2) for _ in range(3)]
    [0.13, 0.1, 0.08]
    """

    low: float
    high: float


Level = float | Between


def _drawn(level: Level, rng: Rng) -> float:
    return float(rng.uniform(level.low, level.high)) if isinstance(level, Between) else level


class Step(ABC):
    """One degradation of a plane (y, x) of values from 0 to 1. A new one is a subclass with ``_degraded``."""

    def __call__(self, values: Floats, rng: Rng) -> Floats:
        """The plane, degraded."""
        return np.asarray(self._degraded(values, rng), dtype=np.float64)

    @abstractmethod
    def _degraded(self, values: Floats, rng: Rng) -> Any: ...

    def size(self, length: int) -> int:
        """Pixels of an axis afterwards."""
        return length


@dataclass(frozen=True)
class Reduction(Step):
    """A step that leaves one pixel of `factor` along y and x; pixels that are over do not count."""

    factor: int

    def size(self, length: int) -> int:
        """Pixels of an axis afterwards."""
        return length // self.factor

    def places(self, length: int) -> tuple[float, float]:
        """Where the first pixel of the result lies among those of an axis, and how far from one to the next.

        Examples
        --------
        >>> Area(4).places(64), Zoom(4).places(64)
        ((1.5, 4.0), (0.0, 4.2))
        """
        return (self.factor - 1) / 2, float(self.factor)


@dataclass(frozen=True)
class Gaussian(Step):
    """Noise of one standard deviation."""

    std: Level

    def _degraded(self, values: Floats, rng: Rng) -> Any:
        return values + _drawn(self.std, rng) * rng.standard_normal(values.shape)


@dataclass(frozen=True)
class IntensityGaussian(Step):
    """Noise whose variance rises with intensity: ``offset + slope * G(values)``, G a blur of `width` pixels."""

    slope: Level
    offset: Level = 0.0
    width: float = 0.0

    def _degraded(self, values: Floats, rng: Rng) -> Any:
        slope, offset = _drawn(self.slope, rng), _drawn(self.offset, rng)
        variance = offset + slope * (gaussian_filter(values, self.width, mode="nearest") if self.width else values)
        return values + np.sqrt(np.maximum(variance, 0)) * rng.standard_normal(values.shape)


@dataclass(frozen=True)
class Poisson(Step):
    """Shot noise of `white` counts at 1, mixed with the values; without `white`, as scikit-image sets it.

    That is the least power of two that is not below the number of distinct values.
    """

    white: Level | None = None
    mix: Level = 1.0

    def _degraded(self, values: Floats, rng: Rng) -> Any:
        white = 2.0 ** np.ceil(np.log2(np.unique(values).size)) if self.white is None else _drawn(self.white, rng)
        mix = _drawn(self.mix, rng)
        return (1 - mix) * values + mix * rng.poisson(np.maximum(values, 0) * white) / white


@dataclass(frozen=True)
class Speckle(Step):
    """Noise in proportion to the values."""

    std: Level

    def _degraded(self, values: Floats, rng: Rng) -> Any:
        return values * (1 + _drawn(self.std, rng) * rng.standard_normal(values.shape))


@dataclass(frozen=True)
class SaltPepper(Step):
    """A share of the pixels becomes white, then a share black."""

    salt: Level
    pepper: Level

    def _degraded(self, values: Floats, rng: Rng) -> Any:
        salt, pepper = _drawn(self.salt, rng), _drawn(self.pepper, rng)
        salted = np.where(rng.random(values.shape) < salt, 1.0, values)
        return np.where(rng.random(values.shape) < pepper, 0.0, salted)


@dataclass(frozen=True)
class Blur(Step):
    """A Gaussian of `width` pixels: defocus, or a wide beam."""

    width: Level

    def _degraded(self, values: Floats, rng: Rng) -> Any:
        return gaussian_filter(values, _drawn(self.width, rng), mode="nearest")


@dataclass(frozen=True)
class LineShift(Step):
    """Scan lines (rows) displaced along x, in pixels: `jitter` by line, and a random walk of steps `drift`."""

    jitter: Level = 0.0
    drift: Level = 0.0

    def _degraded(self, values: Floats, rng: Rng) -> Any:
        rows, columns = values.shape
        each, walk = rng.standard_normal((2, rows))
        shift = _drawn(self.jitter, rng) * each + np.cumsum(_drawn(self.drift, rng) * walk)
        y, x = np.mgrid[:rows, :columns].astype(np.float64)
        return map_coordinates(values, [y, x + shift[:, None]], order=1, mode="nearest")


@dataclass(frozen=True)
class Charging(Step):
    """Stripes where charge builds up.

    A share `rate` of the lines jumps somewhere, by a normal deviate of `strength`, and falls back over
    `length` pixels along the line.
    """

    strength: Level
    rate: Level = 0.05
    length: Level = 50.0

    def _degraded(self, values: Floats, rng: Rng) -> Any:
        rows, columns = values.shape
        jump = rng.normal(0, _drawn(self.strength, rng), (rows, 1)) * (rng.random((rows, 1)) < _drawn(self.rate, rng))
        since = np.arange(columns) - rng.uniform(0, columns, (rows, 1))
        fall = np.exp(-np.maximum(since, 0) / _drawn(self.length, rng))
        return values + jump * np.where(since >= 0, fall, 0.0)


@dataclass(frozen=True)
class Gain(Step):
    """Another contrast and brightness: ``offset + gain * values``."""

    gain: Level = 1.0
    offset: Level = 0.0

    def _degraded(self, values: Floats, rng: Rng) -> Any:
        return _drawn(self.offset, rng) + _drawn(self.gain, rng) * values


@dataclass(frozen=True)
class Clip(Step):
    """Values below 0 become 0, above 1 become 1, as a detector's do."""

    def _degraded(self, values: Floats, rng: Rng) -> Any:
        return np.clip(values, 0.0, 1.0)


@dataclass(frozen=True)
class Stretch(Step):
    """The least value becomes 0 and the greatest 1."""

    def _degraded(self, values: Floats, rng: Rng) -> Any:
        span = float(np.ptp(values))
        return (values - values.min()) / (span or 1.0)


@dataclass(frozen=True)
class KeepMax(Step):
    """Steps that keep the size, and then a gain that gives the greatest value back what it was."""

    steps: tuple[Step, ...]

    def _degraded(self, values: Floats, rng: Rng) -> Any:
        out = values
        for step in self.steps:
            out = step(out, rng)
        return out * (values.max() / (out.max() or 1.0))


@dataclass(frozen=True)
class Area(Reduction):
    """Means of squares of `factor` pixels: each pixel of the result has seen the whole of its square."""

    def _degraded(self, values: Floats, rng: Rng) -> Any:
        rows, columns = (self.size(n) for n in values.shape)
        squares = values[: rows * self.factor, : columns * self.factor]
        return squares.reshape(rows, self.factor, columns, self.factor).mean(axis=(1, 3))


@dataclass(frozen=True)
class Points(Reduction):
    """One pixel out of each square of `factor`: a sparse raster with a narrow beam. Noise stays, detail aliases."""

    def _degraded(self, values: Floats, rng: Rng) -> Any:
        rows, columns = (np.arange(self.size(n)) * self.factor + self.factor // 2 for n in values.shape)
        return values[np.ix_(rows, columns)]

    def places(self, length: int) -> tuple[float, float]:
        """The pixel that is taken."""
        return float(self.factor // 2), float(self.factor)


@dataclass(frozen=True)
class Zoom(Reduction):
    """Linear interpolation from first pixel to last, without a low-pass: nearly points.

    That is ``scipy.ndimage.zoom`` of order 1. In SciPy's own `mode`, ``constant``, rounding puts the last row and
    column of some sizes outside, where they become black: of 248 pixels, not of 250, 256 or 512.
    """

    mode: str = "nearest"

    def _degraded(self, values: Floats, rng: Rng) -> Any:
        return zoom(values, [self.size(n) / n for n in values.shape], order=1, mode=self.mode)

    def places(self, length: int) -> tuple[float, float]:
        """The first and the last pixel stay where they are, so that the others lie further apart than `factor`."""
        return 0.0, (length - 1) / max(1, self.size(length) - 1)


@dataclass(frozen=True)
class Rescale(Reduction):
    """scikit-image's ``rescale`` of order 1 with its anti-aliasing: a Gaussian of (factor - 1) / 2, then linear."""

    def _degraded(self, values: Floats, rng: Rng) -> Any:
        smooth = gaussian_filter(values, (self.factor - 1) / 2, mode="mirror")
        return zoom(smooth, [self.size(n) / n for n in values.shape], order=1, grid_mode=True, mode="mirror")


@dataclass(frozen=True)
class Triangle(Reduction):
    """Pillow's bilinear reduction: weights fall linearly to 0 over `factor` pixels to both sides."""

    def _weights(self, length: int) -> Floats:
        centre = (np.arange(self.size(length)) + 0.5) * length / self.size(length)
        away = np.abs(np.arange(length) + 0.5 - centre[:, None]) * self.size(length) / length
        weights = np.maximum(1 - away, 0)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    def _degraded(self, values: Floats, rng: Rng) -> Any:
        rows, columns = values.shape
        return self._weights(rows) @ values @ self._weights(columns).T
