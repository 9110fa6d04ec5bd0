"""Review of detections by a person: places to show, decisions to read, annotations and counts to correct.

```
cells, annotations --examples--> places --page (review_page)--> decisions --apply_review---> annotations
                                                                    +------adjusted_count-> remaining false positives
```

The report of 2020 reviewed the 19 false positives of one run: 14 were cells without an annotation.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mrhdata.errors import DataError, FormatError
from mrhdata.io.cell_tables import CELL, NO_CELL, VOXEL, WORLD, read_points
from mrhdata.metrics.bootstrap import Interval, wilson_interval
from mrhdata.metrics.detection import Detection, match

Floats = NDArray[np.float64]

#: Reason why a place is shown -> its meaning. Errors come before matches.
KINDS = {
    "false positive": "detected, without an annotation nearby",
    "double": "second detection of an annotated cell: a false positive, whatever you decide",
    "miss": "annotated, not detected",
    "match": "annotated and detected",
    "detection": "detected; the volume has no annotations",
}
DECISIONS = ("cell", "no cell", "unsure")
#: Kinds of detections without an annotation of their own, and kinds of annotations.
_UNMATCHED, _ANNOTATED = ["false positive", "double"], ["miss", "match"]
_COLUMNS = ["id", *WORLD, "kind", "score", "drawn", "decision"]
#: Number of equal score ranges from which detections are drawn in turn.
_SCORE_BINS = 10
#: Places nearer than this are the same place; files round coordinates.
_SAME_MM = 1e-6


def examples(
    cells: pd.DataFrame,
    annotations: pd.DataFrame | None = None,
    *,
    radius_mm: float | None = None,
    count: int = 60,
    drawn: str = "highest",
    seed: int = 0,
) -> pd.DataFrame:
    """Choose places to show to a person.

    With annotations, false positives and misses alternate, followed by matches. Misses and matches are in random
    order, false positives in the order of `drawn`. Without annotations, the range of scores is divided into ten
    equal bins and detections come from each in turn, in random order within a bin. The lowest bin comes first,
    because detections near the threshold are the least certain.

    Parameters
    ----------
    cells : DataFrame
        Detections with ``X, Y, Z`` in mm and, if known, ``score``.
    annotations : DataFrame, optional
        Annotated cells with ``X, Y, Z`` in mm; rows whose ``type`` is not a cell are left out.
    radius_mm : float
        Maximum distance of a detection and its annotation; required with annotations.
    count : int
        Maximum number of places.
    drawn : {"highest", "random"}
        Order of false positives. Those with the highest scores teach a network most; a random sample represents
        the ones that are not shown (see :func:`adjusted_count`). Without scores the order is random.
    seed : int
        Random seed.

    Returns
    -------
    places : DataFrame
        ``id`` (coordinates in nanometres), ``X, Y, Z``, ``kind`` (see ``KINDS``), ``score`` (NaN for misses),
        ``apart_mm`` (distance of a detection to the nearest annotation, or of an annotation to the nearest
        detection) and ``drawn``: how places of this kind were chosen, "all" if none was left out. The coordinates
        of a match are those of its annotation.

    Raises
    ------
    DataError
        If `radius_mm` is missing, `drawn` is unknown, or `count` is less than 1.

    Examples
    --------
    >>> cells = pd.DataFrame({"X": [0.0, 3.0, 5.0], "Y": 0.0, "Z": 0.0, "score": [0.9, 0.6, 0.8]})
    >>> annotations = pd.DataFrame({"X": [0.1, 9.0], "Y": 0.0, "Z": 0.0})
    >>> examples(cells, annotations, radius_mm=0.5)[["X", "kind", "score"]].values.tolist()
    [[5.0, 'false positive', 0.8], [9.0, 'miss', nan], [3.0, 'false positive', 0.6], [0.1, 'match', 0.9]]
    """
    if count < 1 or drawn not in ("highest", "random"):
        raise DataError(f"count must be 1 or more and drawn must be 'highest' or 'random'; got {count} and {drawn!r}")
    rng = np.random.default_rng(seed)
    points = cells[WORLD].to_numpy(np.float64)
    score = cells["score"].to_numpy(np.float64) if "score" in cells else np.full(len(cells), np.nan)
    if annotations is None:
        return _first_places(_spread_scores(_rows(points, "detection", score), rng), count, "spread")
    if radius_mm is None:
        raise DataError("radius_mm is missing. Pass the maximum distance of a detection and its annotation")
    highest = drawn == "highest" and not np.isnan(score).any()
    truth = cells_of(annotations)[WORLD].to_numpy(np.float64)
    rows = _errors_first(truth, points, score, radius_mm, highest, rng)
    return _first_places(rows, count, "highest" if highest else "random")


def cells_of(annotations: pd.DataFrame) -> pd.DataFrame:
    """Return the annotations without those of objects that are not cells.

    Examples
    --------
    >>> cells_of(pd.DataFrame({"X": [0.0, 1.0], "type": [CELL, NO_CELL]}))["X"].tolist()
    [0.0]
    """
    return annotations[annotations["type"] != NO_CELL] if "type" in annotations else annotations


def _errors_first(
    truth: Floats, points: Floats, score: Floats, radius_mm: float, highest: bool, rng: np.random.Generator
) -> pd.DataFrame:
    """Return all places in the order of the page: errors of both kinds in turn, then matches."""
    pairs = match(truth, points, radius_mm)
    unmatched = np.setdiff1d(np.arange(len(points)), pairs.found)
    unmatched = unmatched[np.argsort(-score[unmatched], kind="stable")] if highest else rng.permutation(unmatched)
    missed = rng.permutation(np.setdiff1d(np.arange(len(truth)), pairs.truth))
    apart = _nearest(truth, points[unmatched])
    # An annotation within the radius of an unmatched detection has another match, or the two would be a pair.
    kind = np.where(apart <= radius_mm, "double", "false positive")
    false_positives = _rows(points[unmatched], kind, score[unmatched], apart)
    misses = _rows(truth[missed], "miss", apart_mm=_nearest(points, truth[missed]))
    matches = _rows(truth[pairs.truth], "match", score[pairs.found], pairs.distance_mm)
    errors = pd.concat([false_positives, misses]).sort_index(kind="stable")
    return pd.concat([errors, matches.iloc[rng.permutation(len(matches))]])


def _rows(points: Floats, kind: Any, score: Any = np.nan, apart_mm: Any = np.nan) -> pd.DataFrame:
    columns: dict[str, Any] = dict(zip(WORLD, points.T, strict=True))
    return pd.DataFrame(columns).assign(kind=kind, score=score, apart_mm=apart_mm)


def _nearest(targets: Floats, points: Floats) -> Floats:
    """Return the distance of each point to the nearest target; infinity without targets."""
    if not (len(targets) and len(points)):
        return np.full(len(points), np.inf)
    return np.asarray(cKDTree(targets).query(points)[0])


def _spread_scores(rows: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Order rows so that they come from each score bin in turn."""
    if not len(rows):
        return rows
    score = rows["score"].fillna(0.0)
    fraction = (score - score.min()) / (np.ptp(score) or 1.0)
    score_bin = np.minimum((fraction * _SCORE_BINS).to_numpy(), _SCORE_BINS - 1).astype(int)
    mixed = rng.permutation(len(rows))
    rank = pd.Series(score_bin[mixed]).groupby(score_bin[mixed]).cumcount().to_numpy()
    return rows.iloc[mixed[np.lexsort((score_bin[mixed], rank))]]


