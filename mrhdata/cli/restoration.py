"""Commands that train networks on degraded images, and restore images with them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command, resumable
from mrhdata.errors import DataError, ModelError, MrhdataError

if TYPE_CHECKING:
    from torch import nn


@command("mrhdata train-restoration em-net/ good-stack/ --frames 5 --spacing 2 --unit nm")
def train_restoration(
    out: Annotated[Path, typer.Argument(help="Folder of the network.")],
    stacks: Annotated[list[str], typer.Argument(help="Good stacks, as files, folders of planes or patterns.")],
    crappifier: Annotated[
        str, typer.Option(help="Name of a published degradation, such as em_AG_D_sameas_preprint.")
    ] = "em_AG_D_sameas_preprint",
    frames: Annotated[int, typer.Option(help="Neighbouring planes that are seen, the middle one is restored.")] = 1,
    recipe: Annotated[
        str, typer.Option(help="restorer (works at the low resolution) or pssr (published).")
    ] = "restorer",
    held: Annotated[float, typer.Option(help="Part of the planes, at the end, that says when to stop.")] = 0.12,
    tile: Annotated[int, typer.Option(help="Edge of the patches, in good pixels.")] = 96,
    tiles: Annotated[int, typer.Option(help="Patches of an epoch.")] = 1000,
    epochs: options.Epochs = None,
    spacing: options.Spacing = None,
    unit: options.Unit = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Train a network to restore fast scans, from good images that are degraded as they are read.

    A run that was stopped goes on when it is called again; one that is finished is done anew with --overwrite.
    """
    from dataclasses import replace

    from mrhdata import models
    from mrhdata._runtime.atomic import resumable_folder
    from mrhdata.degrade import PUBLISHED
    from mrhdata.io import fingerprint, formats
    from mrhdata.recipes import restoration

    options.check_unfinished(out, overwrite)
    if crappifier not in PUBLISHED:
        raise ModelError(f"there is no degradation called {crappifier!r}; there are {', '.join(PUBLISHED)}")
    good = [formats.read(stack, **options.options(spacing=spacing, unit=unit)).rename("em") for stack in stacks]
    parts = _parted(good, frames, held)
    settings = replace(restoration.EFFICIENT, seed=seed, **options.options(epochs=epochs, patience=epochs))
    told = [fingerprint.fingerprint(stack) for stack in good]
    identity = fingerprint.digest([told, crappifier, frames, recipe, held, tile, tiles, repr(settings)])
    with resumable(), resumable_folder(out, identity) as state:
        model, history = restoration.train(
            *parts,
            PUBLISHED[crappifier],
            network=recipe,
            frames=frames,
            tile=tile,
            tiles=tiles,
            settings=settings,
            folder=state,
            progress=options.shown(progress),
        )
        models.save(model, out)
    found = {"written": str(out), "epochs": len(history.validation), "rmse": round(min(history.rmse), 5)}
    options.answer(found | {"seconds": round(history.seconds)}, as_json)


def _parted(stacks: list[Any], frames: int, held: float) -> tuple[list[Any], list[Any]]:
    """Planes to learn from, and those at the end that say when to stop."""
    learned, watched = [], []
    for stack in stacks:
        planes = stack.sizes["z"]
        cut = planes - max(frames, round(held * planes))
        # As many planes between as a patch sees beyond its own.
        if cut - frames < frames:
            raise DataError(f"{stack.name} has {planes} planes, too few for {frames} frames with a part held back")
        learned.append(stack.isel(z=slice(0, cut - frames)))
        watched.append(stack.isel(z=slice(cut, None)))
    return learned, watched


@command(
    "mrhdata restore em-net/ restored.zarr scan.zarr",
    "mrhdata restore em-net/ restored/ --watch microscope/ --spacing 8 --unit nm",
)
def restore(
    model: Annotated[Path, typer.Argument(help="Folder of a network of mrhdata train-restoration.")],
    out: Annotated[Path, typer.Argument(help="OME-Zarr or file to write; with --watch a folder.")],
    stack: Annotated[str | None, typer.Argument(help="Stack to restore.")] = None,
    watch: Annotated[Path | None, typer.Option(help="Folder whose files are restored as they are written.")] = None,
    idle: Annotated[float | None, typer.Option(help="With --watch: stop after so many seconds without a file.")] = None,
    settle: Annotated[float, typer.Option(help="With --watch: seconds for which a file must not have grown.")] = 2.0,
    spacing: options.Spacing = None,
    unit: options.Unit = None,
    memory: options.Memory = "1 GB",
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Restore a stack of any size, or tiles as a microscope writes them."""
    from mrhdata import models

    if (stack is None) == (watch is None):
        raise DataError("give either a stack to restore, or a folder to --watch")
    network = models.load(model)
    settings = {"memory": memory, "device": device, "overwrite": overwrite, "progress": options.shown(progress)}
    read = options.options(spacing=spacing, unit=unit)
    with resumable():
        if stack is not None:
            options.answer(_restored(network, stack, out, read, settings), as_json)
            return
        assert watch is not None
        count = _watched(network, watch, out, read, settings, settle, idle)
    options.answer({"restored": count, "written": str(out)}, as_json)


def _restored(network: nn.Module, stack: str, out: Path, read: Any, settings: Any) -> dict[str, Any]:
    from mrhdata.io import formats
    from mrhdata.recipes import restoration

    start = time.perf_counter()
    volume = formats.read(stack, **read)
    made = restoration.restore(network, volume, out, **settings)
    seconds = time.perf_counter() - start
    pixels = made.size / 1e6
    return {
        "written": str(out),
        "shape": dict(made.sizes),
        "dtype": str(made.dtype),
        "Mpixel/s": round(pixels / seconds, 2),
    }


def _watched(
    network: nn.Module, folder: Path, out: Path, read: Any, settings: Any, settle: float, idle: float | None
) -> int:
    """Each file of a folder that has no restored one; a file that cannot be read is named and left."""
    from mrhdata.io import formats
    from mrhdata.recipes.watch_folder import arriving

    out.mkdir(parents=True, exist_ok=True)

    def target(path: Path) -> Path:
        return out / f"{path.name.split('.')[0]}{formats.written_as(path, otherwise='.ome.tif')}"

    def wanted(path: Path) -> bool:
        return any(path.name.lower().endswith(e) for e in formats.FORMATS) and not target(path).exists()

    count = 0
    for path in arriving(folder, wanted, settle_s=settle, idle_s=idle):
        try:
            found = _restored(network, str(path), target(path), read, settings)
        except MrhdataError as error:
            options.warn(f"left out: {error}")
            continue
        typer.echo(f"{path.name} -> {target(path).name}, {found['Mpixel/s']} Mpixel/s", err=True)
        count += 1
    return count
