"""Transforms agree with ITK, can be inverted, and survive being written and read."""

import pickle

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from mrhdata.errors import DataError, FormatError, GridError
from mrhdata.registration import itk
from mrhdata.registration.transforms import Affine, Displacement, Transform
from mrhdata.volume.grid import Grid
from tests.conftest import oblique_affine
from tests.registration.conftest import bend

LPS = np.array([-1, -1, 1])
RNG = np.random.default_rng(0)


def map_with_itk(transform, points):
    """Map RAS+ points with an ITK transform."""
    return np.array([transform.TransformPoint(p) for p in (points * LPS).tolist()]) * LPS


@pytest.mark.parametrize("order", [1, 3])
def test_points_are_mapped_as_by_itk(order):
    """A rough oblique displacement followed by a matrix agrees with ITK inside the field, at its border and outside."""
    affine = oblique_affine((3, 4, 5), (0.6, 0.5, 0.4))[:, [2, 1, 0, 3]]
    step = Displacement(RNG.normal(size=(3, 12, 11, 10)).astype(np.float32), affine, order)
    transform = Transform([step, Affine(oblique_affine((3, 4, 5), (1.1, 0.9, 1.0)))])
    points = step.grid.world(RNG.uniform(-2, 13, (4000, 3)))
    moved = np.abs(step.points(points) - points).max(axis=1) > 0
    assert 0.1 < moved.mean() < 0.9
    np.testing.assert_allclose(transform.points(points), map_with_itk(itk.to_itk(transform), points), atol=1e-9)


@pytest.mark.parametrize("ending", ["tfm", "txt", "h5"])
@pytest.mark.parametrize("order", [1, 3])
def test_chains_are_written_and_read(tmp_path, displacement_and_affine, ending, order):
    """ITK's text and HDF5 formats keep the steps and their order, and ITK reads the same transform."""
    chain = Transform(
        [
            Displacement(displacement_and_affine.steps[0].field, displacement_and_affine.steps[0].affine, order),
            displacement_and_affine.steps[1],
        ]
    )
    itk.write(chain, tmp_path / f"chain.{ending}")
    loaded = itk.read(tmp_path / f"chain.{ending}", "CCFv3", "scanner")
    points = RNG.uniform(-4, 4, (200, 3))
    np.testing.assert_allclose(loaded.points(points), chain.points(points), atol=1e-9)
    assert (loaded.source, loaded.target, len(loaded.steps)) == ("CCFv3", "scanner", 2)
    direct = map_with_itk(sitk.ReadTransform(str(tmp_path / f"chain.{ending}")), points)
    np.testing.assert_allclose(direct, chain.points(points), atol=1e-9)


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "mha", "nrrd"])
def test_displacement_fields_are_written_and_read(tmp_path, displacement_and_affine, ending):
    """A chain written as one displacement field is exact at the nodes of the field."""
    grid = Grid((9, 8, 7), oblique_affine((10, 0, 5), (0.5, 0.6, 0.7), origin=(-2, -2, -2))[:, [2, 1, 0, 3]])
    itk.write(displacement_and_affine, tmp_path / f"warp.{ending}", like=grid)
    points = grid.world(RNG.integers(0, 7, (50, 3)))
    np.testing.assert_allclose(
        itk.read(tmp_path / f"warp.{ending}").points(points), displacement_and_affine.points(points), atol=1e-5
    )
    written = sitk.ReadImage(str(tmp_path / f"warp.{ending}"), sitk.sitkVectorFloat64)
    np.testing.assert_allclose(
        map_with_itk(sitk.DisplacementFieldTransform(written), points),
        displacement_and_affine.points(points),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "transform",
    [
        sitk.TranslationTransform(3, (1, 2, 3)),
        sitk.Euler3DTransform((1, 2, 3), 0.1, 0.2, 0.3, (4, 5, 6)),
        sitk.VersorRigid3DTransform((0, 0, 1), 0.3, (1, 2, 3), (4, 5, 6)),
        sitk.Similarity3DTransform(1.2, (0, 1, 0), 0.3, (4, 5, 6), (1, 2, 3)),
        sitk.ScaleTransform(3, (1, 2, 3)),
    ],
)
def test_linear_transforms_of_every_kind_are_read(tmp_path, transform):
    """Linear transforms of other programs, also with a centre of rotation, map points as in ITK."""
    sitk.WriteTransform(transform, str(tmp_path / "t.tfm"))
    points = RNG.normal(size=(20, 3))
    np.testing.assert_allclose(itk.read(tmp_path / "t.tfm").points(points), map_with_itk(transform, points), atol=1e-9)


