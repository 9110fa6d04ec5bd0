"""Locks between processes."""

import os
import threading

from mrhdata._runtime.locks import locked


def test_one_thread_at_a_time_holds_a_lock(tmp_path):
    """Many changes of one number lose none, although each reads, waits and writes; no file of the lock remains."""
    target = tmp_path / "number"
    target.write_text("0")

    def add():
        for _ in range(20):
            with locked(target):
                number = int(target.read_text("utf-8"))
                threading.Event().wait(0.0005)
                target.write_text(str(number + 1))

    threads = [threading.Thread(target=add) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_text("utf-8") == "100"
    assert os.listdir(tmp_path) == ["number"]


def test_a_lock_file_of_a_killed_process_is_no_obstacle(tmp_path):
    """A lock belongs to an open file, not to its name."""
    (tmp_path / ".a.lock").touch()
    with locked(tmp_path / "a"):
        pass
    assert os.listdir(tmp_path) == []
