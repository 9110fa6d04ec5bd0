"""Commands that train networks on degraded images, and restore images with them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command, resumable
from mrhdata.cli.machine import Machine, machine_options
from mrhdata.errors import DataError, ModelError, MrhdataError, ParameterError

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn


@command("mrhdata train restoration good-stack/ -o em-net/ --context-slices 2 --spacing 2 --unit nm")
@machine_options
def train_restoration(
    stacks: Annotated[list[str], options.argument("STACKS", "Good stacks: files, folders of planes, or patterns.")],
    out: Annotated[Path, options.output("Folder of the network.")],
    crappifier: Annotated[
        str, typer.Option(help="Name of a published degradation, such as em_AG_D_sameas_preprint.")
    ] = "em_AG_D_sameas_preprint",
    context_slices: Annotated[
        int, typer.Option(min=0, help="Slices on each side of the restored one that the network sees too.")
    ] = 0,
    recipe: Annotated[
        str, typer.Option(help="Network: restorer, which works at the low resolution, or pssr, which is published.")
    ] = "restorer",
    validation_fraction: Annotated[
        float, typer.Option(help="Fraction of the slices, at the end of each stack, that sets the last epoch.")
    ] = 0.12,
    patch_size: Annotated[int, typer.Option(min=1, help="Edge of the patches in pixels of the good images.")] = 96,
    patches_per_epoch: Annotated[int, typer.Option(min=1, help="Number of patches in an epoch.")] = 1000,
    epochs: options.Epochs = None,
    spacing: options.Spacing = None,
    unit: options.Unit = None,
    machine: Machine = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Train a network to restore fast electron-microscopy scans.

    It learns from good images that are degraded as they are read.

    An interrupted training resumes when you run the command again; --overwrite repeats a finished one.
    """
    from dataclasses import replace

    from mrhdata import models
    from mrhdata._runtime.atomic import resumable_folder
    from mrhdata.degrade import PUBLISHED
    from mrhdata.io import fingerprint, formats
    from mrhdata.recipes import restoration

    options.check_training_target(out, overwrite)
    if crappifier not in PUBLISHED:
        raise ModelError(f"--crappifier must be one of {', '.join(PUBLISHED)}; got {crappifier!r}")
    read_options = options.read_options(spacing=spacing, unit=unit)
    good = [formats.read(stack, **read_options).rename("em") for stack in stacks]
    slices = 1 + 2 * context_slices
    training, validation = _cut(good, slices, validation_fraction)
    settings = replace(
        restoration.EFFICIENT, seed=seed, **options.set_options(epochs=epochs, patience=epochs), **machine
    )
    prints = [fingerprint.fingerprint(stack) for stack in good]
    patches = [patch_size, patches_per_epoch]
    identity = fingerprint.digest([prints, crappifier, slices, recipe, validation_fraction, patches, repr(settings)])
    with resumable(), resumable_folder(out, identity) as state:
        model, history = restoration.train(
            training,
            validation,
            PUBLISHED[crappifier],
            network=recipe,
            context_slices=context_slices,
            patch_size=patch_size,
            patches_per_epoch=patches_per_epoch,
            settings=settings,
            folder=state,
            progress=options.bars(progress),
        )
        models.save(model, out)
    values = {"written": str(out), "epochs": len(history.validation), "rmse": round(min(history.rmse), 5)}
    options.answer(values | {"seconds": round(history.seconds)}, as_json)


def _cut(
    stacks: list[xr.DataArray], slices: int, validation_fraction: float
) -> tuple[list[xr.DataArray], list[xr.DataArray]]:
    """Return the slices of each stack for training, and those at its end for validation."""
    training, validation = [], []
    for stack in stacks:
        planes = stack.sizes["z"]
        start = planes - max(slices, round(validation_fraction * planes))
        # The gap is as wide as a patch sees, so no slice is in both parts.
        if start - slices < slices:
            raise DataError(
                f"{stack.name} has {planes} slices, too few to train on {slices} at a time and to validate; pass a "
                "smaller --context-slices"
            )
        training.append(stack.isel(z=slice(0, start - slices)))
        validation.append(stack.isel(z=slice(start, None)))
    return training, validation


