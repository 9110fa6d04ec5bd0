"""Commands that train networks on label volumes, label volumes with them, and score labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command, resumable
from mrhdata.errors import DataError, ModelError

if TYPE_CHECKING:
    from torch import nn

    from mrhdata.inference.segmenter import Case
    from mrhdata.recipes.segmentation import Recipe


@command(
    "mrhdata train-labels gm-wm/ study/ --input 't1w=*T1w*' --labels '*seg*' --recipe tissue2d_0_0",
    "mrhdata train-labels dgm/ study/ --input 'qsm=*Chimap*' --labels '*dseg*' --recipe dgm --folds 4",
)
def train_labels(
    out: Annotated[Path, typer.Argument(help="Folder of the network, its scores and the labels of the test subjects.")],
    folder: Annotated[Path, typer.Argument(help="Folder with files such as sub-01_T1w.nii.gz or sub-01_..._T1w.mnc.")],
    inputs: options.Inputs,
    labels: Annotated[str, typer.Option(help="Pattern of the label volumes, such as '*seg*'.")],
    recipe: Annotated[
        str, typer.Option(help="unet, tissue2d_0_0 to tissue2d_4_0, dgm (QSM, published), dgm-aniso or dgm-unet.")
    ] = "unet",
    spacing_mm: options.SpacingMm = None,
    shares: options.Shares = "0.7,0.15,0.15",
    folds: Annotated[int | None, typer.Option(help="Cross-validate in so many folds instead.")] = None,
    epochs: options.Epochs = None,
    seed: options.Seed = 0,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Train a network to label volumes, subject by subject apart, and score it on subjects it never saw.

    A run that was stopped goes on when it is called again.
    """
    from dataclasses import asdict

    from mrhdata import models
    from mrhdata.io.fingerprint import fingerprint_cases
    from mrhdata.recipes import segmentation
    from mrhdata.recipes.cases import find_cases, split_subjects
    from mrhdata.recipes.cross_validation import claim, cross_validate

    cases = find_cases(folder, options.channels(inputs), labels)
    made = _recipe(recipe, cases, spacing_mm, epochs)
    values = segmentation.label_map(cases)
    shown = options.shown(progress)

    def train(training: Sequence[Case], validation: Sequence[Case], place: Path) -> nn.Module:
        trained = segmentation.train(made, training, validation, labels=values, seed=seed, folder=place, progress=shown)
        _written(place / "history.json", [[asdict(h) for h in histories] for histories in trained.histories])
        return trained.model

    about = {
        "recipe": recipe,
        "epochs": epochs,
        "spacing_mm": spacing_mm,
        "labels": values,
        "volumes": fingerprint_cases(cases),
    }
    found: dict[str, Any] = {"written": str(out), "subjects": len(cases), "labels": list(values)}
    if folds is not None:
        with resumable():
            table = cross_validate(train, cases, out, k=folds, seed=seed, about=about, progress=shown)
        options.answer(found | _summary(table), as_json)
        return
    parts = split_subjects(cases, options.shares(shares), seed)
    claim(out / "split.json", {**about, "seed": seed, **{k: [c.subject for c in v] for k, v in parts.items()}})
    with resumable():
        model = train(parts["training"], parts["validation"], out)
    models.save(model, out / "network")
    table = _tested(model, parts["test"], out)
    options.answer(found | {k: len(v) for k, v in parts.items()} | _summary(table), as_json)


def _recipe(name: str, cases: Sequence[Case], spacing_mm: list[float] | None, epochs: int | None) -> Recipe:
    """The recipe by its name, at the spacing of the first case where none is given."""
    from dataclasses import replace

    from mrhdata.recipes import dgm, tissue2d

    first = next(iter(cases[0].inputs.values()))
    chosen = [float(s) for s in (first.mrh.spacing if spacing_mm is None else spacing_mm)]
    steps = (chosen[0], chosen[1], chosen[2]) if len(chosen) == 3 else (chosen[0],) * 3
    known: dict[str, Any] = {
        "unet": lambda: tissue2d.unet(steps),
        **{network: lambda network=network: tissue2d.slices(network, steps) for network in tissue2d.NETWORKS},
        "dgm": dgm.published,
        "dgm-aniso": lambda: dgm.published("fcn3d_aniso"),
        "dgm-unet": dgm.unet,
    }
    if name not in known:
        raise ModelError(f"there is no recipe called {name!r}; there are {', '.join(known)}")
    made: Recipe = known[name]()
    if name.startswith("dgm") and "qsm" not in cases[0].inputs:
        raise DataError(
            f"the recipe {name} wants a susceptibility map; give --input qsm=PATTERN, not {list(cases[0].inputs)}"
        )
    if epochs is None:
        return made
    changed = [tuple(replace(t, epochs=epochs, patience=epochs) for t in part) for part in (made.training, made.again)]
    return replace(made, training=changed[0], again=changed[1])


