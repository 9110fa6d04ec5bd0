"""Labels from probabilities: the most probable one at each voxel of any grid.

Probabilities, not labels, are interpolated, so a boundary lies where two probabilities are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as f

from mrhdata.inference.probabilities import Probabilities
from mrhdata.registration.transforms import Transform
from mrhdata.volume.assumptions import geometry_attrs
from mrhdata.volume.box import Box
from mrhdata.volume.construct import SPATIAL

#: Shape of the boxes that are labelled at once.
_BLOCK = (32, 128, 128)
#: Distance in voxels below which points count as centres of voxels.
_ON_CENTRE = 1e-4


def most_probable(probabilities: Probabilities, like: xr.DataArray, labels: Sequence[int]) -> xr.DataArray:
    """Return the most probable label at each voxel of a volume; the first label outside the grid of the probabilities.

    Parameters
    ----------
    probabilities : Probabilities
        Probability of each label, on any grid.
    like : volume
        Volume whose grid the labels get.
    labels : sequence of int
        Label of each channel.

    Returns
    -------
    labels : (z, y, x) label volume
        Labels in memory.
    """
    values = np.asarray(labels)
    dtype = np.dtype(np.min_scalar_type(int(values.max())) if values.min() >= 0 else np.int16)
    template = like.isel({d: 0 for d in like.dims if d not in SPATIAL}, drop=True)
    grid = template.mrh.grid
    to_source = Transform().between(grid, probabilities.grid)
    out = np.full(grid.shape, values[0], dtype)
    same = grid.same_as(probabilities.grid)
    for box in Box.tiles(grid.shape, _BLOCK):
        if same:
            out[box.slices] = values[probabilities.read(box).argmax(0).numpy()]
            continue
        points = to_source.points(_indices(box)).reshape(*box.shape, 3)
        out[box.slices] = _label_points(probabilities, points, values.astype(dtype))
    missing = [d for d in SPATIAL if d not in template.dims]
    volume = template.copy(data=out.squeeze(tuple(SPATIAL.index(d) for d in missing)))
    geometry = {k: template.attrs[k] for k in ("affine", "space")} | geometry_attrs(template)
    volume.attrs = {**geometry, "kind": "labels", "units": "1"}
    return volume


def _indices(box: Box) -> NDArray[np.int64]:
    return np.moveaxis(np.indices(box.shape), 0, -1).reshape(-1, 3) + np.array(box.start)


def _label_points(probabilities: Probabilities, points: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """Return the labels of points (z, y, x, 3), given as indices of the grid of the probabilities."""
    top = np.array(probabilities.grid.shape) - 1
    inside = ((points >= -0.5) & (points <= top + 0.5)).all(-1)
    if not inside.any():
        return np.full(points.shape[:3], values[0])
    needed = points[inside].clip(0, top)
    low, high = np.floor(needed.min(0)).astype(int), np.ceil(needed.max(0)).astype(int)
    read = probabilities.read(Box.of(low, high + 1))
    local = points.clip(0, top) - low
    nearest = np.rint(local)
    if np.abs(local - nearest)[inside].max() < _ON_CENTRE:
        index = nearest.clip(0, np.array(read.shape[1:]) - 1).astype(np.int64)
        winners = read.argmax(0).numpy()[tuple(np.moveaxis(index, -1, 0))]
    else:
        winners = _interpolate(read, local).argmax(0).numpy()
    return np.where(inside, values[winners], values[0])


def _interpolate(values: Tensor, points: NDArray[Any]) -> Tensor:
    """Return values (C, ...) at points (z, y, x, 3), linearly; beyond the border those at the border."""
    lengths = np.array(values.shape[1:])
    # From indices to the range -1 to 1 that PyTorch uses, in the order x, y, z.
    scaled = (2 * points / np.maximum(lengths - 1, 1) - 1)[..., ::-1]
    grid = torch.from_numpy(np.ascontiguousarray(scaled, dtype=np.float32))
    return f.grid_sample(values[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True)[0]
