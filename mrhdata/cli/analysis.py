"""Commands that score contrasts and maps against histology."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command
from mrhdata.errors import DataError, ParameterError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from mrhdata.analysis.result import Sensitivity
    from mrhdata.models.spec import ModelSpec
    from mrhdata.viz.provenance import ReportFile


Contrasts = Annotated[list[str], options.argument("CONTRASTS", "Single contrasts on one grid, as FILE or NAME=FILE.")]
Threshold = Annotated[
    str, typer.Option(help="Threshold of the histology: a number, 'otsu', or a percentile such as 20%.")
]
Predictions = Annotated[
    list[str] | None,
    typer.Option("--prediction", metavar="NAME=FILE", help="Virtual histology, as FILE or NAME=FILE; once per map."),
]
TrainMask = Annotated[str | None, typer.Option(help="Mask of the voxels to fit on; the others are scored.")]
Parts = Annotated[
    str | None, typer.Option(help="Labels that mrhdata train histology wrote: fits use part 1, scores part 3.")
]
Regions = Annotated[str | None, typer.Option(help="Label volume; each region gets an AUC too.")]
Reference = Annotated[
    str | None, typer.Option(help="Contrast to compare with the others; by default the one with the highest AUC.")
]


@command(
    "mrhdata sensitivity t2w.nii.gz mtr.nii.gz --histology af.nrrd --threshold 20% --mask brain.mha",
)
def sensitivity(
    contrasts: Contrasts,
    histology: Annotated[str, typer.Option(help="Ground truth.")],
    threshold: Threshold,
    positive: Annotated[str, typer.Option(help="Positive side of the threshold: below or above.")] = "below",
    prediction: Predictions = None,
    mask: options.Mask = None,
    train_mask: TrainMask = None,
    parts: Parts = None,
    regions: Regions = None,
    reference: Reference = None,
    out: Annotated[Path | None, options.output("CSV of all scores with their intervals.")] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Score contrasts against histology as ground truth.

    The first line says which contrast shows the histology best, or which ones are not distinguishable.
    """
    from mrhdata._runtime.atomic import atomic_write, check_target
    from mrhdata.io import formats
    from mrhdata.viz.report import readable

    if out is not None:
        check_target(out, overwrite)
    comparison = _Comparison(contrasts, prediction, mask, train_mask, parts, regions)
    result = comparison.score(formats.read(histology), threshold, positive)
    answer = result.answer(reference)
    if out is not None:
        with atomic_write(out, overwrite=overwrite) as draft:
            result.table.to_csv(draft, index=False)
    if as_json:
        typer.echo(result.table.to_json(orient="records"))
    else:
        typer.echo(answer)
        scores = ("auc", "sensitivity", "r2", "rmse", "partial_correlation")
        typer.echo(readable(result, scores=scores).to_string(index=False))
        typer.echo(
            f"{result.positives} of {result.rows} voxels positive ({positive} {result.threshold:.4g}); sensitivity at "
            f"a specificity of {result.specificity}; {result.blocks} blocks of {result.block_voxels} voxels"
        )


