"""Cell counts in regions agree with counts by hand, on any grid, read in parts, and summed up to parents."""

import json

import dask.array as da
import numpy as np
import pandas as pd
import pytest

import mrhdata
from mrhdata.analysis import region_counts
from mrhdata.analysis.region_counts import Region, count, read_ontology, regions_at
from mrhdata.errors import DataError, FormatError, GridError
from mrhdata.io.cell_tables import VOXEL, WORLD, with_world_points, write_points
from mrhdata.registration import itk
from mrhdata.registration.transforms import Affine, Transform
from mrhdata.volume.construct import describe, from_array
from tests.conftest import command, oblique_affine


def brain(seed=0, shape=(9, 12, 15)):
    """Return labels 0, 3, 4 and a large one on an oblique, anisotropic grid, and cells inside and outside of it."""
    rng = np.random.default_rng(seed)
    values = rng.choice(np.array([0, 3, 4, 614454277], np.uint32), shape)
    labels = from_array(values, affine=oblique_affine(), kind="labels", space="CCFv3")
    voxels = rng.uniform(-2, np.array(labels.shape) + 1, (500, 3))
    return labels, with_world_points(pd.DataFrame(voxels, columns=VOXEL), labels)


def label_each_cell(labels, cells):
    """Return the label of each cell, computed cell by cell."""
    result = []
    for voxel in np.rint(cells[VOXEL].to_numpy()).astype(int):
        inside = (voxel >= 0).all() and (voxel < labels.shape).all()
        result.append(int(labels.values[tuple(voxel)]) if inside else 0)
    return np.array(result)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("read_voxels", [1, 100, 10**9])
def test_counts_and_volumes_agree_with_counts_by_hand(monkeypatch, lazy, read_voxels):
    """Results do not depend on how many voxels are read at once."""
    monkeypatch.setattr(region_counts, "_READ_VOXELS", read_voxels)
    labels, cells = brain()
    expected = label_each_cell(labels, cells)
    volume = labels.chunk({"z": 4, "y": 5, "x": 6}) if lazy else labels
    np.testing.assert_array_equal(regions_at(cells[WORLD], volume), expected)
    table = count(cells, volume).set_index("region")
    assert list(table.index) == [0, 3, 4, 614454277]
    for label, row in table.iterrows():
        assert row["count"] == (expected == label).sum() > 0
        if label:
            assert row.volume_mm3 == pytest.approx((labels.values == label).sum() * 0.1 * 0.2 * 0.3)
            assert row.density_per_mm3 == row["count"] / row.volume_mm3
    assert table["count"].sum() == len(cells)
    assert np.isnan(table.loc[0, ["volume_mm3", "density_per_mm3"]].to_numpy()).all()


def test_each_chunk_is_read_once_and_only_if_it_has_points():
    """A volume of 64 Gvoxel fits in no memory."""
    chunks_read = []

    def block(block_info=None):
        location = block_info[None]["chunk-location"]
        chunks_read.append(location)
        assert len(chunks_read) <= 8
        return np.full(block_info[None]["chunk-shape"], location[0] * 10 + location[2] + 1, np.uint16)

    def volume(blocks):
        array = da.map_blocks(block, chunks=[(250,) * n for n in blocks], dtype=np.uint16, meta=np.empty((0,) * 3))
        return from_array(array, spacing=(0.001, 0.001, 0.001), kind="labels")

    huge = volume((16, 16, 16))
    assert regions_at([[0.6, 0, 3.1], [0.601, 0, 3.1], [9.0, 0, 0]], huge).tolist() == [123, 123, 0]
    chunks_read.clear()
    table = count(pd.DataFrame({"X": [0.3], "Y": [0.0], "Z": [0.1]}), volume((2, 2, 2)))
    assert sorted(chunks_read) == sorted(np.ndindex(2, 2, 2))
    assert table["count"].tolist() == [0, 0, 1, 0, 0]
    assert table.volume_mm3[1:].tolist() == pytest.approx([2 * 0.25**3] * 4)


def test_cells_are_transformed_to_the_atlas():
    """A transform from brain to atlas gives the counts of the atlas; the inverse direction is refused."""
    atlas, cells = brain()
    matrix = oblique_affine(angles=(30, 10, 5), spacing=(1.2, 0.9, 1.1))
    to_atlas = Transform([Affine(matrix)], source="scanner", target="CCFv3")
    moved = cells.assign(**dict(zip(WORLD, to_atlas.inverse().points(cells[WORLD]).T, strict=True)))
    pd.testing.assert_frame_equal(count(moved, atlas, transform=to_atlas), count(cells, atlas))
    assert not count(moved, atlas)["count"].equals(count(cells, atlas)["count"])
    with pytest.raises(GridError, match=r"Try transform.inverse\(\)"):
        count(moved, atlas, transform=to_atlas.inverse())


