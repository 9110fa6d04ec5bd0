"""Commands that train networks and map them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command, resumable
from mrhdata.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from mrhdata.patching.dataset import Patches
    from mrhdata.training.history import History
    from mrhdata.training.settings import TrainingConfig


@command("mrhdata train virtual-af/ af.zarr t2w=t2w.zarr mt=mt.zarr --where brain.mha")
def train(
    out: Annotated[Path, typer.Argument(help="Folder of the network, its history and the parts of the volume.")],
    target: Annotated[str, typer.Argument(help="Histology that is to be predicted.")],
    inputs: Annotated[list[str], typer.Argument(help="Volumes on its grid, as FILE or CHANNEL=FILE.")],
    where: options.Where = None,
    align: options.Align = "same",
    along: Annotated[str, typer.Option(help="Axis that is cut into training, validation and test.")] = "y",
    shares: options.Shares = "0.6,0.2,0.2",
    stride: options.Stride = 1,
    blocks: options.Blocks = 4,
    epochs: options.Epochs = None,
    members: Annotated[int, typer.Option(help="Networks; several say together how sure they are.")] = 1,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Train MRH-Net on one brain: parts of it, with gaps between, for training, validation and test.

    A run that was stopped goes on when it is called again; one that is finished is done anew with --overwrite.

    The parts are written as labels 1, 2 and 3 beside the network, for mrhdata sensitivity and report. Maps of several
    networks have three channels: mean, uncertainty, and how strange the inputs are.
    """
    import json
    from dataclasses import asdict, replace

    from mrhdata import models
    from mrhdata._runtime.atomic import atomic_write, resumable_folder
    from mrhdata.analysis import robustness
    from mrhdata.io import fingerprint, formats
    from mrhdata.patching import splits
    from mrhdata.patching.create import patches
    from mrhdata.recipes import mrhnet

    options.check_unfinished(out, overwrite)
    if members < 1:
        raise DataError(f"--members {members}: train one network or more")
    if along not in ("z", "y", "x"):
        raise DataError(f"--along is z, y or x, the axes of mrhdata info, not {along!r}")
    given = {name: formats.read(file) for name, file in options.channels(inputs).items()}
    truth, mask = formats.read(target), options.optional(where, "mask")
    planned = patches(given, truth, shape=mrhnet.PATCH, stride=stride, plane="coronal", where=mask, align=align)
    parts = planned.split(options.shares(shares), by=along)
    settings = replace(mrhnet.RECOMMENDED, seed=seed, **options.options(epochs=epochs))
    volumes = [
        fingerprint.fingerprint(volume) for volume in (*given.values(), truth, *([] if mask is None else [mask]))
    ]
    identity = fingerprint.digest([volumes, list(given), align, along, shares, stride, blocks, repr(settings)])
    shown = options.shown(progress)
    with resumable(), resumable_folder(out, identity) as state:
        networks, histories = _fitted(parts, settings, blocks, [state / f"{n}.pt" for n in range(members)], shown)
        model = networks[0] if members == 1 else robustness.calibrated_ensemble(networks, parts[0], parts[1])
        with atomic_write(out, overwrite=overwrite) as draft:
            models.save(model, draft)
            (draft / "history.json").write_text(json.dumps(asdict(histories[0])) + "\n", encoding="utf-8")
            formats.write(splits.labelled(parts, along, next(iter(given.values()))), draft / "parts.zarr")
    history = histories[0]
    found = {"written": str(out), "patches": [len(part) for part in parts], "epochs": len(history.validation)}
    seconds = round(sum(h.seconds for h in histories))
    options.answer(found | {"best": history.best_epoch + 1, "seconds": seconds, "networks": members}, as_json)


def _fitted(
    parts: Sequence[Patches], settings: TrainingConfig, blocks: int, checkpoints: Sequence[Path], progress: bool
) -> tuple[list[nn.Module], list[History]]:
    """A network for each checkpoint; weights and order of each have a seed of their own."""
    from dataclasses import replace

    from mrhdata import models
    from mrhdata.training.loop import fit

    networks, histories = [], []
    for number, path in enumerate(checkpoints):
        own = replace(settings, seed=settings.seed + number)
        networks.append(models.create("mrhnet", in_channels=len(parts[0].channels), blocks=blocks, seed=own.seed))
        histories.append(fit(networks[-1], parts[0], parts[1], own, checkpoint=path, progress=progress))
    return networks, histories


@command(
    "mrhdata predict virtual-af/ map.zarr t2w=t2w.nii.gz mt=mt.nii.gz --where brain.mha",
    "mrhdata predict net/ membranes.zarr em.zarr --mode dense --activation sigmoid --decide 0.5 --memory '2 GB'",
)
def predict(
    model: Annotated[Path, typer.Argument(help="Folder of a trained network.")],
    out: Annotated[Path, typer.Argument(help="OME-Zarr or file to write.")],
    inputs: Annotated[list[str], typer.Argument(help="Volumes, as FILE or CHANNEL=FILE, in the order of training.")],
    where: options.Stored = None,
    mode: Annotated[str, typer.Option(help="patch (windows that are blended) or dense (as one pass).")] = "patch",
    window: Annotated[list[int] | None, typer.Option(help="Voxels of a window, z, y, x: given three times.")] = None,
    overlap: Annotated[float, typer.Option(help="Part of a window that the next one covers again.")] = 0.5,
    blend: Annotated[str | None, typer.Option(help="gaussian, hann, constant, or centre.")] = None,
    activation: Annotated[str | None, typer.Option(help="softmax or sigmoid.")] = None,
    decide: Annotated[str | None, typer.Option(help="argmax for labels, or a threshold for a mask.")] = None,
    align: options.Align = "same",
    memory: options.Memory = "1 GB",
    device: options.Device = None,
    skip_corrupt: options.SkipCorrupt = False,
    overwrite: options.Overwrite = False,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Map a trained network over volumes of any size.

    Killed and run again, it goes on where it was.
    """
    from mrhdata import models
    from mrhdata.inference import predictor
    from mrhdata.inference.output import Output
    from mrhdata.inference.strategies.sliding_window import SlidingWindow
    from mrhdata.io import formats

    network, given = models.load(model), {name: formats.read(file) for name, file in options.channels(inputs).items()}
    options.warn_of_unfamiliar(network, given)
    with resumable():
        mapped = predictor.predict(
            network,
            given,
            out,
            where=options.stored(where),
            mode=mode,
            windows=SlidingWindow(window or None, overlap, blend),
            align=align,
            output=Output(activation, _decision(decide)),
            memory=memory,
            device=device,
            skip_corrupt=skip_corrupt,
            overwrite=overwrite,
            progress=options.shown(progress),
        )
    found = {"written": str(out), "shape": dict(mapped.sizes), "dtype": str(mapped.dtype)}
    skipped = mapped.attrs.get("provenance", {}).get("skipped", [])
    options.answer(found | ({"skipped": skipped} if skipped else {}), as_json)


def _decision(text: str | None) -> str | float | None:
    if text is None or text == "argmax":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"--decide is argmax or a number, not {text!r}") from error
