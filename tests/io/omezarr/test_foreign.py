"""OME-Zarr of other programs: units, transformations, levels and images, each right or refused."""

import numpy as np
import pytest
import zarr

import mrhdata
from mrhdata.errors import FormatError
from mrhdata.io import omezarr
from mrhdata.volume.assumptions import assumed
from mrhdata.volume.construct import from_array
from tests.io.omezarr.images import SCALE, axes, image, numbered, write_image

UNITS_IN_MM = {
    "micrometer": 1e-3,
    "nanometer": 1e-6,
    "angstrom": 1e-7,
    "picometer": 1e-9,
    "millimeter": 1,
    "centimeter": 10,
    "decimeter": 100,
    "meter": 1e3,
    "hectometer": 1e5,
    "kilometer": 1e6,
    "inch": 25.4,
    "foot": 304.8,
    "yard": 914.4,
    "mile": 1609344,
    "parsec": 3.0856775814913673e19,
    "yoctometer": 1e-21,
    "Micrometers": 1e-3,
    "micron": 1e-3,
    "µm": 1e-3,
    "um": 1e-3,
}
TURN = [[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize("unit", UNITS_IN_MM)
def test_units_of_the_specification_are_lengths(tmp_path, unit, caplog):
    """All units of length of the specification, and usual short forms, are known."""
    volume = mrhdata.read(write_image(tmp_path / "a.zarr", numbered(), unit=unit))
    np.testing.assert_allclose(volume.mrh.spacing, np.array([2, 0.5, 0.5]) * UNITS_IN_MM[unit], rtol=1e-12)
    assert not caplog.records


@pytest.mark.parametrize("unit", [None, "", "pixel", "Mm", "furlong", 7])
def test_unknown_units_are_assumed_and_warned_about(tmp_path, unit, caplog):
    """A unit that is missing or unknown is listed as assumed, with a warning, until an option states it."""
    path = write_image(tmp_path / "a.zarr", numbered(), unit=unit)
    assert "unit" in assumed(mrhdata.read(path))
    assert "pass unit=" in caplog.text
    caplog.clear()
    volume = mrhdata.read(path, unit="um")
    np.testing.assert_allclose(volume.mrh.spacing, [2e-3, 5e-4, 5e-4])
    assert not caplog.records


def test_steps_of_one_without_unit_are_no_voxel_size(tmp_path):
    """A scale of 1 along every axis without a unit states no voxel size."""
    ones = [[{"type": "scale", "scale": [1.0, 1.0, 1.0]}]]
    volume = mrhdata.read(write_image(tmp_path / "a.zarr", numbered(), unit=None, transforms=ones))
    assert {"unit", "spacing"} <= set(assumed(volume))


def test_unit_option_replaces_the_unit_of_the_file(tmp_path):
    """The option `unit` is the unit of the numbers in the file, whatever unit the file states."""
    path = write_image(tmp_path / "a.zarr", numbered(), unit="nanometer")
    np.testing.assert_allclose(mrhdata.read(path, unit="um").mrh.spacing, [2e-3, 5e-4, 5e-4])


def test_axis_without_unit_among_others_is_warned_about(tmp_path, caplog):
    """An axis without a unit has that of the others, with a warning; other units that differ are refused."""
    path = write_image(tmp_path / "a.zarr", numbered(), axes=[*axes(None, "z"), *axes("micrometer", "yx")])
    np.testing.assert_allclose(mrhdata.read(path).mrh.spacing, [2e-3, 5e-4, 5e-4])
    assert "no unit for axis z" in caplog.text
    mixed = [*axes(None, "z"), *axes("micrometer", "y"), *axes("nanometer", "x")]
    with pytest.raises(FormatError, match="none for axis z"):
        mrhdata.read(write_image(tmp_path / "b.zarr", numbered(), axes=mixed))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("place", ["level", "sequence", "image"])
@pytest.mark.parametrize("kind", ["affine", "rotation"])
def test_turned_images_are_placed_by_their_transformation(tmp_path, version, place, kind, caplog):
    """Affine and rotation are applied after the scale, in the level, in a sequence and in the image."""
    turn = {"type": kind, kind: TURN if kind == "affine" else [row[:3] for row in TURN]}
    within = {"level": [SCALE, turn], "sequence": [{"type": "sequence", "transformations": [SCALE, turn]}]}
    whole = {"coordinateTransformations": [turn]} if place == "image" else {}
    values = numbered()
    transforms = [within.get(place, [SCALE])]
    path = write_image(tmp_path / "a.zarr", values, version=version, transforms=transforms, **whole)
    volume = mrhdata.read(path)
    (at,) = np.argwhere(volume.values == values[1, 2, 3])
    # Scaled: z 2, y 1, x 1.5 um; turned: z 2, y -1.5, x 1.
    np.testing.assert_allclose(volume.mrh.world(at) * 1000, [1, -1.5, 2], atol=1e-12)
    assert "turn it" in caplog.text


def test_transformations_are_applied_in_their_order(tmp_path):
    """A scale after a translation scales it; those of the image follow those of the level."""
    shift = {"type": "translation", "translation": [10.0, 20.0, 30.0]}
    path = write_image(
        tmp_path / "a.zarr", numbered(), transforms=[[SCALE, shift]], coordinateTransformations=[SCALE, shift]
    )
    volume = mrhdata.read(path)
    np.testing.assert_allclose(volume.mrh.spacing * 1000, [4, 0.25, 0.25])
    np.testing.assert_allclose(volume.mrh.world([0, 0, 0]) * 1000, [45, 30, 30])


REFUSED = {
    "negative scale": ([{"type": "scale", "scale": [1, -2, 2]}], "scale must be positive"),
    "scale of 0": ([{"type": "scale", "scale": [1, 0, 2]}], "scale must be positive"),
    "NaN": ([{"type": "scale", "scale": [1, float("nan"), 2]}], "3 finite numbers"),
    "text": ([{"type": "scale", "scale": "large"}], "3 finite numbers"),
    "too few": ([{"type": "scale", "scale": [1, 1]}], "3 finite numbers"),
    "numbers elsewhere": ([{"type": "scale", "path": "scales"}], "in an array of its own"),
    "mapAxis": ([SCALE, {"type": "mapAxis", "mapAxis": {"z": "y", "y": "z", "x": "x"}}], "'mapAxis'"),
    "displacements": ([SCALE, {"type": "displacements", "path": "field"}], "'displacements'"),
    "not orthogonal": ([SCALE, {"type": "rotation", "rotation": [[2, 0, 0], [0, 1, 0], [0, 0, 1]]}], "orthogonal"),
    "flat": ([SCALE, {"type": "affine", "affine": [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]}], "flatten"),
    "none": ([], "no coordinateTransformations"),
    "no list": ("scale", "no coordinateTransformations"),
    "no mapping": (["scale"], "transformation None"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_transformations_that_cannot_be_applied_are_refused(tmp_path, name):
    """The error says what is wrong with the transformation, and does not call the file damaged."""
    transforms, message = REFUSED[name]
    path = write_image(tmp_path / "a.zarr", numbered(), transforms=[[SCALE]])
    group = zarr.open_group(path)
    listed = group.attrs["multiscales"]
    listed[0]["datasets"][0]["coordinateTransformations"] = transforms
    group.attrs["multiscales"] = listed
    with pytest.raises(FormatError, match=message) as caught:
        mrhdata.read(path)
    assert "damaged" not in str(caught.value)


def test_time_and_channels_mixed_with_space_are_refused(tmp_path):
    """An affine that moves the volume over time cannot be held."""
    drift = np.eye(4, 5)
    drift[1, 0] = 3
    names = [{"name": "t", "type": "time"}, *axes()]
    step = [{"type": "scale", "scale": [1, 2, 1, 1]}, {"type": "affine", "affine": drift.tolist()}]
    path = write_image(tmp_path / "a.zarr", numbered((2, 3, 4, 5)), chunks=(1, 3, 4, 5), axes=names, transforms=[step])
    with pytest.raises(FormatError, match="mix space with time"):
        mrhdata.read(path)


def pyramid(path, *, shifts=None, factor=2.0, reduce=np.mean):
    """Write a blob in three levels whose scales grow by a factor; return the path."""
    z, y, x = np.indices((32, 32, 32))
    levels = [np.exp(-((z - 14) ** 2 + (y - 17) ** 2 + (x - 13) ** 2) / 18).astype(np.float32)]
    for _ in range(2):
        n = levels[-1].shape[0] // 2
        levels.append(levels[-1].reshape(n, 2, n, 2, n, 2).mean((1, 3, 5)))
    transforms = [[{"type": "scale", "scale": [10 * factor**n] * 3}] for n in range(3)]
    for steps, shift in zip(transforms, shifts or [], strict=False):
        steps.append({"type": "translation", "translation": [shift] * 3})
    return write_image(path, *levels, chunks=(8, 8, 8), transforms=transforms)


@pytest.mark.parametrize("shifts", [None, [7, 7, 7]])
def test_levels_that_do_not_state_where_they_begin_are_not_chosen(tmp_path, shifts, caplog):
    """Levels by the mean without a translation of their own are read with a warning, and never chosen by spacing."""
    volume = mrhdata.read(pyramid(tmp_path / "a.zarr", shifts=shifts))
    assert omezarr.level_for(volume, np.full(3, 0.04)) is volume
    assert not caplog.records
    mrhdata.read(tmp_path / "a.zarr", level=1)
    assert "may lie 5 (unit of the file) off" in caplog.text


def test_levels_that_state_where_they_begin_are_chosen(tmp_path, caplog):
    """Levels whose translations agree with the mean are chosen by spacing, without a warning."""
    path = pyramid(tmp_path / "a.zarr", shifts=[0, 5, 15])
    chosen = omezarr.level_for(mrhdata.read(path), np.full(3, 0.04))
    assert chosen.shape == (8, 8, 8)
    mrhdata.read(path, level=2)
    assert not caplog.records


def test_levels_with_the_scale_of_the_finest_are_warned_about(tmp_path, caplog):
    """A coarser level that states the scale of the finest one would be half as long."""
    path = pyramid(tmp_path / "a.zarr", factor=1.0)
    volume = mrhdata.read(path)
    assert omezarr.level_for(volume, np.full(3, 0.04)) is volume
    mrhdata.read(path, level=1)
    assert "a scale is wrong" in caplog.text


def test_times_survive_a_store_and_are_read_from_others(tmp_path):
    """Times in seconds are stored as scale and unit of the axis t, and read from any unit of time."""
    series = from_array(np.zeros((4, 2, 3, 3), np.int16), spacing=(1, 1, 1), dims="tzyx")
    series = series.assign_coords(t=("t", 1.5 + 2.5 * np.arange(4), {"units": "s"}))
    mrhdata.write(series, tmp_path / "a.zarr")
    stored = zarr.open_group(tmp_path / "a.zarr").attrs["ome"]["multiscales"][0]
    assert stored["axes"][0] == {"name": "t", "type": "time", "unit": "second"}
    assert stored["datasets"][0]["coordinateTransformations"][0]["scale"][0] == 2.5
    back = mrhdata.read(tmp_path / "a.zarr")
    np.testing.assert_allclose(back.t, series.t)
    assert back.t.attrs["units"] == "s"
    names = [{"name": "t", "type": "time", "unit": "millisecond"}, *axes()]
    steps = [[{"type": "scale", "scale": [800, 2, 1, 1]}]]
    other = write_image(tmp_path / "b.zarr", numbered((3, 2, 2, 2)), chunks=(1, 2, 2, 2), axes=names, transforms=steps)
    np.testing.assert_allclose(mrhdata.read(other).t, [0, 0.8, 1.6])


def test_times_without_a_unit_are_left_out_with_a_warning(tmp_path, caplog):
    """A step of time without a unit is not a number of seconds."""
    names = [{"name": "t", "type": "time"}, *axes()]
    steps = [[{"type": "scale", "scale": [0.8, 2, 1, 1]}]]
    path = write_image(tmp_path / "b.zarr", numbered((3, 2, 2, 2)), chunks=(1, 2, 2, 2), axes=names, transforms=steps)
    assert "t" not in mrhdata.read(path).coords
    assert "times are 0.8 apart" in caplog.text


def test_one_of_several_images_of_a_group_is_chosen_by_name_or_number(tmp_path):
    """Several multiscales of one group are listed, and none is read before one is chosen."""
    path = write_image(tmp_path / "a.zarr", numbered(), numbered() + np.uint16(100))
    group = zarr.open_group(path)
    both = [image([0]) | {"name": "auto"}, image([0]) | {"name": "signal"}]
    both[1]["datasets"][0]["path"] = "1"
    group.attrs["multiscales"] = both
    with pytest.raises(FormatError, match=r"2 images in one group: 0 \('auto'\), 1 \('signal'\)\. .* dataset="):
        mrhdata.read(path)
    for choice, first in (("auto", 1), ("signal", 101), ("0", 1), ("1", 101)):
        assert mrhdata.read(path, dataset=choice).values[0, 0, 0] == first
    with pytest.raises(FormatError, match="got 'other'"):
        mrhdata.read(path, dataset="other")


def test_images_of_bioformats2raw_are_listed_and_the_only_one_is_read(tmp_path):
    """Images below a group are listed by their path; a single one is read without dataset=."""
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    (tmp_path / "a.zarr" / "OME").mkdir()
    write_image(tmp_path / "a.zarr" / "0", numbered())
    np.testing.assert_array_equal(mrhdata.read(tmp_path / "a.zarr"), numbered())
    write_image(tmp_path / "a.zarr" / "1", numbered() + np.uint16(7))
    with pytest.raises(FormatError, match="choose one of 0, 1 with dataset="):
        mrhdata.read(tmp_path / "a.zarr")
    assert mrhdata.read(tmp_path / "a.zarr", dataset="1").values[0, 0, 0] == 8


def test_labels_are_known_by_their_metadata_or_their_group(tmp_path):
    """An image with `image-label`, or in the group `labels`, holds labels; its neighbours do not."""
    marked = write_image(tmp_path / "a.zarr", numbered(), attrs={"image-label": {"version": "0.4"}})
    assert mrhdata.read(marked).attrs["kind"] == "labels"
    path = write_image(tmp_path / "b.zarr", numbered())
    zarr.open_group(path / "labels", mode="w", zarr_format=2).attrs["labels"] = ["nuclei"]
    write_image(path / "labels" / "nuclei", numbered())
    assert mrhdata.read(path).attrs["kind"] == "image"
    assert mrhdata.read(path, dataset="labels/nuclei").attrs["kind"] == "labels"
    assert mrhdata.read(path / "labels").attrs["kind"] == "labels"


@pytest.mark.parametrize(
    "listed", [[], [7], [{"type": "space"}], [{"name": "z", "type": "time"}, *axes(names="yx")], axes(names="zyy")]
)
def test_malformed_axes_are_refused(tmp_path, listed):
    """Axes without a name, with the type of another, or twice are refused in one sentence."""
    path = write_image(tmp_path / "a.zarr", numbered(), axes=listed)
    with pytest.raises(FormatError, match=r"axes|axis") as caught:
        mrhdata.read(path)
    assert "damaged" not in str(caught.value)
