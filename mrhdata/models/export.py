"""Export of trained networks as ONNX files and BioImage.IO packages (specification 0.5).

An exported network takes raw voxels and returns values in the units of training. It includes the intensity scales,
not the preprocessing steps. It accepts any size if the network has a receptive field, otherwise only the patch size
of training.
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

from mrhdata._runtime.atomic import atomic_write
from mrhdata.errors import ModelError
from mrhdata.models.receptive_field import receptive_field_of
from mrhdata.models.spec import ModelSpec, scaled, to_target_units

if TYPE_CHECKING:
    from mrhdata.models.cards import Card

#: Version of the ONNX operators that PyTorch writes.
OPSET = 20
_AXES = "zyx"
_INPUT, _OUTPUT = "raw", "answer"
#: Shapes of the test input and of the test output, (batch, channels, ...).
_Shapes = tuple[tuple[int, ...], tuple[int, ...]]
_MISSING_PACKAGES = "it needs the packages onnx, onnxscript and bioimageio.spec: pip install 'mrhdata[exchange]'"


class _WithScales(nn.Module):
    """A network with its intensity scales; raw voxels (B, C, ...) to values in the units of training."""

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.model, self._spec = model, spec

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        assert self._spec.inputs is not None
        assert self._spec.target is not None
        return to_target_units(self.model(scaled(raw, self._spec.inputs)), self._spec.target)


#: Documentation of a network without a test score.
_NOT_VALIDATED = "# Validation\nNone is recorded with this network."


@dataclass(frozen=True)
class _Sizes:
    """Input lengths that a network accepts along each axis.

    Attributes
    ----------
    least, align : tuple of int
        Smallest length, and step to the next one; a step of 0 fixes the length.
    stride : tuple of float
        Input voxels per output voxel; empty if the lengths are fixed.
    """

    least: tuple[int, ...]
    align: tuple[int, ...]
    stride: tuple[float, ...] = ()

    def larger(self, steps: int) -> tuple[int, ...]:
        """Return the smallest lengths plus a number of steps."""
        return tuple(n + steps * a for n, a in zip(self.least, self.align, strict=True))


@dataclass(frozen=True)
class _Network:
    """A trained network, its specification, the names of its spatial axes, and its input lengths."""

    model: nn.Module
    spec: ModelSpec
    axes: list[str]
    sizes: _Sizes


def _input_sizes(model: nn.Module, spec: ModelSpec, axes: Sequence[str]) -> _Sizes:
    channels = len(spec.channels) or 1
    try:
        field = receptive_field_of(model, channels)
    except ModelError:
        if spec.patch is None:
            raise
        lengths = tuple(spec.patch[_AXES.index(a)] for a in axes)
        return _Sizes(lengths, (0,) * len(lengths))
    # The exporter treats an axis of length 1 as fixed, so the smallest length is 2.
    rows = zip(field.least, field.lengths, field.align, strict=True)
    least = tuple(-(-max(n, m, 2) // a) * a for n, m, a in rows)
    return _Sizes(least, field.align, tuple(float(j) for j in field.stride))


def _check_trained(model: nn.Module) -> _Network:
    spec: ModelSpec | None = getattr(model, "spec", None)
    if spec is None or spec.inputs is None or spec.target is None:
        raise ModelError("only a trained network can be exported; train it with mrhdata.fit, or load a trained one")
    axes = [a for i, a in enumerate(_AXES) if model.ndim == 3 or i != (spec.axis or 0)]
    return _Network(model.eval(), spec, axes, _input_sizes(model, spec, axes))


def export_onnx(model: nn.Module, file: str | os.PathLike[str]) -> None:
    """Write a trained network as ONNX.

    Parameters
    ----------
    model : torch.nn.Module
        Trained network.
    file : path
        Path ending with ``.onnx``; an existing file is replaced.

    Raises
    ------
    ModelError
        If the network is not trained, if PyTorch cannot export it, or if a package is missing.

    Notes
    -----
    The input ``raw`` is float32 (batch, channels, z, y, x), for a 2D network without the axis perpendicular to its
    planes. The output is ``answer``. The metadata key ``mrhdata`` contains the specification of the network.
    """
    _write_onnx(_check_trained(model), file)


def _write_onnx(network: _Network, file: str | os.PathLike[str]) -> None:
    spec, sizes = network.spec, network.sizes
    dynamic: dict[int, Any] = {0: torch.export.Dim("batch")}
    for axis, step in enumerate(sizes.align):
        if step:
            length = torch.export.Dim(f"length_{axis}")
            dynamic[2 + axis] = step * length if step > 1 else length
    example = _example(spec, (2, *sizes.larger(2)))
    with _silence():
        try:
            program = torch.onnx.export(
                _WithScales(network.model, spec), (example,), dynamic_shapes=(dynamic,), dynamo=True,
                opset_version=OPSET, verbose=False, input_names=[_INPUT], output_names=[_OUTPUT],
            )  # fmt: skip
        except ImportError as error:
            raise ModelError(f"export to ONNX: {_MISSING_PACKAGES} ({error})") from error
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"PyTorch cannot export {spec.name} ({reason})") from error
        assert program is not None
        program.model.metadata_props["mrhdata"] = json.dumps(asdict(spec))
        with atomic_write(file) as draft:
            program.save(draft)


def _example(spec: ModelSpec, lengths: tuple[int, ...]) -> torch.Tensor:
    """Return random voxels (batch, channels, ...) on the intensity scale of the training inputs."""
    assert spec.inputs is not None
    offset, factor = (np.array(v, np.float32) for v in (spec.inputs.offset, spec.inputs.factor))
    noise = np.random.default_rng(0).standard_normal((lengths[0], *lengths[1:], len(offset)), dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(offset + factor * noise, -1, 1)))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress warnings and log messages of the exporter about its internal steps."""
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
    """Write a trained network as a BioImage.IO package: ONNX weights, axes, a test input and its output.

    Parameters
    ----------
    model : torch.nn.Module
        Trained network.
    file : path
        Path ending with ``.zip``; an existing file is replaced.
    title, author : str
        Title of the package and name of its author.
    card : Card, optional
        Card whose data, scores and limits go into the documentation.
    licence : str
        SPDX identifier of the licence.

    Raises
    ------
    ModelError
        As for :func:`export_onnx`, or if the description is not valid.
    """
    network = _check_trained(model)
    try:
        with _silence():
            from bioimageio.spec import save_bioimageio_package
    except ImportError as error:
        raise ModelError(f"export to BioImage.IO: {_MISSING_PACKAGES} ({error})") from error
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        _write_onnx(network, work / "weights.onnx")
        shapes = _write_test_tensors(network, work)
        (work / "README.md").write_text(_documentation(network.spec, title, card), encoding="utf-8")
        with _silence(), atomic_write(file) as draft:
            description = _description(network, work, shapes, title, author, licence)
            # The library recognises a package by its suffix, which the draft need not have.
            save_bioimageio_package(description, output_path=work / "package.zip")
            shutil.copyfile(work / "package.zip", draft)


