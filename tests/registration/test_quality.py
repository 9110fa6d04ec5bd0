"""Maps of quality say what a brute-force look at the same places says."""

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
    values = np.random.default_rng(seed).random(shape)
    return from_array(ndimage.gaussian_filter(values, 1), affine=oblique_affine()[:, [2, 1, 0, 3]])


def test_jacobian_of_a_matrix_is_its_determinant():
    """Everywhere, and of two in a row their product."""
    a, b = oblique_affine(spacing=(1.1, 0.9, 1.3)), oblique_affine((1, 2, 3), (2, 1, 1))
    found = quality.jacobian(Transform([Affine(a), Affine(b)]), noise())
    np.testing.assert_allclose(found.values, np.linalg.det(a) * np.linalg.det(b), rtol=1e-5)
    assert found.mrh.grid.same_as(noise().mrh.grid)
    assert found.chunks is not None


def test_jacobian_tells_swelling_from_folding():
    """A field that stretches by half along X has 1.5; one that turns X around is negative."""
    like = from_array(np.zeros((6, 6, 6)), spacing=(1, 1, 1))
    x = np.arange(6.0)[None, None, :] + np.zeros((6, 6, 6))
    for slope in (0.5, -1.5):
        field = np.stack([slope * x, 0 * x, 0 * x])
        found = quality.jacobian(Transform([Displacement(field, like.mrh.grid.affine)]), like).values
        np.testing.assert_allclose(found[1:-1, 1:-1, 1:-1], 1 + slope, atol=1e-5)


def test_local_correlation_is_that_of_each_cube():
    """By np.corrcoef in cubes around some voxels; the same in blocks."""
    a, b = noise(0), noise(1)
    found = quality.local_correlation(a, a + b, radius=2).values
    for z, y, x in ((5, 5, 5), (7, 9, 10), (11, 2, 13)):
        cubes = [v.values[z - 2 : z + 3, y - 2 : y + 3, x - 2 : x + 3].ravel() for v in (a, a + b)]
        assert found[z, y, x] == pytest.approx(np.corrcoef(*cubes)[0, 1] ** 2, abs=1e-4)
    flat = a.copy(data=np.ones(a.shape))
    assert (quality.local_correlation(a, flat).values == 0).all()


def test_local_information_is_that_of_each_cube():
    """By counting the pairs of levels in a cube; high where contrasts follow each other, even bent."""
    a, b = noise(0), noise(1)
    found = quality.local_information(a, b, radius=3).values
    edges = [np.quantile(v.values, np.linspace(0, 1, 9)[1:-1]) for v in (a, b)]
    z, y, x = 6, 7, 8
    cube = [
        np.digitize(v.values, e)[z - 3 : z + 4, y - 3 : y + 4, x - 3 : x + 4].ravel()
        for v, e in zip((a, b), edges, strict=True)
    ]
    joint = np.histogram2d(*cube, bins=8, range=((-0.5, 7.5),) * 2)[0] / cube[0].size
    outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    held = joint > 0
    assert found[z, y, x] == pytest.approx((joint[held] * np.log2(joint[held] / outer[held])).sum(), abs=1e-4)
    assert quality.local_information(a, (a - 0.5) ** 3, radius=3).values.mean() > 2 * found.mean()


def test_landmarks_are_compared_in_millimetres():
    """Pairs that the transform explains are 0 apart; unequal lists are refused."""
    turn = oblique_affine()
    points = np.random.default_rng(0).normal(size=(7, 3))
    there = points @ turn[:3, :3].T + turn[:3, 3]
    there[2] += (0, 0, 2)
    found = quality.landmark_errors(Transform([Affine(turn)]), points, there)
    np.testing.assert_allclose(found, [0, 0, 2, 0, 0, 0, 0], atol=1e-12)
    with pytest.raises(GridError, match=r"\(7, 3\) and \(6, 3\)"):
        quality.landmark_errors(Transform(), points, there[:6])


def test_patches_are_drawn_where_the_registration_holds():
    """A validity mask is weights for patches: none lies where the moving volume does not reach or does not fit."""
    fixed = noise()
    moving = fixed.isel(x=slice(0, 10)).copy(deep=True)
    moving.values[:, :5] = noise(5).values[:, :5, :10]
    valid = quality.validity(Transform(), fixed, moving, least=0.9, radius=1)
    assert valid.attrs["kind"] == "mask"
    assert valid.values[:, :, 10:].sum() == 0
    assert valid.values[:, 1:4, :].mean() < 0.3
    assert valid.values[:, 7:, :8].mean() == 1
    drawn = mrhdata.patches(fixed.astype(np.float32), shape=1, at=Weighted(200, valid), seed=0)
    assert valid.values[tuple(drawn.positions.T)].all()


def test_folds_are_not_valid():
    """Where space is turned inside out there is nothing to trust."""
    like = from_array(np.zeros((6, 6, 6)), spacing=(1, 1, 1))
    x = np.arange(6.0)[None, None, :] + np.zeros((6, 6, 6))
    folded = Transform([Displacement(np.stack([5 - 2 * x, 0 * x, 0 * x]), like.mrh.grid.affine)])
    assert quality.validity(folded, like, like).values[1:-1, 1:-1, 1:-1].sum() == 0


def test_local_scores_are_checked():
    """One grid, three axes, a radius and some contrast."""
    a = noise()
    with pytest.raises(GridError, match="radius"):
        quality.local_correlation(a, a, radius=0)
    with pytest.raises(GridError, match="shapes differ"):
        quality.local_correlation(a, a.isel(x=slice(5)))
    with pytest.raises(GridError, match="isel"):
        quality.local_correlation(a.expand_dims("c"), a)
    with pytest.raises(DataError, match="no contrast"):
        quality.local_information(a, a * 0)
