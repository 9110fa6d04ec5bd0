"""HTML for notebooks: facts, tables, pictures with boxes, intervals as bars.

The ``_repr_html_`` of an object chooses the content; the functions here choose the layout. They escape everything
that is not `Markup`, write no scripts, and inherit the colours of the page, so light and dark pages are both legible.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_LINE = "1px solid #8886"
_CELL = Markup('<td style="text-align:left;vertical-align:top;padding:.15em .7em .15em 0;color:inherit">{}</td>')
_HEAD = Markup('<th scope="col" style="text-align:left;padding:.15em .7em .15em 0;border-bottom:{}">{}</th>')
#: Edges of a box as pairs of corners; corner i is item i of ``itertools.product((0, 1), repeat=3)``.
_EDGES = [(a, a | bit) for a in range(8) for bit in (4, 2, 1) if not a & bit]
#: Colour of highlights, distinct from grey voxels on light and on dark pages.
_HIGHLIGHT = "#f80"


def panel(title: str, *parts: str, note: str = "") -> str:
    """Return a panel: a title, parts side by side if the page is wide enough, and a note.

    Parameters
    ----------
    title, note : str
        Text above and below the parts.
    *parts : str
        Content, as HTML (`Markup`) or as text (any other string).

    Returns
    -------
    html : str

    Examples
    --------
    >>> "a &lt;b&gt;" in panel("a <b>")
    True
    """
    columns = Markup("").join(
        Markup('<div style="min-width:0;overflow-x:auto">{}</div>').format(part) for part in parts
    )
    return str(
        Markup(
            '<div style="color:inherit;background:transparent;line-height:1.35;max-width:100%">'
            '<div style="font-weight:600;margin-bottom:.3em">{}</div>'
            '<div style="display:flex;flex-wrap:wrap;gap:.6em 2em;align-items:flex-start">{}</div>'
            '<div style="opacity:.75;margin-top:.3em">{}</div></div>'
        ).format(title, columns, note)
    )


def facts(values: Mapping[str, Any]) -> Markup:
    """Return a table of names and values, one per line.

    Examples
    --------
    >>> "<td" in facts({"shape": (1, 2, 3)})
    True
    """
    return _table([], ((Markup('<span style="opacity:.75">{}</span>').format(k), v) for k, v in values.items()))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markup:
    """Return a table with column heads.

    Examples
    --------
    >>> "&lt;script&gt;" in table(["name"], [["<script>"]])
    True
    """
    return _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markup:
    heads = Markup("").join(_HEAD.format(_LINE, name) for name in head)
    lines = (Markup("").join(_CELL.format(value) for value in row) for row in rows)
    body = Markup("").join(Markup('<tr style="background:transparent">{}</tr>').format(line) for line in lines)
    top = Markup("<thead><tr>{}</tr></thead>").format(heads) if head else ""
    style = "border-collapse:collapse;margin:0;font-size:inherit;font-variant-numeric:tabular-nums;color:inherit"
    return Markup('<table style="{}">{}<tbody>{}</tbody></table>').format(style, top, body)


def matrix(values: Floats) -> Markup:
    """Return a matrix as preformatted text."""
    rows = "\n".join(" ".join(f"{value:>9.4g}" for value in row) for row in values)
    return Markup('<pre style="margin:0;color:inherit;background:transparent">{}</pre>').format(rows)


def picture(
    plane: NDArray[Any] | None,
    shape: ArrayLike,
    spacing: ArrayLike,
    alt: str,
    *,
    boxes: Ints | None = None,
    longest: int = 260,
) -> Markup:
    """Return an SVG of a grey plane with boxes drawn over it, first row at the bottom.

    Parameters
    ----------
    plane : (rows, columns) array or None
        Values, shown from their 1st to their 99th percentile; None draws the boxes only.
    shape : (int, int)
        Numbers of rows and columns, also needed without a plane.
    spacing : (float, float)
        Distances between rows and between columns; they set the aspect ratio.
    alt : str
        Alternative text.
    boxes : (n, 4) int array, optional
        First row, first column, number of rows and number of columns of each box.
    longest : int
        Length of the longer side in pixels.

    Examples
    --------
    >>> "<rect" in picture(np.eye(3), (3, 3), (1, 1), "three voxels", boxes=np.array([[0, 0, 2, 2]]))
    True
    """
    step, rows = np.asarray(spacing, dtype=np.float64), float(np.asarray(shape)[0])
    size = np.asarray(shape) * step
    scale = longest / float(size.max())
    height, width = (round(float(v), 1) for v in size * scale)
    inside = Markup('<rect width="100%" height="100%" fill="none" stroke="currentColor" stroke-opacity=".4"/>')
    if plane is not None:
        inside = Markup(
            '<image width="{}" height="{}" preserveAspectRatio="none" style="image-rendering:pixelated" '
            'href="data:image/png;base64,{}"/>'
        ).format(width, height, _png(plane))
    for first, left, tall, wide in [] if boxes is None else np.asarray(boxes, dtype=np.float64):
        pixels = np.array([left * step[1], (rows - first - tall) * step[0], wide * step[1], tall * step[0]]) * scale
        inside += Markup('<rect x="{}" y="{}" width="{}" height="{}" fill="none" stroke="{}"/>').format(
            *pixels.round(1).tolist(), _HIGHLIGHT
        )
    return _svg(width, height, alt, inside)


def solid(corners: Floats, names: Sequence[str], alt: str, longest: int = 110) -> Markup:
    """Return an SVG of the edges of a box in world space: right to the right, superior up, anterior to the back.

    The three edges at the first corner are highlighted.

    Parameters
    ----------
    corners : (8, 3) array
        World X, Y, Z of the corners in mm, in the order of `mrhdata.volume.Grid.corners`.
    names : sequence of three str
        Names of the axes, written at the ends of the highlighted edges.
    alt : str
        Alternative text.
    longest : int
        Length of the longer side in pixels.

    Examples
    --------
    >>> import itertools
    >>> corners = np.array(list(itertools.product((0, 1), repeat=3)), dtype=float)
    >>> solid(corners, "zyx", "a cube").count("<line")
    12
    """
    points = np.column_stack([corners[:, 0] + 0.4 * corners[:, 1], -corners[:, 2] - 0.3 * corners[:, 1]])
    points = points - points.min(axis=0)
    points = points * longest / max(float(points.max()), 1e-12) + 12
    width, height = (float(v) for v in points.max(axis=0) + 12)
    inside = Markup("")
    for a, b in _EDGES:
        colour, opacity = (_HIGHLIGHT, 1) if a == 0 else ("currentColor", 0.45)
        ends = [*points[a], *points[b]]
        inside += Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="{}" stroke-opacity="{}"/>').format(
            *(round(float(v), 1) for v in ends), colour, opacity
        )
    for name, corner in zip(names, (4, 2, 1), strict=True):
        direction = points[corner] - points[0]
        x, y = points[corner] + 8 * direction / max(float(np.linalg.norm(direction)), 1e-12)
        inside += Markup(
            '<text x="{}" y="{}" font-size="11" fill="currentColor" text-anchor="middle" '
            'dominant-baseline="central">{}</text>'
        ).format(round(float(x), 1), round(float(y), 1), name)
    return _svg(round(width, 1), round(height, 1), alt, inside)


def bar(estimate: float, low: float, high: float, span: tuple[float, float]) -> Markup:
    """Return an SVG of an estimate as a dot on its confidence interval.

    Parameters
    ----------
    estimate, low, high : float
        Estimate and ends of its interval; the SVG is empty if one is not finite.
    span : (float, float)
        Values at the left and the right end of the bar.

    Examples
    --------
    >>> "<circle" in bar(0.8, 0.7, 0.9, (0.5, 1)), bar(np.nan, np.nan, np.nan, (0.5, 1))
    (True, Markup(''))
    """
    if not np.isfinite([estimate, low, high]).all():
        return Markup("")
    width, height = 120, 14
    length = max(span[1] - span[0], 1e-12)
    centre, start, end = (round(4 + (width - 8) * (v - span[0]) / length, 1) for v in (estimate, low, high))
    inside = Markup(
        '<line x1="4" y1="7" x2="{}" y2="7" stroke="currentColor" stroke-opacity=".25"/>'
        '<line x1="{}" y1="7" x2="{}" y2="7" stroke="currentColor" stroke-width="3" stroke-opacity=".6"/>'
        '<circle cx="{}" cy="7" r="3.5" fill="{}"/>'
    ).format(width - 4, start, end, centre, _HIGHLIGHT)
    return _svg(width, height, f"{estimate:.3f}, from {low:.3f} to {high:.3f}", inside)


def _svg(width: float, height: float, alt: str, inside: Markup) -> Markup:
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{}" width="{}" height="{}" '
        'viewBox="0 0 {} {}" style="max-width:100%;height:auto;background:transparent"><title>{}</title>{}</svg>'
    ).format(alt, width, height, width, height, alt, inside)


def _png(plane: NDArray[Any]) -> str:
    """Encode a plane as an 8-bit PNG in base64, first row at the bottom."""
    import imagecodecs

    values = np.nan_to_num(np.asarray(plane, dtype=np.float32))
    low, high = np.percentile(values, (1, 99))
    grey = (255 * (values - low) / max(float(high - low), 1e-12)).clip(0, 255).astype(np.uint8)
    return base64.b64encode(imagecodecs.png_encode(np.ascontiguousarray(grey[::-1]))).decode("ascii")
