"""What README says is true: its Python runs, in order, in one folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.running import run

README = Path(__file__).parents[1] / "README.md"
RESULTS = README.parent / "benchmarks" / "results"


def test_every_python_block_runs(tmp_path):
    """Blocks share their names, as a reader's session would."""
    blocks = run(README, tmp_path)
    assert len(blocks) == README.read_text("utf-8").count("```python") == 10
    assert (tmp_path / "virtual-af.zarr").is_dir()
    printed = "".join(blocks)
    assert "IAR" in printed
    assert "virtual" in printed


@pytest.mark.full
def test_the_commands_from_two_files_to_a_report(shared, tmp_path):
    """The sequence as it is written, on the real volumes."""
    (block,) = re.findall(r"```sh\n(D=.*?)```", README.read_text("utf-8"), flags=re.DOTALL)
    script = block.replace("../shared/data", str(shared))
    there = os.environ["PATH"].split(os.pathsep)
    path = os.pathsep.join([str(Path(sys.executable).parent), *there])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "| virtual | prediction |" in text
    assert "| t2w | single |" in text
    assert "Training" in text


def figures(row):
    """Numbers of a row of the table of peers, cell by cell; cells without any are left out."""
    text = README.read_text("utf-8").partition("## Beside its peers")[2]
    (cells,) = re.findall(rf"^\| {re.escape(row)}(.*)$", text, flags=re.MULTILINE)
    found = (re.findall(r"\d[\d.]*", cell) for cell in cells.split("|")[1:])
    return [numbers for numbers in found if numbers]


def test_figures_of_the_table_of_peers_are_measured():
    """They stand in the committed results."""
    read = {name: json.loads((RESULTS / f"{name}.json").read_text("utf-8")) for name in ("patches", "stream")}
    drawn = {(r["workload"], r["reader"]): r for r in read["patches"]["readers"]}
    seconds = {m["method"]: m["seconds"] for m in read["stream"]["methods"]}
    records = [json.loads(line) for line in (RESULTS / "bench.jsonl").read_text("utf-8").splitlines()]
    f1 = {r["method"]: f"{r['estimates']['F1']:.3f}" for r in records if r["task"] == "phantom-cells"}

    def slower(workload, reader):
        rates = (drawn[workload, name]["patches_per_second"] for name in ("mrhdata", reader))
        ratio = next(rates) / next(rates)
        return f"{ratio:.0f}" if ratio > 10 else f"{ratio:.1f}"

    def longer(peer):
        return [f"{seconds[peer] / seconds[f'mrhdata, {mode}']:.1f}" for mode in ("windows", "dense")]

    zarrdataset = [slower("grid", f"zarrdataset {how}") for how in ("draw_same_chunk", "across chunks")]
    held = f"{drawn['uniform-1', 'torchio Queue']['peak_mb'] / 1000:.1f}"
    assert figures("patches of a compressed volume") == [
        ["1"], [slower("grid", "xbatcher")], zarrdataset, [slower("uniform-1", "torchio Queue"), held]
    ]  # fmt: skip
    assert figures("a convolution over a volume") == [["1"], longer("torchio"), longer("MONAI, in memory")]
    assert figures("cells of digital tissue") == [[f1["cell detector"]], [f1["cellfinder, detection alone"]]]
    assert f"{slower('uniform-1', 'blosc2 (nnU-Net style)')} times slower" in README.read_text("utf-8")


def test_every_make_target_and_command_exists():
    """Targets of the Makefile and commands of the command line."""
    from mrhdata.cli import app

    text = README.read_text("utf-8")
    makefile = (README.parent / "Makefile").read_text("utf-8")
    for target in re.findall(r"make (\w+)", text):
        assert f"\n{target}:" in makefile
    known = {c.name or c.callback.__name__ for c in app.registered_commands} | {g.name for g in app.registered_groups}
    commands = re.findall(r"^(?:    )?(?:\.venv/bin/)?mrhdata ([\w-]+)", text, flags=re.MULTILINE)
    assert commands
    assert set(commands) <= known
