"""What README says is true: its Python runs, in order, in one folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.running import run

README = Path(__file__).parents[1] / "README.md"


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
