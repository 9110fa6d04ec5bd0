"""Scores of segmentations: overlap, surface distance, volumes, and values within labels."""

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
    """Score each label of one volume.

    Parameters
    ----------
    truth, prediction : (z, y, x) int array-like
        True and predicted labels.
    labels : sequence of int
        Labels to score.
    spacing_mm : (3,) sequence of float
        Spacing along z, y, x, in mm.

    Returns
    -------
    table : DataFrame
        A row per label: ``label``, ``dice``, ``precision``, ``recall``, ``hd95_mm`` (see :func:`hausdorff95`),
        ``volume_mm3``, ``true_volume_mm3`` and ``volume_error`` (``volume_mm3 / true_volume_mm3 - 1``). Dice,
        ``2 |A and B| / (|A| + |B|)``, is 1 if neither volume has the label; precision is NaN without predicted
        voxels, recall and volume error without true ones.

    Raises
    ------
    DataError
        If shapes differ.

    Examples
    --------
    >>> truth, prediction = np.zeros((2, 1, 4, 4), int)
    >>> truth[0, 1:3, 1:3], prediction[0, 1:3, 1:4] = 1, 1
    >>> overlap(truth, prediction, [1]).round(3).iloc[0].tolist()
    [1.0, 0.8, 0.667, 1.0, 1.0, 6.0, 4.0, 0.5]
    """
    a, b = _check_labels(truth, prediction)
    voxel_mm3 = float(np.prod(spacing_mm))
    rows = []
    for label in labels:
        true, predicted = a == label, b == label
        n_both, n_predicted, n_true = (int(np.count_nonzero(m)) for m in (predicted & true, predicted, true))
        rows.append(
            {
                "label": int(label),
                "dice": 2 * n_both / (n_predicted + n_true) if n_predicted + n_true else 1.0,
                "precision": n_both / n_predicted if n_predicted else np.nan,
                "recall": n_both / n_true if n_true else np.nan,
                "hd95_mm": hausdorff95(true, predicted, spacing_mm),
                "volume_mm3": n_predicted * voxel_mm3,
                "true_volume_mm3": n_true * voxel_mm3,
                "volume_error": (n_predicted - n_true) / n_true if n_true else np.nan,
            }
        )
    return pd.DataFrame(rows)


def accuracy(truth: ArrayLike, prediction: ArrayLike, background: int | None = None) -> float:
    """Return the share of voxels with the correct label; voxels whose truth is `background` are left out.

    Examples
    --------
    >>> truth, prediction = np.array([0, 0, 0, 1]), np.array([0, 0, 0, 2])
    >>> accuracy(truth, prediction), accuracy(truth, prediction, background=0)
    (0.75, 0.0)
    """
    a, b = _check_labels(truth, prediction)
    foreground = np.ones(a.shape, bool) if background is None else a != background
    if not foreground.any():
        raise DataError(f"truth must have labels other than the background; all are {background}. Check the labels.")
    return float((a[foreground] == b[foreground]).mean())


def hausdorff95(truth: ArrayLike, prediction: ArrayLike, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)) -> float:
    """Return the larger of the two directed 95th percentiles of surface distances, in mm.

    Surface voxels are those with a face on the outside of the mask; distances are measured between voxel centres.
    MONAI and medpy use this definition; others pool both directions. The result is NaN if a mask is empty.

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
    # Distances are needed only in the common bounding box, with a margin of one voxel for the erosion.
    box = find_objects(np.asarray(a | b, dtype=np.int8))[0]
    a, b = (np.pad(m[box], 1) for m in (a, b))
    surfaces = [m & ~binary_erosion(m) for m in (a, b)]
    distances = [distance_transform_edt(~surface, sampling=spacing_mm) for surface in surfaces]
    return float(max(np.percentile(distances[1][surfaces[0]], 95), np.percentile(distances[0][surfaces[1]], 95)))


def roi_table(values: ArrayLike, labels: ArrayLike, names: Mapping[int, str], voxel_mm3: float = 1.0) -> pd.DataFrame:
    """Tabulate mean, population standard deviation, median and volume of a map within each label.

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
        inside = map_[regions == label]
        statistics = (inside.mean(), inside.std(), np.median(inside)) if inside.size else (np.nan,) * 3
        rows.append([label, name, *(float(v) for v in statistics), inside.size * voxel_mm3])
    return pd.DataFrame(rows, columns=["label", "name", "mean", "sd", "median", "volume_mm3"])


