"""Atlases in the folder of BrainGlobe."""

import json

import numpy as np
import pytest
import tifffile

from mrhdata.analysis.region_counts import read_ontology
from mrhdata.datasets.brainglobe import directions, read_atlas
from mrhdata.errors import FormatError

STRUCTURES = [
    {"acronym": "root", "id": 997, "name": "root", "structure_id_path": [997]},
    {"acronym": "CTX", "id": 688, "name": "Cerebral cortex", "structure_id_path": [997, 688]},
    {"acronym": "VISp1", "id": 593, "name": "Primary visual area, layer 1", "structure_id_path": [997, 688, 593]},
]


@pytest.fixture
def atlases(tmp_path):
    """A folder with two versions of one small atlas; the newer one holds the label 593."""
    for version, label in (("1.2", 688), ("1.10", 593)):
        folder = tmp_path / f"tiny_mouse_100um_v{version}"
        folder.mkdir()
        values = np.zeros((4, 3, 2), np.uint32)
        values[0, 1, 0] = label
        tifffile.imwrite(folder / "annotation.tiff", values, photometric="minisblack")
        (folder / "metadata.json").write_text(json.dumps({"resolution": [100, 50, 25], "orientation": "asr"}))
        (folder / "structures.json").write_text(json.dumps(STRUCTURES))
    return tmp_path


def test_the_newest_version_is_read_with_its_geometry(atlases):
    """Origins become directions: the first voxel lies anterior, superior and right."""
    atlas = read_atlas("tiny_mouse_100um", atlases)
    assert atlas.annotation.attrs["kind"] == "labels"
    assert atlas.annotation.mrh.space == "tiny_mouse_100um"
    assert 593 in atlas.annotation.values
    index = np.argwhere(atlas.annotation.values == 593)
    (world,) = atlas.annotation.mrh.world(index)
    corner = atlas.annotation.mrh.grid.corners()
    assert world[1] == pytest.approx(corner[:, 1].max(), abs=0.06)
    assert world[0] == pytest.approx(corner[:, 0].max(), abs=0.06)
    assert sorted(atlas.annotation.mrh.spacing.round(3)) == [0.025, 0.05, 0.1]


def test_parents_come_from_the_path_of_structures(atlases):
    """structures.json has no field for the parent."""
    names = read_ontology(read_atlas("tiny_mouse_100um", atlases).structures)
    assert {label: region.parent for label, region in names.items()} == {997: None, 688: 997, 593: 688}


@pytest.mark.parametrize(("origins", "expected"), [("asr", "PIL"), ("lpi", "RAS"), ("ASL", "PIR")])
def test_origins_are_the_opposite_of_directions(origins, expected):
    """An axis that begins anterior points to posterior."""
    assert directions(origins) == expected


def test_an_atlas_that_was_not_downloaded_is_refused(atlases):
    """The message names the folder, the atlases in it, and the command that downloads one."""
    with pytest.raises(FormatError, match=r"got 'allen_mouse_25um', and there are tiny_mouse_100um\. Download it with"):
        read_atlas("allen_mouse_25um", atlases)
    (atlases / "tiny_mouse_100um_v1.10" / "metadata.json").write_text("{")
    with pytest.raises(FormatError, match=r"metadata\.json cannot be read"):
        read_atlas("tiny_mouse_100um", atlases)