def _first_places(rows: pd.DataFrame, count: int, drawn: str) -> pd.DataFrame:
    """Return the first rows with their ids and how each kind was chosen."""
    rows = rows.reset_index(drop=True)
    places = rows.iloc[:count]
    # Doubles and false positives were drawn together.
    kind, omitted = (part["kind"].replace("double", "false positive") for part in (places, rows.iloc[count:]))
    method = np.where(kind.isin(_ANNOTATED), "random", drawn)
    places = places.assign(drawn=np.where(kind.isin(omitted), method, "all"))
    nanometres = np.rint(places[WORLD].to_numpy(np.float64) * 1e6).astype(np.int64)
    names = pd.Series([f"X{x}Y{y}Z{z}" for x, y, z in nanometres.tolist()], dtype=object)
    repeat = names.groupby(names).cumcount()
    places.insert(0, "id", names.where(repeat == 0, names + "-" + (repeat + 1).astype(str)))
    return places


def read_decisions(path: str | os.PathLike[str]) -> pd.DataFrame:
    r"""Read the decisions that a review page saved.

    Parameters
    ----------
    path : path
        CSV file with the columns ``id, X, Y, Z, kind, score, drawn, decision``.

    Returns
    -------
    decisions : DataFrame

    Raises
    ------
    FormatError
        If a column is missing, a kind or a decision is unknown, or a place has two decisions.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "decisions.csv"
    >>> _ = path.write_text("id,X,Y,Z,kind,score,drawn,decision\nX0Y0Z0,0,0,0,miss,,all,no cell\n")
    >>> read_decisions(path)[["id", "kind", "decision"]].values.tolist()
    [['X0Y0Z0', 'miss', 'no cell']]
    """
    table = read_points(path)
    missing = [name for name in _COLUMNS if name not in table]
    if missing:
        raise FormatError(f"{path} must have the column {', '.join(missing)}. Pass a file that a review page saved")
    for column, known in (("decision", DECISIONS), ("kind", tuple(KINDS))):
        wrong = table[~table[column].isin(known)]
        if len(wrong):
            name, value = wrong[["id", column]].iloc[0]
            raise FormatError(f"{path}: the {column} of {name} must be one of {', '.join(known)}; got {value!r}")
    twice = table.loc[table["id"].duplicated(), "id"].tolist()
    if twice:
        raise FormatError(f"{path}: {twice[0]} has two decisions. Leave one for each place")
    return table[_COLUMNS]


