"""Known transforms are found again, from any orientation, and what cannot be registered is refused."""

import numpy as np
import pytest
import SimpleITK as sitk

import mrhdata
from mrhdata.errors import DataError, GridError
from mrhdata.registration.demons import Deformation
from mrhdata.registration.images import picture
from mrhdata.registration.initialize import letters, turns
from mrhdata.registration.linear import Search, fit_splines
from mrhdata.registration.pipeline import rank_orientations, register
from mrhdata.registration.quality import jacobian
from mrhdata.registration.sections import register_section
from mrhdata.registration.transforms import Affine, Transform
from mrhdata.volume.construct import describe, from_array
from mrhdata.volume.grid import Grid
from tests.conftest import FULL, oblique_affine
from tests.registration.conftest import bend

TURN = oblique_affine((8, -5, 10), (1.15, 0.9, 1.05), origin=(0.4, -0.3, 0.5))


def error(found, truth, volume):
    """Distances in voxels between where two transforms send the bright voxels."""
    points = volume.mrh.world(np.argwhere(volume.values > 50))
    return np.linalg.norm(found.points(points) - truth.points(points), axis=1) / volume.mrh.spacing.min()


@pytest.fixture(scope="module")
def bent(lopsided):
    """The blob after a known affine and deformation."""
    truth = Transform([bend(lopsided.mrh.grid, 0.9, smooth=1.6), Affine(TURN)])
    return mrhdata.resample(lopsided, lopsided, truth.inverse()).compute(), truth


@pytest.fixture(scope="module")
def straight(lopsided, bent):
    """The affine transform that was found for it."""
    return register(bent[0], lopsided, "affine")


@pytest.mark.full
def test_each_step_comes_nearer(lopsided, bent, straight):
    """Rigid, affine and local correlation; the last within half a voxel in the middle."""
    moved, truth = bent
    rigid, deformed = register(moved, lopsided, "rigid"), register(moved, lopsided, "deform", start=straight)
    medians = [np.median(error(found, truth, lopsided)) for found in (Transform(), rigid, straight, deformed)]
    assert medians[0] > 1.5
    assert medians[1] > medians[2] > medians[3]
    assert medians[3] < 0.5


@pytest.mark.full
def test_splines_come_nearer_than_a_matrix(lopsided, bent, straight):
    """Mutual information alone, through ITK's B-splines."""
    moved, truth = bent
    splines = register(moved, lopsided, "bspline", start=straight)
    assert np.median(error(splines, truth, lopsided)) < 0.9 * np.median(error(straight, truth, lopsided))


@pytest.mark.full
def test_splines_are_one_step_before_the_start(lopsided, bent, straight):
    """Two iterations already fit better, and the step is ITK's cubic one."""
    still, loose = (picture(v, None, 1.0, "test") for v in (lopsided, bent[0]))
    start = Transform([Affine(straight.affine())])
    step = fit_splines(still, loose, start, Search(iterations=2, samples=2000))
    assert step.order == 3
    assert 0 < np.abs(step.field).max() < 4


@pytest.mark.parametrize("model", ["rigid", pytest.param("similarity", marks=pytest.mark.full), "affine"])
def test_linear_transforms_are_recovered(lopsided, model):
    """A turn of the model's own kind, within four tenths of a voxel; and it is of that kind."""
    scale = {"rigid": (1, 1, 1), "similarity": (1.1, 1.1, 1.1), "affine": (1.1, 0.95, 1.0)}[model]
    truth = Transform([Affine(oblique_affine((8, -5, 10), scale, origin=(1.5, -2, 1)))])
    moved = mrhdata.resample(lopsided, lopsided, truth.inverse())
    found = register(moved, lopsided, model)
    assert np.median(error(found, truth, lopsided)) < 0.4
    matrix = found.affine()[:3, :3]
    if model != "affine":
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(3) * scale[0] ** 2, atol=0.05)


