"""Subjects of a task: phantoms, which are generated once and stored, or volumes of a catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from mrhdata import phantom
from mrhdata._runtime.atomic import atomic_write
from mrhdata.bench.tasks import PARTS, Task
from mrhdata.datasets import catalog
from mrhdata.datasets.subjects import Subject
from mrhdata.degrade.published import PUBLISHED
from mrhdata.errors import DataError
from mrhdata.io import fingerprint, formats
from mrhdata.recipes.restoration import degrade_stack
from mrhdata.volume.construct import SPATIAL

#: Volumes and tables by name.
Volumes = Mapping[str, Any]
#: Name of the table of cells.
CELLS = "cells"


def parts_of(task: Task, work: Path) -> dict[str, list[Subject]]:
    """Return the subjects of each part of a task, with their ground truth.

    Raises
    ------
    DataError
        A volume that the task names does not exist.
    """
    return {part: [_subject(task, entry, work) for entry in task.split[part]] for part in PARTS}


def _subject(task: Task, entry: Any, work: Path) -> Subject:
    """Return the subject of an entry of the split: a name or a seed, or a table with ranges of voxels."""
    spec = entry if isinstance(entry, Mapping) else {"subject": entry}
    name, ranges = spec["subject"], {d: slice(*spec[d]) for d in SPATIAL if d in spec}
    available = _phantom(task, name, work) if "phantom" in task.data else _from_catalog(task, name)
    wanted = [*task.data["inputs"], task.data["truth"], *([task.data["mask"]] if "mask" in task.data else [])]
    missing = [volume for volume in wanted if volume not in available]
    if missing:
        raise DataError(f"{task.name}: subject {name} lacks the volumes {missing}; it has {sorted(available)}")
    volumes = {v: available[v].isel(ranges) if ranges else available[v] for v in wanted}
    identifier = f"{name}" + "".join(f" {d}{r.start}-{r.stop}" for d, r in ranges.items())
    inputs = {channel: volumes[channel].rename(channel) for channel in task.data["inputs"]}
    mask = volumes[task.data["mask"]] if "mask" in task.data else None
    truth = volumes[task.data["truth"]]
    if isinstance(truth, pd.DataFrame):
        subject = Subject(identifier, inputs, points=truth[["X", "Y", "Z"]].to_numpy(), mask=mask)
    else:
        subject = Subject(identifier, inputs, truth, mask)
    return _degrade(subject, task, name) if task.kind == "restoration" else subject


def _degrade(subject: Subject, task: Task, subject_name: Any) -> Subject:
    """Replace each input by a simulated fast scan of it."""
    name = task.settings["degradation"]
    if name not in PUBLISHED:
        raise DataError(f"{task.name}: degradation must be one of {', '.join(sorted(PUBLISHED))}; got {name!r}")
    seed = int.from_bytes(fingerprint.digest([str(subject_name), task.name]).encode()[:4], "little")
    low = {n: degrade_stack(v.compute(), PUBLISHED[name], seed).rename(n) for n, v in subject.inputs.items()}
    return replace(subject, inputs=low)


def _from_catalog(task: Task, subject: Any) -> Volumes:
    return catalog.open_catalog(task.folder / task.data["catalog"]).select(subject=subject)


def _phantom(task: Task, seed: int, work: Path) -> Volumes:
    """Return the volumes of a phantom, and generate them if they are not stored yet."""
    kind, settings = task.data["phantom"], dict(task.data.get("settings", {}))
    if kind not in PHANTOMS:
        raise DataError(f"{task.name}: phantom must be one of {', '.join(PHANTOMS)}; got {kind!r}")
    folder = work / "phantoms" / f"{kind}-{fingerprint.digest([kind, settings])[:8]}" / str(seed)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder) as draft:
            draft.mkdir()
            for name, volume in PHANTOMS[kind](seed, settings).items():
                if isinstance(volume, pd.DataFrame):
                    volume.to_parquet(draft / f"{name}.parquet", index=False)
                else:
                    formats.write(volume, draft / f"{name}.zarr")
    return _VolumeFolder(folder)


class _VolumeFolder(Volumes):
    """Volumes and tables of a folder by name, each read on access, because a task needs few of them."""

    def __init__(self, folder: Path) -> None:
        self._paths = {p.stem: p for p in sorted(folder.iterdir())}

    def __getitem__(self, name: str) -> Any:
        path = self._paths[name]
        return pd.read_parquet(path) if path.suffix == ".parquet" else formats.read(path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def _mouse(seed: int, settings: dict[str, Any]) -> Volumes:
    brain = phantom.mouse_brain(seed=seed, **settings)
    flat: dict[str, xr.DataArray] = {name: v for name, v in brain.items() if v.dims == SPATIAL}
    return flat | phantom.mouse_maps(brain)


def _cleared(seed: int, settings: dict[str, Any]) -> Volumes:
    brain = phantom.cleared(settings["shape"], seed=seed)
    return {"signal": brain.volume, "regions": brain.regions, CELLS: brain.cells}


#: Phantoms that tasks may name: functions from seed and settings to volumes.
PHANTOMS: dict[str, Callable[[int, dict[str, Any]], Volumes]] = {
    "mouse": _mouse,
    "head": lambda seed, settings: dict(phantom.deep_grey(seed, **settings)),
    "neuropil": lambda seed, settings: dict(phantom.neuropil(seed=seed, **settings)),
    "cleared": _cleared,
}


def values(volume: Any) -> np.ndarray[Any, Any]:
    """Return the voxels of a volume in memory; points are returned unchanged."""
    return volume if isinstance(volume, np.ndarray) else np.asarray(volume.data)