def test_counts_of_parents_include_their_regions():
    """Labels may have voxels and children, only children, neither, or no name."""
    values = np.array([[[1, 1, 2, 3, 9, 0]]], np.int32)
    labels = from_array(values, spacing=(1, 1, 1), kind="labels")
    cells = pd.DataFrame({"X": [0.0, 1, 2, 3, 3, 4, 5], "Y": 0.0, "Z": 0.0})
    names = {7: Region("all"), 5: Region("nowhere", 7), 1: Region("part", 7), 2: Region("part of part", 1), 3: "single"}
    table = count(cells, labels, names)
    assert table.region.tolist() == [0, 7, 1, 2, 3, 9]
    assert table.name.tolist() == ["outside", "all", "part", "part of part", "single", "9"]
    assert table.parent.tolist() == [0, 0, 7, 1, 0, 0]
    assert table["count"].tolist() == [1, 3, 3, 1, 2, 1]
    assert table.own_count.tolist() == [1, 0, 2, 1, 2, 1]
    assert table.volume_mm3.tolist()[1:] == [3, 3, 1, 1, 1]
    with pytest.raises(DataError, match="is part of itself"):
        count(cells, labels, {1: Region("a", 2), 2: Region("b", 1)})


def test_objects_that_are_not_cells_are_not_counted():
    """Types of cellfinder are 1 for no cell, -1 for an artefact and 2 for a cell."""
    labels = from_array(np.ones((1, 1, 4), np.uint8), spacing=(1, 1, 1), kind="labels")
    cells = pd.DataFrame({"X": [0.0, 1, 2], "Y": 0.0, "Z": 0.0, "type": [1, 2, -1]})
    assert count(cells, labels)["count"].tolist() == [0, 1]


def test_counts_without_cells_or_regions():
    """All counts are 0 without cells; without regions all cells are outside."""
    labels, cells = brain()
    assert count(cells[:0], labels)["count"].tolist() == [0, 0, 0, 0]
    for names in (None, {1: "a"}):
        empty = count(cells, labels * 0, names)
        assert empty.region.tolist() == [0]
        assert empty["count"].tolist() == [500]


def test_invalid_cells_and_regions_are_refused():
    """Cells need finite points, and regions a label volume without times."""
    labels, cells = brain()
    not_finite = cells.assign(X=np.nan)
    for call, error, message in (
        (lambda: count(cells[VOXEL], labels), DataError, "Read them with like="),
        (lambda: count(not_finite, labels), DataError, "500 of 500 cells"),
        (lambda: count(cells, (labels * 0.5).assign_attrs(labels.attrs)), DataError, "must be integers; got"),
        (lambda: count(cells, labels.expand_dims(t=2)), GridError, "Select one first"),
    ):
        with pytest.raises(error, match=message):
            call()
    assert count(cells, labels.expand_dims("c").astype(np.float64)).equals(count(cells, labels))


