"""Voxels land where the world says, block by block, and labels stay labels."""

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
    """A smooth oblique volume, about 3 mm wide, around the origin."""
    values = ndimage.gaussian_filter(RNG.random(shape), 1).astype(np.float32)
    return from_array(values, affine=oblique_affine(spacing=(0.1, 0.1, 0.12), origin=(-1.5, -1, -2)), **kwargs)


def goal(shape=(13, 17, 15), spacing=(0.15, 0.12, 0.13)):
    """Another oblique grid, reversed along y, that reaches over the edge."""
    return Grid(shape, oblique_affine((30, 5, -12), spacing, (1, -1, 1), origin=(-1.2, 0.5, -1))[:, [2, 1, 0, 3]])


@pytest.mark.parametrize("order", [0, 1, 3])
def test_resampling_is_itks(both, order):
    """ITK's resampler through the same transform, all orders, within the volume."""
    volume, grid = noise(), goal()
    ours = mrhdata.resample(volume, grid, both, order=order, antialias=False).values
    kernel = {0: sitk.sitkNearestNeighbor, 1: sitk.sitkLinear, 3: sitk.sitkBSpline3}[order]
    resampled = sitk.Resample(
        itk.image(volume.values, volume.mrh.grid),
        itk.image(np.zeros(grid.shape, np.float32), grid),
        itk.to_itk(both),
        kernel,
        -1.0,
    )
    theirs = sitk.GetArrayFromImage(resampled)
    inside = ndimage.binary_erosion(theirs != -1)
    assert inside.mean() > 0.1
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-5)
    assert (ours[ndimage.binary_dilation(theirs != -1) == 0] == 0).all()


@pytest.mark.parametrize("kind", ["image", "labels"])
@pytest.mark.parametrize("order", [1, 3])
def test_blocks_fit_together(both, kind, order):
    """Blocks of any size from chunks of any size give what one block from one chunk gives."""
    volume = noise(kind=kind)
    volume = (volume * 1000).astype(np.int16).assign_attrs(volume.attrs) if kind == "labels" else volume
    whole = mrhdata.resample(volume, goal(), both, chunks=200, order=order).values
    parts = mrhdata.resample(volume.chunk(z=7, y=9, x=5), goal(), both, chunks=(5, 4, 6), order=order)
    assert parts.data.numblocks == (3, 5, 3)
    np.testing.assert_allclose(parts.values, whole, atol=0 if kind == "labels" else 1e-6)


