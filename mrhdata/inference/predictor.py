"""A network over a volume of any size, written to OME-Zarr block by block.

The blocks are whole shards of the result. Each is made from boxes of the input that threads decode
ahead, by one of the methods of :mod:`mrhdata.inference.strategies`, while the one before is written; a run that was
killed goes on behind the last finished block (:mod:`mrhdata.io.omezarr.resumable`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import torch
from numpy.typing import NDArray

from mrhdata._runtime.atomic import check_target, remove
from mrhdata._runtime.memory import parse_memory
from mrhdata._runtime.progress import Progress, ProgressLabel
from mrhdata._runtime.threads import run_ahead
from mrhdata.errors import DataError, ModelError, ParameterError
from mrhdata.inference.box_reader import BoxReader
from mrhdata.inference.output import Output
from mrhdata.inference.region import RegionOfInterest
from mrhdata.inference.strategies.base import BoxTask, Strategy
from mrhdata.inference.strategies.dense import DenseStrategy
from mrhdata.inference.strategies.network import InferenceModel
from mrhdata.inference.strategies.patch_centre import PatchCentreStrategy
from mrhdata.inference.strategies.sliding_window import SlidingWindow, SlidingWindowStrategy
from mrhdata.io import fingerprint, formats, omezarr
from mrhdata.io.omezarr import resumable
from mrhdata.io.omezarr.write_blocks import DoubleBuffer
from mrhdata.models.receptive_field import receptive_field_of
from mrhdata.models.spec import ModelSpec
from mrhdata.patching import sources
from mrhdata.volume.box import Box
from mrhdata.volume.construct import SPATIAL, place

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

    from mrhdata.patching.tiles import TensorSource

MODES = ("sliding_window", "patch_centre", "dense")
Floats = NDArray[np.float32]

log = logging.getLogger("mrhdata")


#: Raised when the same network gives other voxels.
_VERSION = 1


#: Shares of the budget: decoded chunks, the network's tensors, one block of answers, and what the halves of blocks are
#: a share of. There are two blocks, encoded shards of up to two more, the block of a coarser level, and memory that was
#: freed and is not given back yet.
_TILES, _TENSORS, _BLOCK, _WRITING = 1 / 6, 1 / 3, 1 / 12, 3 / 8


#: Bytes of answers that stay in the cache until they are written.
_CACHED = 500_000


#: Steps that are planned together.
_PLANNED = 512


def predict(  # noqa: PLR0913 (settings of one act)
    model: nn.Module,
    inputs: Mapping[str, xr.DataArray] | xr.DataArray,
    out: str | os.PathLike[str] | None = None,
    *,
    mask: xr.DataArray | str | None = None,
    mode: str | None = None,
    windows: SlidingWindow = SlidingWindow(),  # noqa: B008
    grids: str = "same",
    output: Output = Output(),
    memory: int | str = "1 GB",
    device: str | None = None,
    precision: str = "float32",
    skip_corrupt: bool = False,
    name: str = "prediction",
    preprocessed: bool = False,
    overwrite: bool = False,
    progress: Progress = True,
) -> xr.DataArray:
    """Map a trained network over volumes of any size.

    Parameters
    ----------
    model : torch.nn.Module
        Trained by :func:`mrhdata.fit`, loaded, or any network that takes (B, C, z, y, x).
    inputs : volume or mapping of volumes
        The channels that the network was trained on, in the same order.
    out : path, optional
        OME-Zarr folder to write, or a file of any writable format. An interrupted run resumes when it is called
        again with the same network, inputs and parameters. Without a path the result is returned in memory, if it
        fits `memory`.
    mask : mask volume or "stored", optional
        Only voxels where the mask, of any grid, is not zero are computed; the others are 0. ``"stored"``
        leaves out blocks of which the first input holds no chunk.
    mode : {"sliding_window", "patch_centre", "dense"}, optional
        ``"sliding_window"`` runs the network on overlapping windows of the size that it was trained on and blends
        them. ``"patch_centre"`` makes each voxel the centre of a patch of its own, as published for MRH-Net, whose
        default it is. ``"dense"`` runs large boxes with the exact margin of the receptive field: the result is that
        of one pass over the whole volume. The default is the mode that the network was published with.
    windows : SlidingWindow
        Shape, overlap and blending of windows; a `blend` selects ``"sliding_window"``.
    grids : {"same", "resample"}
        Whether inputs lie on one grid, or are resampled to that of the first as they are read.
    output : Output
        Softmax, decision, type.
    memory : int or str
        Bytes for voxels, tensors and answers together, such as ``"500 MB"``.
    device : str, optional
        ``"cuda"`` where there is one, else ``"cpu"``.
    precision : {"float32", "bfloat16"}
    skip_corrupt : bool
        Chunks that cannot be read count as 0, and answers that are not finite become 0; both are listed
        in ``attrs["provenance"]["skipped"]``.
    name : str
        Of the result.
    preprocessed : bool
        The inputs have gone through the network's own steps (``spec.prepare``), as :func:`mrhdata.segment` does it.
    overwrite, progress : bool

    Returns
    -------
    volume : xarray.DataArray
        On the grid of the first input, or a finer or coarser one where the network makes one; read back
        from `out`.

    Raises
    ------
    ModelError
        Channels differ from those of training, the network was not trained or wants prepared volumes, or it cannot be
        run so.
    DataError
        Answers are not finite, or the mask is empty.
    FormatError
        An input cannot be read (the chunk is named), or the store not written; run it again to go on.
    GridError
        Grids differ.

    Notes
    -----
    In patch mode voxels beyond the border of the volume are the nearest ones within. Where a
    ``dask.distributed`` client is active, its workers make the blocks, each with `memory` for itself.
    Volumes that are computed by Dask are computed as they are read; only files and arrays in memory are
    recognised by a run that goes on.

    Examples
    --------
    >>> import tempfile, mrhdata
    >>> mean = torch.nn.Conv3d(1, 1, 3, padding=1, bias=False).requires_grad_(False)
    >>> _ = mean.weight.fill_(1 / 27)
    >>> v = mrhdata.volume.from_array(np.ones((8, 8, 8), np.float32), spacing=(1, 1, 1))
    >>> mapped = predict(mean, v, tempfile.mkdtemp() + "/mean.zarr", mode="dense", progress=False)
    >>> round(float(mapped[4, 4, 4]), 4), round(float(mapped[0, 0, 0]), 4)
    (1.0, 0.2963)
    """
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"model is a network, not {model!r}; load a folder or a name with mrhdata.models.load")
    if grids not in ("same", "resample"):
        raise ParameterError(f"grids must be 'same' or 'resample'; got {grids!r}")
    budget = parse_memory(memory)
    if out is None:
        return _in_memory(
            model, inputs, budget, mask=mask, mode=mode, windows=windows, grids=grids, output=output, memory=memory,
            device=device, precision=precision, skip_corrupt=skip_corrupt, name=name, preprocessed=preprocessed,
            progress=progress,
        )  # fmt: skip
    target = Path(out)
    inputs = {key: omezarr.forward(volume) for key, volume in sources.volumes_by_name(inputs).items()}
    network = InferenceModel(model, device or ("cuda" if torch.cuda.is_available() else "cpu"), precision)
    first = next(iter(inputs.values()))
    stream = sources.one_grid(inputs, (1, 1, 1), None, grids == "resample")
    if output.argmax and not output.labels:
        output = replace(output, labels=network.spec.labels)
    _check(network, stream, preprocessed)
    inside = RegionOfInterest(mask, first, stream)
    mode = mode or _published_mode(network, windows)
    method, windowing = _method(network, stream, inside, mode, windows, budget)
    volume = _template(stream, first, method, output, name)
    grown = target if target.name.lower().endswith(".zarr") else target.with_name(f".{target.name}.zarr")
    if grown != target:
        check_target(target, overwrite)
        formats.writer_of(target)
    about = {
        "model": network.spec.name,
        "layers": repr(model),
        "weights": _weights(model),
        "spec": _plain(network.spec),
        "mode": mode,
        "windows": None if windowing is None else asdict(windowing),
        "output": asdict(output),
        "precision": precision,
    }
    content = [_VERSION, about, _told(inputs), None if mask is None else _told(mask), name, grids]
    identity = {"digest": fingerprint.digest(content)}
    notes = resumable.provenance_notes(grown)
    result = resumable.write_resumable(
        grown,
        volume,
        lambda: _Map(method, BoxReader(stream, int(_TILES * budget), notes if skip_corrupt else None), output, inside),
        identity,
        lambda: _provenance(about, inputs, notes),
        memory=int(_WRITING * budget),
        limit=_limit(budget, volume, method),
        # Blocks are of few shards.
        encoders=os.cpu_count() or 1,
        overwrite=overwrite,
        progress=progress,
        label=ProgressLabel(text="predicting", unit_bytes=volume.dtype.itemsize, unit="voxel"),
    )
    skipped = result.attrs["provenance"].get("skipped", [])
    if skipped:
        log.warning("%d parts were skipped and are 0, the first: %s", len(skipped), skipped[0])
    if grown == target:
        return result
    formats.write(result, target, overwrite=overwrite)
    remove(grown)
    return formats.read(target)


def _in_memory(model: nn.Module, inputs: Any, budget: int, **settings: Any) -> xr.DataArray:
    """Predict into a temporary store and return its voxels."""
    first = next(iter(sources.volumes_by_name(inputs).values()))
    nbytes = int(np.prod([first.sizes.get(d, 1) for d in SPATIAL])) * np.dtype(np.float32).itemsize
    if nbytes > budget:
        raise ParameterError(
            f"memory must hold the prediction, about {nbytes / 1e6:.0f} MB, if out is None; got {settings['memory']!r}. "
            "Pass out= to write it to a store, or a larger memory="
        )
    with tempfile.TemporaryDirectory() as folder:
        return predict(model, inputs, Path(folder, "prediction.zarr"), **settings).load()


def _check(network: InferenceModel, stream: TensorSource, prepared: bool) -> None:
    """The inputs are those of training."""
    spec = network.spec
    if spec.prepare and not prepared:
        steps = ", ".join(name for name, _ in spec.prepare)
        raise ModelError(
            f"{spec.name} sees volumes that went through {steps}; use mrhdata.segment (mrhdata segment), which does "
            "that, or prepare them with mrhdata.preprocessing.pipeline.prepare and pass preprocessed=True"
        )
    if hasattr(network.model, "spec") and (spec.inputs is None or spec.target is None):
        raise ModelError(
            f"{spec.name} was not trained or has no intensity scales; use mrhdata.fit, load a trained one, or give "
            "maximum= to mrhdata.models.load_matlab"
        )
    offsets = [f"{k:+d}" if k else "" for k in range(-spec.context_slices, spec.context_slices + 1)]
    channels = tuple(channel + offset for channel in stream.channels for offset in offsets)
    if spec.channels and channels != spec.channels:
        raise ModelError(
            f"the network was trained on {spec.channels} but is given {channels}; give those, in that order"
        )


def _published_mode(network: InferenceModel, windows: SlidingWindow) -> str:
    """Return the mode that a network was published with; blended windows if a blend is asked for."""
    if windows.blend is not None:
        return "sliding_window"
    return str(getattr(network.model, "inference_mode", "sliding_window"))


def _method(
    network: InferenceModel,
    stream: TensorSource,
    inside: RegionOfInterest,
    mode: str,
    windows: SlidingWindow,
    budget: int,
) -> tuple[Strategy, SlidingWindow | None]:
    """How the network is run, and on which windows."""
    shape, given, memory = stream.grid.shape, len(stream.channels), int(_TENSORS * budget)
    if mode == "dense":
        field = receptive_field_of(network.model, given * (2 * network.spec.context_slices + 1))
        return DenseStrategy(network, field, shape, given, inside, memory), None
    if mode not in MODES:
        raise ParameterError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    own = windows.of(network)
    assert own.shape is not None
    margins = [2 * network.spec.context_slices if axis == network.axis else 0 for axis in range(3)]
    answer = network.answer((1, given, *(n + m for n, m in zip(own.shape, margins, strict=True))))
    if answer[2:] != own.shape:
        raise ModelError(
            f"{network.spec.name} answers windows of {own.shape} by {answer[2:]}; only mode='dense' can place those"
        )
    if mode == "patch_centre":
        return PatchCentreStrategy(network, shape, given, answer[1], inside, own, memory), own
    return SlidingWindowStrategy(network, shape, answer[1], inside, own), own


def _template(stream: TensorSource, first: xr.DataArray, method: Strategy, output: Output, name: str) -> xr.DataArray:
    """The result without its voxels: where it lies and what it is."""
    spacing, channels = stream.grid.spacing, output.channels(method.channels)
    starts = np.array([float(np.atleast_1d(first.coords[d])[0]) for d in SPATIAL])
    made = place(
        da.zeros((*((channels,) if channels > 1 else ()), *method.shape), dtype=output.written, chunks=-1),
        [*(["c"] if channels > 1 else []), *SPATIAL],
        spacing * method.stride,
        first.attrs["affine"],
        start=starts + spacing * method.offset,
        space=first.mrh.space,
        kind=output.kind,
        name=name,
        modality="virtual histology",
    )
    return made.assign_attrs({key: first.attrs[key] for key in ("source_axes",) if key in first.attrs})


def _limit(budget: int, volume: xr.DataArray, method: Strategy) -> int:
    """Bytes of a block of the result; windows are added up as float32."""
    held = volume.dtype.itemsize * volume.sizes.get("c", 1)
    return int(_BLOCK * budget * (held / (4 * method.channels) if isinstance(method, SlidingWindowStrategy) else 1))


class _Map:
    """Blocks of the result, in the order in which they are asked for.

    Parameters
    ----------
    method : Method
    sweep : Sweep
    output : Output
    inside : Inside
    """

    def __init__(self, method: Strategy, sweep: BoxReader, output: Output, inside: RegionOfInterest) -> None:
        self._method, self._sweep, self._output, self._inside = method, sweep, output, inside
        self.dtype = output.written

    def blocks(self, boxes: Sequence[Box]) -> Iterator[np.ndarray | None]:
        """Each made in a thread while the one before is written; given up within a step when nobody takes it."""
        left = Event()
        spatial = [Box(box.start[-3:], box.stop[-3:]) for box in boxes]
        return run_ahead(self._made(spatial, left), 1, left.set)

    def _made(self, boxes: Sequence[Box], left: Event) -> Iterator[np.ndarray | None]:
        buffers = DoubleBuffer(self.dtype)
        for group in self._groups(boxes):
            values = self._sweep.read([step.boxes for _, _, steps in group for step in steps or []])
            for box, above, steps in group:
                if steps is None:
                    yield None
                    continue
                out = buffers.take((self._output.channels(self._method.channels), *box.shape))
                out.fill(0)
                held = self._method.begin(box, above, out)
                for step in steps:
                    if left.is_set():
                        return
                    self._method.add(held, step, next(values), self._written)
                self._method.end(held, self._written)
                yield out if len(out) > 1 else out[0]
            # Threads that read ahead end with the group.
            next(values, None)

    def _groups(self, boxes: Sequence[Box]) -> Iterator[list[tuple[Box, Box | None, list[BoxTask] | None]]]:
        """Boxes, each with the one that was made just before and its steps (None where nothing is wanted).

        A group is as many as are planned together.
        """
        group: list[tuple[Box, Box | None, list[BoxTask] | None]] = []
        before: Box | None = None
        planned = 0
        for box in boxes:
            wanted = self._inside.any(self._method.needs(box))
            steps = list(self._method.steps(box, before)) if wanted else None
            group.append((box, before, steps))
            before = box if wanted else None
            planned += len(steps or [])
            if planned >= _PLANNED:
                yield group
                group, planned = [], 0
        if group:
            yield group

    def _written(self, box: Box, answers: Floats, out: np.ndarray) -> None:
        """Put what is stored of a box into `out`: 0 where nothing is wanted."""
        outside = self._inside.outside(box, self._method.stride, self._method.offset)
        # So few planes at a time stay in the cache.
        deep = max(1, _CACHED // answers[:, 0].nbytes)
        for low in range(0, box.shape[0], deep):
            planes = slice(low, low + deep)
            part = np.ascontiguousarray(answers[:, planes])
            hidden = None if outside is None else outside[planes]
            # A sum is finite where all its terms are, and quicker to look at.
            if not np.isfinite(part.sum()):
                hidden = self._not_finite(part, hidden, (box.start[0] + low, *box.start[1:]))
            found = self._output.of(part)
            if hidden is not None:
                found[:, hidden] = 0
            out[:, planes] = found

    def _not_finite(self, answers: Floats, hidden: NDArray[np.bool_] | None, base: tuple[int, ...]) -> Any:
        """Where answers are not wanted, or are not finite and may be left out."""
        hidden = np.zeros(answers.shape[1:], dtype=bool) if hidden is None else hidden
        bad = ~np.isfinite(answers).all(axis=0) & ~hidden
        if bad.any():
            first = tuple((np.argwhere(bad)[0] + base).tolist())
            high = tuple(b + n for b, n in zip(base, bad.shape, strict=True))
            reason = f"{bad.sum()} answers from {base} to {high} are not finite, the first at {first}"
            if not self._sweep.skip(reason):
                raise DataError(f"{reason}; fill or mask the input there, or skip them with skip_corrupt=True")
        return bad | hidden


def _provenance(about: Mapping[str, Any], inputs: Any, notes: Path) -> dict[str, Any]:
    skipped = sorted(set(notes.read_text(encoding="utf-8").splitlines())) if notes.exists() else []
    given = {key: volume.attrs.get("provenance", {}) for key, volume in sources.volumes_by_name(inputs).items()}
    found = {**about, "inputs": given, "mrhdata": version("mrhdata"), "torch": torch.__version__}
    return found | ({"skipped": skipped} if skipped else {})


def _weights(model: nn.Module) -> str:
    """SHA-256 of the names and values of all weights."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _plain(spec: ModelSpec) -> Any:
    return json.loads(json.dumps(asdict(spec)))


def _told(volumes: Any) -> Any:
    """What tells inputs, or a mask, from others."""
    if isinstance(volumes, str):
        return volumes
    return [[name, fingerprint.fingerprint(volume)] for name, volume in sources.volumes_by_name(volumes).items()]
