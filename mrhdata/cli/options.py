"""Options that commands share, the words that they parse, and how answers are printed."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrhdata.errors import DataError, FormatError, ModelError, ParameterError

if TYPE_CHECKING:
    import pandas as pd

#: Parts of a split, in the order of shares without names.
PARTS = ("train", "validation", "test")
#: Where an origin lies -> where its axis points to.
_OPPOSITE = dict(zip("asrpil", "PILASR", strict=True))


def argument(metavar: str, description: str) -> Any:
    """Return a positional argument, which the help shows as `metavar`."""
    return typer.Argument(metavar=metavar, help=description)


def output(description: str) -> Any:
    """Return the option of the output, ``-o`` in every command."""
    return typer.Option("--out", "-o", metavar="PATH", help=description)


Model = Annotated[
    Path, argument("MODEL", "Folder of a trained network, or name of a shipped one (mrhdata models list).")
]
Orientation = Annotated[
    str | None,
    typer.Option(
        metavar="LETTERS",
        help="Directions in which the file's axes point, if its header is wrong: PIR is posterior, inferior, right. "
        "BrainGlobe names the origins, which are the opposite ends; write them as bg:asr, which is PIL.",
    ),
]
Unit = Annotated[str | None, typer.Option(help="Unit of the file's lengths: mm, um or nm.")]
Spacing = Annotated[
    str | None, typer.Option(metavar="NUMBERS", help="Voxel size along the file's axes: 2,1.8,1.8, or one number.")
]
Origin = Annotated[
    str | None, typer.Option(metavar="X,Y,Z", help="World position of the first voxel's centre, such as -5,0,2.5.")
]
Space = Annotated[str | None, typer.Option(help="Name of the world space, such as CCFv3.")]
Kind = Annotated[str | None, typer.Option(help="Kind of the values: image, labels or mask.")]
Dataset = Annotated[str | None, typer.Option(help="Array of an HDF5 or MATLAB file, or series of a DICOM folder.")]
Series = Annotated[str | None, typer.Option(help="Index or name of one of several images of a TIFF file.")]
Level = Annotated[
    int | None, typer.Option(help="Level of a pyramid, in OME-Zarr or TIFF: 0 is the finest, -1 the coarsest.")
]
SpacingMm = Annotated[
    str | None, typer.Option(metavar="NUMBERS", help="Voxel size in mm along z, y, x: 2,1.8,1.8, or one number.")
]
Mask = Annotated[str | None, typer.Option(help="Mask of the voxels to use.")]
MaskOrStored = Annotated[
    str | None, typer.Option(help="Mask of the voxels to use, on any grid; 'stored' leaves out empty chunks.")
]
CellCounter = Annotated[
    str | None,
    typer.Option(
        help="Program that wrote XML: fiji counts planes from 1, cellfinder from 0. Needed if a file shows neither."
    ),
]
RadiusUm = Annotated[
    float | None, typer.Option(help="Maximum distance of a detection and its mark in um; 6 voxels by default.")
]
Grids = Annotated[
    str,
    typer.Option(help="Grids of the inputs: same refuses different ones, resample carries all to that of the first."),
]
Memory = Annotated[str, typer.Option(help="Memory budget, such as '500 MB'.")]
Device = Annotated[str | None, typer.Option(help="Device: cpu, cuda, cuda:1 or mps; by default a GPU if there is one.")]
Precision = Annotated[
    str, typer.Option(help="Precision of the network: float32, bfloat16, or auto, the faster one on this machine.")
]
Seed = Annotated[int, typer.Option(min=0, help="Random seed.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Number of epochs; that of the recipe by default.")]
_INPUT = typer.Option(
    "--input",
    metavar="CHANNEL=PATTERN",
    help="Channel and its files: part of their names, or a pattern with *; once per channel.",
)
Inputs = Annotated[list[str], _INPUT]
OptionalInputs = Annotated[list[str] | None, _INPUT]
Cases = Annotated[
    list[str],
    argument(
        "INPUTS",
        "Volumes as FILE or CHANNEL=FILE, in the order of training; a folder of cases, whose channels end in _0000, "
        "_0001; or, of a network with one channel, several files or a BIDS data set.",
    ),
]
Split = Annotated[
    str, typer.Option(metavar="SHARES", help="Shares of train, validation and test: 0.6,0.2,0.2, or with names.")
]
Stride = Annotated[int, typer.Option(min=1, help="Voxels from one patch to the next.")]
LoopBlocks = Annotated[int, typer.Option(min=0, help="Loop blocks of MRH-Net.")]
SkipCorrupt = Annotated[bool, typer.Option("--skip-corrupt", help="Count unreadable chunks as 0, and list them.")]
Force = Annotated[
    bool, typer.Option("--force", help="Accept volumes that are unlike those of the training, with a warning.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Progress = Annotated[bool | None, typer.Option(help="Show progress bars; by default if stderr is a terminal.")]


def set_options(**values: Any) -> dict[str, Any]:
    """Return the options that were passed."""
    return {key: value for key, value in values.items() if value is not None}


def read_options(
    *, orientation: str | None = None, spacing: str | None = None, origin: str | None = None, **values: Any
) -> Any:
    """Return options of the command line as those of :func:`mrhdata.read`."""
    return set_options(
        axes=None if orientation is None else directions(orientation),
        spacing=None if spacing is None else spacing_of("--spacing", spacing),
        origin=None if origin is None else numbers("--origin", origin),
        **values,
    )


def numbers(option: str, text: str) -> list[float]:
    """Parse three numbers with commas.

    Examples
    --------
    >>> numbers("--at", "-1,0,2.5")
    [-1.0, 0.0, 2.5]
    """
    values = _floats(text)
    if len(values) != 3:
        raise ParameterError(f"{option} must be three numbers with commas, such as 2,1.8,1.8; got {text!r}")
    return values


def range_of(option: str, text: str) -> tuple[float, float]:
    """Parse a lowest and a highest number with a comma.

    Examples
    --------
    >>> range_of("--X", "-10,2.5")
    (-10.0, 2.5)
    """
    values = _floats(text)
    if len(values) != 2 or values[0] > values[1]:
        raise ParameterError(
            f"{option} must be two numbers with a comma, the lower one first, such as -10,10; got {text!r}"
        )
    return values[0], values[1]


def match_radius_mm(radius_um: float | None, voxel_mm: float) -> float:
    """Return the maximum distance of a detection and its mark in mm: 6 voxels by default.

    Examples
    --------
    >>> match_radius_mm(None, 0.5), match_radius_mm(10, 0.5)
    (3.0, 0.01)
    """
    return 6 * voxel_mm if radius_um is None else radius_um * 1e-3


def whole_numbers(option: str, text: str) -> list[int]:
    """Parse three whole numbers with commas."""
    values = numbers(option, text)
    if any(value != int(value) for value in values):
        raise ParameterError(f"{option} must be three whole numbers with commas; got {text!r}")
    return [int(value) for value in values]


def spacing_of(option: str, text: str) -> float | list[float]:
    """Parse one voxel size for all axes, or three with commas.

    Examples
    --------
    >>> spacing_of("--spacing", "2"), spacing_of("--spacing", "2,1.8,1.8")
    (2.0, [2.0, 1.8, 1.8])
    """
    values = _floats(text)
    if len(values) not in (1, 3):
        raise ParameterError(f"{option} must be one number, or three with commas such as 2,1.8,1.8; got {text!r}")
    return values[0] if len(values) == 1 else values


def _floats(text: str) -> list[float]:
    """Return finite numbers; an empty list if a part is not one."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        return []
    return values if all(map(math.isfinite, values)) else []


