"""Model folders that were damaged or made to do harm are refused with one sentence."""

import json
import shutil
import struct
import time

import pytest

import mrhdata
from mrhdata.errors import FormatError, ModelError
from mrhdata.models import storage


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Return the folder of a small network."""
    folder = tmp_path_factory.mktemp("models") / "net"
    mrhdata.models.save(mrhdata.models.create("mrhnet", in_channels=2, loop_blocks=1), folder)
    return folder


@pytest.fixture
def folder(network, tmp_path):
    """Return a copy of the folder, with the name of a test."""
    return shutil.copytree(network, tmp_path / "copy")


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes))


def assert_refused(folder, pattern=None):
    """Check for one sentence that names the folder, at once."""
    start = time.process_time()
    with pytest.raises(ModelError, match=pattern) as caught:
        mrhdata.models.load(folder)
    assert folder.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert time.process_time() - start < 3


def test_a_good_folder_loads(folder):
    """The check of shapes keeps the weights."""
    assert mrhdata.models.load(folder).spec.config == {"in_channels": 2, "loop_blocks": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"config": 5},
        {"config": {"in_channels": -1}},
        {"config": {"in_channels": 10**9}},
        {"config": {"in_channels": 2, "loop_blocks": 10**9}},
        {"config": {"in_channels": 2, "loop_blocks": 9000}},
        {"config": {"in_channels": "2"}},
        {"config": {"in_channels": 2.5, "loop_blocks": 1}},
        {"config": {"in_channels": None}},
        {"config": {"name": "x"}},
        {"config": {"a": 1}},
        {"name": {}},
        {"name": "os.system"},
        {"name": "ensemble", "config": {"members": [{}]}},
        {"name": "ensemble", "config": {"members": [3]}},
        {"name": "unet3d", "config": {}},
        {"channels": 3},
        {"channels": [1]},
        {"patch": [1, 2]},
        {"patch": "333"},
        {"axis": 3},
        {"axis": True},
        {"spacing_mm": ["a"]},
        {"spacing_mm": [float("nan")]},
        {"context_slices": -1},
        {"labels": [0.5]},
        {"inputs": {"offset": [0.0]}},
        {"inputs": {"offset": ["a"], "factor": [1.0]}},
        {"inputs": [1, 2]},
        {"prepare": [["a"]]},
        {"finish": 3},
        {"unknown": 1},
        {"sha256": 3},
        {"sha256": ["a"]},
    ],
)
def test_settings_of_other_types_are_refused(folder, changes):
    """Wrong types, settings that do not fit the weights, and sizes that would fill the memory."""
    edit(folder, **changes)
    assert_refused(folder)


@pytest.mark.parametrize("position", [0.2, 0.5, 1.0])
def test_weights_of_which_one_bit_changed_are_refused(folder, position):
    """A changed weight is a number like any other, so only the checksum tells it."""
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[min(int(position * len(content)), len(content) - 1)] ^= 16
    weights.write_bytes(content)
    assert_refused(folder, r"model\.safetensors is damaged: its SHA-256 must be .*Copy the folder again")


def test_folders_without_a_checksum_load(folder):
    """Older folders, and those of others, state none."""
    path = folder / "config.json"
    content = json.loads(path.read_text("utf-8"))
    assert len(content.pop("sha256")) == 64
    path.write_text(json.dumps(content))
    assert mrhdata.models.load(folder).spec.config == {"in_channels": 2, "loop_blocks": 1}


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 100_000, "[]", "3", "null", "", "\0", " " * 2_000_000])
@pytest.mark.parametrize("name", ["config.json", "card.json"])
def test_json_files_that_are_no_settings_are_refused(folder, name, text):
    """Deep, large, empty and other JSON, in the settings and in a card."""
    (folder / name).write_text(text)
    assert_refused(folder)


def test_binary_settings_and_a_card_of_other_types_are_refused(folder):
    """The hash of a card is text."""
    (folder / "config.json").write_bytes(b"\xff\xfe\xff")
    assert_refused(folder)
    (folder / "card.json").write_text(json.dumps({"sha256": 3}))
    assert_refused(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 10) + b"{",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
    ],
)
def test_headers_of_weights_that_make_no_sense_are_refused(folder, header):
    """Sizes beyond the file, no tensors, and deep JSON."""
    (folder / "model.safetensors").write_bytes(header)
    assert_refused(folder)


def test_weights_of_another_shape_are_refused_before_the_network_is_built(folder, monkeypatch):
    """The weights file of two channels does not become a network of 5000."""
    edit(folder, config={"in_channels": 5000, "loop_blocks": 1})
    monkeypatch.setattr("safetensors.torch.load_file", lambda *_: pytest.fail("the weights were read"))
    assert_refused(folder, "do not fit")


def test_a_network_that_cannot_be_written_is_told(folder, monkeypatch):
    """A full disk is an error of one sentence, and the old network stays."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.json, "dumps", full)
    with pytest.raises(FormatError, match=r"copy cannot be written .*No space left.*free disk space"):
        mrhdata.models.save(mrhdata.models.create("mrhnet", in_channels=2, loop_blocks=1), folder)
    monkeypatch.undo()
    mrhdata.models.load(folder)
