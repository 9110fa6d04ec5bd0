"""Figures of the report: a block of a test subject with truth and answer, and scores with their intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mrhdata.bench.manifest import in_box, part_of, scored_grid, voxels_of
from mrhdata.datasets.subjects import Subject
from mrhdata.volume.box import Box

#: Cells are drawn if they lie within this many planes of the plotted plane.
_MAX_PLANE_DISTANCE = 4


def of_block(subject: Subject, answer: Any, box: Box) -> Figure:
    """Plot one plane of a block: first input, truth and answer; cells are circles over the input.

    The plane is the middle of the block. For cells it is the plane of the median cell: the middle may have none.
    """
    like, plane = scored_grid(subject), (box.start[0] + box.stop[0]) // 2
    circles: list[Any] = [None] * 3
    if isinstance(answer, pd.DataFrame):
        voxels = [voxels_of(points, like) for points in (subject.points, answer[["X", "Y", "Z"]].to_numpy())]
        inside = [v[in_box(v, box)] for v in voxels]
        depths = np.sort(np.concatenate([v[:, 0] for v in inside]))
        plane = int(depths[len(depths) // 2]) if len(depths) else plane
        circles = [None, *(v[np.abs(v[:, 0] - plane) <= _MAX_PLANE_DISTANCE] for v in inside)]
        image = _plane(subject.first, like, box, plane)
        panels = [(image, "input"), (image, "cells"), (image, "detections")]
    else:
        truth, prediction = (np.asarray(part_of(v, box).data)[plane - box.start[0]] for v in (subject.target, answer))
        panels = [(_plane(subject.first, like, box, plane), "input"), (truth, "truth"), (prediction, "answer")]
    limits = [np.percentile(panels[i][0], (1, 99)) for i in (0, 1, 1)]
    figure = Figure(figsize=(7.5, 2.8), layout="constrained", facecolor="white")
    for ax, (image, title), (low, high), points in zip(figure.subplots(1, 3), panels, limits, circles, strict=True):
        ax.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-9), origin="lower", interpolation="nearest")
        if points is not None and len(points):
            ax.plot(points[:, 2] - box.start[2], points[:, 1] - box.start[1], "o", mfc="none", mec="tab:orange", ms=8)
        ax.set_title(title, fontsize=9)
        ax.set_axis_off()
    return figure


def _plane(volume: Any, like: Any, box: Box, plane: int) -> Any:
    """Return the same plane of an input whose pixels may be larger."""
    ratio = np.array(like.shape) / np.array(volume.shape)
    low, high = (np.floor(np.array(corner) / ratio).astype(int) for corner in (box.start, box.stop))
    z = int(plane / ratio[0])
    high = np.maximum(high, low + 1)
    return np.asarray(volume.data[z, low[1] : high[1], low[2] : high[2]])


def ranking(table: pd.DataFrame, score: str) -> Figure:
    """Plot a dot and an interval per method, best on top; baselines are hollow.

    Parameters
    ----------
    table : DataFrame
        Standings with ``method``, ``baseline``, ``value``, ``low``, ``high``, best first.
    score : str
        Label of the axis.
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
