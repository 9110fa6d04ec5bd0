"""Settings of the documentation site, which `make docs` builds in the project's root."""

from __future__ import annotations

import pydoc
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import mrhdata
from docs import commands, running

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "mrhdata"
author = "The mrhdata developers"
project_copyright = f"2026 {author}"
version = release = mrhdata.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
# Anchors for links within a page.
myst_heading_anchors = 3

default_role = "py:obj"
autosummary_generate = True
# Types stand in the docstrings.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
# Dead references are errors. Types of parameters are prose ("int or None"), so numpydoc makes no references of them.
nitpicky = True
numpydoc_xref_param_type = False
# A name without dots in single backticks is a parameter, or a constant of the same module.
nitpick_ignore_regex = [("py:obj", r"\w+")]
python_maximum_signature_line_length = 88
# The template of classes lists their members.
numpydoc_show_class_members = False

html_theme = "pydata_sphinx_theme"
html_title = "mrhdata"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_context = {"default_mode": "auto"}
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}


def run_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Run the Python of a page, copy its figures next to it, and print the output below each block.

    The page of the commands is made from their help.
    """
    page = Path(app.srcdir, f"{name}.md")
    if name == "reference/commands":
        source[0] += f"\n{commands.page()}"
    if "```python" not in source[0] or name.startswith("reference/"):
        return
    with tempfile.TemporaryDirectory() as folder:
        printed = running.run(page, Path(folder))
        for figure in Path(folder).glob("*.png"):
            shutil.copy(figure, page.parent)
    source[0] = running.with_printed(source[0], printed)


def resolve_exported(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Resolve a name that a folder exports, or a method that a class inherits, to the place of its definition."""
    name = node["reftarget"]
    if not name.startswith("mrhdata."):
        # The page of an exported function is named by its folder; its docstring is relative to the defining module.
        name = f"{getattr(pydoc.locate(Path(node['refdoc']).name), '__module__', None)}.{name}"
    defined = pydoc.locate(name)
    if not hasattr(defined, "__qualname__"):
        return None
    target = f"{defined.__module__}.{defined.__qualname__}"
    domain = env.domains["py"]
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], target, node, content)


def setup(app: Sphinx) -> None:
    """Connect the hooks; Sphinx calls this function."""
    app.connect("source-read", run_page)
    app.connect("missing-reference", resolve_exported)
