"""What a network is and was trained on."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from mrhdata.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Target of voxels that no loss looks at.
IGNORED = -1


@dataclass(frozen=True)
class Scale:
    """Offset and factor of each channel: ``(value - offset) / factor`` is what the network sees."""

    offset: tuple[float, ...]
    factor: tuple[float, ...]


@dataclass(frozen=True)
class Spec:
    """A network and what it was trained on.

    Attributes
    ----------
    name, config
        As given to :func:`mrhdata.models.create`.
    channels : tuple of str
        Inputs in order.
    patch : tuple of int or None
        z, y, x of the training patches.
    axis : int or None
        For a 2D network, the axis (0 z, 1 y, 2 x) its planes are stacked along.
    spacing_mm : tuple of float or None
        Of the training inputs.
    neighbours : int
        Planes on each side that are channels of the plane between them.
    inputs, target : Scale or None
        Intensity scales, fixed at training: prediction never measures its own.
    labels : tuple of int
        For a network that tells classes apart, the value of each in label volumes.
    prepare, finish : tuple of (str, dict)
        What becomes of volumes before the network sees them, and of its labels: names and settings of
        :mod:`mrhdata.preprocessing.pipeline`.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    patch: tuple[int, int, int] | None = None
    axis: int | None = None
    spacing_mm: tuple[float, ...] | None = None
    neighbours: int = 0
    inputs: Scale | None = None
    target: Scale | None = None
    labels: tuple[int, ...] = ()
    prepare: tuple[tuple[str, dict[str, Any]], ...] = ()
    finish: tuple[tuple[str, dict[str, Any]], ...] = ()


def physical(model: nn.Module, x: Tensor) -> Tensor:
    """Run a trained network on raw patches (B, C, z, y, x); the result has the target's units.

    Scales are applied, and for a 2D network the fixed axis is taken away and put back.
    """
    spec: Spec = model.spec  # type: ignore[assignment]
    if spec.inputs is None or spec.target is None:
        raise ModelError(
            f"{spec.name} has no intensity scales: train it with mrhdata.fit, load a trained one, or give maximum= "
            "to mrhdata.models.load_matlab"
        )
    return rescaled(network_on(model, scaled(x, spec.inputs)), spec.target)


def network_on(model: nn.Module, x: Tensor) -> Any:
    """Run a network on (B, C, z, y, x), whether it takes 2 or 3 spatial axes: a tensor, or a tuple of levels."""
    spec: Spec = model.spec  # type: ignore[assignment]
    if model.ndim == 3:
        return model(x)
    axis = 2 + (spec.axis or 0)
    if x.shape[axis] != 1:
        raise ModelError(
            f"{spec.name} works on planes, but axis {axis - 2} of the patch is {x.shape[axis]} long; use 1"
        )
    answer = model(x.squeeze(axis))
    return tuple(a.unsqueeze(axis) for a in answer) if isinstance(answer, tuple) else answer.unsqueeze(axis)


def scaled(x: Tensor, scale: Scale) -> Tensor:
    """Raw values (B, C, z, y, x) as the network sees them."""
    return (x - _per_channel(x, scale.offset)) / _per_channel(x, scale.factor)


def rescaled(x: Tensor, scale: Scale) -> Tensor:
    """What the network says (B, C, ...) in the target's units."""
    return x * _per_channel(x, scale.factor) + _per_channel(x, scale.offset)


def _per_channel(x: Tensor, values: tuple[float, ...]) -> Tensor:
    return x.new_tensor(values).reshape(1, -1, *(1,) * (x.ndim - 2))


def spec_from(content: dict[str, Any]) -> Spec:
    """A spec from what ``config.json`` holds.

    Raises
    ------
    ModelError
        Keys are missing or unknown.
    """
    unknown = set(content) - {f.name for f in fields(Spec)}
    if unknown:
        raise ModelError(f"a network has settings of an unknown kind, {sorted(unknown)}; save the model again")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    try:
        for key in ("prepare", "finish"):
            values[key] = tuple((str(name), dict(settings)) for name, settings in values.get(key, ()))
        for key in ("inputs", "target"):
            if values.get(key) is not None:
                values[key] = Scale(tuple(values[key]["offset"]), tuple(values[key]["factor"]))
        return Spec(**values)
    except (KeyError, TypeError) as error:
        raise ModelError(f"the settings of a network are incomplete ({error}); save the model again") from error
