"""Plan of a training in its folder: another run with other settings does not continue it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mrhdata._runtime.atomic import atomic_write, remove
from mrhdata.errors import DataError

#: Setting and value in the text of a dataclass, such as ``epochs=4``; values are simple ones or tuples of them.
_SETTING = re.compile(r"(\w+)=('[^']*'|\([^()=]*\)|[^\s(),=]+)")
#: Differences that are named.
_NAMED = 4


def claim(path: Path, plan: dict[str, Any], *, overwrite: bool = False) -> None:
    """Write the plan of a run to a file, or check that the file has the same plan.

    Parameters
    ----------
    path : path
        File in the folder of the run.
    plan : dict
        Subjects, files and settings of the run.
    overwrite : bool
        Whether to remove the folder if its plan is another one.

    Raises
    ------
    DataError
        The file has another plan; the message names the differences.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "net" / "plan.json"
    >>> claim(path, {"seed": 0, "recipe": "Recipe(epochs=4, rate=0.1)"})
    >>> claim(path, {"seed": 1, "recipe": "Recipe(epochs=2, rate=0.1)"})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    mrhdata.errors.DataError: ... holds another run: seed was 0, now 1; epochs was 4, now 2. Pass another folder, ...
    """
    text = json.dumps(plan, indent=1, default=str)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        if not overwrite:
            raise DataError(
                f"{path.parent} holds another run: {_differences(path, json.loads(text))}. Pass another folder, or "
                "--overwrite to remove this one"
            )
        remove(path.parent)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as draft:
            draft.write_text(text, encoding="utf-8")


def _differences(path: Path, plan: dict[str, Any]) -> str:
    """Return what differs from the stored plan."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        stored = None
    if not isinstance(stored, dict):
        return f"{path.name} is damaged"
    changes: list[str] = []
    for key in dict.fromkeys([*stored, *plan]):
        before, now = stored.get(key), plan.get(key)
        if before != now:
            changes += _settings_that_differ(before, now) or [_change(key, before, now)]
    more = f" and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
    return "; ".join(changes[:_NAMED]) + more


def _settings_that_differ(before: Any, now: Any) -> list[str]:
    """Return the changed settings in two texts of one dataclass; empty if they are anything else."""
    if not isinstance(before, str) or not isinstance(now, str):
        return []
    first, second = _SETTING.findall(before), _SETTING.findall(now)
    if [name for name, _ in first] != [name for name, _ in second]:
        return []
    pairs = zip(first, second, strict=True)
    return [f"{name} was {a}, now {b}" for (name, a), (_, b) in pairs if a != b]


def _change(key: str, before: Any, now: Any) -> str:
    """Return one changed entry of the plan: short values as they are, long ones by name only."""
    words = [json.dumps(value) for value in (before, now)]
    if max(map(len, words)) <= len("a path of a study, or two or three subjects"):
        return f"{key} was {words[0]}, now {words[1]}"
    return f"{key} differ" if key.endswith("s") else f"{key} differs"
