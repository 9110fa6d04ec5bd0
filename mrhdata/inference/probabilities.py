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

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mrhdata._runtime.progress import Progress
from mrhdata.inference.output import Output
from mrhdata.inference.predictor import predict
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

    from mrhdata.models.spec import ModelSpec

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
        Input of the network, which may extend beyond the grid.
    grid : Grid
        Grid of the volume.
    """

    def __init__(self, network: InferenceModel, features: Floats, image: Floats, grid: Grid) -> None:
        self.grid, self._network, self._features, self._image = grid, network, features, image

    def read(self, box: Box) -> Tensor:
        """Return the probabilities (labels, z, y, x) of a box within the grid."""
        model: Any = self._network.model
        stride, reach, shape = model.trunk_stride, model.correction_reach, self._image.shape[1:]
        low = [max(0, a - reach) // stride * stride for a in box.start]
        high = [min(n, -(-(b + reach) // stride) * stride) for b, n in zip(box.stop, shape, strict=True)]
        around = Box.of(low, high)
        coarse = Box.of((a // stride for a in low), (b // stride for b in high))
        device = self._network.device
        features, image = (
            torch.from_numpy(np.ascontiguousarray(v[:, *b.slices])[None]).to(device)
            for v, b in ((self._features, coarse), (self._image, around))
        )
        with torch.inference_mode(), autocast(device.type, self._network.precision):
            scores = model.scores(features, image)[0].float()[:, *box.within(around.start)]
            return scores.softmax(0).cpu()


def probabilities_of(
    model: nn.Module,
    volumes: Mapping[str, xr.DataArray],
    folder: Path,
    *,
    memory: int,
    device: str | None,
    precision: str,
    progress: Progress,
) -> Probabilities:
    """Return the probabilities of the labels of prepared volumes, equal to those of one pass over the whole volume.

    Parameters
    ----------
    model : torch.nn.Module
        Network that was trained on labels.
    volumes : mapping of volumes
        Prepared channels in memory, on one grid.
    folder : path
        Folder for probabilities that are stored.
    memory, device, precision, progress
        Options of :func:`mrhdata.predict`.
    """
    options: dict[str, Any] = {"memory": memory, "device": device, "precision": precision, "progress": progress}
    if getattr(model, "trunk_stride", None) is None:
        output, store = Output(activation="softmax"), folder / "probabilities.zarr"
        return StoredProbabilities(
            predict(model, volumes, store, mode="dense", output=output, preprocessed=True, **options)
        )
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    padded = {name: _padded(volume, int(model.multiple)) for name, volume in volumes.items()}  # type: ignore[arg-type]
    features = _features(InferenceModel(_Trunk(model), device, precision), padded, memory)
    assert spec.inputs is not None
    image = spec.inputs.apply(np.stack([v.values for v in padded.values()])[None])[0].astype(np.float32)
    network = InferenceModel(model, device, precision)
    return ComputedProbabilities(network, features, image, next(iter(volumes.values())).mrh.grid)


def _features(trunk: InferenceModel, volumes: Mapping[str, xr.DataArray], memory: int) -> Floats:
    """Return the answer (C, z, y, x) of a trunk, in as few pieces as the memory allows."""
    source = sources.one_grid(volumes, (1, 1, 1), None, False)
    region = RegionOfInterest(None, next(iter(volumes.values())), source)
    field, tensors = receptive_field_of(trunk.model, len(volumes)), int(_TENSORS * memory)
    strategy = DenseStrategy(trunk, field, source.grid.shape, len(volumes), region, tensors)
    whole = Box((0, 0, 0), strategy.shape)
    features = np.empty((strategy.channels, *strategy.shape), np.float32)
    tasks = list(strategy.tasks(whole, None))
    reads = BoxReader(source, memory).read([task.boxes for task in tasks])
    for task, values in zip(tasks, reads, strict=True):
        strategy.add((whole, features), task, trunk(values).numpy(), _copy)
    return features


def _copy(box: Box, values: Floats, out: NDArray[Any]) -> None:
    out[...] = values


class _Trunk(nn.Module):
    """The trunk of a network as a network of its own."""

    ndim = 3

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, count = model, model.trunk_channels
        target = IntensityScale((0.0,) * count, (1.0,) * count)
        self.spec = replace(model.spec, labels=(), target=target, units=None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of an image."""
        return self.model.trunk(x)


def _padded(volume: xr.DataArray, multiple: int) -> xr.DataArray:
    """Return a volume whose lengths are multiples, with 0 at its far ends."""
    ends = [(0, -n % multiple) for n in volume.shape]
    return from_array(np.pad(volume.values, ends), affine=volume.mrh.grid.affine, name=str(volume.name))
