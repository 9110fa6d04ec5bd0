"""Manifest of a task: training voxels, scored blocks and fingerprints of the volumes, fixed before any method runs.

The manifest is stored next to the tasks, so that a later run on other volumes is noticed. This module also checks that
no test data are in the training data.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mrhdata._runtime.atomic import atomic_write
from mrhdata.bench.subjects import values
from mrhdata.bench.tasks import PARTS, Task
from mrhdata.datasets.subjects import Subject
from mrhdata.errors import DataError
from mrhdata.io import fingerprint
from mrhdata.patching.create import patches
from mrhdata.volume.box import Box
from mrhdata.volume.construct import SPATIAL

#: Largest relative difference of means and deviations between phantoms generated on different processors.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Manifest:
    """Fixed choices of a task.

    Attributes
    ----------
    task : str
        Slug of the task.
    voxels : dict of lists of int
        Flat indices of the training voxels in the first input, for each training and validation subject.
    blocks : list of (int, int, int, int, int, int, int)
        Number of the test subject, and start and stop (z, y, x) of the block on the scored grid.
    volumes : dict
        For each subject and volume: shape, mean, standard deviation, and a digest of the sorted values, which is the
        same for a mirrored or rotated copy.
    threshold : float or None
        Threshold between the classes of a histology task, from the percentile of the training subjects.
    asked : str
        Digest of the task's definition when the manifest was made.
    """

    task: str
    voxels: dict[str, list[int]]
    blocks: list[list[int]]
    volumes: dict[str, dict[str, dict[str, Any]]]
    threshold: float | None = None
    asked: str = ""

    @property
    def boxes(self) -> list[tuple[int, Box]]:
        """Number of the test subject and box of each scored block."""
        return [(number, Box(tuple(ends[:3]), tuple(ends[3:]))) for number, *ends in self.blocks]

    @property
    def digest(self) -> str:
        """Digest of all choices, without the statistics of the volumes."""
        return fingerprint.digest([self.task, self.voxels, self.blocks, self.threshold])

    def points(self) -> dict[str, NDArray[np.int64]]:
        """Return the training voxels (z, y, x) of each subject: (n, 3) arrays."""
        shapes = {subject: next(iter(volumes.values()))["shape"] for subject, volumes in self.volumes.items()}
        return {
            subject: np.stack(np.unravel_index(index, shapes[subject]), axis=1)
            for subject, index in self.voxels.items()
        }


def manifest_of(task: Task, parts: Mapping[str, Sequence[Subject]], folder: Path) -> Manifest:
    """Return the manifest of a task, and create it if the folder has none; compare the volumes with it.

    Raises
    ------
    DataError
        Parts of the split share data, or the task or the volumes differ from the manifest.
    """
    statistics = check_split(task, parts)
    path = _path(task, folder)
    if path.exists():
        manifest = read_manifest(task, folder)
        if manifest.asked != _digest_task(task):
            raise DataError(
                f"the data, split, settings, blocks or voxels of {task.name} have changed since {path} was made; undo "
                "the change, rename the task, or delete the manifest"
            )
        _compare(manifest, statistics, path)
        return manifest
    manifest = _create(task, parts, statistics)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(asdict(manifest), separators=(",", ":")) + "\n", encoding="utf-8")
    return manifest


def read_manifest(task: Task, folder: Path) -> Manifest:
    """Read a stored manifest without comparing the volumes with it."""
    return Manifest(**json.loads(_path(task, folder).read_text(encoding="utf-8")))


def _path(task: Task, folder: Path) -> Path:
    return folder / f"{task.slug}.json"


def _create(task: Task, parts: Mapping[str, Sequence[Subject]], statistics: dict[str, Any]) -> Manifest:
    learned = [*parts["training"], *parts["validation"]]
    voxels = {s.id: _draw_voxels(s, task, number) for number, s in enumerate(learned)}
    blocks = [[i, *box] for i, s in enumerate(parts["test"]) for box in _blocks(s, task.block_mm)]
    threshold = None
    if task.kind == "histology":
        inside = [values(s.target)[_scored_mask(s)] for s in parts["training"]]
        threshold = float(np.percentile(np.concatenate(inside), task.settings["percentile"]))
    return Manifest(task.slug, voxels, blocks, statistics, threshold, _digest_task(task))


def _digest_task(task: Task) -> str:
    """Return a digest of all fields on which answers depend; a title is not one of them."""
    return fingerprint.digest([task.kind, task.data, task.split, task.settings, task.block_mm, task.voxels])


def _scored_mask(subject: Subject) -> NDArray[np.bool_]:
    """Return the mask of the scored voxels, all True if the subject has no mask."""
    shape = scored_grid(subject).shape
    return np.ones(shape, bool) if subject.mask is None else np.asarray(subject.mask.data) > 0


def scored_grid(subject: Subject) -> xr.DataArray:
    """Return the volume on whose grid a subject is scored: the ground truth, or the first input for cells."""
    return subject.first if subject.target is None else subject.target


def _draw_voxels(subject: Subject, task: Task, number: int) -> list[int]:
    """Draw flat indices of voxels of the first input at random within the mask."""
    inside = np.flatnonzero(_scored_mask(subject)) if subject.mask is not None else np.arange(subject.first.size)
    chosen = np.random.default_rng([number, task.voxels]).permutation(inside)[: task.voxels]
    index: list[int] = np.sort(chosen).tolist()
    return index


def _blocks(subject: Subject, edge_mm: Sequence[float]) -> list[list[int]]:
    """Cut the scored grid into boxes of about the edge, and return those that have voxels of the mask."""
    like, inside, cuts = scored_grid(subject), _scored_mask(subject), []
    for length, spacing, edge in zip(like.shape, like.mrh.spacing, edge_mm, strict=True):
        count = 1 if edge == 0 else max(1, round(length * spacing / edge))
        cuts.append(list(itertools.pairwise(np.linspace(0, length, count + 1).round().astype(int).tolist())))
    boxes = [list(zip(*box, strict=True)) for box in itertools.product(*cuts)]
    return [[*a, *b] for a, b in boxes if inside[tuple(slice(*p) for p in zip(a, b, strict=True))].any()]


def _statistics(subject: Subject) -> dict[str, Any]:
    """Return shape, mean, standard deviation and digest of the sorted values of each volume."""
    truth = subject.points if subject.target is None else subject.target
    statistics = {}
    for name, volume in {**subject.inputs, "truth": truth}.items():
        data = values(volume)
        statistics[name] = {
            "shape": list(data.shape),
            "mean": float(data.mean()),
            "sd": float(data.std()),
            "digest": hashlib.sha256(np.sort(data.ravel()).tobytes()).hexdigest(),
        }
    return statistics


def _compare(manifest: Manifest, statistics: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> None:
    """Raise DataError if volumes differ from the manifest by more than the rounding of another processor."""
    for subject, volumes in statistics.items():
        for name, now in volumes.items():
            then = manifest.volumes.get(subject, {}).get(name)
            if then is None or then["shape"] != now["shape"] or not _near(then, now):
                raise DataError(
                    f"{name} of subject {subject} has {_format_statistics(now)}, but {path} was made with "
                    f"{_format_statistics(then)}; restore the volumes, or delete the manifest"
                )


def _near(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    size = max(abs(then["mean"]), then["sd"], 1e-12)
    return all(abs(then[key] - now[key]) <= _TOLERANCE * size for key in ("mean", "sd"))


def _format_statistics(statistics: Mapping[str, Any] | None) -> str:
    if statistics is None:
        return "no values"
    return f"{statistics['shape']} values of mean {statistics['mean']:.6g} and deviation {statistics['sd']:.6g}"


def check_split(task: Task, parts: Mapping[str, Sequence[Subject]]) -> dict[str, dict[str, Any]]:
    """Check that no two parts of the split share voxels, or a mirrored or renamed copy of a volume.

    Returns
    -------
    statistics : dict
        Shape, mean, standard deviation and digest of the volumes of each subject.

    Raises
    ------
    DataError
        Two parts share data; the message names the subjects.
    """
    guard = float(task.split.get("guard_mm", 0.0))
    statistics = {s.id: _statistics(s) for part in PARTS for s in parts[part]}
    for a, b in itertools.combinations(PARTS, 2):
        for mine, other in itertools.product(parts[a], parts[b]):
            if mine.id == other.id:
                raise DataError(f"{task.name}: subject {mine.id} is in {a} and in {b}; remove it from one of them")
            digests, others = ({v["digest"] for v in statistics[s.id].values()} for s in (mine, other))
            if digests & others:
                raise DataError(
                    f"{task.name}: subjects {mine.id} ({a}) and {other.id} ({b}) have the same values, perhaps "
                    "mirrored; remove one of them"
                )
            _scored_patch(mine, 0.0).check_leakage(_scored_patch(other, guard))
    return statistics


def _scored_patch(subject: Subject, guard_mm: float) -> Any:
    """Return patches with one patch that covers the scored volume and a margin of the guard distance around it.

    `Patches.check_leakage` then compares the voxels in the files, which ranges of one volume share.
    """
    like = scored_grid(subject)
    margin = [int(np.ceil(guard_mm / s)) for s in like.mrh.spacing]
    shape = [n + 2 * g for n, g in zip(like.shape, margin, strict=True)]
    start = np.array([[-g for g in margin]], dtype=np.int64)
    return patches({"voxels": like}, shape=shape, sampler=[start], padding="edge")


def part_of(volume: xr.DataArray, box: Box) -> xr.DataArray:
    """Return the part of a volume in a box."""
    return volume.isel(dict(zip(SPATIAL, box.slices, strict=True)))


def voxels_of(points: NDArray[np.float64], like: xr.DataArray) -> NDArray[np.float64]:
    """Return the voxels (n, 3) nearest to world points (n, 3), clipped to the volume."""
    return np.clip(np.rint(like.mrh.grid.index(points)), 0, np.array(like.shape) - 1) if len(points) else points


def in_box(voxels: NDArray[np.float64], box: Box) -> NDArray[np.bool_]:
    """Return which of the voxels (n, 3) are in a box."""
    return np.asarray(((voxels >= box.start) & (voxels < box.stop)).all(axis=1))
