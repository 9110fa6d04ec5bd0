"""Voxels as rows: contrasts, histology and predictions, with training and scored rows and spatial blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mrhdata._runtime.arguments import described
from mrhdata.analysis.voxel_table import PLACE, voxel_table
from mrhdata.errors import DataError, GridError, ParameterError
from mrhdata.metrics.autocorrelation import autocorrelation, cubic_blocks
from mrhdata.volume.assumptions import LENGTHS, assumed, warn_of_assumed
from mrhdata.volume.checks import check_volume
from mrhdata.volume.construct import SPATIAL

if TYPE_CHECKING:
    import xarray as xr

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Edge of a block in correlation lengths, for intervals that cover their level (``benchmarks/studies/coverage.py``).
_CORRELATION_LENGTHS = 3
#: Blocks become shorter until there are this many.
_FEWEST_BLOCKS = 27


@dataclass(frozen=True)
class Rows:
    """Voxels as rows.

    Attributes
    ----------
    features : table
        One column per contrast.
    truth : (n,) array
        Histology.
    guesses : dict of str to (n,) array
        Predictions in the histology's units.
    fitting, testing : (n,) bool arrays
        Training rows and scored rows; the same rows if scores are in-sample.
    block : (n,) int array
        Spatial block of each row.
    region : (n,) int array or None
        Region of each row; None without labels.
    edge : int or None
        Edge of the blocks in voxels; None if the caller passed the block of each row.
    widening : float
        Factor by which intervals are wider than those of independent blocks.
    """

    features: pd.DataFrame
    truth: Floats
    guesses: dict[str, Floats]
    fitting: Bools
    testing: Bools
    block: NDArray[np.int64]
    region: NDArray[np.int64] | None
    edge: int | None
    widening: float

    @property
    def in_sample(self) -> bool:
        """Whether a training row is scored too."""
        return bool((self.fitting & self.testing).any())

    def check(self) -> None:
        """Raise DataError if no rows are left for fitting or scoring, or if a value is not finite."""
        if not self.fitting.any() or not self.testing.any():
            raise DataError(
                f"train_mask must cover some voxels, but not all; got {self.fitting.sum()} of {len(self.fitting)}"
            )
        _check_finite(self.features.assign(histology=self.truth))
        _check_finite(pd.DataFrame({name: values[self.testing] for name, values in self.guesses.items()}))

    def tested(self) -> Rows:
        """Return the scored rows, with consecutive block numbers."""
        t = self.testing
        return replace(
            self,
            features=self.features[t],
            truth=self.truth[t],
            guesses={name: values[t] for name, values in self.guesses.items()},
            fitting=self.fitting[t],
            testing=t[t],
            block=np.unique(self.block[t], return_inverse=True)[1],
            region=None if self.region is None else self.region[t],
        )


def _check_finite(table: pd.DataFrame) -> None:
    counts = (~np.isfinite(table.to_numpy(dtype=np.float64))).sum(axis=0)
    if counts.any():
        by_column = {name: int(n) for name, n in zip(table.columns, counts, strict=True) if n}
        raise DataError(f"values must be finite; not finite among {len(table)}: {by_column}. Exclude them with a mask")


def rows_of_table(
    table: pd.DataFrame,
    histology: Any,
    predictions: Mapping[str, Any] | None,
    train_mask: Any,
    regions: Any,
    blocks: ArrayLike | None,
) -> Rows:
    """Build rows from a table, with the blocks of the caller or cubes of its voxel indices."""
    guesses = {name: _column(name, p, len(table)).astype(np.float64) for name, p in (predictions or {}).items()}
    truth = _column("histology", histology, len(table)).astype(np.float64)
    if train_mask is None:
        fitting = testing = np.ones(len(table), dtype=bool)
    else:
        fitting = _as_integers("train_mask", _column("train_mask", train_mask, len(table))) != 0
        testing = ~fitting
    features = table.drop(columns=[c for c in PLACE if c in table])
    edge, widening = None, 1.0
    if blocks is not None and np.ndim(blocks):
        block = _column("blocks", blocks, len(table))
    elif blocks is None and "block" in table:
        block = table["block"].to_numpy()
    elif set(SPATIAL) <= set(table.columns):
        index = np.stack([_as_integers(name, table[name].to_numpy()) for name in SPATIAL], axis=1)
        length = None if blocks is None else int(np.asarray(blocks).item())
        block, edge, widening = blocks_of(truth, index, testing, length)
    else:
        raise GridError(
            "a table needs blocks: pass blocks=, such as contiguous rows from contrasts.row_blocks, or add the columns "
            "z, y, x"
        )
    region = None if regions is None else _as_integers("regions", _column("regions", regions, len(table)))
    return Rows(features, truth, guesses, fitting, testing, np.asarray(block), region, edge, widening)


def _as_integers(name: str, values: NDArray[Any]) -> NDArray[np.int64]:
    """Return integers; raise DataError if a value is NaN or a fraction."""
    invalid = int((~(values == np.rint(values))).sum()) if values.dtype.kind == "f" else 0
    if invalid:
        raise DataError(
            f"{name} must be integers; {invalid} of {len(values)} values are NaN or fractions. Exclude them with a mask"
        )
    return np.asarray(values, dtype=np.int64)


def blocks_of(
    truth: NDArray[np.float64], index: NDArray[np.int64], testing: NDArray[np.bool_], edge: int | None = None
) -> tuple[NDArray[np.int64], int, float]:
    """Divide voxels into cubic blocks that are long compared with the correlation length of the histology.

    Parameters
    ----------
    truth : (n,) array
        Histology.
    index : (n, 3) int array
        Voxel indices z, y, x.
    testing : (n,) bool array
        Scored rows, which set the default edge.
    edge : int, optional
        Edge of the blocks in voxels.

    Returns
    -------
    block : (n,) int array
        Block of each row.
    edge : int
        Edge of the blocks in voxels.
    widening : float
        Factor that widens intervals for correlation across the faces of blocks.
    """
    correlation = autocorrelation(truth, index)
    edge = _edge(index[testing], correlation.range) if edge is None else edge
    block, lengths = cubic_blocks(index, edge)
    return block, edge, correlation.widening(lengths)


def _edge(index: NDArray[np.int64], correlation_length: float) -> int:
    """Return the edge of blocks: three correlation lengths, or shorter until there are enough blocks."""
    edge = max(1, int(np.ceil(_CORRELATION_LENGTHS * correlation_length)))
    if not len(index):
        return edge
    while edge > 1 and int(cubic_blocks(index, edge)[0].max()) + 1 < _FEWEST_BLOCKS:
        edge -= 1
    return edge


def _column(name: str, values: Any, rows: int) -> NDArray[Any]:
    column = np.asarray(values)
    if column.shape != (rows,):
        raise GridError(f"{name} must have one value per row of the table, shape ({rows},); got {column.shape}")
    return column


def rows_of_volumes(
    contrasts: Mapping[str, xr.DataArray],
    histology: xr.DataArray,
    predictions: Mapping[str, xr.DataArray] | None,
    train_mask: xr.DataArray | None,
    mask: xr.DataArray | None,
    regions: xr.DataArray | None,
    blocks: ArrayLike | None,
    max_voxels: int,
) -> Rows:
    """Build rows from volumes on one grid."""
    if not isinstance(contrasts, Mapping):
        raise ParameterError(
            f"contrasts must be a mapping of names to volumes, or a table; got {described(contrasts)}. Pass for "
            'example {"t2w": volume}'
        )
    optional_volumes = {"train_mask": train_mask, "mask": mask, "regions": regions}
    required = {**contrasts, "histology": histology, **(predictions or {})}
    for name, volume in {**required, **{k: v for k, v in optional_volumes.items() if v is not None}}.items():
        check_volume(name, volume)
    # The prefix keeps these columns apart from contrasts, one of which may be called truth.
    optional = {"\0truth": histology, "\0train": train_mask, "\0regions": regions}
    optional |= {f"\0{name}": p for name, p in (predictions or {}).items()}
    volumes = {name: volume for name, volume in optional.items() if volume is not None}
    _warn_of_assumed_grid({**contrasts, **{name.removeprefix("\0"): v for name, v in volumes.items()}})
    table = voxel_table({**contrasts, **volumes}, mask, most=max_voxels).drop(columns="block")
    columns = {name.removeprefix("\0"): table.pop(name).to_numpy() for name in volumes}
    guesses = {name: columns[name] for name in predictions or {}}
    edge = None if blocks is None else int(np.asarray(blocks).item())
    return rows_of_table(table, columns["truth"], guesses, columns.get("train"), columns.get("regions"), edge)


def _warn_of_assumed_grid(volumes: Mapping[str, xr.DataArray]) -> None:
    """Warn of volumes that lie on the grid of the others only because of what their files do not state."""
    known = {"orientation" in assumed(volume) for volume in volumes.values()}
    # Volumes that are all without an orientation are stored alike.
    warn_of_assumed(volumes, "sensitivity", *LENGTHS, *(["orientation"] if len(known) > 1 else []))
