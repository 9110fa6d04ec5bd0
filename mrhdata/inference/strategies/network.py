"""A trained network, ready to be run on boxes of raw voxels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from mrhdata.errors import ModelError
from mrhdata.models.spec import ModelSpec, scaled, to_target_units

if TYPE_CHECKING:
    from torch import Tensor, nn

Floats = NDArray[np.float32]


#: Voxels of windows that are run together.
_BATCH_VOXELS = 1_200_000


def _moved(model: nn.Module, device: str) -> nn.Module:
    """The network on a device, if there is such a one."""
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        found = "cpu and cuda" if torch.cuda.is_available() else "cpu alone"
        raise ModelError(f"there is no device {device!r} for this PyTorch; there is {found}") from error


class InferenceModel:
    """A trained network on boxes (n, C, z, y, x) of raw voxels; answers in the target's units.

    Parameters
    ----------
    model : torch.nn.Module
        With ``spec``, or plain: then it takes raw voxels.
    device : str
    precision : {"float32", "bfloat16"}
    """

    def __init__(self, model: nn.Module, device: str, precision: str) -> None:
        self.model, self._device, self._precision = _moved(model.eval(), device), device, precision
        spec: ModelSpec | None = getattr(model, "spec", None)
        self.spec = spec if spec is not None else ModelSpec(type(model).__name__)
        self.ndim = int(getattr(model, "ndim", 3))
        #: The axis that a network of planes is run along, None for one of volumes.
        self.axis = (self.spec.axis or 0) if self.ndim == 2 else None

    def __call__(self, values: Floats) -> Tensor:
        """Answers in this machine's memory, float32."""
        with torch.inference_mode(), torch.autocast(self._device, torch.bfloat16, self._precision == "bfloat16"):
            return self._run(torch.from_numpy(values).to(self._device)).cpu()

    def answer(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the answer for boxes of a shape, found without any voxels."""
        ghost = copy.copy(self)
        ghost.model = copy.deepcopy(self.model).to("meta")
        return tuple(ghost._run(torch.empty(tuple(shape), device="meta")).shape)

    def _run(self, x: Tensor) -> Tensor:
        if self.axis is None:
            return self._physical(x)
        # Each plane by itself, with its neighbours as channels where the network was trained so.
        axis, across = 2 + self.axis, 2 * self.spec.context_slices + 1
        x = x.movedim(axis, 1)  # (n, planes, C, h, w)
        if across > 1:
            x = x.unfold(1, across, 1).movedim(-1, 3).flatten(2, 3)  # (n, planes, C * across, h, w)
        n, planes = x.shape[:2]
        y = self._physical(x.flatten(0, 1))
        return y.reshape(n, planes, *y.shape[1:]).movedim(1, axis)

    def _physical(self, x: Tensor) -> Tensor:
        x = _together(x)
        y = self.model(x if self.spec.inputs is None else scaled(x, self.spec.inputs))
        if not isinstance(y, torch.Tensor):
            raise ModelError(f"{self.spec.name} returns {type(y).__name__}, not one tensor")
        return y.float() if self.spec.target is None else to_target_units(y.float(), self.spec.target)


def _together(x: Tensor) -> Tensor:
    """The same with the channels of a voxel beside each other: few of them are convolved several times faster so."""
    if x.shape[1] == 1 and x.is_contiguous():
        # One channel lies so already; PyTorch would copy it.
        return x.as_strided(x.shape, (x.stride(0), 1, *x.stride()[2:]))
    return x.to(memory_format=torch.channels_last_3d if x.ndim == 5 else torch.channels_last)
