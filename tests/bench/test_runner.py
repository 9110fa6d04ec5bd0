"""Tasks, manifests and runs, on tiny volumes and methods of the tests' own."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import mrhdata
from mrhdata.bench import read_task, run_bench, sections, standings
from mrhdata.bench.api import KINDS, METHODS, method
from mrhdata.bench.runner import read_results
from mrhdata.bench.tasks import tasks_of
from mrhdata.cli import app
from mrhdata.datasets import catalog
from mrhdata.errors import DataError
from mrhdata.viz.report import write_markdown, write_page

TASK = """
title = "A tiny histology"
kind = "histology"
block_mm = [4, 4, 4]
voxels = 300
[data]
phantom = "mouse"
settings = { spacing_mm = 0.9 }
inputs = ["T2w", "MTR"]
truth = "mbp"
mask = "mask"
[split]
training = [1, 2]
validation = [3]
test = [4, 5]
[settings]
positive = "above"
percentile = 70
"""

#: A method as a user would write it: a line in a file for every fit, and a plain least-squares fit.
OWN = """
from pathlib import Path
import numpy as np
from mrhdata.bench.api import channels, method

@method("tiny line", "histology")
def line(given):
    with (given.folder.parents[1] / "fits.txt").open("a") as file:
        file.write("fit\\n")
    x, y = given.rows()
    weights, *_ = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)
    def answer(subject):
        assert subject.target is None
        held = channels(subject)
        return subject.first.copy(data=held @ weights[:-1] + weights[-1])
    return answer

@method("tiny mean", "histology", baseline=True)
def mean(given):
    _, y = given.rows()
    return lambda subject: subject.first.copy(data=np.full(subject.first.shape, y.mean()))

@method("tiny failure", "histology")
def failure(given):
    raise ValueError("no fit")
"""


#: A method that says who runs it, and goes on for a minute.
SLOW = """
import os, time
from mrhdata.bench.api import method

@method("tiny sleep", "histology")
def sleep(given):
    (given.folder / "pid").write_text(str(os.getpid()))
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with one task and a file of methods."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "tiny.toml").write_text(TASK)
    (folder / "own.py").write_text(OWN)
    return folder


@pytest.fixture(autouse=True)
def no_entries_left():
    """Methods of one test are not those of the next."""
    held = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(held)


def phantoms_in(work, home):
    """Those that were made for the first test."""
    (home / "phantoms").mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    if not (work / "phantoms").exists():
        (work / "phantoms").symlink_to(home / "phantoms")


def run(home, work, methods=("tiny line", "tiny mean"), **options):
    """The bench in this process, with phantoms that are made once."""
    phantoms_in(work, home)
    return run_bench(home, work, methods=methods, files=[home / "own.py"], **({"jobs": 0, "progress": False} | options))


def scores(made):
    """What must not hang on time or place."""
    kept = ("method", "estimates", "replicates", "blocks")
    return json.dumps([{k: r[k] for k in kept} for r in made.records], sort_keys=True)


@pytest.fixture(scope="module")
def made(home, tmp_path_factory):
    """One whole bench, and its folder."""
    work = tmp_path_factory.mktemp("work")
    held = dict(METHODS)
    result = run(home, work)
    METHODS.clear()
    METHODS.update(held)
    return result, work


def test_scores_are_those_of_the_answers(made):
    """A mean ranks nothing; a fit of the training brains does better than it, and the table says by how much."""
    records = {r["method"]: r for r in made[0].records}
    assert records["tiny mean"]["estimates"]["AUC"] == 0.5
    assert records["tiny line"]["estimates"]["AUC"] > 0.9
    table = standings(made[0].records)
    assert table["method"].tolist() == ["tiny line", "tiny mean"]
    best = table.iloc[0]
    assert best["low"] < best["value"] < best["high"]
    assert best["difference"] == pytest.approx(best["value"] - 0.5)
    assert best["p"] < 0.05
    assert np.isnan(table.iloc[1]["p"])


def test_two_runs_are_equal_and_a_third_is_read(home, made, tmp_path):
    """Equal bit for bit in another folder; nothing is made twice in the same one."""
    again = run(home, tmp_path / "other")
    assert scores(again) == scores(made[0])
    fits = (tmp_path / "other" / "fits.txt").read_text("utf-8")
    assert scores(run(home, tmp_path / "other")) == scores(made[0])
    assert (tmp_path / "other" / "fits.txt").read_text("utf-8") == fits


def test_interrupted_and_resumed(home, made, tmp_path):
    """Killed after the first method and within the line of the second: what was left is made, nothing else changes."""
    run(home, tmp_path, methods=("tiny mean",))
    results = tmp_path / "results.jsonl"
    with results.open("a") as file:
        file.write('{"key": "cut')
    resumed = run(home, tmp_path)
    assert scores(resumed) == scores(made[0])
    assert len(read_results(results)) == 2


