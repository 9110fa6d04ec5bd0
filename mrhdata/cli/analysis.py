"""Commands that score, and the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command
from mrhdata.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from mrhdata.analysis.result import Sensitivity
    from mrhdata.models.spec import ModelSpec


@command(
    "mrhdata demo --out mrhdata-demo",
    "mrhdata demo --data ../shared/data",
)
def demo(
    data: Annotated[Path | None, typer.Option(help="Folder of real volumes to run on instead of the phantom.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything that is written.")] = Path("mrhdata-demo"),
    seed: options.Seed = 0,
    progress: Annotated[bool, typer.Option(help="Say what is done.")] = True,
    as_json: options.Json = False,
) -> None:
    """From raw files to a scored map of histology, with a report."""
    from mrhdata.recipes import demo

    page = demo.run(out, data=data, seed=seed, progress=progress)
    options.answer({"written": str(page)}, as_json)


_Threshold = Annotated[str, typer.Option(help="Of the histology: a number, 'otsu', or a percentile such as 20%.")]
_Positive = Annotated[str, typer.Option(help="Which side is positive: below or above.")]
_Predictions = Annotated[
    list[str] | None, typer.Option("--prediction", help="Virtual histology, as FILE or NAME=FILE; once for each.")
]
_Train = Annotated[str | None, typer.Option(help="Mask of the voxels to fit on; the others are scored.")]
_Parts = Annotated[str | None, typer.Option(help="Labels that mrhdata train wrote: fits on 1, scores 3.")]
_Regions = Annotated[str | None, typer.Option(help="Labels; AUC is given in each region too.")]


@command("mrhdata sensitivity af.nrrd t2w.nii.gz mtr.nii.gz --threshold 20% --where brain.mha")
def sensitivity(
    histology: str,
    contrasts: Annotated[list[str], typer.Argument(help="Single contrasts on its grid, as FILE or NAME=FILE.")],
    threshold: _Threshold,
    positive: _Positive = "below",
    prediction: _Predictions = None,
    where: options.Where = None,
    train: _Train = None,
    parts: _Parts = None,
    regions: _Regions = None,
    as_json: options.Json = False,
) -> None:
    """Score contrasts against histology as ground truth."""
    from mrhdata.io import formats
    from mrhdata.viz.report import readable

    rows = _Given(contrasts, prediction, where, train, parts, regions)
    result = rows.scored(formats.read(histology), threshold, positive)
    if as_json:
        typer.echo(result.table.to_json(orient="records"))
    else:
        typer.echo(readable(result, scores=("auc", "sensitivity", "r2", "rmse", "adds")).to_string(index=False))
        typer.echo(
            f"{result.positives} of {result.rows} voxels positive ({positive} {result.threshold:.4g}); sensitivity at "
            f"a specificity of {result.specificity}; {result.blocks} blocks of {result.block_voxels} voxels"
        )


@command(
    "mrhdata report page.html t2w=t2w.zarr --histology af.zarr --prediction virtual=map.zarr --where brain.mha",
)
def report(
    out: Annotated[Path, typer.Argument(help="The HTML page; its text and tables stand beside it as Markdown.")],
    contrasts: Annotated[list[str], typer.Argument(help="Single contrasts, as FILE or NAME=FILE.")],
    histology: Annotated[list[str], typer.Option(help="Ground truth, as FILE or NAME=FILE; once for each.")],
    threshold: _Threshold = "20%",
    positive: Annotated[
        list[str] | None, typer.Option(help="Which side is positive: below or above; once, or once for each histology.")
    ] = None,
    prediction: _Predictions = None,
    where: options.Where = None,
    train: _Train = None,
    parts: _Parts = None,
    regions: _Regions = None,
    model: Annotated[Path | None, typer.Option(help="Folder of mrhdata train: its curve and what it lives on.")] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write one page on how well contrasts see what histology shows."""
    from mrhdata._runtime.atomic import check_target
    from mrhdata.io import formats
    from mrhdata.viz import report
    from mrhdata.viz.plots import slices

    report.check_page(out)
    check_target(out, overwrite)
    sides = positive or ["below"]
    if len(sides) not in (1, len(histology)):
        raise DataError(f"--positive is given {len(sides)} times for {len(histology)} volumes; once, or once for each")
    rows = _Given(contrasts, prediction, where, train, parts, regions)
    truths = {name: formats.read(file) for name, file in options.channels(histology).items()}
    sides = sides * len(truths) if len(sides) == 1 else sides
    results = {name: rows.scored(t, threshold, p) for (name, t), p in zip(truths.items(), sides, strict=True)}
    shown = dict(list((truths | rows.predictions | rows.doubts | rows.contrasts).items())[:6])
    sections = [section for name, result in results.items() for section in report.sensitivity_sections(name, result)]
    sections.append(report.Section("Volumes", figures=[(slices(shown, where=rows.where), ", ".join(shown))]))
    if model is not None:
        sections.append(report.training_section(model))
        name, result = next(iter(results.items()))
        sections.append(report.contribution_section(rows.contributions(model, truths[name], result)))
    report.write_page(out, "What MRI shows of histology", sections)
    report.write_markdown(out.with_suffix(".md"), "What MRI shows of histology", sections)
    options.answer({"written": str(out)}, as_json)


