"""Run the Python blocks of a Markdown page in order in one folder, as a reader's session would."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Fenced Python that begins at the margin.
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def run(page: Path, folder: Path) -> list[str]:
    """Run the blocks of a page; they share their names, and paths are relative to the folder.

    Parameters
    ----------
    page : path
        Markdown page.
    folder : path
        Folder in which files are read and written.

    Returns
    -------
    printed : list of str
        Output of each block.
    """
    # The name of a script, so that workers in other processes receive the classes of the page.
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    with contextlib.chdir(folder):
        for code in _compiled(page):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, names)
            printed.append(out.getvalue())
    return printed


def _compiled(page: Path) -> Iterator[Any]:
    """Compile the blocks at their lines of the page, so that a traceback names them."""
    text = page.read_text(encoding="utf-8")
    for block in _BLOCK.finditer(text):
        above = text.count("\n", 0, block.start(1))
        yield compile("\n" * above + block[1], str(page), "exec")


def with_printed(text: str, printed: list[str]) -> str:
    """Return the text of a page with the output of each block below it."""
    outputs = iter(printed)

    def with_output(block: re.Match[str]) -> str:
        out = next(outputs).rstrip()
        return f"{block[0]}\n\n```text\n{out}\n```" if out else block[0]

    return _BLOCK.sub(with_output, text)
