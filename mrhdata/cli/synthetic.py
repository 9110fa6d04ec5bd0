"""Training on images that are drawn from label maps, for ``mrhdata train segmentation --synthetic``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrhdata.cli import options
from mrhdata.cli.app import resumable
from mrhdata.errors import DataError, ParameterError

if TYPE_CHECKING:
    import xarray as xr

    from mrhdata.recipes.synthetic_labels import LabelScheme
    from mrhdata.synthesis.structures import Anatomy


def train_on_label_maps(
    folder: Path,
    out: Path,
    targets: str,
    changes: dict[str, Any],
    excluded: dict[str, Any],
    *,
    seed: int,
    progress: bool,
) -> dict[str, Any]:
    """Train a network on label maps and write it to ``out/network``; return what the command prints.

    Parameters
    ----------
    folder : path
        Folder of the label maps, with their names in ``labels.tsv`` if they are not those of FreeSurfer.
    out : path
        Folder of the network and its checkpoint.
    targets : {"tissue", "structures", "labels"}
        Labels that the network learns: tissues or structures of FreeSurfer's labels, or those of the maps.
    changes : dict
        Settings of the training that replace those of the recipe.
    excluded : dict
        Options of a training on real images by name, none of which may be passed.
    """
    from dataclasses import asdict, replace

    from mrhdata import models
    from mrhdata.io.fingerprint import fingerprint
    from mrhdata.recipes import synthetic
    from mrhdata.recipes.cross_validation import claim

    if passed := [name for name, value in excluded.items() if value]:
        raise ParameterError(f"--synthetic excludes {', '.join(excluded)}; got {', '.join(passed)}. Leave them out")
    maps = _read_maps(folder)
    anatomy, scheme = _labels_to_learn(folder, maps, targets)
    recipe = synthetic.SyntheticRecipe(targets=scheme.targets, names=scheme.names, finish=scheme.finish)
    recipe = replace(recipe, training=replace(recipe.training, **changes))
    about = {"recipe": repr(recipe), "seed": seed}
    claim(out / "plan.json", about | {"volumes": {name: fingerprint(volume) for name, volume in maps.items()}})
    with resumable():
        model, history = synthetic.train(recipe, maps, anatomy=anatomy, seed=seed, folder=out, progress=progress)
    models.save(model, out / "network")
    options.write_json(out / "history.json", asdict(history))
    spec: Any = model.spec
    values = {"written": str(out / "network"), "maps": len(maps), "labels": list(spec.labels)}
    return values | {"dice on synthetic images": round(history.dice[-1], 4), "seconds": round(history.seconds)}


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
