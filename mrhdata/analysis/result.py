"""The result of a sensitivity analysis: scores with intervals, curves, differences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mrhdata.errors import DataError
from mrhdata.metrics.bootstrap import Interval, holm_adjust, interval, p_value

if TYPE_CHECKING:
    pass

Floats = NDArray[np.float64]


#: Rows that a notebook shows, and a terminal.
_SHOWN, _PRINTED = 20, 8


@dataclass(frozen=True)
class Sensitivity:
    """Result of :func:`mrhdata.sensitivity`.

    Attributes
    ----------
    table : pandas.DataFrame
        One row per contrast and model, best AUC first: ``contrast``, ``model`` (``single``, ``prediction`` or
        a fit's name), ``in_sample`` (whether it was fitted on the very voxels that are scored), and, each with
        ``_low`` and ``_high``: ``auc``; ``sensitivity`` at `specificity`;
        ``partial_auc`` above it (0.5 is chance); ``r2``; ``rmse``; ``information`` (mutual, in bits); ``adds``
        (partial correlation with the histology when all single contrasts are known; NaN for fits);
        ``cut_sensitivity`` and ``cut_specificity`` at the ``cut``, in the histology's units, that is best on the
        training rows.
    curves : dict of str to (fpr, tpr)
        ROC curve of each.
    thresholds : pandas.DataFrame
        ``contrast``, ``percentile``, ``threshold``, ``auc``: how the AUC depends on what is called positive.
    regions : pandas.DataFrame
        ``region``, ``contrast``, ``rows``, ``positives``, ``auc``, ``auc_low``, ``auc_high``; empty without
        regions. A region with fewer than 20 voxels of one class, or in one block, has no AUC.
    threshold, positive, specificity, level, rows, positives, blocks, block_voxels
        What was scored: histology ``positive`` ("below" or "above") ``threshold`` in ``positives`` of
        ``rows`` voxels, intervals at ``level`` over ``blocks`` cubes of ``block_voxels`` (None where blocks
        were given).
    in_sample : bool
        No training voxels were set apart: fits, cuts and directions are of the voxels that are scored.
    """

    table: pd.DataFrame
    curves: dict[str, tuple[Floats, Floats]]
    thresholds: pd.DataFrame
    regions: pd.DataFrame
    threshold: float
    positive: str
    specificity: float
    level: float
    rows: int
    positives: int
    blocks: int
    block_voxels: int | None
    in_sample: bool
    _replicates: dict[str, dict[str, Floats]] = field(repr=False)

    def __repr__(self) -> str:
        shown = self.table.head(_PRINTED)
        printed = shown[["contrast"]].assign(model=named_models(shown))
        for score, name in (("auc", "AUC"), ("r2", "R2"), ("adds", "adds")):
            printed[name] = format_scores(shown, score)
        return "\n".join([self._title(), printed.to_string(index=False), self._note(_PRINTED)])

    def _title(self) -> str:
        side = f"histology {self.positive} {self.threshold:.4g}"
        return f"{self.positives:,} of {self.rows:,} voxels are positive: {side}"

    def _note(self, shown: int) -> str:
        more = f"; {len(self.table) - shown} more in .table" if len(self.table) > shown else ""
        return f"{self.level:.0%} intervals over {self.blocks} blocks{more}"

    def _repr_html_(self) -> str:
        from mrhdata._runtime import html

        shown = self.table.head(_SHOWN)
        columns = [format_scores(shown, score) for score in ("auc", "sensitivity", "r2")]
        lowest = min(0.5, float(shown["auc_low"].min()))
        rows = []
        for model, (_, row), *scores in zip(named_models(shown), shown.iterrows(), *columns, strict=True):
            line = html.bar(row["auc"], row["auc_low"], row["auc_high"], (lowest, 1.0))
            rows.append([row["contrast"], model, line, *scores, f"{row['rmse']:.4g}"])
        at = f"sensitivity at {self.specificity:.0%} specificity"
        head = ["contrast", "model", f"AUC, {lowest:.2g} to 1", "AUC", at, "R2", "RMSE"]
        return html.panel(self._title(), html.table(head, rows), note=self._note(_SHOWN))

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
        return interval(*self._paired(first, second, score), self.level)

    def compare(self, reference: str | None = None, score: str = "auc") -> pd.DataFrame:
        """Every contrast against one, in pairs, with the chance of such a difference by luck.

        Parameters
        ----------
        reference : str, optional
            The first of the table by default.
        score : str
            A column of the table that has an interval.

        Returns
        -------
        table : pandas.DataFrame
            ``contrast``, ``difference`` (reference less contrast), ``low``, ``high``, ``p`` (two-sided, from
            the resamplings) and ``p_adjusted`` for the number of comparisons (Holm 1979, Scand. J. Stat. 6:65).

        Examples
        --------
        >>> t = np.linspace(0, 1, 400)
        >>> noisy = pd.DataFrame({"good": t, "poor": t + np.sin(40 * t)})
        >>> s = sensitivity(noisy, t, threshold=0.5, blocks=np.arange(400) // 20, fits=[])
        >>> s.compare()[["contrast", "p_adjusted"]].round(3).values.tolist()
        [['poor', 0.002]]
        """
        chosen = str(self.table["contrast"].iloc[0]) if reference is None else reference
        rows = []
        for other in self.table["contrast"]:
            if other == chosen:
                continue
            estimate, replicates = self._paired(chosen, other, score)
            found = interval(estimate, replicates, self.level)
            p = p_value(replicates)
            rows.append({"contrast": other, "difference": estimate, "low": found.low, "high": found.high, "p": p})
        table = pd.DataFrame(rows, columns=["contrast", "difference", "low", "high", "p"])
        return table.assign(p_adjusted=holm_adjust(table["p"]))

    def _paired(self, first: str, second: str, score: str) -> tuple[float, Floats]:
        for name in (first, second):
            if name not in self._replicates:
                raise DataError(f"nothing called {name!r} was scored; there are {sorted(self._replicates)}")
            if score not in self._replicates[name]:
                raise DataError(f"{name!r} has no {score!r}; there are {sorted(self._replicates[name])}")
        held = self.table.set_index("contrast")[score]
        replicates = self._replicates[first][score] - self._replicates[second][score]
        return float(held[first] - held[second]), replicates


def named_models(table: pd.DataFrame) -> list[str]:
    """The models of a table as people read them: those that were fitted on what is scored say so."""
    return [f"{m}, in-sample" if seen else m for m, seen in zip(table["model"], table["in_sample"], strict=True)]


def format_scores(table: pd.DataFrame, score: str) -> list[str]:
    """A score of a table with its interval, row by row; empty where there is none."""
    numbers = table[[score, f"{score}_low", f"{score}_high"]].to_numpy()
    return ["" if np.isnan(e) else f"{e:.3f} [{low:.3f}, {high:.3f}]" for e, low, high in numbers]