def directions(text: str) -> str:
    """Return the directions of axes; letters after ``bg:`` are BrainGlobe's, which name where the origin lies.

    Examples
    --------
    >>> directions("PIR"), directions("bg:asr")
    ('PIR', 'PIL')
    """
    prefix, _, letters = text.rpartition(":")
    axes = "".join(_OPPOSITE.get(letter, letter) for letter in letters.lower()) if prefix == "bg" else letters.upper()
    if (
        prefix not in ("", "bg")
        or len(axes) != 3
        or any(len(set(axes) & set(pair)) != 1 for pair in ("RL", "AP", "SI"))
    ):
        raise ParameterError(
            f"--orientation must be three letters, one each of R or L, A or P, S or I, such as PIR or bg:asr; "
            f"got {text!r}"
        )
    return axes


def split_shares(text: str) -> dict[str, float]:
    """Parse the shares of a split: three numbers for train, validation and test, or shares with names.

    Examples
    --------
    >>> split_shares("0.6,0.2,0.2"), split_shares("train=0.8,test=0.2")
    ({'train': 0.6, 'validation': 0.2, 'test': 0.2}, {'train': 0.8, 'test': 0.2})
    """
    names, _, values = zip(*(part.strip().rpartition("=") for part in text.split(",")), strict=True)
    shares, parts = _floats(",".join(values)), names if any(names) else PARTS
    if not all(parts) or not len(set(parts)) == len(names) == len(shares) or min(shares) <= 0:
        raise ParameterError(
            "--split must be shares of train, validation and test such as 0.6,0.2,0.2, or shares with names such as "
            f"train=0.8,test=0.2; got {text!r}"
        )
    return dict(zip(parts, shares, strict=True))


def three_shares(text: str) -> list[float]:
    """Parse the shares of train, validation and test."""
    shares = split_shares(text)
    if set(shares) != set(PARTS):
        raise ParameterError(f"--split must have shares of train, validation and test; got {text!r}")
    return [shares[part] for part in PARTS]


def files_by_name(files: Sequence[str]) -> dict[str, str]:
    """Return files by their names without endings; files of one name get numbers."""
    by_name: dict[str, str] = {}
    for file in files:
        stem = Path(file).name.split(".")[0] or "volume"
        name, n = stem, 1
        while name in by_name:
            n += 1
            name = f"{stem}-{n}"
        by_name[name] = file
    return by_name


