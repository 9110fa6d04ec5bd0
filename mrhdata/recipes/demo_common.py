"""Constants and sentences that the parts of the demo share."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from mrhdata.analysis.result import Sensitivity
from mrhdata.viz.report import readable

#: Voxels below this percentile of the training autofluorescence are positive.
PERCENTILE = 20
#: Edge, in voxels, of the cubes that the confidence intervals resample.
BLOCK_VOXELS = 8


def difference(result: Sensitivity, first: str, second: str, label: str, score: str = "auc") -> str:
    """Return a sentence with the difference of a score between two models, and its interval."""
    value = result.difference(first, second, score)
    return f"{score.upper()} of {first} minus {score.upper()} of {second} ({label}): {value}, paired over blocks."


def print_scores(console: Console, result: Sensitivity, names: Sequence[str]) -> None:
    """Print the scores of models by name."""
    console.print(readable(result, names).to_string(index=False))
