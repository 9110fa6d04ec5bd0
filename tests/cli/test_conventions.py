"""How the command line behaves: help, names of options, user errors, Ctrl-C."""

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

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
from mrhdata.training.run import TrainingRun
from mrhdata.volume.construct import from_array
from tests.conftest import command as typed

MAIN = get_command(app)
GROUPS = {(name,): c for name, c in MAIN.commands.items() if hasattr(c, "commands")}


def commands():
    """Yield the words that name a command, and the command."""
    for name, command in MAIN.commands.items():
        nested = getattr(command, "commands", None)
        yield from {(name,): command}.items() if nested is None else (((name, n), c) for n, c in nested.items())


#: Exception of the parser for unknown words.
UsageError = BadParameter.__base__
COMMANDS = dict(commands())
EXAMPLES = [line.strip() for c in COMMANDS.values() for line in c.epilog.splitlines() if line.startswith("  ")]


def parsed(line):
    """Parse a line as the command that it names would; nothing is run."""
    _, *words = shlex.split(line)
    depth = 2 if (words[0],) in GROUPS else 1
    return COMMANDS[tuple(words[:depth])].make_context("mrhdata", words[depth:])


@pytest.mark.parametrize("line", EXAMPLES)
def test_examples_can_be_typed(line):
    """Every example has the arguments of its command, and options that exist."""
    assert parsed(line).params


def test_commands_of_the_documentation_can_be_typed():
    """Lines of code blocks, and code in sentences if it has more words than the name of a command."""
    root = Path(__file__).parents[2]
    count = 0
    for page in (root / "README.md", *sorted((root / "docs").glob("**/*.md"))):
        text = page.read_text("utf-8").replace("\\\n", " ")
        lines = re.findall(r"^(?:    )?(?:\.venv/bin/)?(mrhdata .*)$", text, flags=re.MULTILINE)
        lines += [code for code in re.findall(r"`(mrhdata [^`]*)`", text) if len(code.split()) > 3]
        for line in lines:
            assert parsed(re.sub(r"\s+# .*", "", line)).params is not None, line
        count += len(lines)
    assert count > 30


@pytest.mark.parametrize(
    "line",
    [
        "mrhdata info a.nii --axis PIR",
        "mrhdata diff a.nii",
        "mrhdata convert a.nii a.zarr",
        "mrhdata train segmentation study -o net --epochs x",
    ],
)
def test_outdated_examples_are_refused(line):
    with pytest.raises(UsageError):
        parsed(line)


def test_every_command_that_writes_takes_out():
    """The output is the option -o or --out, never a positional argument."""
    without = {words for words, c in COMMANDS.items() if not any(p.opts == ["--out", "-o"] for p in c.params)}
    assert without == {
        ("info",),
        ("diff",),
        ("verify",),
        ("catalog", "list"),
        ("catalog", "check"),
        ("models", "list"),
        ("doctor",),
    }
    assert not any(p.name == "out" for c in COMMANDS.values() for p in c.params if p.param_type_name == "argument")


def test_help_lists_commands_under_headings_without_cutting_lines(monkeypatch):
    """The order is that of the work, and at 80 columns each command has one whole line that ends with a period."""
    monkeypatch.setenv("COLUMNS", "80")
    code, page, _ = typed("--help")
    assert code == 0
    headings = re.findall(r"^(\S.*):$", page, flags=re.MULTILINE)
    assert headings == [
        "Options", "Volumes", "Data sets", "Registration", "Training", "Prediction", "Analysis",
        "Demonstration and benchmark",
    ]  # fmt: skip
    groups = {(): MAIN, **GROUPS}
    assert len(groups) == 5
    for words, group in groups.items():
        page = typed(*words, "--help")[1]
        assert max(map(len, page.splitlines())) <= 80
        listed = [name for names in type(group).panels.values() for name in names]
        assert sorted(listed) == sorted(group.commands)
        for name in listed:
            (line,) = re.findall(rf"^  {name} +(.*)$", page, flags=re.MULTILINE)
            assert line == inspect.cleandoc(group.commands[name].help).partition("\n\n")[0]
            assert line.endswith(".")


#: First words that say a relation, not a thing or an action.
RELATIONS = re.compile(
    r"(?:Of|What|Where|Whose|Those|Who|Which|Such|As|So|From|To|In|On|At|For|With|Without|If|When|By|Also|Only|Its)\b"
)


