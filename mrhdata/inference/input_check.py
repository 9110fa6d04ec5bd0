"""Check whether the spacing and the values of volumes resemble those of training.

A network returns a plausible map even for another spacing, unit or contrast. The statistics measured in training reveal
the difference.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mrhdata.errors import GridError, UnfamiliarError
from mrhdata.models.profile import FEATURES, box_starts
from mrhdata.patching.box_reader import BoxReader
from mrhdata.volume.assumptions import LENGTHS, require_stated, warn_of_assumed
from mrhdata.volume.construct import SPATIAL
from mrhdata.volume.grid import MAX_EXTENT_MM

if TYPE_CHECKING:
    from mrhdata.models.spec import ModelSpec
    from mrhdata.patching.tiles import TensorSource

log = logging.getLogger("mrhdata")

#: Largest ratio of the spacing to that of training, along each axis.
_MAX_SPACING_RATIO = 1.25
#: Largest distance of the median from the training mean, in standard deviations, and largest ratio of the widths.
_MAX_SHIFT, _MAX_WIDTH_RATIO = 4.0, 4.0
#: Shares of unfamiliar boxes from which on a warning is given, and the volume is refused; most reasons in a message.
SUSPICIOUS, REFUSED, _REASONS = 0.25, 0.5, 3
#: Name of the attribute of a result with the share of unfamiliar boxes.
UNFAMILIAR = "unfamiliar"
#: Preparation steps whose result depends on lengths, on the orientation, and on the side of the patient.
_IN_MM, _TURNED, _SIDED = {"upright", "location"}, {"upright"}, {"location"}
#: Number of sampled boxes, and their edge in voxels.
_BOXES, _EDGE = 16, 16
#: Distance from the 5th to the 95th percentile of a normal distribution, in standard deviations.
_PERCENTILE_SPAN = 3.29


def check_inputs(spec: ModelSpec, inputs: Mapping[str, xr.DataArray], *, seed: int = 0) -> list[str]:
    """Describe differences between the inputs and the training volumes.

    Parameters
    ----------
    spec : ModelSpec
        Specification of a trained network. Nothing is reported if the network preprocesses its volumes, which makes
        them alike, or if the channels are in another order, which prediction refuses.
    inputs : mapping of volumes
        Volume of each channel; some boxes of each are read.
    seed : int
        Random seed of the boxes.

    Returns
    -------
    reasons : list of str
        One sentence per difference, with both values and the remedy; empty if the inputs match.

    Examples
    --------
    >>> from mrhdata.models.spec import IntensityScale, ModelSpec
    >>> from mrhdata.volume.construct import from_array
    >>> scale = IntensityScale((100.0,), (20.0,))
    >>> spec = ModelSpec("mrhnet", channels=("t2w",), spacing_mm=(0.2, 0.2, 0.2), inputs=scale)
    >>> values = np.random.default_rng(0).normal(100, 20, (20, 20, 20))
    >>> check_inputs(spec, {"t2w": from_array(values, spacing=(0.2, 0.2, 0.2))})
    []
    >>> for reason in check_inputs(spec, {"t2w": from_array(values / 1000, spacing=(0.5, 0.2, 0.2))}):
    ...     print(reason.partition(" (mrhdata")[0])
    t2w has voxels of 0.5 x 0.2 x 0.2 mm, the network learned from 0.2 x 0.2 x 0.2 mm: resample it first
    t2w goes from 0.06701 to 0.1336, the network learned from 100 with a deviation of 20: another contrast or unit?
    """
    if spec.prepare or spec.inputs is None or _order_differs(spec, inputs):
        return []
    reasons, scales = [], iter(zip(spec.inputs.offset, spec.inputs.factor, strict=True))
    for name, volume in inputs.items():
        if spec.spacing_mm is not None and _spacing_differs(volume, spec.spacing_mm):
            spacing, trained = (" x ".join(f"{s:.4g}" for s in v) for v in (volume.mrh.spacing, spec.spacing_mm))
            reasons.append(
                f"{name} has voxels of {spacing} mm, the network learned from {trained} mm: resample it first (mrhdata "
                f"resample --spacing-mm {','.join(f'{s:.4g}' for s in spec.spacing_mm)})"
            )
        channels = [volume.isel(c=i) for i in range(volume.sizes["c"])] if "c" in volume.dims else [volume]
        for channel, (offset, factor) in zip(channels, scales, strict=False):
            reasons += _value_reasons(name, channel, offset, factor, seed)
    return reasons


@dataclass(frozen=True)
class Familiarity:
    """How much of a volume resembles the volumes of a training.

    Attributes
    ----------
    unfamiliar : float
        Share of sampled boxes that are unlike those of the training; 1 if no box varies.
    boxes : int
        Number of boxes that vary.
    reasons : tuple of str
        Features that differ most, with their values in the nearest boxes of the training.
    """

    unfamiliar: float
    boxes: int
    reasons: tuple[str, ...]


def compare_with_training(spec: ModelSpec, source: TensorSource, memory: int) -> Familiarity | None:
    """Compare a volume with those that a network learned from; None if the network has no profile of them.

    Parameters
    ----------
    spec : ModelSpec
        Specification of a trained network.
    source : TensorSource
        Channels of the volume, prepared as for the network.
    memory : int
        Memory for the boxes in bytes.
    """
    profile, scale = spec.profile, spec.inputs
    if profile is None or scale is None or len(profile.deviation) != len(FEATURES) * len(source.channels):
        return None
    # A thin volume has thin boxes.
    edges = np.minimum(profile.box, source.grid.shape).tolist()
    boxes = BoxReader(source, memory).read_at(box_starts(source.grid.shape, edges), edges)
    scaled = scale.of_middle(spec.context_slices).apply(boxes)
    distances = profile.distances(scaled)
    if not len(distances):
        return Familiarity(1.0, 0, ("all sampled boxes are constant",))
    reasons = [
        f"{name} of {source.channels[channel]} is {value:.2g}, in similar boxes of the training {known:.2g}"
        for name, channel, value, known in profile.differences(scaled)[:_REASONS]
    ]
    return Familiarity(float((distances > profile.limit).mean()), len(distances), tuple(reasons))


def require_familiar(spec: ModelSpec, source: TensorSource, memory: int, force: bool) -> dict[str, float]:
    """Raise UnfamiliarError if most of a volume is unlike those of the training; warn if a part of it is.

    Parameters
    ----------
    spec, source, memory
        As for :func:`compare_with_training`.
    force : bool
        Whether to warn in place of an error.

    Returns
    -------
    attributes : dict
        Attribute `UNFAMILIAR` of a result: the share of sampled boxes that are unlike those of the training; empty if
        the network has no profile.
    """
    familiarity = compare_with_training(spec, source, memory)
    if familiarity is None:
        return {}
    attributes = {UNFAMILIAR: round(familiarity.unfamiliar, 3)}
    if familiarity.unfamiliar < SUSPICIOUS:
        return attributes
    sentence = (
        f"{', '.join(source.channels)} must resemble the volumes that the network {spec.name} learned from; "
        f"{100 * familiarity.unfamiliar:.0f} % of {familiarity.boxes} sampled boxes do not "
        f"({'; '.join(familiarity.reasons)})"
    )
    if familiarity.unfamiliar >= REFUSED and not force:
        raise UnfamiliarError(f"{sentence}. Take a network for such volumes, or pass force=True (--force)")
    log.warning("%s", sentence)
    return attributes


def _check_extent(name: str, volume: xr.DataArray) -> None:
    """Raise GridError if a volume that is resampled to the network's voxels is longer than a specimen can be."""
    grid = volume.mrh.grid
    extent = float((grid.spacing * grid.shape).max())
    if extent > MAX_EXTENT_MM:
        spacing = " x ".join(f"{s:.4g}" for s in grid.spacing)
        raise GridError(
            f"{name} must be at most {MAX_EXTENT_MM / 1000:g} m long; got {extent / 1000:.3g} m, with voxels of "
            f"{spacing} mm. Is the unit of its file um? Pass unit= (--unit)"
        )


