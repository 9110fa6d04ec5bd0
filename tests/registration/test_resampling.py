"""Resampling follows world coordinates, does not depend on blocks, and keeps labels."""

import dask.array as da
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

import mrhdata
from mrhdata.errors import DataError, GridError
from mrhdata.registration import itk
from mrhdata.registration.transforms import Affine, Transform
from mrhdata.volume.construct import describe, from_array
from mrhdata.volume.grid import Grid
from tests.conftest import oblique_affine

RNG = np.random.default_rng(0)


def noise(shape=(28, 30, 26), **kwargs):
    """Return smooth noise on an oblique grid about 3 mm wide around the origin."""
    values = ndimage.gaussian_filter(RNG.random(shape), 1).astype(np.float32)
    return from_array(values, affine=oblique_affine(spacing=(0.1, 0.1, 0.12), origin=(-1.5, -1, -2)), **kwargs)


def target_grid(shape=(13, 17, 15), spacing=(0.15, 0.12, 0.13)):
    """Return another oblique grid, reversed along y, that extends beyond the volume."""
    return Grid(shape, oblique_affine((30, 5, -12), spacing, (1, -1, 1), origin=(-1.2, 0.5, -1))[:, [2, 1, 0, 3]])


@pytest.mark.parametrize("order", [0, 1, 3])
def test_resampling_matches_itk(displacement_and_affine, order):
    """Inside the volume, values equal those of ITK's resampler through the same transform; outside they are 0."""
    volume, grid = noise(), target_grid()
    values = mrhdata.resample(volume, grid, displacement_and_affine, order=order, antialias=False).values
    kernel = {0: sitk.sitkNearestNeighbor, 1: sitk.sitkLinear, 3: sitk.sitkBSpline3}[order]
    resampled = sitk.Resample(
        itk.image(volume.values, volume.mrh.grid),
        itk.image(np.zeros(grid.shape, np.float32), grid),
        itk.to_itk(displacement_and_affine),
        kernel,
        -1.0,
    )
    expected = sitk.GetArrayFromImage(resampled)
    inside = ndimage.binary_erosion(expected != -1)
    assert inside.mean() > 0.1
    np.testing.assert_allclose(values[inside], expected[inside], atol=1e-5)
    assert (values[ndimage.binary_dilation(expected != -1) == 0] == 0).all()


@pytest.mark.parametrize("kind", ["image", "labels"])
@pytest.mark.parametrize("order", [1, 3])
def test_result_does_not_depend_on_blocks_and_chunks(displacement_and_affine, kind, order):
    """Many blocks from many chunks give the same values as one block from one chunk."""
    volume = noise(kind=kind)
    volume = (volume * 1000).astype(np.int16).assign_attrs(volume.attrs) if kind == "labels" else volume
    whole = mrhdata.resample(volume, target_grid(), displacement_and_affine, chunks=200, order=order).values
    in_blocks = mrhdata.resample(
        volume.chunk(z=7, y=9, x=5), target_grid(), displacement_and_affine, chunks=(5, 4, 6), order=order
    )
    assert in_blocks.data.numblocks == (3, 5, 3)
    np.testing.assert_allclose(in_blocks.values, whole, atol=0 if kind == "labels" else 1e-6)


