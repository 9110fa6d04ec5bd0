"""Detections that a person looks at again: which places, what was judged, and what follows for marks and counts.

```
cells, marks --examples--> places --a page (review_page)--> verdicts --judged--> marks of the next round
                                                               +-------adjusted-> false positives that remain
```

The report of 2020 looked again at the 19 false positives of one run: 14 were cells that nobody had marked.
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

#: Why a place is shown, and what that means. Both kinds of error come before matches.
KINDS = {
    "false positive": "found, and no mark is near",
    "double": "found within the radius of a mark that another detection has: false, whatever is judged",
    "miss": "marked, and not found",
    "match": "marked and found",
    "detection": "found; there are no marks",
}
VERDICTS = ("cell", "no cell", "unsure")
#: Kinds that are detections without a mark, and kinds that are marks.
_UNMARKED, _MARKED = ["false positive", "double"], ["miss", "match"]
_COLUMNS = ["id", *WORLD, "kind", "score", "drawn", "verdict"]
#: Parts of the range of scores that detections are drawn from in turn.
_PARTS = 10
#: Places nearer than this are one place, written twice.
_SAME_MM = 1e-6


def examples(
    cells: pd.DataFrame,
    marks: pd.DataFrame | None = None,
    *,
    radius_mm: float | None = None,
    count: int = 60,
    drawn: str = "highest",
    seed: int = 0,
) -> pd.DataFrame:
    """Choose which places a person is shown.

    With marks: detections without a mark and misses in turn until there are `count`, then matches. Misses and
    matches come at random, detections without a mark by `drawn`. Without marks: the range of scores is cut into
    ten equal parts, and detections are taken from each in turn, the lowest part first, since what lies near the
    threshold is most in doubt; within a part at random.

    Parameters
    ----------
    cells : DataFrame
        With ``X, Y, Z`` in mm and, where it is known, ``score``.
    marks : DataFrame, optional
        With ``X, Y, Z``; rows whose ``type`` says that they are no cell are left out.
    radius_mm : float
        Of a match; needed with marks.
    count : int
        At most so many places.
    drawn : {"highest", "random"}
        Detections without a mark that score highest teach most; those drawn at random say something about the
        ones that are not shown (see :func:`adjusted_count`). At random also where a score is not known.
    seed : int

    Returns
    -------
    places : DataFrame
        ``id`` (of the place, to the nanometre), ``X, Y, Z``, ``kind`` (see ``KINDS``), ``score`` (NaN for
        misses), ``apart_mm`` (to the nearest mark or, from a mark, the nearest detection) and ``drawn``: how its
        kind was chosen, "all" where none was left out. A match lies where its mark does.

    Raises
    ------
    DataError
        There is no radius; `drawn` is not known; `count` is less than 1.

    Examples
    --------
    >>> cells = pd.DataFrame({"X": [0.0, 3.0, 5.0], "Y": 0.0, "Z": 0.0, "score": [0.9, 0.6, 0.8]})
    >>> marks = pd.DataFrame({"X": [0.1, 9.0], "Y": 0.0, "Z": 0.0})
    >>> examples(cells, marks, radius_mm=0.5)[["X", "kind", "score"]].values.tolist()
    [[5.0, 'false positive', 0.8], [9.0, 'miss', nan], [3.0, 'false positive', 0.6], [0.1, 'match', 0.9]]
    """
    if count < 1 or drawn not in ("highest", "random"):
        raise DataError(f"count is 1 or more and drawn is 'highest' or 'random', not {count} and {drawn!r}")
    rng = np.random.default_rng(seed)
    found = cells[WORLD].to_numpy(np.float64)
    score = cells["score"].to_numpy(np.float64) if "score" in cells else np.full(len(cells), np.nan)
    if marks is None:
        return _shown(_spread(_rows(found, "detection", score), rng), count, "spread")
    if radius_mm is None:
        raise DataError("marks and no radius_mm; say how near to a mark a detection is a match")
    highest = drawn == "highest" and not np.isnan(score).any()
    truth = cells_of(marks)[WORLD].to_numpy(np.float64)
    return _shown(
        _errors_first(truth, found, score, radius_mm, highest, rng), count, "highest" if highest else "random"
    )


def cells_of(marks: pd.DataFrame) -> pd.DataFrame:
    """Marks without those that say that there is no cell.

    Examples
    --------
    >>> cells_of(pd.DataFrame({"X": [0.0, 1.0], "type": [CELL, NO_CELL]}))["X"].tolist()
    [0.0]
    """
    return marks[marks["type"] != NO_CELL] if "type" in marks else marks


def _errors_first(
    truth: Floats, found: Floats, score: Floats, radius_mm: float, highest: bool, rng: np.random.Generator
) -> pd.DataFrame:
    """All places in the order in which they are to be shown: errors of both kinds in turn, then matches."""
    pairs = match(truth, found, radius_mm)
    alone = np.setdiff1d(np.arange(len(found)), pairs.found)
    alone = alone[np.argsort(-score[alone], kind="stable")] if highest else rng.permutation(alone)
    missed = rng.permutation(np.setdiff1d(np.arange(len(truth)), pairs.truth))
    apart = _nearest(truth, found[alone])
    # The mark of a double is taken, or the two would have been matched.
    kind = np.where(apart <= radius_mm, "double", "false positive")
    unmarked = _rows(found[alone], kind, score[alone], apart)
    misses = _rows(truth[missed], "miss", apart_mm=_nearest(found, truth[missed]))
    matches = _rows(truth[pairs.truth], "match", score[pairs.found], pairs.distance_mm)
    errors = pd.concat([unmarked, misses]).sort_index(kind="stable")
    return pd.concat([errors, matches.iloc[rng.permutation(len(matches))]])


def _rows(places: Floats, kind: Any, score: Any = np.nan, apart_mm: Any = np.nan) -> pd.DataFrame:
    columns: dict[str, Any] = dict(zip(WORLD, places.T, strict=True))
    return pd.DataFrame(columns).assign(kind=kind, score=score, apart_mm=apart_mm)


def _nearest(places: Floats, asked: Floats) -> Floats:
    """Distance of each point to the nearest place; infinite where there is none."""
    if not (len(places) and len(asked)):
        return np.full(len(asked), np.inf)
    return np.asarray(cKDTree(places).query(asked)[0])


def _spread(rows: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Rows from each part of the range of scores in turn."""
    if not len(rows):
        return rows
    score = rows["score"].fillna(0.0)
    share = (score - score.min()) / (np.ptp(score) or 1.0)
    part = np.minimum((share * _PARTS).to_numpy(), _PARTS - 1).astype(int)
    mixed = rng.permutation(len(rows))
    rank = pd.Series(part[mixed]).groupby(part[mixed]).cumcount().to_numpy()
    return rows.iloc[mixed[np.lexsort((part[mixed], rank))]]