def test_a_block_reads_the_chunks_that_it_needs():
    """One voxel of the result decodes one or a few of the 1000 chunks, and nothing is read before."""
    read = []

    def chunk(block_info=None):
        read.append(block_info[None]["chunk-location"])
        return np.zeros((10, 10, 10), np.float32)

    data = da.map_blocks(chunk, chunks=((10,) * 10,) * 3, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    volume = from_array(data, spacing=(1, 1, 1))
    turned = Transform([Affine(np.diag([1, 1, 1, 1.0]) + np.pad([[0.0] * 3, [0.0] * 3, [0.0] * 3], ((0, 1), (0, 1))))])
    result = mrhdata.resample(volume, volume, turned, chunks=20)
    assert read == []
    result.isel(z=slice(40, 41), y=slice(40, 41), x=slice(40, 41)).compute(scheduler="synchronous")
    assert set(read) == {(z, y, x) for z in (3, 4, 5, 6) for y in (3, 4, 5, 6) for x in (3, 4, 5, 6)}


def test_labels_are_never_mixed(both):
    """Every label of the result is one of the source's, also 64-bit ids that no float holds, and bool stays bool."""
    ids = np.array([0, 7, 2**62 + 1, 2**62 + 3], dtype=np.uint64)
    volume = noise()
    labels = volume.copy(data=ids[RNG.integers(0, 4, volume.shape)]).assign_attrs(kind="labels")
    found = mrhdata.resample(labels, goal(), both, order=3)
    assert found.dtype == np.uint64
    assert set(np.unique(found.values)) == set(ids)
    assert mrhdata.resample(volume > 0.5, goal(), both).dtype == bool


def test_nearest_voxels_are_those_of_the_world():
    """Each label is that of the voxel whose centre is nearest, by brute force."""
    volume = noise((6, 7, 5))
    labels = volume.copy(data=np.arange(volume.size).reshape(volume.shape)).assign_attrs(kind="labels")
    grid = goal((5, 6, 7), (0.1, 0.12, 0.08))
    grid = Grid(grid.shape, np.block([[grid.affine[:3, :3], volume.mrh.world([2.2, 3.1, 2.7])[:, None]], [0, 0, 0, 1]]))
    found = mrhdata.resample(labels, grid, fill=-1).values
    centres = volume.mrh.world(np.moveaxis(np.indices(volume.shape), 0, -1).reshape(-1, 3))
    for index in np.ndindex(*grid.shape):
        if found[index] >= 0:
            assert found[index] == np.linalg.norm(centres - grid.world(index), axis=1).argmin()
    assert (found >= 0).mean() > 0.1


def test_a_ramp_is_read_off_exactly():
    """Linear interpolation of a linear image has no error, on an oblique grid, through an oblique affine."""
    volume = noise()
    index = np.moveaxis(np.indices(volume.shape), 0, -1)
    ramp = volume.astype(float).copy(data=volume.mrh.world(index) @ [1, 2, 3])
    turn = oblique_affine((5, 5, 5), (0.9, 1.0, 0.95), origin=(0, 0, 0))
    grid = goal()
    found = mrhdata.resample(ramp, grid, Transform([Affine(turn)]), antialias=False, fill=np.nan).values
    points = grid.world(np.moveaxis(np.indices(grid.shape), 0, -1)) @ turn[:3, :3].T
    inside = ((volume.mrh.index(points) >= 0) & (volume.mrh.index(points) <= np.array(volume.shape) - 1)).all(-1)
    np.testing.assert_allclose(found[inside], (points @ [1, 2, 3])[inside], atol=1e-9)
    assert found.dtype == np.float64


def test_downsampling_does_not_alias():
    """Stripes of two voxels vanish at a quarter of the resolution; without the Gaussian they come out as others."""
    stripes = from_array(np.tile([0.0, 1.0], 64)[None, None, :].repeat(4, 0).repeat(4, 1), spacing=(1, 1, 1))
    clean, aliased = (
        mrhdata.resample(stripes, spacing_mm=(1, 1, 4.1), antialias=flag).values[..., 2:-2] for flag in (True, False)
    )
    assert np.ptp(clean) < 0.05
    assert np.ptp(aliased) > 0.5


def test_the_gaussian_has_the_stated_width():
    """A point at a fourth of the resolution is as wide as the formula says, along the coarse axis alone."""
    weights, squares = 0.0, 0.0
    for place in range(40, 44):  # every place of the point in a coarse voxel
        point = np.zeros((1, 9, 80))
        point[0, 4, place] = 1
        coarse = mrhdata.resample(from_array(point, spacing=(1, 1, 1)), spacing_mm=(1, 1, 4)).values[0]
        assert (coarse[[0, 1, 2, 3, 5, 6, 7, 8]] == 0).all()
        away = 1.5 + 4 * np.arange(20) - place
        weights, squares = weights + coarse[4].sum(), squares + (coarse[4] * away**2).sum()
    # Coarse centres lie between two voxels, where linear interpolation adds a variance of a quarter.
    assert squares / weights == pytest.approx((16 - 1) / (8 * np.log(2)) + 0.25, rel=0.02)


def test_channels_time_and_attrs_are_kept():
    """All of t and c, their names, the values' units and the volume's own name."""
    data = RNG.random((2, 3, 4, 5, 6)).astype(np.float32)
    volume = from_array(data, affine=oblique_affine(), dims=("t", "c", "x", "y", "z"), name="dwi", units="ppm")
    volume = volume.assign_coords(c=["a", "b", "d"]).chunk(c=2)
    same = mrhdata.resample(volume, volume)
    assert same.dims == volume.dims
    assert (same.name, same.attrs["units"], same.c.values.tolist()) == ("dwi", "ppm", ["a", "b", "d"])
    np.testing.assert_allclose(same.values, volume.values, atol=1e-6)
    np.testing.assert_array_equal(same.mrh.like(volume).values, same.values)


def test_missing_values_stay_missing_and_do_not_spread():
    """A NaN takes the voxels that it has a part in, with cubic splines too, and none beyond."""
    volume = noise()
    volume = volume.where((volume.z != volume.z[10]) | (volume.y != volume.y[10]))
    for order in (1, 3):
        same = mrhdata.resample(volume, volume, order=order).values
        np.testing.assert_array_equal(np.isnan(same), np.isnan(volume.values))
    halved = mrhdata.resample(volume, spacing_mm=2 * volume.mrh.spacing).values
    assert np.isnan(halved).mean() < 2 * np.isnan(volume.values).mean()


def test_complex_volumes_are_interpolated_in_both_parts():
    """QSM's raw data."""
    volume = noise()
    whole = mrhdata.resample(volume + 1j * volume[::-1].values, goal())
    np.testing.assert_allclose(whole.values.real, mrhdata.resample(volume, goal()).values, atol=1e-6)
    assert np.abs(whole.values.imag).max() > 0


@pytest.mark.parametrize("order", [0, 1, 3])
def test_a_plane_and_a_single_voxel_can_be_resampled(order):
    """Axes of one voxel hold half a voxel either way."""
    plane = from_array(np.arange(12.0).reshape(3, 4), spacing=(1, 1))
    np.testing.assert_allclose(mrhdata.resample(plane, plane, order=order).values[0], plane.values, atol=1e-6)
    one = from_array(np.full((1, 1, 1), 5.0), spacing=(1, 1, 1))
    found = mrhdata.resample(one, Grid((1, 1, 3), one.mrh.grid.affine), order=order)
    np.testing.assert_allclose(found.values.ravel(), [5, 0, 0], rtol=1e-12)


def test_without_overlap_the_result_is_fill_and_nothing_is_read():
    """A block that lies outside depends on no chunk."""

    def unreadable(block):
        raise AssertionError("a chunk was read")

    volume = noise()
    data = da.from_array(volume.values).map_blocks(unreadable, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    away = Grid((4, 4, 4), np.diag([1, 1, 1, 1.0]) + np.pad(np.full((3, 1), 500.0), ((0, 1), (3, 0))))
    assert (mrhdata.resample(volume.copy(data=data), away, fill=-7).values == -7).all()


def test_spaces_and_arguments_are_checked():
    """Both values and the remedy stand in the message."""
    volume = noise()
    other = describe(volume, space="CCFv3")
    with pytest.raises(GridError, match="spaces differ: 'scanner' and 'CCFv3'"):
        mrhdata.resample(volume, other)
    there = Transform([Affine(np.eye(4))], "CCFv3", "scanner")
    assert mrhdata.resample(volume, other, there).mrh.space == "CCFv3"
    with pytest.raises(GridError, match="leads to 'scanner' and the volume lies in 'CCFv3'"):
        mrhdata.resample(other, volume, there)
    with pytest.raises(GridError, match="starts from 'CCFv3' and like lies in 'scanner'"):
        mrhdata.resample(volume, volume, there)
    with pytest.raises(GridError, match="not both or neither"):
        mrhdata.resample(volume)
    with pytest.raises(GridError, match="not 2"):
        mrhdata.resample(volume, volume, order=2)
    with pytest.raises(GridError, match="positive"):
        mrhdata.resample(volume, spacing_mm=0)
    with pytest.raises(DataError, match="fill=nan"):
        mrhdata.resample((volume > 0.5).astype(np.uint8).assign_attrs(kind="mask"), volume, fill=np.nan)
