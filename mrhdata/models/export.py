"""Trained networks for other programs: ONNX, and the packages of BioImage.IO (specification 0.5).

What is exported takes raw voxels and answers in the units of training: intensity scales are part of it, steps that
prepare volumes are not. Its sizes are free where the network has a receptive field, else those of training.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mrhdata._runtime.atomic import appearing
from mrhdata.errors import ModelError
from mrhdata.models.receptive_field import field_of
from mrhdata.models.spec import Spec, rescaled, scaled

if TYPE_CHECKING:
    from mrhdata.models.cards import Card

#: Of ONNX, as PyTorch writes it.
OPSET = 20
_AXES = "zyx"
_INPUT, _OUTPUT = "raw", "answer"
#: Of the test input and of its answer: (batch, channels, ...).
_Shapes = tuple[tuple[int, ...], tuple[int, ...]]
_NEEDED = "it needs the packages onnx, onnxscript and bioimageio.spec: pip install 'mrhdata[exchange]'"


class _Raw(nn.Module):
    """Raw voxels (B, C, ...) to answers in the units of training."""

    def __init__(self, model: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.model, self._spec = model, spec

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        assert self._spec.inputs is not None
        assert self._spec.target is not None
        return rescaled(self.model(scaled(raw, self._spec.inputs)), self._spec.target)


@dataclass(frozen=True)
class _Sizes:
    """Lengths that a network takes: at least `least`, in steps of `align` (0 where no other is taken).

    An answer stands for `jump` voxels, or a part of one; it is not known where no other length is taken.
    """

    least: tuple[int, ...]
    align: tuple[int, ...]
    jump: tuple[float, ...] = ()

    def larger(self, steps: int) -> tuple[int, ...]:
        """The least lengths and so many steps."""
        return tuple(n + steps * a for n, a in zip(self.least, self.align, strict=True))


@dataclass(frozen=True)
class _Network:
    """A trained network, and what is to be known of its tensors: names of their axes, and lengths."""

    model: nn.Module
    spec: Spec
    axes: list[str]
    sizes: _Sizes


def _sizes(model: nn.Module, spec: Spec, axes: Sequence[str]) -> _Sizes:
    channels = len(spec.channels) or 1
    try:
        field = field_of(model, channels)
    except ModelError:
        if spec.patch is None:
            raise
        lengths = tuple(spec.patch[_AXES.index(a)] for a in axes)
        return _Sizes(lengths, (0,) * len(lengths))
    # No axis may be 1 long: the exporter would take it for one that never changes.
    rows = zip(field.least, field.lengths, field.align, strict=True)
    least = tuple(-(-max(n, m, 2) // a) * a for n, m, a in rows)
    return _Sizes(least, field.align, tuple(float(j) for j in field.jump))


def _checked(model: nn.Module) -> _Network:
    spec: Spec | None = getattr(model, "spec", None)
    if spec is None or spec.inputs is None or spec.target is None:
        raise ModelError("only a trained network is exported: train it with mrhdata.fit, or load a trained one")
    axes = [a for i, a in enumerate(_AXES) if model.ndim == 3 or i != (spec.axis or 0)]
    return _Network(model.eval(), spec, axes, _sizes(model, spec, axes))


def export_onnx(model: nn.Module, file: str | os.PathLike[str]) -> None:
    """Write a trained network as ONNX.

    Parameters
    ----------
    model : torch.nn.Module
        Trained or loaded.
    file : path
        Ends with ``.onnx``; an older one is replaced.

    Raises
    ------
    ModelError
        The network was not trained, or PyTorch cannot export it, or a package is missing.

    Notes
    -----
    Input ``raw``, float32 (batch, channels, z, y, x), without the axis of planes for a 2D network; output
    ``answer``. The metadata key ``mrhdata`` holds the network's specification.
    """
    _write_onnx(_checked(model), file)


def _write_onnx(network: _Network, file: str | os.PathLike[str]) -> None:
    spec, sizes = network.spec, network.sizes
    dynamic: dict[int, Any] = {0: torch.export.Dim("batch")}
    for axis, step in enumerate(sizes.align):
        if step:
            length = torch.export.Dim(f"length_{axis}")
            dynamic[2 + axis] = step * length if step > 1 else length
    example = _example(spec, (2, *sizes.larger(2)))
    with _quiet():
        try:
            made = torch.onnx.export(
                _Raw(network.model, spec), (example,), dynamic_shapes=(dynamic,), dynamo=True, opset_version=OPSET,
                verbose=False, input_names=[_INPUT], output_names=[_OUTPUT],
            )  # fmt: skip
        except ImportError as error:
            raise ModelError(f"export to ONNX: {_NEEDED} ({error})") from error
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{spec.name} cannot be exported by PyTorch ({reason})") from error
        assert made is not None
        made.model.metadata_props["mrhdata"] = json.dumps(asdict(spec))
        with appearing(file) as draft:
            made.save(draft)


def _example(spec: Spec, lengths: tuple[int, ...]) -> torch.Tensor:
    """Random voxels as those of training: (batch, channels, ...)."""
    assert spec.inputs is not None
    offset, factor = (np.array(v, np.float32) for v in (spec.inputs.offset, spec.inputs.factor))
    drawn = np.random.default_rng(0).standard_normal((lengths[0], *lengths[1:], len(offset)), dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(offset + factor * drawn, -1, 1)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the exporter says of its own steps is nothing to a user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def export_bioimage(
    model: nn.Module,
    file: str | os.PathLike[str],
    *,
    title: str,
    author: str,
    card: Card | None = None,
    licence: str = "MIT",
) -> None:
    """Write a trained network as a package of BioImage.IO: ONNX weights, axes, a test input with its answer.

    Parameters
    ----------
    model : torch.nn.Module
        Trained or loaded.
    file : path
        Ends with ``.zip``; an older one is replaced.
    title, author : str
    card : Card, optional
        Its data, scores and limits go into the documentation.
    licence : str
        As SPDX names it.

    Raises
    ------
    ModelError
        As for :func:`export_onnx`, or the description is not valid.
    """
    network = _checked(model)
    try:
        with _quiet():
            from bioimageio.spec import save_bioimageio_package
    except ImportError as error:
        raise ModelError(f"export to BioImage.IO: {_NEEDED} ({error})") from error
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        _write_onnx(network, work / "weights.onnx")
        shapes = _tested(network, work)
        (work / "README.md").write_text(_documentation(network.spec, title, card), encoding="utf-8")
        with _quiet(), appearing(file) as draft:
            description = _described(network, work, shapes, title, author, licence)
            # The suffix is what it is told by.
            save_bioimageio_package(description, output_path=work / "package.zip")
            shutil.copyfile(work / "package.zip", draft)


def _tested(network: _Network, work: Path) -> _Shapes:
    """Write a test input and its answer, and tell their shapes."""
    given = _example(network.spec, (1, *network.sizes.larger(4)))
    with torch.inference_mode():
        answer = _Raw(network.model, network.spec)(given)
    np.save(work / "input.npy", given.numpy())
    np.save(work / "output.npy", answer.numpy())
    return tuple(given.shape), tuple(answer.shape)


def _documentation(spec: Spec, title: str, card: Card | None) -> str:
    inputs = ", ".join(spec.channels) or "one channel"
    parts = [f"# {title}", f"Network `{spec.name}` of mrhdata. Inputs: {inputs}, raw voxels."]
    if spec.spacing_mm is not None:
        parts.append(f"Voxels of training: {' x '.join(f'{s:.4g}' for s in spec.spacing_mm)} mm (z, y, x).")
    if spec.prepare:
        parts.append(f"Volumes were prepared first: {', '.join(name for name, _ in spec.prepare)}.")
    if card is not None:
        score = card.score
        parts += [
            f"Trained on {card.data}.",
            f"# Validation\n{score['name']} {score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}] on test "
            f"subjects {card.split['test']}; the best baseline, {card.baseline['method']}, "
            f"{card.baseline['value']:.3f}.",
            "# Limits\n" + "\n".join(f"- {limit}" for limit in card.limits),
        ]
    else:
        parts.append("# Validation\nNone is recorded with this network.")
    return "\n\n".join(parts) + "\n"


def _described(network: _Network, work: Path, shapes: _Shapes, title: str, author: str, licence: str) -> Any:
    """The description of a package, checked as it is made."""
    from bioimageio.spec.model import v0_5 as bio
    from pydantic import ValidationError

    spec, sizes, ids, (given, answered) = network.spec, network.sizes, network.axes, shapes
    # In whole nanometres: lengths are worked out by dividing spacings, and have to be whole.
    steps = [1.0] * len(ids) if spec.spacing_mm is None else [round(1e6 * spec.spacing_mm[_AXES.index(a)]) for a in ids]
    unit: Any = None if spec.spacing_mm is None else "nanometer"
    lengths = [bio.ParameterizedSize(min=n, step=s) if s else n for n, s in zip(sizes.least, sizes.align, strict=True)]
    rows = zip(ids, lengths, steps, strict=True)
    taken = [bio.SpaceInputAxis(id=bio.AxisId(a), size=n, scale=mm, unit=unit) for a, n, mm in rows]
    made = _answered_axes(bio, ids, steps, sizes, (given[2:], answered[2:]), unit)
    channels = [f"channel{i}" for i in range(given[1])] if len(spec.channels) != given[1] else list(spec.channels)
    classes = [f"label{value}" for value in spec.labels]
    answers = classes if len(classes) == answered[1] else [f"answer{i}" for i in range(answered[1])]
    try:
        return bio.ModelDescr(
            name=title,
            description=f"{title}: {spec.name} of mrhdata",
            authors=[bio.Author(name=author)],
            license=bio.LicenseId(licence),
            documentation=bio.FileDescr(source=work / "README.md"),
            tags=["neuroscience", "brain", f"{len(ids)}d", "mrhdata"],
            inputs=[bio.InputTensorDescr(**_tensor(bio, _INPUT, channels, taken, work / "input.npy"))],
            outputs=[bio.OutputTensorDescr(**_tensor(bio, _OUTPUT, answers, made, work / "output.npy"))],
            weights=bio.WeightsDescr(
                onnx=bio.OnnxWeightsDescr(source=work / "weights.onnx", opset_version=OPSET)
            ),
        )  # fmt: skip
    except ValidationError as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{title!r} is no valid description for BioImage.IO ({reason})") from error


def _answered_axes(
    bio: Any, ids: list[str], steps: Sequence[float], sizes: _Sizes, shapes: Any, unit: Any
) -> list[Any]:
    """As long as the input's but for what the network takes from their ends, where their length is free."""
    made, (given, answered) = [], shapes
    for i, name in enumerate(ids):
        jump = sizes.jump[i] if sizes.jump else given[i] / answered[i]
        size = answered[i]
        if sizes.jump:
            offset = round(answered[i] - given[i] / jump)
            size = bio.SizeReference(tensor_id=bio.TensorId(_INPUT), axis_id=bio.AxisId(name), offset=offset)
        made.append(bio.SpaceOutputAxis(id=bio.AxisId(name), size=size, scale=steps[i] * jump, unit=unit))
    return made


def _tensor(bio: Any, name: str, channels: list[str], space: list[Any], file: Path) -> dict[str, Any]:
    """What describes the input, and in the same words the answer; channels are named by identifiers."""
    names = [bio.Identifier("".join(c if c.isalnum() else "_" for c in channel)) for channel in channels]
    return {
        "id": bio.TensorId(name),
        "axes": [bio.BatchAxis(), bio.ChannelAxis(channel_names=names), *space],
        "test_tensor": bio.FileDescr(source=file),
        "data": bio.IntervalOrRatioDataDescr(type="float32"),
    }
