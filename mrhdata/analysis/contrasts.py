"""Scores of MRI contrasts against histology.

Histology below (or above) a threshold is positive. Single contrasts and polynomial fits of several are
scored by how well they rank positive voxels (AUC) and predict the histology (R2, RMSE), by mutual
information, and by their partial correlation given the other contrasts. Fits, thresholds, cuts and the
sign of each contrast come from training rows only.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from mrhdata._runtime.arguments import described
from mrhdata.analysis.polynomial import polynomial
from mrhdata.analysis.result import Sensitivity
from mrhdata.analysis.rows import Rows, rows_of_table, rows_of_volumes
from mrhdata.analysis.voxel_table import MOST, row_blocks, voxel_table
from mrhdata.errors import DataError, ParameterError
from mrhdata.metrics import image, information, roc
from mrhdata.metrics.bootstrap import (
    Bootstrap,
    draw_blocks,
    error_replicates,
    interval,
    roc_replicates,
    share_replicates,
)

if TYPE_CHECKING:
    import xarray as xr

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

__all__ = ["FITS", "Fit", "Sensitivity", "row_blocks", "sensitivity", "voxel_table"]

#: A score and its bootstrap replicates.
_Resampled = tuple[float, Floats]
_UNDEFINED: _Resampled = (np.nan, np.empty(0))

#: Percentiles of the histology that divide the classes in the threshold curves.
_PERCENTILES = tuple(range(5, 100, 5))
#: With fewer voxels of one class the AUC of a region is noise, and its bootstrap interval is too narrow.
FEWEST_OF_A_CLASS = 20


@dataclass(frozen=True)
class Fit:
    """A polynomial of several contrasts, fitted by least squares on the training rows.

    Attributes
    ----------
    name : str
    degree : int
        1 linear, 2 with all squares and products, 3 with all cubes and so on.
    columns : sequence of str, optional
        Contrasts to fit; all by default.
    """

    name: str
    degree: int
    columns: Sequence[str] | None = None


FITS = (Fit("linear", 1), Fit("quadratic", 2))


def sensitivity(  # noqa: PLR0913 (settings of one analysis)
    contrasts: pd.DataFrame | Mapping[str, Any],
    histology: Any,
    *,
    threshold: float | str,
    positive_side: str = "below",
    fits: Sequence[Fit] | None = None,
    predictions: Mapping[str, Any] | None = None,
    train_mask: Any = None,
    mask: xr.DataArray | None = None,
    regions: Any = None,
    blocks: ArrayLike | int | None = None,
    specificity: float = 0.9,
    bootstrap: Bootstrap | None = None,
    max_voxels: int = MOST,
) -> Sensitivity:
    """Score contrasts and their polynomial fits against histology as ground truth.

    Parameters
    ----------
    contrasts : mapping of str to volume, or table
        Volumes on one grid; or a ``DataFrame`` with a row per voxel and a column per contrast.
    histology : volume, or (n,) array-like if `contrasts` is a table
        Ground truth.
    threshold : float or str
        Threshold of the histology: a number, ``"otsu"``, or a percentile such as ``"20%"``. The last two are
        computed from the training rows; the result reports the value.
    positive_side : {"below", "above"}
        Positive side of the threshold: autofluorescence is low in myelin, MBP is high.
    fits : sequence of Fit
        Polynomials of the contrasts; linear and quadratic by default. The linear one is left out by default if there
        is one contrast, whose own scores it would repeat.
    predictions : mapping, optional
        Volumes (or columns) in the histology's units, such as virtual histology. They are scored without a fit.
    train_mask : mask volume or (n,) bool array-like, optional
        Voxels for fits, thresholds and cuts; the other voxels are scored. By default both use all voxels, so
        scores of fits are in-sample.
    mask : mask volume, optional
        Voxels to use, if `contrasts` are volumes.
    regions : label volume, or (n,) array-like if `contrasts` is a table, optional
        Labels of regions that get an AUC of their own. Label 0 and regions with fewer than 20 voxels of one
        class get none.
    blocks : int or (n,) int array-like, optional
        Edge of the cubic blocks in voxels. The default is three times the measured correlation length of the
        histology, or shorter until there are 27 blocks. For a table, the block of each row; by default the
        column ``block`` or, without it, cubes from the columns ``z``, ``y``, ``x``.
    specificity : float
        Specificity at which the sensitivity is reported.
    bootstrap : Bootstrap, optional
        Settings of the block bootstrap; 1000 replicates and 95 % intervals by default.
    max_voxels : int
        Maximum number of scored voxels. Larger masks are sampled on a regular lattice.

    Returns
    -------
    result : Sensitivity

    Raises
    ------
    GridError
        If shapes or grids differ, or a table has no blocks.
    DataError
        If values are not finite, the mask is empty, or the threshold leaves one class only.

    Notes
    -----
    RMSE and R2 of a single contrast are those of a linear fit on the training rows. The RMSE of in-sample fits
    divides by the residual degrees of freedom n - p, otherwise by n.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> truth = np.repeat(rng.random(50), 20)
    >>> table = pd.DataFrame({"mtr": -truth + rng.normal(0, 0.2, 1000), "t2": rng.random(1000)})
    >>> result = sensitivity(table, truth, threshold=0.4, blocks=row_blocks(1000, 20))
    >>> result.table["contrast"].tolist()
    ['quadratic', 'linear', 'mtr', 't2']
    """
    if positive_side not in ("below", "above"):
        raise DataError(f"positive_side must be 'below' or 'above'; got {positive_side!r}")
    if not 0 < specificity < 1:
        raise DataError(f"specificity must lie between 0 and 1; got {specificity}")
    bootstrap = bootstrap or Bootstrap()
    if isinstance(contrasts, pd.DataFrame):
        rows = rows_of_table(contrasts, histology, predictions, train_mask, regions, blocks)
    else:
        rows = rows_of_volumes(contrasts, histology, predictions, train_mask, mask, regions, blocks, max_voxels)
    rows.check()
    if fits is None:
        fits = [fit for fit in FITS if fit.degree > 1 or rows.features.shape[1] > 1]
    candidates = _candidates(rows, fits)
    cutoff = _resolve_threshold(threshold, rows.truth[rows.fitting])
    sides = _Sides(cutoff, positive_side)
    test = rows.tested()
    draws = draw_blocks(int(test.block.max()) + 1, bootstrap, rows.widening)
    table: list[dict[str, Any]] = []
    replicates: dict[str, dict[str, Floats]] = {}
    for candidate in candidates:
        values = candidate.values[rows.testing]
        cut = _best_cut(rows, candidate.values, sides)
        scores = _scores(test, values, sides, draws, specificity, candidate.parameters if rows.in_sample else 0)
        scores |= _scores_at_cut(test, values, cut, sides, draws)
        replicates[candidate.name] = {score: resampled for score, (_, resampled) in scores.items()}
        columns = _with_intervals(scores, bootstrap.level)
        in_sample = rows.in_sample and candidate.model != "prediction"
        table.append(
            {"contrast": candidate.name, "model": candidate.model, "in_sample": in_sample, **columns, "cut": cut}
        )
    _add_partial_correlations(table, replicates, candidates, rows.testing, test, draws, bootstrap.level)
    ordered = pd.DataFrame(table).sort_values("auc", ascending=False, kind="stable", ignore_index=True)
    ranked = {candidate.name: sides.sign * candidate.values[rows.testing] for candidate in candidates}
    is_positive = sides.are_positive(test.truth)
    return Sensitivity(
        ordered,
        {name: roc.roc(is_positive, values)[:2] for name, values in ranked.items()},
        _auc_by_threshold(rows, ranked, positive_side),
        _auc_by_region(test, ranked, is_positive, bootstrap),
        cutoff,
        positive_side,
        specificity,
        bootstrap.level,
        len(test.truth),
        int(is_positive.sum()),
        draws.shape[1],
        rows.edge,
        rows.in_sample,
        _replicates=replicates,
    )


@dataclass(frozen=True)
class _Sides:
    """Threshold of the histology and the side of it that is positive."""

    threshold: float
    positive: str

    @property
    def sign(self) -> float:
        return -1.0 if self.positive == "below" else 1.0

    def are_positive(self, truth: Floats) -> Bools:
        return np.asarray(truth < self.threshold if self.positive == "below" else truth > self.threshold)


def _resolve_threshold(threshold: Any, truth: Floats) -> float:
    """Return the threshold in the histology's units."""
    if not isinstance(threshold, str):
        if not isinstance(threshold, numbers.Real):
            raise ParameterError(
                f"threshold must be a number, 'otsu' or a percentile such as '20%'; got {described(threshold)}"
            )
        return float(threshold)
    if threshold == "otsu":
        import SimpleITK as sitk

        otsu = sitk.OtsuThresholdImageFilter()
        otsu.SetNumberOfHistogramBins(256)
        otsu.Execute(sitk.GetImageFromArray(truth[None]))
        return float(otsu.GetThreshold())
    try:
        return float(np.percentile(truth, float(threshold.removesuffix("%")))) if "%" in threshold else float(threshold)
    except ValueError as error:
        raise DataError(
            f"threshold must be a number, 'otsu' or a percentile such as '20%'; got {threshold!r}"
        ) from error


