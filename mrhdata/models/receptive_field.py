"""Receptive field of a network, computed layer by layer.

Along each axis the output at index ``p`` depends on the input voxels from ``jump * p + low`` to
``jump * p + high``. A box of the input that contains this interval gives the same output as the whole volume if the
box starts at a multiple of all strides of the network. Layers whose output depends on the whole input (instance
norm, global pooling, attention) have no such interval; an error names them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as f

from mrhdata.errors import ModelError
from mrhdata.models.layers import WHOLE, PooledConv

Fractions = tuple[Fraction, ...]


@dataclass(frozen=True)
class ReceptiveField:
    """Receptive field of a network, or of one tensor in it.

    Attributes
    ----------
    stride : tuple of Fraction
        Input voxels from one output voxel to the next; below 1 if the network upsamples.
    low, high : tuple of Fraction
        First and last input voxel that output 0 depends on; negative indices are padding.
    align : tuple of int
        A box must start at a multiple of this number of voxels.
    channels : int
        Number of channels of the tensor.
    least : tuple of int
        Edges of the smallest input box that no layer exceeds, in voxels.
    live : float
        Peak memory of the float32 tensors, in bytes per input voxel.
    """

    stride: Fractions
    low: Fractions
    high: Fractions
    align: tuple[int, ...]
    channels: int
    least: tuple[int, ...] = ()
    live: float = 0.0

    @property
    def lengths(self) -> tuple[int, ...]:
        """Edge of the receptive field along each axis, in voxels."""
        return tuple(math.floor(h) - math.ceil(b) + 1 for b, h in zip(self.low, self.high, strict=True))

    def moved(
        self, jump: Sequence[Any], low: Sequence[Any], high: Sequence[Any], channels: int | None = None
    ) -> ReceptiveField:
        """Return the field after a layer whose output ``q`` depends on ``jump * q + low`` to ``jump * q + high``."""
        jumps = tuple(j * Fraction(s) for j, s in zip(self.stride, jump, strict=True))
        rows = zip(self.least, self.stride, self.low, self.high, low, high, strict=True)
        return replace(
            self,
            stride=jumps,
            low=tuple(b + j * Fraction(n) for b, j, n in zip(self.low, self.stride, low, strict=True)),
            high=tuple(h + j * Fraction(n) for h, j, n in zip(self.high, self.stride, high, strict=True)),
            align=tuple(math.lcm(a, j.numerator) for a, j in zip(self.align, jumps, strict=True)),
            # The layer needs last - first + 1 voxels of its own input for one output voxel.
            least=tuple(max(n, math.ceil(j * (last - first + 1) + h - b)) for n, j, b, h, first, last in rows),
            channels=self.channels if channels is None else channels,
        )

    @property
    def bytes(self) -> float:
        """Size of this tensor as float32, in bytes per input voxel."""
        return 4.0 * self.channels / float(math.prod(self.stride))


def receptive_field_of(model: nn.Module, channels: int) -> ReceptiveField:
    """Return the receptive field of a network in evaluation mode.

    Parameters
    ----------
    model : torch.nn.Module
        Network for tensors (B, C, ...) with ``model.ndim`` (3 by default) spatial axes.
    channels : int
        Number of input channels.

    Raises
    ------
    ModelError
        If the output of a layer depends on its whole input, or if a layer is of an unknown kind.

    Examples
    --------
    >>> detector = nn.Sequential(nn.Conv3d(1, 8, 3), nn.MaxPool3d(2), nn.Conv3d(8, 8, 3), nn.Conv3d(8, 2, 3))
    >>> field = receptive_field_of(detector, 1)
    >>> field.lengths, [int(j) for j in field.stride], field.align
    ((12, 12, 12), [2, 2, 2], (2, 2, 2))
    """
    ndim = int(getattr(model, "ndim", 3))
    try:
        # The tracer always enters the outermost module, which may be a layer that must stay whole.
        traced = _trace(nn.Sequential(model))
    except Exception as error:
        raise ModelError(
            f"the receptive field of {type(model).__name__} cannot be computed ({_shorten(error)}); pass "
            "mode='sliding_window'"
        ) from error
    zeros = (Fraction(0),) * ndim
    fields: dict[fx.Node, ReceptiveField | None] = {}
    modules = dict(traced.named_modules())
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            fields[node] = ReceptiveField((Fraction(1),) * ndim, zeros, zeros, (1,) * ndim, channels, (1,) * ndim)
        elif node.op == "output":
            field = fields.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
            if field is None:
                raise ModelError(f"{type(model).__name__} returns more than one tensor; pass mode='sliding_window'")
            return replace(field, live=_peak_bytes(traced.graph, fields))
        else:
            fields[node] = None if node.op == "get_attr" else _field_after(node, fields, modules)
    raise ModelError(f"{type(model).__name__} returns nothing")


class _Tracer(fx.Tracer):
    """A tracer that does not enter the layers of `WHOLE`, whose rules are defined below."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, WHOLE) or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.GraphModule:
    tracer = _Tracer()
    graph = tracer.trace(model)
    return fx.GraphModule(tracer.root, graph)


