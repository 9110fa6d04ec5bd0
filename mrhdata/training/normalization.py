"""Intensity scales, measured once on training patches: what a network sees stays the same wherever it is run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mrhdata.errors import DataError, ModelError
from mrhdata.models.spec import IGNORE_INDEX, IntensityScale, ModelSpec
from mrhdata.patching.positions import spread
from mrhdata.volume.construct import PLANES

if TYPE_CHECKING:
    from mrhdata.patching.dataset import Patches

#: Patches that scales are measured on, and the bytes they may take.
SCALE_PATCHES, SCALE_BYTES = 20_000, 400_000_000


def measured(
    spec: ModelSpec, patches: Patches, kind: str, classes: int | None = None, change: Callable[..., Any] | None = None
) -> ModelSpec:
    """The spec with channels, patch and intensity scales of the training patches.

    Parameters
    ----------
    spec : Spec
        One with input scales but none of a target keeps the former: they are what its weights know.
    patches : Patches
        With a target.
    kind : {"channel", "maximum", "none"}
        Mean and standard deviation of each channel, or one maximum for all, or values as they are.
    classes : int, optional
        Of a network that tells labels apart: the target is not scaled, and its labels are found where the
        spec does not name them.
    change : callable, optional
        What becomes of patches before the network sees them: see :func:`mrhdata.fit`.

    Raises
    ------
    DataError
        Patches have no target, or values are not finite.
    ModelError
        Scales that are kept are of other channels.

    Examples
    --------
    >>> import mrhdata
    >>> v = mrhdata.volume.from_array(np.arange(8.0).reshape(2, 2, 2), spacing=(1, 1, 1), name="t2")
    >>> measured(ModelSpec("mrhnet"), mrhdata.patches(v, 10 * v, shape=1), "maximum").target
    Scale(offset=(0.0,), factor=(70.0,))
    """
    chosen = spread(len(patches), max(1, min(SCALE_PATCHES, SCALE_BYTES // patches.batch_bytes(1))))
    parts = patches.gather(chosen)
    if change is not None:
        parts = change(parts, (0,))
    if len(parts) != 2:
        raise DataError("the patches have no target; give target= to mrhdata.patches")
    for what, part in zip(("inputs", "target"), parts, strict=True):
        bad = ~np.isfinite(part).all(axis=(1, 2, 3, 4))
        if bad.any():
            where = patches.positions[chosen[bad][0]].tolist()
            raise DataError(f"{bad.sum()} patches have {what} that are not finite, the first at {where}; mask them out")
    kept = spec.inputs if spec.target is None else None
    if kept is not None and spec.channels and spec.channels != tuple(patches.channels):
        raise ModelError(
            f"the network keeps the input scales of {spec.channels} but the patches have {tuple(patches.channels)}; "
            "give those channels, in that order"
        )
    flat = [axis for axis, n in enumerate(patches.shape) if n == 1]
    axis = PLANES[patches.plane] if patches.plane is not None else flat[0] if flat else None
    # Neighbouring planes are channels of the plane between them.
    z, y, x = (1 if i == axis and patches.context_slices else n for i, n in enumerate(patches.shape))
    return dataclasses.replace(
        spec,
        channels=tuple(patches.channels),
        patch=(z, y, x),
        context_slices=patches.context_slices,
        axis=axis,
        spacing_mm=patches.spacing_mm,
        inputs=kept or _scale(parts[0], kind),
        target=_scale(parts[1], kind) if classes is None else _scale(np.empty((0, classes)), "none"),
        labels=spec.labels if classes is None else _labels(spec, parts[1], classes),
    )


def _labels(spec: ModelSpec, target: np.ndarray, classes: int) -> tuple[int, ...]:
    """The value of each class: those named before, or those that the patches hold, in order."""
    held = np.unique(target)
    if (held != np.rint(held)).any():
        raise DataError(f"the target holds {held[held != np.rint(held)][0]}, which is no label; use a label volume")
    found = tuple(int(v) for v in held if v != IGNORE_INDEX)
    labels = spec.labels or found
    if len(labels) != classes:
        raise ModelError(
            f"the network tells {classes} classes apart but the labels are {labels}; create it with "
            f"classes={len(labels)}"
        )
    if set(found) - set(labels):
        raise DataError(
            f"the target holds the labels {sorted(set(found) - set(labels))}, which are not among those of the "
            f"network, {labels}; set them to {IGNORE_INDEX} to leave them out"
        )
    return labels


def _scale(part: np.ndarray, kind: str) -> IntensityScale:
    channels = part.shape[1]
    if kind == "none":
        return IntensityScale((0.0,) * channels, (1.0,) * channels)
    if kind == "maximum":
        return IntensityScale((0.0,) * channels, (float(part.max()) or 1.0,) * channels)
    values = part.astype(np.float64)
    spread = values.std(axis=(0, 2, 3, 4))
    return IntensityScale(
        tuple(values.mean(axis=(0, 2, 3, 4)).tolist()), tuple(np.where(spread > 0, spread, 1.0).tolist())
    )
