"""Publication of results as one page."""

import json

import pytest

from mrhdata.bench.publish import publish
from mrhdata.bench.runner import read_results

TASK = """
title = "A tiny histology"
kind = "histology"
needs = "data-that-do-not-exist"
block_mm = [4, 4, 4]
[data]
phantom = "mouse"
inputs = ["T2w"]
truth = "mbp"
[split]
training = [1]
validation = [2]
test = [3]
"""


def record(method, value, **changes):
    """Return the record of a run."""
    return {
        "key": method,
        "task": "tiny",
        "method": method,
        "baseline": method == "mean",
        "quick": False,
        "seed": 0,
        "threads": 1,
        "environment": {"mrhdata": "1"},
        "estimates": {"AUC": value},
        "replicates": {"AUC": [value - 0.0123456789, value, value + 0.01]},
        "blocks": [value, None],
        "shown": ["AUC"],
        "seconds": {"fitting": 1.0, "answering": 2.0},
        "peak_mb": 100.0,
        "parameters": None,
        "kmac_per_voxel": None,
        "worst": None,
        **changes,
    }


@pytest.fixture
def results(tmp_path):
    """Return the empty results folder of a benchmark with two tasks."""
    (tmp_path / "tasks").mkdir()
    for name in ("tiny", "other"):
        (tmp_path / "tasks" / f"{name}.toml").write_text(TASK)
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def test_publish_merges_full_records_and_keeps_the_page_reproducible(results, tmp_path):
    """New records replace old ones, quick and failed runs are left out, and a second call changes nothing."""
    page = tmp_path / "RESULTS.md"
    publish([record("mean", 0.5), record("fit", 0.7)], results, page)
    ignored = [record("fit", 0.1, quick=True), record("mean", 0.1, error="ValueError: no fit")]
    publish([record("fit", 0.9), *ignored], results, page, command="mrhdata bench")
    text = page.read_text("utf-8")
    assert "Written by `mrhdata bench`; do not edit." in text
    assert "| fit | 0.900 [" in text
    assert "| mean (baseline) | 0.500 [" in text
    assert "Not measured yet: other." in text
    assert [r["replicates"]["AUC"][0] for r in read_results(results / "bench.jsonl")] == [0.887654, 0.487654]
    publish([], results, page, command="mrhdata bench")
    assert page.read_text("utf-8") == text


def test_publish_lists_reports_and_tables_of_studies(results, tmp_path):
    """Reports of `reports.toml` that exist are linked, and the first table of a report is copied."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "results.jsonl").write_text(json.dumps(record("mean", 0.5)) + "\n")
    reports = "".join(f'[{name}]\ntitle = "{name} report"\ncommand = "{name}.py"\n' for name in ("patches", "missing"))
    (results / "reports.toml").write_text(reports)
    for name in ("patches", "stream"):
        (results / f"{name}.md").write_text(f"# {name}\n\n| {name} |\n| --- |\n| 1 |\n\n| second |\n| --- |\n")
    conversion = {
        "task": "planes",
        "gigabytes": 4.2,
        "budget_mb": 1000,
        "seconds_best": {"mrhdata": 2.0, "other": 5.0},
        "peak_mb_less_imports": {"mrhdata": 10, "other": 1000},
        "times_slower_than_mrhdata": {"other": 2.5, "mrhdata": 1.0},
    }
    (results / "conversion.json").write_text(json.dumps(conversion))
    publish(tmp_path / "work", results, tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text("utf-8")
    assert "| [patches report](results/patches.md) | `python benchmarks/studies/patches.py` |" in text
    assert "missing report" not in text
    assert "second" not in text.replace("seconds", "")
    assert text.index("| mrhdata | 2.00 | 1.00 | 10 |") < text.index("| other | 5.00 | 2.50 | 1,000 |")