def _shown(rows: pd.DataFrame, count: int, drawn: str) -> pd.DataFrame:
    """The first rows, what they are called, and how each kind was drawn."""
    rows = rows.reset_index(drop=True)
    shown = rows.iloc[:count]
    # Doubles and false positives were drawn together.
    kind, left = (part["kind"].replace("double", "false positive") for part in (shown, rows.iloc[count:]))
    how = np.where(kind.isin(_MARKED), "random", drawn)
    shown = shown.assign(drawn=np.where(kind.isin(left), how, "all"))
    nanometres = np.rint(shown[WORLD].to_numpy(np.float64) * 1e6).astype(np.int64)
    names = pd.Series([f"X{x}Y{y}Z{z}" for x, y, z in nanometres.tolist()], dtype=object)
    again = names.groupby(names).cumcount()
    shown.insert(0, "id", names.where(again == 0, names + "-" + (again + 1).astype(str)))
    return shown


def read_decisions(path: str | os.PathLike[str]) -> pd.DataFrame:
    r"""Read what a person judged, as the page saved it.

    Parameters
    ----------
    path : path
        CSV with the columns ``id, X, Y, Z, kind, score, drawn, verdict``.

    Returns
    -------
    verdicts : DataFrame

    Raises
    ------
    FormatError
        A column is missing, a kind or verdict is not known, or a place stands there twice.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "verdicts.csv"
    >>> _ = path.write_text("id,X,Y,Z,kind,score,drawn,verdict\nX0Y0Z0,0,0,0,miss,,all,no cell\n")
    >>> read_decisions(path)[["id", "kind", "verdict"]].values.tolist()
    [['X0Y0Z0', 'miss', 'no cell']]
    """
    table = read_points(path)
    missing = [name for name in _COLUMNS if name not in table]
    if missing:
        raise FormatError(f"{path} has no column {', '.join(missing)}; give the verdicts that a page of review saved")
    for column, known in (("verdict", VERDICTS), ("kind", tuple(KINDS))):
        wrong = table[~table[column].isin(known)]
        if len(wrong):
            name, value = wrong[["id", column]].iloc[0]
            raise FormatError(f"{path}: the {column} of {name} is {value!r}; it is one of {', '.join(known)}")
    twice = table.loc[table["id"].duplicated(), "id"].tolist()
    if twice:
        raise FormatError(f"{path}: {twice[0]} was judged twice; leave one verdict for each place")
    return table[_COLUMNS]


