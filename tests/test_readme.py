"""README: its Python runs, its table of tasks and its numbers are true."""

import json
import re
from pathlib import Path

import pytest

from docs.running import run

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
COMPARISON = ROOT / "docs" / "comparison.md"
RESULTS = ROOT / "benchmarks" / "results"


def test_every_python_block_runs(tmp_path):
    """The example prints the table of scores and writes the map."""
    printed = run(README, tmp_path)
    assert len(printed) == README.read_text("utf-8").count("```python") == 1
    assert (tmp_path / "virtual-af.zarr").is_dir()
    shown = re.search(r"```text\n(.*?)```", README.read_text("utf-8"), flags=re.DOTALL)[1]
    # Numbers depend on the processor; the rows and the columns do not.
    words = [re.findall(r"[a-zA-Z][\w-]*", text) for text in (shown, printed[0])]
    assert sorted(words[0]) == sorted(words[1])
    assert "prediction" in printed[0]


def test_length_of_readme():
    """README stays short enough to be read to its end."""
    assert len(README.read_text("utf-8").splitlines()) <= 130


@pytest.mark.parametrize("page", [README, ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md"], ids=lambda p: p.name)
def test_links_lead_to_files(page):
    """Relative links of the pages outside the site, which Sphinx does not check."""
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8"))
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []


def figures(row):
    """Numbers of a row of the table of peers, field by field, without the fields that have none."""
    text = COMPARISON.read_text("utf-8")
    (fields,) = re.findall(rf"^\| {re.escape(row)}(.*)$", text, flags=re.MULTILINE)
    numbers = (re.findall(r"\d[\d.]*", field) for field in fields.split("|")[1:])
    return [values for values in numbers if values]


def test_figures_of_the_comparison_are_measured():
    """Numbers of the comparison and of README agree with the committed results."""
    results = {name: json.loads((RESULTS / f"{name}.json").read_text("utf-8")) for name in ("patches", "stream")}
    readers = {(r["workload"], r["reader"]): r for r in results["patches"]["readers"]}
    seconds = {m["method"]: m["seconds"] for m in results["stream"]["methods"]}
    records = [json.loads(line) for line in (RESULTS / "bench.jsonl").read_text("utf-8").splitlines()]
    f1 = {r["method"]: f"{r['estimates']['F1']:.3f}" for r in records if r["task"] == "phantom-cells"}

    def slower(workload, reader):
        rates = (readers[workload, name]["patches_per_second"] for name in ("mrhdata", reader))
        ratio = next(rates) / next(rates)
        return f"{ratio:.0f}" if ratio > 10 else f"{ratio:.1f}"

    def longer(peer):
        return [f"{seconds[peer] / seconds[f'mrhdata, {mode}']:.1f}" for mode in ("windows", "dense")]

    zarrdataset = [slower("grid", f"zarrdataset {how}") for how in ("draw_same_chunk", "across chunks")]
    torchio, blosc2 = slower("uniform-1", "torchio Queue"), slower("uniform-1", "blosc2 (nnU-Net style)")
    peak_gb = f"{readers['uniform-1', 'torchio Queue']['peak_mb'] / 1000:.1f}"
    assert figures("patches of a compressed volume") == [
        ["1"], [slower("grid", "xbatcher")], zarrdataset, [torchio, peak_gb]
    ]  # fmt: skip
    assert figures("a convolution over a volume") == [["1"], longer("torchio"), longer("MONAI, in memory")]
    (cellfinder,) = (score for method, score in f1.items() if method.startswith("cellfinder"))
    assert figures("cells of digital tissue") == [[f1["cell detector"]], [cellfinder]]
    for page in (README, COMPARISON):
        assert f"{blosc2} times slower" in page.read_text("utf-8")
    text = README.read_text("utf-8")
    assert f"{slower('grid', 'xbatcher')} times faster than from xbatcher" in text
    assert f"{float(torchio):.0f} times faster than from TorchIO" in text


def test_every_make_target_and_command_exists():
    """Targets of the Makefile and commands of the command line."""
    from mrhdata.cli import app

    text = README.read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = re.findall(r"`make (\w+)`", text)
    assert targets
    for target in targets:
        assert f"\n{target}:" in makefile
    known = {c.name or c.callback.__name__ for c in app.registered_commands} | {g.name for g in app.registered_groups}
    commands = re.findall(r"(?:^(?:    )?(?:\.venv/bin/)?|`)mrhdata (\w[\w-]*)", text, flags=re.MULTILINE)
    assert len(commands) == 12
    assert set(commands) <= known