def _write_test_tensors(network: _Network, work: Path) -> _Shapes:
    """Write a test input and its output, and return their shapes."""
    raw = _example(network.spec, (1, *network.sizes.larger(4)))
    with torch.inference_mode():
        answer = _WithScales(network.model, network.spec)(raw)
    np.save(work / "input.npy", raw.numpy())
    np.save(work / "output.npy", answer.numpy())
    return tuple(raw.shape), tuple(answer.shape)


def _documentation(spec: ModelSpec, title: str, card: Card | None) -> str:
    inputs = ", ".join(spec.channels) or "one channel"
    paragraphs = [f"# {title}", f"Network `{spec.name}` of mrhdata. Inputs: {inputs}, raw voxels."]
    if spec.spacing_mm is not None:
        paragraphs.append(f"Voxels of training: {' x '.join(f'{s:.4g}' for s in spec.spacing_mm)} mm (z, y, x).")
    if spec.prepare:
        paragraphs.append(f"Volumes were prepared first: {', '.join(name for name, _ in spec.prepare)}.")
    if card is not None:
        source = f" {card.source}." if card.source else ""
        paragraphs += [
            f"Trained on {card.data}.{source}",
            _validation(card),
            "# Limits\n" + "\n".join(f"- {limit}" for limit in card.limits),
        ]
    else:
        paragraphs.append(_NOT_VALIDATED)
    return "\n\n".join(paragraphs) + "\n"