def channels(words: Sequence[str]) -> dict[str, str]:
    """Return files by channel: FILE, whose name is that of the channel, or CHANNEL=FILE."""
    by_channel: dict[str, str] = {}
    for word in words:
        name, equals, file = word.partition("=")
        by_channel |= {name: file} if equals else files_by_name([word])
    if len(by_channel) < len(words):
        raise DataError(f"two inputs have one name among {list(words)}; write them as CHANNEL=FILE")
    return by_channel


def case_files(inputs: Sequence[str], spec: Any) -> dict[str, list[Path]]:
    """Return the files of each case of a folder, or of several files for one channel; an empty dict for one volume."""
    from mrhdata.datasets import bids
    from mrhdata.datasets.nnunet import cases_in

    folder, single = Path(inputs[0]), len(_input_names(spec)) == 1
    if len(inputs) == 1:
        if not folder.is_dir():
            return {}
        images = bids.find_images(folder) if single else {}
        return {name: [path] for name, path in images.items()} or cases_in(folder)
    if not single or any("=" in text for text in inputs):
        return {}
    files = {bids.stem(Path(text)): [Path(text)] for text in inputs}
    if len(files) < len(inputs):
        raise ParameterError(f"files must differ in their names; got {', '.join(inputs)}. Segment them one by one")
    return files


def _input_names(spec: Any) -> Sequence[str]:
    """Return the names of the inputs; a network of several slices has a channel for each slice of an input."""
    return spec.channels[spec.context_slices :: 2 * spec.context_slices + 1]


def case_channels(spec: Any, case: str, files: Sequence[Path]) -> dict[str, str]:
    """Return the files of a case by the channels of a network, in the order of their suffix."""
    names = _input_names(spec)
    if len(files) > len(names):
        raise ModelError(f"case {case} has {len(files)} files; the network takes the channels {names}")
    return dict(zip(names, map(str, files), strict=False))


def precision_on(precision: str, device: str | None) -> str:
    """Return the type in which networks compute, float32 or bfloat16."""
    from mrhdata.models.device import resolve_device
    from mrhdata.models.precision import resolve_precision

    return resolve_precision(precision, resolve_device(device).type)


def network_digest(model: Path) -> str:
    """Return the SHA-256 of the weights of a network."""
    from mrhdata.models import cards

    return cards.digest_of(cards.folder_of(str(model)))


def unfamiliar(attributes: Mapping[Any, Any]) -> dict[str, float]:
    """Return the share of a volume that is unlike those of the training, for the answer of a command."""
    from mrhdata.inference.input_check import UNFAMILIAR

    return {UNFAMILIAR: attributes[UNFAMILIAR]} if UNFAMILIAR in attributes else {}


def answer(values: dict[str, Any], as_json: bool) -> None:
    """Print the answer of a command."""
    if as_json:
        typer.echo(json.dumps(values))
        return
    width = max(map(len, values))
    for key, value in values.items():
        typer.echo(f"{key:{width}}  {_format_value(value)}")


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a file that appears when it is complete."""
    from mrhdata._runtime.atomic import atomic_write

    with atomic_write(path, overwrite=True) as draft:
        draft.write_text(json.dumps(content) + "\n", encoding="utf-8")


def table(rows: pd.DataFrame) -> None:
    """Print a table, with its index as the first column."""
    typer.echo(rows.reset_index().to_string(index=False))


def check_training_target(out: Path, overwrite: bool) -> None:
    """Raise `FormatError` if a training may not write its network; say so if it is finished already."""
    from mrhdata._runtime.atomic import check_target

    if (out / "config.json").is_file() and not overwrite:
        raise FormatError(
            f"{out} holds a network that is already trained; pass --overwrite to train it again, or another --out"
        )
    check_target(out, overwrite)


def bars(progress: bool | None) -> bool:
    """Return whether progress bars are shown."""
    return sys.stderr.isatty() if progress is None else progress


def warn_of_unfamiliar(model: Any, inputs: dict[str, Any]) -> None:
    """Warn if inputs differ from the training data of a network."""
    from mrhdata.inference.input_check import check_inputs

    for reason in check_inputs(model.spec, inputs):
        warn(reason)


def warn(sentence: str) -> None:
    """Print a warning as the log does."""
    typer.echo(f"mrhdata: warning: {sentence}", err=True)


def mask_or_stored(mask: str | None) -> Any:
    """Return the word "stored", or the mask of a file."""
    return mask if mask == "stored" else read_optional(mask, "mask")


def mask_identity(mask: Any) -> Any:
    """Return the fingerprint of a mask; the word "stored" and None stand for themselves."""
    from mrhdata.io.fingerprint import fingerprint

    return mask if mask is None or isinstance(mask, str) else fingerprint(mask)


def read_optional(path: Path | str | None, kind: str) -> Any:
    """Read a volume of a kind; None without a path."""
    from mrhdata.io import formats

    return None if path is None else formats.read(path, kind=kind)


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_format_value(v)}" for k, v in value.items())
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return "; ".join(value)
    return "nothing" if isinstance(value, list) and not value else str(value)
