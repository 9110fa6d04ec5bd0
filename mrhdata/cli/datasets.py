"""Commands on catalogues and published data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command

CatalogFile = Annotated[str, options.argument("CATALOG", "YAML file of the catalogue.")]


@command(
    "mrhdata catalog build study/ --licence CC0-1.0 --split 0.6,0.2,0.2",
    "mrhdata catalog build study/ -o public.yaml --split train=0.8,test=0.2",
)
def catalog_build(
    folder: Annotated[Path, options.argument("FOLDER", "Folder to search, with its subfolders.")],
    out: Annotated[Path | None, options.output("YAML file; catalog.yaml in the folder by default.")] = None,
    title: Annotated[str | None, typer.Option(help="Title of the catalogue.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of all volumes.")] = None,
    citation: Annotated[str | None, typer.Option(help="Citation of all volumes.")] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="SHARES",
            help="Shares of subjects for train, validation and test: 0.6,0.2,0.2, or with names: train=0.8,test=0.2.",
        ),
    ] = None,
    seed: options.Seed = 0,
    orientation: options.Orientation = None,
    unit: options.Unit = None,
    space: options.Space = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """List every volume below a folder in a new catalogue."""
    from mrhdata._runtime.atomic import check_target
    from mrhdata.datasets import build as building

    if folder.is_dir():
        check_target(folder / "catalog.yaml" if out is None else out, overwrite)
    shares = None if split is None else options.split_shares(split)
    read_options = options.read_options(orientation=orientation, unit=unit, space=space)
    path = building.build(
        folder, out, title=title, licence=licence, citation=citation, split=shares, seed=seed, **read_options
    )
    options.answer({"written": str(path)}, as_json)


@command(
    "mrhdata catalog list catalog.yaml",
    "mrhdata catalog list catalog.yaml --json",
)
def catalog_list(catalog: CatalogFile, as_json: options.Json = False) -> None:
    """Print the entries of a catalogue with their metadata."""
    from mrhdata.datasets.catalog import open_catalog

    options.answer({name: metadata for name, (metadata, _) in open_catalog(catalog).find().items()}, as_json)


@command("mrhdata catalog check elsewhere.yaml")
def catalog_check(catalog: CatalogFile, as_json: options.Json = False) -> None:
    """Check that a catalogue contains no code, without opening it."""
    from mrhdata.datasets.catalog import check

    check(catalog)
    options.answer({"checked": catalog, "holds": "descriptions of data only"}, as_json)


@command(
    "mrhdata fetch",
    "mrhdata fetch ccfv3-template-25um -o atlas/",
)
def fetch(
    name: Annotated[
        str | None, options.argument("NAME", "Name of a published volume; without it all are listed.")
    ] = None,
    out: Annotated[Path | None, options.output("Folder of the stores and of their catalogue.")] = None,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Download a published volume and convert it to OME-Zarr."""
    from mrhdata.datasets import published

    if name is None:
        entries = published.published().items()
        listed = {n: f"{e['description']} [{e['metadata'].get('licence', 'licence unknown')}]" for n, e in entries}
        options.answer(listed, as_json)
        return
    volume = published.fetch(name, out, progress=options.bars(progress))
    options.answer({"fetched": name, "shape": dict(volume.sizes), "space": volume.mrh.space}, as_json)
