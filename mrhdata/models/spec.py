"""Specification of a network: its name, its settings and its training data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrhdata.errors import ModelError
from mrhdata.models.profile import FEATURES, InputProfile
from mrhdata.models.quality import TERMS, QualityModel

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Target value of voxels that every loss ignores.
IGNORE_INDEX = -1


@dataclass(frozen=True)
class IntensityScale:
    """Offset and factor of each channel; the input of the network is ``(value - offset) / factor``."""

    offset: tuple[float, ...]
    factor: tuple[float, ...]

    def apply(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return values (n, C, z, y, x) as the network gets them.

        Examples
        --------
        >>> IntensityScale((1.0,), (2.0,)).apply(np.full((1, 1, 1, 1, 1), 5.0)).item()
        2.0
        """
        offset, factor = (np.asarray(v).reshape(1, -1, 1, 1, 1) for v in (self.offset, self.factor))
        return np.asarray((values - offset) / factor)

    def times(self, factor: float) -> IntensityScale:
        """Return the scale for values that are `factor` times as large.

        Examples
        --------
        >>> IntensityScale((0.5,), (0.25,)).times(255)
        IntensityScale(offset=(127.5,), factor=(63.75,))
        """
        return IntensityScale(tuple(factor * v for v in self.offset), tuple(factor * v for v in self.factor))

    def of_middle(self, context_slices: int) -> IntensityScale:
        """Return the scale of the middle planes, where planes with context are channels.

        Examples
        --------
        >>> IntensityScale((0.0, 1.0, 2.0), (1.0, 1.0, 1.0)).of_middle(1).offset
        (1.0,)
        """
        middle = slice(context_slices, None, 2 * context_slices + 1)
        return IntensityScale(self.offset[middle], self.factor[middle])


