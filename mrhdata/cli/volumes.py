"""Commands on single volumes: describe, compare, convert, view, register and resample them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command, resumable

Volume = Annotated[str, options.argument("VOLUME", "File, OME-Zarr, folder of planes, or DICOM folder.")]


@command(
    "mrhdata info brain.zarr",
    "mrhdata info annotation_100.nrrd --orientation PIR --unit um",
)
def info(
    volume: Volume,
    orientation: options.Orientation = None,
    unit: options.Unit = None,
    spacing: options.Spacing = None,
    origin: options.Origin = None,
    space: options.Space = None,
    kind: options.Kind = None,
    dataset: options.Dataset = None,
    series: options.Series = None,
    level: options.Level = None,
    safe: Annotated[
        bool, typer.Option("--safe", help="Read an untrusted file in a child process, which may crash or hang.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Describe a volume: geometry, values, suspicious findings."""
    from mrhdata.io import inspection

    geometry = {"orientation": orientation, "unit": unit, "spacing": spacing, "origin": origin}
    read_options = options.read_options(**geometry, space=space, kind=kind, dataset=dataset, series=series, level=level)
    description = inspection.inspect(volume, safe=safe, **read_options)
    options.answer(description if as_json else _with_a_line_per_image(description), as_json)


def _with_a_line_per_image(description: dict[str, Any]) -> dict[str, Any]:
    """Return a description whose list of images is an item for each."""
    file, *others = description.items()
    lines = {f"image {n}": line for n, line in enumerate(description.get("images", ()), 1)}
    return dict([file]) | lines | {key: value for key, value in others if key != "images"}


def _range_option(axis: str, direction: str) -> Any:
    """Return the option of a range along a world axis."""
    words = f"Lowest and highest {axis} in mm ({axis} runs to {direction}), such as -10,10."
    return typer.Option(f"--{axis}", metavar="LOW,HIGH", help=words)


@command("mrhdata diff brain.nii.gz brain.zarr")
def diff(
    first: Annotated[str, options.argument("FIRST", "Volume to compare.")],
    second: Annotated[str, options.argument("SECOND", "Volume to compare it with.")],
    as_json: options.Json = False,
) -> None:
    """Compare two volumes in world space.

    The exit code is 1 if they differ.
    """
    from mrhdata.io import comparison, formats

    difference = comparison.difference(formats.read(first), formats.read(second))
    options.answer(difference, as_json)
    if not difference["same"]:
        raise typer.Exit(1)


