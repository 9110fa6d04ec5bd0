import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from mrhdata.synthesis import FREESURFER, LabelMap, SynthesisConfig
from mrhdata.synthesis.draws import Draws
from mrhdata.synthesis.geometry import Pose, draw_pose, draw_view
from mrhdata.synthesis.grids import Grids


@pytest.fixture(scope="module")
def label_map(labels):
    return LabelMap.make(labels, FREESURFER, (1, 1, 1))


def grids(shape=(24, 26, 28), spacing_mm=(1.0, 1.0, 1.0), map_mm=(1.0, 1.0, 1.0)):
    return Grids.choose(shape, spacing_mm, map_mm)


def nearest_by_scipy(indices, pose):
    """Nearest neighbours by an independent program, from the pose's definition."""
    at = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in pose.shape), indexing="ij"))
    positions = np.einsum("ij,jzyx->izyx", pose.matrix.numpy().astype(float), at)
    positions += pose.centre.numpy().astype(float)[:, None, None, None]
    if pose.displacement is not None:
        positions += pose.displacement.numpy()
    return ndimage.map_coordinates(indices.numpy(), positions, order=0, mode="constant", cval=0), positions


@pytest.mark.parametrize("seed", range(6))
def test_labels_equal_nearest_neighbours_of_scipy(label_map, seed):
    """Rotation, scaling, shear, shift and elastic deformation; only voxels halfway between two may differ."""
    pose = draw_pose(label_map, grids(), SynthesisConfig(), Draws(seed))
    expected, positions = nearest_by_scipy(label_map.indices, pose)
    halfway = (np.abs(positions - np.floor(positions) - 0.5) < 1e-4).any(0)
    # SciPy takes 0 for positions up to half a voxel outside of the map, which still have a nearest voxel.
    inside = ((positions >= 0) & (positions <= np.array(label_map.indices.shape)[:, None, None, None] - 1)).all(0)
    sure = inside & ~halfway
    assert sure.mean() > 0.5
    np.testing.assert_array_equal(pose.sample(label_map.indices).numpy()[sure], expected[sure])


def test_a_known_rotation(label_map):
    """A quarter turn about z maps the axes y and x on each other."""
    shape = label_map.indices.shape
    turn = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    pose = Pose(shape, turn, (torch.tensor(shape) - 1) / 2)
    np.testing.assert_array_equal(pose.sample(label_map.indices), np.rot90(label_map.indices, 1, (1, 2)))


def test_outside_of_the_map_is_background(label_map):
    """A patch far away is empty, and positions half a voxel outside still have a nearest voxel."""
    pose = Pose((4, 4, 4), torch.eye(3), torch.tensor([500.0, 0.0, -90.0]))
    assert int(pose.sample(label_map.indices).sum()) == 0
    edge = Pose((1, 1, 1), torch.eye(3), torch.tensor([-0.4, 20.0, 20.0]))
    assert int(edge.sample(label_map.indices)) == int(label_map.indices[0, 20, 20])


def test_rotations_act_in_millimetres(labels):
    """With voxels of 3 x 1 x 1 mm the matrix in mm is a rotation."""
    thick = LabelMap.make(labels[::3], FREESURFER, (3, 1, 1))
    config = SynthesisConfig.exact(rotation_degrees=40.0)
    pose = draw_pose(thick, grids((8, 24, 24), (3.0, 1.0, 1.0), (3.0, 1.0, 1.0)), config, Draws(0))
    size = torch.tensor([3.0, 1.0, 1.0])
    in_mm = size[:, None] * pose.matrix / size
    torch.testing.assert_close(in_mm @ in_mm.T, torch.eye(3))
    assert not torch.allclose(in_mm, torch.eye(3))


def test_elastic_displacements_rarely_fold(label_map):
    """The deviation is at most a quarter of the distance of the nodes: steps between voxels stay positive."""
    config = SynthesisConfig.exact(elastic_mm=100.0, elastic_node_mm=(8.0, 8.0))
    moved = draw_pose(label_map, grids((40, 40, 40)), config, Draws(0)).displacement
    assert 0.5 < float(moved.std()) < 3
    assert float((1 + moved[0].diff(dim=0) > 0).float().mean()) > 0.97


