"""Parts of volumes by world points lie where they are asked for, whatever the axes of the volume."""

import itertools

import numpy as np
import pytest

import mrhdata
from mrhdata.errors import GridError, ParameterError
from mrhdata.volume.construct import from_array
from tests.conftest import command as run
from tests.conftest import oblique_affine

SHAPE = (9, 10, 11)
FLIPS = list(itertools.product((1, -1), repeat=3))


def volume_of(affine, shape=SHAPE):
    """A volume whose values are the world X of its voxels."""
    volume = from_array(np.zeros(shape, np.float32), affine=affine)
    return volume.copy(data=volume.mrh.world(np.moveaxis(np.indices(volume.shape), 0, -1))[..., 0].astype(np.float32))


def signed(flips):
    """An affine along the world axes with some of them reversed, in the order of a file: x, y, z."""
    affine = np.diag([0.5 * flips[0], 1.0 * flips[1], 2.0 * flips[2], 1.0])
    affine[:3, 3] = 3, -4, 5
    return affine


@pytest.mark.parametrize("flips", FLIPS)
def test_a_world_coordinate_selects_its_plane(flips):
    """Also of reversed axes; the plane keeps its geometry."""
    volume = volume_of(signed(flips), (11, 10, 9))
    low, high = sorted(volume.mrh.grid.corners()[[0, -1], 0])
    plane = volume.mrh.sel(X=low + 1.1)
    assert plane.dims == ("z", "y")
    assert np.allclose(plane, low + 1.0)
    voxel = volume.mrh.sel(X=high, Y=volume.mrh.world([4, 3, 2])[1], Z=volume.mrh.world([4, 3, 2])[2])
    assert float(voxel) == np.float32(high)
    # Half a voxel beyond the outermost centres still belongs to the volume.
    assert np.allclose(volume.mrh.sel(X=low - 0.24), low)
    with pytest.raises(GridError, match=r"must lie in the volume, X .* got X .* Pass a point inside"):
        volume.mrh.sel(X=low - 0.26)


def test_a_point_selects_the_nearest_voxel_of_an_oblique_volume():
    """A single coordinate does not, because its plane crosses planes of voxels."""
    volume = volume_of(oblique_affine())
    for index in ((0, 0, 0), (4, 7, 3)):
        x, y, z = volume.mrh.world(index)
        assert float(volume.mrh.sel(X=x, Y=y, Z=z)) == float(volume[index])
    with pytest.raises(GridError, match=r"X must be passed with the two other world axes, because .* oblique"):
        volume.mrh.sel(X=0)


@pytest.mark.parametrize("affine", [*map(signed, FLIPS), oblique_affine()])
def test_a_box_contains_all_voxels_within_the_ranges(affine):
    """And no further plane at its faces, if the volume lies along the world axes; voxels keep their place and value."""
    volume = volume_of(affine)
    points = volume.mrh.world(np.moveaxis(np.indices(volume.shape), 0, -1))
    middle, width = points.reshape(-1, 3).mean(0), 0.4 * np.ptp(points.reshape(-1, 3), axis=0)
    ranges = {axis: (m - w / 2, m + w / 2) for axis, m, w in zip("XYZ", middle, width, strict=True)}
    part = volume.mrh.crop(**ranges)
    inside = (np.abs(points - middle) <= width / 2).all(-1)
    box = part.mrh.world(np.moveaxis(np.indices(part.shape), 0, -1))
    assert (np.abs(box - middle) <= width / 2).all(-1).sum() == inside.sum() > 0
    assert np.allclose(part, box[..., 0], atol=1e-5)
    if not np.allclose(affine, oblique_affine()):
        assert part.size == inside.sum()


