"""Files that appear whole or not at all."""

import os
import socket

import pytest

from mrhdata import errors
from mrhdata._runtime.atomic import appearing


def test_a_failed_block_leaves_the_old_file_and_no_draft(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail():
        with appearing(target) as draft:
            draft.write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.read_text("utf-8") == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_replaces_a_folder(tmp_path):
    target = tmp_path / "a"
    for name in ("one", "two"):
        with appearing(target) as draft:
            draft.mkdir()
            (draft / name).touch()
    assert os.listdir(target) == ["two"]
    assert os.listdir(tmp_path) == ["a"]


def test_drafts_of_dead_processes_go_and_those_of_others_stay(tmp_path):
    host = socket.gethostname()
    dead = tmp_path / f".partial-{host}-999999999-abc.a.txt"
    kept = [
        tmp_path / f".partial-{host}-{os.getppid()}-abc.a.txt",  # alive
        tmp_path / ".partial-elsewhere-999999999-abc.a.txt",  # on another machine
        tmp_path / f".partial-{host}-999999999-abc.b.a.txt",  # of another target
    ]
    for path in (dead, *kept):
        path.touch()
    with appearing(tmp_path / "a.txt") as draft:
        draft.touch()
    assert not dead.exists()
    assert all(path.exists() for path in kept)


def test_what_exists_is_kept_unless_asked(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(errors.FormatError, match="overwrite=True"), appearing(tmp_path / "a", overwrite=False):
        pass
    with pytest.raises(errors.FormatError, match="make it first"), appearing(tmp_path / "no" / "a"):
        pass
