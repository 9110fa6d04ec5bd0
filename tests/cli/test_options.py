"""Words of the command line that become numbers, shares, directions and files."""

import pytest

from mrhdata.cli import options
from mrhdata.errors import DataError, ParameterError


@pytest.mark.parametrize(
    ("letters", "expected"),
    [("bg:asr", "PIL"), ("bg:lpi", "RAS"), ("bg:ras", "LPI"), ("bg:SPL", "IAR"), ("pir", "PIR"), ("LPS", "LPS")],
)
def test_brainglobe_letters_name_origins(letters, expected):
    """An axis whose origin lies anterior points to posterior; letters without bg: are directions already."""
    assert options.directions(letters) == expected


@pytest.mark.parametrize("letters", ["asr:bg", "bg:", "bg:aas", "PI", "PIRR", "XYZ", ""])
def test_wrong_letters_are_refused(letters):
    with pytest.raises(ParameterError, match="--orientation must be three letters"):
        options.directions(letters)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.6,0.2,0.2", {"train": 0.6, "validation": 0.2, "test": 0.2}),
        ("3,1,1", {"train": 3.0, "validation": 1.0, "test": 1.0}),
        ("train=0.8, test=0.2", {"train": 0.8, "test": 0.2}),
        ("test=0.2,train=0.7,validation=0.1", {"test": 0.2, "train": 0.7, "validation": 0.1}),
    ],
)
def test_shares_of_a_split(text, expected):
    assert options.split_shares(text) == expected


@pytest.mark.parametrize(
    "text", ["", "0.6", "0.6,0.4", "0.6,0.4,0", "train=0.8,0.2", "train=0.8,train=0.2", "a=b", "1,1,1,1", "1,1,nan"]
)
def test_wrong_shares_are_refused(text):
    with pytest.raises(
        ParameterError, match=r"--split must be shares of train, validation and test such as 0\.6,0\.2,0\.2"
    ):
        options.split_shares(text)


def test_three_shares_come_in_the_order_of_the_parts():
    assert options.three_shares("test=0.2,train=0.7,validation=0.1") == [0.7, 0.1, 0.2]
    with pytest.raises(ParameterError, match="--split must have shares of train, validation and test"):
        options.three_shares("train=0.8,test=0.2")


def test_files_of_one_name_get_numbers():
    files = ["a/t2w.nii", "b/t2w.nii.gz", "b/mt.nii"]
    assert options.files_by_name(files) == {"t2w": files[0], "t2w-2": files[1], "mt": files[2]}
    assert options.channels(["a/t2w.nii", "mt=b/x.nii"]) == {"t2w": "a/t2w.nii", "mt": "b/x.nii"}
    with pytest.raises(DataError, match="two inputs have one name"):
        options.channels(["a/t2w.nii", "t2w=b/x.nii"])


@pytest.mark.parametrize("text", ["2", "2,3", "2,3,", "2;3;4", "2,3,4,5", "a,b,c", "0,0,inf"])
def test_three_numbers_are_needed_for_a_point(text):
    with pytest.raises(ParameterError, match="--at must be three numbers with commas"):
        options.numbers("--at", text)
