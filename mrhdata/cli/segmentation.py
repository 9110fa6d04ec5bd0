"""Commands that train networks on label volumes, and segment volumes with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command, resumable
from mrhdata.cli.machine import Machine, machine_options
from mrhdata.errors import DataError, ModelError, ParameterError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from torch import nn

    from mrhdata.datasets.subjects import Subject
    from mrhdata.recipes.segmentation import Recipe


@command(
    "mrhdata train segmentation study/ --input 't1w=*T1w*' --labels '*seg*' -o gm-wm/ --recipe tissue2d_0_0",
    "mrhdata train segmentation study/ --input 'qsm=*Chimap*' --labels '*dseg*' -o dgm/ --recipe dgm --folds 4",
    "mrhdata train segmentation Dataset001_BrainTumour/ -o tumour/ --folds 5",
    "mrhdata train segmentation --synthetic label-maps/ -o any-contrast/",
)
@machine_options
def train_segmentation(
    out: Annotated[Path, options.output("Folder of the network, its scores and the labels of the test subjects.")],
    study: Annotated[
        Path | None,
        options.argument(
            "STUDY",
            "Folder with files such as sub-01_T1w.nii.gz, or with imagesTr, labelsTr and dataset.json (nnU-Net).",
        ),
    ] = None,
    synthetic: Annotated[
        Path | None,
        typer.Option(metavar="LABELS", help="Folder of label maps, from which training images are drawn; no STUDY."),
    ] = None,
    targets: Annotated[
        str, typer.Option(help="Labels to learn from label maps: tissue, of FreeSurfer's labels, or labels.")
    ] = "tissue",
    inputs: options.OptionalInputs = None,
    labels: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Pattern of the label volumes, such as '*seg*'.")
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(help="Recipe: unet, tissue2d_0_0 to tissue2d_4_0, dgm (QSM, published), dgm-aniso or dgm-unet."),
    ] = "unet",
    spacing_mm: options.SpacingMm = None,
    split: options.Split = "0.7,0.15,0.15",
    folds: Annotated[
        int | None, typer.Option(min=2, help="Number of folds, to cross-validate instead of splitting once.")
    ] = None,
    epochs: options.Epochs = None,
    machine: Machine = None,
    seed: options.Seed = 0,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Train a network on label volumes and score it.

    Whole subjects are assigned to train, validation and test. The network is OUT/network, for mrhdata segment. With
    --folds every subject is scored once, by a network that was trained on others.

    With --synthetic the network learns from images of random contrast, shape and resolution that are drawn from label
    maps, and needs no real image.

    An interrupted training resumes when you run the command again.
    """
    from dataclasses import asdict

    from mrhdata import models
    from mrhdata.datasets.subjects import split_subjects
    from mrhdata.io.fingerprint import fingerprint_cases
    from mrhdata.models.device import resolve_device
    from mrhdata.models.precision import resolve_precision
    from mrhdata.recipes import segmentation
    from mrhdata.recipes.cross_validation import claim, cross_validate

    if synthetic is not None:
        from mrhdata.cli.synthetic import train_on_label_maps

        excluded = {"STUDY": study, "--input": inputs, "--labels": labels, "--folds": folds}
        plan = (synthetic, out, targets, options.set_options(epochs=epochs) | machine)
        options.answer(train_on_label_maps(*plan, excluded, seed=seed, progress=options.bars(progress)), as_json)
        return
    cases, names = _read_study(study, inputs, labels)
    spacing = None if spacing_mm is None else options.spacing_of("--spacing-mm", spacing_mm)
    settings = _recipe(recipe, cases, spacing, epochs, machine)
    label_values = segmentation.label_map(cases)
    bars = options.bars(progress)

    def train(training: Sequence[Subject], validation: Sequence[Subject], folder: Path) -> nn.Module:
        trained = segmentation.train(
            settings, training, validation, labels=label_values, seed=seed, folder=folder, progress=bars
        )
        options.write_json(folder / "history.json", [[asdict(h) for h in histories] for histories in trained.histories])
        return trained.model

    about: dict[str, Any] = {"recipe": recipe, "epochs": epochs, "spacing_mm": spacing, "labels": label_values}
    about["volumes"] = fingerprint_cases(cases)
    # Folds that one machine finished are not completed with another precision.
    kind = resolve_device(machine.get("device")).type
    about["precision"] = [resolve_precision(stage.precision, kind) for stage in (*settings.training, *settings.again)]
    result: dict[str, Any] = {"written": str(out), "subjects": len(cases), "labels": list(label_values)}
    if folds is not None:
        with resumable():
            scores = cross_validate(train, cases, out, k=folds, seed=seed, about=about, progress=bars)
        _print_folds(scores, result | _summary(scores), names, as_json)
        return
    parts = split_subjects(cases, options.three_shares(split), seed)
    claim(out / "split.json", {**about, "seed": seed, **{k: [c.id for c in v] for k, v in parts.items()}})
    with resumable():
        model = train(parts["training"], parts["validation"], out)
    models.save(model, out / "network")
    scores = _test(model, parts["test"], out)
    options.answer(result | {k: len(v) for k, v in parts.items()} | _summary(scores), as_json)


