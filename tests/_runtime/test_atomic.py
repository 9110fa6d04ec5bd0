"""Atomic writing: complete files or none, and never neither the old nor the new folder."""

import multiprocessing
import os
import signal
import socket

import pytest

from mrhdata import errors
from mrhdata._runtime import atomic
from mrhdata._runtime.atomic import atomic_write, publish


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


def replace_and_die(target, calls_before_death, exchange):
    """Replace the folder `target`, and end the process without clean-up at one of its calls to the file system."""
    calls = []

    def dying(call):
        def run(*arguments, **options):
            calls.append(call)
            if len(calls) > calls_before_death:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return run

    if not exchange:
        atomic._exchange = lambda *_: False
    atomic._exchange, atomic.remove = dying(atomic._exchange), dying(atomic.remove)
    os.replace = dying(os.replace)
    with atomic_write(target) as draft:
        draft.mkdir()
        (draft / "value").write_text("new")


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("calls", range(7))
def test_a_killed_process_leaves_the_old_folder_or_the_new_one(tmp_path, calls, exchange):
    """After a kill at any step the next run finds a whole folder, also where names cannot be exchanged."""
    target = tmp_path / "net"
    target.mkdir()
    (target / "value").write_text("old")
    process = multiprocessing.get_context("fork").Process(target=replace_and_die, args=(target, calls, exchange))
    process.start()
    process.join()
    assert target.exists() or not exchange
    with pytest.raises(ZeroDivisionError), atomic_write(target):
        raise ZeroDivisionError
    assert (target / "value").read_text("utf-8") in ("old", "new")
    assert os.listdir(tmp_path) == ["net"]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_readers_always_find_a_folder_while_writers_are_killed(tmp_path):
    """The folder exists at each of many looks, while 25 processes that replace it are killed at random times."""
    target = tmp_path / "net"
    target.mkdir()
    (target / "value").write_text("old")

    def write_for_ever():
        while True:
            with atomic_write(target) as draft:
                draft.mkdir()
                (draft / "value").write_text("new")

    for kill in range(25):
        process = multiprocessing.get_context("fork").Process(target=write_for_ever)
        process.start()
        for _ in range(200 * (kill + 1)):
            assert target.is_dir()
        process.kill()
        process.join()


def test_an_old_folder_of_a_running_process_is_not_touched(tmp_path):
    """Another process is between its two renames, which takes a moment only."""
    old = tmp_path / f".replaced-{socket.gethostname()}-{os.getppid()}-abc.net"
    old.mkdir()
    with atomic_write(tmp_path / "net") as draft:
        draft.mkdir()
    assert old.exists()


def test_a_link_to_a_folder_is_replaced_and_its_folder_kept(tmp_path):
    """The link gives way to the new folder."""
    (tmp_path / "far").mkdir()
    (tmp_path / "net").symlink_to(tmp_path / "far")
    (tmp_path / "new").mkdir()
    publish(tmp_path / "new", tmp_path / "net")
    assert (tmp_path / "far").is_dir()
    assert not (tmp_path / "net").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["far", "net"]
