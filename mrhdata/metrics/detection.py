"""How well detected cells are the true ones: matching, precision and recall, thresholds, counts.

Points are world points (n, 3) in mm. A detection is a true one where it is matched to a true cell, one to one,
within a radius that every score is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mrhdata.errors import DataError, GridError
from mrhdata.metrics.bootstrap import Interval, wilson
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
#: Lowest and highest X, Y, Z in mm; the lowest lie within, the highest do not, so that boxes can tile.
Box = tuple[Sequence[float], Sequence[float]]

#: Thresholds that a curve has where it is told none.
_POINTS = 101
_COUNTS = ("true_positives", "false_positives", "misses")


@dataclass(frozen=True)
class Detection:
    """What a detector found.

    Where nothing is found, `precision` is NaN; where nothing is there, `recall` and `relative_count_error` are;
    without a pair, `median_distance_mm` is. `f1` is 1 where nothing is there and nothing is found, else 0 where
    one of the two is empty.

    Attributes
    ----------
    true_positives, false_positives, misses : int
    median_distance_mm : float
        Of the pairs.

    Examples
    --------
    >>> found = Detection(true_positives=8, false_positives=2, misses=4, median_distance_mm=0.002)
    >>> round(found.precision, 3), round(found.recall, 3), round(found.f1, 3), found.count_error
    (0.8, 0.667, 0.727, -2)
    """

    true_positives: int
    false_positives: int
    misses: int
    median_distance_mm: float

    @property
    def precision(self) -> float:
        """Share of the detections that are cells."""
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of the cells that are detected."""
        return _share(self.true_positives, self.true_positives + self.misses)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall: ``2 TP / (2 TP + FP + FN)``."""
        both = 2 * self.true_positives
        return _share(both, both + self.false_positives + self.misses, otherwise=1.0)

    @property
    def count_error(self) -> int:
        """Detections less cells: misses and false positives cancel."""
        return self.false_positives - self.misses

    @property
    def relative_count_error(self) -> float:
        """Of the number of cells."""
        return _share(self.count_error, self.true_positives + self.misses)


def detection(truth: ArrayLike, found: ArrayLike, radius_mm: float, *, box: Box | None = None) -> Detection:
    """Score detections against true cells.

    Parameters
    ----------
    truth, found, radius_mm
        As for :func:`~mrhdata.metrics.matching.match`.
    box : pair of (3,) sequences, optional
        Lowest and highest X, Y, Z in mm of what is scored. Everything is matched everywhere, and a pair counts
        where its true cell lies within; a detection without a cell, and a cell without one, count where they lie.
        So cells about the border are not false: give also what lies within the radius outside of the box.

    Examples
    --------
    >>> truth = [[0.0, 0, 0], [5.0, 0, 0]]
    >>> detection(truth, [[0.5, 0, 0], [3.0, 0, 0]], radius_mm=1)
    Detection(true_positives=1, false_positives=1, misses=1, median_distance_mm=0.5)
    """
    a, b = check_points("truth", truth), check_points("found", found)
    pairs = assigned(near_pairs(a, b, radius_mm), radius_mm)
    return _counted(pairs, _within(a, box), _within(b, box))


def curve(
    truth: ArrayLike,
    found: ArrayLike,
    scores: ArrayLike,
    radius_mm: float,
    thresholds: ArrayLike | None = None,
    *,
    box: Box | None = None,
    volume_mm3: float | None = None,
) -> pd.DataFrame:
    """Precision, recall and F1 at thresholds of the score, and the free-response ROC curve.

    At each threshold the detections with ``score >= threshold`` are matched anew: a matching of all of them, cut
    by score, would keep cells from the better detection that came second, and one that takes detections by score
    matches fewer cells than there are pairs.

    Parameters
    ----------
    truth, found, radius_mm, box
        As for :func:`detection`.
    scores : (m,) array-like
        Of the detections.
    thresholds : (t,) array-like, optional
        Every score that occurs where there are at most 101, else percentiles of them.
    volume_mm3 : float, optional
        That was searched; that of the box where there is one.

    Returns
    -------
    table : DataFrame
        A row per threshold, the highest first: ``threshold``, ``true_positives``, ``false_positives``, ``misses``,
        ``precision``, ``recall``, ``f1``, and, of a known volume, ``false_positives_per_mm3``, against which
        ``recall`` is the FROC curve.

    Raises
    ------
    DataError
        Scores are not finite, or not one per detection; there is no detection to take thresholds from.

    Examples
    --------
    >>> truth, found = [[0.0, 0, 0], [5.0, 0, 0]], [[0.0, 0, 0], [5.0, 0, 0], [9.0, 0, 0]]
    >>> table = curve(truth, found, [0.9, 0.5, 0.7], radius_mm=1, volume_mm3=10)
    >>> table[["threshold", "precision", "recall", "false_positives_per_mm3"]].round(2).values.tolist()
    [[0.9, 1.0, 0.5, 0.0], [0.7, 0.5, 0.5, 0.1], [0.5, 0.67, 1.0, 0.1]]
    """
    s = _scores(scores, len(np.asarray(found)))
    levels = _levels(s, thresholds)
    if volume_mm3 is None and box is not None:
        volume_mm3 = float(np.prod(np.subtract(box[1], box[0])))
    rows = []
    for level, held in zip(levels, _at_thresholds(truth, found, s, radius_mm, levels, box), strict=True):
        row = {"threshold": float(level)}
        row |= {name: getattr(held, name) for name in (*_COUNTS, "precision", "recall", "f1")}
        if volume_mm3 is not None:
            row["false_positives_per_mm3"] = held.false_positives / volume_mm3
        rows.append(row)
    return pd.DataFrame(rows)


def best_threshold(
    brains: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]],
    radius_mm: float,
    metric: str = "f1",
    thresholds: ArrayLike | None = None,
) -> float:
    """The threshold that is best over several training brains; the highest of equal ones.

    To be found on training brains: on those that are scored it flatters.

    Parameters
    ----------
    brains : sequence of (truth, found, scores)
        Of each brain, as for :func:`curve`.
    radius_mm : float
    metric : {"f1", "count"}
        Largest F1 of the true positives, false positives and misses of all brains together; or least sum of the
        brains' absolute count errors, which do not cancel between brains.
    thresholds : (t,) array-like, optional
        As for :func:`curve`, from the scores of all brains.

    Raises
    ------
    DataError
        No brain has a cell; none has a detection to take thresholds from; the metric is not known.

    Examples
    --------
    >>> cells = [[0.0, 0, 0], [5.0, 0, 0]]
    >>> brains = [(cells, [*cells, [9.0, 0, 0]], [0.9, 0.6, 0.4]), (cells, cells, [0.8, 0.5])]
    >>> best_threshold(brains, radius_mm=1)
    0.5
    """
    if metric not in ("f1", "count"):
        raise DataError(f"metric is 'f1' or 'count', not {metric!r}")
    scores = [_scores(s, len(np.asarray(found))) for _, found, s in brains]
    if not sum(len(np.asarray(truth)) for truth, _, _ in brains):
        raise DataError(f"{len(brains)} brains have no true cell; a threshold takes some")
    levels = _levels(np.concatenate(scores), thresholds)
    found = [
        list(_at_thresholds(truth, places, s, radius_mm, levels, None))
        for (truth, places, _), s in zip(brains, scores, strict=True)
    ]
    at = [[brain[k] for brain in found] for k in range(len(levels))]
    worth = [_all(row).f1 if metric == "f1" else -sum(abs(d.count_error) for d in row) for row in at]
    return float(levels[int(np.argmax(worth))])


def count_errors(truth_regions: ArrayLike, found_regions: ArrayLike) -> pd.DataFrame:
    """Errors of the counts of regions.

    Parameters
    ----------
    truth_regions, found_regions : (n,), (m,) int array-like
        Region of each true cell and of each detection.

    Returns
    -------
    table : DataFrame
        A row per region with a cell or a detection: ``region``, ``true_count``, ``found_count``, ``error`` (found
        less true) and ``relative_error`` (of the true count; NaN where it is 0).

    Examples
    --------
    >>> count_errors([1, 1, 2], [1, 2, 2, 3]).values.tolist()
    [[1.0, 2.0, 1.0, -1.0, -0.5], [2.0, 1.0, 2.0, 1.0, 1.0], [3.0, 0.0, 1.0, 1.0, nan]]
    """
    a, b = (np.asarray(r).astype(np.int64).ravel() for r in (truth_regions, found_regions))
    regions = np.union1d(a, b)
    there, found = (np.bincount(np.searchsorted(regions, r), minlength=len(regions)) for r in (a, b))
    relative = [_share(int(f - t), int(t)) for t, f in zip(there, found, strict=True)]
    columns = {"region": regions, "true_count": there, "found_count": found, "error": found - there}
    return pd.DataFrame(columns).assign(relative_error=relative)


@dataclass(frozen=True)
class Recall:
    """Recall alone, where annotation is incomplete: what is not marked may be a cell, so there is no precision.

    Attributes
    ----------
    recall : Interval
        Share of the marks that are detected.
    marks, detections : int
        A detector that marks everything finds every mark: read recall beside the number of its detections.
    reason : str
        Why there is no precision.
    """

    recall: Interval
    marks: int
    detections: int
    reason: str

    def __str__(self) -> str:
        return f"recall {self.recall} of {self.marks} marks with {self.detections} detections ({self.reason})"


def recall_only(truth: ArrayLike, found: ArrayLike, radius_mm: float, reason: str, *, box: Box | None = None) -> Recall:
    """Recall of cells of which only some are marked, with Wilson's interval at 95 %.

    Parameters
    ----------
    truth, found, radius_mm, box
        As for :func:`detection`.
    reason : str
        Why precision is not to be had, such as ``"marks of another program, incomplete"``.

    Raises
    ------
    DataError
        There is no reason, or no mark.

    Notes
    -----
    The interval takes marks as independent; misses that come in groups make it too narrow.

    Examples
    --------
    >>> print(recall_only([[0.0, 0, 0], [5.0, 0, 0]], [[0.0, 0, 0]], 1, "only bright cells are marked"))
    recall 0.500 [0.095, 0.905] of 2 marks with 1 detections (only bright cells are marked)
    """
    if not reason.strip():
        raise DataError("recall alone needs a reason; where every cell is marked, use detection()")
    held = detection(truth, found, radius_mm, box=box)
    marks = held.true_positives + held.misses
    if not marks:
        raise DataError("there is no mark to find; give some, or another box")
    many = int(_within(check_points("found", found), box).sum())
    return Recall(wilson(held.true_positives, marks), marks, many, reason.strip())


def _counted(pairs: Matching, truth_inside: Bools, found_inside: Bools) -> Detection:
    """Counts within a box, of detections that all stand in `found_inside` or do not count."""
    counted = truth_inside[pairs.truth]
    hits = int(counted.sum())
    return Detection(
        true_positives=hits,
        false_positives=int(found_inside.sum() - found_inside[pairs.found].sum()),
        misses=int(truth_inside.sum()) - hits,
        median_distance_mm=float(np.median(pairs.distance_mm[counted])) if hits else float("nan"),
    )


def _at_thresholds(
    truth: ArrayLike, found: ArrayLike, scores: Floats, radius_mm: float, levels: Floats, box: Box | None
) -> Iterator[Detection]:
    """Detections of at least each level, matched anew; near pairs are looked for once."""
    a, b = check_points("truth", truth), check_points("found", found)
    i, j, distance = near_pairs(a, b, radius_mm)
    inside = _within(a, box), _within(b, box)
    for level in levels:
        kept = scores >= level
        near = kept[j]
        pairs = assigned((i[near], j[near], distance[near]), radius_mm)
        yield _counted(pairs, inside[0], inside[1] & kept)


def _levels(scores: Floats, thresholds: ArrayLike | None) -> Floats:
    """Thresholds, the highest first: those given, or scores that occur, not too many."""
    if thresholds is not None:
        return np.unique(np.asarray(thresholds, dtype=np.float64))[::-1]
    if not scores.size:
        raise DataError("there is no detection to take thresholds from; give thresholds")
    if len(np.unique(scores)) > _POINTS:
        scores = np.quantile(scores, np.linspace(0, 1, _POINTS), method="higher")
    return np.unique(scores)[::-1]


def _scores(scores: ArrayLike, many: int) -> Floats:
    s = np.asarray(scores, dtype=np.float64)
    if s.shape != (many,):
        raise DataError(f"scores have the shape {s.shape} and there are {many} detections; give one for each")
    if not np.isfinite(s).all():
        raise DataError(f"{(~np.isfinite(s)).sum()} of {many} scores are not finite; leave these detections out")
    return s


def _all(held: Sequence[Detection]) -> Detection:
    """Counts of several brains together."""
    hits, false, misses = (sum(getattr(d, name) for d in held) for name in _COUNTS)
    return Detection(hits, false, misses, float("nan"))


def _within(points: Floats, box: Box | None) -> Bools:
    if box is None:
        return np.ones(len(points), dtype=bool)
    low, high = (np.asarray(end, dtype=np.float64) for end in box)
    if low.shape != (3,) or high.shape != (3,) or not (low < high).all():
        raise GridError(f"a box is the lowest and the highest X, Y, Z in mm, not {low.tolist()} and {high.tolist()}")
    return np.asarray(((points >= low) & (points < high)).all(axis=1))


def _share(part: int, whole: int, otherwise: float = float("nan")) -> float:
    return part / whole if whole else otherwise
