"""Steps before a network and after it."""

import numpy as np
import pytest

import mrhdata
from mrhdata.errors import DataError, ModelError
from mrhdata.preprocessing import intensity, regrid
from mrhdata.preprocessing.pipeline import finished, prepared
from mrhdata.registration.resampling import resample
from mrhdata.volume.grid import Grid


def volume(values, spacing=(1, 1, 1), **attrs):
    """A volume of values."""
    return mrhdata.volume.from_array(np.asarray(values), spacing=spacing, **attrs)


def turned(shape, degrees, spacing=(1.0, 1.0, 1.0)):
    """An oblique grid."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing[::-1])[:, ::-1]
    affine[:3, 3] = [4.0, -7.0, 2.0]
    return Grid(shape, affine)


@pytest.mark.parametrize("flipped", [(), (0,), (1, 2), (0, 1, 2)])
def test_upright_of_the_same_spacing_are_the_same_voxels(flipped):
    """Whichever way the axes point, no value changes."""
    values = np.random.default_rng(0).random((4, 5, 6), dtype=np.float32)
    given = volume(values).isel({"zyx"[a]: slice(None, None, -1) for a in flipped})
    found = resample(given, regrid.upright(given.mrh.grid, (1, 1, 1)))
    np.testing.assert_allclose(found.values, values, atol=1e-6)
    assert (np.diag(found.mrh.grid.affine[:3, 2::-1]) > 0).all()


def test_upright_holds_every_corner_of_an_oblique_grid():
    """Of any spacing."""
    given = turned((5, 20, 30), 25, (2.0, 0.7, 0.9))
    grid = regrid.upright(given, (3, 1, 1))
    corners = np.array([[z, y, x] for z in (-0.5, 4.5) for y in (-0.5, 19.5) for x in (-0.5, 29.5)])
    index = grid.index(given.world(corners))
    assert (index >= -0.51).all()
    assert (index <= np.array(grid.shape) - 0.49).all()
    np.testing.assert_allclose(grid.spacing, (3, 1, 1))


@pytest.mark.parametrize("shape", [(3, 9, 4), (8, 5, 7), (4, 5, 6)])
def test_an_extent_is_undone_by_going_back(shape):
    """What was not cut off comes back where it was."""
    given = volume(np.random.default_rng(1).random((4, 5, 6), dtype=np.float32))
    there = resample(given, regrid.fitted(given.mrh.grid, shape))
    back = resample(there, given, fill=np.nan)
    kept = np.isfinite(back.values)
    assert there.shape == shape
    assert kept.sum() == np.prod(np.minimum(shape, (4, 5, 6)))
    np.testing.assert_allclose(back.values[kept], given.values[kept], atol=1e-6)


def test_units_of_susceptibility():
    """Units by name or by size becomes ppm, what lies is refused, what is left out is 0."""
    values = np.random.default_rng(2).normal(0, 0.05, (4, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(intensity.in_ppm(volume(1000 * values, units="ppb")).values, values, atol=1e-6)
    np.testing.assert_allclose(intensity.in_ppm(volume(1000 * values)).values, values, atol=1e-6)
    np.testing.assert_array_equal(intensity.in_ppm(volume(values, units="ppm")).values, values)
    with pytest.raises(DataError, match="ppm but reaches"):
        intensity.in_ppm(volume(1000 * values, units="ppm"))
    holed = values.copy()
    holed[0] = -20_000
    assert not intensity.in_ppm(volume(holed)).values[0].any()


def test_the_published_window():
    """floor(256 (v - low) / (high - low)), 256 counted as 255."""
    found = intensity.window(volume([[[-9.0, -0.2, 0.0, 0.1999, 0.2, 9.0]]]), -0.2, 0.2).values.ravel()
    assert found.tolist() == [0, 0, 128, 255, 255, 255]


@pytest.mark.parametrize("how", ["minmax", "percentile", "zscore"])
def test_normalised_volumes_do_not_know_their_scale(how):
    """Gain and offset of what is not 0 are gone."""
    values = np.random.default_rng(3).random((4, 6, 8)) + 1
    a, b = (intensity.normalise(volume(v), how).values for v in (values, 250 * values + 30))
    np.testing.assert_allclose(a, b, atol=1e-5)
    with pytest.raises(DataError, match="nothing to normalise"):
        intensity.normalise(volume(np.full((2, 2, 2), 3.0)), how)
    values[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        intensity.normalise(volume(values), how)


def test_steps_act_on_the_volumes_that_they_name():
    """Others stay."""
    group = {"qsm": volume(np.ones((2, 2, 2)) * 0.1, units="ppm"), "t1w": volume(np.ones((2, 2, 2)) * 900.0)}
    found = prepared(group, [("ppm", {"only": ["qsm"]}), ("window", {"low": -0.2, "high": 0.2, "only": ["qsm"]})])
    assert found["qsm"].values.max() == 192
    assert found["t1w"].values.max() == 900
    others = prepared(group, [("window", {"low": 0, "high": 1000, "but": ["qsm"]})])
    assert (others["qsm"].values.max(), others["t1w"].values.max()) == (0.1, 230)


def test_places_are_millimetres_from_the_middle():
    """In the window of +-50 mm, 127.5 in the middle."""
    values = np.zeros((3, 5, 7), np.float32)
    values[1, 2, 3] = 1
    found = prepared({"qsm": volume(values, spacing=(3, 1, 2))}, [("location", {})])
    assert list(found) == ["qsm", "x", "y", "z"]
    assert found["z"].values[:, 0, 0].tolist() == [120, 128, 135]
    assert found["x"].values[0, 0, [2, 3, 4]].tolist() == [122, 128, 133]


@pytest.mark.parametrize("connectivity", [1, 3])
def test_the_largest_part_of_each_label(connectivity):
    """Corners touch or do not."""
    values = np.zeros((1, 4, 6), np.uint8)
    values[0, 0, :2] = 3
    values[0, 1, 2] = 3  # by a corner
    values[0, 3, 5] = 3
    values[0, 3, :2] = 9
    found = finished(volume(values, kind="labels"), [("largest", {"connectivity": connectivity})])
    assert int((found == 3).sum()) == (2 if connectivity == 1 else 3)
    assert int((found == 9).sum()) == 2


@pytest.mark.parametrize(("name", "settings"), [("sharpen", {}), ("normalise", {"kind": "minmax"})])
def test_steps_of_a_folder_are_only_those_that_are_known(name, settings):
    """Names and settings from a file run nothing else."""
    with pytest.raises(ModelError):
        prepared({"a": volume(np.ones((1, 2, 2)))}, [(name, settings)])
