"""Options that commands share, and how answers are printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mrhdata.errors import DataError, FormatError

Axes = Annotated[str | None, typer.Option(help="Where the file's axes point, such as PIR, if its header lies.")]
Unit = Annotated[str | None, typer.Option(help="Unit of the file's lengths: mm, um, nm.")]
Spacing = Annotated[list[float] | None, typer.Option(help="Voxel size; once for all axes, or once for each.")]
Origin = Annotated[list[float] | None, typer.Option(help="World X, Y, Z of the first voxel, given three times.")]
Space = Annotated[str | None, typer.Option(help="Name of the world space, such as CCFv3.")]
Kind = Annotated[str | None, typer.Option(help="image, labels or mask.")]
Dataset = Annotated[str | None, typer.Option(help="Which array of an HDF5 or MATLAB file, or series of DICOM.")]
SpacingMm = Annotated[list[float] | None, typer.Option(help="Voxel size in mm; once for all axes, or once for each.")]
Where = Annotated[str | None, typer.Option(help="Mask of the voxels to use.")]
Stored = Annotated[str | None, typer.Option(help="Mask of any grid, or 'stored' for what is not empty.")]
Align = Annotated[str, typer.Option(help="same grid, or first: resampled to that of the first.")]
Memory = Annotated[str, typer.Option(help="What is held at once, such as '500 MB'.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; cuda where there is one by default.")]
Seed = Annotated[int, typer.Option(min=0, help="Of all that is drawn at random.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Those of the recipe by default.")]
Inputs = Annotated[
    list[str],
    typer.Option("--input", help="Part of file names, or a pattern with *, as CHANNEL=PATTERN; once for each channel."),
]
Shares = Annotated[str, typer.Option(help="Of training, validation and test.")]
Stride = Annotated[int, typer.Option(min=1, help="Voxels from one patch to the next.")]
Blocks = Annotated[int, typer.Option(min=0, help="Loop blocks of MRH-Net.")]
SkipCorrupt = Annotated[bool, typer.Option("--skip-corrupt", help="Count what cannot be read as 0, and list it.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Progress = Annotated[bool | None, typer.Option(help="Show bars; by default where stderr is a terminal.")]


def options(**given: Any) -> Any:
    """Options of the command line as those of mrhdata.read; the ones not given are left out."""
    found = {key: value for key, value in given.items() if value is not None}
    for key in ("spacing", "origin"):
        numbers = found.get(key)
        if numbers is not None:
            found[key] = numbers[0] if key == "spacing" and len(numbers) == 1 else numbers
    return found


def named(files: list[str]) -> dict[str, str]:
    """Files by their names; those of one name are told apart by a number."""
    found: dict[str, str] = {}
    for file in files:
        stem = Path(file).name.split(".")[0] or "volume"
        name, n = stem, 1
        while name in found:
            n += 1
            name = f"{stem}-{n}"
        found[name] = file
    return found


def channels(given: list[str]) -> dict[str, str]:
    """Files by the names that they were given, or by their own."""
    found: dict[str, str] = {}
    for word in given:
        name, equals, file = word.partition("=")
        found |= {name: file} if equals else named([word])
    if len(found) < len(given):
        raise DataError(f"two inputs have one name among {given}; write them as CHANNEL=FILE")
    return found


def shares(text: str) -> list[float]:
    """Those of training, validation and test."""
    try:
        sizes = [float(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) != 3 or min(sizes) <= 0:
        raise DataError(f"--shares {text}: write three shares as 0.6,0.2,0.2")
    return sizes


def answer(found: dict[str, Any], as_json: bool) -> None:
    """Print what was found."""
    if as_json:
        typer.echo(json.dumps(found))
        return
    width = max(map(len, found))
    for key, value in found.items():
        typer.echo(f"{key:{width}}  {_shown(value)}")


def check_unfinished(out: Path, overwrite: bool) -> None:
    """Raise `FormatError` where a run may not write its network, and say so where it is there already."""
    from mrhdata._runtime.atomic import check_target

    if (out / "config.json").is_file() and not overwrite:
        raise FormatError(
            f"{out} holds the network of a training that is finished, so there is nothing to go on with; train it anew "
            "with --overwrite, or choose another name"
        )
    check_target(out, overwrite)


def shown(progress: bool | None) -> bool:
    """Whether there are bars."""
    return sys.stderr.isatty() if progress is None else progress


def warn_of_unfamiliar(model: Any, inputs: dict[str, Any]) -> None:
    """Say what of the inputs is unlike what a network was trained on."""
    from mrhdata.inference.input_check import unfamiliar

    for reason in unfamiliar(model.spec, inputs):
        warn(reason)


def warn(sentence: str) -> None:
    """Say what does not end the command, as the log does."""
    typer.echo(f"mrhdata: warning: {sentence}", err=True)


def stored(where: str | None) -> Any:
    """Where there is something to do: the word "stored", or a mask where a file was given."""
    return where if where == "stored" else optional(where, "mask")


def optional(volume: Path | str | None, kind: str) -> Any:
    """A volume of a kind where a file was given."""
    from mrhdata.io import formats

    return None if volume is None else formats.read(volume, kind=kind)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return "; ".join(value)
    return "nothing" if isinstance(value, list) and not value else str(value)
