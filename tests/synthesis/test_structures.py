import csv

import numpy as np
import pytest

from mrhdata.errors import DataError, FormatError, GridError, ParameterError
from mrhdata.synthesis import FREESURFER, Anatomy, LabelMap, Structure
from mrhdata.synthesis.priors import PRIORS
from mrhdata.synthesis.structures import TISSUES


def test_every_side_has_its_partner():
    """Partners are mutual, share their class, and only unpaired structures are their own partner."""
    partners = FREESURFER.swapped_sides
    for index, structure in enumerate(FREESURFER.structures):
        partner = FREESURFER.structures[int(partners[index])]
        assert int(partners[int(partners[index])]) == index
        assert (partner is structure) != structure.name.startswith(("left ", "right "))
        assert FREESURFER.classes[index] == FREESURFER.classes[int(partners[index])]


def test_every_modality_has_every_tissue():
    """A prior for each tissue."""
    for prior in PRIORS.values():
        assert set(prior) == set(TISSUES)


def test_the_table_of_the_label_maps_is_covered(shared):
    """Every label of the 20 maps is a structure, with the name of the table if that has one."""
    with (shared / "label-maps" / "labels.tsv").open(newline="") as file:
        rows = {int(row["label"]): row["name"] for row in csv.DictReader(file, delimiter="\t")}
    names = {s.label: s.name for s in FREESURFER.structures}
    assert set(rows) == set(names)
    named = {label: name for label, name in rows.items() if "extra label" not in name and "outside" not in name}
    assert {label: names[label] for label in named} == named


def test_tables(tmp_path):
    """Columns by name; tissue and class are optional."""
    path = tmp_path / "labels.tsv"
    path.write_text("label\tname\ttissue\tgeneration_class\n3\tleft cortex\tgrey\t\n7\tfluid\tcsf\twater\n")
    anatomy = Anatomy.read(path)
    assert anatomy.class_names == ("background", "cortex", "water")
    assert anatomy.class_tissues == ("background", "grey", "csf")
    (tmp_path / "labels.csv").write_text("label,name\n1,cell\n")
    assert Anatomy.read(tmp_path / "labels.csv").structures[1] == Structure(1, "cell")
    path.write_text("number\tname\n3\tcortex\n")
    with pytest.raises(FormatError, match=r"must have the columns label and name; got \['name', 'number'\]"):
        Anatomy.read(path)


def test_bad_structures():
    """Repeated labels and unknown tissues."""
    with pytest.raises(ParameterError, match="labels must differ; got"):
        Anatomy((Structure(1, "a"), Structure(1, "b")))
    with pytest.raises(ParameterError, match=r"tissue must be one of .*; got 'gray'"):
        Structure(1, "a", "gray")
    with pytest.raises(ParameterError, match="tissue must be one of"):
        FREESURFER.tissue_targets({"gray": 1})


@pytest.mark.parametrize(
    ("labels", "spacing_mm", "error", "message"),
    [
        (np.ones((2, 2, 2), np.uint8), None, GridError, "spacing_mm must be three lengths above 0; got None"),
        (np.ones((2, 2, 2), np.uint8), (1, 0, 1), GridError, "spacing_mm must be three lengths above 0"),
        (np.ones((2, 2), np.uint8), (1, 1, 1), GridError, "labels must be whole numbers with the axes z, y, x"),
        (np.ones((2, 2, 2), np.float32), (1, 1, 1), GridError, 'got float32 with 3 axes. Read them with kind="labels"'),
        (np.zeros((2, 2, 2), np.uint8), (1, 1, 1), DataError, "labels must have a voxel above 0"),
        (np.full((2, 2, 2), 9, np.uint8), (1, 1, 1), DataError, r"must be listed in the anatomy; got \[9\]"),
        (np.full((2, 2, 2), -1, np.int8), (1, 1, 1), DataError, r"must be listed in the anatomy; got \[-1\]"),
    ],
)
def test_bad_label_maps(labels, spacing_mm, error, message):
    """Each message has the expected value, the actual one and the remedy."""
    with pytest.raises(error, match=message):
        LabelMap.make(labels, Anatomy.of_labels([1, 2]), spacing_mm)


def test_maps_are_cropped_to_their_tissue(labels):
    """Indices without empty planes, and the place of the first plane."""
    label_map = LabelMap.make(labels, FREESURFER, (1, 1, 1))
    assert label_map.start == (4, 4, 4)
    np.testing.assert_array_equal(FREESURFER.labels[label_map.indices], labels[4:-4, 4:-4, 4:-4])
    assert label_map.brain_bottom == 9


def test_more_than_256_structures():
    """Indices become 16 bits."""
    values = np.arange(1, 513, dtype=np.int32).reshape(8, 8, 8) * 40
    anatomy = Anatomy.of_labels(values.ravel())
    label_map = LabelMap.make(values, anatomy, (1, 1, 1))
    np.testing.assert_array_equal(anatomy.labels[label_map.indices], values)