@pytest.mark.parametrize(
    "text",
    ["", "[", "3", '"name"', '[{"name": "a"}]', '{"a": "b"}', '{"msg": [1]}', "[" * 100_000, '{"msg": 3}'],
)
def test_files_that_are_not_ontologies_are_refused(tmp_path, text):
    """The message has one line for any content."""
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FormatError, match=r"a.json is not an ontology") as caught:
        read_ontology(tmp_path / "a.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(FormatError, match="does not exist"):
        read_ontology(tmp_path / "b.json")


def test_ontologies_are_read(tmp_path):
    """Ontologies may be nested, a list with parents, or names only."""
    nested = {"msg": [{"id": 1, "name": "a", "children": [{"id": 2, "name": "b"}, {"id": 3, "name": "c"}]}]}
    listed = [{"id": 1, "name": "a", "parent_structure_id": None}]
    listed += [{"id": k, "name": name, "parent_structure_id": 1} for k, name in ((2, "b"), (3, "c"))]
    expected = {1: Region("a"), 2: Region("b", 1), 3: Region("c", 1)}
    for content, regions in ((nested, expected), (listed, expected), ({"4": "d"}, {4: Region("d")})):
        (tmp_path / "a.json").write_text(json.dumps(content))
        assert read_ontology(tmp_path / "a.json") == regions
        assert list(read_ontology(tmp_path / "a.json")) == list(regions)


def test_uniform_cells_in_the_allen_annotation(shared):
    """Uniform cells have the same density everywhere, and the root counts all cells in any structure."""
    folder = shared / "mouse-mri-histology"
    annotation = mrhdata.read(folder / "annotation_100.nrrd", kind="labels", axes="PIR", unit="um", space="CCFv3")
    names = read_ontology(folder / "allen_ontology.json")
    assert (len(names), names[997]) == (1327, Region("root"))
    rng = np.random.default_rng(0)
    cells = with_world_points(
        pd.DataFrame(rng.uniform(0, annotation.shape, (100_000, 3)) - 0.5, columns=VOXEL), annotation
    )
    table = count(cells, annotation, names).set_index("name")
    assert set(table.region[1:]) <= set(names)
    volume = (annotation.values > 0).sum() * annotation.mrh.spacing.prod()
    assert table.volume_mm3["root"] == pytest.approx(volume)
    assert table["count"]["root"] + table["count"]["outside"] == len(cells)
    cortex = table.loc["Cerebral cortex"]
    assert cortex.own_count == 0
    assert 5 / np.sqrt(cortex["count"]) > abs(cortex.density_per_mm3 / (1e5 / (annotation.size * 0.1**3)) - 1)


def test_count_on_the_command_line(tmp_path, monkeypatch):
    """Voxels of a brain, carried to an atlas by the transform that a registration wrote."""
    atlas, cells = brain()
    scan = describe(from_array(np.zeros((9, 12, 15), np.uint8), affine=oblique_affine()), space="scanner")
    to_scan = Transform([Affine(oblique_affine(angles=(30, 10, 5), spacing=(1.2, 0.9, 1.1)))])
    mrhdata.write(atlas.astype(np.int32), tmp_path / "atlas.nii")
    mrhdata.write(scan, tmp_path / "scan.nii")
    itk.write(to_scan, tmp_path / "to-scan.h5")
    (tmp_path / "names.json").write_text('{"3": "left", "4": "right"}')
    write_points(cells[VOXEL], tmp_path / "cells.csv")
    words = ["count", "cells.csv", "atlas.nii", "-o", "counts.csv", "--names", "names.json", "--like", "scan.nii"]
    words += ["--transform", "to-scan.h5", "--json"]
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*words)
    assert code == 0, err
    expected = count(cells, atlas, {3: "left", 4: "right"}, to_scan.inverse())
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "counts.csv"), expected)
    outside = int(expected["count"][0])
    said = {"written": "counts.csv", "cells": 500, "of other types": 0, "outside": outside, "regions": 3}
    assert json.loads(out) == said
    code, _, err = command(*words)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "mrhdata count cells.parquet" in command("count", "--help")[1]


@pytest.mark.parametrize("path", [[997, 688, 593], ["997", "688", "593"], "/997/688/593/"])
def test_parents_are_read_from_paths_of_brainglobe_and_allen(tmp_path, path):
    """A path from the root names the parent of a structure, as a list or as text."""
    file = tmp_path / "structures.json"
    root = {"id": 997, "name": "root", "structure_id_path": [997], "parent_structure_id": None}
    file.write_text(json.dumps([root, {"id": 593, "name": "layer", "structure_id_path": path}]))
    assert read_ontology(file) == {997: Region("root"), 593: Region("layer", 688)}


@pytest.mark.parametrize(
    "entries",
    [
        [{"id": 593, "name": "a", "structure_id_path": [997, 688]}],
        [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}],
        [{"id": 1.5, "name": "a"}],
        [{"id": float("inf"), "name": "a"}],
        [{"id": 1, "name": "a", "structure_id_path": 3}],
        [{"id": 1, "name": "a", "structure_id_path": [{}]}],
    ],
)
def test_ontologies_that_contradict_themselves_are_refused(tmp_path, entries):
    """A path that ends elsewhere, a label of two structures, and labels with a fraction or without an end."""
    file = tmp_path / "structures.json"
    file.write_text(json.dumps(entries))
    with pytest.raises(FormatError, match=r"structures\.json is not an ontology") as caught:
        read_ontology(file)
    assert "\n" not in str(caught.value)


def test_a_table_without_cells_of_the_right_type_is_told(caplog):
    """All rows are of types that another program gave."""
    labels = from_array(np.array([[[1]]]), spacing=(1, 1, 1), kind="labels")
    table = count(pd.DataFrame({"X": [0.0], "Y": [0.0], "Z": [0.0], "type": [3]}), labels)
    assert table["count"].sum() == 0
    assert "none of 1 rows has type 2" in caplog.text
