"""The command line. Each command loads what it needs when it runs, so that help is quick."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mrhdata.errors import DataError, MrhdataError

app = typer.Typer(
    help="Brain volumes as training sets, maps and honest scores.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
catalog_app = typer.Typer(help="Catalogues of volumes.", no_args_is_help=True)
app.add_typer(catalog_app, name="catalog")

_Axes = Annotated[str | None, typer.Option(help="Where the file's axes point, such as PIR, if its header lies.")]
_Unit = Annotated[str | None, typer.Option(help="Unit of the file's lengths: mm, um, nm.")]
_Spacing = Annotated[list[float] | None, typer.Option(help="Voxel size; once for all axes, or once for each.")]
_Origin = Annotated[list[float] | None, typer.Option(help="World X, Y, Z of the first voxel, given three times.")]
_Space = Annotated[str | None, typer.Option(help="Name of the world space, such as CCFv3.")]
_Kind = Annotated[str | None, typer.Option(help="image, labels or mask.")]
_Dataset = Annotated[str | None, typer.Option(help="Which array of an HDF5 or MATLAB file, or series of DICOM.")]
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
def info(
    file: str,
    axes: _Axes = None,
    unit: _Unit = None,
    spacing: _Spacing = None,
    origin: _Origin = None,
    space: _Space = None,
    kind: _Kind = None,
    dataset: _Dataset = None,
    as_json: _Json = False,
) -> None:
    """Print what a volume is, where it lies, and what is suspicious about it.

    Example: mrhdata info annotation_100.nrrd --axes PIR --unit um
    """
    from mrhdata import inspection

    given = _options(axes=axes, unit=unit, spacing=spacing, origin=origin, space=space, kind=kind, dataset=dataset)
    _print(inspection.inspect(file, **given), as_json)


@app.command()
def diff(first: str, second: str, as_json: _Json = False) -> None:
    """Compare two volumes in world space; exit code 1 where they differ.

    Example: mrhdata diff brain.nii.gz brain.zarr
    """
    from mrhdata import formats, inspection

    found = inspection.difference(formats.read(first), formats.read(second))
    _print(found, as_json)
    if not found["same"]:
        raise typer.Exit(1)


@app.command()
def convert(
    source: str,
    store: Path,
    axes: _Axes = None,
    unit: _Unit = None,
    spacing: _Spacing = None,
    origin: _Origin = None,
    space: _Space = None,
    kind: _Kind = None,
    units: Annotated[str | None, typer.Option(help="Units of the values, such as ppm.")] = None,
    modality: Annotated[str | None, typer.Option(help="Such as mri or histology.")] = None,
    dataset: _Dataset = None,
    memory: Annotated[str, typer.Option(help="What is held at once, such as '500 MB'.")] = "1 GB",
    overwrite: Annotated[bool, typer.Option(help="Replace what is there.")] = False,
    as_json: _Json = False,
) -> None:
    """Convert a file, a folder of planes or a URL to OME-Zarr, or an OME-Zarr to a file.

    Killed and run again, a conversion to OME-Zarr goes on where it was.

    Example: mrhdata convert planes/ brain.zarr --spacing 2 --spacing 1.8 --spacing 1.8 --unit um
    """
    from mrhdata import conversion, formats
    from mrhdata.formats import omezarr

    geometry = {"axes": axes, "unit": unit, "spacing": spacing, "origin": origin}
    given = _options(**geometry, space=space, kind=kind, units=units, modality=modality, dataset=dataset)
    if store.name.lower().endswith(".zarr"):
        progress = sys.stderr.isatty()
        volume = conversion.convert(source, store, overwrite=overwrite, memory=memory, progress=progress, **given)
    else:
        volume = formats.read(source, **given)
        formats.write(volume, store, overwrite=overwrite)
    found: dict[str, Any] = {"written": str(store), "shape": dict(volume.sizes), "dtype": str(volume.dtype)}
    if store.name.lower().endswith(".zarr"):
        levels, _ = omezarr.plan(volume)
        found |= {"chunks": list(levels[0].chunks), "shards": list(levels[0].shards), "levels": len(levels)}
    _print(found, as_json)


@catalog_app.command("check")
def catalog_check(file: str) -> None:
    """Say whether a catalogue only describes data, before anything opens it.

    Example: mrhdata catalog check catalog.yaml
    """
    from mrhdata import catalog

    catalog.check(file)
    typer.echo(f"{file} only describes data")


@catalog_app.command("build")
def catalog_build(
    folder: Path,
    out: Annotated[Path | None, typer.Option(help="The YAML file; catalog.yaml in the folder by default.")] = None,
    title: Annotated[str | None, typer.Option(help="Of the catalogue.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of all volumes.")] = None,
    citation: Annotated[str | None, typer.Option(help="Of all volumes.")] = None,
    split: Annotated[str | None, typer.Option(help="Shares by subject, such as train=0.8,test=0.2.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    axes: _Axes = None,
    unit: _Unit = None,
    space: _Space = None,
) -> None:
    """List every volume below a folder in a catalogue.

    Example: mrhdata catalog build study/ --licence CC0-1.0 --split train=0.8,test=0.2
    """
    from mrhdata import catalog_build as building

    shares = _shares(split) if split else None
    given = _options(axes=axes, unit=unit, space=space)
    path = building.build(
        folder, out, title=title, licence=licence, citation=citation, split=shares, seed=seed, **given
    )
    typer.echo(f"{path}")


@catalog_app.command("list")
def catalog_list(file: str, as_json: _Json = False) -> None:
    """Print the entries of a catalogue with their metadata.

    Example: mrhdata catalog list catalog.yaml
    """
    from mrhdata import catalog

    found = {name: held for name, (held, _) in catalog.open_catalog(file).find().items()}
    _print(found, as_json)


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(help="Of a published volume; all are listed without it.")] = None,
    into: Annotated[Path | None, typer.Option(help="Folder of the stores and their catalogue.")] = None,
    as_json: _Json = False,
) -> None:
    """Download a published volume, check it, and convert it to OME-Zarr.

    Example: mrhdata fetch ccfv3-template-25um --into atlas/
    """
    from mrhdata import fetching

    if name is None:
        entries = fetching.published().items()
        shown = {n: f"{e['description']} [{e['metadata'].get('licence', 'licence unknown')}]" for n, e in entries}
        _print(shown, as_json)
        return
    volume = fetching.fetch(name, into, progress=sys.stderr.isatty())
    _print({"fetched": name, "shape": dict(volume.sizes), "space": volume.mrh.space}, as_json)


@app.command()
def predict(
    model: Path,
    store: Path,
    inputs: Annotated[list[str], typer.Argument(help="Volumes, as FILE or CHANNEL=FILE, in the order of training.")],
    where: Annotated[str | None, typer.Option(help="Mask of any grid, or 'stored' for what is not empty.")] = None,
    mode: Annotated[str, typer.Option(help="patch (windows that are blended) or dense (as one pass).")] = "patch",
    window: Annotated[list[int] | None, typer.Option(help="Voxels of a window, z, y, x: given three times.")] = None,
    overlap: Annotated[float, typer.Option(help="Part of a window that the next one covers again.")] = 0.5,
    blend: Annotated[str | None, typer.Option(help="gaussian, hann, constant, or centre.")] = None,
    activation: Annotated[str | None, typer.Option(help="softmax or sigmoid.")] = None,
    decide: Annotated[str | None, typer.Option(help="argmax for labels, or a threshold for a mask.")] = None,
    align: Annotated[str, typer.Option(help="same grid, or resampled to that of the first.")] = "same",
    memory: Annotated[str, typer.Option(help="What is held at once, such as '500 MB'.")] = "1 GB",
    device: Annotated[str | None, typer.Option(help="cuda where there is one, else cpu.")] = None,
    skip_corrupt: Annotated[bool, typer.Option(help="Count chunks that cannot be read as 0, and list them.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace what is there.")] = False,
    as_json: _Json = False,
) -> None:
    """Map a trained network over volumes of any size.

    Killed and run again, it goes on where it was.

    Example: mrhdata predict mrhnet/ virtual-af.zarr t2=t2w.nii.gz mtr=mtr.nii.gz --where brain.mha
    """
    from mrhdata import formats, models, prediction
    from mrhdata.mapping import Windowing

    mask = where if where in (None, "stored") else formats.read(str(where), kind="mask")
    mapped = prediction.predict(
        models.load(model),
        {name: formats.read(file) for name, file in _channels(inputs).items()},
        store,
        where=mask,
        mode=mode,
        windows=Windowing(window or None, overlap, blend),
        align=align,
        output=prediction.Output(activation, _decision(decide)),
        memory=memory,
        device=device,
        skip_corrupt=skip_corrupt,
        overwrite=overwrite,
        progress=sys.stderr.isatty(),
    )
    found = {"written": str(store), "shape": dict(mapped.sizes), "dtype": str(mapped.dtype)}
    skipped = mapped.attrs.get("provenance", {}).get("skipped", [])
    _print(found | ({"skipped": skipped} if skipped else {}), as_json)


def _channels(given: list[str]) -> dict[str, str]:
    """Files by the names that they were given, or by their own."""
    named: dict[str, str] = {}
    for word in given:
        name, equals, file = word.partition("=")
        named |= {name: file} if equals else _named([word])
    if len(named) < len(given):
        raise DataError(f"two inputs have one name among {given}; write them as CHANNEL=FILE")
    return named


def _decision(text: str | None) -> str | float | None:
    if text is None or text == "argmax":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"--decide is argmax or a number, not {text!r}") from error


@app.command()
def view(
    files: list[str],
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("view.png"),
    at: Annotated[list[float] | None, typer.Option(help="World X, Y, Z in mm, given three times.")] = None,
    overlay: Annotated[bool, typer.Option(help="Show the later ones over the first, not beside it.")] = False,
    serve: Annotated[bool, typer.Option(help="Serve OME-Zarr stores to neuroglancer instead.")] = False,
    port: Annotated[int, typer.Option(help="Of the server; 0 for any.")] = 0,
) -> None:
    """Write a picture of orthogonal slices, or serve stores to a viewer in the browser.

    Example: mrhdata view t2w.nii.gz af.nrrd --out slices.png
    """
    if serve:
        _serve(files, port)
        return
    from mrhdata import formats, viewing

    volumes = {name: formats.read(file) for name, file in _named(files).items()}
    viewing.picture(volumes, out, at=at, overlay=overlay)
    typer.echo(str(out))


def _serve(files: list[str], port: int) -> None:
    from mrhdata.serving import Server

    with Server(_named(files), port) as server:
        typer.echo(f"serving {', '.join(server.stores)} at {server.url} to {server.viewer} only; Ctrl-C ends it")
        typer.echo(server.link())
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("stopped")


def _named(files: list[str]) -> dict[str, str]:
    """Files by their names; those of one name are told apart by a number."""
    named: dict[str, str] = {}
    for file in files:
        stem = Path(file).name.split(".")[0] or "volume"
        name, n = stem, 1
        while name in named:
            n += 1
            name = f"{stem}-{n}"
        named[name] = file
    return named


def _options(**given: Any) -> Any:
    """Options of the command line as those of mrhdata.read; the ones not given are left out."""
    found = {key: value for key, value in given.items() if value is not None}
    for key in ("spacing", "origin"):
        numbers = found.get(key)
        if numbers is not None:
            found[key] = numbers[0] if key == "spacing" and len(numbers) == 1 else numbers
    return found


def _shares(text: str) -> dict[str, float]:
    try:
        return {name.strip(): float(share) for name, share in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise DataError(f"--split {text}: write shares as train=0.8,test=0.2") from error


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


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found))
        return
    width = max(map(len, found))
    for key, value in found.items():
        typer.echo(f"{key:{width}}  {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return "; ".join(value)
    return "nothing" if isinstance(value, list) and not value else str(value)


def main() -> None:
    """Run the command line; mistakes that the user can put right end with one sentence and exit code 2."""
    try:
        logging.basicConfig(format="mrhdata: %(message)s", level=logging.WARNING)
        app()
    except MrhdataError as error:
        typer.echo(f"mrhdata: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("mrhdata: interrupted; nothing half-written stands under its name", err=True)
        sys.exit(130)
