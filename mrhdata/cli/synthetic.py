"""Training on images that are drawn from label maps, for ``mrhdata train segmentation --synthetic``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrhdata.cli import options
from mrhdata.cli.app import resumable
from mrhdata.errors import DataError, ParameterError

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

    from mrhdata.datasets.subjects import Subject
    from mrhdata.recipes.synthetic_labels import LabelScheme
    from mrhdata.synthesis.structures import Anatomy


def train_on_label_maps(
    plan: LabelMapPlan, out: Path, excluded: dict[str, Any], *, seed: int, overwrite: bool, progress: Any
) -> dict[str, Any]:
    """Train a network on label maps only and write it to ``out/network``; return what the command prints.

    Parameters
    ----------
    plan : LabelMapPlan
        Label maps and settings.
    out : path
        Folder of the network and its checkpoint.
    excluded : dict
        Options of a training on real images by name, none of which may be passed.
    seed, overwrite, progress
        Options of the command.
    """
    from mrhdata import models
    from mrhdata.recipes.run_plan import claim

    if passed := [name for name, value in excluded.items() if value]:
        raise ParameterError(
            f"--synthetic without STUDY excludes {', '.join(excluded)}; got {', '.join(passed)}. Leave them out"
        )
    claim(out / "plan.json", plan.about() | {"seed": seed}, overwrite=overwrite)
    with resumable():
        model = plan.train((), (), out, seed, progress)
    models.save(model, out / "network")
    spec: Any = model.spec
    history = json.loads((out / "history.json").read_text(encoding="utf-8"))
    values = {"written": str(out / "network"), "maps": len(plan.maps), "labels": list(spec.labels)}
    return values | {"dice on synthetic images": round(history["dice"][-1], 4), "seconds": round(history["seconds"])}


class LabelMapPlan:
    """Label maps, the labels to learn from them, and the settings of the training.

    Parameters
    ----------
    folder : path
        Folder of the label maps, with their names in ``labels.tsv`` if they are not those of FreeSurfer.
    targets : {"tissue", "structures", "labels"}
        Labels that the network learns: tissues or structures of FreeSurfer's labels, or those of the maps.
    start : path or None
        Network with which the training begins: its folder, or the name of a shipped one.
    changes : dict
        Settings of the training that replace those of the recipe.
    """

    def __init__(self, folder: Path, targets: str, start: Path | None, changes: dict[str, Any]) -> None:
        from dataclasses import replace

        from mrhdata import models
        from mrhdata.recipes import synthetic

        self.maps = _read_maps(folder)
        self.anatomy, scheme = _labels_to_learn(folder, self.maps, targets)
        recipe = synthetic.SyntheticRecipe(targets=scheme.targets, names=scheme.names, finish=scheme.finish)
        self.recipe = replace(recipe, training=replace(recipe.training, **changes))
        self.start = None if start is None else models.load(start)
        self._start_digest = None if start is None else options.network_digest(start)

    def about(self) -> dict[str, Any]:
        """Return what a run is known by."""
        from mrhdata.io.fingerprint import fingerprint

        maps = {name: fingerprint(volume) for name, volume in self.maps.items()}
        return {"recipe": repr(self.recipe), "start": self._start_digest, "maps": maps}

    @property
    def labels(self) -> tuple[int, ...]:
        """All labels of the network, the background first."""
        return self.recipe.labels

    def train(
        self, subjects: Sequence[Subject], validation: Sequence[Subject], folder: Path, seed: int, progress: Any
    ) -> nn.Module:
        """Train a network on the label maps, and on real images if there are some; write ``history.json``."""
        from dataclasses import asdict

        from mrhdata.recipes import synthetic

        model, history = synthetic.train(
            self.recipe,
            self.maps,
            subjects=subjects,
            validation=validation,
            start=self.start,
            anatomy=self.anatomy,
            seed=seed,
            folder=folder,
            progress=progress,
        )
        options.write_json(folder / "history.json", asdict(history))
        return model


def _read_maps(folder: Path) -> dict[str, xr.DataArray]:
    """Return the label volumes of a folder by the names of their files."""
    from mrhdata.io import formats

    if not folder.is_dir():
        raise DataError(f"--synthetic must be a folder of label maps; got {folder}. Create it, or correct the path")
    files = [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(tuple(formats.FORMATS))]
    if not files:
        raise DataError(f"{folder} has no label maps; they must end in one of {', '.join(sorted(formats.FORMATS))}")
    return {path.name.partition(".")[0]: formats.read(path, kind="labels") for path in files}


def _labels_to_learn(folder: Path, maps: dict[str, xr.DataArray], targets: str) -> tuple[Anatomy, LabelScheme]:
    """Return the structures of the maps, and the labels of the network."""
    import numpy as np

    from mrhdata.recipes.synthetic_labels import SCHEMES, LabelScheme
    from mrhdata.synthesis.structures import FREESURFER, Anatomy

    present = sorted({int(label) for volume in maps.values() for label in np.unique(volume.values)} - {0})
    unknown = sorted(set(present) - set(FREESURFER.labels.tolist()))
    if targets in SCHEMES:
        if unknown:
            raise DataError(
                f"--targets {targets} needs the labels of FreeSurfer; got {unknown[:9]}. Pass --targets labels"
            )
        return FREESURFER, SCHEMES[targets]
    if targets != "labels":
        raise ParameterError(f"--targets must be tissue, structures or labels; got {targets!r}")
    table = folder / "labels.tsv"
    default = Anatomy.of_labels(present) if unknown else FREESURFER
    anatomy = Anatomy.read(table) if table.is_file() else default
    named = {structure.label: structure.name for structure in anatomy.structures}
    names = {label: named.get(label, str(label)) for label in present}
    return anatomy, LabelScheme(names, {label: (label,) for label in present})