@pytest.mark.full
def test_a_bench_that_is_killed_leaves_no_run_behind(home, tmp_path):
    """Each run is a process of its own, and ends with the one that started it."""
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW)
    how = {"methods": ["tiny sleep"], "files": [str(slow)], "progress": False}
    code = f"from mrhdata.bench import bench; bench({str(home)!r}, {str(tmp_path)!r}, **{how!r})"
    with subprocess.Popen([sys.executable, "-c", code]) as started:
        found = (tmp_path / "runs").glob("tiny-tiny-sleep-0-*/pid")
        wait_until(lambda: any(noted.read_text("utf-8") for noted in (tmp_path / "runs").glob("*/pid")))
        started.kill()
    (noted,) = found
    words = Path("/proc") / noted.read_text("utf-8") / "cmdline"
    # Of a process that has ended, and that nobody waits for, the number may be left.
    wait_until(lambda: not words.exists() or not words.read_bytes())


def wait_until(done, seconds=200):
    """Asked ten times a second."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_another_manifest_or_method_is_another_result(home, tmp_path):
    """A changed file of methods is run anew; a changed volume is refused with both values."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.toml").write_text(TASK)
    (tmp_path / "own.py").write_text(OWN)
    phantoms_in(tmp_path / "work", home)
    first = run(tmp_path, tmp_path / "work", methods=("tiny line",))
    (tmp_path / "own.py").write_text(OWN.replace("+ weights[-1]", "+ weights[-1] + 1"))
    changed = run(tmp_path, tmp_path / "work", methods=("tiny line",))
    assert scores(changed) != scores(first)
    path = tmp_path / "manifests" / "tiny.json"
    kept = json.loads(path.read_text("utf-8"))
    kept["volumes"]["4"]["truth"]["mean"] += 1
    path.write_text(json.dumps(kept))
    with pytest.raises(DataError, match="bring the volumes back"):
        run(tmp_path, tmp_path / "work", methods=("tiny line",))


@pytest.mark.parametrize(
    "change",
    [
        ("percentile = 70", "percentile = 30"),
        ('"above"', '"below"'),
        ("[4, 4, 4]", "[2, 2, 2]"),
        ("training = [1, 2]\nvalidation = [3]\ntest = [4, 5]", "training = [4, 2]\nvalidation = [3]\ntest = [1, 5]"),
    ],
)
def test_an_edited_task_is_refused_and_then_made_anew(home, tmp_path, change):
    """Its old scores are not taken for new ones, nor is what a method left in its folder taken up again."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.toml").write_text(TASK)
    phantoms_in(tmp_path / "work", home)
    (tmp_path / "own.py").write_text(OWN)
    first = run(tmp_path, tmp_path / "work", methods=("tiny line",))
    assert change[0] in TASK
    (tmp_path / "tasks" / "tiny.toml").write_text(TASK.replace(*change))
    with pytest.raises(DataError, match="tiny was edited since"):
        run(tmp_path, tmp_path / "work", methods=("tiny line",))
    (tmp_path / "manifests" / "tiny.json").unlink()
    again = run(tmp_path, tmp_path / "work", methods=("tiny line",))
    assert scores(again) != scores(first)
    assert len(list((tmp_path / "work" / "runs").iterdir())) == 2
    fresh = run(tmp_path, tmp_path / "fresh", methods=("tiny line",))
    assert scores(fresh) == scores(again)


def test_a_method_that_fails_is_a_row(home, tmp_path):
    """The others are scored, the page says what went wrong, and the command ends with 2."""
    result = run(home, tmp_path, methods=("tiny mean", "tiny failure"))
    parts = sections(result, tmp_path)
    assert any("tiny failure failed: ValueError: no fit" in text for text in parts[0].text)
    write_page(tmp_path / "page.html", "Bench", parts)
    write_markdown(tmp_path / "page.md", "Bench", parts)
    assert "tiny mean (baseline)" in (tmp_path / "page.md").read_text("utf-8")
    assert 'alt="A tiny histology' in (tmp_path / "page.html").read_text("utf-8")
    told = ["bench", str(home), "--out", str(tmp_path), "--method-file", str(home / "own.py"), "--jobs", "0"]
    ended = CliRunner().invoke(app, [*told, "--method", "tiny failure"])
    assert isinstance(ended.exception, DataError)
    assert "1 of 1 methods failed" in str(ended.exception)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("test = [4, 5]", "test = [4, 1]"), "subject 1 is in training and in test"),
        (('kind = "histology"', 'kind = "poetry"'), "kind is one of"),
        (("test = [4, 5]", "test = []"), "no subjects for"),
        (('phantom = "mouse"', 'phantom = "unicorn"'), "phantom is one of mouse"),
        (('truth = "mbp"', 'truth = "gold"'), "has no"),
        (("voxels = 300", "pixels = 300"), "no fields of a task"),
        (("block_mm = [4, 4, 4]", "block_mm = [4, 4]"), "three lengths"),
        (('title = "A tiny', 'title = A tiny'), "is not TOML"),
    ],
)  # fmt: skip
def test_tasks_that_are_of_no_use(home, tmp_path, change, told):
    """One sentence each."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.toml").write_text(TASK.replace(*change))
    phantoms_in(tmp_path / "work", home)
    with pytest.raises(DataError, match=told):
        run_bench(tmp_path, tmp_path / "work", methods=["tiny mean"], files=[home / "own.py"], jobs=0, progress=False)


