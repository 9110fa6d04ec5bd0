"""Files and folders that appear under their name only when they are complete.

Everything is written to a hidden draft beside its target and moved there at the end. A process that is
killed leaves its draft behind; the next one that writes the same target removes it.
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
def appearing(target: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Give a draft path beside `target`; move it there when the block ends well, remove it when not.

    Parameters
    ----------
    target : path
        File or folder; its own folder must exist.
    overwrite : bool
        Whether a target that is there may be replaced.

    Raises
    ------
    FormatError
        The target exists and may not be replaced, or its folder does not exist.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with appearing(target) as draft:
    ...     _ = draft.write_text("whole")
    ...     target.exists()
    False
    >>> target.read_text()
    'whole'
    """
    target = Path(target)
    check_target(target, overwrite)
    remove_leftovers(target)
    # The target's name stays last: some libraries choose the format by the ending.
    draft = target.with_name(f".partial-{_process(os.getpid())}-{uuid.uuid4().hex[:8]}.{target.name}")
    try:
        yield draft
        put(draft, target)
    finally:
        remove(draft)


@contextmanager
def resuming(target: str | os.PathLike[str], identity: str) -> Iterator[Path]:
    """Give the hidden folder beside `target` that holds the state of a long run until it ends well.

    Parameters
    ----------
    target : path
        What the run makes.
    identity : str
        What makes the run what it is; where another one left its state, that is removed.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "net"
    >>> try:
    ...     with resuming(target, "seed 1") as state:
    ...         _ = (state / "epoch").write_text("3")
    ...         raise KeyboardInterrupt
    ... except KeyboardInterrupt:
    ...     pass
    >>> with resuming(target, "seed 1") as state:
    ...     (state / "epoch").read_text()
    '3'
    >>> list(target.parent.iterdir())
    []
    """
    target = Path(target)
    folder = target.with_name(f".{target.name}.partial")
    told = folder / "identity"
    if not told.exists() or told.read_text(encoding="utf-8") != identity:
        remove(folder)
        folder.mkdir()
        told.write_text(identity, encoding="utf-8")
    try:
        yield folder
    except BaseException:
        # A run that failed before it had any state leaves none.
        if [path.name for path in folder.iterdir()] == [told.name]:
            remove(folder)
        raise
    remove(folder)


def check_target(target: Path, overwrite: bool) -> None:
    """Raise `FormatError` where `target` may not be written."""
    if target.exists() and not overwrite:
        raise FormatError(f"{target} exists; choose another name, or overwrite it (overwrite=True, --overwrite)")
    if not target.absolute().parent.is_dir():
        raise FormatError(f"the folder {target.absolute().parent} does not exist; make it first")


def put(draft: Path, target: Path) -> None:
    """Move a finished draft to its name, in place of what is there."""
    if not target.is_dir():
        os.replace(draft, target)
        return
    # A folder cannot be replaced in one step: the old one goes aside first.
    aside = target.with_name(f".partial-{_process(os.getpid())}-{uuid.uuid4().hex[:8]}.{target.name}")
    os.replace(target, aside)
    os.replace(draft, target)
    remove(aside)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that it holds; one that is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _process(pid: int) -> str:
    return f"{socket.gethostname()}-{pid}"


def remove_leftovers(target: Path) -> None:
    """Drafts of this target whose process, on this machine, is gone."""
    start = f".partial-{socket.gethostname()}-"
    for path in target.absolute().parent.iterdir():
        if not (path.name.startswith(start) and path.name.endswith(f".{target.name}")):
            continue
        pid, _, rest = path.name.removeprefix(start).partition("-")
        if pid.isdigit() and rest.partition(".")[2] == target.name and not _alive(int(pid)):
            remove(path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
