"""Pictures of the report: a block of a test subject, its truth and an answer; scores with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mrhdata.contest import Subject
from mrhdata.harness.manifest import part_of, scored_grid


def of_block(subject: Subject, answer: Any, box: Sequence[int]) -> Figure:
    """The middle plane of a block: first input, truth, answer; cells as circles over the input."""
    figure = Figure(figsize=(7.5, 2.8), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 3)
    like = scored_grid(subject)
    plane = (box[0] + box[3]) // 2
    seen = _plane(subject.first, like, box)
    if isinstance(answer, pd.DataFrame):
        shown = [(seen, "input"), (seen, "cells"), (seen, "found")]
        marks = [None, *(_near(t, like, plane, box) for t in (subject.truth, answer))]
    else:
        held = [np.asarray(part_of(v, box).data)[plane - box[0]] for v in (subject.truth, answer)]
        shown, marks = [(seen, "input"), (held[0], "truth"), (held[1], "answer")], [None] * 3
    limits = [np.percentile(shown[i][0], (1, 99)) for i in (0, 1, 1)]
    if isinstance(answer, pd.DataFrame):
        limits = [limits[0]] * 3
    for ax, (image, title), (low, high), points in zip(axes, shown, limits, marks, strict=True):
        ax.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-9), origin="lower", interpolation="nearest")
        if points is not None and len(points):
            ax.plot(points[:, 2] - box[2], points[:, 1] - box[1], "o", mfc="none", mec="tab:orange", ms=8)
        ax.set_title(title, fontsize=9)
        ax.set_axis_off()
    return figure


def _plane(volume: Any, like: Any, box: Sequence[int]) -> Any:
    """The same plane of an input, which may have larger pixels."""
    ratio = np.array(like.shape) / np.array(volume.shape)
    low, high = (np.floor(np.array(part) / ratio).astype(int) for part in (box[:3], box[3:]))
    z = int(((box[0] + box[3]) // 2) / ratio[0])
    high = np.maximum(high, low + 1)
    return np.asarray(volume.data[z, low[1] : high[1], low[2] : high[2]])


def _near(table: pd.DataFrame, like: Any, plane: int, box: Sequence[int], reach: int = 4) -> Any:
    """Cells within some planes of one."""
    if not len(table):
        return np.empty((0, 3))
    voxels = like.mrh.grid.index(table[["X", "Y", "Z"]].to_numpy())
    inside = (np.abs(voxels[:, 0] - plane) <= reach) & (voxels[:, 1:] >= box[1:3]).all(axis=1)
    return voxels[inside & (voxels[:, 1:] < box[4:]).all(axis=1)]


def ranking(table: pd.DataFrame, score: str) -> Figure:
    """A dot and an interval per method, best on top; baselines are hollow.

    Parameters
    ----------
    table : DataFrame
        With ``method``, ``baseline``, ``value``, ``low``, ``high``, best first.
    score : str
    """
    figure = Figure(figsize=(6.5, 0.9 + 0.32 * len(table)), layout="constrained", facecolor="white")
    ax = figure.subplots()
    for row, line in enumerate(table.iloc[::-1].to_dict("records")):
        colour = "0.45" if line["baseline"] else "tab:blue"
        ax.plot([line["low"], line["high"]], [row, row], color=colour, linewidth=2)
        ax.plot(line["value"], row, "o", color=colour, mfc="white" if line["baseline"] else colour, ms=7)
    ax.set_yticks(range(len(table)), table["method"].iloc[::-1])
    ax.set_xlabel(f"{score} (95 % interval over blocks; hollow: baseline)")
    ax.grid(axis="x", color="0.9")
    return figure
