"""What every method of a task sees and is scored on, fixed before any is run, and stored beside the tasks.

Voxels that are learned from, blocks of the test volumes that are scored, and what the volumes hold, so that a
later run on other volumes is noticed. And the proof that nothing of the test is in training.
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

#: How far means and deviations of phantoms that were made elsewhere may lie apart, as a part.
_ALIKE = 1e-3


@dataclass(frozen=True)
class Manifest:
    """Fixed choices of a task.

    Attributes
    ----------
    task : str
    voxels : dict of lists of int
        By subject of training and validation, counted along the first input.
    blocks : list of (int, int, int, int, int, int, int)
        Number of the test subject, first voxel z, y, x and the one behind the last, on the grid that is scored.
    volumes : dict
        By subject and volume: its shape, mean and standard deviation, and a digest of its values in their order of
        size, which a mirrored or turned copy shares.
    threshold : float or None
        Of a histology task: the percentile of the training subjects that divides the classes.
    asked : str
        Digest of what the task asked for when the manifest was made.
    """

    task: str
    voxels: dict[str, list[int]]
    blocks: list[list[int]]
    volumes: dict[str, dict[str, dict[str, Any]]]
    threshold: float | None = None
    asked: str = ""

    @property
    def boxes(self) -> list[tuple[int, Box]]:
        """Number of the test subject, and the box that is scored, of each block."""
        return [(who, Box(tuple(ends[:3]), tuple(ends[3:]))) for who, *ends in self.blocks]

    @property
    def digest(self) -> str:
        """Of everything but the values of volumes."""
        return fingerprint.digest([self.task, self.voxels, self.blocks, self.threshold])

    def points(self) -> dict[str, NDArray[np.int64]]:
        """Voxels z, y, x by subject: (n, 3) arrays."""
        shapes = {who: next(iter(held.values()))["shape"] for who, held in self.volumes.items()}
        return {who: np.stack(np.unravel_index(at, shapes[who]), axis=1) for who, at in self.voxels.items()}


def manifest_of(task: Task, parts: Mapping[str, Sequence[Subject]], folder: Path) -> Manifest:
    """The manifest of a task in a folder, made where there is none; volumes are compared with it.

    Raises
    ------
    DataError
        Parts of the split share something, or task or volumes are not those of the manifest.
    """
    held = check_split(task, parts)
    path = _path(task, folder)
    if path.exists():
        found = read_manifest(task, folder)
        if found.asked != _asked(task):
            raise DataError(
                f"{task.name} was edited since {path} was made: its data, split, settings, blocks or voxels are "
                "others; bring the task back, give it another name, or remove the manifest"
            )
        _compare(found, held, path)
        return found
    made = _made(task, parts, held)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(asdict(made), separators=(",", ":")) + "\n", encoding="utf-8")
    return made


def read_manifest(task: Task, folder: Path) -> Manifest:
    """The manifest as it is stored; :func:`manifest_of` has compared the volumes with it."""
    return Manifest(**json.loads(_path(task, folder).read_text(encoding="utf-8")))


def _path(task: Task, folder: Path) -> Path:
    return folder / f"{task.slug}.json"


def _made(task: Task, parts: Mapping[str, Sequence[Subject]], held: dict[str, Any]) -> Manifest:
    learned = [*parts["training"], *parts["validation"]]
    voxels = {s.id: _drawn(s, task, number) for number, s in enumerate(learned)}
    blocks = [[i, *box] for i, s in enumerate(parts["test"]) for box in _blocks(s, task.block_mm)]
    threshold = None
    if task.kind == "histology":
        inside = [values(s.target)[_inside(s)] for s in parts["training"]]
        threshold = float(np.percentile(np.concatenate(inside), task.settings["percentile"]))
    return Manifest(task.slug, voxels, blocks, held, threshold, _asked(task))


def _asked(task: Task) -> str:
    """Digest of all that answers hang on; a title does not."""
    return fingerprint.digest([task.kind, task.data, task.split, task.settings, task.block_mm, task.voxels])


def _inside(subject: Subject) -> NDArray[np.bool_]:
    """Where the truth counts."""
    shape = scored_grid(subject).shape
    return np.ones(shape, bool) if subject.mask is None else np.asarray(subject.mask.data) > 0


def scored_grid(subject: Subject) -> xr.DataArray:
    """The volume on whose grid a subject is scored: the truth's, or that of the first input for cells."""
    return subject.first if subject.target is None else subject.target


def _drawn(subject: Subject, task: Task, number: int) -> list[int]:
    """Voxels of the first input at random, within the mask."""
    inside = np.flatnonzero(_inside(subject)) if subject.mask is not None else np.arange(subject.first.size)
    chosen = np.random.default_rng([number, task.voxels]).permutation(inside)[: task.voxels]
    found: list[int] = np.sort(chosen).tolist()
    return found


