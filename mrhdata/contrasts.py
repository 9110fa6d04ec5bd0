"""How well MRI contrasts see what histology shows.

Histology below (or above) a threshold is positive. Each contrast by itself, and polynomial fits of
several, are asked how well they rank positive voxels (AUC) and predict the histology (R2, RMSE).
Fits, and the direction in which a contrast points, come from training rows only.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mrhdata.errors import DataError, GridError
from mrhdata.scoring import image, intervals, ranking
from mrhdata.scoring.intervals import Bootstrap, Interval
from mrhdata.volume import SPATIAL, mask_on, stack

if TYPE_CHECKING:
    import xarray as xr

Floats = NDArray[np.float64]

#: Columns of a voxel table that say where a voxel is.
PLACE = ("block", *SPATIAL)


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


@dataclass(frozen=True)
class Sensitivity:
    """Result of :func:`sensitivity`.

    Attributes
    ----------
    table : pandas.DataFrame
        One row per contrast and model, best AUC first: ``contrast``, ``model`` (``single``,
        ``prediction`` or a fit's name), and ``auc``, ``r2``, ``rmse``, each with ``_low`` and ``_high``.
    curves : dict of str to (fpr, tpr)
        ROC curve of each.
    threshold, positive, level, rows, positives, blocks
        What was scored: histology ``positive`` ("below" or "above") ``threshold`` in ``positives`` of
        ``rows`` voxels, intervals at ``level`` over ``blocks``.
    """

    table: pd.DataFrame
    curves: dict[str, tuple[Floats, Floats]]
    threshold: float
    positive: str
    level: float
    rows: int
    positives: int
    blocks: int
    _replicates: dict[str, dict[str, Floats]] = field(repr=False)

    def difference(self, first: str, second: str, score: str = "auc") -> Interval:
        """`score` of `first` less that of `second`, resampled together (a paired interval).

        Examples
        --------
        >>> t = np.linspace(0, 1, 400)
        >>> noisy = pd.DataFrame({"good": t, "poor": t + np.sin(40 * t)})
        >>> s = sensitivity(noisy, t, threshold=0.5, blocks=np.arange(400) // 20)
        >>> s.difference("good", "poor").low > 0
        True
        """
        for name in (first, second):
            if name not in self._replicates:
                raise DataError(f"nothing called {name!r} was scored; there are {sorted(self._replicates)}")
        held = self.table.set_index("contrast")[score]
        replicates = self._replicates[first][score] - self._replicates[second][score]
        return intervals.interval(float(held[first] - held[second]), replicates, self.level)


def voxel_table(
    volumes: Mapping[str, xr.DataArray], where: xr.DataArray | None = None, *, block_voxels: int = 8
) -> pd.DataFrame:
    """Voxels of co-registered volumes on one grid as rows.

    Parameters
    ----------
    volumes : mapping of str to volume
        Channels become columns of their own.
    where : mask volume, optional
        Rows are the voxels where it is not zero.
    block_voxels : int
        Edge of the cubes that ``block`` numbers.

    Returns
    -------
    table : pandas.DataFrame
        A float64 column per contrast, ``block``, and ``z``, ``y``, ``x`` voxel indices.

    Raises
    ------
    GridError, DataError
        Grids differ, or the mask is empty.

    Examples
    --------
    >>> from mrhdata.volume import from_array
    >>> v = from_array(np.arange(8.0).reshape(2, 2, 2), spacing=(1, 1, 1))
    >>> voxel_table({"t2": v}, where=v > 5)
        t2  block  z  y  x
    0  6.0      0  1  1  0
    1  7.0      0  1  1  1
    """
    stacked = stack(volumes)
    taken = [str(c) for c in stacked.c.values if c in PLACE]
    if taken:
        raise DataError(f"contrasts may not be called {taken}: these columns say where a voxel is; rename them")
    inside = mask_on(where, stacked)
    index = np.argwhere(inside)
    values = np.asarray(stacked.data)[:, inside].astype(np.float64)
    table = pd.DataFrame(dict(zip((str(c) for c in stacked.c.values), values, strict=True)))
    cubes = index // block_voxels
    table["block"] = np.unique(np.ravel_multi_index(tuple(cubes.T), tuple(cubes.max(axis=0) + 1)), return_inverse=True)[
        1
    ]
    return table.assign(**{d: index[:, i] for i, d in enumerate(SPATIAL)})


def row_blocks(rows: int, length: int) -> NDArray[np.int64]:
    """Blocks of contiguous rows, for voxel lists without coordinates: (rows,) ints.

    Examples
    --------
    >>> row_blocks(5, 2).tolist()
    [0, 0, 1, 1, 2]
    """
    return np.arange(rows) // length


def sensitivity(
    contrasts: pd.DataFrame | Mapping[str, Any],
    histology: Any,
    *,
    threshold: float,
    positive: str = "below",
    fits: Sequence[Fit] = FITS,
    predictions: Mapping[str, Any] | None = None,
    train: Any = None,
    where: xr.DataArray | None = None,
    blocks: ArrayLike | int | None = None,
    bootstrap: Bootstrap | None = None,
) -> Sensitivity:
    """Score contrasts, and fits of them, against histology as ground truth.

    Parameters
    ----------
    contrasts : mapping of str to volume, or table
        Volumes on one grid; or a ``DataFrame`` with a row per voxel and a column per contrast.
    histology : volume, or (n,) array-like beside a table
        The ground truth.
    threshold : float
        Of the histology, stated with the result.
    positive : {"below", "above"}
        Which side is positive: autofluorescence is low in myelin, MBP is high.
    fits : sequence of Fit
        Polynomials of the contrasts; linear and quadratic by default.
    predictions : mapping, optional
        Volumes (or columns) already in the histology's units, such as virtual histology: scored as
        they are, not fitted.
    train : mask volume or (n,) bool array-like, optional
        Where fits are made and directions chosen; scores come from the other voxels. Without it both
        use all voxels: in-sample figures.
    where : mask volume, optional
        Voxels to use, for volumes.
    blocks : int or (n,) int array-like, optional
        For volumes, the edge of the cubic blocks in voxels, 8 by default. For a table, the block of each
        row; a column ``block`` serves too.
    bootstrap : Bootstrap, optional
        1000 resamplings of blocks and 95 % intervals by default.

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
    if positive not in ("below", "above"):
        raise DataError(f"positive is 'below' or 'above', not {positive!r}")
    bootstrap = bootstrap or Bootstrap()
    if isinstance(contrasts, pd.DataFrame):
        table, truth, guesses, fitting = _rows_of_table(contrasts, histology, predictions, train, blocks)
    else:
        edge = 8 if blocks is None else int(np.asarray(blocks).item())
        table, truth, guesses, fitting = _rows_of_volumes(contrasts, histology, predictions, train, where, edge)
    testing = ~fitting if train is not None else fitting
    if not fitting.any() or not testing.any():
        raise DataError(
            f"train covers {fitting.sum()} of {len(fitting)} voxels; leave some to fit on and some to score"
        )
    features = table.drop(columns=[c for c in PLACE if c in table])
    _check_finite(features.assign(histology=truth))
    _check_finite(pd.DataFrame({name: values[testing] for name, values in guesses.items()}))
    candidates = _candidates(features, truth, guesses, fits, fitting, testing)
    truth = truth[testing]
    block = np.unique(table["block"].to_numpy()[testing], return_inverse=True)[1]
    draws = intervals.draw_blocks(int(block.max()) + 1 if len(block) else 0, bootstrap)
    is_positive = truth < threshold if positive == "below" else truth > threshold
    sign = -1.0 if positive == "below" else 1.0
    rows, curves, held = [], {}, {}
    for one in candidates:
        estimates = {
            "auc": ranking.auc(is_positive, sign * one.values),
            "r2": image.r2(truth, one.values),
            "rmse": image.rmse(truth, one.values, parameters=one.parameters if train is None else 0),
        }
        samples = dict(zip(("r2", "rmse"), intervals.error_replicates(truth, one.values, block, draws), strict=True))
        samples["auc"] = intervals.auc_replicates(is_positive, sign * one.values, block, draws)
        rows.append({"contrast": one.name, "model": one.model} | _row(estimates, samples, bootstrap.level))
        curves[one.name] = ranking.roc(is_positive, sign * one.values)[:2]
        held[one.name] = samples
    ordered = pd.DataFrame(rows).sort_values("auc", ascending=False, kind="stable", ignore_index=True)
    counts = {"rows": len(truth), "positives": int(is_positive.sum()), "blocks": draws.shape[1]}
    return Sensitivity(ordered, curves, threshold, positive, bootstrap.level, **counts, _replicates=held)


def _row(estimates: dict[str, float], samples: dict[str, Floats], level: float) -> dict[str, float]:
    row: dict[str, float] = {}
    for score, estimate in estimates.items():
        found = intervals.interval(estimate, samples[score], level)
        row |= {score: found.estimate, f"{score}_low": found.low, f"{score}_high": found.high}
    return row


@dataclass(frozen=True)
class _Candidate:
    """Predicted histology of the test rows, and how many parameters were fitted for it."""

    name: str
    model: str
    values: Floats
    parameters: int


def _candidates(
    features: pd.DataFrame,
    truth: Floats,
    guesses: dict[str, Floats],
    fits: Sequence[Fit],
    fitting: NDArray[np.bool_],
    testing: NDArray[np.bool_],
) -> list[_Candidate]:
    found = [_Candidate(name, "prediction", values[testing], 0) for name, values in guesses.items()]
    wanted = [(Fit(str(column), 1, [str(column)]), "single") for column in features]
    for fit, model in [*wanted, *((f, f.name) for f in fits)]:
        chosen = features if fit.columns is None else features[list(fit.columns)]
        values, parameters = _fitted(chosen.to_numpy(), truth, fit.degree, fitting, testing)
        found.append(_Candidate(fit.name, model, values, parameters))
    names = [c.name for c in found]
    if len(set(names)) < len(names):
        raise DataError(f"two contrasts, fits or predictions share a name: {sorted(names)}; rename one")
    return found


def _fitted(
    x: Floats, truth: Floats, degree: int, fitting: NDArray[np.bool_], testing: NDArray[np.bool_]
) -> tuple[Floats, int]:
    """Least-squares polynomial of the fitting rows, applied to the testing rows, and its parameter count."""
    # Scaled to the fitting rows: powers of raw scanner counts would lose all precision.
    centre, scale = x[fitting].mean(axis=0), x[fitting].std(axis=0)
    terms = _terms((x - centre) / np.where(scale > 0, scale, 1.0), degree)
    if fitting.sum() <= terms.shape[1]:
        raise DataError(f"{fitting.sum()} training rows cannot fit {terms.shape[1]} parameters; use more rows")
    coefficients = np.linalg.lstsq(terms[fitting], truth[fitting], rcond=None)[0]
    return terms[testing] @ coefficients, terms.shape[1]


def _terms(x: Floats, degree: int) -> Floats:
    """All products of up to `degree` columns, the constant first."""
    columns = [np.ones(len(x))]
    for d in range(1, degree + 1):
        for chosen in itertools.combinations_with_replacement(range(x.shape[1]), d):
            columns.append(np.prod(x[:, chosen], axis=1))
    return np.stack(columns, axis=1)


def _check_finite(table: pd.DataFrame) -> None:
    bad = (~np.isfinite(table.to_numpy(dtype=np.float64))).sum(axis=0)
    if bad.any():
        worst = {name: int(n) for name, n in zip(table.columns, bad, strict=True) if n}
        raise DataError(f"values that are not finite among {len(table)}: {worst}; leave them out with a mask")


def _rows_of_table(
    table: pd.DataFrame, histology: Any, predictions: Mapping[str, Any] | None, train: Any, blocks: ArrayLike | None
) -> tuple[pd.DataFrame, Floats, dict[str, Floats], NDArray[np.bool_]]:
    if blocks is None and "block" not in table:
        raise GridError("a table needs blocks: give blocks=, or contiguous runs from contrasts.row_blocks")
    if blocks is not None:
        table = table.assign(block=_column("blocks", blocks, len(table)))
    truth = _column("histology", histology, len(table)).astype(np.float64)
    guesses = {name: _column(name, p, len(table)).astype(np.float64) for name, p in (predictions or {}).items()}
    fitting = np.ones(len(table), dtype=bool) if train is None else _column("train", train, len(table)).astype(bool)
    return table, truth, guesses, fitting


def _column(name: str, values: Any, rows: int) -> NDArray[Any]:
    column = np.asarray(values)
    if column.shape != (rows,):
        raise GridError(f"{name} has shape {column.shape} but the table has {rows} rows; give one value per row")
    return column


def _rows_of_volumes(
    contrasts: Mapping[str, xr.DataArray],
    histology: xr.DataArray,
    predictions: Mapping[str, xr.DataArray] | None,
    train: xr.DataArray | None,
    where: xr.DataArray | None,
    block_voxels: int,
) -> tuple[pd.DataFrame, Floats, dict[str, Floats], NDArray[np.bool_]]:
    # Reserved names, so that a contrast may be called histology too.
    extra = {"\0truth": histology} | {f"\0{name}": p for name, p in (predictions or {}).items()}
    if train is not None:
        extra["\0train"] = train
    table = voxel_table({**contrasts, **extra}, where, block_voxels=block_voxels)
    truth = table.pop("\0truth").to_numpy()
    fitting = table.pop("\0train").to_numpy() != 0 if train is not None else np.ones(len(table), dtype=bool)
    guesses = {name: table.pop(f"\0{name}").to_numpy() for name in predictions or {}}
    return table, truth, guesses, fitting
