"""Commands that learn to find cells from marks, and find them in brains of any size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command, resumable
from mrhdata.errors import DataError, ModelError

if TYPE_CHECKING:
    from mrhdata.recipes.cells import Brain

Volumes = Annotated[list[str], typer.Argument(help="Volumes on one grid, as FILE or CHANNEL=FILE.")]


@command("mrhdata train-cells neurons/ brain-1.zarr=marks-1.xml brain-2.zarr=marks-2.xml")
def train_cells(
    out: Annotated[Path, typer.Argument(help="Folder of the network, its scores and checkpoints.")],
    brains: Annotated[list[str], typer.Argument(help="VOLUME=MARKS for each brain: marks as XML, CSV or Parquet.")],
    validation: Annotated[int, typer.Option(help="Brains at the end that say when to stop, and the threshold.")] = 1,
    incomplete: Annotated[bool, typer.Option("--incomplete", help="Not every cell was marked.")] = False,
    recipe: Annotated[str, typer.Option(help="corrected, or published (2020).")] = "corrected",
    radius_um: Annotated[float | None, typer.Option(help="Of a match; 6 voxels by default.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Further rounds with what was found wrongly.")] = None,
    epochs: options.Epochs = None,
    boxes: Annotated[int | None, typer.Option(help="Of each brain; those of the recipe by default.")] = None,
    spacing: options.Spacing = None,
    unit: options.Unit = None,
    seed: options.Seed = 0,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Train a network to find cells, from points that were marked in brains.

    A run that was stopped goes on when it is called again.
    """
    from dataclasses import replace

    from mrhdata import models
    from mrhdata.io.fingerprint import fingerprint_cases
    from mrhdata.recipes import cells
    from mrhdata.recipes.cross_validation import claim

    given = [_brain(word, options.options(spacing=spacing, unit=unit), incomplete) for word in brains]
    if not 0 < validation < len(given):
        raise DataError(f"--validation {validation} of {len(given)} brains; leave some to train on and some to watch")
    voxel = float(min(next(iter(given[0].inputs.values())).mrh.spacing))
    known = {"corrected": cells.recommended_recipe, "published": cells.published_recipe}
    if recipe not in known:
        raise ModelError(f"there is no recipe called {recipe!r}; there are {', '.join(known)}")
    made = known[recipe](voxel)
    if epochs is not None:
        made = replace(made, training=replace(made.training, epochs=epochs, patience=epochs))
    made = replace(made, **options.options(rounds=rounds, each=boxes))
    radius = 6 * voxel if radius_um is None else radius_um * 1e-3
    about = {"brains": brains, "validation": validation, "recipe": repr(made), "seed": seed}
    claim(out / "plan.json", about | {"volumes": fingerprint_cases(given)})
    parts = given[:-validation], given[-validation:]
    with resumable():
        trained = cells.train(made, *parts, radius_mm=radius, seed=seed, folder=out, progress=options.shown(progress))
    models.save(trained.model, out / "network")
    spec: Any = trained.model.spec
    found = {"written": str(out / "network"), "marks": [len(b.cells) for b in given], "radius_um": radius * 1e3}
    options.answer(found | {"threshold": round(spec.finish[0][1]["threshold"], 4)}, as_json)


def _brain(word: str, options: Any, incomplete: bool) -> Brain:
    from mrhdata.io import formats
    from mrhdata.io.cell_tables import read_points
    from mrhdata.recipes.cells import Brain

    volume, equals, marks = word.partition("=")
    if not equals:
        raise DataError(f"{word} names no marks; write a brain as VOLUME=MARKS")
    image = formats.read(volume, **options)
    table = read_points(Path(marks), image)
    # What another program calls no cell is none.
    table = table[table["type"] == 2] if "type" in table else table
    name = Path(volume).name.split(".")[0]
    return Brain(
        name, {"signal": image.rename("signal")}, cells=table[["X", "Y", "Z"]].to_numpy(), complete=not incomplete
    )


@command(
    "mrhdata detect neurons/network brain-3/ brain-3.zarr --points brain-3.xml",
    "mrhdata detect neurons/network brain-3/ signal=ch1.zarr background=ch2.zarr --memory '4 GB'",
)
def detect(
    model: Annotated[Path, typer.Argument(help="Folder of a network of mrhdata train-cells.")],
    out: Annotated[Path, typer.Argument(help="Folder that gets scores.zarr and cells.parquet.")],
    inputs: Volumes,
    points: Annotated[Path | None, typer.Option(help="The cells as XML, CSV or napari's CSV, too.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Least score; that of the training by default.")] = None,
    where: options.Stored = None,
    spacing: options.Spacing = None,
    unit: options.Unit = None,
    memory: options.Memory = "1 GB",
    device: options.Device = None,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    skip_corrupt: options.SkipCorrupt = False,
    overwrite: options.Overwrite = False,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Find the cells of a brain of any size. A run that was stopped goes on when it is called again."""
    from dataclasses import replace

    from mrhdata import models
    from mrhdata.inference.detector import detect as run
    from mrhdata.inference.detector import stored_peaks
    from mrhdata.io import formats
    from mrhdata.io.cell_tables import write_points

    network = models.load(model)
    spec: Any = network.spec
    read = options.options(spacing=spacing, unit=unit)
    files = options.channels(inputs)
    # One volume alone needs no name.
    names = list(spec.channels) if len(files) == len(spec.channels) == 1 else list(files)
    given = {name: formats.read(f, **read).rename(name) for name, f in zip(names, files.values(), strict=True)}
    peaks = replace(stored_peaks(spec), **options.options(threshold=threshold))
    options.warn_of_unfamiliar(network, given)
    with resumable():
        found = run(
            network,
            given,
            out,
            peaks=peaks,
            where=options.stored(where),
            memory=memory,
            device=device,
            precision=precision,
            skip_corrupt=skip_corrupt,
            overwrite=overwrite,
            progress=options.shown(progress),
        )
    if points is not None:
        write_points(found, points, next(iter(given.values())))
    options.answer({"written": str(out), "cells": len(found), "threshold": round(peaks.threshold, 4)}, as_json)