def _scores(
    test: Rows, values: Floats, sides: _Sides, draws: Floats, specificity: float, parameters: int
) -> dict[str, _Resampled]:
    """Compute every score of one candidate but those at its cut."""
    truth, score, is_positive = test.truth, sides.sign * values, sides.are_positive(test.truth)
    curve = roc_replicates(is_positive, score, test.block, draws, specificity)
    r2, rmse = error_replicates(truth, values, test.block, draws)
    mutual = information.mutual_information(truth, values)
    mutual_replicates = information.information_replicates(truth, values, test.block, draws)
    return {
        "auc": (roc.auc(is_positive, score), curve.auc),
        "sensitivity": (roc.sensitivity_at(is_positive, score, specificity), curve.sensitivity),
        "partial_auc": (roc.partial_auc(is_positive, score, specificity), curve.partial_auc),
        "r2": (image.r2(truth, values), r2),
        "rmse": (image.rmse(truth, values, parameters=parameters), rmse),
        # Mutual information is biased upwards in small samples, and resampling leaves fewer distinct values: the
        # replicates contribute their spread only.
        "information": (mutual, mutual_replicates - np.median(mutual_replicates) + mutual),
    }


def _with_intervals(scores: Mapping[str, _Resampled], level: float) -> dict[str, float]:
    columns: dict[str, float] = {}
    for score, (estimate, resampled) in scores.items():
        limits = interval(estimate, resampled, level) if np.isfinite(estimate) else None
        low, high = (limits.low, limits.high) if limits else (np.nan, np.nan)
        columns |= {score: estimate, f"{score}_low": low, f"{score}_high": high}
    return columns


