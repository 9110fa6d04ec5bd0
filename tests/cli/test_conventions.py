"""How the command line behaves: help, names of options, mistakes, Ctrl-C."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from typer import BadParameter
from typer.main import get_command

import mrhdata
from mrhdata.cli import app
from mrhdata.io import conversion
from mrhdata.io.omezarr import resumable
from mrhdata.models.spec import IntensityScale
from mrhdata.training import loop
from mrhdata.volume.construct import from_array
from tests.conftest import command as typed


def commands():
    """Words that name a command, and the command."""
    for name, command in get_command(app).commands.items():
        nested = getattr(command, "commands", None)
        yield from {(name,): command}.items() if nested is None else (((name, n), c) for n, c in nested.items())


#: What a parser raises for words that it does not know.
UsageError = BadParameter.__base__
COMMANDS = dict(commands())
EXAMPLES = [line.strip() for c in COMMANDS.values() for line in c.epilog.splitlines() if line.startswith("  ")]


def parsed(line):
    """Parse a line as the command that it names would; nothing is run."""
    _, *words = shlex.split(line)
    depth = 2 if words[0] == "catalog" else 1
    return COMMANDS[tuple(words[:depth])].make_context("mrhdata", words[depth:])


@pytest.mark.parametrize("line", EXAMPLES)
def test_examples_can_be_typed(line):
    """Every example has the arguments that its command wants, and options that exist."""
    assert parsed(line).params


@pytest.mark.parametrize(
    "line", ["mrhdata info a.nii --axis PIR", "mrhdata diff a.nii", "mrhdata train net --epochs x"]
)
def test_examples_that_went_stale_are_found(line):
    with pytest.raises(UsageError):
        parsed(line)


def test_help_ends_with_examples_and_loads_nothing_heavy():
    """All commands in one fresh interpreter: text, examples as last lines, and what was imported."""
    paths = [["mrhdata", *words, "--help"] for words in [(), ("catalog",), *COMMANDS]]
    code = f"""
import sys
from mrhdata.cli import main
for sys.argv in {paths!r}:
    try:
        main()
    except SystemExit as end:
        assert end.code == 0
    print("=====")
print([m for m in ("torch", "xarray", "zarr", "dask", "pandas", "numpy", "matplotlib") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *pages, heavy = done.stdout.split("=====\n")
    assert heavy.strip() == "[]"
    for words, page in zip(COMMANDS, pages[2:], strict=True):
        assert page.rstrip().splitlines()[-1].startswith(f"    mrhdata {' '.join(words)}"), page


def test_one_name_for_one_thing():
    """Every command answers in JSON too, and options of one name say one thing in all commands."""
    said = {}
    for words, command in COMMANDS.items():
        assert any("--json" in p.opts for p in command.params), words
        for option in (p for p in command.params if p.opts[0].startswith("--")):
            said.setdefault(option.opts[0], set()).add(option.help)
    for name in (
        *("--json", "--overwrite", "--memory", "--device", "--seed", "--epochs", "--skip-corrupt"),
        *("--axes", "--unit", "--spacing", "--spacing-mm", "--origin", "--space", "--kind", "--dataset"),
    ):
        expected = 2 if name == "--kind" else 1  # of a volume; and of a registration
        assert len(said[name]) == expected, (name, said[name])


def test_completion():
    """What a shell asks for when a person types ``mrhdata con`` and the tab key."""
    asked = {"_MRHDATA_COMPLETE": "complete_bash", "COMP_WORDS": "mrhdata con", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['mrhdata']; from mrhdata.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["convert"], done.stderr


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("info {folder}", "holds neither TIFF"),
        ("info {folder}/no/such/file.nii", "does not exist"),
        ("convert a.nii {folder}/no/such/b.zarr", "does not exist"),
        ("catalog check {folder}", "Is a directory"),
        ("catalog list {folder}/text.txt", "must be a mapping"),
        ("predict {folder} out.zarr a.nii", "is not a model folder"),
        ("predict {folder}/text.txt out.zarr a.nii", "is not a model folder"),
        ("train-labels net {folder} --input t1w=T1w --labels seg --recipe best", "no file of"),
        ("fetch nothing", "must be a published volume; got 'nothing'"),
        ("count {folder} a.nii c.csv", "no ending that is known for points"),
    ],
)
def test_mistakes_are_one_sentence(line, sentence, tmp_path, monkeypatch):
    """Exit code 2 and one line on stderr."""
    monkeypatch.chdir(tmp_path)
    mrhdata.write(from_array(np.ones((2, 3, 4), np.float32), spacing=(1, 1, 1)), "a.nii")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "text.txt").write_text("no mapping")
    code, out, err = typed(*line.format(folder=folder).split())
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.startswith("mrhdata: ")
    assert len(err.splitlines()) == 1