@command(
    "mrhdata report t2w=t2w.zarr --histology af.zarr --prediction virtual=map.zarr --mask brain.mha -o page.html",
)
def report(
    contrasts: Contrasts,
    histology: Annotated[
        list[str], typer.Option(metavar="NAME=FILE", help="Ground truth, as FILE or NAME=FILE; once per volume.")
    ],
    out: Annotated[Path, options.output("HTML page; its text and tables are written as Markdown too.")],
    threshold: Threshold = "20%",
    positive: Annotated[
        list[str] | None,
        typer.Option(help="Positive side of the threshold: below or above; once, or once per histology."),
    ] = None,
    prediction: Predictions = None,
    mask: options.Mask = None,
    train_mask: TrainMask = None,
    parts: Parts = None,
    regions: Regions = None,
    reference: Reference = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Folder of mrhdata train histology; adds its training curve and the importance of its inputs."
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write a page on how well contrasts show histology."""
    from mrhdata._runtime.atomic import check_target
    from mrhdata.io import formats
    from mrhdata.viz import report
    from mrhdata.viz.plots import slices
    from mrhdata.viz.provenance import provenance_section

    report.check_page(out)
    check_target(out, overwrite)
    sides = positive or ["below"]
    if len(sides) not in (1, len(histology)):
        raise ParameterError(
            f"--positive must be passed once, or once for each histology: {len(histology)} times; got {len(sides)}"
        )
    comparison = _Comparison(contrasts, prediction, mask, train_mask, parts, regions)
    truths = {name: formats.read(file) for name, file in options.channels(histology).items()}
    sides = sides * len(truths) if len(sides) == 1 else sides
    results = {
        name: comparison.score(truth, threshold, side)
        for (name, truth), side in zip(truths.items(), sides, strict=True)
    }
    volumes = truths | comparison.predictions | comparison.uncertainties | comparison.contrasts
    drawn = dict(list(volumes.items())[:6])
    sections = []
    for name, result in results.items():
        sections += report.sensitivity_sections(name, result, reference)
    sections.append(report.Section("Volumes", figures=[(slices(drawn, where=comparison.mask), ", ".join(drawn))]))
    if model is not None:
        sections.append(report.training_section(model))
        name, result = next(iter(results.items()))
        sections.append(report.contribution_section(comparison.contributions(model, truths[name], result)))
    sections.append(provenance_section(comparison.sources() + _sources("histology", histology, truths)))
    report.write_page(out, "MRI contrasts against histology", sections)
    report.write_markdown(out.with_suffix(".md"), "MRI contrasts against histology", sections)
    options.answer({"written": str(out)}, as_json)


def _sources(role: str, words: list[str], volumes: Mapping[str, xr.DataArray]) -> list[ReportFile]:
    """Return the volumes of a role with the files that the command line names."""
    from mrhdata.viz.provenance import ReportFile

    return [ReportFile(role, name, file, volumes[name]) for name, file in options.channels(words).items()]


class _Comparison:
    """Contrasts, predictions and the voxels on which they are compared, read from files."""

    def __init__(
        self,
        contrasts: list[str],
        prediction: list[str] | None,
        mask: str | None,
        train_mask: str | None,
        parts: str | None,
        regions: str | None,
    ) -> None:
        from mrhdata.io import formats

        self.contrasts, self.predictions = (
            {name: formats.read(file) for name, file in options.channels(files or []).items()}
            for files in (contrasts, prediction)
        )
        files = {"mask": mask, "training mask": train_mask, "parts": parts, "regions": regions}
        self._files = {role: file for role, file in files.items() if file is not None}
        self._words = {"contrast": contrasts, "prediction": prediction or []}
        # The map of an ensemble has channels: mean, uncertainty, and how unusual the inputs are.
        self.uncertainties: dict[str, xr.DataArray] = {}
        for name, volume in self.predictions.items():
            if volume.attrs.get("provenance", {}).get("model") == "ensemble":
                self.predictions[name] = volume.isel(c=0, drop=True)
                self.uncertainties[f"{name}: uncertainty"] = volume.isel(c=1, drop=True)
        self.mask = options.read_optional(mask, "mask")
        self.train_mask = options.read_optional(train_mask, "mask")
        self.regions = options.read_optional(regions, "labels")
        if parts is not None:
            if train_mask is not None:
                raise ParameterError("--train-mask and --parts both set the voxels to fit on; pass one of them")
            labels = formats.read(parts, kind="labels")
            self.train_mask = (labels == 1).assign_attrs(labels.attrs | {"kind": "mask"})
            self.mask = self._within_mask((labels == 1) | (labels == 3))

    def _within_mask(self, part: xr.DataArray) -> xr.DataArray:
        """Return the voxels of a part that lie in the mask."""
        inside = part if self.mask is None else part & (self.mask.mrh.like(part) != 0)
        return inside.assign_attrs(self.train_mask.attrs)

    def sources(self) -> list[ReportFile]:
        """Return all volumes with their roles and files."""
        from mrhdata.io import formats

        volumes = {"contrast": self.contrasts, "prediction": self.predictions}
        listed = [source for role, words in self._words.items() for source in _sources(role, words, volumes[role])]
        others = [_sources(role, [f"{role}={file}"], {role: formats.read(file)}) for role, file in self._files.items()]
        return listed + [source for sources in others for source in sources]

    def score(self, truth: xr.DataArray, threshold: str, positive: str) -> Sensitivity:
        """Score all contrasts and predictions against one histology."""
        from mrhdata.analysis.contrasts import sensitivity

        return sensitivity(
            self.contrasts,
            truth,
            threshold=threshold,
            positive_side=positive,
            predictions=self.predictions,
            mask=self.mask,
            train_mask=self.train_mask,
            regions=self.regions,
        )

    def contributions(self, folder: Path, truth: xr.DataArray, result: Sensitivity) -> dict[str, pd.DataFrame]:
        """Measure the importance of the inputs of a network, on patches at the voxels that are scored."""
        from mrhdata import models
        from mrhdata.analysis import robustness
        from mrhdata.patching.create import patches

        model = models.load(folder)
        spec: ModelSpec = model.spec  # type: ignore[assignment]
        mask = self.mask if self.train_mask is None else self._within_mask(self.train_mask == 0)
        planned = patches(self.contrasts, truth, shape=spec.patch or 1, mask=mask)
        if tuple(planned.channels) != spec.channels:
            raise DataError(
                f"contrasts must be {spec.channels}, the channels of the network, in this order; got "
                f"{tuple(planned.channels)}"
            )
        test = robustness.held_out(planned, result.threshold, positive=result.positive)
        return {
            "Change of the map by 10 % noise on one input": robustness.noise_contribution(model, test),
            "Loss of AUC when the values of one input are shuffled": robustness.permutation_importance(model, test),
        }
