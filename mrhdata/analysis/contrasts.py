"""How well MRI contrasts see what histology shows.

Histology below (or above) a threshold is positive. Each contrast by itself, and polynomial fits of
several, are asked how well they rank positive voxels (AUC), predict the histology (R2, RMSE), share
information with it, and what they add to the other contrasts. Fits, thresholds, cuts and the direction
in which a contrast points come from training rows only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from mrhdata.analysis.polynomial import polynomial
from mrhdata.analysis.result import Sensitivity
from mrhdata.analysis.rows import Rows, rows_of_table, rows_of_volumes
from mrhdata.analysis.voxel_table import MOST, row_blocks, voxel_table
from mrhdata.errors import DataError
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


#: A score and its resamplings; and none.
_Resampled = tuple[float, Floats]


_NONE: _Resampled = (np.nan, np.empty(0))


#: Percentiles of the histology at which AUC is shown.
_PERCENTILES = tuple(range(5, 100, 5))


#: With fewer voxels of one class the AUC of a region is luck, and the interval too short: resampled, a handful of
#: voxels looks as certain as many.
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
        Contrasts that take part; all by default.
    """

    name: str
    degree: int
    columns: Sequence[str] | None = None


FITS = (Fit("linear", 1), Fit("quadratic", 2))


def sensitivity(  # noqa: PLR0913 (settings of one act)
    contrasts: pd.DataFrame | Mapping[str, Any],
    histology: Any,
    *,
    threshold: float | str,
    positive_side: str = "below",
    fits: Sequence[Fit] = FITS,
    predictions: Mapping[str, Any] | None = None,
    train_mask: Any = None,
    mask: xr.DataArray | None = None,
    regions: Any = None,
    blocks: ArrayLike | int | None = None,
    specificity: float = 0.9,
    bootstrap: Bootstrap | None = None,
    max_voxels: int = MOST,
) -> Sensitivity:
    """Score contrasts, and fits of them, against histology as ground truth.

    Parameters
    ----------
    contrasts : mapping of str to volume, or table
        Volumes on one grid; or a ``DataFrame`` with a row per voxel and a column per contrast.
    histology : volume, or (n,) array-like beside a table
        The ground truth.
    threshold : float or str
        Of the histology: a number, ``"otsu"``, or a percentile such as ``"20%"``, of the training rows;
        stated with the result.
    positive_side : {"below", "above"}
        Which side is positive: autofluorescence is low in myelin, MBP is high.
    fits : sequence of Fit
        Polynomials of the contrasts; linear and quadratic by default.
    predictions : mapping, optional
        Volumes (or columns) already in the histology's units, such as virtual histology: scored as
        they are, not fitted.
    train_mask : mask volume or (n,) bool array-like, optional
        Where fits are made and directions chosen; scores come from the other voxels. Without it both
        use all voxels: in-sample figures.
    mask : mask volume, optional
        Voxels to use, for volumes.
    regions : label volume, or (n,) array-like beside a table, optional
        AUC is given in each region too, but in 0 and where a class has fewer than 20 voxels.
    blocks : int or (n,) int array-like, optional
        The edge of the cubic blocks in voxels. By default three times the distance over which the
        histology's voxels are alike, as measured, but at least 27 blocks. For a table, the block of each
        row; a column ``block`` serves too, and without it the columns ``z``, ``y``, ``x``.
    specificity : float
        At which sensitivity is given.
    bootstrap : Bootstrap, optional
        1000 resamplings of blocks and 95 % intervals by default.
    max_voxels : int
        Where more voxels are inside, a lattice of about so many is scored.

    Returns
    -------
    result : Sensitivity

    Raises
    ------
    GridError
        Shapes or grids differ, or a table has no blocks.
    DataError
        Values are not finite, the mask is empty, or the threshold leaves one class only.

    Notes
    -----
    RMSE and R2 of a single contrast are those of its straight line, fitted on the training rows. With
    in-sample fits RMSE divides by the residual degrees of freedom n - p, elsewhere by n.

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
        raise DataError(f"positive is 'below' or 'above', not {positive_side!r}")
    if not 0 < specificity < 1:
        raise DataError(f"specificity lies between 0 and 1, not at {specificity}")
    bootstrap = bootstrap or Bootstrap()
    if isinstance(contrasts, pd.DataFrame):
        rows = rows_of_table(contrasts, histology, predictions, train_mask, regions, blocks)
    else:
        rows = rows_of_volumes(contrasts, histology, predictions, train_mask, mask, regions, blocks, max_voxels)
    rows.check()
    candidates = _candidates(rows, fits)
    limit = _limit(threshold, rows.truth[rows.fitting])
    sides = _Sides(limit, positive_side)
    test = rows.tested()
    draws = draw_blocks(int(test.block.max()) + 1, bootstrap, rows.widening)
    table: list[dict[str, Any]] = []
    held: dict[str, dict[str, Floats]] = {}
    for one in candidates:
        values = one.values[rows.testing]
        cut = _cut(rows, one.values, sides)
        found = _scores(test, values, sides, draws, specificity, one.parameters if rows.in_sample else 0)
        found |= _at_cut(test, values, cut, sides, draws)
        held[one.name] = {score: resampled for score, (_, resampled) in found.items()}
        shown = _row(found, bootstrap.level)
        seen = rows.in_sample and one.model != "prediction"
        table.append({"contrast": one.name, "model": one.model, "in_sample": seen, **shown, "cut": cut})
    _add_partial(table, held, candidates, rows.testing, test, draws, bootstrap.level)
    ordered = pd.DataFrame(table).sort_values("auc", ascending=False, kind="stable", ignore_index=True)
    tested = {one.name: sides.sign * one.values[rows.testing] for one in candidates}
    is_positive = sides.of(test.truth)
    return Sensitivity(
        ordered,
        {name: roc.roc(is_positive, values)[:2] for name, values in tested.items()},
        _over_thresholds(rows, tested, positive_side),
        _by_region(test, tested, is_positive, bootstrap),
        limit,
        positive_side,
        specificity,
        bootstrap.level,
        len(test.truth),
        int(is_positive.sum()),
        draws.shape[1],
        rows.edge,
        rows.in_sample,
        _replicates=held,
    )


@dataclass(frozen=True)
class _Sides:
    """What is called positive."""

    threshold: float
    positive: str

    @property
    def sign(self) -> float:
        return -1.0 if self.positive == "below" else 1.0

    def of(self, truth: Floats) -> Bools:
        return np.asarray(truth < self.threshold if self.positive == "below" else truth > self.threshold)


def _limit(threshold: float | str, truth: Floats) -> float:
    """The threshold in the histology's units."""
    if not isinstance(threshold, str):
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
        raise DataError(f"threshold is a number, 'otsu' or a percentile such as '20%', not {threshold!r}") from error


