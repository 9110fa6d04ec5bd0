"""Commands on volumes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command, resumable


@command(
    "mrhdata info brain.zarr",
    "mrhdata info annotation_100.nrrd --axes PIR --unit um",
)
def info(
    file: str,
    axes: options.Axes = None,
    unit: options.Unit = None,
    spacing: options.Spacing = None,
    origin: options.Origin = None,
    space: options.Space = None,
    kind: options.Kind = None,
    dataset: options.Dataset = None,
    as_json: options.Json = False,
) -> None:
    """Print what a volume is, where it lies, and what is suspicious about it."""
    from mrhdata.io import inspection

    given = options.options(
        axes=axes, unit=unit, spacing=spacing, origin=origin, space=space, kind=kind, dataset=dataset
    )
    options.answer(inspection.inspect(file, **given), as_json)


@command("mrhdata diff brain.nii.gz brain.zarr")
def diff(first: str, second: str, as_json: options.Json = False) -> None:
    """Compare two volumes in world space; exit code 1 where they differ."""
    from mrhdata.io import formats, inspection

    found = inspection.difference(formats.read(first), formats.read(second))
    options.answer(found, as_json)
    if not found["same"]:
        raise typer.Exit(1)


@command(
    "mrhdata convert brain.nii.gz brain.zarr",
    "mrhdata convert planes/ brain.zarr --spacing 2 --spacing 1.8 --spacing 1.8 --unit um",
)
def convert(
    source: Annotated[str, typer.Argument(help="File, folder of planes, pattern, or URL of an OME-Zarr.")],
    out: Annotated[Path, typer.Argument(help="OME-Zarr or file to write: its ending says the format.")],
    axes: options.Axes = None,
    unit: options.Unit = None,
    spacing: options.Spacing = None,
    origin: options.Origin = None,
    space: options.Space = None,
    kind: options.Kind = None,
    units: Annotated[str | None, typer.Option(help="Units of the values, such as ppm.")] = None,
    modality: Annotated[str | None, typer.Option(help="Such as mri or histology.")] = None,
    dataset: options.Dataset = None,
    time: Annotated[int | None, typer.Option(min=0, help="Of a series of volumes take one, counted from 0.")] = None,
    memory: options.Memory = "1 GB",
    overwrite: options.Overwrite = False,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Convert a file, a folder of planes or a URL to OME-Zarr, or an OME-Zarr to a file.

    Killed and run again, a conversion to OME-Zarr goes on where it was.
    """
    from mrhdata.io import conversion, formats, omezarr

    geometry = {"axes": axes, "unit": unit, "spacing": spacing, "origin": origin}
    given = options.options(
        **geometry, space=space, kind=kind, units=units, modality=modality, dataset=dataset, time=time
    )
    if out.name.lower().endswith(".zarr"):
        shown = options.shown(progress)
        with resumable():
            volume = conversion.convert(source, out, overwrite=overwrite, memory=memory, progress=shown, **given)
    else:
        volume = formats.read(source, **given)
        formats.write(volume, out, overwrite=overwrite)
    found: dict[str, Any] = {"written": str(out), "shape": dict(volume.sizes), "dtype": str(volume.dtype)}
    if out.name.lower().endswith(".zarr"):
        levels, _ = omezarr.plan(volume)
        found |= {"chunks": list(levels[0].chunks), "shards": list(levels[0].shards), "levels": len(levels)}
    options.answer(found, as_json)