def _read_study(
    study: Path | None, inputs: list[str] | None, labels: str | None
) -> tuple[list[Subject], dict[int, str]]:
    """Return the cases of a study and the names of its labels, as far as it has them."""
    from mrhdata.datasets import nnunet
    from mrhdata.datasets.subjects import find_nnunet_subjects, find_subjects

    if study is None:
        raise ParameterError("pass the folder of a study, or --synthetic with a folder of label maps")
    if nnunet.is_dataset(study):
        if inputs or labels is not None:
            raise ParameterError(f"{study / 'dataset.json'} names inputs and labels; leave out --input and --labels")
        return find_nnunet_subjects(study), nnunet.read_dataset(study).names
    if not inputs or labels is None:
        raise ParameterError(
            f"{study} has no dataset.json and imagesTr as nnU-Net has them; pass --input CHANNEL=PATTERN and --labels "
            "PATTERN"
        )
    return find_subjects(study, options.channels(inputs), labels), {}


def _recipe(
    name: str,
    cases: Sequence[Subject],
    spacing: float | list[float] | None,
    epochs: int | None,
    machine: dict[str, Any],
) -> Recipe:
    """Return the recipe of a name, by default at the spacing of the first case."""
    from dataclasses import replace

    from mrhdata.recipes import dgm, tissue2d

    first = next(iter(cases[0].inputs.values()))
    chosen = first.mrh.spacing if spacing is None else [spacing] * 3 if isinstance(spacing, float) else spacing
    steps = (float(chosen[0]), float(chosen[1]), float(chosen[2]))
    recipes: dict[str, Any] = {
        "unet": lambda: tissue2d.unet(steps),
        **{network: lambda network=network: tissue2d.slices(network, steps) for network in tissue2d.NETWORKS},
        "dgm": dgm.published,
        "dgm-aniso": lambda: dgm.published("fcn3d_aniso"),
        "dgm-unet": dgm.unet,
    }
    if name not in recipes:
        raise ModelError(f"--recipe must be one of {', '.join(recipes)}; got {name!r}")
    recipe: Recipe = recipes[name]()
    if name.startswith("dgm") and "qsm" not in cases[0].inputs:
        raise DataError(
            f"the recipe {name} takes a susceptibility map; got {list(cases[0].inputs)}. Pass --input qsm=PATTERN."
        )
    changes = options.set_options(epochs=epochs, patience=epochs) | machine
    training, again = (
        tuple(replace(stage, **changes) for stage in stages) for stages in (recipe.training, recipe.again)
    )
    return replace(recipe, training=training, again=again)


def _test(model: nn.Module, cases: Sequence[Subject], out: Path) -> pd.DataFrame:
    """Write labels and a montage of each case, and the scores of all."""
    import pandas as pd

    from mrhdata._runtime.atomic import atomic_write
    from mrhdata.recipes.cross_validation import tested

    scores = pd.concat([tested(model, case, out) for case in cases], ignore_index=True)
    with atomic_write(out / "scores.csv", overwrite=True) as draft:
        scores.to_csv(draft, index=False)
    return scores


def _summary(scores: pd.DataFrame) -> dict[str, Any]:
    from mrhdata.metrics.overlap import pool_over_subjects

    subjects = scores.drop_duplicates("subject")
    return {
        "dice": {str(label): str(interval) for label, interval in pool_over_subjects(scores, "dice").items()},
        "accuracy": round(float(subjects.accuracy.mean()), 4),
        "accuracy without background": round(float(subjects.accuracy_inside.mean()), 4),
        "accuracy of background only": round(float(subjects.accuracy_background.mean()), 4),
    }


