"""Simulated misregistration has the requested size and plane, is smooth, and keeps the geometry."""

import numpy as np
import pytest
from scipy.stats import kstest, rayleigh

from mrhdata.errors import DataError, GridError
from mrhdata.registration.simulate import displace, displacement
from mrhdata.volume.construct import from_array
from tests.conftest import oblique_affine


@pytest.fixture
def volume():
    """Return an oblique, anisotropic volume with 0.1 mm in the coronal plane."""
    values = np.random.default_rng(0).random((40, 12, 50)).astype(np.float32)
    affine = oblique_affine(spacing=(0.1, 0.2, 0.1))[:, [2, 1, 0, 3]]
    return from_array(values, affine=affine, name="af", modality="histology")


def test_lengths_follow_the_rayleigh_distribution(volume):
    """Lengths in the plane at nearly independent points follow the distribution; other components are 0."""
    field = displacement(volume, 0.7, seed=1)
    assert not field[1].any()
    lengths = np.hypot(field[0], field[2])[::13, :, ::13].ravel()
    assert kstest(lengths, rayleigh(scale=0.7).cdf).pvalue > 0.01
    assert kstest(lengths, rayleigh(scale=0.9).cdf).pvalue < 0.01
    assert np.sqrt((field**2).sum(axis=0).mean()) == pytest.approx(0.7 * np.sqrt(2), rel=1e-6)


def test_fields_are_smooth_within_planes(volume):
    """Displacements of neighbours in a plane correlate; those two grid steps apart or in other planes do not."""
    z = displacement(volume, 1.0, seed=2)[0]

    def correlation(a, b):
        return np.corrcoef(a.ravel(), b.ravel())[0, 1]

    assert correlation(z[:, :, :-1], z[:, :, 1:]) > 0.95
    assert abs(correlation(z[:, :, :-20], z[:, :, 20:])) < 0.3
    assert abs(correlation(z[:, :-1], z[:, 1:])) < 0.3
    coarse = displacement(volume, 1.0, seed=2, grid_mm=2.0)[0]
    assert correlation(coarse[:, :, :-5], coarse[:, :, 5:]) > correlation(z[:, :, :-5], z[:, :, 5:])


def test_displacement_without_a_plane_moves_all_axes(volume):
    """With plane=None, all components have the same size, and neighbours along y correlate."""
    field = displacement(volume, 0.5, seed=3, plane=None)
    assert np.sqrt((field**2).mean(axis=(1, 2, 3))).tolist() == pytest.approx([0.5] * 3)
    assert np.corrcoef(field[1][:, :-1].ravel(), field[1][:, 1:].ravel())[0, 1] > 0.8


def test_the_same_seed_gives_the_same_field(volume):
    """Another seed gives another field, and a size of 0 leaves the volume unchanged."""
    assert np.array_equal(displacement(volume, 1.0, seed=4), displacement(volume, 1.0, seed=4))
    assert not np.array_equal(displacement(volume, 1.0, seed=4), displacement(volume, 1.0, seed=5))
    assert displace(volume, displacement(volume, 0.0, seed=4)).identical(volume)


def test_displaced_values_come_from_the_points_of_the_field(volume):
    """The change of a displaced ramp equals the field, and the geometry does not change."""
    ramp = volume.copy(data=np.broadcast_to(np.arange(40.0)[:, None, None], volume.shape))
    field = displacement(volume, 1.0, seed=6)
    moved = displace(ramp, field)
    inner = slice(6, -6)
    np.testing.assert_allclose((moved - ramp).values[inner], field[0][inner], atol=1e-9)
    assert moved.attrs == ramp.attrs
    assert moved.mrh.grid.same_as(ramp.mrh.grid)


def test_displaced_keeps_labels_integers_and_channels(volume):
    """Labels use nearest neighbour, all channels move with one field, and integers keep their dtype."""
    field = displacement(volume, 1.0, seed=7)
    labels = (volume > 0.5).astype(np.uint8) * 7
    labels = labels.assign_attrs(volume.attrs | {"kind": "labels"})
    assert set(np.unique(displace(labels, field))) == {0, 7}
    channels = (volume * 1000).astype(np.uint16).assign_attrs(volume.attrs).expand_dims(c=2)
    moved = displace(channels, field)
    assert moved.dtype == np.uint16
    assert moved.dims == ("c", "z", "y", "x")
    assert np.array_equal(moved[0], moved[1])


def test_displacement_refuses_invalid_arguments(volume):
    """An unknown plane, a negative size, a grid finer than the voxels and a field of another shape are refused."""
    with pytest.raises(GridError, match="plane must be one of"):
        displacement(volume, 1.0, seed=0, plane="oblique")
    with pytest.raises(DataError, match="must be 0 or more"):
        displacement(volume, -1.0, seed=0)
    with pytest.raises(DataError, match="Pass a coarser grid"):
        displacement(volume, 1.0, seed=0, grid_mm=0.05)
    with pytest.raises(GridError, match="Draw one on the volume's grid"):
        displace(volume.isel(z=slice(3)), displacement(volume, 1.0, seed=0))
