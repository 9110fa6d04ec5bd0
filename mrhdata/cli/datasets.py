"""Commands on catalogues and published data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command
from mrhdata.errors import DataError


@command("mrhdata catalog check catalog.yaml")
def catalog_check(file: str, as_json: options.Json = False) -> None:
    """Say whether a catalogue only describes data, before anything opens it."""
    from mrhdata.datasets import catalog

    catalog.check(file)
    options.answer({"checked": file, "holds": "descriptions of data only"}, as_json)


@command("mrhdata catalog build study/ --licence CC0-1.0 --split train=0.8,test=0.2")
def catalog_build(
    folder: Path,
    out: Annotated[Path | None, typer.Option(help="The YAML file; catalog.yaml in the folder by default.")] = None,
    title: Annotated[str | None, typer.Option(help="Of the catalogue.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of all volumes.")] = None,
    citation: Annotated[str | None, typer.Option(help="Of all volumes.")] = None,
    split: Annotated[str | None, typer.Option(help="Shares by subject, such as train=0.8,test=0.2.")] = None,
    seed: options.Seed = 0,
    axes: options.Axes = None,
    unit: options.Unit = None,
    space: options.Space = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """List every volume below a folder in a catalogue."""
    from mrhdata._runtime.atomic import check_target
    from mrhdata.datasets import build as building

    if folder.is_dir():
        check_target(folder / "catalog.yaml" if out is None else out, overwrite)
    shares = _shares(split) if split else None
    given = options.options(axes=axes, unit=unit, space=space)
    path = building.build(
        folder, out, title=title, licence=licence, citation=citation, split=shares, seed=seed, **given
    )
    options.answer({"written": str(path)}, as_json)


@command(
    "mrhdata catalog list catalog.yaml",
    "mrhdata catalog list catalog.yaml --json",
)
def catalog_list(file: str, as_json: options.Json = False) -> None:
    """Print the entries of a catalogue with their metadata."""
    from mrhdata.datasets import catalog

    found = {name: held for name, (held, _) in catalog.open_catalog(file).find().items()}
    options.answer(found, as_json)


@command(
    "mrhdata fetch",
    "mrhdata fetch ccfv3-template-25um --out atlas/",
)
def fetch(
    name: Annotated[str | None, typer.Argument(help="Of a published volume; all are listed without it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the stores and their catalogue.")] = None,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Download a published volume, check it, and convert it to OME-Zarr."""
    from mrhdata.datasets import published

    if name is None:
        entries = published.published().items()
        shown = {n: f"{e['description']} [{e['metadata'].get('licence', 'licence unknown')}]" for n, e in entries}
        options.answer(shown, as_json)
        return
    volume = published.fetch(name, out, progress=options.shown(progress))
    options.answer({"fetched": name, "shape": dict(volume.sizes), "space": volume.mrh.space}, as_json)


def _shares(text: str) -> dict[str, float]:
    try:
        return {name.strip(): float(share) for name, share in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise DataError(f"--split {text}: write shares as train=0.8,test=0.2") from error
