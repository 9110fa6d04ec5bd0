"""Commands on catalogues and published data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrhdata.cli import words
from mrhdata.cli.app import command
from mrhdata.errors import DataError


@command("mrhdata catalog check catalog.yaml")
def catalog_check(file: str, as_json: words.Json = False) -> None:
    """Say whether a catalogue only describes data, before anything opens it."""
    from mrhdata import catalog

    catalog.check(file)
    words.answer({"checked": file, "holds": "descriptions of data only"}, as_json)


@command("mrhdata catalog build study/ --licence CC0-1.0 --split train=0.8,test=0.2")
def catalog_build(
    folder: Path,
    out: Annotated[Path | None, typer.Option(help="The YAML file; catalog.yaml in the folder by default.")] = None,
    title: Annotated[str | None, typer.Option(help="Of the catalogue.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of all volumes.")] = None,
    citation: Annotated[str | None, typer.Option(help="Of all volumes.")] = None,
    split: Annotated[str | None, typer.Option(help="Shares by subject, such as train=0.8,test=0.2.")] = None,
    seed: words.Seed = 0,
    axes: words.Axes = None,
    unit: words.Unit = None,
    space: words.Space = None,
    overwrite: words.Overwrite = False,
    as_json: words.Json = False,
) -> None:
    """List every volume below a folder in a catalogue."""
    from mrhdata import catalog_build as building
    from mrhdata.drafting import check_target

    if folder.is_dir():
        check_target(folder / "catalog.yaml" if out is None else out, overwrite)
    shares = _shares(split) if split else None
    given = words.options(axes=axes, unit=unit, space=space)
    path = building.build(
        folder, out, title=title, licence=licence, citation=citation, split=shares, seed=seed, **given
    )
    words.answer({"written": str(path)}, as_json)


@command(
    "mrhdata catalog list catalog.yaml",
    "mrhdata catalog list catalog.yaml --json",
)
def catalog_list(file: str, as_json: words.Json = False) -> None:
    """Print the entries of a catalogue with their metadata."""
    from mrhdata import catalog

    found = {name: held for name, (held, _) in catalog.open_catalog(file).find().items()}
    words.answer(found, as_json)


@command(
    "mrhdata fetch",
    "mrhdata fetch ccfv3-template-25um --out atlas/",
)
def fetch(
    name: Annotated[str | None, typer.Argument(help="Of a published volume; all are listed without it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the stores and their catalogue.")] = None,
    progress: words.Progress = None,
    as_json: words.Json = False,
) -> None:
    """Download a published volume, check it, and convert it to OME-Zarr."""
    from mrhdata import fetching

    if name is None:
        entries = fetching.published().items()
        shown = {n: f"{e['description']} [{e['metadata'].get('licence', 'licence unknown')}]" for n, e in entries}
        words.answer(shown, as_json)
        return
    volume = fetching.fetch(name, out, progress=words.shown(progress))
    words.answer({"fetched": name, "shape": dict(volume.sizes), "space": volume.mrh.space}, as_json)


def _shares(text: str) -> dict[str, float]:
    try:
        return {name.strip(): float(share) for name, share in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise DataError(f"--split {text}: write shares as train=0.8,test=0.2") from error