@command("mrhdata verify brain.zarr")
def verify(
    store: Annotated[str, options.argument("STORE", "OME-Zarr on the local disk.")],
    dataset: options.Dataset = None,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Compare every chunk of an OME-Zarr with its checksum.

    The exit code is 2 if something is damaged or missing. What cannot be checked in stores of other programs is listed.
    """
    from mrhdata.io import verification

    report = verification.verify(store, dataset=dataset, progress=options.bars(progress))
    lines = {array.name: str(array).removeprefix(f"{array.name}: ") for array in report.arrays}
    options.answer(lines | ({"damage": report.damage} if as_json else {}), as_json)
    report.raise_for_damage()


@command(
    "mrhdata convert brain.nii.gz -o brain.zarr",
    "mrhdata convert planes/ -o brain.zarr --spacing 2,1.8,1.8 --unit um",
    "mrhdata convert signal.tif -o brain.zarr --spacing 5,2,2 --unit um --orientation bg:asr",
)
def convert(
    source: Annotated[str, options.argument("SOURCE", "File, folder of planes, pattern, or URL of an OME-Zarr.")],
    out: Annotated[Path, options.output("OME-Zarr or file; its ending sets the format.")],
    orientation: options.Orientation = None,
    unit: options.Unit = None,
    spacing: options.Spacing = None,
    origin: options.Origin = None,
    space: options.Space = None,
    kind: options.Kind = None,
    units: Annotated[str | None, typer.Option(help="Units of the values, such as ppm.")] = None,
    modality: Annotated[str | None, typer.Option(help="Modality, such as mri or histology.")] = None,
    dataset: options.Dataset = None,
    series: options.Series = None,
    level: options.Level = None,
    time: Annotated[int | None, typer.Option(min=0, help="Number of one volume of a time series, from 0.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory budget, such as '500 MB'.")] = None,
    overwrite: options.Overwrite = False,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Convert volumes of any format and size to OME-Zarr, or back.

    An interrupted conversion to OME-Zarr resumes when you run the command again. Its memory budget is 1 GB by default;
    the other formats take as much as they need.
    """
    from mrhdata.io import conversion, formats, omezarr

    geometry = {"orientation": orientation, "unit": unit, "spacing": spacing, "origin": origin}
    read_options = options.read_options(
        **geometry, space=space, kind=kind, units=units, modality=modality, dataset=dataset,
        series=series, level=level, time=time,
    )  # fmt: skip
    to_zarr = out.name.lower().endswith(".zarr")
    if to_zarr:
        bars = options.bars(progress)
        with resumable():
            budget = memory or "1 GB"
            volume = conversion.convert(source, out, overwrite=overwrite, memory=budget, progress=bars, **read_options)
    else:
        volume = formats.read(source, **read_options)
        formats.write(volume, out, overwrite=overwrite, memory=memory)
    values: dict[str, Any] = {"written": str(out), "shape": dict(volume.sizes), "dtype": str(volume.dtype)}
    if to_zarr:
        levels, _ = omezarr.plan(volume)
        values |= {"chunks": list(levels[0].chunks), "shards": list(levels[0].shards), "levels": len(levels)}
    options.answer(values, as_json)


@command(
    "mrhdata view t2w.nii.gz af.nrrd -o slices.png",
    "mrhdata view brain.zarr --at -1.5,0,2",
    "mrhdata view brain.zarr --serve",
)
def view(
    volumes: Annotated[list[str], options.argument("VOLUMES", "Volumes in one world space.")],
    out: Annotated[Path, options.output("PNG of the slices.")] = Path("view.png"),
    at: Annotated[
        str | None, typer.Option(metavar="X,Y,Z", help="World point of the slices in mm; the middle by default.")
    ] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Draw the other volumes over the first one.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Serve OME-Zarr stores to neuroglancer instead.")] = False,
    port: Annotated[int, typer.Option(help="Port of the server; 0 for any free one.")] = 0,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Draw orthogonal slices, or serve stores to a browser."""
    if serve:
        _serve(volumes, port)
        return
    from mrhdata._runtime.atomic import check_target
    from mrhdata.io import formats
    from mrhdata.viz import plots

    point = None if at is None else options.numbers("--at", at)
    check_target(out, overwrite)
    by_name = {name: formats.read(file) for name, file in options.files_by_name(volumes).items()}
    plots.picture(by_name, out, at=point, overlay=overlay)
    options.answer({"written": str(out)}, as_json)


def _serve(stores: list[str], port: int) -> None:
    import signal
    import threading

    from mrhdata.viz.neuroglancer import Server

    with Server(options.files_by_name(stores), port) as server:
        # A signal handler, because KeyboardInterrupt is lost if it is raised in a destructor.
        signal.signal(signal.SIGINT, lambda *_: threading.Thread(target=server.shutdown).start())
        typer.echo(f"serving {', '.join(server.stores)} at {server.url} to {server.viewer} only; Ctrl-C ends it")
        typer.echo(server.link())
        sys.stdout.flush()
        server.serve_forever()
        typer.echo("stopped")


@command("mrhdata register t2w.nii.gz template.nrrd -o to-template.h5 --moved on-template.zarr")
def register(
    moving: Annotated[str, options.argument("MOVING", "Volume to move.")],
    fixed: Annotated[str, options.argument("FIXED", "Volume that it is moved onto.")],
    out: Annotated[Path, options.output("Transform in ITK's format: .h5, .tfm or .nii.gz.")],
    kind: Annotated[
        str, typer.Option(help="Stages joined by +, such as rigid, affine, affine+bspline.")
    ] = "affine+deform",
    orientation: options.Orientation = None,
    unit: options.Unit = None,
    spacing: options.Spacing = None,
    moving_mask: Annotated[str | None, typer.Option(help="Mask of the moving volume.")] = None,
    fixed_mask: Annotated[str | None, typer.Option(help="Mask of the fixed volume.")] = None,
    orientations: Annotated[
        bool, typer.Option("--orientations", help="Try all 48 ways to permute and flip the axes.")
    ] = False,
    moved: Annotated[
        Path | None, typer.Option(help="Output of the moving volume on the grid of the fixed one.")
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Find the transform that moves one volume onto another.

    The options --orientation, --unit and --spacing correct the header of MOVING; use mrhdata convert for FIXED.
    """
    from mrhdata._runtime.atomic import check_target
    from mrhdata.analysis.voxel_table import voxel_table
    from mrhdata.io import formats
    from mrhdata.registration import itk, pipeline, resampling

    for path in (out, moved):
        if path is not None:
            check_target(path, overwrite)
    corrections = options.read_options(orientation=orientation, unit=unit, spacing=spacing)
    first, second = formats.read(moving, **corrections), formats.read(fixed)
    masks = {
        "moving_mask": options.read_optional(moving_mask, "mask"),
        "fixed_mask": options.read_optional(fixed_mask, "mask"),
    }
    transform = pipeline.register(first, second, kind, orientations=orientations, **masks)
    itk.write(transform, out, second.mrh.grid)
    resampled = resampling.resample(first, second, transform)
    rows = voxel_table({"moving": resampled, "fixed": second}, masks["fixed_mask"])
    values: dict[str, Any] = {"written": str(out), "correlation": round(float(rows["moving"].corr(rows["fixed"])), 4)}
    if moved is not None:
        formats.write(resampled, moved, overwrite=overwrite)
        values["moved"] = str(moved)
    options.answer(values, as_json)


@command(
    "mrhdata crop t2w.nii.gz -o left.nii.gz --X -60,0",
    "mrhdata crop t2w.zarr -o brain.zarr --around brain_mask.nii.gz --margin-mm 2",
)
def crop(
    volume: Volume,
    out: Annotated[Path, options.output("OME-Zarr or file; its ending sets the format.")],
    x: Annotated[str | None, _range_option("X", "right")] = None,
    y: Annotated[str | None, _range_option("Y", "anterior")] = None,
    z: Annotated[str | None, _range_option("Z", "superior")] = None,
    around: Annotated[str | None, typer.Option(help="Mask in the space of the volume, which the box contains.")] = None,
    margin_mm: Annotated[float, typer.Option(help="Margin about the mask in mm.")] = 0.0,
    kind: options.Kind = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Cut a box out of a volume, by world points or around a mask.

    Voxels keep their place and their values. The corners that `mrhdata info` prints are world points.
    """
    from mrhdata._runtime.atomic import check_target
    from mrhdata.errors import ParameterError
    from mrhdata.io import formats
    from mrhdata.volume import selection

    check_target(out, overwrite)
    ranges = {axis: options.range_of(f"--{axis}", text) for axis, text in (("X", x), ("Y", y), ("Z", z)) if text}
    if not ranges and around is None:
        raise ParameterError("crop needs --X, --Y, --Z or --around; got none. Pass a range in mm such as --X -10,10")
    part = formats.read(volume, **options.read_options(kind=kind))
    if ranges:
        part = selection.crop(part, ranges)
    if around is not None:
        part = selection.crop_to(part, formats.read(around, kind="mask"), margin_mm)
    formats.write(part, out, overwrite=overwrite)
    corners = part.mrh.grid.corners().round(6).tolist()
    values = {"written": str(out), "shape": dict(part.sizes), "corner_mm": {"first": corners[0], "last": corners[-1]}}
    options.answer(values, as_json)


@command(
    "mrhdata resample labels.nii.gz -o on-t2w.zarr --like t2w.nii.gz --transform to-template.h5 --kind labels",
    "mrhdata resample t2w.nii.gz -o half.nii.gz --spacing-mm 0.2",
)
def resample(
    volume: Volume,
    out: Annotated[Path, options.output("OME-Zarr or file; its ending sets the format.")],
    like: Annotated[str | None, typer.Option(help="Volume whose grid the result has.")] = None,
    transform: Annotated[
        str | None, typer.Option(help="Transform from the space of --like to that of the volume.")
    ] = None,
    spacing_mm: options.SpacingMm = None,
    order: Annotated[
        int, typer.Option(help="Interpolation: 0 nearest, 1 linear, 3 cubic; labels always take the nearest voxel.")
    ] = 1,
    kind: options.Kind = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Resample a volume of any size to another grid.

    Images are smoothed first if the new grid is coarser.
    """
    from mrhdata._runtime.atomic import check_target
    from mrhdata.io import formats
    from mrhdata.registration import itk, resampling
    from mrhdata.volume.kinds import warning_of_labels

    check_target(out, overwrite)
    source, target = (
        formats.read(volume, **options.read_options(kind=kind)),
        None if like is None else formats.read(like),
    )
    if order:
        for sentence in warning_of_labels(source):
            options.warn(f"{volume}: {sentence}")
    spaces = {} if target is None else {"source": target.mrh.space, "target": source.mrh.space}
    loaded = None if transform is None else itk.read(transform, **spaces)
    spacing = None if spacing_mm is None else options.spacing_of("--spacing-mm", spacing_mm)
    resampled = resampling.resample(source, target, loaded, spacing_mm=spacing, order=order)
    formats.write(resampled, out, overwrite=overwrite)
    values = {"written": str(out), "shape": dict(resampled.sizes), "space": resampled.mrh.space}
    options.answer(values, as_json)