def test_warnings_say_that_they_are(tmp_path):
    """Those of the log and those of commands; the command does what it was asked to."""
    model = mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1)
    scale = IntensityScale((0.0,), (1.0,))
    model.spec = replace(
        model.spec, channels=("a",), patch=(1, 3, 3), axis=0, spacing_mm=(1.0,) * 3, inputs=scale, target=scale
    )
    mrhdata.models.save(model, tmp_path / "net")
    values = np.random.default_rng(0).normal(0, 1, (4, 8, 8)).astype(np.float32)
    mrhdata.write(from_array(values, spacing=(2, 2, 2)), tmp_path / "a.nii")
    code, _, err = typed("predict", tmp_path / "net", tmp_path / "m.zarr", tmp_path / "a.nii", "--no-progress")
    assert (code, err.startswith("mrhdata: warning: a has voxels of 2 x 2 x 2 mm")) == (0, True), err
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    # In a process of its own: here the log is pytest's.
    code = (
        f"import sys; sys.argv = ['mrhdata', 'info', {str(tmp_path / 'a.tif')!r}]; from mrhdata.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.startswith("mrhdata: warning: ")) == (0, True), done.stderr


def test_a_file_that_may_not_be_opened_is_one_sentence(monkeypatch):
    """An error of the operating system that no module of ours foresaw."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "brain.nii")

    monkeypatch.setattr("mrhdata.io.inspection.inspect", refuse)
    assert typed("info", "brain.nii") == (2, "", "mrhdata: brain.nii: Permission denied\n")


def test_a_conversion_goes_on_after_ctrl_c(tmp_path, monkeypatch):
    """The message says how, and only what is left is made."""
    values = np.random.default_rng(0).integers(0, 999, (96, 128, 128)).astype(np.uint16)
    mrhdata.write(from_array(values, spacing=(1, 1, 1)), tmp_path / "a.nii")
    words = ("convert", tmp_path / "a.nii", tmp_path / "a.zarr", "--memory", "10 MB", "--json")
    note, made = resumable._Journal.note, []

    def noted(journal, level, index, filled):
        note(journal, level, index, filled)
        made.append((level, index))
        if len(made) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(resumable._Journal, "note", noted)
    code, out, err = typed(*words)
    assert (code, out) == (130, "")
    assert err == "mrhdata: interrupted; run the same command again to go on\n"
    assert not (tmp_path / "a.zarr").exists()
    code, out, _ = typed(*words)
    assert code == 0
    assert json.loads(out)["shape"] == {"z": 96, "y": 128, "x": 128}
    assert len(made) == len(set(made)) > 1
    np.testing.assert_array_equal(mrhdata.read(tmp_path / "a.zarr"), values)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii", "a.zarr"]


def test_a_training_goes_on_after_ctrl_c(tmp_path, monkeypatch):
    """It ends as one that was not interrupted."""
    rng = np.random.default_rng(0)
    for name in ("t2", "af"):
        mrhdata.write(
            from_array(rng.random((6, 20, 8)).astype(np.float32), spacing=(1, 1, 1)), tmp_path / f"{name}.nii"
        )
    epoch, runs = loop._Run.epoch, []

    def counted(run, *patches):
        runs.append(run.settings.epochs)
        if len(runs) == 3:
            raise KeyboardInterrupt
        epoch(run, *patches)

    monkeypatch.setattr(loop._Run, "epoch", counted)

    def train(out, *more):
        given = [tmp_path / "af.nii", f"t2={tmp_path / 't2.nii'}", "--blocks", 1, "--epochs", 4]
        return typed("train", tmp_path / out, *given, *more)

    code, _, err = train("net")
    assert code == 130
    assert "run the same command again to go on" in err
    assert not (tmp_path / "net").exists()
    assert train("net")[0] == 0
    # Two, the one that was interrupted, and the two that were left.
    assert len(runs) == 5
    # What is finished does not go on.
    code, _, err = train("net")
    assert (code, len(runs)) == (2, 5)
    assert "net holds the network of a training that is finished" in err
    assert "train it anew with --overwrite, or choose another name" in err
    assert train("whole")[0] == 0
    first, second = (json.loads((tmp_path / n / "history.json").read_text("utf-8")) for n in ("net", "whole"))
    assert first["validation"] == second["validation"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_no_progress_is_silent(tmp_path):
    """Neither bars nor words where they are not asked for; bars where they are."""
    mrhdata.write(from_array(np.ones((4, 5, 6), np.float32), spacing=(1, 1, 1)), tmp_path / "a.nii")
    words = ("convert", tmp_path / "a.nii", tmp_path / "a.zarr", "--overwrite", "--space", "A")
    assert typed(*words, "--no-progress")[2] == ""
    assert typed(*words[:-1], "B", "--progress")[2] != ""
    assert conversion.convert(tmp_path / "a.nii", tmp_path / "b.zarr").shape == (4, 5, 6)
