"""Commands that score, and the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mrhdata.cli import words
from mrhdata.cli.app import app


@app.command()
def demo(
    data: Annotated[Path | None, typer.Option(help="Folder of real volumes to run on instead of the phantom.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything that is written.")] = Path("mrhdata-demo"),
    seed: Annotated[int, typer.Option(help="Of subjects, weights and order.")] = 0,
) -> None:
    """From raw files to a scored map of histology, with a report.

    Example: mrhdata demo --data ../shared/data
    """
    from mrhdata import demo

    demo.run(out, data=data, seed=seed)


_Threshold = Annotated[str, typer.Option(help="Of the histology: a number, 'otsu', or a percentile such as 20%.")]
_Positive = Annotated[str, typer.Option(help="Which side is positive: below or above.")]
_Predictions = Annotated[
    list[str] | None, typer.Option("--prediction", help="Virtual histology, as FILE or NAME=FILE; once for each.")
]
_Mask = Annotated[str | None, typer.Option(help="Voxels to use.")]
_Train = Annotated[str | None, typer.Option(help="Mask of the voxels to fit on; the others are scored.")]
_Parts = Annotated[str | None, typer.Option(help="Labels that mrhdata train wrote: fits on 1, scores 3.")]
_Regions = Annotated[str | None, typer.Option(help="Labels; AUC is given in each region too.")]


@app.command()
def sensitivity(
    histology: str,
    contrasts: Annotated[list[str], typer.Argument(help="Single contrasts on its grid, as FILE or NAME=FILE.")],
    threshold: _Threshold,
    positive: _Positive = "below",
    prediction: _Predictions = None,
    mask: _Mask = None,
    train: _Train = None,
    parts: _Parts = None,
    regions: _Regions = None,
    as_json: words.Json = False,
) -> None:
    """Score contrasts against histology as ground truth.

    Example: mrhdata sensitivity af.nrrd t2w.nii.gz mtr.nii.gz --threshold 20% --mask brain.mha
    """
    from mrhdata.reporting import readable

    (result,) = _scored([histology], contrasts, threshold, positive, prediction, mask, train, parts, regions).values()
    if as_json:
        typer.echo(result.table.to_json(orient="records"))
    else:
        typer.echo(readable(result, scores=("auc", "sensitivity", "r2", "rmse", "adds")).to_string(index=False))
        typer.echo(
            f"{result.positives} of {result.rows} voxels positive ({positive} {result.threshold:.4g}); sensitivity at "
            f"a specificity of {result.specificity}; {result.blocks} blocks of {result.block_voxels} voxels"
        )


@app.command()
def report(
    out: Annotated[Path, typer.Argument(help="The HTML page; its text and tables stand beside it as Markdown.")],
    contrasts: Annotated[list[str], typer.Argument(help="Single contrasts, as FILE or NAME=FILE.")],
    histology: Annotated[list[str], typer.Option(help="Ground truth, as FILE or NAME=FILE; once for each.")],
    threshold: _Threshold = "20%",
    positive: _Positive = "below",
    prediction: _Predictions = None,
    mask: _Mask = None,
    train: _Train = None,
    parts: _Parts = None,
    regions: _Regions = None,
    network: Annotated[Path | None, typer.Option(help="Folder of mrhdata train: its training curve is shown.")] = None,
    overwrite: words.Overwrite = False,
) -> None:
    """Write one page on how well contrasts see what histology shows.

    Example: mrhdata report page.html t2w=t2w.zarr --histology af.zarr --prediction virtual=virtual-af.zarr --mask m.mha
    """
    from mrhdata import formats, reporting
    from mrhdata.drafting import check_target
    from mrhdata.viewing import slices

    check_target(out, overwrite)
    results = _scored(histology, contrasts, threshold, positive, prediction, mask, train, parts, regions)
    named = words.channels([*histology, *(prediction or []), *contrasts])
    shown = {name: formats.read(file) for name, file in list(named.items())[:6]}
    sections = [section for name, result in results.items() for section in reporting.sensitivity_sections(name, result)]
    sections.append(reporting.Section("Volumes", figures=[(slices(shown), ", ".join(shown))]))
    if network is not None:
        sections.append(reporting.training_section(network))
    reporting.write_page(out, "What MRI shows of histology", sections)
    reporting.write_markdown(out.with_suffix(".md"), "What MRI shows of histology", sections)
    typer.echo(str(out))


def _scored(
    histology: list[str],
    contrasts: list[str],
    threshold: str,
    positive: str,
    prediction: list[str] | None,
    mask: str | None,
    train: str | None,
    parts: str | None,
    regions: str | None,
) -> dict[str, Any]:
    """Results by the name of the histology."""
    from mrhdata import contrasts as scoring
    from mrhdata import formats
    from mrhdata.errors import DataError

    volumes, guesses, truths = (
        {name: formats.read(file) for name, file in words.channels(files or []).items()}
        for files in (contrasts, prediction, histology)
    )
    inside, fitting, labels = (
        words.optional(mask, "mask"),
        words.optional(train, "mask"),
        words.optional(regions, "labels"),
    )
    if parts is not None:
        if train is not None:
            raise DataError("--train and --parts both say where to fit; give one of them")
        cut = formats.read(parts, kind="labels")
        fitting = (cut == 1).assign_attrs(cut.attrs | {"kind": "mask"})
        used = (cut == 1) | (cut == 3)
        inside = (used if inside is None else used & (inside.mrh.like(cut) != 0)).assign_attrs(fitting.attrs)
    return {
        name: scoring.sensitivity(
            volumes,
            truth,
            threshold=threshold,
            positive=positive,
            predictions=guesses,
            where=inside,
            train=fitting,
            regions=labels,
        )
        for name, truth in truths.items()
    }
