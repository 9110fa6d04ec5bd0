"""Commands that train networks and map them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mrhdata.cli import words
from mrhdata.cli.app import app
from mrhdata.errors import DataError


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="Folder of the network, its history and the parts of the volume.")],
    target: Annotated[str, typer.Argument(help="Histology that is to be predicted.")],
    inputs: Annotated[list[str], typer.Argument(help="Volumes on its grid, as FILE or CHANNEL=FILE.")],
    where: Annotated[str | None, typer.Option(help="Mask of the voxels to learn from.")] = None,
    along: Annotated[str, typer.Option(help="Axis that is cut into training, validation and test.")] = "y",
    shares: Annotated[str, typer.Option(help="Of training, validation and test.")] = "0.6,0.2,0.2",
    stride: Annotated[int, typer.Option(help="Voxels from one patch to the next.")] = 1,
    blocks: Annotated[int, typer.Option(help="Loop blocks of MRH-Net.")] = 4,
    epochs: Annotated[int | None, typer.Option(help="Those of the recipe by default.")] = None,
    members: Annotated[int, typer.Option(help="Networks; several say together how sure they are.")] = 1,
    seed: Annotated[int, typer.Option(help="Of weights and order; that of the first of several networks.")] = 0,
    overwrite: words.Overwrite = False,
    as_json: words.Json = False,
) -> None:
    """Train MRH-Net on one brain: parts of it, with gaps between, for training, validation and test.

    The parts are written as labels 1, 2 and 3 beside the network, for mrhdata sensitivity and report. Maps of several
    networks have three channels: mean, uncertainty, and how strange the inputs are.

    Example: mrhdata train virtual-af/ af.zarr t2w=t2w.zarr mt=mt.zarr --where brain.mha
    """
    import json
    from dataclasses import asdict, replace

    from mrhdata import formats, models, robustness, splitting, training
    from mrhdata.drafting import appearing, check_target
    from mrhdata.methods import mrhnet
    from mrhdata.patching import patches

    check_target(out, overwrite)
    if members < 1:
        raise DataError(f"--members {members}: train one network or more")
    given = {name: formats.read(file) for name, file in words.channels(inputs).items()}
    truth, mask = formats.read(target), words.optional(where, "mask")
    planned = patches(given, truth, shape=mrhnet.PATCH, stride=stride, plane="coronal", where=mask)
    parts = planned.split(words.shares(shares), by=along)
    networks, histories = [], []
    for number in range(seed, seed + members):
        settings = replace(mrhnet.CORRECTED, seed=number, **words.options(epochs=epochs))
        networks.append(models.create("mrhnet", in_channels=len(planned.channels), blocks=blocks, seed=number))
        histories.append(training.fit(networks[-1], parts[0], parts[1], settings, progress=sys.stderr.isatty()))
    model = networks[0] if members == 1 else robustness.calibrated(networks, parts[0], parts[1])
    with appearing(out, overwrite=overwrite) as draft:
        models.save(model, draft)
        (draft / "history.json").write_text(json.dumps(asdict(histories[0])) + "\n", encoding="utf-8")
        formats.write(splitting.labelled(parts, along, truth), draft / "parts.zarr")
    history = histories[0]
    found = {"written": str(out), "patches": [len(part) for part in parts], "epochs": len(history.validation)}
    seconds = round(sum(h.seconds for h in histories))
    words.answer(found | {"best": history.best_epoch + 1, "seconds": seconds, "networks": members}, as_json)


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
    as_json: words.Json = False,
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
        {name: formats.read(file) for name, file in words.channels(inputs).items()},
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
    words.answer(found | ({"skipped": skipped} if skipped else {}), as_json)


def _decision(text: str | None) -> str | float | None:
    if text is None or text == "argmax":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"--decide is argmax or a number, not {text!r}") from error
