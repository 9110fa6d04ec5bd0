"""The documentation: guides run, what the reference lists is there, and the site builds without a warning."""

import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mrhdata
from docs.running import run, with_printed

DOCS = Path(__file__).parents[1] / "docs"
GUIDES = sorted(p.stem for p in (DOCS / "guides").glob("*.md") if p.stem != "index")
#: These five take most of the time of all; the site runs all when it is built.
LONG = {"cells", "cluster", "contrast", "own-method", "own-network"}


@pytest.mark.parametrize("name", [pytest.param(g, marks=pytest.mark.full if g in LONG else ()) for g in GUIDES])
def test_a_guide_runs_and_makes_its_figures(name, tmp_path):
    """In an empty folder, from top to bottom; every figure of the page is made by it."""
    page = DOCS / "guides" / f"{name}.md"
    text = page.read_text("utf-8")
    printed = run(page, tmp_path)
    assert len(printed) == text.count("```python") > 1
    shown = re.findall(r"^!\[(.+?)\]\((.+?)\)$", text, flags=re.MULTILINE)
    assert {name for _, name in shown} == {p.name for p in tmp_path.glob("*.png")}


def messages(text):
    """What a guide's last table says that one sees, between what varies."""
    for row in re.findall(r"^\| ([^|]+) \|", text.partition("## When it goes wrong")[2], flags=re.MULTILINE):
        for quoted in re.findall(r"`([^`]+)`", row):
            # Single words are names of classes.
            parts = re.split(r"\.\.\.|\d+", quoted if " " in quoted else "")
            yield from (part.strip() for part in parts if part.strip())


@pytest.mark.parametrize("name", GUIDES)
def test_errors_that_a_guide_quotes_are_raised_so(name):
    """Each of them stands in the package, word for word."""
    sources = "\n".join(p.read_text("utf-8") for p in (DOCS.parent / "mrhdata").rglob("*.py"))
    written = re.sub(r'"\s*\n\s*f?"', "", sources)
    quoted = list(messages((DOCS / "guides" / f"{name}.md").read_text("utf-8")))
    assert quoted
    assert [part for part in quoted if part not in written] == []


def test_blocks_share_names_and_show_what_they_print(tmp_path):
    """Output stands below its block, and an error names the line of the page."""
    page = tmp_path / "page.md"
    page.write_text("# A\n\n```python\na = 2\n```\n\nB\n\n```python\nprint(a + 1)\n```\n")
    printed = run(page, tmp_path)
    assert printed == ["", "3\n"]
    assert "print(a + 1)\n```\n\n```text\n3\n```" in with_printed(page.read_text("utf-8"), printed)
    page.write_text("\n\n```python\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run(page, tmp_path)
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno + 1) == (page, 4)


def listed():
    """Full names in the reference."""
    for page in (DOCS / "reference").glob("*.md"):
        for block in re.findall(r"```\{eval-rst\}\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL):
            module = re.search(r"module:: (\S+)", block)[1]
            for name in re.findall(r"^   (\w+)$", block, flags=re.MULTILINE):
                yield module, name


def test_the_reference_lists_what_is_there():
    """Every name listed exists, and every public function and every system of the package is listed."""
    found = set(listed())
    for module, name in found:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
    functions = {name for name in mrhdata.__all__ if inspect.isfunction(getattr(mrhdata, name))}
    assert functions <= {name for module, name in found if module == "mrhdata"}
    package = DOCS.parent / "mrhdata"
    systems = {f"mrhdata.{f}.{p.stem}" for f in ("recipes", "metrics") for p in (package / f).glob("[a-z]*.py")}
    assert systems <= {module for module, _ in found}


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="Sphinx is not installed; make docs installs it")
def test_the_site_builds_without_a_warning(tmp_path):
    """As `make docs` builds it."""
    how = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-b", "html", "docs", str(tmp_path)]
    done = subprocess.run(how, cwd=DOCS.parent, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "guides" / "contrast.html").read_text("utf-8").count("<img") >= 2
