"""Atomic writing: a file or a folder appears under its final name only when it is complete.

Output goes to a hidden draft in the folder of its target and is renamed at the end. A killed process leaves its
draft behind; the next process that writes the same target removes it.
"""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mrhdata.errors import FormatError


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
    draft = target.with_name(f".partial-{_draft_owner(os.getpid())}-{uuid.uuid4().hex[:8]}.{target.name}")
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
    if target.exists() and not overwrite:
        raise FormatError(f"{target} exists; choose another name, or overwrite it (overwrite=True, --overwrite)")
    if not target.absolute().parent.is_dir():
        raise FormatError(f"the folder {target.absolute().parent} does not exist; create it first")


def publish(draft: Path, target: Path) -> None:
    """Rename a finished draft to `target`, replacing an existing one."""
    if not target.is_dir():
        os.replace(draft, target)
        return
    # os.replace cannot overwrite a folder that has content, so the old one is renamed first.
    old = target.with_name(f".partial-{_draft_owner(os.getpid())}-{uuid.uuid4().hex[:8]}.{target.name}")
    os.replace(target, old)
    os.replace(draft, target)
    remove(old)


def remove(path: Path) -> None:
    """Remove a file or a folder with its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _draft_owner(pid: int) -> str:
    return f"{socket.gethostname()}-{pid}"


def remove_leftovers(target: Path) -> None:
    """Remove drafts of this target whose process ran on this machine and has ended."""
    prefix = f".partial-{socket.gethostname()}-"
    for path in target.absolute().parent.iterdir():
        if not (path.name.startswith(prefix) and path.name.endswith(f".{target.name}")):
            continue
        pid, _, rest = path.name.removeprefix(prefix).partition("-")
        if pid.isdigit() and rest.partition(".")[2] == target.name and not _is_running(int(pid)):
            remove(path)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
