"""Documentation: guides run, names of the reference exist, and the site builds without a warning."""

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
#: Other pages with Python.
PAGES = ["concepts/patches", "concepts/volumes", "formats"]
#: These guides take most of the time; the site runs all when it is built.
LONG = {"cells", "cluster", "contrast", "own-method", "own-network"}
LONG |= {"prediction", "registration", "restoration", "segmentation", "training-set"}


@pytest.mark.parametrize("name", PAGES)
def test_python_of_a_page_runs(name, tmp_path):
    """The blocks run in an empty folder, from top to bottom."""
    page = DOCS / f"{name}.md"
    assert len(run(page, tmp_path)) == page.read_text("utf-8").count("```python") > 0


def test_every_page_with_python_is_run():
    """A new page is a guide, or is listed in PAGES."""
    pages = {
        str(p.relative_to(DOCS).with_suffix("")) for p in DOCS.rglob("*.md") if "```python" in p.read_text("utf-8")
    }
    assert pages == {*PAGES, *(f"guides/{guide}" for guide in GUIDES)}


@pytest.mark.parametrize("name", [pytest.param(g, marks=pytest.mark.full if g in LONG else ()) for g in GUIDES])
def test_a_guide_runs_and_makes_its_figures(name, tmp_path):
    """The guide runs in an empty folder, from top to bottom, and makes every figure of its page."""
    page = DOCS / "guides" / f"{name}.md"
    text = page.read_text("utf-8")
    printed = run(page, tmp_path)
    assert len(printed) == text.count("```python") > 1
    figures = re.findall(r"^!\[(.+?)\]\((.+?)\)$", text, flags=re.MULTILINE)
    assert {file for _, file in figures} == {p.name for p in tmp_path.glob("*.png")}


@pytest.mark.full
def test_the_commands_from_two_files_to_a_report(shared, tmp_path):
    """The commands of the guide run as written, on the real volumes."""
    text = (DOCS / "guides" / "contrast.md").read_text("utf-8")
    (block,) = re.findall(r"```sh\n(D=.*?)```", text, flags=re.DOTALL)
    script = block.replace("../shared/data", str(shared))
    folders = [str(Path(sys.executable).parent), *os.environ["PATH"].split(os.pathsep)]
    path = os.pathsep.join(folders)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "| virtual | prediction |" in text
    assert "| t2w | single |" in text
    assert "Training" in text


def test_figures_of_guides_have_different_names():
    """All figures are copied to one folder of the site, so a name that two guides share would show the wrong one."""
    pages = [(DOCS / "guides" / f"{guide}.md").read_text("utf-8") for guide in GUIDES]
    names = [file for text in pages for file in re.findall(r"^!\[.+?\]\((.+?)\)$", text, flags=re.MULTILINE)]
    assert len(names) > 10
    assert len(names) == len(set(names))


def messages(text):
    """Yield the fixed parts of the messages that the last table of a guide quotes."""
    for row in re.findall(r"^\| ([^|]+) \|", text.partition("## When it goes wrong")[2], flags=re.MULTILINE):
        for quoted in re.findall(r"`([^`]+)`", row):
            # Single words are names of classes.
            parts = re.split(r"\.\.\.|\d+", quoted if " " in quoted else "")
            yield from (part.strip() for part in parts if part.strip())


@pytest.mark.parametrize("name", GUIDES)
def test_quoted_messages_exist(name):
    """Each message that a guide quotes is in the package, word for word."""
    sources = "\n".join(p.read_text("utf-8") for p in (DOCS.parent / "mrhdata").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", sources)
    quoted = list(messages((DOCS / "guides" / f"{name}.md").read_text("utf-8")))
    assert quoted
    assert [part for part in quoted if part not in joined] == []


def test_blocks_share_names_and_show_their_output(tmp_path):
    """Output is printed below its block, and a traceback names the line of the page."""
    page = tmp_path / "page.md"
    page.write_text("# A\n\n```python\na = 2\n```\n\nB\n\n```python\nprint(a + 1)\n```\n")
    printed = run(page, tmp_path)
    assert printed == ["", "3\n"]
    assert "print(a + 1)\n```\n\n```text\n3\n```" in with_printed(page.read_text("utf-8"), printed)
    page.write_text("\n\n```python\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run(page, tmp_path)
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno + 1) == (page, 4)


def reference_names():
    """Yield the module and the name of each entry of the reference."""
    for page in (DOCS / "reference").glob("*.md"):
        for block in re.findall(r"```\{eval-rst\}\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL):
            module = re.search(r"module:: (\S+)", block)[1]
            for name in re.findall(r"^   (\w+)$", block, flags=re.MULTILINE):
                yield module, name


def test_the_reference_lists_what_is_there():
    """Every listed name exists, and every public function, recipe and metric is listed."""
    names = set(reference_names())
    for module, name in names:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
    functions = {name for name in mrhdata.__all__ if inspect.isfunction(getattr(mrhdata, name))}
    assert functions <= {name for module, name in names if module == "mrhdata"}
    package = DOCS.parent / "mrhdata"
    files = [file for folder in ("recipes", "metrics") for file in (package / folder).glob("[a-z]*.py")]
    # Parts of the demonstration are not recipes.
    systems = {f"mrhdata.{f.parent.name}.{f.stem}" for f in files if not f.stem.startswith("demo_")}
    assert systems <= {module for module, _ in names}


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="Sphinx is not installed; make docs installs it")
def test_the_site_builds_without_a_warning(tmp_path):
    """Sphinx runs as in `make docs`."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-b", "html", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=DOCS.parent, env=os.environ, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "guides" / "contrast.html").read_text("utf-8").count("<img") >= 2