def _best_cut(rows: Rows, values: Floats, sides: _Sides) -> float:
    """Return the best cut of the training rows; NaN if they have no finite value, or one class only."""
    known = rows.fitting & np.isfinite(values)
    is_positive = sides.are_positive(rows.truth[known])
    if not known.any() or is_positive.all() or not is_positive.any():
        return np.nan
    return sides.sign * roc.best_threshold(is_positive, sides.sign * values[known])


def _scores_at_cut(test: Rows, values: Floats, cut: float, sides: _Sides, draws: Floats) -> dict[str, _Resampled]:
    """Return sensitivity and specificity of a cut on the scored rows."""
    classified = np.where(np.isnan(cut), np.nan, sides.sign * values >= sides.sign * cut)
    is_positive = sides.are_positive(test.truth)
    return {
        "cut_sensitivity": _hit_rate(test, classified, is_positive, draws),
        "cut_specificity": _hit_rate(test, 1 - classified, ~is_positive, draws),
    }


def _hit_rate(test: Rows, hits: Floats, among: Bools, draws: Floats) -> _Resampled:
    return float(hits[among].mean()), share_replicates(hits, among, test.block, draws)


def _add_partial_correlations(
    table: list[dict[str, Any]],
    replicates: dict[str, dict[str, Floats]],
    candidates: Sequence[_Candidate],
    testing: Bools,
    test: Rows,
    draws: Floats,
    level: float,
) -> None:
    """Add the partial correlations: of a single contrast given the others, of a prediction given all contrasts."""
    singles = test.features.to_numpy()
    among_singles = information.partial_correlation(test.truth, singles)
    resampled = information.partial_replicates(test.truth, singles, test.block, draws)
    for row, candidate in zip(table, candidates, strict=True):
        if candidate.model == "single":
            column = list(test.features.columns).index(candidate.name)
            estimate, samples = float(among_singles[column]), resampled[:, column]
        elif candidate.model == "prediction":
            joined = np.column_stack([singles, candidate.values[testing]])
            estimate = float(information.partial_correlation(test.truth, joined)[-1])
            samples = information.partial_replicates(test.truth, joined, test.block, draws)[:, -1]
        else:
            row |= _with_intervals({"partial_correlation": _UNDEFINED}, level)
            continue
        row |= _with_intervals({"partial_correlation": (estimate, samples)}, level)
        replicates[candidate.name]["partial_correlation"] = samples


