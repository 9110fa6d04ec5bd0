"""Registration recovers known transforms from any orientation and refuses unsuitable volumes."""

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


def error(transform, truth, volume):
    """Return the distances in voxels between the images of bright voxels under two transforms."""
    points = volume.mrh.world(np.argwhere(volume.values > 50))
    return np.linalg.norm(transform.points(points) - truth.points(points), axis=1) / volume.mrh.spacing.min()


@pytest.fixture(scope="module")
def deformed_and_truth(asymmetric_blob):
    """Return the blob after a known deformation and affine transform, and that transform."""
    truth = Transform([bend(asymmetric_blob.mrh.grid, 0.9, smooth=1.6), Affine(TURN)])
    return mrhdata.resample(asymmetric_blob, asymmetric_blob, truth.inverse()).compute(), truth


@pytest.fixture(scope="module")
def affine_fit(asymmetric_blob, deformed_and_truth):
    """Return the affine registration of the deformed blob."""
    return register(deformed_and_truth[0], asymmetric_blob, "affine")


@pytest.mark.full
def test_each_step_reduces_the_error(asymmetric_blob, deformed_and_truth, affine_fit):
    """Errors fall from rigid to affine to local correlation, whose median is below half a voxel."""
    moved, truth = deformed_and_truth
    rigid, deformed = (
        register(moved, asymmetric_blob, "rigid"),
        register(moved, asymmetric_blob, "deform", start=affine_fit),
    )
    medians = [np.median(error(t, truth, asymmetric_blob)) for t in (Transform(), rigid, affine_fit, deformed)]
    assert medians[0] > 1.5
    assert medians[1] > medians[2] > medians[3]
    assert medians[3] < 0.5


@pytest.mark.full
def test_splines_reduce_the_error_of_an_affine_fit(asymmetric_blob, deformed_and_truth, affine_fit):
    """ITK's B-splines with mutual information have at most 0.9 times the error."""
    moved, truth = deformed_and_truth
    splines = register(moved, asymmetric_blob, "bspline", start=affine_fit)
    assert np.median(error(splines, truth, asymmetric_blob)) < 0.9 * np.median(
        error(affine_fit, truth, asymmetric_blob)
    )


@pytest.mark.full
def test_fit_splines_returns_one_cubic_step(asymmetric_blob, deformed_and_truth, affine_fit):
    """Two iterations already give a displacement, which is an ITK cubic B-spline."""
    fixed, moving = (picture(v, None, 1.0, "test") for v in (asymmetric_blob, deformed_and_truth[0]))
    start = Transform([Affine(affine_fit.affine())])
    step = fit_splines(fixed, moving, start, Search(iterations=2, samples=2000))
    assert step.order == 3
    assert 0 < np.abs(step.field).max() < 4


@pytest.mark.parametrize("model", ["rigid", pytest.param("similarity", marks=pytest.mark.full), "affine"])
def test_linear_transforms_are_recovered(asymmetric_blob, model):
    """A known transform of each model is recovered within 0.4 voxels, and the result has the model's form."""
    scale = {"rigid": (1, 1, 1), "similarity": (1.1, 1.1, 1.1), "affine": (1.1, 0.95, 1.0)}[model]
    truth = Transform([Affine(oblique_affine((8, -5, 10), scale, origin=(1.5, -2, 1)))])
    moved = mrhdata.resample(asymmetric_blob, asymmetric_blob, truth.inverse())
    transform = register(moved, asymmetric_blob, model)
    assert np.median(error(transform, truth, asymmetric_blob)) < 0.4
    matrix = transform.affine()[:3, :3]
    if model != "affine":
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(3) * scale[0] ** 2, atol=0.05)


@pytest.mark.full
def test_another_contrast_is_registered_nearly_as_well(asymmetric_blob, deformed_and_truth):
    """With an inverted, nonlinear contrast on another, reversed grid, the error rises by less than 0.4 voxels."""
    moved, truth = deformed_and_truth
    inverted = (200 - moved + 0.002 * moved**2).assign_attrs(moved.attrs)
    coarse = mrhdata.resample(inverted, spacing_mm=(0.7, 0.6, 0.5)).isel(x=slice(None, None, -1))
    same_contrast, other_contrast = (
        np.median(error(register(v, asymmetric_blob), truth, asymmetric_blob)) for v in (moved, coarse)
    )
    assert other_contrast < same_contrast + 0.4


