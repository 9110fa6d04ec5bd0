"""Tasks, manifests and runs on tiny volumes with methods defined here."""

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
from tests.conftest import FULL

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

#: User-defined methods: a least-squares fit that logs every fit in a file, a mean, and a failure.
USER_METHODS = """
from pathlib import Path
import numpy as np
from mrhdata.bench.api import channels, method

@method("tiny line", "histology")
def line(data):
    with (data.folder.parents[1] / "fits.txt").open("a") as file:
        file.write("fit\\n")
    x, y = data.rows()
    weights, *_ = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)
    def answer(subject):
        assert subject.target is None
        contrasts = channels(subject)
        return subject.first.copy(data=contrasts @ weights[:-1] + weights[-1])
    return answer

@method("tiny mean", "histology", baseline=True)
def mean(data):
    _, y = data.rows()
    return lambda subject: subject.first.copy(data=np.full(subject.first.shape, y.mean()))

@method("tiny failure", "histology")
def failure(data):
    raise ValueError("no fit")
"""


#: Method that writes its process number and sleeps for a minute.
SLOW_METHOD = """
import os, time
from mrhdata.bench.api import method

@method("tiny sleep", "histology")
def sleep(data):
    (data.folder / "pid").write_text(str(os.getpid()))
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a folder with one task and a file of methods."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "tiny.toml").write_text(TASK)
    (folder / "own.py").write_text(USER_METHODS)
    return folder


@pytest.fixture(autouse=True)
def restore_methods():
    """Remove the methods that a test registered."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


def link_phantoms(work, home):
    """Share the phantoms of the first test with a work folder."""
    (home / "phantoms").mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    if not (work / "phantoms").exists():
        (work / "phantoms").symlink_to(home / "phantoms")


def run(home, work, methods=("tiny line", "tiny mean"), **options):
    """Run the benchmark in this process, with shared phantoms."""
    link_phantoms(work, home)
    return run_bench(home, work, methods=methods, files=[home / "own.py"], **({"jobs": 0, "progress": False} | options))


def scores(bench):
    """Return the parts of the records that must not depend on time or folder."""
    keys = ("method", "estimates", "replicates", "blocks")
    return json.dumps([{k: r[k] for k in keys} for r in bench.records], sort_keys=True)


@pytest.fixture(scope="module")
def finished_bench(home, tmp_path_factory):
    """Return a finished benchmark."""
    before = dict(METHODS)
    bench = run(home, tmp_path_factory.mktemp("work"))
    METHODS.clear()
    METHODS.update(before)
    return bench


def test_standings_rank_a_fit_above_the_mean(finished_bench):
    """A constant has an AUC of 0.5; a fit is better, and the table has the difference and its p value."""
    records = {r["method"]: r for r in finished_bench.records}
    assert records["tiny mean"]["estimates"]["AUC"] == 0.5
    assert records["tiny line"]["estimates"]["AUC"] > 0.9
    table = standings(finished_bench.records)
    assert table["method"].tolist() == ["tiny line", "tiny mean"]
    best = table.iloc[0]
    assert best["low"] < best["value"] < best["high"]
    assert best["difference"] == pytest.approx(best["value"] - 0.5)
    assert best["p"] < 0.05
    assert np.isnan(table.iloc[1]["p"])


def test_results_are_reproducible_and_not_computed_twice(home, finished_bench, tmp_path):
    """Another folder gives equal scores bit for bit; a second run in one folder fits nothing."""
    again = run(home, tmp_path / "other")
    assert scores(again) == scores(finished_bench)
    fits = (tmp_path / "other" / "fits.txt").read_text("utf-8")
    assert scores(run(home, tmp_path / "other")) == scores(finished_bench)
    assert (tmp_path / "other" / "fits.txt").read_text("utf-8") == fits


def test_interrupted_bench_resumes(home, finished_bench, tmp_path):
    """After a kill within the second line of results, only the missing method runs, and scores are equal."""
    run(home, tmp_path, methods=("tiny mean",))
    results = tmp_path / "results.jsonl"
    with results.open("a") as file:
        file.write('{"key": "cut')
    resumed = run(home, tmp_path)
    assert scores(resumed) == scores(finished_bench)
    assert len(read_results(results)) == 2


@pytest.mark.full
def test_workers_end_when_the_bench_is_killed(home, tmp_path):
    """Each run is a process, which ends with the process that started it (asserted by `wait_until`)."""
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW_METHOD)
    options = {"methods": ["tiny sleep"], "files": [str(slow)], "progress": False}
    code = f"from mrhdata.bench import run_bench; run_bench({str(home)!r}, {str(tmp_path)!r}, **{options!r})"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        wait_until(lambda: any(path.read_text("utf-8") for path in (tmp_path / "runs").glob("*/pid")))
        process.kill()
    (pid_file,) = (tmp_path / "runs").glob("tiny-tiny-sleep-0-*/pid")
    command_line = Path("/proc") / pid_file.read_text("utf-8") / "cmdline"
    # A zombie keeps its entry in /proc with an empty command line.
    wait_until(lambda: not command_line.exists() or not command_line.read_bytes())