def _auc_by_threshold(rows: Rows, ranked: Mapping[str, Floats], positive: str) -> pd.DataFrame:
    """Return the AUC for thresholds at other percentiles of the histology."""
    truth = rows.truth[rows.testing]
    curve = []
    ranks = {name: rankdata(values) for name, values in ranked.items()}
    for percentile in _PERCENTILES:
        sides = _Sides(float(np.percentile(rows.truth[rows.fitting], percentile)), positive)
        is_positive = sides.are_positive(truth)
        if is_positive.all() or not is_positive.any():
            continue
        for name, rank in ranks.items():
            auc = roc.auc_of_ranks(is_positive, rank)
            curve.append({"contrast": name, "percentile": percentile, "threshold": sides.threshold, "auc": auc})
    return pd.DataFrame(curve, columns=["contrast", "percentile", "threshold", "auc"])


def _auc_by_region(test: Rows, ranked: Mapping[str, Floats], is_positive: Bools, bootstrap: Bootstrap) -> pd.DataFrame:
    table = []
    for region in np.unique(test.region[test.region != 0]) if test.region is not None else []:
        inside = test.region == region
        block = np.unique(test.block[inside], return_inverse=True)[1]
        counts = {"rows": int(inside.sum()), "positives": int(is_positive[inside].sum())}
        fewest = min(counts["positives"], counts["rows"] - counts["positives"])
        enough = fewest >= FEWEST_OF_A_CLASS and block.max() > 0
        draws = draw_blocks(int(block.max()) + 1, bootstrap, test.widening) if enough else None
        for name, values in ranked.items():
            row = {"region": int(region), "contrast": name} | counts
            auc = _UNDEFINED
            if draws is not None:
                samples = roc_replicates(is_positive[inside], values[inside], block, draws).auc
                auc = roc.auc(is_positive[inside], values[inside]), samples
            table.append(row | _with_intervals({"auc": auc}, bootstrap.level))
    return pd.DataFrame(table, columns=["region", "contrast", "rows", "positives", "auc", "auc_low", "auc_high"])


@dataclass(frozen=True)
class _Candidate:
    """Predicted histology of all rows, and the number of fitted parameters."""

    name: str
    model: str
    values: Floats
    parameters: int


def _candidates(rows: Rows, fits: Sequence[Fit]) -> list[_Candidate]:
    candidates = [_Candidate(name, "prediction", values, 0) for name, values in rows.guesses.items()]
    single_fits = [(Fit(str(column), 1, [str(column)]), "single") for column in rows.features]
    for fit, model in [*single_fits, *((f, f.name) for f in fits)]:
        features = rows.features if fit.columns is None else rows.features[list(fit.columns)]
        values, parameters = polynomial(features.to_numpy(), rows.truth, fit.degree, rows.fitting)
        candidates.append(_Candidate(fit.name, model, values, parameters))
    names = [candidate.name for candidate in candidates]
    if len(set(names)) < len(names):
        raise DataError(f"two contrasts, fits or predictions share a name: {sorted(names)}. Rename one")
    return candidates
