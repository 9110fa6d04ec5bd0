"""Folders and file names of nnU-Net: data sets of both versions, and folders of cases."""

import json
from pathlib import Path

import numpy as np
import pytest

import mrhdata
from mrhdata.datasets.nnunet import cases_in, group_channels, is_dataset, read_dataset
from mrhdata.datasets.subjects import find_nnunet_subjects
from mrhdata.errors import DataError, FormatError
from mrhdata.volume.construct import from_array


def write_volumes(folder, *names):
    """Write small label volumes; the value of the first voxel is the number of the name."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        values = np.zeros((2, 3, 4), np.uint8)
        values[0, 0, 0] = number
        mrhdata.write(from_array(values, spacing=(1, 1, 1)), folder / name)


@pytest.fixture
def dataset(tmp_path):
    """A data set of version 2 with two cases of two channels."""
    content = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {"background": 0, "whole": [1, 2], "core": 2}}
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"file_ending": ".nii.gz"}))
    images = [f"imagesTr/BRATS_{case}_{number:04}.nii.gz" for case in ("002", "001") for number in (1, 0)]
    write_volumes(tmp_path, *images, "labelsTr/BRATS_001.nii.gz", "labelsTr/BRATS_002.nii.gz")
    return tmp_path


def rewrite(folder, **fields):
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | fields))


def test_channels_are_in_the_order_of_their_suffix(dataset):
    assert is_dataset(dataset)
    assert not is_dataset(dataset / "imagesTr")
    data = read_dataset(dataset)
    assert data.channels == ("T1", "FLAIR")
    assert list(data.images) == ["BRATS_001", "BRATS_002"]
    assert [path.name for path in data.images["BRATS_002"]] == ["BRATS_002_0000.nii.gz", "BRATS_002_0001.nii.gz"]
    assert data.labels["BRATS_002"].name == "BRATS_002.nii.gz"


def test_label_names_of_both_versions(dataset):
    """Version 2 names values, and regions that join values have none; version 1 has values by name."""
    assert read_dataset(dataset).names == {0: "background", 2: "core"}
    rewrite(dataset, labels={"0": "background", "1": "oedema", "2": "core"})
    assert read_dataset(dataset).names == {0: "background", 1: "oedema", 2: "core"}


def test_version_1_names_channels_in_modality(dataset):
    content = {"modality": {"0": "MRI", "1": "MRI"}, "labels": {"0": "background", "1": "core"}}
    (dataset / "dataset.json").write_text(json.dumps(content))
    assert read_dataset(dataset).channels == ("MRI-0", "MRI-1")


def test_subjects_have_the_volumes_of_their_case(dataset):
    """Each case is a person, because nnU-Net has none; names such as sub-01_ses-2 give the person."""
    subjects = find_nnunet_subjects(dataset)
    assert [(subject.id, subject.person) for subject in subjects] == [
        ("BRATS-001", "BRATS-001"),
        ("BRATS-002", "BRATS-002"),
    ]
    # The fixture writes 002_0001, 002_0000, 001_0001, 001_0000, and then the labels of 001 and 002.
    firsts = [[int(v[0, 0, 0]) for v in subject.inputs.values()] for subject in subjects]
    assert firsts == [[3, 2], [1, 0]]
    assert [list(subject.inputs) for subject in subjects] == [["T1", "FLAIR"]] * 2
    assert [int(subject.target[0, 0, 0]) for subject in subjects] == [4, 5]
    for folder, ending in (("imagesTr", "_0000"), ("imagesTr", "_0001"), ("labelsTr", "")):
        name = f"sub-01_ses-2{ending}.nii.gz"
        (dataset / folder / f"BRATS_001{ending}.nii.gz").rename(dataset / folder / name)
    assert [(subject.id, subject.person) for subject in find_nnunet_subjects(dataset)] == [
        ("BRATS-002", "BRATS-002"),
        ("01_ses-2", "01"),
    ]


def test_voxels_of_the_label_ignore_have_no_ground_truth(dataset):
    """They are -1 in the target, which training and scores leave out; the other labels keep their values."""
    rewrite(dataset, labels={"background": 0, "lesion": 4, "ignore": 5})
    assert (read_dataset(dataset).ignore, read_dataset(dataset).names) == (5, {0: "background", 4: "lesion"})
    targets = [subject.target for subject in find_nnunet_subjects(dataset)]
    assert [int(target[0, 0, 0]) for target in targets] == [4, -1]
    assert {target.attrs["kind"] for target in targets} == {"labels"}


def test_only_files_of_the_ending_are_read(dataset):
    write_volumes(dataset, "imagesTr/notes.nii", "labelsTr/notes.nii")
    assert list(read_dataset(dataset).images) == ["BRATS_001", "BRATS_002"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda d: (d / "imagesTr/BRATS_001_0001.nii.gz").unlink(),
            DataError,
            "BRATS_001 has 1 channels; dataset.json",
        ),
        (lambda d: (d / "labelsTr/BRATS_002.nii.gz").unlink(), DataError, "case BRATS_002 has no labels in"),
        (lambda d: rewrite(d, channel_names=["T1"]), FormatError, "must have channel_names"),
        (lambda d: rewrite(d, channel_names={"1": "T1"}), FormatError, "must have channel_names"),
        (lambda d: rewrite(d, file_ending=".mha"), DataError, "has no volumes; files must be named CASE_0000"),
        (lambda d: (d / "labelsTr").rename(d / "labels"), DataError, "labelsTr does not exist"),
        (lambda d: (d / "dataset.json").write_text("{"), FormatError, "dataset.json cannot be read"),
        (lambda d: (d / "dataset.json").write_text("[]"), FormatError, "must be a JSON object"),
    ],
)
def test_incomplete_data_sets_are_refused(dataset, change, error, message):
    change(dataset)
    with pytest.raises(error, match=message):
        read_dataset(dataset)


def test_cases_of_a_folder_are_volumes_directly_in_it(tmp_path):
    """Stores and stacks of planes are cases, files in other folders and planes of a stack are not."""
    write_volumes(tmp_path, "a_0000.nii.gz", "b.zarr", "c.ome.tif", "deeper/d.nii.gz")
    (tmp_path / "e").mkdir()
    for number in range(3):
        (tmp_path / "e" / f"plane-{number}.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    cases = cases_in(tmp_path)
    assert {case: [path.name for path in files] for case, files in cases.items()} == {
        "a": ["a_0000.nii.gz"],
        "b": ["b.zarr"],
        "c": ["c.ome.tif"],
        "e": ["e"],
    }


@pytest.mark.parametrize("name", ["a.zarr", "stack", "planes", "empty"])
def test_one_volume_has_no_cases(tmp_path, name):
    """OME-Zarr, numbered planes, planes with other names, and a folder without volumes."""
    folder = tmp_path / name
    if name == "a.zarr":
        write_volumes(tmp_path, "a.zarr")
    else:
        folder.mkdir()
    for plane in {"stack": ("z1.tif", "z2.tif"), "planes": ("top.tif", "bottom.tif")}.get(name, ()):
        (folder / plane).write_bytes(b"")
    assert cases_in(folder) == {}


def test_two_files_of_one_channel_are_refused():
    with pytest.raises(DataError, match=r"a_0000.mnc and a_0000.nii.gz are both channel 0 of a; remove one"):
        group_channels([Path("a_0000.nii.gz"), Path("a_0000.mnc")])


def test_suffixes_that_do_not_count_from_0_are_part_of_the_name():
    files = [Path(name) for name in ("a_2024.nii", "a_2025.nii", "b_0000.nii", "b_0002.nii")]
    assert list(group_channels(files)) == ["a_2024", "a_2025", "b_0000", "b_0002"]
