"""How well labels cover true ones: overlap, distance of surfaces, volumes; and values within them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects

from mrhdata.errors import DataError
from mrhdata.metrics.bootstrap import Bootstrap, Interval, draw_blocks, interval

Floats = NDArray[np.float64]


def overlap(
    truth: ArrayLike, prediction: ArrayLike, labels: Sequence[int], spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)
) -> pd.DataFrame:
    """Scores of each label of one volume.

    Parameters
    ----------
    truth, prediction : (z, y, x) int array-like
    labels : sequence of int
        Those to score.
    spacing_mm : (3,) sequence of float
        Along z, y, x.

    Returns
    -------
    table : DataFrame
        A row per label: ``label``, ``dice``, ``2 |A and B| / (|A| + |B|)`` (1 where neither holds it),
        ``precision`` (NaN where nothing is predicted), ``recall``, ``hd95_mm`` (see :func:`hausdorff95`),
        ``volume_mm3``, ``true_volume_mm3``, and ``volume_error``, their difference over the truth.

    Raises
    ------
    DataError
        Shapes differ.

    Examples
    --------
    >>> truth, prediction = np.zeros((2, 1, 4, 4), int)
    >>> truth[0, 1:3, 1:3], prediction[0, 1:3, 1:4] = 1, 1
    >>> overlap(truth, prediction, [1]).round(3).iloc[0].tolist()
    [1.0, 0.8, 0.667, 1.0, 1.0, 6.0, 4.0, 0.5]
    """
    a, b = _labels(truth, prediction)
    voxel = float(np.prod(spacing_mm))
    rows = []
    for label in labels:
        mine, other = b == label, a == label
        both, found, there = (int(np.count_nonzero(m)) for m in (mine & other, mine, other))
        rows.append(
            {
                "label": int(label),
                "dice": 2 * both / (found + there) if found + there else 1.0,
                "precision": both / found if found else np.nan,
                "recall": both / there if there else np.nan,
                "hd95_mm": hausdorff95(other, mine, spacing_mm),
                "volume_mm3": found * voxel,
                "true_volume_mm3": there * voxel,
                "volume_error": (found - there) / there if there else np.nan,
            }
        )
    return pd.DataFrame(rows)


def accuracy(truth: ArrayLike, prediction: ArrayLike, background: int | None = None) -> float:
    """Share of voxels that have the right label; without those whose truth is the background, if given.

    Examples
    --------
    >>> truth, prediction = np.array([0, 0, 0, 1]), np.array([0, 0, 0, 2])
    >>> accuracy(truth, prediction), accuracy(truth, prediction, background=0)
    (0.75, 0.0)
    """
    a, b = _labels(truth, prediction)
    kept = np.ones(a.shape, bool) if background is None else a != background
    if not kept.any():
        raise DataError(f"the truth holds nothing but {background}; give one with labels")
    return float((a[kept] == b[kept]).mean())


def hausdorff95(truth: ArrayLike, prediction: ArrayLike, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)) -> float:
    """The larger of the two directed 95th percentiles of distances between surfaces, in mm.

    Surfaces are the voxels of a mask with a face on what lies outside it; distances run between their
    centres. That is the definition of MONAI and medpy; others pool both directions. NaN where a mask is empty.

    Examples
    --------
    >>> a, b = np.zeros((2, 1, 1, 9), bool)
    >>> a[..., 2:4], b[..., 2:6] = True, True
    >>> round(hausdorff95(a, b, (1, 1, 2)), 3), hausdorff95(a, a)
    (3.7, 0.0)
    """
    a, b = (np.asarray(m, dtype=bool) for m in (truth, prediction))
    if not (a.any() and b.any()):
        return float("nan")
    # Only the box that holds both, and a voxel around it.
    box = find_objects(np.asarray(a | b, dtype=np.int8))[0]
    a, b = (np.pad(m[box], 1) for m in (a, b))
    edges = [m & ~binary_erosion(m) for m in (a, b)]
    away = [distance_transform_edt(~edge, sampling=spacing_mm) for edge in edges]
    return float(max(np.percentile(away[1][edges[0]], 95), np.percentile(away[0][edges[1]], 95)))


def roi_table(values: ArrayLike, labels: ArrayLike, names: Mapping[int, str], voxel_mm3: float = 1.0) -> pd.DataFrame:
    """What a map holds within each label: mean, standard deviation (of the population), median, volume.

    Examples
    --------
    >>> table = roi_table([[1.0, 3.0, 8.0]], [[2, 2, 0]], {2: "GP left", 3: "GP right"})
    >>> table[["mean", "sd", "volume_mm3"]].to_numpy().tolist()
    [[2.0, 1.0, 2.0], [nan, nan, 0.0]]
    """
    map_, regions = np.asarray(values, dtype=np.float64), np.asarray(labels)
    if map_.shape != regions.shape:
        raise DataError(f"the map has the shape {map_.shape} and the labels {regions.shape}; resample one to the other")
    rows = []
    for label, name in names.items():
        held = map_[regions == label]
        found = (held.mean(), held.std(), np.median(held)) if held.size else (np.nan,) * 3
        rows.append([label, name, *(float(v) for v in found), held.size * voxel_mm3])
    return pd.DataFrame(rows, columns=["label", "name", "mean", "sd", "median", "volume_mm3"])


@dataclass(frozen=True)
class Agreement:
    """Bland and Altman's: mean difference, and the limits between which 95 % of differences lie."""

    bias: float
    low: float
    high: float


