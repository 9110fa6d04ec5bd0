"""Runs: one method on one task with one seed, each in its own process and with one line of JSON as its result."""

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
    """One run of the benchmark, and one line of its results.

    Attributes
    ----------
    benchmarks, work : path
        Folder of tasks, and folder of volumes, checkpoints and results.
    task, method : str
        Names of the task and of the method.
    quick : bool
        Whether to run the quick form.
    seed : int
        Random seed.
    threads : int
        Number of PyTorch threads.
    files : tuple of path
        Python files that define further methods.
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
        """Return a fingerprint of everything on which the result depends."""
        sources = [file.read_text(encoding="utf-8") for file in self.files]
        settings = [self.task, self.method, self.quick, self.seed, self.threads, version("mrhdata"), sources]
        return fingerprint.digest([*settings, asdict(manifest)])[:16]

    def folder(self, manifest: Manifest) -> Path:
        """Return the folder of checkpoints and pictures, which differs for each key."""
        name = f"{slug_of(self.task, quick=self.quick)}-{self.method}-{self.seed}-{self.key(manifest)}"
        return self.work / "runs" / name.replace(" ", "-")


@dataclass
class Bench:
    """Records of a benchmark with their tasks and manifests."""

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
        Folder with ``tasks/*.toml``; manifests are stored in its ``manifests/``.
    work : path
        Folder that gets ``results.jsonl``, one line per run. Runs with the same manifest, method file and version are
        not repeated, so an interrupted benchmark resumes.
    quick : bool
        Whether to use small volumes and short training; such results are marked.
    tasks, methods : sequence of str
        Names of tasks and methods; all by default.
    files : sequence of path
        Python files that define further methods; they are executed.
    seed, jobs, threads : int
        Random seed, number of simultaneous runs, and threads of each run. With 0 jobs all runs share this process, and
        its peak of memory.
    progress : bool or callable
        Progress bar.

    Returns
    -------
    bench : Bench
        Tasks, manifests and records.

    Raises
    ------
    DataError
        A task or a method does not exist, or parts of a split share data.
    """
    for file in files:
        api.enter_file(file)
    enter()
    unknown = sorted(set(methods) - set(METHODS))
    if unknown:
        raise DataError(f"methods must be among {sorted(METHODS)}; got {unknown}")
    home, work = Path(benchmarks), Path(work)
    bench = Bench()
    for task in tasks_of(home, quick=quick, only=list(tasks)):
        bench.tasks[task.name] = task
        bench.manifests[task.name] = manifest_of(task, parts_of(task, work), home / "manifests")
    sources = tuple(Path(f).resolve() for f in files)
    runs = [
        Run(home.resolve(), work.resolve(), task.name, m.name, quick, seed, threads, sources)
        for task in bench.tasks.values()
        for m in METHODS.values()
        if task.kind in m.kinds and (m.quick or not quick) and (not methods or m.name in methods)
    ]
    bench.records = _run_missing(runs, bench, work / "results.jsonl", jobs, progress)
    return bench


def _run_missing(runs: list[Run], bench: Bench, results: Path, jobs: int, progress: Progress) -> list[dict[str, Any]]:
    """Return the records of all runs in their order, and run those without a stored result."""
    records = {record["key"]: record for record in read_results(results)}
    keys = [run.key(bench.manifests[run.task]) for run in runs]
    missing = [(key, run) for key, run in zip(keys, runs, strict=True) if key not in records]
    results.parent.mkdir(parents=True, exist_ok=True)
    label = ProgressLabel(text="methods", unit_bytes=1, unit="run")
    with progress_bar(progress, len(runs), len(runs) - len(missing), label) as step:
        for key, record in _execute(missing, jobs):
            records[key] = {"key": key, **record}
            # An incomplete last line stays, and readers skip it: end it before the next record.
            with results.open("a", encoding="utf-8") as out:
                out.write("\n" * _is_cut_off(results) + json.dumps(records[key]) + "\n")
            step(1)
    return [records[key] for key in keys]


