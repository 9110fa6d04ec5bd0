"""What is compared, as rows of voxels: contrasts, histology, predictions; where fits are made and what is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mrhdata.analysis.voxel_table import PLACE, voxel_table
from mrhdata.errors import DataError, GridError
from mrhdata.metrics.autocorrelation import autocorrelation, cubic_blocks
from mrhdata.volume.construct import SPATIAL

if TYPE_CHECKING:
    import xarray as xr

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Blocks are so many times as long as voxels are alike (``benchmarks/studies/coverage.py``), but not fewer than
#: so many.
_LENGTHS = 3
_FEWEST = 27


@dataclass(frozen=True)
class Rows:
    """Voxels as rows.

    Attributes
    ----------
    features : table
        A column per contrast.
    truth : (n,) array
        Histology.
    guesses : dict of str to (n,) array
        Predictions in the histology's units.
    fitting, testing : (n,) bool arrays
        Where fits are made, and what is scored; the same rows in-sample.
    block, region : (n,) int arrays
        Regions are None without labels.
    edge : int or None
        Of the blocks, None where they were given.
    widening : float
        How much wider intervals are than those of independent blocks.
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
        """Whether rows are scored that were fitted to."""
        return bool((self.fitting & self.testing).any())

    def check(self) -> None:
        """There is something to fit on and to score, and all of it is finite."""
        if not self.fitting.any() or not self.testing.any():
            raise DataError(
                f"train covers {self.fitting.sum()} of {len(self.fitting)} voxels; leave some to fit on and some to "
                "score"
            )
        _check_finite(self.features.assign(histology=self.truth))
        _check_finite(pd.DataFrame({name: values[self.testing] for name, values in self.guesses.items()}))

    def tested(self) -> Rows:
        """The rows that are scored, their blocks numbered anew."""
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
    bad = (~np.isfinite(table.to_numpy(dtype=np.float64))).sum(axis=0)
    if bad.any():
        worst = {name: int(n) for name, n in zip(table.columns, bad, strict=True) if n}
        raise DataError(f"values that are not finite among {len(table)}: {worst}; leave them out with a mask")


def rows_of_table(
    table: pd.DataFrame,
    histology: Any,
    predictions: Mapping[str, Any] | None,
    train: Any,
    regions: Any,
    blocks: ArrayLike | None,
) -> Rows:
    """Rows of a table, with the blocks that are given or those of its places."""
    columns = {name: _column(name, p, len(table)).astype(np.float64) for name, p in (predictions or {}).items()}
    truth = _column("histology", histology, len(table)).astype(np.float64)
    marked = np.ones(len(table)) if train is None else _whole("train", _column("train", train, len(table)))
    fitting = marked != 0
    testing = fitting if train is None else ~fitting
    features = table.drop(columns=[c for c in PLACE if c in table])
    edge, widening = None, 1.0
    if blocks is not None and np.ndim(blocks):
        block = _column("blocks", blocks, len(table))
    elif blocks is None and "block" in table:
        block = table["block"].to_numpy()
    elif set(SPATIAL) <= set(table.columns):
        place = np.stack([_whole(name, table[name].to_numpy()) for name in SPATIAL], axis=1)
        block, edge, widening = blocks_of(
            truth, place, testing, None if blocks is None else int(np.asarray(blocks).item())
        )
    else:
        raise GridError("a table needs blocks: give blocks=, or contiguous runs from contrasts.row_blocks")
    region = None if regions is None else _whole("regions", _column("regions", regions, len(table)))
    return Rows(features, truth, columns, fitting, testing, np.asarray(block), region, edge, widening)


def _whole(name: str, values: NDArray[Any]) -> NDArray[np.int64]:
    """Numbers that name or count things."""
    odd = int((~(values == np.rint(values))).sum()) if values.dtype.kind == "f" else 0
    if odd:
        raise DataError(
            f"{odd} of {len(values)} values of {name} are NaN or no whole numbers; leave them out with a mask"
        )
    return np.asarray(values, dtype=np.int64)


def blocks_of(
    truth: NDArray[np.float64], place: NDArray[np.int64], testing: NDArray[np.bool_], edge: int | None = None
) -> tuple[NDArray[np.int64], int, float]:
    """Cubes that are long beside the distance over which histology is alike.

    Returns
    -------
    block : (n,) int array
    edge : int
        In voxels, as given or as measured.
    widening : float
        How much wider intervals are for what is alike across the faces of blocks.
    """
    alike = autocorrelation(truth, place)
    edge = _edge(place[testing], alike.range) if edge is None else edge
    block, lengths = cubic_blocks(place, edge)
    return block, edge, alike.widening(lengths)


def _edge(place: NDArray[np.int64], far: float) -> int:
    """Edge of blocks: long beside the distance over which voxels are alike, while there are enough of them."""
    edge = max(1, int(np.ceil(_LENGTHS * far)))
    if not len(place):
        return edge
    while edge > 1 and int(cubic_blocks(place, edge)[0].max()) + 1 < _FEWEST:
        edge -= 1
    return edge


def _column(name: str, values: Any, rows: int) -> NDArray[Any]:
    column = np.asarray(values)
    if column.shape != (rows,):
        raise GridError(f"{name} has shape {column.shape} but the table has {rows} rows; give one value per row")
    return column


def rows_of_volumes(
    contrasts: Mapping[str, xr.DataArray],
    histology: xr.DataArray,
    predictions: Mapping[str, xr.DataArray] | None,
    train: xr.DataArray | None,
    where: xr.DataArray | None,
    regions: xr.DataArray | None,
    blocks: ArrayLike | None,
    voxels: int,
) -> Rows:
    """Rows of volumes on one grid."""
    # Reserved names, so that a contrast may be called histology too.
    extra = {"\0truth": histology, "\0train": train, "\0regions": regions}
    extra |= {f"\0{name}": p for name, p in (predictions or {}).items()}
    given = {name: volume for name, volume in extra.items() if volume is not None}
    table = voxel_table({**contrasts, **given}, where, most=voxels).drop(columns="block")
    taken = {name.removeprefix("\0"): table.pop(name).to_numpy() for name in given}
    guesses = {name: taken[name] for name in predictions or {}}
    fitting = taken.get("train")
    edge = None if blocks is None else int(np.asarray(blocks).item())
    return rows_of_table(table, taken["truth"], guesses, fitting, taken.get("regions"), edge)