def wait_until(done, seconds=200):
    """Check a condition ten times a second, and fail after some time."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.full
def test_changed_method_runs_again_and_changed_volume_is_refused(home, tmp_path):
    """A changed method file runs again; a volume that differs from the manifest raises DataError."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.toml").write_text(TASK)
    (tmp_path / "own.py").write_text(USER_METHODS)
    link_phantoms(tmp_path / "work", home)
    first = run(tmp_path, tmp_path / "work", methods=("tiny line",))
    (tmp_path / "own.py").write_text(USER_METHODS.replace("+ weights[-1]", "+ weights[-1] + 1"))
    changed = run(tmp_path, tmp_path / "work", methods=("tiny line",))
    assert scores(changed) != scores(first)
    path = tmp_path / "manifests" / "tiny.json"
    manifest = json.loads(path.read_text("utf-8"))
    manifest["volumes"]["4"]["truth"]["mean"] += 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="restore the volumes"):
        run(tmp_path, tmp_path / "work", methods=("tiny line",))


EDITS = [
    ("percentile = 70", "percentile = 30"),
    ('"above"', '"below"'),
    ("[4, 4, 4]", "[2, 2, 2]"),
    ("training = [1, 2]\nvalidation = [3]\ntest = [4, 5]", "training = [4, 2]\nvalidation = [3]\ntest = [1, 5]"),
]


@pytest.mark.full
def test_edited_task_is_refused_until_its_manifest_is_deleted(home, tmp_path):
    """Every edit is refused. After the manifest is deleted, no old score or checkpoint is reused.

    One edit, that of the split, runs again; all of them in the long form.
    """
    (tmp_path / "tasks").mkdir()
    link_phantoms(tmp_path / "work", home)
    (tmp_path / "own.py").write_text(USER_METHODS)
    task = tmp_path / "tasks" / "tiny.toml"
    task.write_text(TASK)
    first = run(tmp_path, tmp_path / "work", methods=("tiny line",))
    assert len([edit for edit in EDITS if edit[0] in TASK]) == len(EDITS)
    for edit in EDITS:
        task.write_text(TASK.replace(*edit))
        with pytest.raises(DataError, match="voxels of tiny have changed since"):
            run(tmp_path, tmp_path / "work", methods=("tiny line",))
    for number, edit in enumerate(EDITS if FULL else EDITS[-1:]):
        task.write_text(TASK.replace(*edit))
        (tmp_path / "manifests" / "tiny.json").unlink()
        again = run(tmp_path, tmp_path / "work", methods=("tiny line",))
        assert scores(again) != scores(first)
        assert len(list((tmp_path / "work" / "runs").iterdir())) == 2 + number
        assert scores(run(tmp_path, tmp_path / f"fresh-{number}", methods=("tiny line",))) == scores(again)