def test_a_range_may_reach_beyond_the_volume_and_must_meet_it():
    """Ranges are those of voxel centres."""
    volume = volume_of(signed((1, 1, 1)))
    assert volume.mrh.crop(X=(-1e9, 1e9)).shape == volume.shape
    for ranges in ({"X": (3.1, 3.2)}, {"X": (100, 200)}):
        with pytest.raises(GridError, match=r"ranges must contain voxels of the volume, X 3 to .* Pass others"):
            volume.mrh.crop(**ranges)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: v.mrh.crop(), "world axes must be some of X .* got none"),
        (lambda v: v.mrh.crop(x=(0, 1)), r"got \['x'\]"),
        (lambda v: v.mrh.crop(X=(1, 0)), r"X must be a range \(low, high\) in mm; got \(1, 0\)"),
        (lambda v: v.mrh.crop(X=slice(0, 1)), "X must be a range"),
        (lambda v: v.mrh.crop(X=(0, float("nan"))), "X must be a range"),
        (lambda v: v.mrh.sel(), "got none"),
        (lambda v: v.mrh.sel(X="left"), "X must be a number in mm; got 'left'"),
        (lambda v: v.mrh.sel(X=slice(0, 1)), r"For a range use \.mrh\.crop"),
        (lambda v: mrhdata.volume.selection.crop_to(v, v, margin_mm=-1), "margin_mm must be 0 or more; got -1"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    """With the value and the remedy."""
    with pytest.raises(ParameterError, match=message):
        call(volume_of(signed((1, 1, 1))))


def test_a_box_about_a_mask_of_another_grid_and_of_several_times():
    """The mask is read in parts, and its box has a margin in mm."""
    volume = volume_of(signed((1, -1, 1)), (40, 20, 20))
    mask = volume.isel(z=slice(5, 9)).expand_dims(t=2).chunk(5) * 0 + (volume.x == volume.x[12])
    part = mrhdata.volume.selection.crop_to(volume, mask, margin_mm=1)
    assert np.ptp(part.mrh.grid.corners()[:, 0]) == pytest.approx(2)
    assert np.median(part) == pytest.approx(mask.mrh.world([0, 0, 12])[0])
    with pytest.raises(GridError, match="must have a voxel other than 0; got none"):
        mrhdata.volume.selection.crop_to(volume, mask * 0)
    with pytest.raises(GridError, match="must be in one space; got 'scanner' and 'CCFv3'"):
        mrhdata.volume.selection.crop_to(volume, mrhdata.volume.describe(mask, space="CCFv3"))
    with pytest.raises(GridError, match="the mask must lie in the volume"):
        mrhdata.volume.selection.crop_to(volume.isel(x=slice(0, 5)), mask)


def test_the_command_crops_and_keeps_the_place(tmp_path):
    """By ranges, about a mask, and both."""
    volume = volume_of(signed((1, 1, 1)))
    mrhdata.write(volume, tmp_path / "v.nii.gz")
    mask = volume.copy(data=(volume.values == 4.0).astype(np.uint8))
    mrhdata.write(mask, tmp_path / "mask.nii.gz")
    words = ("crop", tmp_path / "v.nii.gz", "--overwrite", "-o", tmp_path / "part.nii.gz")
    for options, values in ((("--X", "3.4,4.1"), {3.5, 4.0}), (("--around", tmp_path / "mask.nii.gz"), {4.0})):
        code, _, error = run(*words, *options)
        assert (code, error) == (0, "")
        part = mrhdata.read(tmp_path / "part.nii.gz")
        assert set(np.unique(part)) == values
        assert np.allclose(part.isel(z=0, y=0), part.mrh.world([[0, 0, i] for i in range(part.sizes["x"])])[:, 0])
    for options, sentence in (
        ((), "crop needs --X, --Y, --Z or --around; got none"),
        (("--X", "3"), "--X must be two numbers with a comma, the lower one first, such as -10,10; got '3'"),
        (("--X", "9,3"), "the lower one first"),
        (("--X", "-900,-800"), "ranges must contain voxels of the volume"),
    ):
        code, _, error = run(*words, *options)
        assert code == 2
        assert sentence in error