def _validation(card: Card) -> str:
    score, baseline = card.score, card.baseline
    if not score:
        return _NOT_VALIDATED
    best = f"; the best baseline, {baseline['method']}, {baseline['value']:.3f}" if baseline else ""
    return (
        f"# Validation\n{score['name']} {score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}] on test "
        f"subjects {card.split['test']}{best}."
    )


def _description(network: _Network, work: Path, shapes: _Shapes, title: str, author: str, licence: str) -> Any:
    """Return the validated description of a package."""
    from bioimageio.spec.model import v0_5 as bio
    from pydantic import ValidationError

    spec, sizes, axes = network.spec, network.sizes, network.axes
    in_shape, out_shape = shapes
    # In whole nanometres: the validator derives lengths from ratios of spacings, which must be exact.
    spacing = [1.0] * len(axes)
    unit: Any = None
    if spec.spacing_mm is not None:
        spacing = [round(1e6 * spec.spacing_mm[_AXES.index(axis)]) for axis in axes]
        unit = "nanometer"
    lengths = [bio.ParameterizedSize(min=n, step=s) if s else n for n, s in zip(sizes.least, sizes.align, strict=True)]
    rows = zip(axes, lengths, spacing, strict=True)
    in_axes = [bio.SpaceInputAxis(id=bio.AxisId(a), size=n, scale=nm, unit=unit) for a, n, nm in rows]
    out_axes = _output_axes(bio, axes, spacing, sizes, (in_shape[2:], out_shape[2:]), unit)
    in_names = list(spec.channels) if len(spec.channels) == in_shape[1] else _numbered("channel", in_shape[1])
    labels = [f"label{value}" for value in spec.labels]
    out_names = labels if len(labels) == out_shape[1] else _numbered("answer", out_shape[1])
    try:
        return bio.ModelDescr(
            name=title,
            description=f"{title}: {spec.name} of mrhdata",
            authors=[bio.Author(name=author)],
            license=bio.LicenseId(licence),
            documentation=bio.FileDescr(source=work / "README.md"),
            tags=["neuroscience", "brain", f"{len(axes)}d", "mrhdata"],
            inputs=[bio.InputTensorDescr(**_tensor(bio, _INPUT, in_names, in_axes, work / "input.npy"))],
            outputs=[bio.OutputTensorDescr(**_tensor(bio, _OUTPUT, out_names, out_axes, work / "output.npy"))],
            weights=bio.WeightsDescr(
                onnx=bio.OnnxWeightsDescr(source=work / "weights.onnx", opset_version=OPSET)
            ),
        )  # fmt: skip
    except ValidationError as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"BioImage.IO does not accept the description of {title!r} ({reason})") from error


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}{i}" for i in range(count)]


def _output_axes(
    bio: Any, axes: list[str], spacing: Sequence[float], sizes: _Sizes, shapes: Any, unit: Any
) -> list[Any]:
    """Return the output axes; their lengths refer to the input unless the network accepts one size only."""
    output_axes, (in_lengths, out_lengths) = [], shapes
    for i, name in enumerate(axes):
        jump = sizes.stride[i] if sizes.stride else in_lengths[i] / out_lengths[i]
        size = out_lengths[i]
        if sizes.stride:
            # Valid convolutions make the output shorter than the input.
            offset = round(out_lengths[i] - in_lengths[i] / jump)
            size = bio.SizeReference(tensor_id=bio.TensorId(_INPUT), axis_id=bio.AxisId(name), offset=offset)
        output_axes.append(bio.SpaceOutputAxis(id=bio.AxisId(name), size=size, scale=spacing[i] * jump, unit=unit))
    return output_axes


def _tensor(bio: Any, name: str, channels: list[str], space_axes: list[Any], file: Path) -> dict[str, Any]:
    """Return the fields that describe an input or an output tensor; channel names become valid identifiers."""
    names = [bio.Identifier("".join(c if c.isalnum() else "_" for c in channel)) for channel in channels]
    return {
        "id": bio.TensorId(name),
        "axes": [bio.BatchAxis(), bio.ChannelAxis(channel_names=names), *space_axes],
        "test_tensor": bio.FileDescr(source=file),
        "data": bio.IntervalOrRatioDataDescr(type="float32"),
    }