def _field_after(
    node: fx.Node, fields: Mapping[fx.Node, ReceptiveField | None], modules: Mapping[str, nn.Module]
) -> ReceptiveField:
    """Return the field of the output of one node."""
    input_fields = [fields[n] for n in node.all_input_nodes]
    inputs = [field for field in input_fields if field is not None]
    if not inputs:
        raise _unsupported(str(node.target))
    if node.op == "call_module":
        layer = modules[str(node.target)]
        for kinds, rule in _LAYERS:
            if isinstance(layer, kinds):
                return rule(inputs[0], layer)
        raise _unsupported(type(layer).__name__)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    if name in _VALUEWISE:
        return _union(inputs, sum(i.channels for i in inputs) if name in ("cat", "concat") else None, node)
    call_rule = _CALLS.get(name)
    if call_rule is None:
        raise _unsupported(name)
    return call_rule(inputs[0], node)


def _unsupported(name: str) -> ModelError:
    return ModelError(
        f"dense mode supports only layers with a fixed neighbourhood; got {name}. Pass mode='sliding_window'"
    )


def _union(inputs: Sequence[ReceptiveField], channels: int | None, node: fx.Node) -> ReceptiveField:
    """Return the field of an operation on several tensors, voxel by voxel or concatenated along channels."""
    first = inputs[0]
    if channels is not None and node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0) != 1:
        raise _unsupported("cat along a spatial axis")
    if node.target in ("softmax", f.softmax, torch.softmax) and 1 not in (node.kwargs.get("dim"), *node.args[1:]):
        raise _unsupported("softmax over space")
    if any(i.stride != first.stride for i in inputs):
        raise _unsupported("a sum of tensors of different strides")
    return replace(
        first,
        low=tuple(map(min, zip(*(i.low for i in inputs), strict=True))),
        high=tuple(map(max, zip(*(i.high for i in inputs), strict=True))),
        align=tuple(math.lcm(*a) for a in zip(*(i.align for i in inputs), strict=True)),
        least=tuple(map(max, zip(*(i.least for i in inputs), strict=True))),
        channels=max(i.channels for i in inputs) if channels is None else channels,
    )


def _peak_bytes(graph: fx.Graph, fields: Mapping[fx.Node, ReceptiveField | None]) -> float:
    """Return the peak memory of the tensors, in bytes per input voxel."""
    nodes = [n for n in graph.nodes if fields.get(n) is not None]
    index = {node: i for i, node in enumerate(nodes)}
    last_use = {node: max([index[node], *(index.get(user, len(nodes)) for user in node.users)]) for node in nodes}
    lifetimes = [(index[n], last_use[n], field.bytes) for n in nodes if (field := fields[n]) is not None]
    return max(sum(size for first, last, size in lifetimes if first <= i <= last) for i in range(len(nodes)))


# --- layers ---------------------------------------------------------------------------------------------


def _per_axis(value: Any, field: ReceptiveField) -> list[int]:
    """Return a setting of a layer as one value per axis."""
    return [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)] * len(field.stride)


