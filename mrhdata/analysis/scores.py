"""Scores of labels, maps and cells against the truth, for one volume or for all cases of two folders.

```
two files or folders --pairs--> case, truth, prediction --label_scores, image_scores, cell_scores--> a row per case
```
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mrhdata.analysis.rows import rows_of_volumes
from mrhdata.analysis.voxel_table import MOST
from mrhdata.datasets.bids import stem
from mrhdata.datasets.nnunet import cases_in
from mrhdata.datasets.subjects import Subject
from mrhdata.errors import DataError, ParameterError
from mrhdata.inference.segmenter import score_labels
from mrhdata.io.cell_tables import WORLD
from mrhdata.io.label_names import read_label_names
from mrhdata.metrics import detection, image
from mrhdata.metrics.bootstrap import Bootstrap, draw_blocks, error_replicates, interval, wilson_interval
from mrhdata.volume.checks import check_volume
from mrhdata.volume.groups import on_grid_of

if TYPE_CHECKING:
    import xarray as xr

#: Endings of tables of cells.
_TABLES = (".parquet", ".csv", ".xml")
#: Pixels of the window of the structural similarity, and so of the smallest plane.
_FEWEST_PIXELS = 7


def pairs(truth: str | os.PathLike[str], prediction: str | os.PathLike[str]) -> dict[str, tuple[Path, Path]]:
    """Return the files to compare by case: two files, or the files of one name in two folders.

    Parameters
    ----------
    truth, prediction : path
        Two files (or volumes that are folders, such as OME-Zarr), or two folders whose files have the same names,
        whatever their endings.

    Raises
    ------
    DataError
        If one is a folder of cases and the other is not, or a case of one folder is missing in the other: a case that
        is left out in silence makes a mean too good.

    Examples
    --------
    >>> pairs("manual.nii.gz", "network.nii.gz")
    {'network': (PosixPath('manual.nii.gz'), PosixPath('network.nii.gz'))}
    """
    files = {name: _cases(Path(path)) for name, path in (("truth", truth), ("prediction", prediction))}
    first, second = files["truth"], files["prediction"]
    if first is None and second is None:
        return {stem(Path(prediction)): (Path(truth), Path(prediction))}
    if first is None or second is None:
        raise DataError(
            f"truth and prediction must be two files or two folders of files; got {truth} and {prediction}. Pass both "
            "as folders, or both as files"
        )
    if first.keys() != second.keys():
        lonely = {
            str(truth): sorted(first.keys() - second.keys()),
            str(prediction): sorted(second.keys() - first.keys()),
        }
        listed = "; ".join(f"only in {folder}: {', '.join(names[:5])}" for folder, names in lonely.items() if names)
        raise DataError(
            f"both folders must have the same cases; got {len(first)} and {len(second)}, {listed}. Name the files of a "
            "case alike, or move the others away"
        )
    return {case: (first[case], second[case]) for case in first}


def _cases(path: Path) -> dict[str, Path] | None:
    """Return the files of a folder by case; None for a file, or a folder that is one volume."""
    if not path.is_dir():
        return None
    tables = {file.stem: file for file in sorted(path.iterdir()) if file.suffix.lower() in _TABLES}
    volumes = cases_in(path)
    several = [case for case, files in volumes.items() if len(files) > 1]
    if several:
        raise DataError(f"{path} must have one file per case; got several channels of {several[0]}. Pass one channel")
    return {case: files[0] for case, files in volumes.items()} or tables or None


def names_beside(path: str | os.PathLike[str]) -> dict[int, str]:
    """Return the names of labels that the table next to a label file has.

    The table has the name of the file with the ending ``.tsv``, as ``mrhdata segment`` and BIDS write it, or is
    ``dseg.tsv`` of its folder. Without a table the names are empty.

    Examples
    --------
    >>> names_beside("sub-01_dseg.nii.gz")
    {}
    """
    file = Path(path)
    for table in (file.with_name(f"{stem(file)}.tsv"), file.with_name("dseg.tsv")):
        if table.is_file():
            return read_label_names(table)
    return {}


def label_scores(
    cases: Iterable[tuple[str, xr.DataArray, xr.DataArray]], names: Mapping[int, str] | None = None
) -> pd.DataFrame:
    """Score the labels of all cases: Dice, precision, recall, distance of surfaces, volumes.

    Parameters
    ----------
    cases : iterable of (str, label volume, label volume)
        Name, truth and prediction of each case. Voxels whose truth is -1 do not count.
    names : mapping of int to str, optional
        Names of labels.

    Returns
    -------
    table : DataFrame
        A row per case and label that the truth or the prediction has: ``subject``, ``label``, ``name`` and the columns
        of :func:`mrhdata.metrics.overlap.overlap`.

    Raises
    ------
    DataError
        If a case has no label, or a volume of no labels.
    GridError
        If the volumes of a case lie on two grids.

    Examples
    --------
    >>> import mrhdata
    >>> truth = mrhdata.from_array(np.repeat([[[0, 1]]], 2, axis=0), spacing=(1, 1, 1), kind="labels")
    >>> label_scores([("sub-01", truth, truth)], {1: "cortex"})[["subject", "name", "dice"]].values.tolist()
    [['sub-01', 'cortex', 1.0]]
    """
    tables = []
    for case, truth, prediction in cases:
        check_volume("truth", truth)
        check_volume("prediction", prediction)
        truth = on_grid_of("truth", truth, "the prediction", prediction, remedy="or pass --grids resample")
        present = {int(v) for volume in (truth, prediction) for v in np.unique(volume.values)} - {0, -1}
        if not present:
            raise DataError(f"{case} must have a label other than 0; got none in truth and prediction. Check the files")
        tables.append(score_labels(Subject(case, {}, truth), prediction, [0, *sorted(present)]))
    table = pd.concat(tables, ignore_index=True)
    table.insert(2, "name", [(names or {}).get(int(label), str(label)) for label in table["label"]])
    return table


def image_scores(
    case: str, truth: xr.DataArray, prediction: xr.DataArray, mask: xr.DataArray | None = None
) -> dict[str, Any]:
    """Score a map against the truth: R2 and RMSE with intervals, correlation, PSNR and SSIM.

    Parameters
    ----------
    case : str
        Name of the case.
    truth, prediction : volume
        Images on one grid.
    mask : mask volume, optional
        Voxels that count. SSIM compares windows, so it is not computed with a mask.

    Returns
    -------
    row : dict
        ``subject``, ``voxels``, ``blocks``, ``r2``, ``rmse`` with ``_low`` and ``_high`` (95 %, bootstrap of blocks
        that are long compared with the correlation length of the truth), ``correlation``, ``psnr`` and ``ssim``; the
        last two with the range of the truth.

    Examples
    --------
    >>> import mrhdata
    >>> values = np.random.default_rng(0).random((8, 16, 16))
    >>> truth = mrhdata.from_array(values, spacing=(1, 1, 1))
    >>> row = image_scores("a", truth, truth.copy(data=0.9 * values))
    >>> row["subject"], round(row["correlation"], 3), row["r2_low"] < row["r2"] < row["r2_high"]
    ('a', 1.0, True)
    """
    for name, volume in (("truth", truth), ("prediction", prediction)):
        check_volume(name, volume)
        if extra := [f"{dim} of {volume.sizes[dim]}" for dim in ("t", "c") if dim in volume.dims]:
            raise DataError(
                f"{name} must have one time and one channel; got axes {', '.join(extra)}. Select one of each"
            )
    truth = on_grid_of("truth", truth, "the prediction", prediction, remedy="or pass --grids resample")
    rows = rows_of_volumes({"prediction": prediction}, truth, None, None, mask, None, None, MOST)
    rows.check()
    true, predicted = rows.truth, rows.features["prediction"].to_numpy()
    blocks = np.unique(rows.block, return_inverse=True)[1]
    count = int(blocks.max()) + 1
    scores: dict[str, Any] = {"subject": case, "voxels": len(true), "blocks": count}
    replicates: Any = (np.empty(0), np.empty(0))
    if count > 1:
        replicates = error_replicates(true, predicted, blocks, draw_blocks(count, Bootstrap(), rows.widening))
    for name, estimate, values in zip(("r2", "rmse"), (image.r2, image.rmse), replicates, strict=True):
        bounds = interval(estimate(true, predicted), values)
        scores |= {name: bounds.estimate, f"{name}_low": bounds.low, f"{name}_high": bounds.high}
    span = float(np.ptp(true))
    scores["correlation"] = float(np.corrcoef(true, predicted)[0, 1]) if np.ptp(predicted) else float("nan")
    scores["psnr"] = image.psnr(true, predicted, data_range=span)
    scores["ssim"] = float("nan") if mask is not None else _ssim(truth, prediction, span)
    return scores


def _ssim(truth: xr.DataArray, prediction: xr.DataArray, span: float) -> float:
    """Return the mean structural similarity of all planes, which are read one by one."""
    planes = [volume.expand_dims("z") if "z" not in volume.dims else volume for volume in (truth, prediction)]
    if min(planes[0].sizes["y"], planes[0].sizes["x"]) < _FEWEST_PIXELS:
        return float("nan")
    values = [
        image.ssim(*(plane.isel(z=z).values for plane in planes), data_range=span) for z in range(planes[0].sizes["z"])
    ]
    return float(np.mean(values))


def cell_scores(
    case: str, truth: pd.DataFrame, detections: pd.DataFrame, radius_mm: float, threshold: float | None = None
) -> dict[str, Any]:
    """Score detected cells against marked ones.

    Parameters
    ----------
    case : str
        Name of the case.
    truth, detections : DataFrame
        Tables of cells with world points ``X, Y, Z`` in mm.
    radius_mm : float
        Largest distance of a detection and its mark.
    threshold : float, optional
        Lowest score of the detections that count.

    Returns
    -------
    row : dict
        ``subject``, the counts, ``precision`` and ``recall`` with ``_low`` and ``_high`` (Wilson, 95 %, for independent
        cells), ``f1``, ``count_error`` and ``median_distance_um``. Every cell must be marked: a detection without a
        mark counts as false.

    Raises
    ------
    ParameterError
        If a threshold is passed and detections have no scores.

    Examples
    --------
    >>> cells = pd.DataFrame({"X": [0.0, 5.0], "Y": 0.0, "Z": 0.0})
    >>> row = cell_scores("brain", cells, cells.head(1), radius_mm=0.1)
    >>> row["precision"], row["recall"], round(row["f1"], 2)
    (1.0, 0.5, 0.67)
    """
    if threshold is not None:
        if "score" not in detections:
            raise ParameterError(f"threshold needs detections with a column score; got {[*detections]}. Leave it out")
        detections = detections[detections["score"] >= threshold]
    result = detection.detection(truth[WORLD].to_numpy(), detections[WORLD].to_numpy(), radius_mm)
    counts = {name: getattr(result, name) for name in ("true_positives", "false_positives", "misses")}
    row: dict[str, Any] = {"subject": case, "cells": len(truth), "detections": len(detections), **counts}
    for name, total in (("precision", len(detections)), ("recall", len(truth))):
        bounds = wilson_interval(result.true_positives, total) if total else None
        row[name] = getattr(result, name)
        row |= {f"{name}_{end}": getattr(bounds, end) if bounds else float("nan") for end in ("low", "high")}
    return row | {
        "f1": result.f1,
        "count_error": result.count_error,
        "median_distance_um": result.median_distance_mm * 1e3,
    }