def test_the_same_seed_gives_the_same_transform(asymmetric_blob, deformed_and_truth):
    """Transforms are equal bit by bit for any number of ITK threads; another seed gives another transform."""
    transforms = []
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    for threads in (1, 2):
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
        transforms.append(register(deformed_and_truth[0], asymmetric_blob, "affine+deform", spacing_mm=1.0))
        assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == threads
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    np.testing.assert_array_equal(transforms[0].affine(), transforms[1].affine())
    np.testing.assert_array_equal(transforms[0].steps[0].field, transforms[1].steps[0].field)
    other = register(deformed_and_truth[0], asymmetric_blob, "affine", spacing_mm=1.0, seed=1)
    assert not np.array_equal(other.affine(), transforms[0].affine())


ALL_TURNS = turns(True)


@pytest.mark.parametrize("turn", ALL_TURNS if FULL else ALL_TURNS[5:6], ids=letters)
def test_orientations_are_recovered(asymmetric_blob, turn):
    """Axes in any order and direction, mirrored or not, are recovered despite a wrong origin."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn, (30, -20, 10)
    truth = Transform([Affine(affine)])
    grid = Grid((25, 25, 25), np.array([[0, 0, 0.5, -6.0], [0, 0.5, 0, -6.0], [0.5, 0, 0, -6.0], [0, 0, 0, 1]]))
    turned_grid = Grid(grid.shape, affine @ grid.affine)
    moved = mrhdata.resample(asymmetric_blob, turned_grid, truth.inverse())
    best = rank_orientations(moved, asymmetric_blob)[0]
    assert best.name == f"moments {letters(turn)}"
    assert np.median(error(Transform([Affine(best.matrix)]), truth, asymmetric_blob)) < 1
    if FULL:
        transform = register(moved, asymmetric_blob, "rigid", orientations=True)
        assert np.median(error(transform, truth, asymmetric_blob)) < 0.3


@pytest.mark.full
def test_ranking_without_mirror_images_has_24_orientations(asymmetric_blob):
    """No start mirrors the volume, and the identity is best."""
    ranking = rank_orientations(asymmetric_blob, asymmetric_blob, mirrored=False)
    assert len(ranking) == 24
    assert all(np.linalg.det(start.matrix[:3, :3]) > 0 for start in ranking)
    assert ranking[0].name == "moments RAS"


def test_masks_exclude_lesions(asymmetric_blob):
    """A mask on another grid excludes a bright block of one volume, which would otherwise bias the result."""
    truth = Transform([Affine(oblique_affine((4, 0, 6), (1, 1, 1), origin=(0.8, 0.4, 0)))])
    moved = mrhdata.resample(asymmetric_blob, asymmetric_blob, truth.inverse()).compute()
    with_lesion = moved.copy(deep=True)
    with_lesion.values[:, :9] = 400
    mask = (with_lesion * 0 + 1).astype(np.uint8).assign_attrs(with_lesion.attrs | {"kind": "mask"})
    mask.values[:, :10] = 0
    unmasked_error = np.median(
        error(register(with_lesion, asymmetric_blob, "rigid", start="world"), truth, asymmetric_blob)
    )
    masked = register(
        with_lesion, asymmetric_blob, "rigid", start="world", moving_mask=mask.isel(x=slice(None, None, -1))
    )
    assert np.median(error(masked, truth, asymmetric_blob)) < min(0.3, unmasked_error)


def test_nan_voxels_are_ignored(asymmetric_blob, deformed_and_truth):
    """NaN outside and inside a brain do not prevent a registration within 2 voxels."""
    moved, truth = deformed_and_truth
    with_nan = moved.where(moved > 5)
    transform = register(with_nan, asymmetric_blob, "affine")
    assert np.isfinite(transform.affine()).all()
    assert np.median(error(transform, truth, asymmetric_blob)) < 2


def test_registration_aligns_labels(asymmetric_blob, deformed_and_truth, affine_fit):
    """Transforms of the images also align the labels, and deformation raises their Dice."""
    moved, truth = deformed_and_truth
    labels = (asymmetric_blob > 120).astype(np.uint8).assign_attrs(asymmetric_blob.attrs | {"kind": "labels"})
    moved_labels = mrhdata.resample(labels, moved, truth.inverse())
    dice = []
    for transform in (affine_fit, register(moved, asymmetric_blob, "deform", start=affine_fit)):
        aligned = mrhdata.resample(moved_labels, asymmetric_blob, transform).values
        dice.append(2 * (aligned & labels.values).sum() / (aligned.sum() + labels.values.sum()))
    assert 0.8 < dice[1] > dice[0]


def test_deformations_do_not_fold(asymmetric_blob, deformed_and_truth):
    """Jacobians are positive, and the inverse returns points to their origin."""
    settings = Deformation(fluid=2.0, iterations=(60,))
    transform = register(deformed_and_truth[0], asymmetric_blob, "rigid+deform", deformation=settings)
    assert jacobian(transform, asymmetric_blob).min().compute() > 0
    points = asymmetric_blob.mrh.world(np.argwhere(asymmetric_blob.values > 50))
    distances = np.linalg.norm(transform.inverse().points(transform.points(points)) - points, axis=1)
    assert np.median(distances) < 0.02


def test_transform_has_the_spaces_of_the_volumes(asymmetric_blob):
    """The transform names its source and target space, so it cannot be used in the wrong direction."""
    atlas = describe(asymmetric_blob, space="CCFv3")
    transform = register(asymmetric_blob, atlas, "rigid")
    assert (transform.source, transform.target) == ("CCFv3", "scanner")
    assert mrhdata.resample(asymmetric_blob, atlas, transform).mrh.space == "CCFv3"
    with pytest.raises(GridError, match="got one to 'scanner'"):
        mrhdata.resample(atlas, asymmetric_blob, transform)


def test_slabs_of_three_slices_are_registered(asymmetric_blob):
    """The in-plane shift of three slices is recovered, although ITK needs four voxels along every axis."""
    slab = asymmetric_blob.isel(
        z=slice(asymmetric_blob.sizes["z"] // 2 - 1, asymmetric_blob.sizes["z"] // 2 + 2)
    ).compute()
    step = float(slab.mrh.spacing[2])
    moved = slab.assign_coords(x=slab.x + 2 * step)
    transform = register(moved, slab, "rigid")
    centre = slab.mrh.world((np.array(slab.shape) - 1) / 2)
    np.testing.assert_allclose(transform.points(centre)[:2] - centre[:2], [2 * step, 0], atol=0.3 * step)


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 3, 3), (2, 9, 5)])
def test_tiny_volumes_are_registered_or_refused(shape):
    """A few voxels give a finite transform, or a DataError or GridError."""
    small = from_array(np.random.default_rng(0).random(shape).astype(np.float32), spacing=(1, 1, 1))
    try:
        transform = register(small, small)
    except (DataError, GridError):
        return
    assert np.isfinite(transform.points(small.mrh.grid.corners())).all()


def test_register_refuses_unsuitable_volumes_and_arguments(asymmetric_blob):
    """Constant, empty, label, multi-channel and complex volumes, planes and unknown arguments are refused."""
    constant = asymmetric_blob.copy(data=np.full(asymmetric_blob.shape, 3.0, np.float32))
    with pytest.raises(DataError, match=r"moving must have contrast .* got 3 everywhere"):
        register(constant, asymmetric_blob)
    with pytest.raises(DataError, match=r"fixed must have contrast .* got 3 everywhere"):
        register(asymmetric_blob, constant)
    with pytest.raises(DataError, match="no finite voxel"):
        register(asymmetric_blob * np.nan, asymmetric_blob)
    with pytest.raises(DataError, match="must be an image; got labels"):
        register(asymmetric_blob.astype(int).assign_attrs(kind="labels"), asymmetric_blob)
    two_channels = from_array(np.zeros((2, 4, 4, 4)), spacing=(1, 1, 1), dims=("c", "z", "y", "x"))
    with pytest.raises(DataError, match=r"isel\(c=0\)"):
        register(two_channels, asymmetric_blob)
    with pytest.raises(DataError, match="magnitude"):
        register(asymmetric_blob * 1j, asymmetric_blob)
    with pytest.raises(GridError, match="sections"):
        register(asymmetric_blob.isel(z=5), asymmetric_blob)
    with pytest.raises(GridError, match="got 'elastic'"):
        register(asymmetric_blob, asymmetric_blob, "elastic")
    with pytest.raises(GridError, match="linear steps first"):
        register(asymmetric_blob, asymmetric_blob, "deform+affine", deformation=Deformation(iterations=(1,)))
    with pytest.raises(GridError, match="got 'centre'"):
        register(asymmetric_blob, asymmetric_blob, start="centre")
    with pytest.raises(GridError, match="got 'some'"):
        register(asymmetric_blob, asymmetric_blob, orientations="some")
    with pytest.raises(GridError, match="positive number"):
        register(asymmetric_blob, asymmetric_blob, spacing_mm=0)
    with pytest.raises(GridError, match="mask of fixed must be in the space 'scanner'; got 'CCFv3'"):
        register(asymmetric_blob, asymmetric_blob, fixed_mask=describe(asymmetric_blob > 0, space="CCFv3"))


def test_volumes_without_overlap_need_moments(asymmetric_blob):
    """Volumes one metre apart are refused with start='world' and registered by their moments."""
    affine = asymmetric_blob.mrh.grid.affine.copy()
    affine[:3, 3] += 1000
    shifted = from_array(asymmetric_blob.values, affine=affine)
    with pytest.raises(DataError, match="start='moments'"):
        register(shifted, asymmetric_blob, "affine", start="world")
    truth = Transform([Affine(affine @ np.linalg.inv(asymmetric_blob.mrh.grid.affine))])
    assert np.median(error(register(shifted, asymmetric_blob, "rigid"), truth, asymmetric_blob)) < 0.1


@pytest.mark.full
def test_single_channel_integers_are_registered(asymmetric_blob):
    """A volume of counts with a c axis of length 1 is registered to an image."""
    counts = asymmetric_blob.clip(min=0).astype(np.uint16).assign_attrs(asymmetric_blob.attrs).expand_dims("c")
    transform = register(counts, asymmetric_blob, "rigid")
    assert np.median(error(transform, Transform(), asymmetric_blob)) < 0.1


@pytest.mark.parametrize("plane", ["axial", pytest.param("coronal", marks=pytest.mark.full), "sagittal"])
def test_register_section_finds_an_oblique_plane(asymmetric_blob, plane):
    """An oblique cut, stored as a slide without orientation, is registered within one voxel of its true plane."""
    tilt = Transform([Affine(oblique_affine((6, 4, -5), (1, 1, 1), origin=(0.3, 0.2, -0.3)))])
    axis = {"axial": "z", "coronal": "y", "sagittal": "x"}[plane]
    cut = mrhdata.resample(asymmetric_blob, asymmetric_blob, tilt).isel({axis: 11 if axis == "y" else 9})
    values = np.asarray(cut)[::-1]
    slide = from_array(values, spacing=(0.5, 0.5), space="slide")
    rows, columns = np.indices(values.shape)
    index = np.stack([np.zeros_like(rows), rows, columns], -1)
    bright = values > 50
    plane_index = np.stack([values.shape[0] - 1 - rows, columns], -1)[bright]
    volume_index = np.insert(plane_index, "zyx".index(axis), 11 if axis == "y" else 9, axis=1)
    truth = tilt.points(asymmetric_blob.mrh.world(volume_index))
    transform = register_section(slide, asymmetric_blob, plane, "rigid")
    errors = np.linalg.norm(transform.points(slide.mrh.world(index[bright])) - truth, axis=1) / 0.5
    assert (transform.source, transform.target) == ("slide", "scanner")
    assert np.median(errors) < 1
    matched = mrhdata.resample(asymmetric_blob, slide.expand_dims("z"), transform).values[0]
    assert np.corrcoef(matched[bright], values[bright])[0, 1] > 0.85


def test_register_section_refuses_unknown_arguments(asymmetric_blob):
    """Unknown planes and models, and sections of several planes, are refused."""
    with pytest.raises(GridError, match="got 'frontal'"):
        register_section(asymmetric_blob.isel(y=3), asymmetric_blob, "frontal")
    with pytest.raises(GridError, match="got 'deform'"):
        register_section(asymmetric_blob.isel(y=3), asymmetric_blob, kind="deform")
    with pytest.raises(GridError, match="one voxel thick"):
        register_section(asymmetric_blob, asymmetric_blob)
