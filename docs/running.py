"""The Python blocks of a Markdown page: run in order in one folder, as a reader's session would run them."""

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
    """Run the blocks of a page; they share their names, and paths are those of the folder.

    Parameters
    ----------
    page : path
        Markdown.
    folder : path
        Where files are read and written.

    Returns
    -------
    printed : list of str
        What each block printed.
    """
    # Named as a script is, so that workers in other processes are sent the classes of the page.
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    with contextlib.chdir(folder):
        for code in _compiled(page):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, names)
            printed.append(out.getvalue())
    return printed


def _compiled(page: Path) -> Iterator[Any]:
    """The blocks, one by one, at the lines that they have on the page: a traceback names them."""
    text = page.read_text(encoding="utf-8")
    for block in _BLOCK.finditer(text):
        above = text.count("\n", 0, block.start(1))
        yield compile("\n" * above + block[1], str(page), "exec")


def with_printed(text: str, printed: list[str]) -> str:
    """The text of a page, each block followed by what it printed."""
    outputs = iter(printed)

    def shown(block: re.Match[str]) -> str:
        out = next(outputs).rstrip()
        return f"{block[0]}\n\n```text\n{out}\n```" if out else block[0]

    return _BLOCK.sub(shown, text)