@command(
    "mrhdata view t2w.nii.gz af.nrrd --out slices.png",
    "mrhdata view brain.zarr --serve",
)
def view(
    files: list[str],
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("view.png"),
    at: Annotated[list[float] | None, typer.Option(help="World X, Y, Z in mm, given three times.")] = None,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Show the later ones over the first, not beside it.")
    ] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Serve OME-Zarr stores to neuroglancer instead.")] = False,
    port: Annotated[int, typer.Option(help="Of the server; 0 for any.")] = 0,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write a picture of orthogonal slices, or serve stores to a viewer in the browser."""
    if serve:
        _serve(files, port)
        return
    from mrhdata._runtime.atomic import check_target
    from mrhdata.io import formats
    from mrhdata.viz import plots

    check_target(out, overwrite)
    volumes = {name: formats.read(file) for name, file in options.named(files).items()}
    plots.picture(volumes, out, at=at, overlay=overlay)
    options.answer({"written": str(out)}, as_json)


def _serve(files: list[str], port: int) -> None:
    import signal
    import threading

    from mrhdata.viz.neuroglancer import Server

    with Server(options.named(files), port) as server:
        # A handler rather than KeyboardInterrupt, which is lost where it falls into a destructor.
        signal.signal(signal.SIGINT, lambda *_: threading.Thread(target=server.shutdown).start())
        typer.echo(f"serving {', '.join(server.stores)} at {server.url} to {server.viewer} only; Ctrl-C ends it")
        typer.echo(server.link())
        sys.stdout.flush()
        server.serve_forever()
        typer.echo("stopped")


@command("mrhdata register t2w.nii.gz template.nrrd to-template.h5 --out on-template.zarr")
def register(
    moving: str,
    fixed: str,
    transform: Annotated[Path, typer.Argument(help="To write, in ITK's format: .h5, .tfm or .nii.gz.")],
    kind: Annotated[str, typer.Option(help="Steps, such as rigid, affine, affine+bspline.")] = "affine+deform",
    moving_mask: Annotated[str | None, typer.Option(help="Where the moving volume counts.")] = None,
    fixed_mask: Annotated[str | None, typer.Option(help="Where the fixed volume counts.")] = None,
    orientations: Annotated[
        bool, typer.Option("--orientations", help="Try all 48 ways to permute and flip the axes.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="The moving volume on the fixed one's grid.")] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Find the transform that lays one volume on another."""
    from mrhdata._runtime.atomic import check_target
    from mrhdata.analysis.voxel_table import voxel_table
    from mrhdata.io import formats
    from mrhdata.registration import itk, pipeline, resampling

    for path in (transform, out):
        if path is not None:
            check_target(path, overwrite)
    first, second = formats.read(moving), formats.read(fixed)
    masks = {
        "moving_mask": options.optional(moving_mask, "mask"),
        "fixed_mask": options.optional(fixed_mask, "mask"),
    }
    found = pipeline.register(first, second, kind, orientations=orientations, **masks)
    itk.write(found, transform, second.mrh.grid)
    carried = resampling.resample(first, second, found)
    said: dict[str, Any] = {"written": str(transform)}
    rows = voxel_table({"moving": carried, "fixed": second}, masks["fixed_mask"])
    said["correlation"] = round(float(rows["moving"].corr(rows["fixed"])), 4)
    if out is not None:
        formats.write(carried, out, overwrite=overwrite)
        said["carried"] = str(out)
    options.answer(said, as_json)


@command(
    "mrhdata resample labels.nii.gz on-t2w.zarr --like t2w.nii.gz --transform to-template.h5 --kind labels",
    "mrhdata resample t2w.nii.gz half.nii.gz --spacing-mm 0.2",
)
def resample(
    volume: str,
    out: Path,
    like: Annotated[str | None, typer.Option(help="Volume whose grid to fill.")] = None,
    transform: Annotated[str | None, typer.Option(help="From the space of --like to that of the volume.")] = None,
    spacing_mm: options.SpacingMm = None,
    order: Annotated[int, typer.Option(help="0 nearest, 1 linear, 3 cubic; labels are always nearest.")] = 1,
    kind: options.Kind = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Carry a volume of any size to another grid, block by block."""
    from mrhdata._runtime.atomic import check_target
    from mrhdata.io import formats
    from mrhdata.registration import itk, resampling

    check_target(out, overwrite)
    given, target = formats.read(volume, **options.options(kind=kind)), None if like is None else formats.read(like)
    spaces = {} if target is None else {"source": target.mrh.space, "target": given.mrh.space}
    through = None if transform is None else itk.read(transform, **spaces)
    size = options.options(spacing=spacing_mm).get("spacing")
    made = resampling.resample(given, target, through, spacing_mm=size, order=order)
    formats.write(made, out, overwrite=overwrite)
    options.answer({"written": str(out), "shape": dict(made.sizes), "space": made.mrh.space}, as_json)
