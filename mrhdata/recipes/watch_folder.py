"""Watch a folder for files that another program writes; each is used when it has stopped growing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mrhdata.errors import FormatError


def arriving(
    folder: str | Path,
    wanted: Callable[[Path], bool],
    *,
    settle_s: float = 2.0,
    idle_s: float | None = None,
    every_s: float = 0.5,
) -> Iterator[Path]:
    """Yield the existing and the new files of a folder, each once and when it is complete.

    Parameters
    ----------
    folder : path
        Folder to watch.
    wanted : callable
        Function of a path that returns whether to yield the file.
    settle_s : float
        Seconds without a change after which a file is complete.
    idle_s : float, optional
        Seconds without a new complete file after which the generator ends; None never ends.
    every_s : float
        Seconds between two looks at the folder.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "tile-1.tif").write_bytes(b"..")
    >>> [p.name for p in arriving(folder, lambda p: p.suffix == ".tif", settle_s=0, idle_s=0, every_s=0)]
    ['tile-1.tif']
    """
    root = Path(folder)
    if not root.is_dir():
        raise FormatError(f"{root} is not a folder; pass the folder to which the microscope writes")
    done: set[Path] = set()
    #: Size and modification time of each file, and when they were first seen.
    states: dict[Path, tuple[tuple[int, int], float]] = {}
    last_yield = time.monotonic()
    while True:
        for path in sorted(root.iterdir()):
            if path in done or path.name.startswith(".") or not path.is_file() or not wanted(path):
                continue
            status = path.stat()
            state = (status.st_size, status.st_mtime_ns)
            if states.get(path, (None, 0.0))[0] != state:
                states[path] = (state, time.monotonic())
            if time.monotonic() - states[path][1] >= settle_s and status.st_size:
                done.add(path)
                yield path
                last_yield = time.monotonic()
        waiting = any(path not in done for path in states)
        if idle_s is not None and not waiting and time.monotonic() - last_yield >= idle_s:
            return
        time.sleep(every_s)