@dataclass(frozen=True)
class ModelSpec:
    """Specification of a network and of its training data.

    Attributes
    ----------
    name, config
        Name and settings, as for :func:`mrhdata.models.create`.
    channels : tuple of str
        Names of the input channels in order.
    patch : tuple of int or None
        Shape of the training patches, z, y, x.
    smallest : tuple of int or None
        Smallest length of the training patches along each axis, if they had several shapes.
    axis : int or None
        Axis (0 z, 1 y, 2 x) perpendicular to the planes of a 2D network.
    spacing_mm : tuple of float or None
        Voxel spacing of the training inputs, z, y, x; None if their files did not state it.
    context_slices : int
        Number of planes on each side that are further channels of a plane.
    inputs, target : Scale or None
        Intensity scales, fixed at training; prediction never estimates its own.
    labels : tuple of int
        Label value of each class, for a segmentation network.
    label_names : tuple of str
        Name of each class; empty if they are unknown.
    contrasts : tuple of str
        Ways to show a volume to the network (:mod:`mrhdata.inference.contrast`), of which the best is taken.
    alternatives : tuple of str
        Shipped networks with the same labels and preparation for other contrasts. They label the volumes for which
        they predict a higher Dice, if the Dice that this network predicts is not good.
    quality : QualityModel or None
        Prediction of the Dice of its labels.
    units : str or None
        Units of the target's values, which are those of predictions; None if they are unknown or differ.
    profile : InputProfile or None
        Simple features of the training inputs, as the network gets them; None for older networks.
    prepare, finish : tuple of (str, dict)
        Steps of :mod:`mrhdata.preprocessing.pipeline` before the network and on its labels, with their settings.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    patch: tuple[int, int, int] | None = None
    smallest: tuple[int, int, int] | None = None
    axis: int | None = None
    spacing_mm: tuple[float, ...] | None = None
    context_slices: int = 0
    inputs: IntensityScale | None = None
    target: IntensityScale | None = None
    labels: tuple[int, ...] = ()
    label_names: tuple[str, ...] = ()
    contrasts: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    quality: QualityModel | None = None
    units: str | None = None
    profile: InputProfile | None = field(default=None, repr=False)
    prepare: tuple[tuple[str, dict[str, Any]], ...] = ()
    finish: tuple[tuple[str, dict[str, Any]], ...] = ()

    def __post_init__(self) -> None:
        if len(self.label_names) not in (0, len(self.labels)):
            raise ModelError(
                f"label_names must be as many as the {len(self.labels)} labels; got {len(self.label_names)}. Name each"
            )

    @property
    def names(self) -> dict[int, str]:
        """Names of the labels without the background, as far as they are known.

        Examples
        --------
        >>> ModelSpec("unet", labels=(0, 7), label_names=("background", "putamen")).names
        {7: 'putamen'}
        """
        return dict(zip(self.labels[1:], self.label_names[1:], strict=False))


def with_maximum(spec: ModelSpec, maximum: float) -> ModelSpec:
    """Return the specification of a network whose inputs are divided by one number.

    The published MRH-Nets get values divided by the highest one of a scan, which their files do not state.

    Parameters
    ----------
    spec : ModelSpec
        Specification without a scale of the inputs.
    maximum : float
        Highest value of all channels of the scan; the same one for all scans that are compared.

    Raises
    ------
    ModelError
        If the network has a scale already, or the number is not positive.

    Examples
    --------
    >>> with_maximum(ModelSpec("mrhnet", channels=("t2",)), 200.0).inputs
    IntensityScale(offset=(0.0,), factor=(200.0,))
    """
    if not (math.isfinite(maximum) and maximum > 0):
        raise ModelError(f"maximum must be a positive number; got {maximum}. Pass the highest value of the scan")
    if spec.inputs is not None:
        raise ModelError(
            f"maximum must be left out for {spec.name} of {spec.channels}, whose input scale is known; got {maximum}"
        )
    count = len(spec.channels)
    return replace(spec, inputs=IntensityScale((0.0,) * count, (float(maximum),) * count))


def predict_raw(model: nn.Module, x: Tensor) -> Tensor:
    """Run a trained network on raw patches (B, C, z, y, x) and return values in the units of the target.

    The intensity scales are applied; for a 2D network the axis of length 1 is removed and restored.
    """
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    if spec.inputs is None or spec.target is None:
        raise ModelError(
            f"{spec.name} has no intensity scales: train it with mrhdata.fit, load a trained one, or pass maximum= "
            "(--maximum) with the highest value of the scan to mrhdata.models.load"
        )
    return to_target_units(run_on_patches(model, scaled(x, spec.inputs)), spec.target)


def run_on_patches(model: nn.Module, x: Tensor) -> Any:
    """Run a network of 2 or 3 spatial axes on (B, C, z, y, x) and return a tensor, or a tuple of levels."""
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    if model.ndim == 3:
        return model(x)
    axis = 2 + (spec.axis or 0)
    if x.shape[axis] != 1:
        raise ModelError(
            f"{spec.name} works on planes: axis {axis - 2} of the patch must have length 1; got {x.shape[axis]}"
        )
    answer = model(x.squeeze(axis))
    return tuple(a.unsqueeze(axis) for a in answer) if isinstance(answer, tuple) else answer.unsqueeze(axis)


def scaled(x: Tensor, scale: IntensityScale) -> Tensor:
    """Return raw values (B, C, z, y, x) on the intensity scale of the network."""
    return (x - _per_channel(x, scale.offset)) / _per_channel(x, scale.factor)


def to_target_units(x: Tensor, scale: IntensityScale) -> Tensor:
    """Return the output of the network (B, C, ...) in the units of the target."""
    return x * _per_channel(x, scale.factor) + _per_channel(x, scale.offset)


def _per_channel(x: Tensor, values: tuple[float, ...]) -> Tensor:
    # Without waiting, since a copy that a GPU waits for would hold up every step.
    on_device = x.new_tensor(values, device="cpu").to(x.device, non_blocking=True)
    return on_device.reshape(1, -1, *(1,) * (x.ndim - 2))


def spec_from(content: dict[str, Any]) -> ModelSpec:
    """Return the specification stored in ``config.json``.

    Raises
    ------
    ModelError
        If keys are missing or unknown, or if a value has another type.
    """
    if not isinstance(content, dict):
        raise ModelError(f"the settings of a network must be a mapping; got {type(content).__name__}")
    unknown = set(content) - {f.name for f in fields(ModelSpec)}
    if unknown:
        raise ModelError(f"the settings of a network have unknown keys {sorted(unknown)}; save the model again")
    for key, value in content.items():
        expected, is_valid = _FIELDS[key]
        if not is_valid(value):
            raise ModelError(f"{key} of a network must be {expected}; got {str(value)[:100]}. Save the model again")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    try:
        for key in ("prepare", "finish"):
            values[key] = tuple((str(name), dict(settings)) for name, settings in values.get(key, ()))
        for key, kind in _RECORDS.items():
            if values.get(key) is not None:
                values[key] = kind(**{name: _nested(row) for name, row in values[key].items()})
        return ModelSpec(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the settings of a network are incomplete ({error}); save the model again") from error


def _nested(value: Any) -> Any:
    """Return lists, and those in them, as tuples."""
    return tuple(map(_nested, value)) if isinstance(value, list | tuple) else value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _all(is_valid: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        return (
            isinstance(value, list | tuple) and all(map(is_valid, value)) and (length is None or len(value) == length)
        )

    return check


def _optional(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_valid(value)


def _is_scale(value: Any) -> bool:
    numbers = _all(_is_number)
    return _is_mapping(value) and set(value) == {"offset", "factor"} and all(map(numbers, value.values()))


def _is_profile(value: Any) -> bool:
    """Return whether a value is a profile whose boxes have as many features as it has deviations."""
    if not _is_mapping(value) or set(value) != {f.name for f in fields(InputProfile)}:
        return False
    row = _all(_is_number, len(value["deviation"]) if isinstance(value["deviation"], list | tuple) else -1)
    return (
        _all(_is_whole, 3)(value["box"])
        and row(value["deviation"])
        and len(value["deviation"]) % len(FEATURES) == 0
        and min(value["deviation"], default=0) > 0
        and _all(row)(value["boxes"])
        and len(value["boxes"]) > 0
        and _is_number(value["limit"])
    )


def _is_quality(value: Any) -> bool:
    return (
        _is_mapping(value)
        and set(value) == {f.name for f in fields(QualityModel)}
        and _all(_all(_is_number, TERMS))(value["weights"])
        and _all(_all(_is_number, 2), 3)(value["extents_mm"])
        and _is_number(value["error"])
    )


def _is_step(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == len(("name", "settings")) and _is_mapping(value[1])


#: Field of `ModelSpec` -> class of its value.
_RECORDS: dict[str, Callable[..., Any]] = {
    "inputs": IntensityScale,
    "target": IntensityScale,
    "profile": InputProfile,
    "quality": QualityModel,
}
#: Field of `ModelSpec` in ``config.json`` -> words for its value, and the check of it.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("text", lambda value: isinstance(value, str)),
    "config": ("a mapping", _is_mapping),
    "units": ("text", _optional(lambda value: isinstance(value, str))),
    **{key: ("three whole numbers", _optional(_all(_is_whole, 3))) for key in ("patch", "smallest")},
    "axis": ("0, 1 or 2", _optional(lambda value: _is_whole(value) and value in (0, 1, 2))),
    "spacing_mm": ("a list of numbers", _optional(_all(_is_number))),
    "context_slices": ("a whole number", lambda value: _is_whole(value) and value >= 0),
    **{key: ("a mapping with lists offset and factor", _optional(_is_scale)) for key in ("inputs", "target")},
    "profile": ("a mapping with box, boxes, deviation and limit", _optional(_is_profile)),
    "labels": ("a list of whole numbers", _all(_is_whole)),
    **{
        key: ("a list of names", _all(lambda value: isinstance(value, str)))
        for key in ("channels", "label_names", "contrasts", "alternatives")
    },
    "quality": ("a mapping with weights, extents_mm and error", _optional(_is_quality)),
    **{key: ("a list of names with settings", _all(_is_step)) for key in ("prepare", "finish")},
}