def _scores(
    test: Rows, values: Floats, sides: _Sides, draws: Floats, specificity: float, parameters: int
) -> dict[str, _Resampled]:
    """Every score of one candidate."""
    truth, score, is_positive = test.truth, sides.sign * values, sides.of(test.truth)
    curve = roc_replicates(is_positive, score, test.block, draws, specificity)
    r2, rmse = error_replicates(truth, values, test.block, draws)
    mutual = information.mutual_information(truth, values)
    shared = information.information_replicates(truth, values, test.block, draws)
    return {
        "auc": (roc.auc(is_positive, score), curve.auc),
        "sensitivity": (roc.sensitivity_at(is_positive, score, specificity), curve.sensitivity),
        "partial_auc": (roc.partial_auc(is_positive, score, specificity), curve.partial_auc),
        "r2": (image.r2(truth, values), r2),
        "rmse": (image.rmse(truth, values, parameters=parameters), rmse),
        # Uneven weights leave fewer values, and of fewer information looks larger: only its spread is taken.
        "information": (mutual, shared - np.median(shared) + mutual),
    }


def _row(found: Mapping[str, _Resampled], level: float) -> dict[str, float]:
    row: dict[str, float] = {}
    for score, (estimate, resampled) in found.items():
        known = interval(estimate, resampled, level) if np.isfinite(estimate) else None
        low, high = (known.low, known.high) if known else (np.nan, np.nan)
        row |= {score: estimate, f"{score}_low": low, f"{score}_high": high}
    return row


def _cut(rows: Rows, values: Floats, sides: _Sides) -> float:
    """The best cut of the training rows; NaN where they hold no value, or one class."""
    known = rows.fitting & np.isfinite(values)
    is_positive = sides.of(rows.truth[known])
    if not known.any() or is_positive.all() or not is_positive.any():
        return np.nan
    return sides.sign * roc.best_threshold(is_positive, sides.sign * values[known])


