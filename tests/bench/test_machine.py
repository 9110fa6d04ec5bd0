"""The description of the machine names what is slow or missing, and only that."""

import copy
import json

import pytest

from mrhdata.bench import machine
from tests.conftest import command as run


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """The description of this machine."""
    folder = tmp_path_factory.mktemp("disk")
    description = machine.describe_machine(folder)
    assert list(folder.iterdir()) == []
    return description


def notes_of(described, **changes):
    """The notes on this machine with other properties, without those on its own ones."""
    fast = {"GPU": ["A, 8 GB"], "memory GB": {"total": 64.0}, "optional": {"s3": "installed"}}
    fast["processor"] = {"cores": 4, "torch threads": 4, "instructions": "AVX2", "bfloat16": False}
    fast["disk"] = {"folder": "/data", "free GB": 10.0, "written MB/s": 900}
    return machine._notes(copy.deepcopy(described) | fast | changes)


def test_a_fast_machine_has_no_notes(described):
    assert notes_of(described) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"GPU": []}, ["no GPU", "no bfloat16 instructions"]),
        ({"processor": {"cores": 4, "torch threads": 1, "bfloat16": True}}, ["1 of 4 cores: set OMP_NUM_THREADS=4"]),
        ({"memory GB": {"total": 64.0, "limit": 2.0}}, ["2 GB of memory are free: pass --memory"]),
        ({"disk": {"folder": "/nfs", "written MB/s": 20}}, ["/nfs is written at 20 MB/s"]),
        ({"optional": {"s3": "not installed", "bench": "installed"}}, ["pip install 'mrhdata[s3]'"]),
    ],
)
def test_each_weakness_has_a_note(described, changes, words):
    notes = notes_of(described, **changes)
    assert len(notes) == len(words)
    for note, word in zip(notes, words, strict=True):
        assert word in note


def test_the_command_prints_the_description(tmp_path):
    """As lines, and as JSON with the same keys; a folder that does not exist is an error."""
    code, out, _ = run("doctor", "--folder", tmp_path)
    assert code == 0
    code, text, _ = run("doctor", "--folder", tmp_path, "--json")
    description = json.loads(text)
    assert {line.split("  ")[0] for line in out.splitlines() if not line.startswith("note:")} == {
        key for key in description if key != "notes"
    }
    assert description["libraries"]["torch"] == __import__("torch").__version__
    code, _, err = run("doctor", "--folder", tmp_path / "none")
    assert (code, "--folder must be a folder" in err) == (2, True)
