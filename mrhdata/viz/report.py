"""Reports: self-contained HTML pages with text, tables and figures."""

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
    """A rendered PNG, as base64."""

    png: str


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, an optional table, and figures with their captions."""

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
    """Raise `FormatError` if a path is not one of an HTML page; call it before a long computation."""
    if not str(path).lower().endswith((".html", ".htm")):
        raise FormatError(f"path must end in .html; got {path}")


def write_page(path: str | os.PathLike[str], title: str, sections: Sequence[Section]) -> None:
    """Write an HTML page; the file appears when it is complete.

    Raises
    ------
    FormatError
        If the path does not end in ``.html``.

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
    """Write the text, tables and captions of a page as Markdown.

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
    """Return text and tables as Markdown, with the captions of the figures, which only the HTML page has.

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
            lines += ["", "Figures in the HTML page:", "", *(f"- {caption}" for _, caption in section.figures)]
    return "\n".join(lines) + "\n"


def _png(figure: Figure | Picture) -> str:
    if isinstance(figure, Picture):
        return figure.png
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


#: Score -> its column heading.
_HEADS = {
    "auc": "AUC",
    "sensitivity": "sensitivity",
    "partial_auc": "partial AUC",
    "r2": "R2",
    "rmse": "RMSE",
    "information": "mutual information (bits)",
    "partial_correlation": "partial correlation",
}


def readable(
    result: Sensitivity, names: Sequence[str] | None = None, scores: Sequence[str] = ("auc", "r2", "rmse")
) -> pd.DataFrame:
    """Format the table of a sensitivity analysis, with each score and its interval in one column.

    Models that were fitted on the scored voxels are labelled "in-sample".
    """
    table = result.table if names is None else result.table[result.table["contrast"].isin(names)]
    text = table[["contrast"]].assign(model=named_models(table))
    for score in scores:
        text[_HEADS[score]] = format_scores(table, score)
    return text


def sensitivity_sections(
    name: str, result: Sensitivity, reference: str | None = None, names: Sequence[str] | None = None
) -> list[Section]:
    """Build the sections of a report on contrasts against one histology.

    Parameters
    ----------
    name : str
        Name of the histology.
    result : Sensitivity
        Scores of the contrasts.
    reference : str, optional
        Contrast of the answer, see :meth:`mrhdata.analysis.result.Sensitivity.answer`.
    names : sequence of str, optional
        Contrasts to plot; the best eight by default. Tables contain all.

    Returns
    -------
    sections : list of Section
        Scores with ROC curves, threshold curves and partial correlations; paired comparisons; AUC by region if
        there are regions.
    """
    drawn = list(result.table["contrast"][:8]) if names is None else list(names)
    figures = [
        (roc_curves(result, drawn), f"ROC curves against {name}."),
        (
            threshold_curves(result, drawn),
            "AUC as a function of the histology threshold, given as the percentile that divides positive from negative "
            "voxels.",
        ),
        (
            bars(result.table[result.table["contrast"].isin(drawn)], "contrast", "partial_correlation"),
            "Partial correlation of each contrast with the histology, given the other single contrasts (-1 to 1). Near "
            "0 the contrast adds no linear information to the others.",
        ),
    ]
    scores = readable(result, scores=tuple(_HEADS))
    cuts = pd.DataFrame({"cut": result.table["cut"].map(lambda v: f"{v:.3f}")})
    for score in ("sensitivity", "specificity"):
        cuts[f"{score} at cut"] = format_scores(result.table, f"cut_{score}")
    text = [result.answer(reference), methods_text(name, result)]
    if result.table["in_sample"].any():
        text.append(
            "Models labelled in-sample were fitted on the same voxels that are scored, so their scores are optimistic "
            "compared with those of predictions. Pass training voxels (train_mask=, --train-mask or --parts) for fair "
            "scores."
        )
    sections = [Section(f"{name}: scores", text, scores.join(cuts), figures)]
    note = (
        "AUC of the reference minus that of the other contrast, with intervals from a paired bootstrap; p_adjusted is "
        "the p value after Holm's correction for the number of comparisons."
    )
    best = str(result.table["contrast"].iloc[0])
    pairs = result.pairs()
    fitted = best not in set(pairs[["reference", "contrast"]].to_numpy().ravel())
    if len(pairs):
        sections.append(Section(f"{name}: pairs of contrasts", [note], _rounded(pairs)))
    if fitted and len(result.table) > 1:
        table = result.compare(best)
        table.insert(0, "reference", best)
        sections.append(Section(f"{name}: comparisons with {best}", [note], _rounded(table)))
    if len(result.regions):
        sections.append(_regions_section(name, result.regions, drawn))
    return sections