def _print_folds(scores: pd.DataFrame, summary: dict[str, Any], names: Mapping[int, str], as_json: bool) -> None:
    """Print the mean Dice of each label in each fold, a row per fold, and the summary."""
    folds = scores.pivot_table(index="fold", columns="label", values="dice", aggfunc="mean")
    folds.columns = folds.columns.map(str)
    if as_json:
        by_fold = {str(fold): row.round(4).to_dict() for fold, row in folds.iterrows()}
        options.answer(summary | {"dice_by_fold": by_fold}, as_json)
        return
    folds = folds.rename(columns={str(value): f"{value} {name}" for value, name in names.items()})
    folds["mean"] = folds.mean(axis=1)
    folds.loc["all"] = folds.mean()
    folds.insert(0, "subjects", [*scores.groupby("fold").subject.nunique(), scores.subject.nunique()])
    typer.echo("Dice of each fold")
    options.table(folds.rename_axis("fold").round(4))
    typer.echo("")
    options.answer(summary, as_json)


@command(
    "mrhdata segment gm-wm/network sub-07_T1w.mnc -o labels.mnc --montage labels.png",
    "mrhdata segment tumour/network imagesTs/ -o labels/",
)
def segment_(
    model: options.Model,
    inputs: options.Cases,
    out: Annotated[
        Path, options.output("File of the labels, whose ending sets the format; for a folder of cases a folder.")
    ],
    montage: Annotated[Path | None, typer.Option(help="PNG of slices with their labels; a folder for cases.")] = None,
    ground_truth: Annotated[
        Path | None, typer.Option(help="True labels, to score; for cases a folder with files of the same names.")
    ] = None,
    region_stats: Annotated[
        Path | None, typer.Option(help="CSV of the first volume's values in each label; a folder for cases.")
    ] = None,
    orientation: options.Orientation = None,
    unit: options.Unit = None,
    spacing: options.Spacing = None,
    memory: options.Memory = "4 GB",
    device: options.Device = None,
    precision: options.Precision = "float32",
    force: options.Force = False,
    overwrite: options.Overwrite = False,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Segment volumes with a trained network.

    Labels lie on the volume's own grid, in any format that can be written: NIfTI, MINC2, NRRD, OME-Zarr. With several
    channels the first one sets the grid.
    """
    from mrhdata import models
    from mrhdata.inference.segmenter import segment

    network = models.load(model)
    spec: Any = network.spec

    def run(volumes: Any) -> xr.DataArray:
        return segment(
            network,
            volumes,
            memory=memory,
            device=device,
            precision=precision,
            force=force,
            progress=options.bars(progress),
        )

    corrections = options.read_options(orientation=orientation, unit=unit, spacing=spacing)
    extras = _Extras(montage, ground_truth, region_stats, spec)
    cases = options.case_files(inputs)
    if cases:
        files = {case: options.case_channels(spec, case, paths) for case, paths in cases.items()}
        digest = options.network_digest(model)
        _segment_cases(
            run,
            files,
            out,
            extras,
            corrections,
            settings=[digest, str(montage), str(region_stats), corrections, options.precision_on(precision, device)],
            overwrite=overwrite,
            as_json=as_json,
        )
    else:
        _segment_volume(run, inputs, out, extras, corrections, overwrite, as_json)


class _Extras:
    """Outputs of a segmentation besides the labels: a montage, scores, and values in each label."""

    def __init__(self, montage: Path | None, truth: Path | None, region_stats: Path | None, spec: Any) -> None:
        self.montage, self.truth, self.region_stats, self.spec = montage, truth, region_stats, spec

    def of_case(self, case: str) -> _Extras:
        """Return those of one case, whose files are in folders."""
        from mrhdata.datasets.nnunet import cases_in

        truth = None
        if self.truth is not None:
            files = cases_in(self.truth).get(case, [])
            if len(files) != 1:
                raise DataError(f"--ground-truth {self.truth} has no labels of {case}; name its files as the cases")
            truth = files[0]
        montage = None if self.montage is None else self.montage / f"{case}.png"
        region_stats = None if self.region_stats is None else self.region_stats / f"{case}.csv"
        return _Extras(montage, truth, region_stats, self.spec)

    def read_truth(self, volumes: Mapping[str, xr.DataArray]) -> xr.DataArray | None:
        """Return the true labels; a wrong grid is found here, before hours of work."""
        from mrhdata.io import formats
        from mrhdata.volume.groups import on_grid_of

        if self.truth is None:
            return None
        labels = formats.read(self.truth, kind="labels")
        grid = next((channel for channel in self.spec.channels if channel in volumes), next(iter(volumes)))
        on_grid_of("truth", labels, repr(grid), volumes[grid])
        return labels

    def write(self, first: xr.DataArray, truth: xr.DataArray | None, labels: xr.DataArray) -> None:
        """Write the montage and the values of the first volume in each label."""
        import numpy as np

        from mrhdata._runtime.atomic import atomic_write
        from mrhdata.metrics.overlap import roi_table
        from mrhdata.viz import plots

        known = _names(self.spec.labels)
        if self.montage is not None:
            plots.montage(first, truth, labels, self.montage, names=known)
        if self.region_stats is not None:
            names = {int(v): known.get(int(v), str(v)) for v in self.spec.labels[1:]}
            table = roi_table(first.values, labels.values, names, float(np.prod(labels.mrh.spacing)))
            with atomic_write(self.region_stats, overwrite=True) as draft:
                table.to_csv(draft, index=False)


def _names(labels: Sequence[int]) -> dict[int, str]:
    """Return the names of the labels if they are those of deep nuclei."""
    from mrhdata.recipes.dgm import LABELS

    return LABELS if tuple(labels[1:]) == tuple(LABELS) else {}


def _segment_volume(
    run: Callable[[Any], xr.DataArray],
    inputs: list[str],
    out: Path,
    extras: _Extras,
    corrections: Any,
    overwrite: bool,
    as_json: bool,
) -> None:
    from mrhdata._runtime.atomic import check_target
    from mrhdata.datasets.subjects import Subject
    from mrhdata.inference.segmenter import score_labels
    from mrhdata.io import formats

    check_target(out, overwrite)
    formats.writer_of(out)
    volumes = {name: formats.read(file, **corrections) for name, file in options.channels(inputs).items()}
    truth = extras.read_truth(volumes)
    first = next(iter(volumes.values()))
    # One volume without a name is the only channel, whatever its file is called.
    labels = run(first if len(volumes) == 1 and "=" not in inputs[0] else volumes)
    formats.write(labels, out, overwrite=overwrite)
    extras.write(first, truth, labels)
    values: dict[str, Any] = {"written": str(out), "labels": [int(v) for v in extras.spec.labels]}
    if truth is not None:
        scores = score_labels(Subject("1", {}, truth), labels, extras.spec.labels)
        values["dice"] = dict(zip(scores.label.astype(str), scores.dice.round(4).tolist(), strict=True))
        values["accuracy"] = round(float(scores.accuracy[0]), 4)
    options.answer(values, as_json)


def _segment_cases(
    run: Callable[[Any], xr.DataArray],
    cases: Mapping[str, Mapping[str, str]],
    out: Path,
    extras: _Extras,
    corrections: Any,
    *,
    settings: Any,
    overwrite: bool,
    as_json: bool,
) -> None:
    from mrhdata.inference.case_folder import process_cases
    from mrhdata.io import formats

    def read(files: Mapping[str, str]) -> dict[str, xr.DataArray]:
        return {name: formats.read(file, **corrections).rename(name) for name, file in files.items()}

    def process(case: str, files: Mapping[str, str], target: Path) -> None:
        volumes, own = read(files), own_extras[case]
        truth = own.read_truth(volumes)
        labels = run(volumes)
        formats.write(labels, target, overwrite=overwrite)
        own.write(next(iter(volumes.values())), truth, labels)

    own_extras = {case: extras.of_case(case) for case in cases}
    for case, files in cases.items():
        own_extras[case].read_truth(read(files))
    for folder in (extras.montage, extras.region_stats):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    with resumable():
        outputs = process_cases(cases, out, process, settings=settings, overwrite=overwrite)
    values: dict[str, Any] = {
        "written": str(out),
        "cases": len(outputs),
        "labels": [int(v) for v in extras.spec.labels],
    }
    if extras.truth is not None:
        values["dice"] = _score_cases(outputs, own_extras, out / "scores.csv")
    options.answer(values, as_json)


def _score_cases(outputs: Mapping[str, Path], extras: Mapping[str, _Extras], path: Path) -> dict[str, Any]:
    """Write the scores of all cases; return the mean Dice of each label."""
    import pandas as pd

    from mrhdata._runtime.atomic import atomic_write
    from mrhdata.datasets.subjects import Subject
    from mrhdata.inference.segmenter import score_labels
    from mrhdata.io import formats
    from mrhdata.metrics.overlap import pool_over_subjects

    tables = []
    for case, file in outputs.items():
        truth = formats.read(str(extras[case].truth), kind="labels")
        labels = formats.read(file, kind="labels")
        tables.append(score_labels(Subject(case, {}, truth), labels, extras[case].spec.labels))
    scores = pd.concat(tables, ignore_index=True)
    with atomic_write(path, overwrite=True) as draft:
        scores.to_csv(draft, index=False)
    return {str(label): str(interval) for label, interval in pool_over_subjects(scores, "dice").items()}
