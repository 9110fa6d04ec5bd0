"""Locks between processes, for a file that several of them read, change and write."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

log = logging.getLogger("mrhdata")


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of a file while the `with` block runs; wait for other processes that hold it.

    The lock is a hidden file next to the target, which exists only while it is held. A killed process holds no lock.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "list.txt"
    >>> with locked(target):
    ...     os.listdir(target.parent)
    ['.list.txt.lock']
    >>> os.listdir(target.parent)
    []
    """
    path = target.with_name(f".{target.name}.lock")
    file = _acquire(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _acquire(path: Path) -> IO[str]:
    while True:
        file = path.open("a", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            log.info("waiting for another process that holds %s", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        if _is_at(file, path):
            return file
        # The process that held it has removed the file, so a third one may hold a new file of the same name.
        file.close()


def _is_at(file: IO[str], path: Path) -> bool:
    """Return whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
