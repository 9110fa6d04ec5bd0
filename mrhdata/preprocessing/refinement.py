"""Borders between tissues, refined by the intensities of an image.

A network draws the borders that its training maps have. Expectation maximisation moves them to those of the image: each
tissue has a mean that varies slowly over the image, and the network's labels are the prior (the model of Zhang et
al. 2001, IEEE Transactions on Medical Imaging 20:45, with the network in place of the Markov random field). No order of
intensities is assumed, so that any contrast will do. Voxels keep their group: deep nuclei, for example, are not part of
one, because their intensities lie between those of grey and white matter.

```
labels --> mean of each tissue, every few mm --> probability of each tissue --> means again, ... --> labels
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]

#: Planes that are computed at once, and those about them that the prior depends on.
_PLANES, _HALO = 16, 4
#: Blur of the labels that makes a prior of them, in voxels, and its least value.
_BLUR, _LEAST_PRIOR = 1.0, 1e-3
#: Blocks per range over which means are measured.
_BLOCKS = 4


def refine(
    labels: xr.DataArray,
    image: xr.DataArray,
    groups: Sequence[Sequence[int]],
    *,
    trust: float = 1.0,
    range_mm: float = 10.0,
    passes: int = 3,
) -> xr.DataArray:
    """Return labels whose borders within each group follow the intensities of an image.

    Parameters
    ----------
    labels : label volume
        Labels of a network; missing spatial axes have the length 1.
    image : volume
        Image on the same grid. Values that are not finite count as 0.
    groups : sequence of sequences of int
        Labels between which voxels may move, such as fluid, cortex and white matter.
    trust : float
        Weight of the labels compared with the intensities; 1 is that of Bayes' rule.
    range_mm : float
        Standard deviation of the neighbourhood in which a tissue has one mean.
    passes : int
        Number of times that means are measured.

    Returns
    -------
    labels : label volume

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> truth = np.zeros((8, 24, 24), np.uint8)
    >>> truth[:, 2:22, 2:22], truth[:, 8:16, 8:16] = 1, 2
    >>> image = from_array(np.array([0, 50.0, 90.0])[truth], spacing=(1, 1, 1))
    >>> shifted = np.where(truth > 0, np.where(np.roll(truth, 1, 2) == 2, 2, 1), 0)
    >>> labels = from_array(shifted.astype(np.uint8), spacing=(1, 1, 1), kind="labels")
    >>> bool((refine(labels, image, [(1, 2)]).values == truth).all())
    True
    """
    shape = labels.mrh.grid.shape
    values, names = np.nan_to_num(image.values.reshape(shape), posinf=0, neginf=0), labels.values.reshape(shape).copy()
    for group in groups:
        members = [label for label in group if (names == label).any()]
        if len(members) < 2:
            continue
        mixture: _Mixture | None = None
        for _ in range(passes):
            mixture = _measure(names, values, members, labels.mrh.spacing, range_mm, trust, mixture)
        assert mixture is not None
        refined = names.copy()
        for planes, inside, probabilities in _probabilities(names, values, members, trust, mixture):
            refined[planes][inside] = np.array(members, names.dtype)[probabilities.argmax(0)[inside]]
        names = refined
    return labels.copy(data=names.reshape(labels.shape))


@dataclass(frozen=True)
class _Mixture:
    """Intensities of the tissues: means on coarse grids (tissues, z, y, x), and their variances (tissues,)."""

    means: Floats
    variances: NDArray[np.float64]
    block: tuple[int, int, int]

    def log_likelihood(self, values: Floats, first: int) -> Floats:
        """Return the log likelihood (tissues, z, y, x) of the values of planes from a number on."""
        shape = (values.shape[0], *values.shape[1:])
        starts = (first, 0, 0)
        matrices = [
            _interpolation(np.arange(n) + a, b, m)
            for n, a, b, m in zip(shape, starts, self.block, self.means.shape[1:], strict=True)
        ]
        rows = []
        for mean, variance in zip(self.means, self.variances, strict=True):
            fine = np.einsum("za,abc->zbc", matrices[0], mean, optimize=True)
            fine = np.einsum("yb,zbc->zyc", matrices[1], fine, optimize=True)
            fine = np.einsum("xc,zyc->zyx", matrices[2], fine, optimize=True)
            rows.append(-0.5 * (values - fine) ** 2 / variance - 0.5 * np.log(variance))
        return np.stack(rows).astype(np.float32)


def _interpolation(positions: NDArray[np.int64], block: int, blocks: int) -> Floats:
    """Return the weights (positions, blocks) of linear interpolation between the centres of blocks."""
    at = np.clip((positions + 0.5) / block - 0.5, 0, blocks - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(blocks))).astype(np.float32)


def _probabilities(
    names: NDArray[np.integer],
    values: NDArray[np.number],
    members: Sequence[int],
    trust: float,
    mixture: _Mixture | None,
) -> Iterator[tuple[slice, NDArray[np.bool_], Floats]]:
    """Yield planes, their voxels of a group, and the probability of each tissue (tissues, z, y, x) there."""
    depth = len(names)
    for first in range(0, depth, _PLANES):
        last = min(first + _PLANES, depth)
        low, high = max(0, first - _HALO), min(depth, last + _HALO)
        own = slice(first - low, last - low)
        inside = np.isin(names[first:last], members)
        if mixture is None:
            yield slice(first, last), inside, np.stack([names[first:last] == m for m in members]).astype(np.float32)
            continue
        prior = np.stack(
            [ndimage.gaussian_filter((names[low:high] == m).astype(np.float32), _BLUR)[own] for m in members]
        )
        prior += _LEAST_PRIOR
        scores = mixture.log_likelihood(values[first:last].astype(np.float32), first)
        scores += trust * np.log(prior / prior.sum(0))
        scores -= scores.max(0)
        np.exp(scores, out=scores)
        yield slice(first, last), inside, scores / scores.sum(0)


def _measure(
    names: NDArray[np.integer],
    values: NDArray[np.number],
    members: Sequence[int],
    spacing: Sequence[float],
    range_mm: float,
    trust: float,
    mixture: _Mixture | None,
) -> _Mixture:
    """Return the means and variances of tissues, weighted by their probabilities; by the labels at first."""
    block = tuple(max(1, round(range_mm / _BLOCKS / s)) for s in spacing)
    shape = tuple(-(-n // b) for n, b in zip(names.shape, block, strict=True))
    sums = np.zeros((3, len(members), *shape))
    index = [np.arange(n) // b for n, b in zip(names.shape, block, strict=True)]
    for planes, inside, probabilities in _probabilities(names, values, members, trust, mixture):
        x = values[planes].astype(np.float64)
        for tissue, probability in enumerate(probabilities):
            weight = np.where(inside, probability, 0).astype(np.float64)
            for power, total in enumerate(sums[:, tissue]):
                _add_blocks(total, weight * x**power, index[0][planes], block)
    sigma = [range_mm / s / b for s, b in zip(spacing, block, strict=True)]
    smooth = np.stack([[ndimage.gaussian_filter(part, sigma) for part in power] for power in sums[:2]])
    overall = sums.sum((2, 3, 4))
    means = overall[1] / np.maximum(overall[0], 1e-9)
    # Far from a tissue its mean is that of the whole image.
    fields = (smooth[1] + 1e-6 * means[:, None, None, None]) / (smooth[0] + 1e-6)
    within = (sums[2] - 2 * fields * sums[1] + fields**2 * sums[0]).sum((1, 2, 3)) / np.maximum(overall[0], 1e-9)
    spread = float(np.ptp(means))
    return _Mixture(fields.astype(np.float32), np.maximum(within, (1e-3 * spread) ** 2 + 1e-12), block)  # type: ignore[arg-type]


def _add_blocks(
    total: NDArray[np.float64], values: NDArray[np.float64], rows: NDArray[np.int64], block: Sequence[int]
) -> None:
    """Add the sums of blocks of planes, which lie in `rows` of the blocks, to a total (z, y, x)."""
    edges = [np.arange(0, n, b) for n, b in zip(values.shape[1:], block[1:], strict=True)]
    flat = np.add.reduceat(np.add.reduceat(values, edges[0], axis=1), edges[1], axis=2)
    np.add.at(total, rows, flat)