def test_failed_method_is_reported_and_others_are_scored(home, tmp_path):
    """The report has the error of the failed method and the scores of the others, and the command raises DataError."""
    result = run(home, tmp_path, methods=("tiny mean", "tiny failure"))
    parts = sections(result, tmp_path)
    assert any("tiny failure failed: ValueError: no fit" in text for text in parts[0].text)
    write_page(tmp_path / "page.html", "Bench", parts)
    write_markdown(tmp_path / "page.md", "Bench", parts)
    assert "tiny mean (baseline)" in (tmp_path / "page.md").read_text("utf-8")
    assert 'alt="A tiny histology' in (tmp_path / "page.html").read_text("utf-8")
    command = ["bench", str(home), "--out", str(tmp_path), "--method-file", str(home / "own.py"), "--jobs", "0"]
    result = CliRunner().invoke(app, [*command, "--method", "tiny failure"])
    assert isinstance(result.exception, DataError)
    assert "1 of 1 methods failed" in str(result.exception)
    result = CliRunner().invoke(app, [*command, "--method", "tiny mean", "--json"])
    (estimates,) = json.loads(result.stdout)["estimates"].values()
    assert {name: sorted(values) for name, values in estimates.items()} == {"tiny mean": ["AUC", "R2", "sensitivity"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("test = [4, 5]", "test = [4, 1]"), "subject 1 is in training and in test"),
        (('kind = "histology"', 'kind = "poetry"'), "kind must be one of"),
        (("test = [4, 5]", "test = []"), "no subjects for"),
        (('phantom = "mouse"', 'phantom = "unicorn"'), "phantom must be one of mouse"),
        (('truth = "mbp"', 'truth = "gold"'), "lacks the volumes"),
        (("voxels = 300", "pixels = 300"), r"unknown fields \['pixels'\]"),
        (("block_mm = [4, 4, 4]", "block_mm = [4, 4]"), "three lengths"),
        (('title = "A tiny', 'title = A tiny'), "is not valid TOML"),
    ],
)  # fmt: skip
def test_invalid_tasks_are_refused(home, tmp_path, change, message):
    """Each mistake in a task raises DataError with its own message."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.toml").write_text(TASK.replace(*change))
    link_phantoms(tmp_path / "work", home)
    with pytest.raises(DataError, match=message):
        run_bench(tmp_path, tmp_path / "work", methods=["tiny mean"], files=[home / "own.py"], jobs=0, progress=False)


def write_catalogue_task(folder: Path, volumes) -> str:
    """Write a catalogue of subjects, and return the text of a task of it without its split."""
    entries = {}
    for subject, volume in volumes.items():
        for role, data in (("image", volume), ("truth", (volume * 2).rename("truth"))):
            mrhdata.write(data, folder / f"{subject}-{role}.zarr")
            entries[f"{subject}_{role}"] = (f"{subject}-{role}.zarr", {"subject": subject, "role": role})
    catalog.write(folder / "catalog.yaml", "Test", entries)
    return (
        'title = "A catalogue"\nkind = "histology"\nblock_mm = [4, 4, 4]\nvoxels = 20\n[data]\n'
        'catalog = "catalog.yaml"\ninputs = ["image"]\ntruth = "truth"\n'
        '[settings]\npositive = "above"\npercentile = 50\n'
    )


def noise_volume(seed: int):
    """Return a volume of noise."""
    noise = np.random.default_rng(seed).random((8, 12, 12)).astype(np.float32)
    return mrhdata.volume.from_array(noise, spacing=(1, 1, 1), name="image")


@pytest.mark.parametrize("copy", ["same", "mirrored", "turned"])
def test_copy_of_a_training_brain_among_test_brains_is_refused(home, tmp_path, copy):
    """A renamed copy raises DataError, also if it is mirrored or rotated."""
    first = noise_volume(1)
    planted = {"same": first.values, "mirrored": first.values[:, :, ::-1], "turned": first.values.transpose(0, 2, 1)}
    brains = {"a": first, "b": noise_volume(2), "c": noise_volume(3), "d": first.copy(data=planted[copy].copy())}
    text = write_catalogue_task(tmp_path, brains) + '[split]\ntraining = ["a"]\nvalidation = ["b"]\ntest = ["c", "d"]\n'
    (tmp_path / "leak.toml").write_text(text)
    with pytest.raises(DataError, match=r"subjects a \(training\) and d \(test\) have the same values"):
        run_bench(tmp_path, tmp_path / "work", methods=["tiny mean"], files=[home / "own.py"], jobs=0, progress=False)


@pytest.mark.parametrize(("test", "fails"), [([6, 8], False), ([5, 8], True), ([3, 8], True)])
def test_ranges_of_one_volume_need_the_guard_distance(home, tmp_path, test, fails):
    """Ranges of planes may be as far apart as the guard, but not nearer, and must not overlap."""
    text = write_catalogue_task(tmp_path, {"a": noise_volume(1), "b": noise_volume(2)}) + (
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


def test_unknown_methods_tasks_kinds_and_files_are_refused(home, tmp_path):
    """Each unknown name raises DataError."""
    with pytest.raises(DataError, match="methods must be among"):
        run(home, tmp_path, methods=("none such",))
    with pytest.raises(DataError, match=r"tasks must be among .*; got \['other'\]"):
        run(home, tmp_path, tasks=["other"])
    with pytest.raises(DataError, match="kinds must be one or more of"):
        method("nothing", "poetry")(print)
    with pytest.raises(DataError, match=r"missing\.py does not exist"):
        run_bench(home, tmp_path, files=[tmp_path / "missing.py"], jobs=0)


def test_tasks_of_the_repository_are_valid():
    """All tasks can be read, every kind has a full and a quick task, and all catalogues exist."""
    folder = Path(__file__).parents[2] / "benchmarks" / "tasks"
    tasks = [read_task(file) for file in folder.glob("*.toml")]
    assert len(tasks) == 8
    assert {task.kind for task in tasks_of(folder, quick=True)} == {task.kind for task in tasks} == set(KINDS)
    assert all((folder / task.data["catalog"]).exists() for task in tasks if "catalog" in task.data)


def test_task_without_its_data_is_skipped_with_a_warning(tmp_path, caplog):
    """The warning names the task; a task named in `only` is read anyway."""
    (tmp_path / "far.toml").write_text('needs = "nowhere"\n' + TASK)
    assert tasks_of(tmp_path) == []
    assert "task far is skipped" in caplog.text
    assert [task.name for task in tasks_of(tmp_path, only=["far"])] == ["far"]
    with pytest.raises(DataError, match="no quick form"):
        read_task(tmp_path / "far.toml", quick=True)