@dataclass(frozen=True)
class Agreement:
    """Mean difference, and the limits of agreement between which 95 % of the differences lie."""

    bias: float
    low: float
    high: float


def agreement(reference: ArrayLike, measured: ArrayLike) -> Agreement:
    """Compute the agreement of two methods that measure the same quantity (Bland and Altman 1986, Lancet 327:307).

    Examples
    --------
    >>> agreement([1.0, 2.0, 3.0], [1.1, 2.1, 3.1]).bias
    0.1
    """
    differences = np.asarray(measured, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    differences = differences[np.isfinite(differences)]
    if differences.size < 2:
        raise DataError(f"agreement needs 2 finite pairs or more; got {differences.size}")
    mean, half_width = float(differences.mean()), 1.96 * float(differences.std(ddof=1))
    return Agreement(round(mean, 12), mean - half_width, mean + half_width)


#: Scores whose worst value is 0.
_WORST_IS_0 = ("dice", "precision", "recall")


def pool_over_subjects(
    table: pd.DataFrame,
    score: str,
    by: str | None = "label",
    bootstrap: Bootstrap = Bootstrap(),  # noqa: B008  (frozen)
) -> pd.Series:
    """Compute the mean of a score over subjects and its confidence interval, for each label or over all labels.

    Parameters
    ----------
    table : DataFrame
        A row per subject and label, with the columns ``subject`` and `score`. A missing Dice, precision or recall
        counts as 0, so that a subject whose label was not found is not left out.
    score : str
        Column of the score.
    by : str, optional
        Column whose values get an interval each; None for one interval of the mean over each subject's rows.
    bootstrap : Bootstrap
        Settings of the bootstrap over subjects.

    Returns
    -------
    intervals : Series of Interval
        Interval of each value of `by`, or of ``"all"``.

    Raises
    ------
    DataError
        If another score has missing values: distances and volumes have no worst value to replace them with.

    Examples
    --------
    >>> t = pd.DataFrame({"subject": ["a", "b", "a", "b"], "label": [1, 1, 2, 2], "dice": [0.8, 0.6, 0.9, 0.9]})
    >>> overall = pool_over_subjects(t, "dice", by=None)["all"]
    >>> [round(i.estimate, 2) for i in pool_over_subjects(t, "dice")], round(overall.estimate, 2)
    ([0.7, 0.9], 0.8)
    """
    missing = int(table[score].isna().sum())
    if missing and score not in _WORST_IS_0:
        raise DataError(
            f"{missing} of {len(table)} rows have no {score}, for example because a label was not found; replace "
            "them with fillna, or drop them with dropna and report how many"
        )
    groups = [("all", table)] if by is None else list(table.groupby(by))
    intervals: dict[object, Interval] = {}
    for key, rows in groups:
        values = rows[score].fillna(0.0).groupby(rows["subject"]).mean().to_numpy()
        if len(values) < 2:
            intervals[key] = Interval(float(values.mean()), float("nan"), float("nan"))
            continue
        draws = draw_blocks(len(values), bootstrap)
        intervals[key] = interval(float(values.mean()), draws @ values / len(values), bootstrap.level)
    return pd.Series(intervals, dtype=object)


def _check_labels(truth: ArrayLike, prediction: ArrayLike) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    a, b = np.asarray(truth), np.asarray(prediction)
    if a.shape != b.shape:
        raise DataError(f"the truth has the shape {a.shape} and the prediction {b.shape}; resample one to the other")
    return a, b
