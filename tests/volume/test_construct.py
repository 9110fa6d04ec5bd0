"""Construction of volumes, and their geometry after operations of xarray."""

import pickle

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import mrhdata
from mrhdata.errors import GridError, ParameterError
from mrhdata.volume.construct import describe, from_array
from mrhdata.volume.groups import group, stack
from tests.conftest import FULL, oblique_affine


def numbered(shape=(5, 6, 7), **geometry):
    """Return a volume in which every voxel has another value."""
    return from_array(np.arange(np.prod(shape)).reshape(shape), **(geometry or {"affine": oblique_affine()}))


def world_by_value(volume):
    """Return a mapping of voxel values to world points, by the volume's geometry."""
    volume = volume.expand_dims([d for d in "zyx" if d not in volume.dims]).transpose("z", "y", "x")
    index = np.stack(np.indices(volume.shape), -1).reshape(-1, 3)
    return dict(zip(volume.values.ravel().tolist(), volume.mrh.world(index), strict=True))


def test_affine_reorders_axes_to_z_y_x():
    """An array stored P, S, R gets z along S, y along (minus) A, x along R, without a flip."""
    affine = np.array([[0, 0, 1, -89], [-1, 0, 0, 117], [0, 2, 0, 3], [0, 0, 0, 1]], dtype=float)
    v = numbered((4, 3, 2), affine=affine)
    assert v.shape == (3, 4, 2)
    assert v.mrh.grid.orientation == "SPR"
    assert v.attrs["source_axes"] == ["y", "z", "x"]
    assert v.values[1, 2, 0] == np.arange(24).reshape(4, 3, 2)[2, 1, 0]
    np.testing.assert_allclose(v.mrh.world([1, 2, 0]), (affine @ [2, 1, 0, 1])[:3])


def test_coordinates_are_distances_along_the_axes():
    """Coordinates start at 0 and step by the spacing; the affine holds direction and origin only."""
    v = numbered()
    np.testing.assert_allclose(v.z, np.arange(7) * 0.3, rtol=1e-15)
    np.testing.assert_allclose(np.linalg.norm(v.mrh.affine[:3, :3], axis=0), 1)
    np.testing.assert_allclose(v.mrh.spacing, [0.3, 0.2, 0.1])


SLICES = st.one_of(
    st.integers(0, 4),
    st.builds(slice, st.integers(0, 2), st.integers(3, 5), st.integers(1, 2)),
    st.builds(slice, st.just(None), st.just(None), st.sampled_from([-1, -2, -3])),
)


@settings(max_examples=500 if FULL else 60)
@given(st.tuples(SLICES, SLICES, SLICES), st.tuples(SLICES, SLICES, SLICES))
def test_indexing_keeps_every_voxel_in_place(first, second):
    """Voxels keep their world points after two selections by slices, strides, reversals and scalars."""
    v = numbered()
    expected = world_by_value(v)
    part = v.isel(dict(zip("zyx", first, strict=True)))
    part = part.isel({d: s for d, s in zip("zyx", second, strict=True) if d in part.dims and part.sizes[d] == 5})
    points = world_by_value(part)
    assert len(points) == part.size > 0
    for value, world in points.items():
        np.testing.assert_allclose(world, expected[value], atol=1e-9)


def test_selection_in_millimetres_and_arithmetic_keep_the_geometry():
    """Voxels keep their world points after sel, where, ufuncs, rolling and coarsen."""
    v = numbered()
    expected = world_by_value(v)
    part = v.sel(z=slice(0.25, 1.0)).sel(x=0.21, method="nearest")
    assert part.shape == (3, 6)
    for value, world in world_by_value(part).items():
        np.testing.assert_allclose(world, expected[value], atol=1e-9)
    for changed in (v + v, np.sqrt(v), v.where(v > 3), v.astype("float32"), v.rolling(z=3, center=True).mean()):
        assert changed.mrh.grid.same_as(v.mrh.grid, 1e-12)
    halved = v.coarsen(y=2, boundary="exact").mean()
    np.testing.assert_allclose(halved.mrh.world([0, 1, 0]), v.mrh.world([0, 2.5, 0]))


def test_volume_and_its_reverse_are_added_by_position():
    """Arithmetic of xarray adds a volume and its reverse by position, not by index."""
    v = numbered()
    total = v + v.isel(z=slice(None, None, -1))
    np.testing.assert_array_equal(total, 2 * v)


def test_slice_keeps_its_position_and_a_dropped_coordinate_raises():
    """isel(z=3) keeps its position; with drop=True it is lost, and the error says so."""
    v = numbered()
    np.testing.assert_allclose(v.isel(z=3).mrh.world([0, 1, 2]), v.mrh.world([3, 1, 2]))
    with pytest.raises(GridError, match="drop=True"):
        _ = v.isel(z=3, drop=True).mrh.grid


def test_unequal_steps_raise():
    """Fancy indexing and concatenation along an axis give gaps that no affine describes."""
    v = numbered()
    with pytest.raises(GridError, match="unequal"):
        _ = v.isel(z=[0, 1, 3]).mrh.grid
    with pytest.raises(GridError, match="unequal"):
        _ = xr.concat([v, v], "z").mrh.grid