def _unchanged(field: ReceptiveField, layer: Any) -> ReceptiveField:
    return field


def _conv(field: ReceptiveField, layer: Any) -> ReceptiveField:
    if layer.padding_mode == "circular":
        raise _unsupported("circular padding")
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if layer.padding == "same":
        before = [n // 2 for n in spans]
    else:
        before = [0] * len(spans) if layer.padding == "valid" else _per_axis(layer.padding, field)
    high = [n - p for n, p in zip(spans, before, strict=True)]
    return field.moved(layer.stride, [-p for p in before], high, layer.out_channels)


def _pooled_conv(field: ReceptiveField, layer: Any) -> ReceptiveField:
    return _pool(_conv(field, layer), layer.pool)


def _pool(field: ReceptiveField, layer: Any) -> ReceptiveField:
    kernel, padding = _per_axis(layer.kernel_size, field), _per_axis(layer.padding, field)
    stride = _per_axis(layer.stride if layer.stride is not None else layer.kernel_size, field)
    dilation = _per_axis(getattr(layer, "dilation", 1), field)
    high = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    return field.moved(stride, [-p for p in padding], high)


def _transposed_conv(field: ReceptiveField, layer: Any) -> ReceptiveField:
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    rows = list(zip(layer.stride, layer.padding, spans, strict=True))
    return field.moved(
        [Fraction(1, s) for s, _, _ in rows],
        [Fraction(p - n, s) for s, p, n in rows],
        [Fraction(p, s) for s, p, _ in rows],
        layer.out_channels,
    )


def _pixel_shuffle(field: ReceptiveField, layer: Any) -> ReceptiveField:
    n = layer.upscale_factor
    upsampled = _resized(field, [n] * len(field.stride), "nearest")
    return replace(upsampled, channels=field.channels // n ** len(field.stride))


def _upsample(field: ReceptiveField, layer: Any) -> ReceptiveField:
    if layer.scale_factor is None or layer.align_corners:
        raise _unsupported("resizing to a given size or with aligned corners")
    return _resized(field, _integer_factors(layer.scale_factor, field), layer.mode)


def _integer_factors(factor: Any, field: ReceptiveField) -> list[int]:
    factors = list(factor) if isinstance(factor, (tuple, list)) else [factor] * len(field.stride)
    if any(int(n) != n for n in factors):
        raise _unsupported(f"resizing by {factor}")
    return [int(n) for n in factors]


def _resized(field: ReceptiveField, factors: Sequence[int], mode: str) -> ReceptiveField:
    """Return the field after upsampling by integer factors, by repetition or interpolation."""
    jump = [Fraction(1, n) for n in factors]
    if mode == "nearest":
        return field.moved(jump, [Fraction(1 - n, n) for n in factors], [0] * len(factors))
    reach = 2 if mode == "bicubic" else 1
    middle = [(j - 1) / 2 for j in jump]
    return field.moved(jump, [m - reach for m in middle], [m + reach for m in middle])


def _pad_layer(field: ReceptiveField, layer: Any) -> ReceptiveField:
    return _shifted(field, [-int(n) for n in layer.padding[0::2][::-1]])


def _shifted(field: ReceptiveField, offset: Sequence[int]) -> ReceptiveField:
    return field.moved([1] * len(offset), offset, offset)


def _batch_norm(field: ReceptiveField, layer: Any) -> ReceptiveField:
    if not layer.track_running_stats:
        raise _unsupported(f"{type(layer).__name__} without running statistics")
    return field


def _softmax(field: ReceptiveField, layer: Any) -> ReceptiveField:
    if layer.dim != 1:
        raise _unsupported("softmax over space")
    return field


_VALUEWISE_LAYERS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Softplus, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d,
    nn.AlphaDropout,
)  # fmt: skip
_LAYERS: list[tuple[Any, Callable[[ReceptiveField, Any], ReceptiveField]]] = [
    (_VALUEWISE_LAYERS, _unchanged),
    ((nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed_conv),
    ((PooledConv,), _pooled_conv),
    ((nn.Conv2d, nn.Conv3d), _conv),
    ((nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d), _pool),
    ((nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    ((nn.Upsample,), _upsample),
    ((nn.PixelShuffle,), _pixel_shuffle),
    ((nn.Softmax, nn.LogSoftmax), _softmax),
    (
        (nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ReflectionPad2d, nn.ReflectionPad3d,
         nn.ReplicationPad2d, nn.ReplicationPad3d),
        _pad_layer,
    ),
]  # fmt: skip

# --- functions and methods ------------------------------------------------------------------------------

_VALUEWISE = {
    "add", "sub", "mul", "truediv", "neg", "pow", "iadd", "imul", "relu", "relu_", "leaky_relu", "sigmoid", "tanh",
    "elu", "gelu", "silu", "softplus", "clamp", "abs", "exp", "log", "sqrt", "square", "maximum", "minimum", "dropout",
    "contiguous", "float", "detach", "clone", "cat", "concat", "softmax", "div", "hardtanh", "mish",
}  # fmt: skip


def _slice(field: ReceptiveField, node: fx.Node) -> ReceptiveField:
    """Return the field after slicing, which may drop channels, and voxels at either end."""
    key: Any = node.args[1]
    key = key if isinstance(key, tuple) else (key,)
    key = (*key, *(slice(None),) * (2 + len(field.stride) - len(key)))
    simple = all(isinstance(k, slice) and k.step in (None, 1) and (k.start or 0) >= 0 for k in key[2:])
    if Ellipsis in key or not simple or not isinstance(key[1], slice):
        raise _unsupported("indexing other than by slices of channels and space")
    channels = len(range(field.channels)[key[1]])
    return replace(_shifted(field, [int(k.start or 0) for k in key[2:]]), channels=channels)


def _interpolate_call(field: ReceptiveField, node: fx.Node) -> ReceptiveField:
    settings = dict(zip(("size", "scale_factor", "mode", "align_corners"), node.args[1:], strict=False)) | node.kwargs
    factor: Any = settings.get("scale_factor")
    if settings.get("size") is not None or factor is None or settings.get("align_corners"):
        raise _unsupported("resizing to a given size or with aligned corners")
    return _resized(field, _integer_factors(factor, field), str(settings.get("mode", "nearest")))


def _pool_call(field: ReceptiveField, node: fx.Node) -> ReceptiveField:
    """Return the field after a pooling function, whose arguments are those of the layer."""
    names = ["kernel_size", "stride", "padding", "dilation"]
    # Average pooling has no dilation.
    if getattr(node.target, "__name__", "").startswith("avg"):
        names.remove("dilation")
    settings = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    return _pool(field, SimpleNamespace(**{"stride": None, "padding": 0} | settings))


def _reduce_call(field: ReceptiveField, node: fx.Node) -> ReceptiveField:
    """Return the field after a reduction over the channels."""
    settings = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | node.kwargs
    if settings.get("dim") != 1 or not settings.get("keepdim"):
        raise _unsupported(f"{node.target} over other axes than channels or without keepdim")
    return replace(field, channels=1)


def _pad_call(field: ReceptiveField, node: fx.Node) -> ReceptiveField:
    settings = dict(zip(("pad", "mode"), node.args[1:], strict=False)) | node.kwargs
    pad: Any = settings["pad"]
    if settings.get("mode", "constant") == "circular":
        raise _unsupported("circular padding")
    before = [int(n) for n in pad[0::2]] + [0] * len(field.stride)
    return _shifted(field, [-n for n in before[: len(field.stride)][::-1]])


_CALLS: dict[str, Callable[[ReceptiveField, fx.Node], ReceptiveField]] = {
    operator.getitem.__name__: _slice,
    "interpolate": _interpolate_call,
    "pad": _pad_call,
    "sum": _reduce_call,
    "mean": _reduce_call,
    "std": _reduce_call,
    **dict.fromkeys(("max_pool2d", "max_pool3d", "avg_pool2d", "avg_pool3d"), _pool_call),
}


def _shorten(error: BaseException) -> str:
    return " ".join(str(error).split())[:150] or type(error).__name__