class _Given:
    """Contrasts, predictions and where they are compared, as files name them."""

    def __init__(
        self,
        contrasts: list[str],
        prediction: list[str] | None,
        where: str | None,
        train: str | None,
        parts: str | None,
        regions: str | None,
    ) -> None:
        from mrhdata.io import formats

        self.contrasts, self.predictions = (
            {name: formats.read(file) for name, file in options.channels(files or []).items()}
            for files in (contrasts, prediction)
        )
        # A map of several networks has channels: their mean, how sure they are, how strange the inputs were.
        self.doubts: dict[str, xr.DataArray] = {}
        for name, mapped in self.predictions.items():
            if mapped.attrs.get("provenance", {}).get("model") == "ensemble":
                self.predictions[name] = mapped.isel(c=0, drop=True)
                self.doubts[f"{name}: uncertainty"] = mapped.isel(c=1, drop=True)
        self.where, self.train = options.optional(where, "mask"), options.optional(train, "mask")
        self.regions = options.optional(regions, "labels")
        if parts is not None:
            if train is not None:
                raise DataError("--train and --parts both say where to fit; give one of them")
            cut = formats.read(parts, kind="labels")
            self.train = (cut == 1).assign_attrs(cut.attrs | {"kind": "mask"})
            self.where = self._within((cut == 1) | (cut == 3))

    def _within(self, part: xr.DataArray) -> xr.DataArray:
        """What of a part of the volume lies in the mask."""
        inside = part if self.where is None else part & (self.where.mrh.like(part) != 0)
        return inside.assign_attrs(self.train.attrs)

    def scored(self, truth: xr.DataArray, threshold: str, positive: str) -> Sensitivity:
        """All against one histology."""
        from mrhdata.analysis.contrasts import sensitivity

        return sensitivity(
            self.contrasts,
            truth,
            threshold=threshold,
            positive=positive,
            predictions=self.predictions,
            where=self.where,
            train=self.train,
            regions=self.regions,
        )

    def contributions(self, folder: Path, truth: xr.DataArray, result: Sensitivity) -> dict[str, pd.DataFrame]:
        """What a network makes of its inputs, on patches about the voxels that are scored."""
        from mrhdata import models
        from mrhdata.analysis import robustness
        from mrhdata.patching.create import patches

        model = models.load(folder)
        spec: ModelSpec = model.spec  # type: ignore[assignment]
        where = self.where if self.train is None else self._within(self.train == 0)
        planned = patches(self.contrasts, truth, shape=spec.patch or 1, where=where)
        if tuple(planned.channels) != spec.channels:
            raise DataError(
                f"the network takes {spec.channels} but the contrasts are {tuple(planned.channels)}; give those, "
                "in that order"
            )
        held = robustness.held_out(planned, result.threshold, positive=result.positive)
        return {
            "Change of the map with 10 % noise on one input, as a share of all": robustness.noise_contribution(
                model, held
            ),
            "AUC lost where the values of one input are shuffled": robustness.permutation_importance(model, held),
        }
