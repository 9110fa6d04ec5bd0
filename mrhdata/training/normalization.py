"""Measure intensity scales once, on training patches, so that a network gets the same values wherever it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mrhdata.errors import DataError, ModelError
from mrhdata.models.profile import BOX_EDGE, BOXES, InputProfile, box_starts
from mrhdata.models.spec import IGNORE_INDEX, IntensityScale, ModelSpec
from mrhdata.patching.box_reader import BoxReader
from mrhdata.patching.positions import spread
from mrhdata.volume.assumptions import LENGTHS
from mrhdata.volume.construct import PLANES

if TYPE_CHECKING:
    from mrhdata.patching.dataset import Patches
    from mrhdata.patching.tiles import TensorSource

#: Largest number of patches on which scales are measured, and their largest size in bytes.
SCALE_PATCHES, SCALE_BYTES = 20_000, 400_000_000
#: Largest number of subjects whose boxes are measured, and memory to read them.
_PROFILE_SUBJECTS, _PROFILE_MEMORY = 20, 400_000_000


def measured(
    spec: ModelSpec, patches: Patches, kind: str, classes: int | None = None, change: Callable[..., Any] | None = None
) -> ModelSpec:
    """Return a spec with the channels, the patch size and the intensity scales of training patches.

    Parameters
    ----------
    spec : ModelSpec
        Specification of the network. Input scales without target scales are kept (:func:`keep_input_scale`).
    patches : Patches
        Patches with a target.
    kind : {"channel", "maximum", "none"}
        Mean and standard deviation of each channel, one maximum for all, or no scaling.
    classes : int, optional
        Number of classes of a segmentation network, whose target is not scaled. The labels are those of `spec`, or else
        those in the patches.
    change : callable, optional
        Transform of batches, as for :func:`mrhdata.fit`.

    Raises
    ------
    DataError
        If patches have no target, or values are not finite.
    ModelError
        If kept scales belong to other channels.

    Examples
    --------
    >>> import mrhdata
    >>> v = mrhdata.volume.from_array(np.arange(8.0).reshape(2, 2, 2), spacing=(1, 1, 1), name="t2")
    >>> measured(ModelSpec("mrhnet"), mrhdata.patches(v, 10 * v, shape=1), "maximum").target
    IntensityScale(offset=(0.0,), factor=(70.0,))
    """
    chosen = spread(len(patches), max(1, min(SCALE_PATCHES, SCALE_BYTES // patches.batch_bytes(1))))
    parts = patches.gather(chosen)
    if change is not None:
        parts = change(parts, (0,))
    if len(parts) != 2:
        raise DataError("the patches have no target. Pass target= to mrhdata.patches")
    for role, part in zip(("inputs", "target"), parts, strict=True):
        bad = ~np.isfinite(part).all(axis=(1, 2, 3, 4))
        if bad.any():
            first = patches.positions[chosen[bad][0]].tolist()
            raise DataError(f"{bad.sum()} patches have {role} that are not finite, the first at {first}. Mask them out")
    kept_scale = spec.inputs if spec.target is None else None
    if kept_scale is not None and spec.channels and spec.channels != tuple(patches.channels):
        raise ModelError(
            f"the network keeps the input scales of {spec.channels} but the patches have {tuple(patches.channels)}; "
            "pass those channels, in that order"
        )
    flat = [axis for axis, n in enumerate(patches.shape) if n == 1]
    axis = PLANES[patches.plane] if patches.plane is not None else flat[0] if flat else None
    # Context slices are channels of the plane between them.
    z, y, x = (1 if i == axis and patches.context_slices else n for i, n in enumerate(patches.shape))
    scale = kept_scale or _scale(parts[0], kind)
    return dataclasses.replace(
        spec,
        channels=tuple(patches.channels),
        patch=(z, y, x),
        context_slices=patches.context_slices,
        axis=axis,
        spacing_mm=None if _spacing_assumed(patches) else patches.spacing_mm,
        inputs=scale,
        profile=_profile(patches, parts[0], scale, change is not None),
        target=_scale(parts[1], kind) if classes is None else _scale(np.empty((0, classes)), "none"),
        labels=spec.labels if classes is None else _labels(spec, parts[1], classes),
        units=_target_units(patches) if classes is None and change is None else None,
    )


def keep_input_scale(spec: ModelSpec) -> ModelSpec:
    """Return the specification of a network whose input scale :func:`mrhdata.fit` keeps.

    The weights of a trained network depend on it. The scale of the target is measured again.

    Examples
    --------
    >>> one = IntensityScale((0.5,), (0.25,))
    >>> kept = keep_input_scale(ModelSpec("unet3d", inputs=one, target=one))
    >>> kept.inputs == one, kept.target
    (True, None)
    """
    return dataclasses.replace(spec, target=None)


def _profile(patches: Patches, inputs: np.ndarray, scale: IntensityScale, changed: bool) -> InputProfile | None:
    """Return the profile of the volumes of patches, or of the patches themselves if they are changed or drawn."""
    if not changed and patches.sources:
        return profile_of([sources[0] for sources in patches.sources], scale, patches.context_slices)
    chosen = inputs[spread(len(inputs), _PROFILE_SUBJECTS * BOXES)]
    edges = tuple(slice(min(n, BOX_EDGE)) for n in chosen.shape[2:])
    return InputProfile.measure(scale.apply(chosen[:, :, *edges]))


def profile_of(sources: Sequence[TensorSource], scale: IntensityScale, context_slices: int = 0) -> InputProfile | None:
    """Return the profile of volumes, from boxes that are spread over at most 20 of them.

    Parameters
    ----------
    sources : sequence of TensorSource
        Input channels of each subject.
    scale : IntensityScale
        Scale of the channels, as the network gets them.
    context_slices : int
        Number of planes on each side that are further channels of the scale.

    Examples
    --------
    >>> import mrhdata
    >>> from mrhdata.patching.sources import one_grid
    >>> values = np.random.default_rng(0).random((64, 64, 64), dtype=np.float32)
    >>> volume = mrhdata.volume.from_array(values, spacing=(1, 1, 1))
    >>> source = one_grid({"t2": volume}, (1, 1, 1), None, False)
    >>> profile_of([source], IntensityScale((0.5,), (0.3,))).box
    (16, 16, 16)
    """
    chosen = [sources[int(i)] for i in spread(len(sources), _PROFILE_SUBJECTS)]
    edges = np.minimum(np.min([source.grid.shape for source in chosen], axis=0), BOX_EDGE).tolist()
    boxes = [
        BoxReader(source, _PROFILE_MEMORY).read_at(box_starts(source.grid.shape, edges), edges) for source in chosen
    ]
    subjects = np.repeat(np.arange(len(boxes)), [len(part) for part in boxes])
    return InputProfile.measure(scale.of_middle(context_slices).apply(np.concatenate(boxes)), subjects)


def _spacing_assumed(patches: Patches) -> bool:
    """Return whether a file of the inputs states no voxel size or unit."""
    return any(not sources[0].assumed.isdisjoint(LENGTHS) for sources in patches.sources)


def _target_units(patches: Patches) -> str | None:
    """Return the units of the target if all subjects and channels state the same."""
    units = {name for sources in patches.sources for source in sources[-1:] for name in source.units}
    return units.pop() if len(units) == 1 else None


def _labels(spec: ModelSpec, target: np.ndarray, classes: int) -> tuple[int, ...]:
    """Return the label of each class: the labels of the spec, or those in the patches in ascending order."""
    values = np.unique(target)
    if (values != np.rint(values)).any():
        fraction = values[values != np.rint(values)][0]
        raise DataError(f"the target must hold integer labels; got {fraction}. Pass a label volume")
    present = tuple(int(v) for v in values if v != IGNORE_INDEX)
    labels = spec.labels or present
    if len(labels) != classes:
        raise ModelError(
            f"the network has {classes} classes but the labels are {labels}. Create it with classes={len(labels)}"
        )
    if set(present) - set(labels):
        raise DataError(
            f"the target holds the labels {sorted(set(present) - set(labels))}, which are not among those of the "
            f"network, {labels}. Set them to {IGNORE_INDEX} to ignore them"
        )
    return labels


def _scale(part: np.ndarray, kind: str) -> IntensityScale:
    channels = part.shape[1]
    if kind == "none":
        return IntensityScale((0.0,) * channels, (1.0,) * channels)
    if kind == "maximum":
        return IntensityScale((0.0,) * channels, (float(part.max()) or 1.0,) * channels)
    values = part.astype(np.float64)
    deviation = values.std(axis=(0, 2, 3, 4))
    return IntensityScale(
        tuple(values.mean(axis=(0, 2, 3, 4)).tolist()), tuple(np.where(deviation > 0, deviation, 1.0).tolist())
    )
