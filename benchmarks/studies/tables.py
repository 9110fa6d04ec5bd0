"""Rows as Markdown, and reports on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def committed(name: str) -> dict[str, Any]:
    """The figures of the last report; none where there was none."""
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}


def merged(before: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """Rows of the last report, those that were measured again in their place."""
    return list(({row[key]: dict(row) for row in before} | {row[key]: dict(row) for row in rows}).values())


def written(name: str, parts: Sequence[str], found: Mapping[str, Any]) -> None:
    """Print the parts of a report, and write them and the figures beside the others."""
    text = "\n\n".join(parts) + "\n"
    print(text)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")


def markdown(rows: Sequence[Mapping[str, Any]], digits: int = 3) -> str:
    """A table of rows that are alike; what a row lacks is left empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([_shown(row.get(key, ""), digits) for key in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: Any, digits: int) -> str:
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown(v, digits) for v in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
