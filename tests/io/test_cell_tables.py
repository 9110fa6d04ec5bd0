"""Reading and writing of tables of cells, and errors for bad files."""

import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrhdata.errors import DataError, FormatError, GridError, ParameterError
from mrhdata.io.cell_tables import VOXEL, WORLD, read_points, with_world_points, write_points
from mrhdata.volume.construct import from_array
from tests.conftest import FULL, oblique_affine

VOLUME = from_array(np.zeros((7, 6, 5), np.uint8), affine=oblique_affine())


def cells(count=20, seed=0):
    """Return a table on the grid of the oblique volume, with all columns of a detector."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(rng.uniform(0, 5, (count, 3)), columns=VOXEL)
    extra = {"score": rng.random(count), "voxels": rng.integers(1, 99, count), "intensity_gfp": rng.normal(size=count)}
    return with_world_points(table, VOLUME).assign(**extra, region=rng.integers(0, 2**32, count))


@pytest.fixture(params=[".parquet", ".csv", ".napari.csv"])
def file(request, tmp_path):
    """Path with the ending of a format that keeps every column."""
    if request.param == ".parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    return tmp_path / f"cells{request.param}"


@pytest.mark.parametrize("count", [0, 20])
def test_table_is_read_back_exactly(file, count):
    """Every column is read back with its order, its type and exact values."""
    table = cells(count)
    write_points(table, file)
    check_dtype = True if count else not file.name.endswith("csv")
    pd.testing.assert_frame_equal(read_points(file), table, check_exact=True, check_dtype=check_dtype)
    assert os.listdir(file.parent) == [file.name]


def test_volume_converts_voxels_to_world_points_and_back(file):
    """On an oblique, anisotropic grid, voxels get world points and world points get voxels."""
    table = cells()
    np.testing.assert_allclose(table[WORLD], VOLUME.mrh.world(table[VOXEL].to_numpy()), atol=1e-12)
    write_points(table[VOXEL], file)
    pd.testing.assert_frame_equal(read_points(file, like=VOLUME), table[VOXEL + WORLD])
    if not file.name.endswith("napari.csv"):
        write_points(table[WORLD], file, overwrite=True)
        pd.testing.assert_frame_equal(read_points(file, like=VOLUME), table[VOXEL + WORLD])
        assert list(read_points(file)) == WORLD
    write_points(table[WORLD], file, like=VOLUME, overwrite=True)
    assert list(read_points(file)) == VOXEL + WORLD


def test_cells_of_another_volume_raise(tmp_path):
    """Voxels and world points that disagree on the grid raise GridError."""
    write_points(cells(), tmp_path / "cells.csv")
    moved = from_array(np.zeros((7, 6, 5), np.uint8), affine=oblique_affine(origin=(0, 0, 0)))
    with pytest.raises(GridError, match="found in"):
        read_points(tmp_path / "cells.csv", like=moved)


WHOLE_VOXELS = st.lists(st.tuples(*[st.integers(-5, 10**6)] * 3, st.sampled_from([-1, 1, 2, 7])), max_size=20)


@settings(max_examples=40)
@given(WHOLE_VOXELS)
def test_whole_voxels_and_types_are_read_back_from_xml(tmp_path, rows):
    """Whole voxels are read back ordered by type, and within one type in the order of the table."""
    table = pd.DataFrame(rows, columns=[*VOXEL, "type"]).astype({"type": np.int64} | dict.fromkeys(VOXEL, float))
    write_points(table, tmp_path / "cells.xml", overwrite=True)
    expected = table.sort_values("type", kind="stable").reset_index(drop=True)
    pd.testing.assert_frame_equal(read_points(tmp_path / "cells.xml"), expected)


def test_xml_contains_nearest_voxels_with_x_first(tmp_path):
    """The XML equals a literal file that cellfinder reads."""
    write_points(pd.DataFrame({"z": [10.5], "y": [2.4], "x": [3.6], "score": [1.0]}), tmp_path / "cells.xml")
    text = (tmp_path / "cells.xml").read_text("utf-8")
    assert "".join(text.split()).endswith(
        "<Marker_Data><Current_Type>1</Current_Type><Marker_Type><Type>2</Type><Marker><MarkerX>4</MarkerX>"
        "<MarkerY>2</MarkerY><MarkerZ>11</MarkerZ></Marker></Marker_Type></Marker_Data></CellCounter_Marker_File>"
    )


def counter_xml(path, markers="<Type>2</Type>", properties=""):
    """Write the XML of a cell counter; one marker lies at x 3, y 2 and plane 3."""
    marker = "<Marker><MarkerX>3</MarkerX><MarkerY>2</MarkerY><MarkerZ>3</MarkerZ></Marker>"
    path.write_text(
        f"<CellCounter_Marker_File><Image_Properties>{properties}</Image_Properties><Marker_Data><Current_Type>0"
        f"</Current_Type><Marker_Type>{markers}{marker}</Marker_Type></Marker_Data></CellCounter_Marker_File>"
    )
    return path


IMAGE = "<Image_Filename>{}</Image_Filename>"
CALIBRATION = (
    "<X_Calibration>2.0</X_Calibration><Y_Calibration>2.0</Y_Calibration><Z_Calibration>{}</Z_Calibration>"
    "<Calibration_Unit>{}</Calibration_Unit>"
)


@pytest.mark.parametrize(
    ("markers", "properties", "columns", "row"),
    [
        ("<Type>4</Type><Name>neurons</Name>", IMAGE.format("stack.tif"), "marker_type", [2, 2, 3, 4]),
        ("<Type>4</Type>", IMAGE.format("stack.tif"), "marker_type", [2, 2, 3, 4]),
        ("<Type>1</Type><Name>Type 1</Name>", "", "marker_type", [2, 2, 3, 1]),
        ("<Type>1</Type>", CALIBRATION.format(5, "micron"), "marker_type", [2, 2, 3, 1]),
        ("<Type>1</Type>", IMAGE.format("placeholder.tif"), "type", [3, 2, 3, 1]),
    ],
)
def test_planes_count_as_in_the_program_that_wrote_them(tmp_path, markers, properties, columns, row):
    """Fiji counts planes from 1 and has types of its own; cellfinder counts from 0."""
    table = read_points(counter_xml(tmp_path / "a.xml", markers, properties))
    assert list(table) == [*VOXEL, columns]
    assert table.to_numpy().tolist() == [row]


@pytest.mark.parametrize(
    ("markers", "properties"),
    [
        ("<Type>2</Type>", ""),
        ("<Type>2</Type><Name>cells</Name>", IMAGE.format("placeholder.tif")),
        ("<Type>2</Type>", IMAGE.format("placeholder.tif") + CALIBRATION.format(5, "micron")),
    ],
)
def test_a_program_that_a_file_does_not_show_has_to_be_named(tmp_path, markers, properties):
    """Signs of neither or of both are an error with the option, which settles it."""
    path = counter_xml(tmp_path / "a.xml", markers, properties)
    with pytest.raises(FormatError, match=r"a\.xml does not show.*cell_counter='fiji' or 'cellfinder'"):
        read_points(path)
    assert read_points(path, cell_counter="fiji").to_numpy().tolist() == [[2, 2, 3, 2]]
    assert read_points(path, cell_counter="cellfinder").to_numpy().tolist() == [[3, 2, 3, 2]]
    with pytest.raises(ParameterError, match="must be 'fiji' or 'cellfinder'"):
        read_points(path, cell_counter="imagej")


def test_planes_that_fiji_does_not_have_are_refused(tmp_path):
    """Plane 0, and a plane beyond the stack, as in a stack of channels."""
    path = counter_xml(tmp_path / "a.xml", properties=IMAGE.format("stack.tif"))
    with pytest.raises(GridError, match="plane 3 of 2"):
        read_points(path, like=from_array(np.zeros((2, 9, 9)), spacing=(5, 2, 2)))
    path.write_text(path.read_text("utf-8").replace("<MarkerZ>3<", "<MarkerZ>0<"))
    with pytest.raises(FormatError, match="count from 1; got 0"):
        read_points(path)


@pytest.mark.parametrize(
    ("step", "unit", "told"), [(5, "micron", False), (5, "pixel", False), (2, "micron", True), (5, "mm", True)]
)
def test_marks_of_other_voxels_are_told(tmp_path, caplog, step, unit, told):
    """The calibration of Fiji is compared with the volume."""
    path = counter_xml(tmp_path / "a.xml", properties=IMAGE.format("a.tif") + CALIBRATION.format(step, unit))
    read_points(path, like=from_array(np.zeros((9, 9, 9)), spacing=(0.005, 0.002, 0.002)))
    assert ("was marked on voxels of" in caplog.text) == told


def test_several_types_of_fiji_are_told(tmp_path, caplog):
    """They all count as cells."""
    second = (
        "<Type>1</Type><Name>glia</Name><Marker><MarkerX>1</MarkerX><MarkerY>1</MarkerY><MarkerZ>1</MarkerZ></Marker>"
    )
    path = counter_xml(tmp_path / "a.xml", f"{second}</Marker_Type><Marker_Type><Type>2</Type>", IMAGE.format("a.tif"))
    assert read_points(path)["marker_type"].tolist() == [1, 2]
    assert "1 of type 1 (glia), 1 of type 2; all count as cells" in caplog.text


def test_points_in_other_units_are_told(tmp_path, caplog):
    """World points in um lie far outside of a volume in mm."""
    volume = from_array(np.zeros((9, 9, 9)), spacing=(0.005, 0.002, 0.002))
    pd.DataFrame({"X": [4.0, 6.0], "Y": [4.0, 6.0], "Z": [10.0, 20.0]}).to_csv(tmp_path / "a.csv")
    read_points(tmp_path / "a.csv", like=volume)
    assert "2 of 2 points lie outside the volume" in caplog.text
    for header in ("z_um,y_um,x_um", "z (um),y (um),x (um)", "z;y;x", " ,Area,X,Y,Slice", "z, y, x"):
        (tmp_path / "b.csv").write_text(header + "\n1,2,3\n")
        with pytest.raises(FormatError, match="must have the columns"):
            read_points(tmp_path / "b.csv", like=volume)


def test_published_annotations_are_read_and_written_back(shared, tmp_path):
    """The 56 cells of a mouse cortex lie within its planes, and are equal when written again."""
    folder = shared / "cells"
    if not folder.is_dir():
        pytest.skip(f"the published annotations are not at {folder}")
    published = folder / "integration_detection_cell_classification.xml"
    planes = from_array(np.empty((30, 510, 667), np.uint8), spacing=(0.005, 0.002, 0.002))
    table = read_points(published, like=planes)
    assert len(table) == 56
    assert set(table.type) == {2}
    assert table.loc[0, VOXEL].tolist() == [10, 308, 132]
    assert (table[VOXEL].to_numpy() < planes.shape).all()
    np.testing.assert_allclose(table[WORLD].to_numpy()[0], [0.264, 0.616, 0.05])
    write_points(table, tmp_path / "again.xml")
    assert (tmp_path / "again.xml").read_text("utf-8").split() == published.read_text("utf-8").split()


BILLION_LAUGHS = '<!DOCTYPE l [<!ENTITY a "ha">{}]>\n<CellCounter_Marker_File>&e9;</CellCounter_Marker_File>'.format(
    "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip(["a", *"bcdefgh"], [*"bcdefgh", "e9"], strict=True))
)
BODY = "<CellCounter_Marker_File><Image_Filename>placeholder.tif</Image_Filename><Marker_Data><Marker_Type>"
BODY += "<Type>2</Type>{}</Marker_Type></Marker_Data>"
BODY += "</CellCounter_Marker_File>"
PART = "<Marker><MarkerX>1</MarkerX><MarkerY>2</MarkerY></Marker>"
BAD = {
    "laughs.xml": (BILLION_LAUGHS, "DOCTYPE"),
    "external.xml": ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><a>&x;</a>', "DOCTYPE"),
    "remote.xml": ('<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd"><a/>', "DOCTYPE"),
    "cut.xml": (BODY.format("")[:-9], "line 1"),
    "other.xml": ("<svg/>", "begins with <svg>"),
    "axis.xml": (BODY.format(PART), r"\['X', 'Y'\] of X, Y, Z"),
    "word.xml": (BODY.format("<Marker><MarkerX>one</MarkerX></Marker>"), "'one'"),
    "type.xml": (BODY.format("").replace(">2<", ">10000000000000000000000<"), "line 1"),
    "typeless.xml": (BODY.format("").replace("<Type>2</Type>", ""), "no Type"),
    "loose.xml": (
        "<CellCounter_Marker_File><Marker><MarkerX>1</MarkerX><MarkerY>1</MarkerY><MarkerZ>1</MarkerZ></Marker>"
        "</CellCounter_Marker_File>",
        "outside",
    ),
    "nan.xml": (
        BODY.format(PART.replace("</Marker>", "<MarkerZ>nan</MarkerZ></Marker>")),
        "z must be finite; got nan in row 0",
    ),
    "long.xml": (BODY.format("<Name>" + "a" * 100_000 + "</Name>"), "more than 10000 characters"),
    "encoding.xml": ('<?xml version="1.0" encoding="utf-7"?><CellCounter_Marker_File/>', "line 1"),
    "empty.xml": ("", "no element found"),
    "empty.csv": ("", "header"),
    "columns.csv": ("a,b\n1,2\n", r"\['a', 'b'\]"),
    "word.csv": ("z,y,x\n1,2,3\n1,two,3\n", "y must be finite; got 'two' in row 1, and 1 such values in 2 rows"),
    "ragged.csv": ("z,y,x\n1,2,3\n1,2,3,4,5\n", "header"),
    "time.csv": ("index,axis-0,axis-1,axis-2,axis-3\n0,1,2,3,4\n", "axis-3"),
    "plane.csv": ("index,axis-0,axis-1\n0,1,2\n", "3D layer"),
    "a.txt": ("z,y,x\n1,2,3\n", "no known ending"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_raise_one_line_messages(tmp_path, name):
    """Bad files raise FormatError with one line; XML entities are neither expanded nor fetched."""
    content, message = BAD[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(FormatError, match=message) as caught:
        read_points(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=300 if FULL else 60)
@given(st.sampled_from(["xml", "csv"]), st.integers(0, 400), st.integers(0, 40), st.binary(max_size=30))
def test_damaged_files_are_read_or_raise(tmp_path, ending, offset, length, replacement):
    """A file with some bytes replaced gives a table or a message of one line."""
    file = tmp_path / f"a.{ending}"
    write_points(cells(3).assign(type=[1, 2, 2]), file, overwrite=True)
    whole = file.read_bytes()
    file.write_bytes(whole[:offset] + replacement + whole[offset + length :])
    try:
        table, message = read_points(file), ""
    except FormatError as error:
        table, message = cells(1), str(error)
    assert "\n" not in message
    # The damaged header may have lost one of the two.
    columns = next(names for names in (VOXEL, WORLD) if set(names) <= set(table))
    assert np.isfinite(table[columns].to_numpy()).all()


def test_text_file_with_parquet_ending_raises(tmp_path):
    """A text file named .parquet raises FormatError, whether or not pyarrow is installed."""
    (tmp_path / "a.parquet").write_text("z,y,x")
    with pytest.raises(FormatError, match="Parquet"):
        read_points(tmp_path / "a.parquet")


def test_tables_that_cannot_be_written_leave_no_file(tmp_path):
    """Missing voxels, infinite or missing points, odd types and an existing file raise; nothing is written."""
    table = cells()
    for name, wrong, message in (
        ("a.xml", table[WORLD], "as like="),
        ("a.napari.csv", table[WORLD], "as like="),
        ("a.csv", table.assign(z=np.inf), "in row 0"),
        ("a.csv", table[["score"]], "X, Y, Z"),
        ("a.xml", table.assign(type="cell"), "whole numbers"),
    ):
        with pytest.raises(DataError, match=message):
            write_points(wrong, tmp_path / name)
    assert os.listdir(tmp_path) == []
    write_points(table, tmp_path / "a.csv")
    with pytest.raises(FormatError, match="overwrite=True"):
        write_points(table, tmp_path / "a.csv")
    with pytest.raises(FormatError, match="does not exist"):
        read_points(tmp_path / "b.csv")
