"""Subjects of a task: phantoms, made once and kept, or volumes of a catalogue."""

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

#: Volumes by name; a table of cells is called so.
Volumes = Mapping[str, Any]
CELLS = "cells"


def parts_of(task: Task, work: Path) -> dict[str, list[Subject]]:
    """The subjects of each part of a task, with their truth.

    Raises
    ------
    DataError
        A volume that the task names is not there.
    """
    return {part: [_subject(task, given, work) for given in task.split[part]] for part in PARTS}


def _subject(task: Task, given: Any, work: Path) -> Subject:
    spec = given if isinstance(given, Mapping) else {"subject": given}
    who, ranges = spec["subject"], {d: slice(*spec[d]) for d in SPATIAL if d in spec}
    held = _phantom(task, who, work) if "phantom" in task.data else _listed(task, who)
    wanted = [*task.data["inputs"], task.data["truth"], *([task.data["mask"]] if "mask" in task.data else [])]
    missing = [name for name in wanted if name not in held]
    if missing:
        raise DataError(f"{task.name}: subject {who} has no {missing}; it has {sorted(held)}")
    held = {name: held[name].isel(ranges) if ranges else held[name] for name in wanted}
    told = "".join(f" {d}{r.start}-{r.stop}" for d, r in ranges.items())
    inputs = {name: held[name].rename(name) for name in task.data["inputs"]}
    mask = held[task.data["mask"]] if "mask" in task.data else None
    truth = held[task.data["truth"]]
    if isinstance(truth, pd.DataFrame):
        made = Subject(f"{who}{told}", inputs, points=truth[["X", "Y", "Z"]].to_numpy(), mask=mask)
    else:
        made = Subject(f"{who}{told}", inputs, truth, mask)
    return _scanned(made, task, who) if task.kind == "restoration" else made


def _scanned(subject: Subject, task: Task, who: Any) -> Subject:
    """What a fast scan would have given of each input."""
    name = task.settings["degradation"]
    if name not in PUBLISHED:
        raise DataError(f"{task.name}: degradation is one of {sorted(PUBLISHED)}, not {name!r}")
    seed = int.from_bytes(fingerprint.digest([str(who), task.name]).encode()[:4], "little")
    low = {n: degrade_stack(v.compute(), PUBLISHED[name], seed).rename(n) for n, v in subject.inputs.items()}
    return replace(subject, inputs=low)


def _listed(task: Task, who: Any) -> Volumes:
    return catalog.open_catalog(task.folder / task.data["catalog"]).select(subject=who)


def _phantom(task: Task, seed: int, work: Path) -> Volumes:
    """A phantom's volumes, made where they are not there yet."""
    kind, settings = task.data["phantom"], dict(task.data.get("settings", {}))
    if kind not in PHANTOMS:
        raise DataError(f"{task.name}: phantom is one of {', '.join(PHANTOMS)}, not {kind!r}")
    place = work / "phantoms" / f"{kind}-{fingerprint.digest([kind, settings])[:8]}" / str(seed)
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(place) as draft:
            draft.mkdir()
            for name, made in PHANTOMS[kind](seed, settings).items():
                if isinstance(made, pd.DataFrame):
                    made.to_parquet(draft / f"{name}.parquet", index=False)
                else:
                    formats.write(made, draft / f"{name}.zarr")
    return _Stored(place)


class _Stored(Volumes):
    """Volumes and tables of a folder by name, each read when it is asked for: a task names few of a phantom's."""

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


#: Phantoms that tasks may name: seed and settings to volumes.
PHANTOMS: dict[str, Callable[[int, dict[str, Any]], Volumes]] = {
    "mouse": _mouse,
    "head": lambda seed, settings: dict(phantom.deep_grey(seed, **settings)),
    "neuropil": lambda seed, settings: dict(phantom.neuropil(seed=seed, **settings)),
    "cleared": _cleared,
}


def values(volume: Any) -> np.ndarray[Any, Any]:
    """Voxels of a volume in memory; points as they are."""
    return volume if isinstance(volume, np.ndarray) else np.asarray(volume.data)
