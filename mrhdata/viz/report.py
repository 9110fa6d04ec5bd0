"""One self-contained HTML page of text, tables and figures."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import pandas as pd

from mrhdata._runtime.atomic import atomic_write
from mrhdata.analysis.contrasts import FEWEST_OF_A_CLASS
from mrhdata.analysis.result import format_scores, named_models
from mrhdata.errors import FormatError, ModelError
from mrhdata.viz.plots import bars, roc_curves, threshold_curves, training_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mrhdata.analysis.result import Sensitivity


@dataclass(frozen=True)
class Picture:
    """A PNG that was drawn before, as base64."""

    png: str


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, and perhaps a table and figures, each with a text that stands for it."""

    title: str
    text: Sequence[str] = ()
    table: pd.DataFrame | None = None
    figures: Sequence[tuple[Figure | Picture, str]] = ()


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


def check_page(path: str | os.PathLike[str]) -> None:
    """Raise `FormatError` unless a path is one of a page: what takes long asks before it begins."""
    if not str(path).lower().endswith((".html", ".htm")):
        raise FormatError(f"{path} must end in .html")


def write_page(path: str | os.PathLike[str], title: str, sections: Sequence[Section]) -> None:
    """Write the page; it appears when it is complete.

    Raises
    ------
    FormatError
        The path does not end in ``.html``.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "report.html"
    >>> write_page(path, "A <title>", [Section("One", ["Text & more."])])
    >>> "A &lt;title&gt;" in path.read_text()
    True
    """
    check_page(path)
    template = jinja2.Environment(autoescape=True).from_string(_PAGE)
    html = template.render(title=title, sections=sections, png=_png)
    with atomic_write(path) as draft:
        draft.write_text(html, encoding="utf-8")


def write_markdown(path: str | os.PathLike[str], title: str, sections: Sequence[Section]) -> None:
    """Write the same text and tables as Markdown, which names the figures of the HTML page.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "report.md"
    >>> write_markdown(path, "Title", [Section("One", ["Text."])])
    >>> path.read_text().splitlines()
    ['# Title', '', '## One', '', 'Text.']
    """
    Path(path).write_text(as_markdown(title, sections), encoding="utf-8")


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """Text and tables as Markdown; of figures, which are only in the HTML page, what they show.

    Examples
    --------
    >>> as_markdown("Title", [Section("One", ["Text."])]).splitlines()
    ['# Title', '', '## One', '', 'Text.']
    """
    lines = [f"# {title}"]
    for section in sections:
        lines += ["", f"## {section.title}", *(line for text in section.text for line in ("", text))]
        if section.table is not None:
            rows = [list(section.table.columns), ["---"] * section.table.shape[1], *section.table.values.tolist()]
            lines += ["", *("| " + " | ".join(str(value) for value in row) + " |" for row in rows)]
        if section.figures:
            lines += ["", "Pictures, in the HTML page:", "", *(f"- {shown}" for _, shown in section.figures)]
    return "\n".join(lines) + "\n"


def _png(figure: Figure | Picture) -> str:
    if isinstance(figure, Picture):
        return figure.png
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


#: Score -> how a table heads it.
_HEADS = {
    "auc": "AUC",
    "sensitivity": "sensitivity",
    "partial_auc": "partial AUC",
    "r2": "R2",
    "rmse": "RMSE",
    "information": "bits",
    "adds": "adds",
}


def readable(
    result: Sensitivity, names: Sequence[str] | None = None, scores: Sequence[str] = ("auc", "r2", "rmse")
) -> pd.DataFrame:
    """The table of a sensitivity analysis with each score and its interval in one cell.

    Models that were fitted on the very voxels that are scored say "in-sample".
    """
    table = result.table if names is None else result.table[result.table["contrast"].isin(names)]
    shown = table[["contrast"]].assign(model=named_models(table))
    for score in scores:
        shown[_HEADS[score]] = format_scores(table, score)
    return shown


