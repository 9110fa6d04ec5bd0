"""Resolution by Fourier ring (2D) and shell (3D) correlation: up to which frequency two images agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mrhdata.errors import GridError
from mrhdata.metrics.image import Floats, check_same_shape


@dataclass(frozen=True)
class FourierCorrelation:
    """Correlation over rings or shells of equal width.

    Attributes
    ----------
    frequency : (n,) array
        Mean of each ring, in cycles per unit of the spacing; from above 0 to the Nyquist frequency.
    correlation : (n,) array
        From -1 to 1.
    count : (n,) array
        Fourier coefficients of each ring.
    """

    frequency: Floats
    correlation: Floats
    count: Floats

    def resolution(self, threshold: float = 1 / 7) -> float:
        """One over the frequency at which the correlation first falls below a threshold, in units of the spacing.

        1/7 belongs to two images with independent noise, where their mean has 0.5 with the truth (Rosenthal and
        Henderson 2003, J. Mol. Biol. 333:721); 0.5 belongs to an image against the truth.

        Returns
        -------
        length : float
            Between rings by a straight line. The Nyquist limit (two spacings) where the correlation never falls
            so low, infinite where it begins below.

        Examples
        --------
        >>> f = np.array([0.1, 0.2, 0.3, 0.4])
        >>> found = FourierCorrelation(f, np.array([1.0, 0.8, 0.2, 0.0]), np.ones(4))
        >>> found.resolution(0.5), found.resolution(-1.0)
        (4.0, 2.5)
        """
        below = np.flatnonzero(self.correlation < threshold)
        if not len(below):
            return float(1 / self.frequency[-1])
        if below[0] == 0:
            return float("inf")
        pair = [below[0], below[0] - 1]
        return float(1 / np.interp(threshold, self.correlation[pair], self.frequency[pair]))


def fourier_correlation(
    first: ArrayLike, second: ArrayLike, *, spacing: float = 1.0, planes: bool = False
) -> FourierCorrelation:
    """Correlation of the Fourier coefficients of two images, ring by ring or shell by shell.

    Parameters
    ----------
    first, second : array-like of one shape
        (y, x) for rings or (z, y, x) for shells, on an isotropic grid. Two acquisitions (or restorations of
        them) with independent noise, or the truth and a prediction. Gain and offset do not matter.
    spacing : float
        Between pixels; results are in its unit.
    planes : bool
        Take (..., y, x) as planes whose rings are pooled.

    Notes
    -----
    The mean is taken off and a Hann window put on along each axis, since edges that are cut would agree in
    both images at all frequencies. The window mixes neighbouring frequencies: a ring is as wide as its two
    nearest of the longest axis.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> image, noise = rng.normal(size=(2, 64, 64))
    >>> same = fourier_correlation(image, 3 * image + 1)
    >>> bool(same.correlation.min() > 0.999), round(same.resolution(), 1)
    (True, 2.0)
    >>> bool(np.abs(fourier_correlation(image, noise).correlation[3:]).max() < 0.4)
    True
    """
    a, b = check_same_shape(first, second)
    rank = 2 if planes else a.ndim
    if rank not in (2, 3) or a.ndim < rank or min(a.shape[-rank:]) < 4:
        raise GridError(
            f"an array of shape {a.shape} is no image (y, x) or (z, y, x) of 4 or more pixels; "
            "select one, or pool the planes of a stack with planes=True"
        )
    axes, lengths = tuple(range(-rank, 0)), a.shape[-rank:]
    radius, weight = _rings(lengths)
    number = int(radius.max()) + 1
    sums = np.zeros((3, number))
    for x, y in zip(a.reshape(-1, *lengths), b.reshape(-1, *lengths), strict=True):
        fx, fy = (np.fft.rfftn(_windowed(v), axes=axes) for v in (x, y))
        for row, product in zip(sums, ((fx * fy.conj()).real, np.abs(fx) ** 2, np.abs(fy) ** 2), strict=True):
            row += np.bincount(radius.ravel(), (weight * product).ravel(), number)
    # The mean is gone, and corners beyond the Nyquist frequency of the axes hold few directions.
    inside = slice(1, max(lengths) // 2 + 1)
    power = np.sqrt(sums[1] * sums[2])
    correlation = np.divide(sums[0], power, out=np.zeros(number), where=power > 0)
    frequency = np.arange(number) / (max(lengths) * spacing)
    count = np.asarray(np.bincount(radius.ravel(), weight.ravel(), number), dtype=np.float64)
    return FourierCorrelation(frequency[inside], correlation[inside], count[inside])


def _windowed(values: Floats) -> Floats:
    out = values - values.mean()
    for axis, length in enumerate(values.shape):
        # Periodic: of this length without its last, zero, value.
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
        out = out * hann.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    return out


def _rings(lengths: tuple[int, ...]) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.int64]], Floats]:
    """Ring of each coefficient of a real transform, and how many coefficients it stands for."""
    steps = [np.fft.fftfreq(n) for n in lengths[:-1]] + [np.fft.rfftfreq(lengths[-1])]
    squares = np.meshgrid(*(s**2 for s in steps), indexing="ij")
    radius = np.rint(np.sqrt(sum(squares)) * max(lengths)).astype(np.int64)
    twice = np.full(len(steps[-1]), 2.0)
    twice[0] = 1.0
    if lengths[-1] % 2 == 0:
        twice[-1] = 1.0
    return radius, np.broadcast_to(twice, radius.shape)