def agreement(reference: ArrayLike, measured: ArrayLike) -> Agreement:
    """Agreement of two ways to measure the same things (Bland and Altman 1986, Lancet 327:307).

    Examples
    --------
    >>> agreement([1.0, 2.0, 3.0], [1.1, 2.1, 3.1]).bias
    0.1
    """
    differences = np.asarray(measured, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    differences = differences[np.isfinite(differences)]
    if differences.size < 2:
        raise DataError(f"there is {differences.size} pair; agreement needs two or more")
    mean, wide = float(differences.mean()), 1.96 * float(differences.std(ddof=1))
    return Agreement(round(mean, 12), mean - wide, mean + wide)


#: Scores of which nothing is worse than 0.
_WORST_IS_0 = ("dice", "precision", "recall")


def pooled(table: pd.DataFrame, score: str, by: str | None = "label", bootstrap: Bootstrap = Bootstrap()) -> pd.Series:  # noqa: B008
    """Mean of a score over subjects, with an interval over subjects, for each label or over all.

    Parameters
    ----------
    table : DataFrame
        A row per subject and label, with ``subject`` and `score`. Dice, precision and recall of rows without a value
        count as 0: a label that was not found is no reason to leave a subject out.
    score : str
        Column.
    by : str, optional
        What has an interval of its own; None for the mean of each subject's rows.
    bootstrap : Bootstrap
        Subjects are what is drawn.

    Returns
    -------
    intervals : Series of Interval

    Raises
    ------
    DataError
        Another score lacks a value: no distance or volume is the worst.

    Examples
    --------
    >>> t = pd.DataFrame({"subject": ["a", "b", "a", "b"], "label": [1, 1, 2, 2], "dice": [0.8, 0.6, 0.9, 0.9]})
    >>> [round(i.estimate, 2) for i in pooled(t, "dice")], round(pooled(t, "dice", by=None)["all"].estimate, 2)
    ([0.7, 0.9], 0.8)
    """
    missing = int(table[score].isna().sum())
    if missing and score not in _WORST_IS_0:
        raise DataError(
            f"{missing} of {len(table)} rows have no {score}, as where a label was not found; say what they count as "
            "with fillna, or leave them out with dropna and say how many"
        )
    grouped = [("all", table)] if by is None else list(table.groupby(by))
    found: dict[object, Interval] = {}
    for key, rows in grouped:
        values = rows[score].fillna(0.0).groupby(rows["subject"]).mean().to_numpy()
        if len(values) < 2:
            found[key] = Interval(float(values.mean()), float("nan"), float("nan"))
            continue
        draws = draw_blocks(len(values), bootstrap)
        found[key] = interval(float(values.mean()), draws @ values / len(values), bootstrap.level)
    return pd.Series(found, dtype=object)


def _labels(truth: ArrayLike, prediction: ArrayLike) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    a, b = np.asarray(truth), np.asarray(prediction)
    if a.shape != b.shape:
        raise DataError(f"the truth has the shape {a.shape} and the prediction {b.shape}; resample one to the other")
    return a, b
