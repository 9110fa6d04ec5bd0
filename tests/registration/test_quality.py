"""Quality maps of a registration agree with brute-force calculations."""

import numpy as np
import pytest
from scipy import ndimage

import mrhdata
from mrhdata.errors import DataError, GridError
from mrhdata.patching.samplers import Weighted
from mrhdata.registration import quality
from mrhdata.registration.transforms import Affine, Displacement, Transform
from mrhdata.volume.construct import from_array
from tests.conftest import oblique_affine


def noise(seed=0, shape=(14, 15, 16)):
    """Return smooth noise on an oblique grid."""
    values = np.random.default_rng(seed).random(shape)
    return from_array(ndimage.gaussian_filter(values, 1), affine=oblique_affine()[:, [2, 1, 0, 3]])


def test_jacobian_of_matrices_is_the_product_of_determinants():
    """The Jacobian is lazy, on the same grid, and equal in all voxels."""
    a, b = oblique_affine(spacing=(1.1, 0.9, 1.3)), oblique_affine((1, 2, 3), (2, 1, 1))
    change = quality.jacobian(Transform([Affine(a), Affine(b)]), noise())
    np.testing.assert_allclose(change.values, np.linalg.det(a) * np.linalg.det(b), rtol=1e-5)
    assert change.mrh.grid.same_as(noise().mrh.grid)
    assert change.chunks is not None


def test_jacobian_of_stretching_and_folding_fields():
    """A field that stretches X by half has a Jacobian of 1.5; a field that reverses X has a negative one."""
    like = from_array(np.zeros((6, 6, 6)), spacing=(1, 1, 1))
    x = np.arange(6.0)[None, None, :] + np.zeros((6, 6, 6))
    for slope in (0.5, -1.5):
        field = np.stack([slope * x, 0 * x, 0 * x])
        change = quality.jacobian(Transform([Displacement(field, like.mrh.grid.affine)]), like).values
        np.testing.assert_allclose(change[1:-1, 1:-1, 1:-1], 1 + slope, atol=1e-5)


def test_local_correlation_matches_corrcoef_of_each_cube():
    """Values agree with np.corrcoef in cubes around three voxels, and are 0 for a constant volume."""
    a, b = noise(0), noise(1)
    correlation = quality.local_correlation(a, a + b, radius=2).values
    for z, y, x in ((5, 5, 5), (7, 9, 10), (11, 2, 13)):
        cubes = [v.values[z - 2 : z + 3, y - 2 : y + 3, x - 2 : x + 3].ravel() for v in (a, a + b)]
        assert correlation[z, y, x] == pytest.approx(np.corrcoef(*cubes)[0, 1] ** 2, abs=1e-4)
    constant = a.copy(data=np.ones(a.shape))
    assert (quality.local_correlation(a, constant).values == 0).all()


def test_local_information_matches_the_histogram_of_a_cube():
    """A value agrees with the joint histogram of its cube; values are high for a nonlinear function of the volume."""
    a, b = noise(0), noise(1)
    information = quality.local_information(a, b, radius=3).values
    edges = [np.quantile(v.values, np.linspace(0, 1, 9)[1:-1]) for v in (a, b)]
    z, y, x = 6, 7, 8
    cube = [
        np.digitize(v.values, e)[z - 3 : z + 4, y - 3 : y + 4, x - 3 : x + 4].ravel()
        for v, e in zip((a, b), edges, strict=True)
    ]
    joint = np.histogram2d(*cube, bins=8, range=((-0.5, 7.5),) * 2)[0] / cube[0].size
    outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    p, ratio = joint[joint > 0], joint[joint > 0] / outer[joint > 0]
    assert information[z, y, x] == pytest.approx((p * np.log2(ratio)).sum(), abs=1e-4)
    assert quality.local_information(a, (a - 0.5) ** 3, radius=3).values.mean() > 2 * information.mean()


def test_landmark_errors_are_distances_in_millimetres():
    """Matching landmarks have an error of 0, one moved by 2 mm has 2; lists of different length are refused."""
    turn = oblique_affine()
    points = np.random.default_rng(0).normal(size=(7, 3))
    targets = points @ turn[:3, :3].T + turn[:3, 3]
    targets[2] += (0, 0, 2)
    errors = quality.landmark_errors(Transform([Affine(turn)]), points, targets)
    np.testing.assert_allclose(errors, [0, 0, 2, 0, 0, 0, 0], atol=1e-12)
    with pytest.raises(GridError, match=r"\(7, 3\) and \(6, 3\)"):
        quality.landmark_errors(Transform(), points, targets[:6])


def test_patches_are_drawn_only_in_the_validity_mask():
    """With a validity mask as weights, no patch lies outside the moving volume or in a region that does not match."""
    fixed = noise()
    moving = fixed.isel(x=slice(0, 10)).copy(deep=True)
    moving.values[:, :5] = noise(5).values[:, :5, :10]
    valid = quality.validity(Transform(), fixed, moving, least=0.9, radius=1)
    assert valid.attrs["kind"] == "mask"
    assert valid.values[:, :, 10:].sum() == 0
    assert valid.values[:, 1:4, :].mean() < 0.3
    assert valid.values[:, 7:, :8].mean() == 1
    drawn = mrhdata.patches(fixed.astype(np.float32), shape=1, sampler=Weighted(200, valid), seed=0)
    assert valid.values[tuple(drawn.positions.T)].all()


def test_folds_are_not_valid():
    """No voxel of a folded transform is valid."""
    like = from_array(np.zeros((6, 6, 6)), spacing=(1, 1, 1))
    x = np.arange(6.0)[None, None, :] + np.zeros((6, 6, 6))
    folded = Transform([Displacement(np.stack([5 - 2 * x, 0 * x, 0 * x]), like.mrh.grid.affine)])
    assert quality.validity(folded, like, like).values[1:-1, 1:-1, 1:-1].sum() == 0


def test_local_scores_refuse_invalid_arguments():
    """A radius of 0, different grids, several channels and a constant volume are refused."""
    a = noise()
    with pytest.raises(GridError, match="radius"):
        quality.local_correlation(a, a, radius=0)
    with pytest.raises(GridError, match="shapes differ"):
        quality.local_correlation(a, a.isel(x=slice(5)))
    with pytest.raises(GridError, match="isel"):
        quality.local_correlation(a.expand_dims("c"), a)
    with pytest.raises(DataError, match="no contrast"):
        quality.local_information(a, a * 0)