def listed(folder: Path, volumes) -> str:
    """A task of a catalogue of the given subjects."""
    entries = {}
    for who, volume in volumes.items():
        for role, data in (("image", volume), ("truth", (volume * 2).rename("truth"))):
            mrhdata.write(data, folder / f"{who}-{role}.zarr")
            entries[f"{who}_{role}"] = (f"{who}-{role}.zarr", {"subject": who, "role": role})
    catalog.write(folder / "catalog.yaml", "Test", entries)
    return (
        'title = "A catalogue"\nkind = "histology"\nblock_mm = [4, 4, 4]\nvoxels = 20\n[data]\n'
        'catalog = "catalog.yaml"\ninputs = ["image"]\ntruth = "truth"\n'
        '[settings]\npositive = "above"\npercentile = 50\n'
    )


def volume(seed: int):
    """Noise."""
    noise = np.random.default_rng(seed).random((8, 12, 12)).astype(np.float32)
    return mrhdata.volume.from_array(noise, spacing=(1, 1, 1), name="image")


@pytest.mark.parametrize("copy", ["same", "mirrored", "turned"])
def test_a_planted_copy_is_refused(home, tmp_path, copy):
    """A training brain under another name among the test brains, as it is, mirrored or turned."""
    first = volume(1)
    planted = {"same": first.values, "mirrored": first.values[:, :, ::-1], "turned": first.values.transpose(0, 2, 1)}
    brains = {"a": first, "b": volume(2), "c": volume(3), "d": first.copy(data=planted[copy].copy())}
    text = listed(tmp_path, brains) + '[split]\ntraining = ["a"]\nvalidation = ["b"]\ntest = ["c", "d"]\n'
    (tmp_path / "leak.toml").write_text(text)
    with pytest.raises(DataError, match=r"subjects a \(training\) and d \(test\) hold the same values"):
        run_bench(tmp_path, tmp_path / "work", methods=["tiny mean"], files=[home / "own.py"], jobs=0, progress=False)


@pytest.mark.parametrize(("test", "fails"), [([6, 8], False), ([5, 8], True), ([3, 8], True)])
def test_parts_of_one_volume_keep_a_guard(home, tmp_path, test, fails):
    """Planes of one brain: apart by the guard, nearer than it, and overlapping."""
    text = listed(tmp_path, {"a": volume(1), "b": volume(2)}) + (
        f'[split]\nguard_mm = 2\ntraining = [{{ subject = "a", z = [0, 4] }}]\nvalidation = ["b"]\n'
        f'test = [{{ subject = "a", z = {test} }}]\n'
    )
    (tmp_path / "parts.toml").write_text(text)
    options = {"methods": ["tiny mean"], "files": [home / "own.py"], "jobs": 0, "progress": False}
    if fails:
        with pytest.raises(DataError, match="share voxels"):
            run_bench(tmp_path, tmp_path / "work", **options)
    else:
        assert "error" not in run_bench(tmp_path, tmp_path / "work", **options).records[0]


def test_names_are_checked(home, tmp_path):
    """Of methods, tasks and kinds."""
    with pytest.raises(DataError, match="there are no methods"):
        run(home, tmp_path, methods=("none such",))
    with pytest.raises(DataError, match=r"there are no tasks \['other'\]"):
        run(home, tmp_path, tasks=["other"])
    with pytest.raises(DataError, match="a method is for one or more"):
        method("nothing", "poetry")(print)
    with pytest.raises(DataError, match="is no file"):
        run_bench(home, tmp_path, files=[tmp_path / "missing.py"], jobs=0)


def test_the_tasks_that_are_shipped_are_well_formed():
    """Each is read in both forms, and every kind has one."""
    folder = Path(__file__).parents[2] / "benchmarks" / "tasks"
    tasks = [read_task(file) for file in folder.glob("*.toml")]
    assert {task.kind for task in tasks_of(folder, quick=True)} == {task.kind for task in tasks} == set(KINDS)
    assert all((folder / task.data["catalog"]).exists() for task in tasks if "catalog" in task.data)


def test_a_task_whose_data_are_elsewhere_is_left_out(tmp_path, caplog):
    """With a warning that names the folder; asked for by name it is read all the same."""
    (tmp_path / "far.toml").write_text('needs = "nowhere"\n' + TASK)
    assert tasks_of(tmp_path) == []
    assert "far is left out" in caplog.text
    assert [task.name for task in tasks_of(tmp_path, only=["far"])] == ["far"]
    with pytest.raises(DataError, match="no quick form"):
        read_task(tmp_path / "far.toml", quick=True)