def _blocks(subject: Subject, edge_mm: Sequence[float]) -> list[list[int]]:
    """Boxes of about the edge that hold voxels of the mask."""
    like, inside, cuts = scored_grid(subject), _inside(subject), []
    for length, spacing, edge in zip(like.shape, like.mrh.spacing, edge_mm, strict=True):
        count = 1 if edge == 0 else max(1, round(length * spacing / edge))
        cuts.append(list(itertools.pairwise(np.linspace(0, length, count + 1).round().astype(int).tolist())))
    boxes = [list(zip(*box, strict=True)) for box in itertools.product(*cuts)]
    return [[*a, *b] for a, b in boxes if inside[tuple(slice(*p) for p in zip(a, b, strict=True))].any()]


def _told(subject: Subject) -> dict[str, Any]:
    """Shape, moments and sorted digest of each volume."""
    found = {}
    for name, volume in {
        **subject.inputs,
        "truth": subject.points if subject.target is None else subject.target,
    }.items():
        data = values(volume)
        held = {"shape": list(data.shape), "mean": float(data.mean()), "sd": float(data.std())}
        found[name] = held | {"digest": hashlib.sha256(np.sort(data.ravel()).tobytes()).hexdigest()}
    return found


def _compare(manifest: Manifest, held: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> None:
    """Refuse volumes that are not those of the manifest; another processor's rounding is none of that."""
    for who, volumes in held.items():
        for name, now in volumes.items():
            then = manifest.volumes.get(who, {}).get(name)
            if then is None or then["shape"] != now["shape"] or not _near(then, now):
                raise DataError(
                    f"{name} of subject {who} holds {_short(now)}, and {path} was made of {_short(then)}; bring the "
                    "volumes back, or remove the manifest"
                )


def _near(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    size = max(abs(then["mean"]), then["sd"], 1e-12)
    return all(abs(then[key] - now[key]) <= _ALIKE * size for key in ("mean", "sd"))


def _short(held: Mapping[str, Any] | None) -> str:
    if held is None:
        return "nothing"
    return f"{held['shape']} values of mean {held['mean']:.6g} and deviation {held['sd']:.6g}"


def check_split(task: Task, parts: Mapping[str, Sequence[Subject]]) -> dict[str, dict[str, Any]]:
    """Prove that no voxel of a part is in another, nor a mirrored or renamed copy of a volume.

    Returns
    -------
    held : dict
        What the volumes of each subject hold.

    Raises
    ------
    DataError
        Something is shared; it says what.
    """
    guard = float(task.split.get("guard_mm", 0.0))
    held = {s.id: _told(s) for part in PARTS for s in parts[part]}
    for a, b in itertools.combinations(PARTS, 2):
        for mine, theirs in itertools.product(parts[a], parts[b]):
            if mine.id == theirs.id:
                raise DataError(f"{task.name}: subject {mine.id} is in {a} and in {b}; name others")
            same = {v["digest"] for v in held[mine.id].values()} & {v["digest"] for v in held[theirs.id].values()}
            if same:
                raise DataError(
                    f"{task.name}: subjects {mine.id} ({a}) and {theirs.id} ({b}) hold the same values, perhaps "
                    "mirrored; leave one out"
                )
            _boxes(mine, 0.0).check_leakage(_boxes(theirs, guard))
    return held


def _boxes(subject: Subject, guard_mm: float) -> Any:
    """The whole of a subject's scored volume as one patch, with a guard about it where the file goes on."""
    like = scored_grid(subject)
    wide = [int(np.ceil(guard_mm / s)) for s in like.mrh.spacing]
    shape = [n + 2 * g for n, g in zip(like.shape, wide, strict=True)]
    start = np.array([[-g for g in wide]], dtype=np.int64)
    return patches({"voxels": like}, shape=shape, sampler=[start], padding="edge")


def part_of(volume: xr.DataArray, box: Box) -> xr.DataArray:
    """A block of a volume."""
    return volume.isel(dict(zip(SPATIAL, box.slices, strict=True)))


def voxels_of(points: NDArray[np.float64], like: xr.DataArray) -> NDArray[np.float64]:
    """The voxels nearest to world points (n, 3), those of the rim for points beyond it: (n, 3)."""
    return np.clip(np.rint(like.mrh.grid.index(points)), 0, np.array(like.shape) - 1) if len(points) else points


def in_box(voxels: NDArray[np.float64], box: Box) -> NDArray[np.bool_]:
    """Which of them (n, 3) lie in a block."""
    return np.asarray(((voxels >= box.start) & (voxels < box.stop)).all(axis=1))
