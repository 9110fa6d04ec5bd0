"""Commands about networks that are there: those that are shipped, and those that leave for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrhdata._runtime.atomic import check_target
from mrhdata.cli import options
from mrhdata.cli.app import command
from mrhdata.errors import ModelError


@command("mrhdata networks", "mrhdata networks --task cells --json")
def networks(
    task: Annotated[str | None, typer.Option(help="histology, tissue, nuclei, restoration or cells.")] = None,
    as_json: options.Json = False,
) -> None:
    """List the networks that are shipped; their names stand wherever a network's folder is asked for.

    Each is small and was trained on phantoms: to try a command with, and to start from.
    """
    import json
    from dataclasses import asdict

    from mrhdata import models

    cards = models.list(task)
    typer.echo(json.dumps([asdict(card) for card in cards], indent=1) if as_json else repr(cards))


@command(
    "mrhdata export-network virtual-af/ virtual-af.onnx",
    "mrhdata export-network phantom-cells cells.zip --title 'Cells of cleared tissue' --author 'A. Name'",
)
def export_network(
    network: Annotated[Path, typer.Argument(help="Folder of a trained network, or the name of a shipped one.")],
    out: Annotated[Path, typer.Argument(help="NAME.onnx, or NAME.zip for a package of BioImage.IO.")],
    title: Annotated[str | None, typer.Option(help="Of the package; that of the card by default.")] = None,
    author: Annotated[str, typer.Option(help="Of the package.")] = "unknown",
    licence: Annotated[str, typer.Option(help="Of the package, as SPDX names it.")] = "MIT",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write a trained network for other programs: raw voxels in, answers in the units of training out."""
    from mrhdata import models
    from mrhdata.models import cards
    from mrhdata.models.export import export_bioimage, export_onnx

    if out.suffix not in (".onnx", ".zip"):
        raise ModelError(f"{out} is neither .onnx nor .zip (a package of BioImage.IO); name it so")
    check_target(out, overwrite)
    model = models.load(network)
    if out.suffix == ".onnx":
        export_onnx(model, out)
    else:
        card = cards.card_of(cards.folder_of(str(network)))
        named = title or (card.title if card else f"{model.spec.name} of mrhdata")  # type: ignore[union-attr]
        export_bioimage(model, out, title=named, author=author, card=card, licence=licence)
    options.answer({"written": str(out), "bytes": out.stat().st_size}, as_json)
