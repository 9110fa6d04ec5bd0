"""Scores of cell detection: matching, precision and recall, thresholds, counts.

Points are world points (n, 3) in mm. A detection is a true positive if it is matched, one to one, to a true cell
within a radius.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mrhdata.errors import DataError, GridError
from mrhdata.metrics.bootstrap import Interval, wilson_interval
from mrhdata.metrics.matching import Matching, assigned, check_points, match, near_pairs

__all__ = [
    "Detection",
    "Matching",
    "Recall",
    "best_threshold",
    "count_errors",
    "curve",
    "detection",
    "match",
    "recall_only",
]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
#: Lowest and highest X, Y, Z in mm. Lower bounds are inclusive, upper bounds exclusive, so that boxes can tile.
BoundsMm = tuple[Sequence[float], Sequence[float]]

#: Largest number of default thresholds of a curve.
_MAX_THRESHOLDS = 101
_COUNTS = ("true_positives", "false_positives", "misses")


@dataclass(frozen=True)
class Detection:
    """Counts and scores of a detector.

    `precision` is NaN without detections, `recall` and `relative_count_error` without true cells,
    `median_distance_mm` without pairs. `f1` is 1 if there are neither cells nor detections, and 0 if only one of
    the two is missing.

    Attributes
    ----------
    true_positives, false_positives, misses : int
        Counts of detections and of true cells.
    median_distance_mm : float
        Median distance between the cell and the detection of a pair.

    Examples
    --------
    >>> scores = Detection(true_positives=8, false_positives=2, misses=4, median_distance_mm=0.002)
    >>> round(scores.precision, 3), round(scores.recall, 3), round(scores.f1, 3), scores.count_error
    (0.8, 0.667, 0.727, -2)
    """

    true_positives: int
    false_positives: int
    misses: int
    median_distance_mm: float

    @property
    def precision(self) -> float:
        """Share of the detections that are cells."""
        return _divide(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of the cells that are detected."""
        return _divide(self.true_positives, self.true_positives + self.misses)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall: ``2 TP / (2 TP + FP + FN)``."""
        matched_points = 2 * self.true_positives
        return _divide(matched_points, matched_points + self.false_positives + self.misses, otherwise=1.0)

    @property
    def count_error(self) -> int:
        """Number of detections minus number of cells: misses and false positives cancel."""
        return self.false_positives - self.misses

    @property
    def relative_count_error(self) -> float:
        """Count error over the number of cells."""
        return _divide(self.count_error, self.true_positives + self.misses)


def detection(truth: ArrayLike, found: ArrayLike, radius_mm: float, *, box: BoundsMm | None = None) -> Detection:
    """Score detections against true cells.

    Parameters
    ----------
    truth, found, radius_mm
        As for :func:`~mrhdata.metrics.matching.match`.
    box : pair of (3,) sequences, optional
        Lowest and highest X, Y, Z of the scored region, in mm. All points are matched. A pair counts if its cell
        lies inside the box, an unmatched cell or detection if it lies inside itself. For correct scores at the
        border, also pass the points outside of the box that lie within the radius.

    Examples
    --------
    >>> truth = [[0.0, 0, 0], [5.0, 0, 0]]
    >>> detection(truth, [[0.5, 0, 0], [3.0, 0, 0]], radius_mm=1)
    Detection(true_positives=1, false_positives=1, misses=1, median_distance_mm=0.5)
    """
    cells, detections = check_points("truth", truth), check_points("found", found)
    pairs = assigned(near_pairs(cells, detections, radius_mm), radius_mm)
    return _count_inside(pairs, _is_inside(cells, box), _is_inside(detections, box))


def curve(
    truth: ArrayLike,
    found: ArrayLike,
    scores: ArrayLike,
    radius_mm: float,
    thresholds: ArrayLike | None = None,
    *,
    box: BoundsMm | None = None,
    volume_mm3: float | None = None,
) -> pd.DataFrame:
    """Compute precision, recall and F1 at thresholds of the score, and the free-response ROC curve.

    Detections with ``score >= threshold`` are matched anew at each threshold. A single matching of all detections
    could pair a cell with a low score although a detection with a higher score is near, and a greedy matching by
    score would miss pairs.

    Parameters
    ----------
    truth, found, radius_mm, box
        As for :func:`detection`.
    scores : (m,) array-like
        Scores of the detections.
    thresholds : (t,) array-like, optional
        Thresholds of the score. By default all distinct scores, or their percentiles if there are more than 101.
    volume_mm3 : float, optional
        Searched volume; the volume of `box` by default.

    Returns
    -------
    table : DataFrame
        A row per threshold, the highest first: ``threshold``, ``true_positives``, ``false_positives``, ``misses``,
        ``precision``, ``recall``, ``f1`` and, if the volume is known, ``false_positives_per_mm3``. The FROC curve
        is ``recall`` against ``false_positives_per_mm3``.

    Raises
    ------
    DataError
        If scores are not finite or their number is not that of the detections, or if there are neither detections
        nor thresholds.

    Examples
    --------
    >>> cells, detections = [[0.0, 0, 0], [5.0, 0, 0]], [[0.0, 0, 0], [5.0, 0, 0], [9.0, 0, 0]]
    >>> table = curve(cells, detections, [0.9, 0.5, 0.7], radius_mm=1, volume_mm3=10)
    >>> table[["threshold", "precision", "recall", "false_positives_per_mm3"]].round(2).values.tolist()
    [[0.9, 1.0, 0.5, 0.0], [0.7, 0.5, 0.5, 0.1], [0.5, 0.67, 1.0, 0.1]]
    """
    s = _check_scores(scores, len(np.asarray(found)))
    levels = _descending_thresholds(s, thresholds)
    if volume_mm3 is None and box is not None:
        volume_mm3 = float(np.prod(np.subtract(box[1], box[0])))
    rows = []
    for level, result in zip(levels, _at_thresholds(truth, found, s, radius_mm, levels, box), strict=True):
        row = {"threshold": float(level)}
        row |= {name: getattr(result, name) for name in (*_COUNTS, "precision", "recall", "f1")}
        if volume_mm3 is not None:
            row["false_positives_per_mm3"] = result.false_positives / volume_mm3
        rows.append(row)
    return pd.DataFrame(rows)


def best_threshold(
    brains: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]],
    radius_mm: float,
    metric: str = "f1",
    thresholds: ArrayLike | None = None,
) -> float:
    """Return the threshold that is best over several training brains; the highest of equally good ones.

    Use training brains: a threshold chosen on test brains makes their scores too good.

    Parameters
    ----------
    brains : sequence of (truth, found, scores)
        Cells, detections and scores of each brain, as for :func:`curve`.
    radius_mm : float
        Largest distance between the cell and the detection of a pair.
    metric : {"f1", "count"}
        "f1" maximises F1 of the summed counts of all brains. "count" minimises the sum of the brains' absolute
        count errors, which do not cancel between brains.
    thresholds : (t,) array-like, optional
        Candidate thresholds, as for :func:`curve`; taken from the scores of all brains by default.

    Raises
    ------
    DataError
        If no brain has a cell, if there are neither detections nor thresholds, or if the metric is unknown.

    Examples
    --------
    >>> cells = [[0.0, 0, 0], [5.0, 0, 0]]
    >>> brains = [(cells, [*cells, [9.0, 0, 0]], [0.9, 0.6, 0.4]), (cells, cells, [0.8, 0.5])]
    >>> best_threshold(brains, radius_mm=1)
    0.5
    """
    if metric not in ("f1", "count"):
        raise DataError(f"metric must be 'f1' or 'count'; got {metric!r}")
    scores = [_check_scores(s, len(np.asarray(detections))) for _, detections, s in brains]
    if not sum(len(np.asarray(cells)) for cells, _, _ in brains):
        raise DataError(f"{len(brains)} brains have no true cell; pass a brain with cells to choose a threshold")
    levels = _descending_thresholds(np.concatenate(scores), thresholds)
    by_brain = [
        list(_at_thresholds(cells, detections, s, radius_mm, levels, None))
        for (cells, detections, _), s in zip(brains, scores, strict=True)
    ]
    by_level = [[results[k] for results in by_brain] for k in range(len(levels))]
    quality = [_add_counts(row).f1 if metric == "f1" else -sum(abs(d.count_error) for d in row) for row in by_level]
    return float(levels[int(np.argmax(quality))])


def count_errors(truth_regions: ArrayLike, found_regions: ArrayLike) -> pd.DataFrame:
    """Compute the errors of cell counts by region.

    Parameters
    ----------
    truth_regions, found_regions : (n,), (m,) int array-like
        Region of each true cell and of each detection.

    Returns
    -------
    table : DataFrame
        A row per region with a cell or a detection: ``region``, ``true_count``, ``found_count``, ``error``
        (``found_count - true_count``) and ``relative_error`` (``error / true_count``; NaN if `true_count` is 0).

    Examples
    --------
    >>> count_errors([1, 1, 2], [1, 2, 2, 3]).values.tolist()
    [[1.0, 2.0, 1.0, -1.0, -0.5], [2.0, 1.0, 2.0, 1.0, 1.0], [3.0, 0.0, 1.0, 1.0, nan]]
    """
    a, b = (np.asarray(r).astype(np.int64).ravel() for r in (truth_regions, found_regions))
    regions = np.union1d(a, b)
    cells, detections = (np.bincount(np.searchsorted(regions, r), minlength=len(regions)) for r in (a, b))
    relative = [_divide(int(d - c), int(c)) for c, d in zip(cells, detections, strict=True)]
    columns = {"region": regions, "true_count": cells, "found_count": detections, "error": detections - cells}
    return pd.DataFrame(columns).assign(relative_error=relative)


@dataclass(frozen=True)
class Recall:
    """Recall for incomplete annotations: unmarked places may be cells, so precision is unknown.

    Attributes
    ----------
    recall : Interval
        Share of the marks that are detected.
    marks, detections : int
        Numbers of marks and of detections. Read them together with recall: a detector that fires everywhere finds
        every mark.
    reason : str
        Reason why precision is unknown.
    """

    recall: Interval
    marks: int
    detections: int
    reason: str

    def __str__(self) -> str:
        return f"recall {self.recall} of {self.marks} marks with {self.detections} detections ({self.reason})"


def recall_only(
    truth: ArrayLike, found: ArrayLike, radius_mm: float, reason: str, *, box: BoundsMm | None = None
) -> Recall:
    """Compute recall for cells of which only some are marked, with Wilson's 95 % confidence interval.

    Parameters
    ----------
    truth, found, radius_mm, box
        As for :func:`detection`.
    reason : str
        Reason why precision is unknown, such as ``"marks of another program, incomplete"``.

    Raises
    ------
    DataError
        If the reason is empty, or if no mark lies in the box.

    Notes
    -----
    The interval assumes independent marks; it is too narrow if misses come in groups.

    Examples
    --------
    >>> print(recall_only([[0.0, 0, 0], [5.0, 0, 0]], [[0.0, 0, 0]], 1, "only bright cells are marked"))
    recall 0.500 [0.095, 0.905] of 2 marks with 1 detections (only bright cells are marked)
    """
    if not reason.strip():
        raise DataError("recall without precision needs a reason; if every cell is marked, use detection()")
    scores = detection(truth, found, radius_mm, box=box)
    marks = scores.true_positives + scores.misses
    if not marks:
        raise DataError("truth has no mark in the box; pass marks, or another box")
    detections = int(_is_inside(check_points("found", found), box).sum())
    return Recall(wilson_interval(scores.true_positives, marks), marks, detections, reason.strip())


def _count_inside(pairs: Matching, cell_inside: Bools, detection_inside: Bools) -> Detection:
    """Count pairs whose cell is inside, and unmatched cells and detections that are inside."""
    pair_inside = cell_inside[pairs.truth]
    hits = int(pair_inside.sum())
    return Detection(
        true_positives=hits,
        false_positives=int(detection_inside.sum() - detection_inside[pairs.found].sum()),
        misses=int(cell_inside.sum()) - hits,
        median_distance_mm=float(np.median(pairs.distance_mm[pair_inside])) if hits else float("nan"),
    )


def _at_thresholds(
    cells: ArrayLike, detections: ArrayLike, scores: Floats, radius_mm: float, levels: Floats, box: BoundsMm | None
) -> Iterator[Detection]:
    """Score the detections at or above each level. Near pairs are computed once, the matching for each level."""
    cells, detections = check_points("truth", cells), check_points("found", detections)
    i, j, distance = near_pairs(cells, detections, radius_mm)
    cell_inside, detection_inside = _is_inside(cells, box), _is_inside(detections, box)
    for level in levels:
        accepted = scores >= level
        near = accepted[j]
        pairs = assigned((i[near], j[near], distance[near]), radius_mm)
        yield _count_inside(pairs, cell_inside, detection_inside & accepted)


def _descending_thresholds(scores: Floats, thresholds: ArrayLike | None) -> Floats:
    """Return the thresholds, or distinct scores or their percentiles by default; the highest first."""
    if thresholds is not None:
        return np.unique(np.asarray(thresholds, dtype=np.float64))[::-1]
    if not scores.size:
        raise DataError("default thresholds need at least one detection; pass thresholds")
    if len(np.unique(scores)) > _MAX_THRESHOLDS:
        scores = np.quantile(scores, np.linspace(0, 1, _MAX_THRESHOLDS), method="higher")
    return np.unique(scores)[::-1]


def _check_scores(scores: ArrayLike, count: int) -> Floats:
    s = np.asarray(scores, dtype=np.float64)
    if s.shape != (count,):
        raise DataError(f"scores must have the shape ({count},), one per detection; got {s.shape}")
    if not np.isfinite(s).all():
        raise DataError(f"{(~np.isfinite(s)).sum()} of {count} scores are not finite; leave these detections out")
    return s


def _add_counts(results: Sequence[Detection]) -> Detection:
    """Return the summed counts of several brains."""
    hits, false, misses = (sum(getattr(d, name) for d in results) for name in _COUNTS)
    return Detection(hits, false, misses, float("nan"))


def _is_inside(points: Floats, box: BoundsMm | None) -> Bools:
    if box is None:
        return np.ones(len(points), dtype=bool)
    low, high = (np.asarray(bound, dtype=np.float64) for bound in box)
    if low.shape != (3,) or high.shape != (3,) or not (low < high).all():
        raise GridError(f"box must be the lowest and highest X, Y, Z in mm; got {low.tolist()} and {high.tolist()}")
    return np.asarray(((points >= low) & (points < high)).all(axis=1))


def _divide(numerator: int, denominator: int, otherwise: float = float("nan")) -> float:
    return numerator / denominator if denominator else otherwise