@pytest.mark.parametrize("words", [*COMMANDS, *GROUPS], ids=" ".join)
def test_help_texts_begin_with_a_noun_or_a_verb(words):
    """Commands, arguments and options have a text that begins with a capital letter and ends with a period."""
    command = COMMANDS.get(words) or GROUPS[words]
    texts = {"the command": inspect.cleandoc(command.help)}
    texts |= {p.opts[0]: p.help for p in command.params if p.opts[0] != "--help"}
    assert len(texts) > (words in COMMANDS)
    for name, text in texts.items():
        assert text, name
        assert text[0].isupper(), (name, text)
        assert not RELATIONS.match(text), (name, text)
        assert text.endswith("."), (name, text)


def test_version_is_printed():
    assert re.fullmatch(r"mrhdata \d+\.\d+\S*\n", typed("--version")[1])


def test_help_ends_with_examples_and_loads_nothing_heavy():
    """All commands in one fresh interpreter: examples are the last lines, and no large library is imported."""
    paths = [["mrhdata", *words, "--help"] for words in [(), *GROUPS, *COMMANDS]]
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
    for words, page in zip(COMMANDS, pages[1 + len(GROUPS) :], strict=True):
        assert page.rstrip().splitlines()[-1].startswith(f"    mrhdata {' '.join(words)}"), page


def test_options_of_one_name_mean_one_thing():
    """Every command answers in JSON too; options of one name have one help, except those listed here."""
    helps = {}
    for words, command in COMMANDS.items():
        assert any("--json" in p.opts for p in command.params), words
        for option in (p for p in command.params if p.opts[0].startswith("--")):
            helps.setdefault(option.opts[0], set()).add(option.help)
    several = {name: len(texts) for name, texts in helps.items() if len(texts) > 1 and name != "--out"}
    assert several == {
        "--mask": 3,  # a file, a file or "stored", a pattern of a study
        "--kind": 2,  # of a volume, of a registration
        "--split": 2,  # three parts, or any
        "--threshold": 3,  # of the histology, of a mask, of a score
        "--histology": 4,
        "--recipe": 3,
        "--positive": 2,  # once, or once per histology
        "--task": 2,  # of a network, of the benchmark
        "--licence": 2,
        "--title": 2,
        "--transform": 2,  # of a volume, of cells
        "--like": 2,
        "--precision": 2,  # of a network, of a training
        "--progress": 2,  # bars, or printed steps
    }


def test_completion():
    """A shell completes ``mrhdata con`` and the tab key."""
    request = {"_MRHDATA_COMPLETE": "complete_bash", "COMP_WORDS": "mrhdata con", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['mrhdata']; from mrhdata.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | request, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["convert"], done.stderr


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("info {folder}", "contains neither TIFF"),
        ("info {folder}/no/such/file.nii", "does not exist"),
        ("convert a.nii -o {folder}/no/such/b.zarr", "does not exist"),
        ("catalog check {folder}", "Is a directory"),
        ("catalog list {folder}/text.txt", "must be a mapping"),
        ("predict {folder} a.nii -o out.zarr", "is not a model folder"),
        ("predict {folder}/text.txt a.nii -o out.zarr", "is not a model folder"),
        ("train segmentation {folder} -o net --input t1w=T1w --labels seg --recipe best", "no file of"),
        ("fetch nothing", "must be a published volume; got 'nothing'"),
        ("count {folder} a.nii -o c.csv", "no known ending for points"),
    ],
)
def test_user_errors_are_one_sentence(line, sentence, tmp_path, monkeypatch):
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


def test_warnings_are_marked_as_such(tmp_path):
    """Warnings of commands and of the log begin with "warning", and the command continues."""
    model = mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1)
    scale = IntensityScale((0.0,), (1.0,))
    model.spec = replace(
        model.spec, channels=("a",), patch=(1, 3, 3), axis=0, spacing_mm=(1.0,) * 3, inputs=scale, target=scale
    )
    mrhdata.models.save(model, tmp_path / "net")
    values = np.random.default_rng(0).normal(0, 1, (4, 8, 8)).astype(np.float32)
    mrhdata.write(from_array(values, spacing=(2, 2, 2)), tmp_path / "a.nii")
    code, _, err = typed("predict", tmp_path / "net", tmp_path / "a.nii", "-o", tmp_path / "m.zarr", "--no-progress")
    assert (code, err.startswith("mrhdata: warning: a has voxels of 2 x 2 x 2 mm")) == (0, True), err
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    # A process of its own, because pytest captures the log of this one.
    code = (
        f"import sys; sys.argv = ['mrhdata', 'info', {str(tmp_path / 'a.tif')!r}]; from mrhdata.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.startswith("mrhdata: warning: ")) == (0, True), done.stderr


def test_errors_of_the_operating_system_are_one_sentence(monkeypatch):

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "brain.nii")

    monkeypatch.setattr("mrhdata.io.inspection.inspect", refuse)
    assert typed("info", "brain.nii") == (2, "", "mrhdata: brain.nii: Permission denied\n")