def _rounded(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose numbers have four digits."""
    return table.map(lambda v: v if isinstance(v, str) else f"{v:.4f}")


def _regions_section(name: str, regions: pd.DataFrame, drawn: list[str]) -> Section:
    rows = regions.assign(text=format_scores(regions, "auc"))
    rows = rows[rows["contrast"].isin(drawn)]
    wide = rows.pivot(index=["region", "rows", "positives"], columns="contrast", values="text")[drawn]
    text = ["AUC within each region; rows is its number of voxels."]
    if regions["auc"].isna().any():
        text.append(
            f"A region with fewer than {FEWEST_OF_A_CLASS} positive or fewer than {FEWEST_OF_A_CLASS} negative voxels, "
            "or with voxels in one block only, has no AUC, because its value would be due to chance."
        )
    return Section(f"{name}: regions", text, wide.reset_index())


def methods_text(name: str, result: Sensitivity) -> str:
    """Describe the analysis in the words of a paper's methods section."""
    blocks = f"{result.blocks} predefined blocks"
    if result.block_voxels is not None:
        blocks = (
            f"{result.blocks} cubes with an edge of {result.block_voxels} voxels (three times the distance at which "
            "the autocorrelation of the histology falls to 0.1, or shorter to obtain 27 blocks)"
        )
    voxels = "the scored voxels" if result.in_sample else "training voxels, none of which were scored"
    return (
        f"We scored {result.rows:,} voxels against {name}; the {result.positives:,} voxels {result.positive} "
        f"{result.threshold:.4g} were positive. Single contrasts were fitted to the histology by linear regression and "
        f"polynomial models by least squares, on {voxels}. We report the area under the ROC curve (AUC), the "
        f"sensitivity at a specificity of {result.specificity:.0%}, the partial area above that specificity "
        "(McClish 1989; 0.5 is chance), R2, RMSE, mutual information in bits (up to 32 equally filled bins) and the "
        "partial correlation with the histology given the other single contrasts. Intervals are "
        f"{result.level:.0%} bootstrap intervals over {blocks}, widened for the small number of blocks "
        "(Hesterberg 2015) and for correlation between neighbouring blocks. Cuts maximise the Youden index on "
        f"{voxels}."
    )


def training_section(folder: str | os.PathLike[str]) -> Section:
    """Build a section with loss and RMSE by epoch of a network that ``mrhdata train histology`` wrote.

    Raises
    ------
    ModelError
        If the history is missing or damaged.
    """
    from mrhdata.training.history import History

    try:
        history = History(**json.loads((Path(folder) / "history.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"{folder} has no training history. Pass a folder that mrhdata train histology wrote"
        ) from error
    rows = zip(history.training, history.validation, history.rmse, strict=True)
    lines = [(n, *(f"{value:.5g}" for value in row)) for n, row in enumerate(rows, 1)]
    table = pd.DataFrame(lines, columns=["epoch", "training loss", "validation loss", "validation RMSE"])
    text = f"The network has the weights of epoch {history.best_epoch + 1}, which has the lowest validation loss."
    return Section("Training", [text], table, [(training_curve(history), "Loss and validation RMSE by epoch.")])


#: Column of the tables of :mod:`mrhdata.analysis.robustness` -> its explanation in a caption.
_CAPTIONS = {
    "contribution": "The contribution of an input is its share of these changes; contributions sum to 1. The map "
    "depends most on inputs with a large contribution.",
    "auc_loss": "The AUC loss of an input is the decrease of the map's AUC without the information of that input. Near "
    "0 the network does not need the input.",
}


def contribution_section(tables: Mapping[str, pd.DataFrame]) -> Section:
    """Build a section with bars of the importance of inputs, from :mod:`mrhdata.analysis.robustness`."""
    figures = []
    for name, table in tables.items():
        value = next(c for c in _CAPTIONS if c in table)
        figures.append((bars(table.head(30), "input", value), f"{name}. {_CAPTIONS[value]}"))
    text = "How much the predicted map depends on each input of the network. Bars show the thirty largest values."
    return Section("Importance of the inputs", [text], figures=figures)