def apply_review(annotations: pd.DataFrame | None, decisions: pd.DataFrame, radius_mm: float) -> pd.DataFrame:
    """Return the annotations for the next round: confirmed detections are added, annotations of no cell removed.

    Unsure decisions change nothing, because neither an annotation nor its absence would be certain. Doubles
    change nothing, because their cell has an annotation.

    Parameters
    ----------
    annotations : DataFrame or None
        Annotations that the review used; rows whose ``type`` is not a cell are left out.
    decisions : DataFrame
        Decisions from :func:`read_decisions`.
    radius_mm : float
        Minimum distance of a new annotation to every other one; nearer detections are the same cell. Of two such
        detections the one with the higher score is added.

    Returns
    -------
    annotations : DataFrame
        ``X, Y, Z``, ``type`` and the other columns of the annotations except voxels; new rows come last.

    Raises
    ------
    DataError
        If a reviewed annotation is missing from `annotations`.

    Examples
    --------
    >>> annotations = pd.DataFrame({"X": [0.0, 1.0], "Y": 0.0, "Z": 0.0})
    >>> decisions = pd.DataFrame({"X": [1.0, 2.0], "Y": 0.0, "Z": 0.0, "score": [np.nan, 0.9],
    ...     "kind": ["miss", "false positive"], "decision": ["no cell", "cell"]})
    >>> apply_review(annotations, decisions, radius_mm=0.1)["X"].tolist()
    [0.0, 2.0]
    """
    before = pd.DataFrame(columns=WORLD, dtype=np.float64) if annotations is None else cells_of(annotations)
    before = before.drop(columns=VOXEL, errors="ignore").reset_index(drop=True)
    reviewed = decisions[decisions["kind"].isin(_ANNOTATED)]
    pairs = match(before[WORLD], reviewed[WORLD], _SAME_MM)
    if len(pairs.found) < len(reviewed):
        raise DataError(
            f"annotations must include all that were reviewed; {len(reviewed) - len(pairs.found)} of {len(reviewed)} "
            f"are not among the {len(before)}. Pass the annotations that the review page used"
        )
    removed = pairs.truth[reviewed["decision"].to_numpy()[pairs.found] == "no cell"]
    remaining = before.drop(index=removed)
    confirmed = decisions[
        decisions["kind"].isin(["false positive", "detection"]) & (decisions["decision"] == "cell")
    ].sort_values("score", ascending=False, kind="stable")
    points = remaining[WORLD].to_numpy(np.float64)
    for point in confirmed[WORLD].to_numpy(np.float64):
        if (np.linalg.norm(points - point, axis=1) > radius_mm).all():
            points = np.vstack([points, point])
    added = pd.DataFrame(points[len(remaining) :], columns=WORLD)
    # Empty tables are left out, because they would change the types of the columns.
    tables = [table for table in (remaining, added) if len(table)] or [remaining]
    return pd.concat(tables, ignore_index=True).assign(type=CELL)