def _at_cut(test: Rows, values: Floats, cut: float, sides: _Sides, draws: Floats) -> dict[str, _Resampled]:
    """What a cut does where it is scored."""
    called = np.where(np.isnan(cut), np.nan, sides.sign * values >= sides.sign * cut)
    is_positive = sides.of(test.truth)
    return {
        "cut_sensitivity": _share(test, called, is_positive, draws),
        "cut_specificity": _share(test, 1 - called, ~is_positive, draws),
    }


def _share(test: Rows, hits: Floats, among: Bools, draws: Floats) -> _Resampled:
    return float(hits[among].mean()), share_replicates(hits, among, test.block, draws)


def _add_partial(
    table: list[dict[str, Any]],
    held: dict[str, dict[str, Floats]],
    candidates: Sequence[_Candidate],
    testing: Bools,
    test: Rows,
    draws: Floats,
    level: float,
) -> None:
    """What single contrasts add to each other, and predictions to all of them."""
    singles = test.features.to_numpy()
    among = information.partial_correlation(test.truth, singles)
    resampled = information.partial_replicates(test.truth, singles, test.block, draws)
    for row, one in zip(table, candidates, strict=True):
        if one.model == "single":
            place = list(test.features.columns).index(one.name)
            estimate, samples = float(among[place]), resampled[:, place]
        elif one.model == "prediction":
            joined = np.column_stack([singles, one.values[testing]])
            estimate = float(information.partial_correlation(test.truth, joined)[-1])
            samples = information.partial_replicates(test.truth, joined, test.block, draws)[:, -1]
        else:
            row |= _row({"adds": _NONE}, level)
            continue
        row |= _row({"adds": (estimate, samples)}, level)
        held[one.name]["adds"] = samples


def _over_thresholds(rows: Rows, tested: Mapping[str, Floats], positive: str) -> pd.DataFrame:
    """AUC where other parts of the histology are called positive."""
    truth, found = rows.truth[rows.testing], []
    ranks = {name: rankdata(values) for name, values in tested.items()}
    for percentile in _PERCENTILES:
        sides = _Sides(float(np.percentile(rows.truth[rows.fitting], percentile)), positive)
        is_positive = sides.of(truth)
        if is_positive.all() or not is_positive.any():
            continue
        for name, ranked in ranks.items():
            auc = roc.auc_of_ranks(is_positive, ranked)
            found.append({"contrast": name, "percentile": percentile, "threshold": sides.threshold, "auc": auc})
    return pd.DataFrame(found, columns=["contrast", "percentile", "threshold", "auc"])


def _by_region(test: Rows, tested: Mapping[str, Floats], is_positive: Bools, bootstrap: Bootstrap) -> pd.DataFrame:
    found = []
    for region in np.unique(test.region[test.region != 0]) if test.region is not None else []:
        here = test.region == region
        block = np.unique(test.block[here], return_inverse=True)[1]
        counts = {"rows": int(here.sum()), "positives": int(is_positive[here].sum())}
        fewest = min(counts["positives"], counts["rows"] - counts["positives"])
        enough = fewest >= FEWEST_OF_A_CLASS and block.max() > 0
        draws = draw_blocks(int(block.max()) + 1, bootstrap, test.widening) if enough else None
        for name, values in tested.items():
            row = {"region": int(region), "contrast": name} | counts
            auc = _NONE
            if draws is not None:
                samples = roc_replicates(is_positive[here], values[here], block, draws).auc
                auc = roc.auc(is_positive[here], values[here]), samples
            found.append(row | _row({"auc": auc}, bootstrap.level))
    return pd.DataFrame(found, columns=["region", "contrast", "rows", "positives", "auc", "auc_low", "auc_high"])


@dataclass(frozen=True)
class _Candidate:
    """Predicted histology of all rows, and how many parameters were fitted for it."""

    name: str
    model: str
    values: Floats
    parameters: int


def _candidates(rows: Rows, fits: Sequence[Fit]) -> list[_Candidate]:
    found = [_Candidate(name, "prediction", values, 0) for name, values in rows.guesses.items()]
    wanted = [(Fit(str(column), 1, [str(column)]), "single") for column in rows.features]
    for fit, model in [*wanted, *((f, f.name) for f in fits)]:
        chosen = rows.features if fit.columns is None else rows.features[list(fit.columns)]
        values, parameters = polynomial(chosen.to_numpy(), rows.truth, fit.degree, rows.fitting)
        found.append(_Candidate(fit.name, model, values, parameters))
    names = [c.name for c in found]
    if len(set(names)) < len(names):
        raise DataError(f"two contrasts, fits or predictions share a name: {sorted(names)}; rename one")
    return found