class TestTwoVolumes:
    """Combining two geometries is never silent."""

    def test_like_removes_rounding_differences(self):
        """In xarray arithmetic drops voxels whose coordinates differ in the last bits, but not after like()."""
        v = numbered()
        jittered = v.assign_coords(z=v.z + 1e-12)
        assert (v + jittered).sizes["z"] < v.sizes["z"]
        assert (v + jittered.mrh.like(v)).shape == v.shape

    def test_like_raises_for_a_flipped_volume(self):
        """A flipped volume of the same shape and spacing raises with the distance and both orientations."""
        v, flipped = numbered(), numbered(affine=oblique_affine(flip=(-1, 1, 1)))
        assert "affine" not in (v + flipped).attrs
        with pytest.raises(GridError, match=r"mm apart \(SAL and SAR\)"):
            flipped.mrh.like(v)
        with pytest.raises(GridError, match="no affine"):
            _ = (v + flipped).mrh.grid
        with pytest.raises(GridError, match="mm apart"):
            stack({"a": v, "b": flipped})

    def test_concatenation_of_two_affines_raises(self):
        """With xarray the first affine is kept, but the frame coordinate shows that there are two."""
        v, moved = numbered(), numbered(affine=oblique_affine(origin=(0, 0, 0)))
        joined = xr.concat([v, moved], "c")
        with pytest.raises(GridError, match="frames"):
            _ = joined.mrh.grid
        with pytest.raises(GridError, match="frames"):
            v.mrh.like(joined)
        with pytest.raises(GridError, match="frames"):
            group({"joined": joined})
        with pytest.raises(GridError, match="but voxels of"):
            _ = joined.isel(c=1).mrh.grid

    def test_messages_name_shapes_and_spaces(self):
        """Messages contain both values and the remedy."""
        v = numbered()
        with pytest.raises(GridError, match=r"\(7, 6, 5\) and \(7, 6, 4\); resample"):
            v.mrh.like(v.isel(x=slice(4)))
        with pytest.raises(GridError, match="'scanner' and 'CCFv3'; register"):
            v.mrh.like(describe(v, space="CCFv3"))
        with pytest.raises(GridError, match="'scanner' but 'h' in 'CCFv3'"):
            group({"m": v, "h": describe(v, space="CCFv3")})

    def test_group_may_have_several_spacings_and_orientations(self):
        """Volumes of a group only need one world space."""
        fine = numbered((10, 12, 14), affine=oblique_affine(spacing=(0.05, 0.1, 0.15), flip=(1, -1, 1)))
        assert list(group({"a": numbered(), "b": fine})) == ["a", "b"]


def test_stack_names_channels():
    """Volumes, and channels of volumes, are stacked along c in order."""
    v = numbered()
    two = from_array(np.zeros((2, 5, 6, 7)), affine=oblique_affine(), dims=("c", "x", "y", "z"))
    stacked = stack({"t2": v, "dwi": two})
    assert stacked.c.values.tolist() == ["t2", "dwi:0", "dwi:1"]
    assert stacked.dims == ("c", "z", "y", "x")
    assert stacked.mrh.grid.same_as(v.mrh.grid)
    np.testing.assert_array_equal(stacked.isel(c=0), v)


def test_two_dimensional_image_lies_in_the_plane_z_0():
    """A section without orientation is one voxel thick and has z = 0."""
    image = from_array(np.zeros((3, 4)), spacing=(0.5, 0.25))
    assert image.mrh.grid.shape == (1, 3, 4)
    assert image.mrh.world([0, 2, 2]).tolist() == [0.5, 1.0, 0.0]


def test_geometry_survives_pickling_and_copies():
    """Pickled and copied volumes have an equal grid."""
    v = numbered()
    assert pickle.loads(pickle.dumps(v)).mrh.grid.same_as(v.mrh.grid, 0)
    assert v.copy(deep=True).mrh.grid.same_as(v.mrh.grid, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"spacing": (1, 1, 1), "affine": np.eye(4)},
        {"spacing": (1, 1)},
        {"spacing": (1, 0, 1)},
        {"spacing": (1, 1, 1), "dims": ("z", "y", "y")},
        {"spacing": (1, 1, 1), "dims": ("x", "y", "z")},
        {"affine": np.eye(4), "dims": ("c", "y", "x")},
        {"spacing": (1, 1, 1), "kind": "picture"},
    ],
)
def test_invalid_geometry_or_kind_raises(wrong):
    """Neither or both of spacing and affine, wrong lengths, repeated axes and unknown kinds raise."""
    with pytest.raises(ParameterError if "kind" in wrong else GridError):
        from_array(np.zeros((2, 2, 2)), **wrong)


@pytest.mark.parametrize("join", [
    lambda a, b: a.where(b > 0), lambda a, b: a.fillna(b), np.maximum, lambda a, b: a.combine_first(b),
    lambda a, b: xr.where(b > 0, a, 0, keep_attrs=True), lambda a, b: a + b,
])  # fmt: skip
def test_combining_two_geometries_raises(tmp_path, join):
    """With xarray the first affine is kept, which would swap left and right; the geometry and writing raise."""
    first = from_array(np.ones((4, 4, 4), np.float32), affine=np.eye(4), name="t2w")
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = 3
    other = from_array(np.ones((4, 4, 4), np.float32), affine=flipped, name="mask")
    joined = join(first, other)
    with pytest.raises(GridError):
        _ = joined.mrh.grid
    with pytest.raises(GridError):
        mrhdata.write(joined, tmp_path / "joined.nii")
    assert join(first, first.copy()).mrh.grid.same_as(first.mrh.grid)