@command(
    "mrhdata restore em-net/ scan.zarr -o restored.zarr",
    "mrhdata restore em-net/ --watch microscope/ -o restored/ --spacing 8 --unit nm",
)
def restore(
    model: options.Model,
    out: Annotated[Path, options.output("OME-Zarr or file; with --watch a folder.")],
    stack: Annotated[str | None, options.argument("STACK", "Stack to restore.")] = None,
    watch: Annotated[Path | None, typer.Option(help="Folder whose files are restored as they are written.")] = None,
    stop_after: Annotated[
        float | None, typer.Option(help="Seconds without a new file after which --watch ends; never by default.")
    ] = None,
    stable_for: Annotated[
        float, typer.Option(help="Seconds without a change after which --watch takes a file as complete.")
    ] = 2.0,
    spacing: options.Spacing = None,
    unit: options.Unit = None,
    memory: options.Memory = "1 GB",
    device: options.Device = None,
    precision: options.Precision = "float32",
    force: options.Force = False,
    overwrite: options.Overwrite = False,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Restore a stack, or files as a microscope writes them.

    An interrupted run resumes when you run the command again.
    """
    from mrhdata import models

    if (stack is None) == (watch is None):
        raise ParameterError("pass either a stack to restore, or a folder to --watch")
    network = models.load(model)
    settings: Any = {"memory": memory, "device": device, "precision": precision, "force": force}
    settings |= {"overwrite": overwrite, "progress": options.bars(progress)}
    read_options = options.read_options(spacing=spacing, unit=unit)
    with resumable():
        if stack is not None:
            options.answer(_restore(network, stack, out, read_options, settings), as_json)
            return
        assert watch is not None
        count = _restore_arriving(network, watch, out, read_options, settings, stable_for, stop_after)
    options.answer({"restored": count, "written": str(out)}, as_json)


def _restore(network: nn.Module, stack: str, out: Path, read_options: Any, settings: Any) -> dict[str, Any]:
    from mrhdata.io import formats
    from mrhdata.recipes import restoration

    start = time.perf_counter()
    restored = restoration.restore(network, formats.read(stack, **read_options), out, **settings)
    megapixels_per_second = restored.size / 1e6 / (time.perf_counter() - start)
    return {
        "written": str(out),
        "shape": dict(restored.sizes),
        "dtype": str(restored.dtype),
        "Mpixel/s": round(megapixels_per_second, 2),
        **options.unfamiliar(restored.attrs),
    }


def _restore_arriving(
    network: nn.Module,
    folder: Path,
    out: Path,
    read_options: Any,
    settings: Any,
    stable_for: float,
    stop_after: float | None,
) -> int:
    """Restore each file of a folder that has no output yet; warn about unreadable ones."""
    from mrhdata.io import formats
    from mrhdata.recipes.watch_folder import arriving

    out.mkdir(parents=True, exist_ok=True)

    def target(path: Path) -> Path:
        return out / f"{path.name.split('.')[0]}{formats.written_as(path, otherwise='.ome.tif')}"

    def is_waiting(path: Path) -> bool:
        return any(path.name.lower().endswith(ending) for ending in formats.FORMATS) and not target(path).exists()

    count = 0
    for path in arriving(folder, is_waiting, settle_s=stable_for, idle_s=stop_after):
        try:
            values = _restore(network, str(path), target(path), read_options, settings)
        except MrhdataError as error:
            options.warn(f"left out: {error}")
            continue
        typer.echo(f"{path.name} -> {target(path).name}, {values['Mpixel/s']} Mpixel/s", err=True)
        count += 1
    return count
