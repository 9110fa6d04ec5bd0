"""Files as another program writes them: each is taken up once it has stopped growing."""

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
    """Files of a folder, those that are there and those that come, each once and complete.

    Parameters
    ----------
    folder : path
    wanted : callable
        Whether a file is one to take up.
    settle_s : float
        For so long a file must not have changed.
    idle_s : float, optional
        Stop when for so long nothing new was complete; never where None.
    every_s : float
        How often the folder is looked at.

    Examples
    --------
    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp())
    >>> _ = (place / "tile-1.tif").write_bytes(b"..")
    >>> [p.name for p in arriving(place, lambda p: p.suffix == ".tif", settle_s=0, idle_s=0, every_s=0)]
    ['tile-1.tif']
    """
    root = Path(folder)
    if not root.is_dir():
        raise FormatError(f"{root} is no folder; give the one that the microscope writes to")
    done: set[Path] = set()
    seen: dict[Path, tuple[tuple[int, int], float]] = {}
    last = time.monotonic()
    while True:
        for path in sorted(root.iterdir()):
            if path in done or path.name.startswith(".") or not path.is_file() or not wanted(path):
                continue
            state = path.stat()
            now = (state.st_size, state.st_mtime_ns)
            if seen.get(path, (None, 0.0))[0] != now:
                seen[path] = (now, time.monotonic())
            if time.monotonic() - seen[path][1] >= settle_s and state.st_size:
                done.add(path)
                yield path
                last = time.monotonic()
        waiting = any(path not in done for path in seen)
        if idle_s is not None and not waiting and time.monotonic() - last >= idle_s:
            return
        time.sleep(every_s)
