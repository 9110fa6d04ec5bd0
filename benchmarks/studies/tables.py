"""Reports of the studies: values as JSON and text as Markdown in ``benchmarks/results``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrhdata.bench.publish import markdown_table as markdown

__all__ = ["RESULTS", "committed", "markdown", "merged", "written"]

RESULTS = Path(__file__).parents[1] / "results"


def committed(name: str) -> dict[str, Any]:
    """Return the values of the last report, or an empty dict."""
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}


def merged(before: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return the rows of the last report, with new measurements in place of old ones."""
    return list(({row[key]: dict(row) for row in before} | {row[key]: dict(row) for row in rows}).values())


def written(name: str, parts: Sequence[str], values: Mapping[str, Any]) -> None:
    """Print the parts of a report, and write them and the values to the results folder."""
    text = "\n\n".join(parts) + "\n"
    print(text)
    (RESULTS / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
