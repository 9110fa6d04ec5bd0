"""One self-contained HTML page of text, tables and figures."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from mrhdata.drafting import appearing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from mrhdata.contrasts import Sensitivity


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, and perhaps a table and figures, each with a text that stands for it."""

    title: str
    text: Sequence[str] = ()
    table: pd.DataFrame | None = None
    figures: Sequence[tuple[Figure, str]] = ()


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8886; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
figcaption { font-size: .9rem; opacity: .8; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: right; padding: .25rem .75rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% for paragraph in section.text %}<p>{{ paragraph }}</p>
{% endfor %}
{% if section.table is not none %}<div class="wide"><table>
<thead><tr>{% for c in section.table.columns %}<th scope="col">{{ c }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in section.table.values.tolist() %}
<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>{% endif %}
{% for figure, alt in section.figures %}<figure><img src="data:image/png;base64,{{ png(figure) }}" alt="{{ alt }}">
<figcaption>{{ alt }}</figcaption></figure>
{% endfor %}
{% endfor %}
</body>
</html>
"""


def write_page(path: str | os.PathLike[str], title: str, sections: Sequence[Section]) -> None:
    """Write the page; it appears when it is complete.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "report.html"
    >>> write_page(path, "A <title>", [Section("One", ["Text & more."])])
    >>> "A &lt;title&gt;" in path.read_text()
    True
    """
    template = jinja2.Environment(autoescape=True).from_string(_PAGE)
    html = template.render(title=title, sections=sections, png=_png)
    with appearing(path) as draft:
        draft.write_text(html, encoding="utf-8")


def write_markdown(path: str | os.PathLike[str], title: str, sections: Sequence[Section]) -> None:
    """Write the same text and tables as Markdown, without the figures.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "report.md"
    >>> write_markdown(path, "Title", [Section("One", ["Text."])])
    >>> path.read_text().splitlines()
    ['# Title', '', '## One', '', 'Text.']
    """
    lines = [f"# {title}"]
    for section in sections:
        lines += ["", f"## {section.title}", *(line for text in section.text for line in ("", text))]
        if section.table is not None:
            rows = [list(section.table.columns), ["---"] * section.table.shape[1], *section.table.values.tolist()]
            lines += ["", *("| " + " | ".join(str(value) for value in row) + " |" for row in rows)]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def readable(result: Sensitivity, names: Sequence[str] | None = None) -> pd.DataFrame:
    """The table of a sensitivity analysis with each score and its interval in one cell."""
    table = result.table if names is None else result.table[result.table["contrast"].isin(names)]
    shown = table[["contrast", "model"]].copy()
    for score, label in (("auc", "AUC"), ("r2", "R2"), ("rmse", "RMSE")):
        shown[label] = [
            f"{e:.3f} [{low:.3f}, {high:.3f}]"
            for e, low, high in zip(table[score], table[f"{score}_low"], table[f"{score}_high"], strict=True)
        ]
    return shown
