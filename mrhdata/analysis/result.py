"""The result of a sensitivity analysis: scores with intervals, curves, differences."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mrhdata.errors import DataError
from mrhdata.metrics.bootstrap import Interval, holm_adjust, interval, p_value

Floats = NDArray[np.float64]

#: Maximum number of rows in a notebook and in a terminal.
_HTML_ROWS, _PRINTED_ROWS = 20, 8


@dataclass(frozen=True)
class Sensitivity:
    """Result of :func:`mrhdata.sensitivity`.

    Attributes
    ----------
    table : pandas.DataFrame
        One row per contrast and model, best AUC first: ``contrast``, ``model`` (``single``, ``prediction`` or
        the name of a fit), ``in_sample`` (whether the model was fitted on the scored voxels), ``cut`` (the best
        threshold of the training rows in the histology's units) and, each with ``_low`` and ``_high``: ``auc``;
        ``sensitivity`` at `specificity`; ``partial_auc`` above it (0.5 is chance); ``r2``; ``rmse``;
        ``information`` (mutual, in bits); ``partial_correlation`` with the histology given all other single
        contrasts (NaN for fits); ``cut_sensitivity`` and ``cut_specificity`` at the cut.
    curves : dict of str to (fpr, tpr)
        ROC curve of each contrast.
    thresholds : pandas.DataFrame
        ``contrast``, ``percentile``, ``threshold``, ``auc``: the AUC for other thresholds of the histology.
    regions : pandas.DataFrame
        ``region``, ``contrast``, ``rows``, ``positives``, ``auc``, ``auc_low``, ``auc_high``; empty without
        regions. The AUC is NaN for a region with fewer than 20 voxels of one class, or in one block.
    threshold, positive
        Threshold of the histology and its positive side, "below" or "above".
    specificity : float
        Specificity at which the sensitivity is reported.
    level : float
        Level of the intervals, such as 0.95.
    rows, positives : int
        Numbers of scored voxels and of positive ones.
    blocks : int
        Number of blocks that the intervals resample.
    block_voxels : int or None
        Edge of the cubic blocks in voxels; None if the caller passed the block of each row.
    in_sample : bool
        Whether fits, cuts and signs come from the scored voxels, for lack of separate training voxels.
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
        best = self.table.head(_PRINTED_ROWS)
        printed = best[["contrast"]].assign(model=named_models(best))
        for score, name in (("auc", "AUC"), ("r2", "R2"), ("partial_correlation", "partial correlation")):
            printed[name] = format_scores(best, score)
        return "\n".join([self._title(), printed.to_string(index=False), self._note(_PRINTED_ROWS)])

    def _title(self) -> str:
        side = f"histology {self.positive} {self.threshold:.4g}"
        return f"{self.positives:,} of {self.rows:,} voxels are positive: {side}"

    def _note(self, rows: int) -> str:
        more = f"; {len(self.table) - rows} more in .table" if len(self.table) > rows else ""
        return f"{self.level:.0%} intervals over {self.blocks} blocks{more}"

    def _repr_html_(self) -> str:
        from mrhdata._runtime import html

        best = self.table.head(_HTML_ROWS)
        columns = [format_scores(best, score) for score in ("auc", "sensitivity", "r2")]
        lowest = min(0.5, float(best["auc_low"].min()))
        rows = []
        for model, (_, row), *scores in zip(named_models(best), best.iterrows(), *columns, strict=True):
            bar = html.bar(row["auc"], row["auc_low"], row["auc_high"], (lowest, 1.0))
            rows.append([row["contrast"], model, bar, *scores, f"{row['rmse']:.4g}"])
        sensitivity_head = f"sensitivity at {self.specificity:.0%} specificity"
        head = ["contrast", "model", f"AUC, {lowest:.2g} to 1", "AUC", sensitivity_head, "R2", "RMSE"]
        return html.panel(self._title(), html.table(head, rows), note=self._note(_HTML_ROWS))

    def difference(self, first: str, second: str, score: str = "auc") -> Interval:
        """Return the score of `first` minus that of `second`, with an interval over paired replicates.

        Examples
        --------
        >>> from mrhdata.analysis.contrasts import sensitivity
        >>> t = np.linspace(0, 1, 400)
        >>> noisy = pd.DataFrame({"good": t, "poor": t + np.sin(40 * t)})
        >>> s = sensitivity(noisy, t, threshold=0.5, blocks=np.arange(400) // 20)
        >>> s.difference("good", "poor").low > 0
        True
        """
        return interval(*self._paired(first, second, score), self.level)

    def compare(self, reference: str | None = None, score: str = "auc") -> pd.DataFrame:
        """Compare one contrast with every other, with paired intervals and p values.

        Parameters
        ----------
        reference : str, optional
            Name of the contrast to compare with the others; the first row of the table by default.
        score : str
            Column of the table that has an interval.

        Returns
        -------
        table : pandas.DataFrame
            ``contrast``, ``difference`` (reference minus contrast), ``low``, ``high``, ``p`` (two-sided, from the
            bootstrap) and ``p_adjusted`` for the number of comparisons (Holm 1979, Scand. J. Stat. 6:65).

        Examples
        --------
        >>> from mrhdata.analysis.contrasts import sensitivity
        >>> t = np.linspace(0, 1, 400)
        >>> noisy = pd.DataFrame({"good": t, "poor": t + np.sin(40 * t)})
        >>> s = sensitivity(noisy, t, threshold=0.5, blocks=np.arange(400) // 20, fits=[])
        >>> s.compare()[["contrast", "p_adjusted"]].round(3).values.tolist()
        [['poor', 0.002]]
        """
        first = str(self.table["contrast"].iloc[0]) if reference is None else reference
        others = [(first, other) for other in self.table["contrast"] if other != first]
        return self._compared(others, score).drop(columns="reference")

    def pairs(self, score: str = "auc") -> pd.DataFrame:
        """Compare every pair of single contrasts and predictions; fits, which combine them, are left out.

        Parameters
        ----------
        score : str
            Column of the table that has an interval.

        Returns
        -------
        table : pandas.DataFrame
            The columns of :meth:`compare` after ``reference``, the better one of each pair; `p_adjusted` is for the
            number of pairs.

        Examples
        --------
        >>> from mrhdata.analysis.contrasts import sensitivity
        >>> t = np.linspace(0, 1, 400)
        >>> noisy = pd.DataFrame({"good": t, "poor": t + np.sin(40 * t), "worse": np.sin(40 * t)})
        >>> s = sensitivity(noisy, t, threshold=0.5, blocks=np.arange(400) // 20)
        >>> s.pairs()[["reference", "contrast"]].values.tolist()
        [['good', 'poor'], ['good', 'worse'], ['poor', 'worse']]
        """
        names = list(self.table["contrast"][self.table["model"].isin(("single", "prediction"))])
        estimates = self.table.set_index("contrast")[score]
        ordered = sorted(names, key=lambda name: -float(estimates[name]))
        return self._compared(list(itertools.combinations(ordered, 2)), score)

    def answer(self, reference: str | None = None) -> str:
        """Return a sentence that says which contrast shows the histology best, and from which it is distinguishable.

        Parameters
        ----------
        reference : str, optional
            Contrast or prediction to compare with the others; the one with the highest AUC by default.

        Notes
        -----
        Two contrasts are called distinguishable if the p value of their AUC difference, after Holm's correction for the
        number of pairs, is below one minus the level of the intervals.

        Examples
        --------
        >>> from mrhdata.analysis.contrasts import sensitivity
        >>> t = np.linspace(0, 1, 400)
        >>> noisy = pd.DataFrame({"good": t, "poor": t + np.sin(40 * t)})
        >>> s = sensitivity(noisy, t, threshold=0.5, blocks=np.arange(400) // 20)
        >>> s.answer().partition(":")[0]
        'good shows the histology better than poor'
        """
        table = self.pairs()
        scores = self.table.set_index("contrast")
        if reference is None:
            names = scores.index[scores["model"].isin(("single", "prediction"))]
            reference = str((names if len(names) else scores.index)[0])
        elif reference not in scores.index:
            raise DataError(f"reference must be one of {sorted(scores.index)}; got {reference!r}")
        if scores["model"][reference] not in ("single", "prediction"):
            table = self.compare(reference).assign(reference=reference)
        row = scores.loc[reference]
        own = f"{reference} has an AUC of {row['auc']:.3f} [{row['auc_low']:.3f}, {row['auc_high']:.3f}]"
        mine = table[(table["reference"] == reference) | (table["contrast"] == reference)]
        clauses = [self._clause(reference, pair) for pair in mine.to_dict("records")]
        return f"{'; '.join(clauses)}. {own}." if clauses else f"{own}."

    def _clause(self, reference: str, pair: Mapping[Any, Any]) -> str:
        """Return whether a contrast is better or worse than another, or neither, with the difference of the AUC."""
        turned = pair["reference"] != reference
        other = pair["reference"] if turned else pair["contrast"]
        difference, low, high = (pair[key] for key in ("difference", "low", "high"))
        if turned:
            difference, low, high = -difference, -high, -low
        numbers = f"AUC difference {difference:.3f} [{low:.3f}, {high:.3f}]"
        if pair["p_adjusted"] >= 1 - self.level:
            return f"{reference} and {other} are not distinguishable: {numbers}"
        word = "better" if difference > 0 else "worse"
        return f"{reference} shows the histology {word} than {other}: {numbers}"

    def _compared(self, pairs: Sequence[tuple[str, str]], score: str) -> pd.DataFrame:
        """Return the difference of each pair, the first minus the second, with p values adjusted for their number."""
        rows = []
        for first, second in pairs:
            estimate, replicates = self._paired(first, second, score)
            limits, p = interval(estimate, replicates, self.level), p_value(replicates)
            ends = {"low": limits.low, "high": limits.high}
            rows.append({"reference": first, "contrast": second, "difference": estimate, **ends, "p": p})
        table = pd.DataFrame(rows, columns=["reference", "contrast", "difference", "low", "high", "p"])
        return table.assign(p_adjusted=holm_adjust(table["p"]))

    def _paired(self, first: str, second: str, score: str) -> tuple[float, Floats]:
        for name in (first, second):
            if name not in self._replicates:
                raise DataError(f"contrast must be one of {sorted(self._replicates)}; got {name!r}")
            if score not in self._replicates[name]:
                raise DataError(f"score of {name!r} must be one of {sorted(self._replicates[name])}; got {score!r}")
        estimates = self.table.set_index("contrast")[score]
        replicates = self._replicates[first][score] - self._replicates[second][score]
        return float(estimates[first] - estimates[second]), replicates


def named_models(table: pd.DataFrame) -> list[str]:
    """Return the model of each row, with ", in-sample" if it was fitted on the scored voxels."""
    models = zip(table["model"], table["in_sample"], strict=True)
    return [f"{model}, in-sample" if in_sample else model for model, in_sample in models]


def format_scores(table: pd.DataFrame, score: str) -> list[str]:
    """Format a score and its interval for each row; NaN becomes an empty string."""
    numbers = table[[score, f"{score}_low", f"{score}_high"]].to_numpy()
    return ["" if np.isnan(e) else f"{e:.3f} [{low:.3f}, {high:.3f}]" for e, low, high in numbers]
