"""Names of labels are read from the tables of other programs."""

import pytest

from mrhdata.errors import FormatError
from mrhdata.io.label_names import read_label_names

TABLES = {
    "dseg.tsv": "index\tname\tcolor\n1\tgrey matter\t#ff0000\n2\twhite matter\t#ffffff\n",
    "structures.csv": "acronym,id,name,structure_id_path\nGM,1,grey matter,/1/\nWM,2,white matter,/2/\n",
    "excel.csv": "\ufeffLabel;Structure\n1;grey matter\n2.0;white matter\n",
    "snap.label": '# ITK-SnAP\n  1   255  0  0   1  1  1    "grey matter"\n  2  0 255 0  1  1  1   "white matter"\n',
    "allen.json": '{"msg": [{"id": 1, "name": "grey matter", "children": [{"id": 2, "name": "white matter"}]}]}',
    "brainglobe.json": '[{"id": 1, "name": "grey matter"}, {"id": 2, "name": "white matter"}]',
    "names.json": '{"1": "grey matter", "2": "white matter"}',
    "dataset.json": '{"labels": {"grey matter": 1, "white matter": 2, "both": [1, 2]}}',
}


@pytest.mark.parametrize("name", TABLES)
def test_names_of_each_kind_of_table(tmp_path, name):
    (tmp_path / name).write_text(TABLES[name], encoding="utf-8")
    assert read_label_names(tmp_path / name) == {1: "grey matter", 2: "white matter"}


def test_names_of_freesurfer(tmp_path):
    """Names have no spaces; comments and empty lines do not count."""
    table = "#$Id\n\n#No. Label Name:   R G B A\n0   Unknown  0 0 0 0\n17  Left-Hippocampus  220 216 20 0\n"
    (tmp_path / "FreeSurferColorLUT.txt").write_text(table)
    assert read_label_names(tmp_path / "FreeSurferColorLUT.txt") == {0: "Unknown", 17: "Left-Hippocampus"}


@pytest.mark.parametrize("content", ["", "x,y\n1,2\n", "index\tname\na\tb\n", "{", "[]", "\x00\xff"])
@pytest.mark.parametrize("ending", ["tsv", "json"])
def test_a_file_without_names_is_named(tmp_path, content, ending):
    path = tmp_path / f"names.{ending}"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(FormatError, match=r"names\..* has no names of labels.* Pass a table with the columns"):
        read_label_names(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FormatError, match=r"a\.tsv does not exist\. Check the path"):
        read_label_names(tmp_path / "a.tsv")
