"""Atomic writing: complete files or none."""

import os
import socket

import pytest

from mrhdata import errors
from mrhdata._runtime.atomic import atomic_write


def test_an_exception_keeps_the_old_file_and_removes_the_draft(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail():
        with atomic_write(target) as draft:
            draft.write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.read_text("utf-8") == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_replaces_a_folder(tmp_path):
    target = tmp_path / "a"
    for name in ("one", "two"):
        with atomic_write(target) as draft:
            draft.mkdir()
            (draft / name).touch()
    assert os.listdir(target) == ["two"]
    assert os.listdir(tmp_path) == ["a"]


def test_only_drafts_of_ended_processes_are_removed(tmp_path):
    host = socket.gethostname()
    abandoned = tmp_path / f".partial-{host}-999999999-abc.a.txt"
    other_drafts = [
        tmp_path / f".partial-{host}-{os.getppid()}-abc.a.txt",  # of a running process
        tmp_path / ".partial-elsewhere-999999999-abc.a.txt",  # of another machine
        tmp_path / f".partial-{host}-999999999-abc.b.a.txt",  # of another target
    ]
    for path in (abandoned, *other_drafts):
        path.touch()
    with atomic_write(tmp_path / "a.txt") as draft:
        draft.touch()
    assert not abandoned.exists()
    assert all(path.exists() for path in other_drafts)


def test_existing_targets_and_missing_folders_are_refused(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(errors.FormatError, match="overwrite=True"), atomic_write(tmp_path / "a", overwrite=False):
        pass
    with pytest.raises(errors.FormatError, match="create it first"), atomic_write(tmp_path / "no" / "a"):
        pass
