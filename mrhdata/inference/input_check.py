"""Whether volumes are of the kind that a network was trained on: their spacing and their values.

A network answers whatever it is given. Other voxels, another unit or another contrast give maps that look like maps;
what training measured tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mrhdata.volume.construct import SPATIAL

if TYPE_CHECKING:
    from mrhdata.models.spec import ModelSpec

#: Voxels may be so many times larger or smaller along each axis.
_SPACING = 1.25
#: Middle of the values, in standard deviations of training, and how many times wider or narrower they may be.
_MIDDLE, _WIDTH = 4.0, 4.0
#: Boxes that are looked at, and their edge in voxels.
_BOXES, _EDGE = 16, 16
#: From the 5th to the 95th percentile, in standard deviations of a normal distribution.
_SPAN = 3.29


def check_inputs(spec: ModelSpec, inputs: Mapping[str, xr.DataArray], *, seed: int = 0) -> list[str]:
    """Say what of the inputs is unlike the training volumes.

    Parameters
    ----------
    spec : Spec
        Of a trained network. Nothing is said where volumes are prepared first, since that makes them alike, nor where
        channels stand in another order, which prediction refuses.
    inputs : mapping of volumes
        By channel; some boxes of each are read.
    seed : int
        Of the boxes.

    Returns
    -------
    reasons : list of str
        A sentence for each, with both values and the remedy; empty where all is familiar.

    Examples
    --------
    >>> from mrhdata.models.spec import Scale, ModelSpec
    >>> from mrhdata.volume.construct import from_array
    >>> spec = ModelSpec("mrhnet", channels=("t2w",), spacing_mm=(0.2, 0.2, 0.2), inputs=Scale((100.0,), (20.0,)))
    >>> values = np.random.default_rng(0).normal(100, 20, (20, 20, 20))
    >>> check_inputs(spec, {"t2w": from_array(values, spacing=(0.2, 0.2, 0.2))})
    []
    >>> for reason in check_inputs(spec, {"t2w": from_array(values / 1000, spacing=(0.5, 0.2, 0.2))}):
    ...     print(reason)
    t2w has voxels of 0.5 x 0.2 x 0.2 mm, the network learned from 0.2 x 0.2 x 0.2 mm: resample it first
    t2w goes from 0.06701 to 0.1336, the network learned from 100 with a deviation of 20: another contrast or unit?
    """
    if spec.prepare or spec.inputs is None or _others(spec, inputs):
        return []
    reasons, scales = [], iter(zip(spec.inputs.offset, spec.inputs.factor, strict=True))
    for name, volume in inputs.items():
        if spec.spacing_mm is not None and _apart(volume, spec.spacing_mm):
            held, learned = (" x ".join(f"{s:.4g}" for s in v) for v in (volume.mrh.spacing, spec.spacing_mm))
            reasons.append(f"{name} has voxels of {held} mm, the network learned from {learned} mm: resample it first")
        channels = [volume.isel(c=i) for i in range(volume.sizes["c"])] if "c" in volume.dims else [volume]
        for channel, (offset, factor) in zip(channels, scales, strict=False):
            reasons += _values(name, channel, offset, factor, seed)
    return reasons


def _others(spec: ModelSpec, inputs: Mapping[str, xr.DataArray]) -> bool:
    """Whether channels of training are there in another order."""
    order = [spec.channels.index(name) for name in inputs if name in spec.channels]
    return order != sorted(order)


def _apart(volume: xr.DataArray, learned: tuple[float, ...]) -> bool:
    ratio = np.asarray(volume.mrh.spacing) / np.asarray(learned)
    return bool((np.maximum(ratio, 1 / ratio) > _SPACING).any())


def _values(name: str, volume: xr.DataArray, offset: float, factor: float, seed: int) -> list[str]:
    values = _some(volume, seed)
    if not len(values):
        return []
    low, middle, high = np.percentile(values, (5, 50, 95))
    width = (high - low) / _SPAN / factor
    if abs(middle - offset) <= _MIDDLE * factor and 1 / _WIDTH <= width <= _WIDTH:
        return []
    return [
        f"{name} goes from {low:.4g} to {high:.4g}, the network learned from {offset:.4g} with a deviation of "
        f"{factor:.4g}: another contrast or unit?"
    ]


def _some(volume: xr.DataArray, seed: int) -> NDArray[np.float64]:
    """Values of some boxes, without those that are exactly 0, as they are outside of what was measured."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(_BOXES):
        start = [int(rng.integers(0, max(1, volume.sizes[d] - _EDGE + 1))) for d in SPATIAL]
        box = volume.isel({d: slice(a, a + _EDGE) for d, a in zip(SPATIAL, start, strict=True)})
        found.append(np.asarray(box.data, dtype=np.float64).ravel())
    values = np.concatenate(found)
    return values[np.isfinite(values) & (values != 0)]