def apply_review(marks: pd.DataFrame | None, verdicts: pd.DataFrame, radius_mm: float) -> pd.DataFrame:
    """Marks for the next round: those there were, with detections judged cells, less marks judged none.

    What a person is unsure of changes nothing: neither a mark nor its absence would be known. A double changes
    nothing either, since its cell has a mark.

    Parameters
    ----------
    marks : DataFrame or None
        That the review was made with; rows whose ``type`` says that they are no cell are left out.
    verdicts : DataFrame
        Of :func:`read_decisions`.
    radius_mm : float
        A detection becomes no mark where another mark is so near: it is the same cell. Of two such detections the
        one that scores higher is taken.

    Returns
    -------
    marks : DataFrame
        ``X, Y, Z``, ``type`` and the other columns of the marks but voxels; what was added comes last.

    Raises
    ------
    DataError
        Marks that were judged are not among those given.

    Examples
    --------
    >>> marks = pd.DataFrame({"X": [0.0, 1.0], "Y": 0.0, "Z": 0.0})
    >>> verdicts = pd.DataFrame({"X": [1.0, 2.0], "Y": 0.0, "Z": 0.0, "score": [np.nan, 0.9],
    ...     "kind": ["miss", "false positive"], "verdict": ["no cell", "cell"]})
    >>> apply_review(marks, verdicts, radius_mm=0.1)["X"].tolist()
    [0.0, 2.0]
    """
    given = pd.DataFrame(columns=WORLD, dtype=np.float64) if marks is None else cells_of(marks)
    given = given.drop(columns=VOXEL, errors="ignore").reset_index(drop=True)
    seen = verdicts[verdicts["kind"].isin(_MARKED)]
    here = match(given[WORLD], seen[WORLD], _SAME_MM)
    if len(here.found) < len(seen):
        raise DataError(
            f"{len(seen) - len(here.found)} of {len(seen)} marks that were judged are not among the {len(given)} "
            "given; give the marks that the page was made with"
        )
    gone = here.truth[seen["verdict"].to_numpy()[here.found] == "no cell"]
    kept = given.drop(index=gone)
    new = verdicts[verdicts["kind"].isin(["false positive", "detection"]) & (verdicts["verdict"] == "cell")]
    places = kept[WORLD].to_numpy(np.float64)
    for place in new.sort_values("score", ascending=False, kind="stable")[WORLD].to_numpy(np.float64):
        if (np.linalg.norm(places - place, axis=1) > radius_mm).all():
            places = np.vstack([places, place])
    added = pd.DataFrame(places[len(kept) :], columns=WORLD)
    # What is empty has no say in the types of columns.
    return pd.concat([part for part in (kept, added) if len(part)] or [kept], ignore_index=True).assign(type=CELL)


@dataclass(frozen=True)
class AdjustedCount:
    """False positives after a person looked at them again.

    Attributes
    ----------
    false_positives : int
        Before.
    judged, cells, unsure : int
        How many were judged a cell or none; how many of these were cells; how many a person was unsure of, which
        count as not judged.
    drawn : str
        How the judged ones were chosen: "all", "highest" or "random".
    """

    false_positives: int
    judged: int
    cells: int
    unsure: int
    drawn: str

    @property
    def remaining(self) -> int:
        """False positives that were not judged cells: also those that nobody judged, or was sure of."""
        return self.false_positives - self.cells

    @property
    def share(self) -> Interval | None:
        """Share of the judged that were cells; with Wilson's interval at 95 % where some were not judged."""
        if not self.judged:
            return None
        if self.judged == self.false_positives:
            share = self.cells / self.judged
            return Interval(share, share, share)
        return wilson_interval(self.cells, self.judged)

    def __str__(self) -> str:
        text = f"{self.remaining} of {self.false_positives} false positives remain: {self.cells} of {self.judged} "
        text += "judged were cells"
        left = self.false_positives - self.judged
        if not left or not self.judged:
            return text
        why = {
            "random": "drawn at random, so that their share is one of all",
            "highest": "those that score highest, so that their share is not that of the others",
        }.get(self.drawn, "chosen by whoever judged, so that their share need not be that of the others")
        return f"{text} ({self.share}); {left} others count as false. The judged were {why}"


def adjusted_count(detection: Detection | int, verdicts: pd.DataFrame) -> AdjustedCount:
    """Count the false positives that remain when a person has looked at them again.

    Only what was judged a cell is taken away: nothing is extrapolated. A double is a second detection of a marked
    cell and stays false, whatever was judged.

    Parameters
    ----------
    detection : Detection or int
        What was scored with the marks before, or its false positives.
    verdicts : DataFrame
        Of :func:`read_decisions`.

    Returns
    -------
    adjusted : Adjusted

    Raises
    ------
    DataError
        More false positives were judged than there are.

    Notes
    -----
    The interval of the share takes what was judged as drawn at random. Ask for that (``drawn="random"``) and judge
    all that is shown; the highest scores hold more cells than the others do.

    Examples
    --------
    The report's 19 false positives, of which 14 were cells:

    >>> verdicts = pd.DataFrame({"kind": "false positive", "drawn": "all", "verdict": ["cell"] * 14 + ["no cell"] * 5})
    >>> print(adjusted_count(19, verdicts))
    5 of 19 false positives remain: 14 of 19 judged were cells
    """
    false = detection.false_positives if isinstance(detection, Detection) else detection
    about = verdicts[verdicts["kind"].isin(_UNMARKED)]
    if len(about) > false:
        raise DataError(f"{len(about)} false positives were judged and there are {false}; the verdicts are of others")
    sure = about[about["verdict"] != "unsure"]
    cells = int(((sure["verdict"] == "cell") & (sure["kind"] == "false positive")).sum())
    drawn = about["drawn"].iloc[0] if about["drawn"].nunique() == 1 else "mixed"
    return AdjustedCount(false, len(sure), cells, len(about) - len(sure), str(drawn))
