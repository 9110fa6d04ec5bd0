"""The command line. Each command loads what it needs when it runs, so that help is quick."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mrhdata.errors import MrhdataError

app = typer.Typer(
    help="Brain volumes as training sets, maps and honest scores.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


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


@app.command()
def info(file: Path, as_json: _Json = False) -> None:
    """Print what a volume is and where it lies.

    Example: mrhdata info brain.mnc
    """
    from mrhdata import formats

    volume = formats.read(file)
    grid = volume.mrh.grid
    found = {
        "file": str(file),
        "shape": {str(d): n for d, n in volume.sizes.items()},
        "dtype": str(volume.dtype),
        "spacing_mm": dict(zip("zyx", grid.spacing.round(9).tolist(), strict=True)),
        "orientation": grid.orientation,
        "space": volume.mrh.space,
        "kind": volume.attrs["kind"],
        "corner_mm": {"first": grid.corners()[0].round(6).tolist(), "last": grid.corners()[-1].round(6).tolist()},
    }
    _print(found, as_json)


@app.command()
def convert(
    source: Path,
    store: Path,
    space: Annotated[str | None, typer.Option(help="Name of the world space, such as CCFv3.")] = None,
    kind: Annotated[str | None, typer.Option(help="image, labels or mask.")] = None,
    modality: Annotated[str | None, typer.Option(help="Such as mri or histology.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what is there.")] = False,
    as_json: _Json = False,
) -> None:
    """Convert a file to OME-Zarr, or an OME-Zarr to a file.

    Example: mrhdata convert brain.mnc brain.zarr --space CCFv3
    """
    from mrhdata import conversion, formats

    if store.name.lower().endswith(".zarr"):
        volume = conversion.convert(source, store, space=space, kind=kind, modality=modality, overwrite=overwrite)
    else:
        volume = formats.read(source, space=space, kind=kind, modality=modality)
        formats.write(volume, store, overwrite=overwrite)
    _print({"written": str(store), "shape": dict(volume.sizes), "dtype": str(volume.dtype)}, as_json)


@app.command()
def sensitivity(
    histology: Path,
    contrasts: Annotated[list[Path], typer.Argument(help="Files of single contrasts, on the histology's grid.")],
    threshold: Annotated[float, typer.Option(help="Of the histology.")],
    positive: Annotated[str, typer.Option(help="Which side is positive: below or above.")] = "below",
    mask: Annotated[Path | None, typer.Option(help="Voxels to use.")] = None,
    train: Annotated[Path | None, typer.Option(help="Mask of the voxels to fit on; the others are scored.")] = None,
    as_json: _Json = False,
) -> None:
    """Score contrasts against histology as ground truth.

    Example: mrhdata sensitivity af.nrrd t2w.nii.gz mtr.nii.gz --threshold 0.4 --mask brain.mha
    """
    from mrhdata import contrasts as scoring
    from mrhdata import formats
    from mrhdata.reporting import readable

    volumes = {path.name: formats.read(path) for path in contrasts}
    inside, fitting = (formats.read(path, kind="mask") if path else None for path in (mask, train))
    truth = formats.read(histology)
    result = scoring.sensitivity(volumes, truth, threshold=threshold, positive=positive, where=inside, train=fitting)
    if as_json:
        typer.echo(result.table.to_json(orient="records"))
    else:
        typer.echo(readable(result).to_string(index=False))
        typer.echo(
            f"{result.positives} of {result.rows} voxels positive ({positive} {threshold}); {result.blocks} blocks"
        )


@app.command("catalog-check")
def catalog_check(file: Path) -> None:
    """Say whether a catalogue only describes data, before anything opens it.

    Example: mrhdata catalog-check catalog.yaml
    """
    from mrhdata import catalog

    catalog.check(file)
    typer.echo(f"{file} only describes data")


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found))
        return
    width = max(map(len, found))
    for key, value in found.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{key:{width}}  {shown}")


def main() -> None:
    """Run the command line; mistakes that the user can put right end with one sentence and exit code 2."""
    try:
        app()
    except MrhdataError as error:
        typer.echo(f"mrhdata: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("mrhdata: interrupted; nothing half-written was kept", err=True)
        sys.exit(130)
