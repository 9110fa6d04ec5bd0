"""Points go where ITK sends them, and come back."""

import pickle

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


def by_itk(transform, points):
    """Where ITK's own transform sends RAS+ points."""
    return np.array([transform.TransformPoint(p) for p in (points * LPS).tolist()]) * LPS


@pytest.mark.parametrize("order", [1, 3])
def test_points_go_where_itk_sends_them(order):
    """Rough displacements of an oblique field then a matrix, within the field, at its rim and outside."""
    affine = oblique_affine((3, 4, 5), (0.6, 0.5, 0.4))[:, [2, 1, 0, 3]]
    step = Displacement(RNG.normal(size=(3, 12, 11, 10)).astype(np.float32), affine, order)
    transform = Transform([step, Affine(oblique_affine((3, 4, 5), (1.1, 0.9, 1.0)))])
    points = step.grid.world(RNG.uniform(-2, 13, (4000, 3)))
    moved = np.abs(step.points(points) - points).max(axis=1) > 0
    assert 0.1 < moved.mean() < 0.9
    np.testing.assert_allclose(transform.points(points), by_itk(itk.to_itk(transform), points), atol=1e-9)


@pytest.mark.parametrize("ending", ["tfm", "txt", "h5"])
@pytest.mark.parametrize("order", [1, 3])
def test_chains_come_back_from_their_files(tmp_path, both, ending, order):
    """Steps, their order and their spaces, through ITK's text and HDF5 formats."""
    chain = Transform([Displacement(both.steps[0].field, both.steps[0].affine, order), both.steps[1]])
    itk.write(chain, tmp_path / f"chain.{ending}")
    back = itk.read(tmp_path / f"chain.{ending}", "CCFv3", "scanner")
    points = RNG.uniform(-4, 4, (200, 3))
    np.testing.assert_allclose(back.points(points), chain.points(points), atol=1e-9)
    assert (back.source, back.target, len(back.steps)) == ("CCFv3", "scanner", 2)
    direct = by_itk(sitk.ReadTransform(str(tmp_path / f"chain.{ending}")), points)
    np.testing.assert_allclose(direct, chain.points(points), atol=1e-9)


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "mha", "nrrd"])
def test_fields_come_back_from_their_files(tmp_path, both, ending):
    """The whole chain as one displacement, exact at its nodes."""
    grid = Grid((9, 8, 7), oblique_affine((10, 0, 5), (0.5, 0.6, 0.7), origin=(-2, -2, -2))[:, [2, 1, 0, 3]])
    itk.write(both, tmp_path / f"warp.{ending}", like=grid)
    points = grid.world(RNG.integers(0, 7, (50, 3)))
    np.testing.assert_allclose(itk.read(tmp_path / f"warp.{ending}").points(points), both.points(points), atol=1e-5)
    written = sitk.ReadImage(str(tmp_path / f"warp.{ending}"), sitk.sitkVectorFloat64)
    np.testing.assert_allclose(by_itk(sitk.DisplacementFieldTransform(written), points), both.points(points), atol=1e-5)


@pytest.mark.parametrize(
    "made",
    [
        sitk.TranslationTransform(3, (1, 2, 3)),
        sitk.Euler3DTransform((1, 2, 3), 0.1, 0.2, 0.3, (4, 5, 6)),
        sitk.VersorRigid3DTransform((0, 0, 1), 0.3, (1, 2, 3), (4, 5, 6)),
        sitk.Similarity3DTransform(1.2, (0, 1, 0), 0.3, (4, 5, 6), (1, 2, 3)),
        sitk.ScaleTransform(3, (1, 2, 3)),
    ],
)
def test_linear_transforms_of_every_kind_are_read(tmp_path, made):
    """Those that other programs write, with centres of rotation, become one matrix."""
    sitk.WriteTransform(made, str(tmp_path / "t.tfm"))
    points = RNG.normal(size=(20, 3))
    np.testing.assert_allclose(itk.read(tmp_path / "t.tfm").points(points), by_itk(made, points), atol=1e-9)


def test_a_turn_to_the_left_is_one_to_the_left(tmp_path):
    """RAS+ (1, 0, 0) turned by 90 degrees about S is (0, 1, 0), written and read: no sign is lost."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    matrix[:3, 3] = 10, 20, 30
    itk.write(Transform([Affine(matrix)]), tmp_path / "t.tfm")
    np.testing.assert_allclose(itk.read(tmp_path / "t.tfm").points([1, 0, 0]), [10, 21, 30], atol=1e-12)
    assert "AffineTransform_double_3_3" in (tmp_path / "t.tfm").read_text("utf-8")


@pytest.mark.parametrize("order", [1, 3])
def test_inverse_leads_back(order):
    """There and back within a fiftieth of the field's spacing, which is 1 mm."""
    grid = Grid((40, 40, 40), np.diag([0.2, 0.2, 0.2, 1])[[2, 1, 0, 3]])
    there = Transform([bend(grid, 0.5, order, smooth=2), Affine(oblique_affine())], "a", "b")
    back = there.inverse()
    points = RNG.uniform(1, 7, (500, 3))
    off = np.linalg.norm(back.points(there.points(points)) - points, axis=1)
    assert (back.source, back.target) == ("b", "a")
    assert np.median(off) < 0.02
    assert off.max() < 0.2


def test_a_fold_has_no_inverse():
    """Neighbours that pass each other cannot be told apart on the way back."""
    grid = Grid((40, 40, 40), np.diag([0.2, 0.2, 0.2, 1])[[2, 1, 0, 3]])
    with pytest.raises(DataError, match="folds"):
        bend(grid, 8.0).inverse()


@pytest.mark.parametrize("order", [1, 3])
def test_reach_holds_every_point(order):
    """No point of a box leaves the bound, which is no more than twice too wide."""
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


def test_spaces_are_checked_where_transforms_meet():
    """A chain goes through one space at each joint."""
    with pytest.raises(GridError, match="leads to 'b', the second starts from 'c'"):
        Transform([], "a", "b").then(Transform([], "c", "d"))
    joined = Transform([Affine(np.diag([2, 1, 1, 1]))], "a", "b").then(Transform([Affine(oblique_affine())], "b", "c"))
    assert (joined.source, joined.target) == ("a", "c")
    np.testing.assert_allclose(joined.points([1, 0, 0]), (oblique_affine() @ [2, 0, 0, 1])[:3])


def test_transforms_survive_pickling(both):
    """Workers get them by pickle."""
    points = RNG.normal(size=(10, 3))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(both)).points(points), both.points(points))


def test_wrong_transforms_are_refused(tmp_path, both):
    """Shapes, endings, dimensions, kinds and damage, each with its own sentence."""
    with pytest.raises(GridError, match=r"\(3, z, y, x\)"):
        Displacement(np.zeros((2, 4, 4, 4)), np.eye(4))
    with pytest.raises(DataError, match="1 displacements are not finite"):
        Displacement(np.where(np.arange(192).reshape(3, 4, 4, 4) == 5, np.nan, 0), np.eye(4))
    with pytest.raises(GridError, match=r"\(\.\.\., 3\)"):
        both.points([1, 2])
    with pytest.raises(FormatError, match="no name of a transform"):
        itk.write(both, tmp_path / "t.xfm")
    with pytest.raises(FormatError, match="like="):
        itk.write(both, tmp_path / "t.nii")
    with pytest.raises(FormatError, match="no file"):
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