def _execute(runs: Sequence[tuple[str, Run]], jobs: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield keys and records as runs finish."""
    if jobs == 0:
        yield from ((key, run_one(run)) for key, run in runs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1, initializer=_end_with_parent) as pool:
        futures = {pool.submit(run_one, run): key for key, run in runs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Terminate this worker when its parent dies; otherwise it would keep running unnoticed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _is_cut_off(path: Path) -> bool:
    """Return whether the last line has no newline because its writer was killed."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read the records of a results file, and skip incomplete lines."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def run_one(run: Run) -> dict[str, Any]:
    """Fit, predict and score; an error of the method becomes its result."""
    import torch

    for file in run.files:
        api.enter_file(file)
    enter()
    torch.set_num_threads(run.threads)
    task = tasks_of(run.benchmarks, quick=run.quick, only=[run.task])[0]
    parts = parts_of(task, run.work)
    manifest = read_manifest(task, run.benchmarks / "manifests")
    method = METHODS[run.method]
    record = {"task": run.task, "method": run.method, "baseline": method.baseline, "quick": run.quick, "seed": run.seed}
    record |= {"threads": run.threads, "manifest": manifest.digest[:16], "environment": environment()}
    try:
        return record | _measure(run, task, parts, manifest, method)
    except Exception as error:  # a method that fails is a row of the table and does not stop the others
        return record | {"error": f"{type(error).__name__}: {error}"}


def _measure(run: Run, task: Task, parts: Any, manifest: Manifest, method: Method) -> dict[str, Any]:
    """Return scores and costs of a method."""
    folder = run.folder(manifest)
    folder.mkdir(parents=True, exist_ok=True)
    data = TrainingData(
        parts["training"], parts["validation"], task.settings, manifest.points(), run.quick, run.seed, folder
    )
    start = time.perf_counter()
    fitted = method.fit(data)
    fitted = fitted if isinstance(fitted, FittedMethod) else FittedMethod(fitted)
    fitted_at = time.perf_counter()
    with multiplications() as count:
        answers = [_in_memory(fitted.predict(subject.blind())) for subject in parts["test"]]
    answered_at = time.perf_counter()
    scores = score_answers(task, parts["test"], answers, manifest)
    voxels = sum(scored_grid(s).size for s in parts["test"])
    model = fitted.model
    if model is not None and hasattr(model, "spec"):
        models.save(model, folder / "network")
    return {
        **asdict(scores),
        "shown": SHOWN[task.kind],
        "seconds": {"fitting": fitted_at - start, "answering": answered_at - fitted_at},
        "peak_mb": peak_mb(),
        "parameters": None if model is None else sum(p.numel() for p in model.parameters()),
        "kmac_per_voxel": count[0] / 1e3 / voxels if model is not None else None,
        "worst": _plot_worst(folder, run.work, parts["test"], answers, manifest, scores.blocks),
    }


def peak_mb() -> float:
    """Return the peak memory of this process in MB of 2^20 bytes.

    On Linux, ``getrusage`` inherits the peak of the parent process, so the peak is read from ``/proc``.
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
    """Count the multiply-adds of all convolutions and linear layers that run inside the context, in any thread."""
    from torch import nn
    from torch.nn.modules.module import register_module_forward_hook

    total = [0.0]

    def count(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            # `positions`: number of convolution results from which a max-pooling layer keeps one.
            total[0] += output.numel() * module.weight[0].numel() * getattr(module, "positions", 1)
        elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
            # Each input value is multiplied by each weight of its channel.
            total[0] += output.numel() * module.weight[:, 0].numel() / math.prod(module.stride)

    handle = register_module_forward_hook(count)
    try:
        yield total
    finally:
        handle.remove()


def _plot_worst(
    folder: Path, work: Path, subjects: Any, answers: list[Any], manifest: Manifest, blocks: list[float | None]
) -> str | None:
    """Plot the block with the lowest score, and return the path of the picture relative to the work folder."""
    scores = [(value, i) for i, value in enumerate(blocks) if value is not None]
    if not scores:
        return None
    number, box = manifest.boxes[min(scores)[1]]
    figure = of_block(subjects[number], answers[number], box)
    path = folder / "worst.png"
    with atomic_write(path) as draft:
        figure.savefig(draft, format="png", dpi=100)
    return path.relative_to(work).as_posix()


def environment() -> dict[str, Any]:
    """Return the versions and the hardware on which a score or a time may depend."""
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
