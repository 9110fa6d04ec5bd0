"""Degradation steps of a plane: noise, blur, shifted lines, charging, and reduction."""

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
    """Uniform distribution of a parameter, drawn for each plane.

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


def _draw(level: Level, rng: Rng) -> float:
    return float(rng.uniform(level.low, level.high)) if isinstance(level, Between) else level


class Step(ABC):
    """Degradation of a plane (y, x) of values from 0 to 1. Subclasses implement ``_apply``."""

    def __call__(self, values: Floats, rng: Rng) -> Floats:
        """Degrade a plane."""
        return np.asarray(self._apply(values, rng), dtype=np.float64)

    @abstractmethod
    def _apply(self, values: Floats, rng: Rng) -> Any: ...

    def size(self, length: int) -> int:
        """Return the number of pixels of an axis after the step."""
        return length


@dataclass(frozen=True)
class Reduction(Step):
    """Step that reduces `factor` pixels to one along y and x; incomplete pixels at the end are dropped."""

    factor: int

    def size(self, length: int) -> int:
        """Return the number of pixels of an axis after the step."""
        return length // self.factor

    def places(self, length: int) -> tuple[float, float]:
        """Return the position of the first reduced pixel along an axis and the distance between reduced pixels.

        Both are in pixels of the full axis.

        Examples
        --------
        >>> Area(4).places(64), Zoom(4).places(64)
        ((1.5, 4.0), (0.0, 4.2))
        """
        return (self.factor - 1) / 2, float(self.factor)


@dataclass(frozen=True)
class Gaussian(Step):
    """Gaussian noise of constant standard deviation."""

    std: Level

    def _apply(self, values: Floats, rng: Rng) -> Any:
        return values + _draw(self.std, rng) * rng.standard_normal(values.shape)


@dataclass(frozen=True)
class IntensityGaussian(Step):
    """Gaussian noise of variance ``offset + slope * G(values)``, where G is a Gaussian blur of `width` pixels."""

    slope: Level
    offset: Level = 0.0
    width: float = 0.0

    def _apply(self, values: Floats, rng: Rng) -> Any:
        slope, offset = _draw(self.slope, rng), _draw(self.offset, rng)
        variance = offset + slope * (gaussian_filter(values, self.width, mode="nearest") if self.width else values)
        return values + np.sqrt(np.maximum(variance, 0)) * rng.standard_normal(values.shape)


@dataclass(frozen=True)
class Poisson(Step):
    """Shot noise with `white` counts at a value of 1, mixed with the values by the share `mix`.

    By default `white` is, as in scikit-image, the number of distinct values rounded up to a power of two.
    """

    white: Level | None = None
    mix: Level = 1.0

    def _apply(self, values: Floats, rng: Rng) -> Any:
        white = 2.0 ** np.ceil(np.log2(np.unique(values).size)) if self.white is None else _draw(self.white, rng)
        mix = _draw(self.mix, rng)
        return (1 - mix) * values + mix * rng.poisson(np.maximum(values, 0) * white) / white


@dataclass(frozen=True)
class Speckle(Step):
    """Gaussian noise proportional to the values."""

    std: Level

    def _apply(self, values: Floats, rng: Rng) -> Any:
        return values * (1 + _draw(self.std, rng) * rng.standard_normal(values.shape))


@dataclass(frozen=True)
class SaltPepper(Step):
    """White pixels with the probability `salt`, then black pixels with the probability `pepper`."""

    salt: Level
    pepper: Level

    def _apply(self, values: Floats, rng: Rng) -> Any:
        salt, pepper = _draw(self.salt, rng), _draw(self.pepper, rng)
        salted = np.where(rng.random(values.shape) < salt, 1.0, values)
        return np.where(rng.random(values.shape) < pepper, 0.0, salted)


@dataclass(frozen=True)
class Blur(Step):
    """Gaussian blur with a standard deviation of `width` pixels: defocus, or a wide beam."""

    width: Level

    def _apply(self, values: Floats, rng: Rng) -> Any:
        return gaussian_filter(values, _draw(self.width, rng), mode="nearest")


@dataclass(frozen=True)
class LineShift(Step):
    """Displacement of scan lines (rows) along x, in pixels: `jitter` per line plus a random walk of steps `drift`."""

    jitter: Level = 0.0
    drift: Level = 0.0

    def _apply(self, values: Floats, rng: Rng) -> Any:
        rows, columns = values.shape
        jitter, step = rng.standard_normal((2, rows))
        shift = _draw(self.jitter, rng) * jitter + np.cumsum(_draw(self.drift, rng) * step)
        y, x = np.mgrid[:rows, :columns].astype(np.float64)
        return map_coordinates(values, [y, x + shift[:, None]], order=1, mode="nearest")


@dataclass(frozen=True)
class Charging(Step):
    """Charging artefacts: stripes along scan lines.

    A share `rate` of the lines jumps at a random pixel, by a normal deviate of standard deviation `strength`, and
    decays exponentially over `length` pixels.
    """

    strength: Level
    rate: Level = 0.05
    length: Level = 50.0

    def _apply(self, values: Floats, rng: Rng) -> Any:
        rows, columns = values.shape
        jump = rng.normal(0, _draw(self.strength, rng), (rows, 1)) * (rng.random((rows, 1)) < _draw(self.rate, rng))
        pixels_after_jump = np.arange(columns) - rng.uniform(0, columns, (rows, 1))
        decay = np.exp(-np.maximum(pixels_after_jump, 0) / _draw(self.length, rng))
        return values + jump * np.where(pixels_after_jump >= 0, decay, 0.0)


@dataclass(frozen=True)
class Gain(Step):
    """Change of contrast and brightness: ``offset + gain * values``."""

    gain: Level = 1.0
    offset: Level = 0.0

    def _apply(self, values: Floats, rng: Rng) -> Any:
        return _draw(self.offset, rng) + _draw(self.gain, rng) * values


@dataclass(frozen=True)
class Clip(Step):
    """Clipping to 0 and 1, as in a detector."""

    def _apply(self, values: Floats, rng: Rng) -> Any:
        return np.clip(values, 0.0, 1.0)


@dataclass(frozen=True)
class Stretch(Step):
    """Stretch of the range of a plane to 0 and 1."""

    def _apply(self, values: Floats, rng: Rng) -> Any:
        span = float(np.ptp(values))
        return (values - values.min()) / (span or 1.0)


@dataclass(frozen=True)
class KeepMax(Step):
    """Steps that keep the size, followed by a gain that restores the maximum."""

    steps: tuple[Step, ...]

    def _apply(self, values: Floats, rng: Rng) -> Any:
        out = values
        for step in self.steps:
            out = step(out, rng)
        return out * (values.max() / (out.max() or 1.0))


@dataclass(frozen=True)
class Area(Reduction):
    """Means of squares of `factor` x `factor` pixels: a wide beam that covers the whole square."""

    def _apply(self, values: Floats, rng: Rng) -> Any:
        rows, columns = (self.size(n) for n in values.shape)
        squares = values[: rows * self.factor, : columns * self.factor]
        return squares.reshape(rows, self.factor, columns, self.factor).mean(axis=(1, 3))


@dataclass(frozen=True)
class Points(Reduction):
    """One pixel of each square of `factor` x `factor` pixels: a sparse raster with a narrow beam.

    Noise is not averaged, and fine detail aliases.
    """

    def _apply(self, values: Floats, rng: Rng) -> Any:
        rows, columns = (np.arange(self.size(n)) * self.factor + self.factor // 2 for n in values.shape)
        return values[np.ix_(rows, columns)]

    def places(self, length: int) -> tuple[float, float]:
        """Return the first sampled pixel and the distance between sampled pixels."""
        return float(self.factor // 2), float(self.factor)


@dataclass(frozen=True)
class Zoom(Reduction):
    """Linear interpolation between the first and the last pixel, without a low-pass filter: nearly `Points`.

    It is ``scipy.ndimage.zoom`` of order 1. SciPy's default `mode`, ``constant``, makes the last row and column black
    for some sizes (248 pixels, but not 250, 256 or 512), because rounding places them outside of the image.
    """

    mode: str = "nearest"

    def _apply(self, values: Floats, rng: Rng) -> Any:
        return zoom(values, [self.size(n) / n for n in values.shape], order=1, mode=self.mode)

    def places(self, length: int) -> tuple[float, float]:
        """Return 0 and a distance above `factor`: the first and the last pixel keep their positions."""
        return 0.0, (length - 1) / max(1, self.size(length) - 1)


@dataclass(frozen=True)
class Rescale(Reduction):
    """``rescale`` of scikit-image, order 1 with anti-aliasing: a Gaussian of (factor - 1) / 2 pixels, then linear."""

    def _apply(self, values: Floats, rng: Rng) -> Any:
        smooth = gaussian_filter(values, (self.factor - 1) / 2, mode="mirror")
        return zoom(smooth, [self.size(n) / n for n in values.shape], order=1, grid_mode=True, mode="mirror")


@dataclass(frozen=True)
class Triangle(Reduction):
    """Bilinear reduction of Pillow: weights fall linearly to 0 over `factor` pixels on both sides."""

    def _weights(self, length: int) -> Floats:
        centre = (np.arange(self.size(length)) + 0.5) * length / self.size(length)
        distance = np.abs(np.arange(length) + 0.5 - centre[:, None]) * self.size(length) / length
        weights = np.maximum(1 - distance, 0)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    def _apply(self, values: Floats, rng: Rng) -> Any:
        rows, columns = values.shape
        return self._weights(rows) @ values @ self._weights(columns).T