def test_conversion_resumes_after_ctrl_c(tmp_path, monkeypatch):
    """The message names the remedy; the second run writes only the remaining blocks."""
    values = np.random.default_rng(0).integers(0, 999, (96, 128, 128)).astype(np.uint16)
    mrhdata.write(from_array(values, spacing=(1, 1, 1)), tmp_path / "a.nii")
    words = ("convert", tmp_path / "a.nii", "-o", tmp_path / "a.zarr", "--memory", "10 MB", "--json")
    note, blocks = resumable._Journal.note, []

    def interrupt_after_first(journal, level, index, filled):
        note(journal, level, index, filled)
        blocks.append((level, index))
        if len(blocks) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(resumable._Journal, "note", interrupt_after_first)
    code, out, err = typed(*words)
    assert (code, out) == (130, "")
    assert err == "mrhdata: interrupted; run the same command again to resume\n"
    assert not (tmp_path / "a.zarr").exists()
    code, out, _ = typed(*words)
    assert code == 0
    assert json.loads(out)["shape"] == {"z": 96, "y": 128, "x": 128}
    assert len(blocks) == len(set(blocks)) > 1
    np.testing.assert_array_equal(mrhdata.read(tmp_path / "a.zarr"), values)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii", "a.zarr"]


def test_training_resumes_after_ctrl_c(tmp_path, monkeypatch):
    """An interrupted training ends as one that was not interrupted; a finished one is not repeated."""
    rng = np.random.default_rng(0)
    for name in ("t2", "af"):
        mrhdata.write(
            from_array(rng.random((6, 20, 8)).astype(np.float32), spacing=(1, 1, 1)), tmp_path / f"{name}.nii"
        )
    epoch, runs = TrainingRun.epoch, []

    def interrupt_third(run, *patches):
        runs.append(run.settings.epochs)
        if len(runs) == 3:
            raise KeyboardInterrupt
        epoch(run, *patches)

    monkeypatch.setattr(TrainingRun, "epoch", interrupt_third)

    def train(out, *more):
        words = [f"t2={tmp_path / 't2.nii'}", "--histology", tmp_path / "af.nii", "--loop-blocks", 1, "--epochs", 4]
        return typed("train", "histology", *words, "-o", tmp_path / out, *more)

    code, _, err = train("net")
    assert code == 130
    assert "run the same command again to resume" in err
    assert not (tmp_path / "net").exists()
    assert train("net")[0] == 0
    # Two epochs, the interrupted one, and the remaining two.
    assert len(runs) == 5
    code, _, err = train("net")
    assert (code, len(runs)) == (2, 5)
    assert "net holds a network that is already trained; pass --overwrite to train it again, or another --out" in err
    assert train("whole")[0] == 0
    first, second = (json.loads((tmp_path / n / "history.json").read_text("utf-8")) for n in ("net", "whole"))
    assert first["validation"] == second["validation"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_no_progress_is_silent(tmp_path):
    """--no-progress and the Python function print nothing, --progress shows bars."""
    mrhdata.write(from_array(np.ones((4, 5, 6), np.float32), spacing=(1, 1, 1)), tmp_path / "a.nii")
    words = ("convert", tmp_path / "a.nii", "-o", tmp_path / "a.zarr", "--overwrite", "--space", "A")
    assert typed(*words, "--no-progress")[2] == ""
    assert typed(*words[:-1], "B", "--progress")[2] != ""
    assert conversion.convert(tmp_path / "a.nii", tmp_path / "b.zarr").shape == (4, 5, 6)


def test_the_page_of_the_commands_has_what_help_prints():
    """Every command, its first line, and each of its arguments and options."""
    from docs.commands import page

    sections = dict(re.findall(r"^### mrhdata ([\w -]+)\n(.*?)(?=^###? |\Z)", page(), flags=re.DOTALL | re.MULTILINE))
    listed = {" ".join((*words, name)) for words, group in {(): MAIN, **GROUPS}.items() for name in group.commands}
    assert set(sections) == listed - {words[0] for words in GROUPS}
    for words, section in sections.items():
        text = typed(*words.split(), "--help")[1]
        options = set(re.findall(r"^ {2}(?:-\w, )?(--[\w-]+)", text, flags=re.MULTILINE)) - {"--help"}
        assert options == set(re.findall(r"`(--[\w-]+)`", section)) - set(re.findall(r"`(--no-[\w-]+)`", section)), (
            words
        )