def check_geometry(spec: ModelSpec, inputs: Mapping[str, xr.DataArray]) -> None:
    """Raise GridError if a network depends on lengths that the file of an input does not state, or that are impossible.

    A network does if it was trained on volumes of stated spacing, or if a preparation step resamples to a spacing. An
    orientation that is not stated is a warning if a step turns volumes upright or the network runs on coronal or
    sagittal planes, and an error if a step tells left from right.

    Parameters
    ----------
    spec : ModelSpec
        Specification of a trained network.
    inputs : mapping of volumes
        Volume of each channel.

    Examples
    --------
    >>> from mrhdata.models.spec import ModelSpec
    >>> from mrhdata.volume.assumptions import assume
    >>> from mrhdata.volume.construct import from_array
    >>> volume = assume(from_array(np.zeros((2, 2, 2)), spacing=(1, 1, 1)), "unit")
    >>> check_geometry(ModelSpec("unet"), {"t1w": volume})
    >>> check_geometry(ModelSpec("unet", spacing_mm=(1, 1, 1)), {"t1w": volume})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    mrhdata.errors.GridError: t1w: the file states no unit of length, so mm is used; pass unit= (--unit) ...
    """
    steps = {name for name, _ in spec.prepare}
    needed = LENGTHS if spec.spacing_mm is not None or steps & _IN_MM else ()
    for name, volume in inputs.items():
        # Distances from the centroid along x have the sign of the patient's side, so labels would change sides.
        require_stated(volume, name, *needed, *(["orientation"] if steps & _SIDED else []))
        if steps & _TURNED:
            _check_extent(name, volume)
    if steps & _TURNED or spec.axis in (1, 2):
        warn_of_assumed(inputs, f"the network {spec.name}", "orientation")