@pytest.mark.full
def test_contrasts_may_differ(lopsided, bent):
    """An inverted, bent contrast on another, reversed grid is registered nearly as well as its own."""
    moved, truth = bent
    other = (200 - moved + 0.002 * moved**2).assign_attrs(moved.attrs)
    coarse = mrhdata.resample(other, spacing_mm=(0.7, 0.6, 0.5)).isel(x=slice(None, None, -1))
    own, found = (np.median(error(register(v, lopsided), truth, lopsided)) for v in (moved, coarse))
    assert found < own + 0.4


def test_the_same_seed_gives_the_same_transform(lopsided, bent):
    """Bit by bit, whatever number of threads ITK and Dask would use; another seed gives another."""
    found = []
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    for threads in (1, 2):
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
        found.append(register(bent[0], lopsided, "affine+deform", spacing_mm=1.0))
        assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == threads
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    np.testing.assert_array_equal(found[0].affine(), found[1].affine())
    np.testing.assert_array_equal(found[0].steps[0].field, found[1].steps[0].field)
    other = register(bent[0], lopsided, "affine", spacing_mm=1.0, seed=1)
    assert not np.array_equal(other.affine(), found[0].affine())


ALL = turns(True)


@pytest.mark.parametrize("turn", ALL if FULL else ALL[5:6], ids=letters)
def test_orientations_are_recovered(lopsided, turn):
    """Axes in any order and direction, mirrored too, with an origin that says nothing."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn, (30, -20, 10)
    truth = Transform([Affine(affine)])
    grid = Grid((25, 25, 25), np.array([[0, 0, 0.5, -6.0], [0, 0.5, 0, -6.0], [0.5, 0, 0, -6.0], [0, 0, 0, 1]]))
    lost = Grid(grid.shape, affine @ grid.affine)
    moved = mrhdata.resample(lopsided, lost, truth.inverse())
    best = rank_orientations(moved, lopsided)[0]
    assert best.name == f"moments {letters(turn)}"
    assert np.median(error(Transform([Affine(best.matrix)]), truth, lopsided)) < 1
    if FULL:
        found = register(moved, lopsided, "rigid", orientations=True)
        assert np.median(error(found, truth, lopsided)) < 0.3


@pytest.mark.full
def test_without_mirror_images_there_are_24(lopsided):
    """A mirrored volume is then laid on as well as turning allows, never mirrored back."""
    ranking = rank_orientations(lopsided, lopsided, mirrored=False)
    assert len(ranking) == 24
    assert all(np.linalg.det(start.matrix[:3, :3]) > 0 for start in ranking)
    assert ranking[0].name == "moments RAS"


def test_masks_keep_lesions_out(lopsided):
    """A bright block that only one volume has pulls the result away, unless a mask on another grid leaves it out."""
    truth = Transform([Affine(oblique_affine((4, 0, 6), (1, 1, 1), origin=(0.8, 0.4, 0)))])
    moved = mrhdata.resample(lopsided, lopsided, truth.inverse()).compute()
    hurt = moved.copy(deep=True)
    hurt.values[:, :9] = 400
    mask = (hurt * 0 + 1).astype(np.uint8).assign_attrs(hurt.attrs | {"kind": "mask"})
    mask.values[:, :10] = 0
    plain = np.median(error(register(hurt, lopsided, "rigid", start="world"), truth, lopsided))
    masked = register(hurt, lopsided, "rigid", start="world", moving_mask=mask.isel(x=slice(None, None, -1)))
    assert np.median(error(masked, truth, lopsided)) < min(0.3, plain)


def test_missing_voxels_take_no_part(lopsided, bent):
    """NaN outside a brain and within it."""
    moved, truth = bent
    holes = moved.where(moved > 5)
    found = register(holes, lopsided, "affine")
    assert np.isfinite(found.affine()).all()
    assert np.median(error(found, truth, lopsided)) < 2


def test_labels_follow_through_the_transform(lopsided, bent, straight):
    """What was found for the images carries the labels, whose Dice rises with each step."""
    moved, truth = bent
    labels = (lopsided > 120).astype(np.uint8).assign_attrs(lopsided.attrs | {"kind": "labels"})
    carried = mrhdata.resample(labels, moved, truth.inverse())
    dice = []
    for found in (straight, register(moved, lopsided, "deform", start=straight)):
        back = mrhdata.resample(carried, lopsided, found).values
        dice.append(2 * (back & labels.values).sum() / (back.sum() + labels.values.sum()))
    assert 0.8 < dice[1] > dice[0]


def test_deformations_do_not_fold(lopsided, bent):
    """Jacobians stay positive, and the inverse leads back."""
    found = register(bent[0], lopsided, "rigid+deform", deformation=Deformation(fluid=2.0, iterations=(60,)))
    assert jacobian(found, lopsided).min().compute() > 0
    points = lopsided.mrh.world(np.argwhere(lopsided.values > 50))
    away = np.linalg.norm(found.inverse().points(found.points(points)) - points, axis=1)
    assert np.median(away) < 0.02


def test_spaces_are_those_of_the_volumes(lopsided):
    """The transform says where it leads from and to, so that it cannot be used the wrong way round."""
    atlas = describe(lopsided, space="CCFv3")
    found = register(lopsided, atlas, "rigid")
    assert (found.source, found.target) == ("CCFv3", "scanner")
    assert mrhdata.resample(lopsided, atlas, found).mrh.space == "CCFv3"
    with pytest.raises(GridError, match="leads to 'scanner'"):
        mrhdata.resample(atlas, lopsided, found)


def test_slabs_of_three_slices_are_registered(lopsided):
    """Their in-plane shift is found: ITK itself wants four voxels along every axis."""
    slab = lopsided.isel(z=slice(lopsided.sizes["z"] // 2 - 1, lopsided.sizes["z"] // 2 + 2)).compute()
    step = float(slab.mrh.spacing[2])
    moved = slab.assign_coords(x=slab.x + 2 * step)
    found = register(moved, slab, "rigid")
    middle = slab.mrh.world((np.array(slab.shape) - 1) / 2)
    np.testing.assert_allclose(found.points(middle)[:2] - middle[:2], [2 * step, 0], atol=0.3 * step)


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 3, 3), (2, 9, 5)])
def test_tiny_volumes_are_registered_or_refused(shape):
    """A handful of voxels gives a finite transform or one of our errors, never a crash."""
    small = from_array(np.random.default_rng(0).random(shape).astype(np.float32), spacing=(1, 1, 1))
    try:
        found = register(small, small)
    except (DataError, GridError):
        return
    assert np.isfinite(found.points(small.mrh.grid.corners())).all()


def test_what_cannot_be_registered_is_refused(lopsided):
    """Constant, empty, labelled, multi-channel and complex volumes, planes, and arguments that are none."""
    flat = lopsided.copy(data=np.full(lopsided.shape, 3.0, np.float32))
    with pytest.raises(DataError, match="moving is 3 everywhere"):
        register(flat, lopsided)
    with pytest.raises(DataError, match="fixed is 3 everywhere"):
        register(lopsided, flat)
    with pytest.raises(DataError, match="no finite voxel"):
        register(lopsided * np.nan, lopsided)
    with pytest.raises(DataError, match="labels, which have no brightness"):
        register(lopsided.astype(int).assign_attrs(kind="labels"), lopsided)
    two = from_array(np.zeros((2, 4, 4, 4)), spacing=(1, 1, 1), dims=("c", "z", "y", "x"))
    with pytest.raises(DataError, match=r"isel\(c=0\)"):
        register(two, lopsided)
    with pytest.raises(DataError, match="magnitude"):
        register(lopsided * 1j, lopsided)
    with pytest.raises(GridError, match="sections"):
        register(lopsided.isel(z=5), lopsided)
    with pytest.raises(GridError, match="not 'elastic'"):
        register(lopsided, lopsided, "elastic")
    with pytest.raises(GridError, match="linear steps first"):
        register(lopsided, lopsided, "deform+affine", deformation=Deformation(iterations=(1,)))
    with pytest.raises(GridError, match="not 'centre'"):
        register(lopsided, lopsided, start="centre")
    with pytest.raises(GridError, match="not 'some'"):
        register(lopsided, lopsided, orientations="some")
    with pytest.raises(GridError, match="positive number"):
        register(lopsided, lopsided, spacing_mm=0)
    with pytest.raises(GridError, match="mask of fixed lies in 'CCFv3'"):
        register(lopsided, lopsided, fixed_mask=describe(lopsided > 0, space="CCFv3"))


def test_without_overlap_the_start_decides(lopsided):
    """A metre apart: headers alone lead nowhere and say so, moments find it."""
    affine = lopsided.mrh.grid.affine.copy()
    affine[:3, 3] += 1000
    away = from_array(lopsided.values, affine=affine)
    with pytest.raises(DataError, match="start='moments'"):
        register(away, lopsided, "affine", start="world")
    truth = Transform([Affine(affine @ np.linalg.inv(lopsided.mrh.grid.affine))])
    assert np.median(error(register(away, lopsided, "rigid"), truth, lopsided)) < 0.1


@pytest.mark.full
def test_one_channel_of_many_and_integers(lopsided):
    """A c axis of one is no obstacle, nor are counts."""
    counts = lopsided.clip(min=0).astype(np.uint16).assign_attrs(lopsided.attrs).expand_dims("c")
    found = register(counts, lopsided, "rigid")
    assert np.median(error(found, Transform(), lopsided)) < 0.1


@pytest.mark.parametrize("plane", ["axial", pytest.param("coronal", marks=pytest.mark.full), "sagittal"])
def test_sections_find_their_plane(lopsided, plane):
    """An oblique cut, stored as a slide without orientation, is laid within a voxel of where it was cut."""
    tilt = Transform([Affine(oblique_affine((6, 4, -5), (1, 1, 1), origin=(0.3, 0.2, -0.3)))])
    axis = {"axial": "z", "coronal": "y", "sagittal": "x"}[plane]
    cut = mrhdata.resample(lopsided, lopsided, tilt).isel({axis: 11 if axis == "y" else 9})
    values = np.asarray(cut)[::-1]
    slide = from_array(values, spacing=(0.5, 0.5), space="slide")
    rows, columns = np.indices(values.shape)
    index = np.stack([np.zeros_like(rows), rows, columns], -1)
    bright = values > 50
    there = np.stack([values.shape[0] - 1 - rows, columns], -1)[bright]
    whole = np.insert(there, "zyx".index(axis), 11 if axis == "y" else 9, axis=1)
    truth = tilt.points(lopsided.mrh.world(whole))
    found = register_section(slide, lopsided, plane, "rigid")
    away = np.linalg.norm(found.points(slide.mrh.world(index[bright])) - truth, axis=1) / 0.5
    assert (found.source, found.target) == ("slide", "scanner")
    assert np.median(away) < 1
    matched = mrhdata.resample(lopsided, slide.expand_dims("z"), found).values[0]
    assert np.corrcoef(matched[bright], values[bright])[0, 1] > 0.85


def test_sections_are_checked(lopsided):
    """Planes and models by name; a section has one plane."""
    with pytest.raises(GridError, match="not 'frontal'"):
        register_section(lopsided.isel(y=3), lopsided, "frontal")
    with pytest.raises(GridError, match="not 'deform'"):
        register_section(lopsided.isel(y=3), lopsided, kind="deform")
    with pytest.raises(GridError, match="one voxel thick"):
        register_section(lopsided, lopsided)
