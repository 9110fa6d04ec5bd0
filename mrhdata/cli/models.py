"""Commands on trained networks: those that are shipped, and the export to other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command
from mrhdata.errors import ModelError


@command("mrhdata models list", "mrhdata models list --task cells --json")
def models_list(
    task: Annotated[
        str | None, typer.Option(help="Task of the networks: histology, tissue, nuclei, restoration or cells.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the shipped networks with their scores.

    Commands take their names instead of a model folder. Those named phantom were trained on phantoms: use them to try a
    command and to start a training from.
    """
    import json
    from dataclasses import asdict

    from mrhdata import models

    cards = models.list(task)
    typer.echo(json.dumps([asdict(card) for card in cards], indent=1) if as_json else repr(cards))


@command(
    "mrhdata models export virtual-af/ -o virtual-af.onnx",
    "mrhdata models export phantom-cells -o cells.zip --title 'Cells of cleared tissue' --author 'A. Name'",
)
def models_export(
    model: options.Model,
    out: Annotated[Path, options.output("NAME.onnx, or NAME.zip for a package of BioImage.IO.")],
    title: Annotated[str | None, typer.Option(help="Title of the package; that of the card by default.")] = None,
    author: Annotated[str, typer.Option(help="Author of the package.")] = "unknown",
    licence: Annotated[str, typer.Option(help="Licence of the package, as SPDX names it.")] = "MIT",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Export a trained network as ONNX or for BioImage.IO.

    It takes raw voxels and answers in the units of training.
    """
    from mrhdata import models
    from mrhdata._runtime.atomic import check_target
    from mrhdata.models import cards
    from mrhdata.models.export import export_bioimage, export_onnx

    if out.suffix not in (".onnx", ".zip"):
        raise ModelError(f"--out must end in .onnx, or in .zip for a package of BioImage.IO; got {out}")
    check_target(out, overwrite)
    network = models.load(model)
    if out.suffix == ".onnx":
        export_onnx(network, out)
    else:
        card = cards.card_of(cards.folder_of(str(model)))
        name = title or (card.title if card else f"{network.spec.name} of mrhdata")  # type: ignore[union-attr]
        export_bioimage(network, out, title=name, author=author, card=card, licence=licence)
    options.answer({"written": str(out), "bytes": out.stat().st_size}, as_json)