def test_written_rotation_keeps_its_direction(tmp_path):
    """After writing and reading, RAS+ (1, 0, 0) turned by 90 degrees about S is still (0, 1, 0)."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    matrix[:3, 3] = 10, 20, 30
    itk.write(Transform([Affine(matrix)]), tmp_path / "t.tfm")
    np.testing.assert_allclose(itk.read(tmp_path / "t.tfm").points([1, 0, 0]), [10, 21, 30], atol=1e-12)
    assert "AffineTransform_double_3_3" in (tmp_path / "t.tfm").read_text("utf-8")


@pytest.mark.parametrize("order", [1, 3])
def test_inverse_returns_points_to_their_origin(order):
    """The median error of a transform followed by its inverse is below 0.02 mm, and no error exceeds 0.2 mm."""
    grid = Grid((40, 40, 40), np.diag([0.2, 0.2, 0.2, 1])[[2, 1, 0, 3]])
    transform = Transform([bend(grid, 0.5, order, smooth=2), Affine(oblique_affine())], "a", "b")
    inverse = transform.inverse()
    points = RNG.uniform(1, 7, (500, 3))
    errors = np.linalg.norm(inverse.points(transform.points(points)) - points, axis=1)
    assert (inverse.source, inverse.target) == ("b", "a")
    assert np.median(errors) < 0.02
    assert errors.max() < 0.2


def test_folded_displacements_have_no_inverse():
    """A displacement that changes the order of neighbouring points is refused."""
    grid = Grid((40, 40, 40), np.diag([0.2, 0.2, 0.2, 1])[[2, 1, 0, 3]])
    with pytest.raises(DataError, match="folds"):
        bend(grid, 8.0).inverse()


@pytest.mark.parametrize("order", [1, 3])
def test_reach_bounds_every_point(order):
    """No point of a box is mapped outside the bound, which is at most about twice too wide."""
    grid = Grid((40, 40, 40), np.diag([0.2, 0.2, 0.2, 1])[[2, 1, 0, 3]])
    chain = Transform(
        [bend(grid, 0.5, order), Affine(oblique_affine((10, 20, 5), (1, 2, 1))), bend(grid, 0.3, order, 1)]
    )
    for _ in range(50):
        low, length = RNG.uniform(-2, 8, 3), RNG.uniform(0.1, 3, 3)
        corners = low + np.array(list(np.ndindex(2, 2, 2))) * length
        first, last = chain.reach(corners)
        points = chain.points(low + RNG.random((2000, 3)) * length)
        assert (points >= first - 1e-9).all()
        assert (points <= last + 1e-9).all()
        assert (last - first <= 2 * np.ptp(points, axis=0) + 4 * 0.8).all()


def test_then_checks_the_spaces_of_both_transforms():
    """Transforms are joined only if the target space of the first is the source space of the second."""
    with pytest.raises(GridError, match="must map from 'b', the target of the first; got 'c'"):
        Transform([], "a", "b").then(Transform([], "c", "d"))
    joined = Transform([Affine(np.diag([2, 1, 1, 1]))], "a", "b").then(Transform([Affine(oblique_affine())], "b", "c"))
    assert (joined.source, joined.target) == ("a", "c")
    np.testing.assert_allclose(joined.points([1, 0, 0]), (oblique_affine() @ [2, 0, 0, 1])[:3])


def test_transforms_survive_pickling(displacement_and_affine):
    """Transforms are sent to workers by pickle."""
    points = RNG.normal(size=(10, 3))
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(displacement_and_affine)).points(points), displacement_and_affine.points(points)
    )


def test_invalid_transforms_and_files_are_refused(tmp_path, displacement_and_affine):
    """Wrong shapes, endings, dimensions and kinds, and damaged files, are refused with a specific message."""
    with pytest.raises(GridError, match=r"\(3, z, y, x\)"):
        Displacement(np.zeros((2, 4, 4, 4)), np.eye(4))
    with pytest.raises(DataError, match="must be finite; got 1 that are not"):
        Displacement(np.where(np.arange(192).reshape(3, 4, 4, 4) == 5, np.nan, 0), np.eye(4))
    with pytest.raises(GridError, match=r"\(\.\.\., 3\)"):
        displacement_and_affine.points([1, 2])
    with pytest.raises(FormatError, match="must end in one of"):
        itk.write(displacement_and_affine, tmp_path / "t.xfm")
    with pytest.raises(FormatError, match="like="):
        itk.write(displacement_and_affine, tmp_path / "t.nii")
    with pytest.raises(FormatError, match="does not exist"):
        itk.read(tmp_path / "none.tfm")
    (tmp_path / "bad.tfm").write_text("#Insight Transform File V1.0\nTransform: Nonsense\n")
    with pytest.raises(FormatError, match="cannot be read as a transform"):
        itk.read(tmp_path / "bad.tfm")
    sitk.WriteTransform(sitk.AffineTransform(2), str(tmp_path / "flat.tfm"))
    with pytest.raises(FormatError, match="2 dimensions"):
        itk.read(tmp_path / "flat.tfm")
    sheared = Grid((3, 3, 3), np.array([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    with pytest.raises(GridError, match="shear"):
        itk.image(np.zeros((3, 3, 3)), sheared)


@pytest.mark.parametrize("damage", ["inserted bytes", "names for numbers"])
def test_damaged_hdf5_transforms_are_refused_before_itk_reads_them(tmp_path, damage):
    """ITK's reader ends the process on such files."""
    path = tmp_path / "turn.h5"
    itk.write(Transform([Affine(np.diag([1.0, 2, 3, 1]))]), path)
    if damage == "inserted bytes":
        content = path.read_bytes()
        path.write_bytes(content[:4300] + bytes(600) + content[4300:])
    else:
        with h5py.File(path, "r+") as file:
            group = file["TransformGroup/0"]
            del group["TransformParameters"]
            group["TransformParameters"] = np.array([b"a"] * 12)
    with pytest.raises(FormatError, match=r"turn\.h5"):
        itk.read(path)
