"""Probabilities of the labels of a volume, read box by box.

Most of a network's work is at the coarse resolution of its trunk, whose answer is small. A network with a trunk
therefore runs it once over the whole volume; the probabilities of every voxel are computed as they are read and never
stored.

```
prepared volume --trunk--> features --scores of a box--> probabilities
                --network (others)--> stored probabilities --box-->
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mrhdata.inference.region import RegionOfInterest
from mrhdata.inference.strategies.dense import DenseStrategy
from mrhdata.inference.strategies.network import InferenceModel
from mrhdata.models.precision import autocast
from mrhdata.models.receptive_field import receptive_field_of
from mrhdata.models.spec import IntensityScale
from mrhdata.patching import sources
from mrhdata.patching.box_reader import BoxReader
from mrhdata.volume.box import Box
from mrhdata.volume.construct import from_array
from mrhdata.volume.grid import Grid

if TYPE_CHECKING:
    import xarray as xr

Floats = NDArray[np.float32]

#: Share of the memory for the tensors of a trunk; the volume, its features and the labels take the rest.
_TENSORS = 0.6


class Probabilities(Protocol):
    """Probabilities of each label on a grid."""

    grid: Grid

    def read(self, box: Box) -> Tensor:
        """Return the probabilities (labels, z, y, x) of a box within the grid."""


class StoredProbabilities:
    """Probabilities in a volume (c, z, y, x)."""

    def __init__(self, volume: xr.DataArray) -> None:
        self.grid, self._data = volume.mrh.grid, volume.data

    def read(self, box: Box) -> Tensor:
        """Return the probabilities (labels, z, y, x) of a box within the grid."""
        return torch.from_numpy(np.ascontiguousarray(self._data[:, *box.slices], dtype=np.float32))


class ComputedProbabilities:
    """Probabilities that are computed from the features of a network's trunk.

    Parameters
    ----------
    network : InferenceModel
        Network with a trunk, as :class:`mrhdata.models.half_unet.HalfUNet`.
    features : (C, z, y, x) array
        Answer of the trunk.
    image : (channels, z, y, x) array
        Scaled input of the network, which extends beyond the grid.
    start : (z, y, x)
        First voxel of the grid in the image.
    grid : Grid
        Grid of the volume.
    """

    def __init__(
        self, network: InferenceModel, features: Floats, image: Floats, start: Sequence[int], grid: Grid
    ) -> None:
        self.grid, self._network, self._start = grid, network, start
        self._features, self._image = features, image

    def read(self, box: Box) -> Tensor:
        """Return the probabilities (labels, z, y, x) of a box within the grid."""
        model: Any = self._network.model
        stride, reach, shape = model.trunk_stride, model.correction_reach, self._image.shape[1:]
        wanted = box.shift(self._start)
        low = [max(0, a - reach) // stride * stride for a in wanted.start]
        high = [min(n, -(-(b + reach) // stride) * stride) for b, n in zip(wanted.stop, shape, strict=True)]
        around = Box.of(low, high)
        coarse = Box.of((a // stride for a in low), (b // stride for b in high))
        device = self._network.device
        features, image = (
            torch.from_numpy(np.ascontiguousarray(v[:, *b.slices])[None]).to(device)
            for v, b in ((self._features, coarse), (self._image, around))
        )
        with torch.inference_mode(), autocast(device.type, self._network.precision):
            scores = model.scores(features, image)[0].float()[:, *wanted.within(around.start)]
            return scores.softmax(0).cpu()


class TrunkModel:
    """A network with a trunk, which runs once over a whole volume.

    Parameters
    ----------
    model : torch.nn.Module
        Network with a trunk that was trained on labels.
    volumes : mapping of volumes
        Prepared channels in memory, on one grid.
    memory, device, precision
        Options of :func:`mrhdata.predict`.

    Attributes
    ----------
    network : InferenceModel
        The whole network.
    values : (channels, z, y, x) array
        Prepared channels between zeros: lengths are multiples that the network needs, and thin volumes lie in the
        middle of the smallest training patch, because the network knows only larger images.
    start : (z, y, x)
        First voxel of the channels in `values`.
    """

    def __init__(
        self,
        model: nn.Module,
        volumes: Mapping[str, xr.DataArray],
        *,
        memory: int,
        device: str | None,
        precision: str,
    ) -> None:
        self.network = InferenceModel(model, device, precision)
        self._trunk, self._memory = InferenceModel(_Trunk(model), device, precision), memory
        self._names, self._grid = list(volumes), next(iter(volumes.values())).mrh.grid
        self._field = receptive_field_of(self._trunk.model, len(volumes))
        spec, multiple = self.network.spec, int(model.multiple)  # type: ignore[arg-type]
        least = spec.smallest or spec.patch or (1, 1, 1)
        self.start: list[int] = [max(0, n - m) // 2 for n, m in zip(least, self._grid.shape, strict=True)]
        ends = [
            (a, max(0, n - m - a) + -max(n, m) % multiple)
            for a, n, m in zip(self.start, least, self._grid.shape, strict=True)
        ]
        self.values = np.pad(np.stack([v.values.astype(np.float32) for v in volumes.values()]), [(0, 0), *ends])

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel size along z, y and x."""
        return tuple(self._grid.spacing.tolist())

    def volumes(self, values: Floats) -> dict[str, xr.DataArray]:
        """Return `values` or a change of them as volumes on the grid of the prepared channels."""
        box = Box((0, 0, 0), self._grid.shape).shift(self.start).slices
        channels = zip(self._names, values, strict=True)
        return {name: from_array(v[box], affine=self._grid.affine, name=name) for name, v in channels}

    def features(self, values: Floats) -> Floats:
        """Return the answer (C, z, y, x) of the trunk to `values` or a change of them, in few pieces."""
        channels = {
            n: from_array(v, spacing=self._grid.spacing, name=n) for n, v in zip(self._names, values, strict=True)
        }
        source = sources.one_grid(channels, (1, 1, 1), None, False)
        region = RegionOfInterest(None, next(iter(channels.values())), source)
        tensors = int(_TENSORS * self._memory)
        strategy = DenseStrategy(self._trunk, self._field, source.grid.shape, len(channels), region, tensors)
        whole = Box((0, 0, 0), strategy.shape)
        features = np.empty((strategy.channels, *strategy.shape), np.float32)
        tasks = list(strategy.tasks(whole, None))
        reads = BoxReader(source, self._memory).read([task.boxes for task in tasks])
        for task, boxes in zip(tasks, reads, strict=True):
            strategy.add((whole, features), task, self._trunk(boxes).numpy(), _copy)
        return features

    def probabilities(self, values: Floats, features: Floats) -> ComputedProbabilities:
        """Return the probabilities of every voxel from the answer of the trunk to `values`."""
        scale = self.network.spec.inputs
        assert scale is not None
        image = scale.apply(values[None])[0].astype(np.float32)
        return ComputedProbabilities(self.network, features, image, self.start, self._grid)


def _copy(box: Box, values: Floats, out: NDArray[Any]) -> None:
    out[...] = values


class _Trunk(nn.Module):
    """The trunk of a network as a network of its own."""

    ndim = 3

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, count = model, model.trunk_channels
        target = IntensityScale((0.0,) * count, (1.0,) * count)
        self.spec = replace(model.spec, labels=(), label_names=(), target=target, units=None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of an image."""
        return self.model.trunk(x)