def sensitivity_sections(name: str, result: Sensitivity, names: Sequence[str] | None = None) -> list[Section]:
    """What a report says of contrasts against one histology.

    Parameters
    ----------
    name : str
        Of the histology.
    result : Sensitivity
    names : sequence of str, optional
        Contrasts that are drawn; the best eight by default. Tables hold all.

    Returns
    -------
    sections : list of Section
        Scores with ROC and threshold curves and what contrasts add; paired comparisons; regions, where there
        are any.
    """
    drawn = list(result.table["contrast"][:8]) if names is None else list(names)
    figures = [
        (roc_curves(result, drawn), f"ROC curves against {name}"),
        (threshold_curves(result, drawn), "AUC by the percentile of the histology that divides positive from negative"),
        (
            bars(result.table[result.table["contrast"].isin(drawn)], "contrast", "adds"),
            "What each adds to the other single contrasts: adds is its correlation with the histology, from -1 to 1, "
            "when the others are known; near 0 it tells nothing that they do not",
        ),
    ]
    scores = readable(result, scores=tuple(_HEADS))
    cuts = pd.DataFrame({"cut": result.table["cut"].map(lambda v: f"{v:.3f}")})
    for score in ("cut_sensitivity", "cut_specificity"):
        cuts[score] = format_scores(result.table, score)
    text = [methods_text(name, result)]
    if result.table["in_sample"].any():
        text.append(
            "Models that are marked in-sample were fitted on the very voxels that they are scored on, so their scores "
            "flatter them beside those of predictions; give training voxels (train=, --train or --parts) for fair ones."
        )
    found = [Section(f"{name}: scores", text, scores.join(cuts), figures)]
    best = str(result.table["contrast"].iloc[0])
    compared = result.compare(best).map(lambda v: v if isinstance(v, str) else f"{v:.4f}")
    paired = f"AUC of {best} less that of each other, resampled in pairs; p adjusted for their number (Holm)."
    found.append(Section(f"{name}: comparisons", [paired], compared))
    if len(result.regions):
        found.append(_regions_section(name, result.regions, drawn))
    return found


def _regions_section(name: str, regions: pd.DataFrame, drawn: list[str]) -> Section:
    wide = regions.assign(shown=format_scores(regions, "auc"))
    wide = wide[wide["contrast"].isin(drawn)]
    wide = wide.pivot(index=["region", "rows", "positives"], columns="contrast", values="shown")[drawn]
    text = ["AUC within each region."]
    if regions["auc"].isna().any():
        text.append(
            f"A region has none where fewer than {FEWEST_OF_A_CLASS} of its voxels are positive or fewer than "
            f"{FEWEST_OF_A_CLASS} are not, or where all lie in one block: so few rank well or badly by luck."
        )
    return Section(f"{name}: regions", text, wide.reset_index())


def methods_text(name: str, result: Sensitivity) -> str:
    """What was done, in words for a paper's methods section."""
    blocks = f"{result.blocks} blocks that were given"
    if result.block_voxels is not None:
        blocks = (
            f"{result.blocks} cubes of {result.block_voxels} voxels (three times the distance at which the "
            "histology's correlation falls to 0.1, where that leaves 27)"
        )
    where = "the voxels that are scored" if result.in_sample else "training voxels, none of which are scored"
    return (
        f"{result.rows} voxels were scored against {name}; the {result.positives} {result.positive} "
        f"{result.threshold:.4g} counted as positive. Single contrasts were fitted to the histology by a straight "
        f"line, polynomial models by least squares, on {where}. We give the area "
        f"under the ROC curve (AUC), sensitivity at a specificity of {result.specificity:.0%}, the partial area above "
        "it (McClish 1989; 0.5 is chance), R2, RMSE, mutual information in bits (up to 32 bins of equal numbers) and, "
        "for what a contrast adds, its partial correlation with the histology when the other single contrasts are "
        f"known. Intervals are {result.level:.0%} bootstrap intervals over {blocks}, widened for the number of blocks "
        "(Hesterberg 2015) and for what is alike across their faces. Cuts are those of the largest Youden index on "
        f"{where}."
    )


def training_section(folder: str | os.PathLike[str]) -> Section:
    """Loss and error by epoch of a network that ``mrhdata train histology`` wrote.

    Raises
    ------
    ModelError
        There is no history, or it is damaged.
    """
    from mrhdata.training.history import History

    try:
        history = History(**json.loads((Path(folder) / "history.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"{folder} holds no history of a training; pass a folder that mrhdata train histology wrote"
        ) from error
    rows = zip(history.training, history.validation, history.rmse, strict=True)
    shown = [(n, *(f"{value:.5g}" for value in row)) for n, row in enumerate(rows, 1)]
    table = pd.DataFrame(shown, columns=["epoch", "training loss", "validation loss", "validation RMSE"])
    text = f"The weights of epoch {history.best_epoch + 1} were kept, which has the lowest loss on the validation part."
    return Section("Training", [text], table, [(training_curve(history), "Loss and validation RMSE by epoch")])


#: Column of the tables of :mod:`mrhdata.analysis.robustness` -> what a bar says.
_MEANINGS = {
    "contribution": "The contribution of an input is its share of all these changes, which add up to 1: the larger, "
    "the more the map follows that input.",
    "auc_loss": "The AUC loss of an input says by how much the map's AUC falls without what that input alone "
    "tells; near 0 the network does not need it.",
}


def contribution_section(tables: Mapping[str, pd.DataFrame]) -> Section:
    """Bars of what the inputs of a network contribute, from the tables of :mod:`mrhdata.analysis.robustness`."""
    figures = []
    for name, table in tables.items():
        value = next(c for c in _MEANINGS if c in table)
        figures.append((bars(table.head(30), "input", value), f"{name}. {_MEANINGS[value]}"))
    return Section("What the network lives on", ["The thirty largest of each."], figures=figures)