def test_centres_lie_in_the_brain(label_map):
    """With a share of 1 and no shift, the middle of a small patch is a brain voxel."""
    pose = draw_pose(label_map, grids((5, 5, 5)), SynthesisConfig.exact(), Draws(3))
    middle = int(pose.sample(label_map.indices)[2, 2, 2])
    assert bool(FREESURFER.in_brain[middle])


def test_a_patch_larger_than_the_map_lies_about_its_middle(label_map):
    """All of the map is in the patch."""
    pose = draw_pose(label_map, grids((60, 60, 60)), SynthesisConfig.exact(), Draws(0))
    assert int((pose.sample(label_map.indices) > 0).sum()) == int((label_map.indices > 0).sum())


def test_the_field_of_view_ends_below_the_brain(label_map):
    """All brain voxels are in view, and planes lower than the distance are not."""
    config = SynthesisConfig.exact(neck_probability=1.0, neck_mm=(2.0, 2.0))
    pose = draw_pose(label_map, grids((50, 50, 50)), config, Draws(0))
    view = draw_view(label_map, pose, config, Draws(0))
    brain = FREESURFER.in_brain[pose.sample(label_map.indices).int()]
    assert bool(view[brain].all())
    first = int(view[:, 0, 0].int().argmax())
    assert first == int(brain.any(2).any(1).int().argmax()) - 2


def test_a_patch_in_the_neck_keeps_its_view(label_map):
    """A patch whose centre lies below the field of view would be empty."""
    config = SynthesisConfig.exact(neck_probability=1.0, neck_mm=(0.0, 0.0))
    pose = draw_pose(label_map, grids((8, 8, 8)), config, Draws(0), position=(0, 20, 20))
    assert draw_view(label_map, pose, config, Draws(0)) is None


def test_a_slab_of_the_field_of_view(label_map):
    """Half of one axis is in view, in one piece."""
    config = SynthesisConfig.exact(view_probability=1.0, view_share=(0.5, 0.5))
    pose = draw_pose(label_map, grids((20, 20, 20)), config, Draws(0))
    for seed in range(5):
        view = draw_view(label_map, pose, config, Draws(seed))
        assert int(view.sum()) == 20**3 // 2
        along = [view.flatten(1).all(1), view.transpose(0, 1).flatten(1).all(1), view.flatten(0, 1).all(0)]
        edges = [int(planes.int().diff().abs().sum()) for planes in along if planes.any() and not planes.all()]
        assert len(edges) == 1
        assert edges[0] <= 2


def test_a_slab_of_a_thin_patch_lies_along_its_short_axis(label_map):
    config = SynthesisConfig.exact(view_probability=1.0, view_share=(0.5, 0.5))
    pose = draw_pose(label_map, grids((20, 8, 20)), config, Draws(0))
    for seed in range(5):
        planes = draw_view(label_map, pose, config, Draws(seed))[3, :, 5]
        assert planes.sum() == 4


def test_a_slab_that_was_resampled_ends_within_a_voxel(label_map):
    """Only the first and the last plane are partial."""
    config = SynthesisConfig.exact(view_probability=1.0, view_share=(0.5, 0.5), partial_edge_probability=1.0)
    pose = draw_pose(label_map, grids((20, 8, 20)), config, Draws(0))
    planes = draw_view(label_map, pose, config, Draws(0))[3, :, 5]
    inside = planes.nonzero().flatten().tolist()
    assert len(inside) == 4
    assert planes[inside[1:-1]].tolist() == [1, 1]
    assert ((planes[[inside[0], inside[-1]]] > 0) & (planes[[inside[0], inside[-1]]] < 1)).all()


def test_mirror_images_reverse_x(label_map):
    """The matrix of a mirrored pose has a negative determinant."""
    config = SynthesisConfig.exact(flip_probability=1.0, rotation_degrees=15.0)
    pose = draw_pose(label_map, grids(), config, Draws(0))
    assert pose.mirrored
    assert math.isclose(float(torch.linalg.det(pose.matrix)), -1, rel_tol=1e-5)