def _order_differs(spec: ModelSpec, inputs: Mapping[str, xr.DataArray]) -> bool:
    """Return whether training channels are present in another order."""
    order = [spec.channels.index(name) for name in inputs if name in spec.channels]
    return order != sorted(order)


def _spacing_differs(volume: xr.DataArray, trained: tuple[float, ...]) -> bool:
    ratio = np.asarray(volume.mrh.spacing) / np.asarray(trained)
    return bool((np.maximum(ratio, 1 / ratio) > _MAX_SPACING_RATIO).any())


def _value_reasons(name: str, volume: xr.DataArray, offset: float, factor: float, seed: int) -> list[str]:
    values = _sample(volume, seed)
    if not len(values):
        return []
    low, median, high = np.percentile(values, (5, 50, 95))
    width = (high - low) / _PERCENTILE_SPAN / factor
    if abs(median - offset) <= _MAX_SHIFT * factor and 1 / _MAX_WIDTH_RATIO <= width <= _MAX_WIDTH_RATIO:
        return []
    return [
        f"{name} goes from {low:.4g} to {high:.4g}, the network learned from {offset:.4g} with a deviation of "
        f"{factor:.4g}: another contrast or unit?"
    ]


def _sample(volume: xr.DataArray, seed: int) -> NDArray[np.float64]:
    """Return the values of some boxes, without exact zeros, which lie outside the measured region."""
    rng, boxes = np.random.default_rng(seed), []
    for _ in range(_BOXES):
        start = [int(rng.integers(0, max(1, volume.sizes[d] - _EDGE + 1))) for d in SPATIAL]
        box = volume.isel({d: slice(a, a + _EDGE) for d, a in zip(SPATIAL, start, strict=True)})
        boxes.append(np.asarray(box.data, dtype=np.float64).ravel())
    values = np.concatenate(boxes)
    return values[np.isfinite(values) & (values != 0)]