def _tested(model: nn.Module, cases: Sequence[Case], out: Path) -> Any:
    """Labels of each case in its own format, a montage, and all scores."""
    import pandas as pd

    from mrhdata._runtime.atomic import atomic_write
    from mrhdata.recipes.cross_validation import tested

    table = pd.concat([tested(model, case, out) for case in cases], ignore_index=True)
    with atomic_write(out / "scores.csv", overwrite=True) as draft:
        table.to_csv(draft, index=False)
    return table


def _summary(table: Any) -> dict[str, Any]:
    from mrhdata.metrics.overlap import pool_over_subjects

    subjects = table.drop_duplicates("subject")
    return {
        "dice": {str(label): str(held) for label, held in pool_over_subjects(table, "dice").items()},
        "accuracy": round(float(subjects.accuracy.mean()), 4),
        "accuracy without background": round(float(subjects.accuracy_inside.mean()), 4),
        "accuracy of background alone": round(float(subjects.accuracy_background.mean()), 4),
    }


def _written(path: Path, content: Any) -> None:
    import json

    from mrhdata._runtime.atomic import atomic_write

    with atomic_write(path, overwrite=True) as draft:
        draft.write_text(json.dumps(content) + "\n", encoding="utf-8")


@command("mrhdata segment gm-wm/network labels.mnc sub-07_T1w.mnc --montage labels.png")
def segment_(
    model: Annotated[Path, typer.Argument(help="Folder of a network that was trained on labels.")],
    out: Annotated[Path, typer.Argument(help="File of the labels: its ending says the format.")],
    inputs: Annotated[list[str], typer.Argument(help="Volumes, as FILE or CHANNEL=FILE; the first gives the grid.")],
    montage: Annotated[Path | None, typer.Option(help="PNG of slices with their labels.")] = None,
    truth: Annotated[Path | None, typer.Option(help="True labels, to score.")] = None,
    values: Annotated[Path | None, typer.Option(help="CSV of what the first volume holds in each label.")] = None,
    memory: options.Memory = "4 GB",
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Label a volume on its own grid, in any format that is written: NIfTI, MINC2, NRRD, OME-Zarr."""
    from mrhdata import models
    from mrhdata._runtime.atomic import check_target
    from mrhdata.inference.segmenter import Case, score_labels, segment
    from mrhdata.io import formats
    from mrhdata.viz import plots
    from mrhdata.volume.groups import on_grid_of

    check_target(out, overwrite)
    formats.writer_of(out)
    network = models.load(model)
    spec: Any = network.spec
    named = {k: formats.read(v) for k, v in options.channels(inputs).items()}
    given = next(iter(named.values())) if len(named) == 1 and "=" not in inputs[0] else named
    known = None if truth is None else formats.read(truth, kind="labels")
    if known is not None:
        # Before hours of work, whose answer could not be scored.
        grid = next((channel for channel in spec.channels if channel in named), next(iter(named)))
        on_grid_of("truth", known, repr(grid), named[grid])
    found = segment(network, given, memory=memory, device=device, progress=options.shown(progress))
    formats.write(found, out, overwrite=overwrite)
    first = next(iter(named.values()))
    if montage is not None:
        plots.montage(first, known, found, montage, names=_names(spec.labels))
    answer: dict[str, Any] = {"written": str(out), "labels": [int(v) for v in spec.labels]}
    if known is not None:
        table = score_labels(Case("1", {}, known), found, spec.labels)
        answer["dice"] = dict(zip(table.label.astype(str), table.dice.round(4).tolist(), strict=True))
        answer["accuracy"] = round(float(table.accuracy[0]), 4)
    if values is not None:
        _values(first, found, spec.labels, values)
    options.answer(answer, as_json)


def _names(known: Sequence[int]) -> dict[int, str]:
    """Names of the labels, where they are those of deep nuclei."""
    from mrhdata.recipes.dgm import LABELS

    return LABELS if tuple(known[1:]) == tuple(LABELS) else {}


def _values(volume: Any, labels: Any, known: Sequence[int], path: Path) -> None:
    """Mean, standard deviation, median and volume of each label, for comparing reconstructions."""
    import numpy as np

    from mrhdata._runtime.atomic import atomic_write
    from mrhdata.metrics.overlap import roi_table

    names = {int(v): _names(known).get(int(v), str(v)) for v in known[1:]}
    table = roi_table(volume.values, labels.values, names, float(np.prod(labels.mrh.spacing)))
    with atomic_write(path, overwrite=True) as draft:
        table.to_csv(draft, index=False)
