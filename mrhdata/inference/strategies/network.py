"""A trained network, ready to be run on boxes of raw voxels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mrhdata._runtime.arguments import described
from mrhdata.errors import ModelError
from mrhdata.models.device import resolve_device
from mrhdata.models.precision import autocast, resolve_precision
from mrhdata.models.spec import ModelSpec, scaled, to_target_units

if TYPE_CHECKING:
    from torch import Tensor, nn

Floats = NDArray[np.float32]


#: Voxels of the windows in one batch: on the processor those that its cache can follow, on a GPU those that occupy it.
_BATCH_VOXELS, _GPU_BATCH_VOXELS = 1_200_000, 4_000_000
#: Share of a GPU's free memory for the network's tensors; the rest is for its layers' workspace.
_GPU_SHARE = 0.5


def check_network(model: Any) -> None:
    """Raise `ModelError` if a value is not a network, such as the name of one."""
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"model must be a torch.nn.Module; got {described(model)}. Load it with mrhdata.models.load")


class InferenceModel:
    """A trained network that maps boxes (n, C, z, y, x) of raw voxels to predictions in the target's units.

    Parameters
    ----------
    model : torch.nn.Module
        Network; without a ``spec`` it must take raw voxels.
    device : str or None
        Name of a device, as for :func:`mrhdata.models.device.resolve_device`.
    precision : {"auto", "float32", "bfloat16", "float16"}
        Type in which the network computes; ``"auto"`` is the faster one on the device.

    Attributes
    ----------
    device : torch.device
        Device on which the network computes.
    precision : {"float32", "bfloat16", "float16"}
        Type in which the network computes.
    axis : int or None
        Axis along which a 2D network is run; None for a 3D network.
    """

    def __init__(self, model: nn.Module, device: str | None, precision: str) -> None:
        self._requested = device
        self.device = resolve_device(device)
        self.model = model.eval().to(self.device)
        self.precision = resolve_precision(precision, self.device.type)
        spec: ModelSpec | None = getattr(model, "spec", None)
        self.spec = spec if spec is not None else ModelSpec(type(model).__name__)
        self.ndim = int(getattr(model, "ndim", 3))
        self.axis = (self.spec.axis or 0) if self.ndim == 2 else None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process: the network on the processor, since devices differ."""
        model = self.model if self.device.type == "cpu" else copy.deepcopy(self.model).cpu()
        return self.__dict__ | {"model": model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Move the network to the device that this process has for the requested name."""
        self.__dict__.update(state)
        self.device = resolve_device(self._requested)
        self.model = self.model.to(self.device)

    def __call__(self, values: Floats) -> Tensor:
        """Return float32 predictions in host memory."""
        return self.run(torch.from_numpy(values).to(self.device)).cpu()

    def run(self, values: Tensor) -> Tensor:
        """Return float32 predictions for a tensor on the device, which may still compute them."""
        with torch.inference_mode(), autocast(self.device.type, self.precision):
            return self._run(values)

    def tensor_memory(self, budget: int) -> int:
        """Return the bytes for the network's tensors: of main memory a budget, of a GPU half of what is free."""
        if self.device.type != "cuda":
            return budget
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(_GPU_SHARE * free)

    @property
    def batch_voxels(self) -> int:
        """Voxels of windows that are run together."""
        return _BATCH_VOXELS if self.device.type == "cpu" else _GPU_BATCH_VOXELS

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the predictions for boxes of a shape, computed without voxels."""
        shapes_only = copy.copy(self)
        shapes_only.model = copy.deepcopy(self.model).to("meta")
        return tuple(shapes_only._run(torch.empty(tuple(shape), device="meta")).shape)

    def _run(self, x: Tensor) -> Tensor:
        if self.axis is None:
            return self._run_scaled(x)
        # A 2D network takes one plane at a time, with neighbouring planes as channels if it was trained so.
        axis, planes_seen = 2 + self.axis, 2 * self.spec.context_slices + 1
        x = x.movedim(axis, 1)  # (n, planes, C, h, w)
        if planes_seen > 1:
            x = x.unfold(1, planes_seen, 1).movedim(-1, 3).flatten(2, 3)  # (n, planes, C * planes_seen, h, w)
        n, planes = x.shape[:2]
        y = self._run_scaled(x.flatten(0, 1))
        return y.reshape(n, planes, *y.shape[1:]).movedim(1, axis)

    def _run_scaled(self, x: Tensor) -> Tensor:
        """Scale the input, run the network, and return target units."""
        x = _channels_last(x)
        y = self.model(x if self.spec.inputs is None else scaled(x, self.spec.inputs))
        if not isinstance(y, torch.Tensor):
            raise ModelError(f"{self.spec.name} must return one tensor; got {type(y).__name__}")
        return y.float() if self.spec.target is None else to_target_units(y.float(), self.spec.target)


def _channels_last(x: Tensor) -> Tensor:
    """Return a tensor with the channels of a voxel next to each other: few channels convolve several times faster."""
    if x.shape[1] == 1 and x.is_contiguous():
        # A single channel already has this layout; PyTorch would copy it.
        return x.as_strided(x.shape, (x.stride(0), 1, *x.stride()[2:]))
    return x.to(memory_format=torch.channels_last_3d if x.ndim == 5 else torch.channels_last)
