"""Runs: one method on one task with one seed, each in a process of its own, and one line of JSON for each."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xarray as xr

from mrhdata import models
from mrhdata._runtime.atomic import atomic_write
from mrhdata._runtime.progress import Progress, ProgressLabel, progress_bar
from mrhdata.bench import api
from mrhdata.bench.api import METHODS, FittedMethod, Method, TrainingData
from mrhdata.bench.figures import of_block
from mrhdata.bench.manifest import Manifest, manifest_of, read_manifest, scored_grid
from mrhdata.bench.methods import enter
from mrhdata.bench.scores import SHOWN, score_answers
from mrhdata.bench.subjects import parts_of
from mrhdata.bench.tasks import Task, slug_of, tasks_of
from mrhdata.errors import DataError
from mrhdata.io import fingerprint


@dataclass(frozen=True)
class Run:
    """One line of the results that is to be.

    Attributes
    ----------
    benchmarks, work : path
        The folder of tasks, and that of volumes, checkpoints and results.
    task, method : str
    quick : bool
    seed : int
    threads : int
    files : tuple of path
        Of the user's own methods.
    """

    benchmarks: Path
    work: Path
    task: str
    method: str
    quick: bool
    seed: int
    threads: int = 1
    files: tuple[Path, ...] = ()

    def key(self, manifest: Manifest) -> str:
        """What makes its result what it is."""
        written = [file.read_text(encoding="utf-8") for file in self.files]
        told = [self.task, self.method, self.quick, self.seed, self.threads, version("mrhdata"), written]
        return fingerprint.digest([*told, asdict(manifest)])[:16]

    def place(self, manifest: Manifest) -> Path:
        """Folder of checkpoints and pictures: another one where what is learned from or scored is another."""
        name = f"{slug_of(self.task, quick=self.quick)}-{self.method}-{self.seed}-{self.key(manifest)}"
        return self.work / "runs" / name.replace(" ", "-")


@dataclass
class Bench:
    """All lines of a bench, and the tasks and manifests that they are of."""

    tasks: dict[str, Task] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)


def run_bench(
    benchmarks: str | Path,
    work: str | Path,
    *,
    quick: bool = False,
    tasks: Sequence[str] = (),
    methods: Sequence[str] = (),
    files: Sequence[str | Path] = (),
    seed: int = 0,
    jobs: int = 1,
    threads: int = 1,
    progress: Progress = True,
) -> Bench:
    """Score every method on every task that it fits.

    Parameters
    ----------
    benchmarks : path
        Folder with ``tasks/*.toml``; manifests are kept in ``manifests/`` beside them.
    work : path
        Gets ``results.jsonl``, a line for each run; runs that are there already, of the same manifest, method file
        and version, are not made again. A bench that was stopped goes on.
    quick : bool
        Small volumes and short training, marked as such.
    tasks, methods : sequence of str
        Those by name; all where empty.
    files : sequence of path
        Python files of your own that enter methods; they are run.
    seed, jobs, threads : int
        `jobs` runs at a time, of so many threads each; with 0 jobs they run in this process, one by one, and peaks
        of memory are its own.
    progress : bool or callable

    Returns
    -------
    bench : Bench

    Raises
    ------
    DataError
        A task or method is not there, or a split leaks.
    """
    for file in files:
        api.enter_file(file)
    enter()
    unknown = sorted(set(methods) - set(METHODS))
    if unknown:
        raise DataError(f"there are no methods {unknown}; there are {sorted(METHODS)}")
    home, folder = Path(benchmarks), Path(work)
    made = Bench()
    for task in tasks_of(home, quick=quick, only=list(tasks)):
        made.tasks[task.name] = task
        made.manifests[task.name] = manifest_of(task, parts_of(task, folder), home / "manifests")
    own = tuple(Path(f).resolve() for f in files)
    runs = [
        Run(home.resolve(), folder.resolve(), task.name, m.name, quick, seed, threads, own)
        for task in made.tasks.values()
        for m in METHODS.values()
        if task.kind in m.kinds and (m.quick or not quick) and (not methods or m.name in methods)
    ]
    made.records = _all(runs, made, folder / "results.jsonl", jobs, progress)
    return made


def _all(runs: list[Run], made: Bench, results: Path, jobs: int, progress: Progress) -> list[dict[str, Any]]:
    """Records of all runs, those that are there already and those that are made now, in the order of the runs."""
    held = {line["key"]: line for line in read_results(results)}
    keys = [run.key(made.manifests[run.task]) for run in runs]
    left = [(key, run) for key, run in zip(keys, runs, strict=True) if key not in held]
    results.parent.mkdir(parents=True, exist_ok=True)
    label = ProgressLabel(text="methods", unit_bytes=1, unit="run")
    with progress_bar(progress, len(runs), len(runs) - len(left), label) as step:
        for key, record in _made(left, jobs):
            held[key] = {"key": key, **record}
            # A line is whole or not there: a reader leaves out one that was cut off.
            with results.open("a", encoding="utf-8") as out:
                out.write("\n" * _cut_off(results) + json.dumps(held[key]) + "\n")
            step(1)
    return [held[key] for key in keys]


def _made(runs: Sequence[tuple[str, Run]], jobs: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Keys and records, as they are finished."""
    if jobs == 0:
        yield from ((key, run_one(run)) for key, run in runs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1, initializer=_ends_with_parent) as pool:
        futures = {pool.submit(run_one, run): key for key, run in runs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _ends_with_parent() -> None:
    """A bench that is killed leaves no run behind, which would go on for an hour and tell nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _cut_off(path: Path) -> bool:
    """Whether the last line has no end: a run was killed while it wrote."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def read_results(path: Path) -> list[dict[str, Any]]:
    """Lines of a results file; one that was cut off is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def run_one(run: Run) -> dict[str, Any]:
    """Fit, answer, score; what goes wrong within the method becomes the result."""
    import torch

    for file in run.files:
        api.enter_file(file)
    enter()
    torch.set_num_threads(run.threads)
    task = tasks_of(run.benchmarks, quick=run.quick, only=[run.task])[0]
    parts = parts_of(task, run.work)
    manifest = read_manifest(task, run.benchmarks / "manifests")
    how = METHODS[run.method]
    told = {"task": run.task, "method": run.method, "baseline": how.baseline, "quick": run.quick, "seed": run.seed}
    told |= {"threads": run.threads, "manifest": manifest.digest[:16], "environment": environment()}
    try:
        return told | _scored(run, task, parts, manifest, how)
    except Exception as error:  # one method that fails is a row of the table, not the end of the others
        return told | {"error": f"{type(error).__name__}: {error}"}


def _scored(run: Run, task: Task, parts: Any, manifest: Manifest, how: Method) -> dict[str, Any]:
    """Everything that was measured."""
    place = run.place(manifest)
    place.mkdir(parents=True, exist_ok=True)
    given = TrainingData(
        parts["training"], parts["validation"], task.settings, manifest.points(), run.quick, run.seed, place
    )
    start = time.perf_counter()
    fitted = how.fit(given)
    fitted = fitted if isinstance(fitted, FittedMethod) else FittedMethod(fitted)
    learned = time.perf_counter()
    with multiplications() as counted:
        answers = [_in_memory(fitted.predict(subject.blind())) for subject in parts["test"]]
    answered = time.perf_counter()
    scores = score_answers(task, parts["test"], answers, manifest)
    voxels = sum(scored_grid(s).size for s in parts["test"])
    model = fitted.model
    if model is not None and hasattr(model, "spec"):
        models.save(model, place / "network")
    return {
        **asdict(scores),
        "shown": SHOWN[task.kind],
        "seconds": {"fitting": learned - start, "answering": answered - learned},
        "peak_mb": peak_mb(),
        "parameters": None if model is None else sum(p.numel() for p in model.parameters()),
        "kmac_per_voxel": counted[0] / 1e3 / voxels if model is not None else None,
        "worst": _worst(place, run.work, parts["test"], answers, manifest, scores.blocks),
    }


def peak_mb() -> float:
    """The most memory that this process held, in MB of 2^20 bytes.

    Linux hands what ``getrusage`` calls the peak on from the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text("utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def _in_memory(answer: Any) -> Any:
    return answer.compute() if isinstance(answer, xr.DataArray) else answer


@contextlib.contextmanager
def multiplications() -> Iterator[list[float]]:
    """Multiply-adds of every convolution and linear layer that is run meanwhile, in whatever thread."""
    from torch import nn
    from torch.nn.modules.module import register_module_forward_hook

    total = [0.0]

    def count(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            # A layer that pools what it convolves tells of how many values each of its answers is the greatest.
            total[0] += output.numel() * module.weight[0].numel() * getattr(module, "positions", 1)
        elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
            # Each input value meets each weight of its channel.
            total[0] += output.numel() * module.weight[:, 0].numel() / math.prod(module.stride)

    handle = register_module_forward_hook(count)
    try:
        yield total
    finally:
        handle.remove()


def _worst(
    place: Path, work: Path, subjects: Any, answers: list[Any], manifest: Manifest, blocks: list[float | None]
) -> str | None:
    """A picture of the block with the lowest score: input, truth, answer; its path from the work folder."""
    scored = [(value, i) for i, value in enumerate(blocks) if value is not None]
    if not scored:
        return None
    who, box = manifest.boxes[min(scored)[1]]
    figure = of_block(subjects[who], answers[who], box)
    path = place / "worst.png"
    with atomic_write(path) as draft:
        figure.savefig(draft, format="png", dpi=100)
    return path.relative_to(work).as_posix()


def environment() -> dict[str, Any]:
    """What a score or a time may hang on."""
    import numpy
    import torch

    return {
        "mrhdata": version("mrhdata"),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "processors": os.cpu_count(),
    }
