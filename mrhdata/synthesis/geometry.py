"""Places, shapes and fields of view of patches.

A pose maps each voxel of a patch to a position in a label map: a matrix about the centre, plus smooth displacements.
The label of a voxel is that of the nearest voxel of the map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrhdata.errors import ParameterError
from mrhdata.synthesis.axes import smooth_field
from mrhdata.synthesis.config import SynthesisConfig
from mrhdata.synthesis.draws import Draws
from mrhdata.synthesis.grids import Grids, Triple
from mrhdata.synthesis.label_map import LabelMap


@dataclass(frozen=True)
class Pose:
    """Map from the voxels of a patch to positions in a label map, in voxels of the map.

    Attributes
    ----------
    shape : (z, y, x)
        Size of the patch.
    matrix : (3, 3) tensor
        Directions and steps of the patch's axes.
    centre : (3,) tensor
        Position of the patch's centre.
    displacement : (3, z, y, x) tensor, optional
        Displacement of each voxel.
    mirrored : bool
        Whether x is reversed.

    Examples
    --------
    >>> pose = Pose((1, 1, 3), torch.eye(3), torch.tensor([0.0, 0.0, 5.0]))
    >>> pose.positions(2)
    tensor([[[4., 5., 6.]]])
    """

    shape: Triple
    matrix: Tensor
    centre: Tensor
    displacement: Tensor | None = None
    mirrored: bool = False

    def positions(self, axis: int) -> Tensor:
        """Return the position of each voxel along an axis of the map, without the displacement."""
        z, y, x = (self.matrix[axis, k] * (torch.arange(n) - (n - 1) / 2) for k, n in enumerate(self.shape))
        return self.centre[axis] + z[:, None, None] + y[:, None] + x

    def sample(self, indices: Tensor) -> Tensor:
        """Return the nearest value of a map at each voxel; 0 outside of the map."""
        flat, inside = torch.zeros(1, dtype=torch.int32, device=indices.device), torch.ones(1, dtype=torch.bool)
        for axis, size in enumerate(indices.shape):
            position = self.positions(axis).to(indices.device)
            if self.displacement is not None:
                position = position + self.displacement[axis]
            nearest = (position + 0.5).floor_()
            within = (nearest >= 0) & (nearest < size)
            nearest = nearest.clamp_(0, size - 1).to(torch.int32)
            flat, inside = flat * size + nearest, inside.to(indices.device) & within
        values = indices.reshape(-1).index_select(0, flat.expand(self.shape).reshape(-1)).reshape(self.shape)
        return values * inside


def draw_pose(
    label_map: LabelMap,
    grids: Grids,
    config: SynthesisConfig,
    draws: Draws,
    position: Sequence[int] | None = None,
) -> Pose:
    """Draw a pose of the painted grid of a patch.

    Parameters
    ----------
    label_map : LabelMap
    grids : Grids
    config : SynthesisConfig
    draws : Draws
    position : (3,) sequence of int, optional
        First voxel of the patch in the map, before it is turned and deformed about its centre; random by default.

    Examples
    --------
    >>> import numpy as np
    >>> from mrhdata.synthesis import Anatomy
    >>> label_map = LabelMap.make(np.ones((9, 9, 9), np.uint8), Anatomy.of_labels([1]), (1, 1, 1))
    >>> grids = Grids.choose((4, 4, 4), (1, 1, 1), (1, 1, 1))
    >>> pose = draw_pose(label_map, grids, SynthesisConfig.exact(), Draws(0), position=(2, 3, 4))
    >>> pose.positions(0).flatten()[0].item()
    2.0
    """
    if position is not None and len(position) != 3:
        raise ParameterError(f"position must be three whole numbers; got {position}. Pass the first voxel (z, y, x).")
    sizes, fine_mm = torch.tensor(label_map.spacing_mm), torch.tensor(grids.fine_mm)
    # The extent in voxels of the map.
    extent = torch.tensor(grids.fine_shape) * fine_mm / sizes
    mirrored = draws.chance(config.flip_probability)
    matrix = _draw_matrix(config, draws)
    if mirrored:
        matrix[:, 2] *= -1
    centre = _draw_centre(label_map, extent, config, draws)
    if position is not None:
        centre = torch.tensor(position) - torch.tensor(label_map.start) + (extent - 1) / 2
    displacement = _draw_displacement(grids, sizes, config, draws)
    return Pose(grids.fine_shape, matrix * (fine_mm / sizes[:, None]), centre, displacement, mirrored)


def _draw_matrix(config: SynthesisConfig, draws: Draws) -> Tensor:
    """Return a random rotation, scaling and shear (3, 3) in mm."""
    matrix = torch.eye(3)
    for axis, degrees in enumerate(draws.uniforms((-config.rotation_degrees, config.rotation_degrees), 3).tolist()):
        matrix = matrix @ _rotation(axis, math.radians(degrees))
    scales = 1 + draws.uniforms((-config.scaling, config.scaling), 3)
    shears = draws.uniforms((-config.shearing, config.shearing), 9).reshape(3, 3)
    return matrix @ torch.diag(scales) @ (torch.eye(3) + shears.fill_diagonal_(0))


def _rotation(axis: int, angle: float) -> Tensor:
    """Return the rotation about an axis, in radians."""
    a, b = (other for other in range(3) if other != axis)
    rotation = torch.eye(3)
    rotation[a, a] = rotation[b, b] = math.cos(angle)
    rotation[a, b], rotation[b, a] = -math.sin(angle), math.sin(angle)
    return rotation


def _draw_centre(label_map: LabelMap, extent: Tensor, config: SynthesisConfig, draws: Draws) -> Tensor:
    """Return the centre of a patch in the map; a patch that is larger than the map lies about its middle."""
    size = torch.tensor(label_map.indices.shape)
    anywhere = draws.uniforms((0, 1), 3) * size
    in_brain = label_map.centres[draws.integer(len(label_map.centres))].float()
    centre = in_brain if draws.chance(config.brain_share) else anywhere
    half = extent / 2
    centre = torch.where(extent < size, centre.clamp(half, size - half), size / 2) - 0.5
    shift = draws.uniforms((-config.translation_mm, config.translation_mm), 3) / torch.tensor(label_map.spacing_mm)
    # The first voxel of a patch that is not shifted lies on a voxel of the map.
    first = (centre - (extent - 1) / 2).round()
    return first + (extent - 1) / 2 + shift


def _draw_displacement(grids: Grids, sizes: Tensor, config: SynthesisConfig, draws: Draws) -> Tensor | None:
    """Return smooth displacements (3, z, y, x) in voxels of the map, whose sizes are in mm."""
    node = draws.uniform(config.elastic_node_mm)
    deviation = min(draws.uniform((0.0, config.elastic_mm)), node / 4)
    if not deviation:
        return None
    field = smooth_field(grids.fine_shape, [node / step for step in grids.fine_mm], draws, channels=3)
    return field.mul_((deviation / sizes).reshape(3, 1, 1, 1).to(field.device))


def draw_view(label_map: LabelMap, pose: Pose, config: SynthesisConfig, draws: Draws) -> Tensor | None:
    """Return the share of each voxel that lies in the field of view (z, y, x), or None if all do.

    The field of view may end below the brain, or be a slab within the patch: along an axis that is at most half as
    long as another one, or else along any. A slab that was resampled ends within a voxel.

    Examples
    --------
    >>> import numpy as np
    >>> from mrhdata.synthesis import Anatomy
    >>> label_map = LabelMap.make(np.ones((9, 9, 9), np.uint8), Anatomy.of_labels([1]), (1, 1, 1))
    >>> pose = Pose((4, 4, 4), torch.eye(3), torch.tensor([4.0, 4.0, 4.0]))
    >>> config = SynthesisConfig.exact(view_probability=1.0, view_share=(0.5, 0.5))
    >>> draw_view(label_map, pose, config, Draws(0)).mean().item()
    0.5
    """
    view = None
    bottom = label_map.brain_bottom - draws.uniform(config.neck_mm) / label_map.spacing_mm[0]
    # A patch in the neck keeps its view, or it would be empty.
    if draws.chance(config.neck_probability) and pose.centre[0] >= bottom:
        view = (pose.positions(0) >= bottom).float()
    if draws.chance(config.view_probability):
        thin = [axis for axis in range(3) if 2 * pose.shape[axis] <= max(pose.shape)] or list(range(3))
        axis = thin[draws.integer(len(thin))]
        slab = _draw_slab(pose.shape[axis], config, draws).reshape([-1 if k == axis else 1 for k in range(3)])
        view = slab if view is None else view * slab
    return None if view is None else view.expand(pose.shape).to(label_map.indices.device)


def _draw_slab(size: int, config: SynthesisConfig, draws: Draws) -> Tensor:
    """Return the share of each plane of an axis that lies in a random interval (size,)."""
    count = max(1, round(size * draws.uniform(config.view_share)))
    start = draws.integer(size - count + 1)
    at = torch.arange(size)
    slab = ((at >= start) & (at < start + count)).float()
    if draws.chance(config.partial_edge_probability):
        slab[[start, start + count - 1]] = draws.uniforms((0.0, 1.0), 2)
    return slab
