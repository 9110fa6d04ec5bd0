"""Atomic writing: a file or a folder appears under its final name only when it is complete.

Output goes to a hidden draft in the folder of its target and is renamed at the end. A killed process leaves its
draft behind; the next process that writes the same target removes it. A folder is replaced by an exchange of the two
names, so that there is always one complete folder. File systems that cannot exchange names keep the old folder under a
hidden name until the new one is in place, and the next process that writes the target restores it if it was not.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mrhdata.errors import FormatError

log = logging.getLogger("mrhdata")

#: Prefixes of hidden names: of a draft, and of an old folder while it is replaced.
_DRAFT, _OLD = ".partial-", ".replaced-"
#: Arguments of renameat2 (linux/fcntl.h, linux/fs.h): paths relative to the working directory, exchange of two names.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def atomic_write(target: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a draft path in the folder of `target`; rename it to `target` on success, remove it on an exception.

    Parameters
    ----------
    target : path
        Final path of a file or a folder; its parent folder must exist.
    overwrite : bool
        Whether an existing target may be replaced.

    Raises
    ------
    FormatError
        If the target exists and may not be replaced, or if its parent folder does not exist.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with atomic_write(target) as draft:
    ...     _ = draft.write_text("whole")
    ...     target.exists()
    False
    >>> target.read_text()
    'whole'
    """
    target = Path(target)
    check_target(target, overwrite)
    remove_leftovers(target)
    # The draft ends with the target's name because some libraries choose the format by the ending.
    draft = _hidden_name(target, _DRAFT)
    try:
        yield draft
        publish(draft, target)
    finally:
        remove(draft)


@contextmanager
def resumable_folder(target: str | os.PathLike[str], identity: str) -> Iterator[Path]:
    """Yield a hidden folder for the state of a long run; remove it when the run succeeds.

    Parameters
    ----------
    target : path
        Output of the run; the hidden folder is created in the same parent folder.
    identity : str
        Fingerprint of the run. State that a run with another fingerprint left behind is removed.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "net"
    >>> try:
    ...     with resumable_folder(target, "seed 1") as state:
    ...         _ = (state / "epoch").write_text("3")
    ...         raise KeyboardInterrupt
    ... except KeyboardInterrupt:
    ...     pass
    >>> with resumable_folder(target, "seed 1") as state:
    ...     (state / "epoch").read_text()
    '3'
    >>> list(target.parent.iterdir())
    []
    """
    target = Path(target)
    folder = target.with_name(f".{target.name}.partial")
    identity_file = folder / "identity"
    if not identity_file.exists() or identity_file.read_text(encoding="utf-8") != identity:
        remove(folder)
        folder.mkdir()
        identity_file.write_text(identity, encoding="utf-8")
    try:
        yield folder
    except BaseException:
        # A run that failed before it saved any state leaves no folder behind.
        if [path.name for path in folder.iterdir()] == [identity_file.name]:
            remove(folder)
        raise
    remove(folder)


def check_target(target: Path, overwrite: bool) -> None:
    """Raise `FormatError` if `target` may not be written."""
    _restore(target)
    if target.exists() and not overwrite:
        raise FormatError(f"{target} exists; choose another name, or overwrite it (overwrite=True, --overwrite)")
    if not target.absolute().parent.is_dir():
        raise FormatError(f"the folder {target.absolute().parent} does not exist; create it first")


def publish(draft: Path, target: Path) -> None:
    """Rename a finished draft to `target`, replacing an existing one."""
    if not target.is_dir():
        os.replace(draft, target)
        return
    # A sibling of the target: a process killed after the exchange must not find the old folder where its draft was.
    new = _hidden_name(target, _DRAFT)
    os.replace(draft, new)
    if not _exchange(new, target):
        old = _hidden_name(target, _OLD)
        os.replace(target, old)
        os.replace(new, target)
        new = old
    remove(new)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; return False if the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _restore(target: Path) -> None:
    """Give an old folder its name back if a process was killed before the new one was in place; else remove it."""
    for old in _left_behind(target, _OLD):
        if target.exists():
            remove(old)
        else:
            os.replace(old, target)
            log.warning("%s was being replaced when a process was killed; its old content was restored", target)


def remove(path: Path) -> None:
    """Remove a file or a folder with its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _hidden_name(target: Path, prefix: str) -> Path:
    """Return a new hidden name next to `target`, with the owner in it."""
    owner = f"{socket.gethostname()}-{os.getpid()}"
    return target.with_name(f"{prefix}{owner}-{uuid.uuid4().hex[:8]}.{target.name}")


def remove_leftovers(target: Path) -> None:
    """Remove drafts of this target whose process ran on this machine and has ended."""
    _restore(target)
    for path in _left_behind(target, _DRAFT):
        remove(path)


def _left_behind(target: Path, kind: str) -> Iterator[Path]:
    """Yield hidden files or folders of this target whose process ran on this machine and has ended."""
    prefix = f"{kind}{socket.gethostname()}-"
    folder = target.absolute().parent
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not (path.name.startswith(prefix) and path.name.endswith(f".{target.name}")):
            continue
        pid, _, rest = path.name.removeprefix(prefix).partition("-")
        if pid.isdecimal() and pid.isascii() and rest.partition(".")[2] == target.name and not _is_running(int(pid)):
            yield path


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
