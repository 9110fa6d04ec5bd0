"""Processing steps before and after a network."""

import numpy as np
import pytest

import mrhdata
from mrhdata.errors import DataError, ModelError
from mrhdata.preprocessing import intensity, regrid
from mrhdata.preprocessing.pipeline import finish, prepare
from mrhdata.registration.resampling import resample
from mrhdata.volume.grid import Grid


def volume(values, spacing=(1, 1, 1), **attrs):
    """Return a volume with these values."""
    return mrhdata.volume.from_array(np.asarray(values), spacing=spacing, **attrs)


def oblique_grid(shape, degrees, spacing=(1.0, 1.0, 1.0)):
    """Return a grid that is turned about the world S axis."""
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(spacing[::-1])[:, ::-1]
    affine[:3, 3] = [4.0, -7.0, 2.0]
    return Grid(shape, affine)


@pytest.mark.parametrize("flipped", [(), (0,), (1, 2), (0, 1, 2)])
def test_upright_grid_of_the_same_spacing_has_the_same_voxels(flipped):
    """No value changes, in whichever directions the axes point."""
    values = np.random.default_rng(0).random((4, 5, 6), dtype=np.float32)
    source = volume(values).isel({"zyx"[a]: slice(None, None, -1) for a in flipped})
    upright = resample(source, regrid.upright(source.mrh.grid, (1, 1, 1)))
    np.testing.assert_allclose(upright.values, values, atol=1e-6)
    assert (np.diag(upright.mrh.grid.affine[:3, 2::-1]) > 0).all()


def test_upright_grid_covers_every_corner_of_an_oblique_grid():
    """All corners are inside, and the spacing is the one that was asked for."""
    oblique = oblique_grid((5, 20, 30), 25, (2.0, 0.7, 0.9))
    grid = regrid.upright(oblique, (3, 1, 1))
    corners = np.array([[z, y, x] for z in (-0.5, 4.5) for y in (-0.5, 19.5) for x in (-0.5, 29.5)])
    index = grid.index(oblique.world(corners))
    assert (index >= -0.51).all()
    assert (index <= np.array(grid.shape) - 0.49).all()
    np.testing.assert_allclose(grid.spacing, (3, 1, 1))


@pytest.mark.parametrize("shape", [(3, 9, 4), (8, 5, 7), (4, 5, 6)])
def test_resampling_back_undoes_a_fitted_grid(shape):
    """Voxels that were not cropped return to their position."""
    source = volume(np.random.default_rng(1).random((4, 5, 6), dtype=np.float32))
    fitted = resample(source, regrid.crop_or_pad(source.mrh.grid, shape))
    restored = resample(fitted, source, fill=np.nan)
    inside = np.isfinite(restored.values)
    assert fitted.shape == shape
    assert inside.sum() == np.prod(np.minimum(shape, (4, 5, 6)))
    np.testing.assert_allclose(restored.values[inside], source.values[inside], atol=1e-6)


def test_in_ppm_converts_units_and_zeroes_excluded_voxels():
    """The unit is taken from its name or from the values, a wrong name is refused, and excluded voxels become 0."""
    values = np.random.default_rng(2).normal(0, 0.05, (4, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(intensity.to_ppm(volume(1000 * values, units="ppb")).values, values, atol=1e-6)
    np.testing.assert_allclose(intensity.to_ppm(volume(1000 * values)).values, values, atol=1e-6)
    np.testing.assert_array_equal(intensity.to_ppm(volume(values, units="ppm")).values, values)
    with pytest.raises(DataError, match=r"must be below 5 ppm .* got"):
        intensity.to_ppm(volume(1000 * values, units="ppm"))
    with_excluded = values.copy()
    with_excluded[0] = -20_000
    assert not intensity.to_ppm(volume(with_excluded)).values[0].any()


def test_window_matches_the_published_formula():
    """The formula is floor(256 (v - low) / (high - low)), with 256 counted as 255."""
    levels = intensity.window(volume([[[-9.0, -0.2, 0.0, 0.1999, 0.2, 9.0]]]), -0.2, 0.2).values.ravel()
    assert levels.tolist() == [0, 0, 128, 255, 255, 255]


@pytest.mark.parametrize("how", ["minmax", "percentile", "zscore"])
def test_normalise_removes_gain_and_offset(how):
    """Two scalings of a volume become equal; constant volumes and NaN are refused."""
    values = np.random.default_rng(3).random((4, 6, 8)) + 1
    a, b = (intensity.normalise(volume(v), how).values for v in (values, 250 * values + 30))
    np.testing.assert_allclose(a, b, atol=1e-5)
    with pytest.raises(DataError, match="cannot be normalised"):
        intensity.normalise(volume(np.full((2, 2, 2), 3.0)), how)
    values[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        intensity.normalise(volume(values), how)


def test_prepared_changes_only_the_selected_volumes():
    """A step changes the volumes in ``only`` and not those in ``but``."""
    group = {"qsm": volume(np.ones((2, 2, 2)) * 0.1, units="ppm"), "t1w": volume(np.ones((2, 2, 2)) * 900.0)}
    only_qsm = prepare(group, [("ppm", {"only": ["qsm"]}), ("window", {"low": -0.2, "high": 0.2, "only": ["qsm"]})])
    assert only_qsm["qsm"].values.max() == 192
    assert only_qsm["t1w"].values.max() == 900
    not_qsm = prepare(group, [("window", {"low": 0, "high": 1000, "but": ["qsm"]})])
    assert (not_qsm["qsm"].values.max(), not_qsm["t1w"].values.max()) == (0.1, 230)


def test_location_step_adds_distances_from_the_centroid():
    """Distances within +-50 mm become levels of 0 to 255; the centroid has level 128."""
    values = np.zeros((3, 5, 7), np.float32)
    values[1, 2, 3] = 1
    volumes = prepare({"qsm": volume(values, spacing=(3, 1, 2))}, [("location", {})])
    assert list(volumes) == ["qsm", "x", "y", "z"]
    assert volumes["z"].values[:, 0, 0].tolist() == [120, 128, 135]
    assert volumes["x"].values[0, 0, [2, 3, 4]].tolist() == [122, 128, 133]


@pytest.mark.parametrize("connectivity", [1, 3])
def test_largest_step_keeps_one_component_of_each_label(connectivity):
    """Voxels that share a corner are connected only with connectivity 3."""
    values = np.zeros((1, 4, 6), np.uint8)
    values[0, 0, :2] = 3
    values[0, 1, 2] = 3  # shares a corner with the voxels above
    values[0, 3, 5] = 3
    values[0, 3, :2] = 9
    labels = volume(values, kind="labels")
    labels = finish(labels, [("largest", {"connectivity": connectivity})], labels)
    assert int((labels == 3).sum()) == (2 if connectivity == 1 else 3)
    assert int((labels == 9).sum()) == 2


@pytest.mark.parametrize(("name", "settings"), [("sharpen", {}), ("normalise", {"kind": "minmax"})])
def test_unknown_steps_and_settings_are_refused(name, settings):
    """Names and settings from a model folder cannot run other code."""
    with pytest.raises(ModelError):
        prepare({"a": volume(np.ones((1, 2, 2)))}, [(name, settings)])
