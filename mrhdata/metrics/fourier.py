"""Resolution by Fourier ring (2D) and shell (3D) correlation."""

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
        Centre frequency of each ring, in cycles per unit of the spacing; above 0 and up to the Nyquist frequency.
    correlation : (n,) array
        Correlation of each ring, -1 to 1.
    count : (n,) array
        Number of Fourier coefficients of each ring.
    """

    frequency: Floats
    correlation: Floats
    count: Floats

    def resolution(self, threshold: float = 1 / 7) -> float:
        """Return the reciprocal of the frequency at which the correlation first falls below a threshold.

        Use 1/7 for two images with independent noise: there the correlation of their mean with the truth is 0.5
        (Rosenthal and Henderson 2003, J. Mol. Biol. 333:721). Use 0.5 for an image against the truth.

        Returns
        -------
        length : float
            Resolution in units of the spacing, interpolated linearly between rings. It is the Nyquist limit (two
            spacings) if the correlation never falls below the threshold, and infinite if it starts below.

        Examples
        --------
        >>> f = np.array([0.1, 0.2, 0.3, 0.4])
        >>> curve = FourierCorrelation(f, np.array([1.0, 0.8, 0.2, 0.0]), np.ones(4))
        >>> curve.resolution(0.5), curve.resolution(-1.0)
        (4.0, 2.5)
        """
        below = np.flatnonzero(self.correlation < threshold)
        if not len(below):
            return float(1 / self.frequency[-1])
        if below[0] == 0:
            return float("inf")
        around_crossing = [below[0], below[0] - 1]
        return float(1 / np.interp(threshold, self.correlation[around_crossing], self.frequency[around_crossing]))


def fourier_correlation(
    first: ArrayLike, second: ArrayLike, *, spacing: float = 1.0, planes: bool = False
) -> FourierCorrelation:
    """Correlate the Fourier coefficients of two images over rings or shells.

    Parameters
    ----------
    first, second : array-like of one shape
        Images (y, x) for rings or (z, y, x) for shells, on an isotropic grid: two acquisitions (or restorations of
        them) with independent noise, or the truth and a prediction. Gain and offset do not matter.
    spacing : float
        Distance between pixels; it sets the unit of the results.
    planes : bool
        Treat (..., y, x) as planes and pool their rings.

    Notes
    -----
    The mean is subtracted and a Hann window applied along each axis, because the cut edges would agree in both
    images at all frequencies. Rings are one frequency step of the longest axis wide; the window mixes neighbouring
    rings.

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
            f"an image must be (y, x) or (z, y, x) with 4 or more pixels along each axis; got the shape {a.shape}. "
            "Select one image, or pool the planes of a stack with planes=True."
        )
    axes, lengths = tuple(range(-rank, 0)), a.shape[-rank:]
    ring, weight = _rings(lengths)
    rings = int(ring.max()) + 1
    sums = np.zeros((3, rings))
    for x, y in zip(a.reshape(-1, *lengths), b.reshape(-1, *lengths), strict=True):
        fx, fy = (np.fft.rfftn(_apply_window(v), axes=axes) for v in (x, y))
        for row, product in zip(sums, ((fx * fy.conj()).real, np.abs(fx) ** 2, np.abs(fy) ** 2), strict=True):
            row += np.bincount(ring.ravel(), (weight * product).ravel(), rings)
    # Ring 0 is empty without the mean; corners beyond the Nyquist frequency cover few directions.
    used = slice(1, max(lengths) // 2 + 1)
    power = np.sqrt(sums[1] * sums[2])
    correlation = np.divide(sums[0], power, out=np.zeros(rings), where=power > 0)
    frequency = np.arange(rings) / (max(lengths) * spacing)
    count = np.asarray(np.bincount(ring.ravel(), weight.ravel(), rings), dtype=np.float64)
    return FourierCorrelation(frequency[used], correlation[used], count[used])


def _apply_window(values: Floats) -> Floats:
    """Subtract the mean and apply a Hann window along each axis."""
    out = values - values.mean()
    for axis, length in enumerate(values.shape):
        # The periodic form of the window, without the last zero.
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
        out = out * hann.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    return out


def _rings(lengths: tuple[int, ...]) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.int64]], Floats]:
    """Return the ring of each coefficient of a real transform, and the number of full-transform coefficients."""
    frequencies = [np.fft.fftfreq(n) for n in lengths[:-1]] + [np.fft.rfftfreq(lengths[-1])]
    squares = np.meshgrid(*(f**2 for f in frequencies), indexing="ij")
    ring = np.rint(np.sqrt(sum(squares)) * max(lengths)).astype(np.int64)
    # A real transform stores only half of the coefficients of the last axis.
    multiplicity = np.full(len(frequencies[-1]), 2.0)
    multiplicity[0] = 1.0
    if lengths[-1] % 2 == 0:
        multiplicity[-1] = 1.0
    return ring, np.broadcast_to(multiplicity, ring.shape)