def test_a_block_reads_only_the_chunks_that_it_needs():
    """One block of the result reads 64 of the 1000 chunks, and nothing is read before it is computed."""
    chunks_read = []

    def read_chunk(block_info=None):
        chunks_read.append(block_info[None]["chunk-location"])
        return np.zeros((10, 10, 10), np.float32)

    data = da.map_blocks(read_chunk, chunks=((10,) * 10,) * 3, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    volume = from_array(data, spacing=(1, 1, 1))
    identity = Transform([Affine(np.eye(4))])
    result = mrhdata.resample(volume, volume, identity, chunks=20)
    assert chunks_read == []
    result.isel(z=slice(40, 41), y=slice(40, 41), x=slice(40, 41)).compute(scheduler="synchronous")
    assert set(chunks_read) == {(z, y, x) for z in (3, 4, 5, 6) for y in (3, 4, 5, 6) for x in (3, 4, 5, 6)}


def test_labels_are_never_mixed(displacement_and_affine):
    """The result has only labels of the source, also 64-bit ids that a float cannot represent, and bool stays bool."""
    ids = np.array([0, 7, 2**62 + 1, 2**62 + 3], dtype=np.uint64)
    volume = noise()
    labels = volume.copy(data=ids[RNG.integers(0, 4, volume.shape)]).assign_attrs(kind="labels")
    resampled = mrhdata.resample(labels, target_grid(), displacement_and_affine, order=3)
    assert resampled.dtype == np.uint64
    assert set(np.unique(resampled.values)) == set(ids)
    assert mrhdata.resample(volume > 0.5, target_grid(), displacement_and_affine).dtype == bool


def test_nearest_neighbour_matches_brute_force():
    """Each label is that of the voxel with the nearest centre in world space."""
    volume = noise((6, 7, 5))
    labels = volume.copy(data=np.arange(volume.size).reshape(volume.shape)).assign_attrs(kind="labels")
    grid = target_grid((5, 6, 7), (0.1, 0.12, 0.08))
    grid = Grid(grid.shape, np.block([[grid.affine[:3, :3], volume.mrh.world([2.2, 3.1, 2.7])[:, None]], [0, 0, 0, 1]]))
    resampled = mrhdata.resample(labels, grid, fill=-1).values
    centres = volume.mrh.world(np.moveaxis(np.indices(volume.shape), 0, -1).reshape(-1, 3))
    for index in np.ndindex(*grid.shape):
        if resampled[index] >= 0:
            assert resampled[index] == np.linalg.norm(centres - grid.world(index), axis=1).argmin()
    assert (resampled >= 0).mean() > 0.1


def test_linear_interpolation_of_a_ramp_is_exact():
    """Linear interpolation of a linear image has no error, on an oblique grid and through an oblique affine."""
    volume = noise()
    index = np.moveaxis(np.indices(volume.shape), 0, -1)
    ramp = volume.astype(float).copy(data=volume.mrh.world(index) @ [1, 2, 3])
    turn = oblique_affine((5, 5, 5), (0.9, 1.0, 0.95), origin=(0, 0, 0))
    grid = target_grid()
    resampled = mrhdata.resample(ramp, grid, Transform([Affine(turn)]), antialias=False, fill=np.nan).values
    points = grid.world(np.moveaxis(np.indices(grid.shape), 0, -1)) @ turn[:3, :3].T
    inside = ((volume.mrh.index(points) >= 0) & (volume.mrh.index(points) <= np.array(volume.shape) - 1)).all(-1)
    np.testing.assert_allclose(resampled[inside], (points @ [1, 2, 3])[inside], atol=1e-9)
    assert resampled.dtype == np.float64


def test_downsampling_does_not_alias():
    """Stripes with a period of two voxels vanish at a quarter of the resolution; without the Gaussian they alias."""
    stripes = from_array(np.tile([0.0, 1.0], 64)[None, None, :].repeat(4, 0).repeat(4, 1), spacing=(1, 1, 1))
    clean, aliased = (
        mrhdata.resample(stripes, spacing_mm=(1, 1, 4.1), antialias=flag).values[..., 2:-2] for flag in (True, False)
    )
    assert np.ptp(clean) < 0.05
    assert np.ptp(aliased) > 0.5


def test_antialiasing_gaussian_has_the_documented_width():
    """A point at a quarter of the resolution has the variance of the formula, along the coarse axis only."""
    weights, squares = 0.0, 0.0
    for position in range(40, 44):  # all positions of the point in a coarse voxel
        point = np.zeros((1, 9, 80))
        point[0, 4, position] = 1
        coarse = mrhdata.resample(from_array(point, spacing=(1, 1, 1)), spacing_mm=(1, 1, 4)).values[0]
        assert (coarse[[0, 1, 2, 3, 5, 6, 7, 8]] == 0).all()
        distance = 1.5 + 4 * np.arange(20) - position
        weights, squares = weights + coarse[4].sum(), squares + (coarse[4] * distance**2).sum()
    # Coarse centres lie between two voxels, where linear interpolation adds a variance of a quarter.
    assert squares / weights == pytest.approx((16 - 1) / (8 * np.log(2)) + 0.25, rel=0.02)


def test_resample_keeps_channels_time_and_attributes():
    """The axes t and c, the channel names, the units and the name of the volume are kept."""
    data = RNG.random((2, 3, 4, 5, 6)).astype(np.float32)
    volume = from_array(data, affine=oblique_affine(), dims=("t", "c", "x", "y", "z"), name="dwi", units="ppm")
    volume = volume.assign_coords(c=["a", "b", "d"]).chunk(c=2)
    same = mrhdata.resample(volume, volume)
    assert same.dims == volume.dims
    assert (same.name, same.attrs["units"], same.c.values.tolist()) == ("dwi", "ppm", ["a", "b", "d"])
    np.testing.assert_allclose(same.values, volume.values, atol=1e-6)
    np.testing.assert_array_equal(same.mrh.like(volume).values, same.values)


def test_nan_stays_nan_and_does_not_spread():
    """NaN affects only voxels that it contributes to, also with cubic splines and at half the resolution."""
    volume = noise()
    volume = volume.where((volume.z != volume.z[10]) | (volume.y != volume.y[10]))
    for order in (1, 3):
        same = mrhdata.resample(volume, volume, order=order).values
        np.testing.assert_array_equal(np.isnan(same), np.isnan(volume.values))
    halved = mrhdata.resample(volume, spacing_mm=2 * volume.mrh.spacing).values
    assert np.isnan(halved).mean() < 2 * np.isnan(volume.values).mean()


def test_real_and_imaginary_parts_are_interpolated_separately():
    """The real part of a resampled complex volume is the resampled real part, and the imaginary part is not 0."""
    volume = noise()
    resampled = mrhdata.resample(volume + 1j * volume[::-1].values, target_grid())
    np.testing.assert_allclose(resampled.values.real, mrhdata.resample(volume, target_grid()).values, atol=1e-6)
    assert np.abs(resampled.values.imag).max() > 0


@pytest.mark.parametrize("order", [0, 1, 3])
def test_a_plane_and_a_single_voxel_can_be_resampled(order):
    """An axis of one voxel covers half a voxel on either side of its centre."""
    plane = from_array(np.arange(12.0).reshape(3, 4), spacing=(1, 1))
    np.testing.assert_allclose(mrhdata.resample(plane, plane, order=order).values[0], plane.values, atol=1e-6)
    voxel = from_array(np.full((1, 1, 1), 5.0), spacing=(1, 1, 1))
    resampled = mrhdata.resample(voxel, Grid((1, 1, 3), voxel.mrh.grid.affine), order=order)
    np.testing.assert_allclose(resampled.values.ravel(), [5, 0, 0], rtol=1e-12)


def test_blocks_outside_the_volume_are_filled_without_reading():
    """A block outside the volume has the fill value and depends on no chunk."""

    def unreadable(block):
        raise AssertionError("a chunk was read")

    volume = noise()
    data = da.from_array(volume.values).map_blocks(unreadable, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    outside = Grid((4, 4, 4), np.diag([1, 1, 1, 1.0]) + np.pad(np.full((3, 1), 500.0), ((0, 1), (3, 0))))
    assert (mrhdata.resample(volume.copy(data=data), outside, fill=-7).values == -7).all()


def test_resample_refuses_mismatched_spaces_and_invalid_arguments():
    """Messages name both values."""
    volume = noise()
    other = describe(volume, space="CCFv3")
    with pytest.raises(GridError, match="must be in one space; got 'scanner' and 'CCFv3'"):
        mrhdata.resample(volume, other)
    to_scanner = Transform([Affine(np.eye(4))], "CCFv3", "scanner")
    assert mrhdata.resample(volume, other, to_scanner).mrh.space == "CCFv3"
    with pytest.raises(GridError, match="space of the volume, 'CCFv3'; got one to 'scanner'"):
        mrhdata.resample(other, volume, to_scanner)
    with pytest.raises(GridError, match="space of like, 'scanner'; got one from 'CCFv3'"):
        mrhdata.resample(volume, volume, to_scanner)
    with pytest.raises(GridError, match="not both or neither"):
        mrhdata.resample(volume)
    with pytest.raises(GridError, match="got 2"):
        mrhdata.resample(volume, volume, order=2)
    with pytest.raises(GridError, match="positive"):
        mrhdata.resample(volume, spacing_mm=0)
    with pytest.raises(DataError, match="fill=nan"):
        mrhdata.resample((volume > 0.5).astype(np.uint8).assign_attrs(kind="mask"), volume, fill=np.nan)
