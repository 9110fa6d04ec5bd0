"""Commands that train networks on label volumes, and segment volumes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command, resumable
from mrhdata.cli.machine import Machine, machine_options
from mrhdata.cli.synthetic import LabelMapPlan, train_on_label_maps
from mrhdata.errors import DataError, ModelError, ParameterError

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from mrhdata.datasets.subjects import Subject
    from mrhdata.recipes.segmentation import Recipe


@command(
    "mrhdata train segmentation study/ --input 't1w=*T1w*' --labels '*seg*' -o gm-wm/ --recipe tissue2d_0_0",
    "mrhdata train segmentation study/ --input 'qsm=*Chimap*' --labels '*dseg*' -o dgm/ --recipe dgm --folds 4",
    "mrhdata train segmentation Dataset001_BrainTumour/ -o tumour/ --folds 5",
    "mrhdata train segmentation --synthetic label-maps/ -o any-contrast/",
    "mrhdata train segmentation study/ --input 't1w=*T1w*' --labels '*seg*' --synthetic label-maps/ -o mixed/",
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
        typer.Option(
            metavar="LABELS",
            help="Folder of label maps, from which training images are drawn; mixed with STUDY if passed.",
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Network with which a training with --synthetic begins."),
    ] = None,
    targets: Annotated[
        str,
        typer.Option(help="Labels to learn from label maps: tissue or structures, both of FreeSurfer, or labels."),
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
    overwrite: options.Overwrite = False,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Train a network on label volumes and score it.

    Whole subjects are assigned to train, validation and test. The network is OUT/network, for mrhdata segment. With
    --folds every subject is scored once, by a network that was trained on others.

    With --synthetic the network learns from images of random contrast, shape and resolution that are drawn from label
    maps, and needs no real image. With STUDY half of the batches show its images, whose labels are those of --targets.

    An interrupted training resumes when you run the command again; --overwrite removes another one from the folder.
    """
    from mrhdata import models
    from mrhdata.datasets.subjects import split_subjects
    from mrhdata.io.fingerprint import fingerprint_cases
    from mrhdata.recipes.cross_validation import cross_validate
    from mrhdata.recipes.run_plan import claim

    maps = _label_map_plan(synthetic, targets, start, spacing_mm, epochs, machine)
    bars = options.bars(progress)
    if maps is not None and study is None:
        excluded = {"--input": inputs, "--labels": labels, "--folds": folds}
        options.answer(train_on_label_maps(maps, out, excluded, seed=seed, overwrite=overwrite, progress=bars), as_json)
        return
    cases, names = _read_study(study, inputs, labels)
    plan = maps or _RecipePlan(recipe, cases, names, spacing_mm, epochs, machine)
    about: dict[str, Any] = plan.about() | {"volumes": fingerprint_cases(cases)}

    def train(training: Sequence[Subject], validation: Sequence[Subject], folder: Path) -> nn.Module:
        return plan.train(training, validation, folder, seed, bars)

    result: dict[str, Any] = {"written": str(out), "subjects": len(cases), "labels": list(plan.labels)}
    if folds is not None:
        with resumable():
            scores = cross_validate(
                train, cases, out, k=folds, seed=seed, about=about, overwrite=overwrite, progress=bars
            )
        _print_folds(scores, result | _summary(scores), names, as_json)
        return
    parts = split_subjects(cases, options.three_shares(split), seed)
    subjects = {part: [case.id for case in members] for part, members in parts.items()}
    claim(out / "split.json", {**about, "seed": seed, **subjects}, overwrite=overwrite)
    with resumable():
        model = train(parts["training"], parts["validation"], out)
    models.save(model, out / "network")
    scores = _test(model, parts["test"], out)
    options.answer(result | {k: len(v) for k, v in parts.items()} | _summary(scores), as_json)


class _RecipePlan:
    """A training on the images of a study by a recipe."""

    def __init__(
        self,
        name: str,
        cases: Sequence[Subject],
        names: Mapping[int, str],
        spacing_mm: str | None,
        epochs: int | None,
        machine: dict[str, Any],
    ) -> None:
        from dataclasses import replace

        from mrhdata.recipes import segmentation

        spacing = None if spacing_mm is None else options.spacing_of("--spacing-mm", spacing_mm)
        recipe = _recipe(name, cases, spacing, epochs, machine)
        self.recipe = replace(recipe, names=names or recipe.names)
        self.labels = segmentation.label_map(cases)
        self._settings = {"recipe": name, "epochs": epochs, "spacing_mm": spacing, "labels": self.labels}
        self._device = machine.get("device")

    def about(self) -> dict[str, Any]:
        """Return what a run is known by."""
        from mrhdata.models.device import resolve_device
        from mrhdata.models.precision import resolve_precision

        # Folds that one machine finished are not completed with another precision.
        kind = resolve_device(self._device).type
        stages = (*self.recipe.training, *self.recipe.again)
        return self._settings | {"precision": [resolve_precision(stage.precision, kind) for stage in stages]}

    def train(
        self, subjects: Sequence[Subject], validation: Sequence[Subject], folder: Path, seed: int, progress: Any
    ) -> nn.Module:
        """Train a network; write ``history.json``."""
        from dataclasses import asdict

        from mrhdata.recipes import segmentation

        trained = segmentation.train(
            self.recipe, subjects, validation, labels=self.labels, seed=seed, folder=folder, progress=progress
        )
        options.write_json(folder / "history.json", [[asdict(h) for h in histories] for histories in trained.histories])
        return trained.model


def _label_map_plan(
    synthetic: Path | None,
    targets: str,
    start: Path | None,
    spacing_mm: str | None,
    epochs: int | None,
    machine: dict[str, Any],
) -> LabelMapPlan | None:
    """Return the plan of a training on label maps, or None without --synthetic."""
    if synthetic is None:
        if start is not None:
            raise ParameterError(f"--start needs --synthetic; got only --start {start}. Pass a folder of label maps")
        return None
    if spacing_mm is not None:
        raise ParameterError(
            f"--spacing-mm must be left out with --synthetic, whose maps set it; got {spacing_mm}. Resample the maps"
        )
    return LabelMapPlan(synthetic, targets, start, options.set_options(epochs=epochs) | machine)


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