@dataclass(frozen=True)
class AdjustedCount:
    """Number of false positives after a review.

    Attributes
    ----------
    false_positives : int
        Number before the review.
    judged : int
        Number of false positives with the decision "cell" or "no cell".
    cells : int
        Number of those that were cells.
    unsure : int
        Number with the decision "unsure"; they do not count as reviewed.
    drawn : str
        How the reviewed ones were chosen: "all", "highest", "random" or "mixed".
    """

    false_positives: int
    judged: int
    cells: int
    unsure: int
    drawn: str

    @property
    def remaining(self) -> int:
        """False positives that are left, including unsure ones and those without a decision."""
        return self.false_positives - self.cells

    @property
    def share(self) -> Interval | None:
        """Share of true cells among the reviewed detections, with Wilson's 95 % interval unless all were reviewed."""
        if not self.judged:
            return None
        if self.judged == self.false_positives:
            share = self.cells / self.judged
            return Interval(share, share, share)
        return wilson_interval(self.cells, self.judged)

    def __str__(self) -> str:
        text = f"{self.remaining} of {self.false_positives} false positives remain: {self.cells} of {self.judged} "
        text += "reviewed were cells"
        others = self.false_positives - self.judged
        if not others or not self.judged:
            return text
        selection = {
            "random": "a random sample, so their share of cells estimates that of all",
            "highest": "those with the highest scores, so their share of cells does not apply to the others",
        }.get(self.drawn, "chosen by the reviewer, so their share of cells may not apply to the others")
        return f"{text} ({self.share}); {others} others count as false. The reviewed were {selection}"


def adjusted_count(detection: Detection | int, decisions: pd.DataFrame) -> AdjustedCount:
    """Count the false positives that remain after a review.

    Only detections with the decision "cell" are subtracted; nothing is extrapolated. A double is a second detection
    of an annotated cell and stays false, whatever the decision.

    Parameters
    ----------
    detection : Detection or int
        Scores of the detections before the review, or the number of false positives.
    decisions : DataFrame
        Decisions from :func:`read_decisions`.

    Returns
    -------
    count : AdjustedCount

    Raises
    ------
    DataError
        If more false positives were reviewed than there are.

    Notes
    -----
    The interval of the share assumes a random sample. Pass ``drawn="random"`` to :func:`examples` and decide on every
    place: detections with the highest scores contain more cells than the others.

    Examples
    --------
    The report's 19 false positives, of which 14 were cells:

    >>> decisions = pd.DataFrame({"kind": "false positive", "decision": ["cell"] * 14 + ["no cell"] * 5})
    >>> print(adjusted_count(19, decisions.assign(drawn="all")))
    5 of 19 false positives remain: 14 of 19 reviewed were cells
    """
    total = detection.false_positives if isinstance(detection, Detection) else detection
    reviewed = decisions[decisions["kind"].isin(_UNMATCHED)]
    if len(reviewed) > total:
        raise DataError(
            f"decisions must be about these {total} false positives; got {len(reviewed)}. Pass the decisions of the "
            "same detections"
        )
    sure = reviewed[reviewed["decision"] != "unsure"]
    cells = int(((sure["decision"] == "cell") & (sure["kind"] == "false positive")).sum())
    drawn = reviewed["drawn"].iloc[0] if reviewed["drawn"].nunique() == 1 else "mixed"
    return AdjustedCount(total, len(sure), cells, len(reviewed) - len(sure), str(drawn))
