"""Run a network over a volume of any size and write OME-Zarr block by block.

A block is a whole number of shards. A strategy of :mod:`mrhdata.inference.strategies` computes each block from boxes of
the input, which threads decode ahead, while the previous block is written. An interrupted run resumes after the last
finished block (:mod:`mrhdata.io.omezarr.resumable`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import torch
from numpy.typing import NDArray

from mrhdata._runtime.atomic import check_target, remove
from mrhdata._runtime.memory import parse_memory, remaining_memory
from mrhdata._runtime.progress import Progress, ProgressLabel
from mrhdata.errors import ModelError, ParameterError
from mrhdata.inference.block_predictor import BlockPredictor
from mrhdata.inference.input_check import check_geometry, require_familiar
from mrhdata.inference.output import Output
from mrhdata.inference.region import RegionOfInterest
from mrhdata.inference.strategies.base import Strategy
from mrhdata.inference.strategies.dense import DenseStrategy
from mrhdata.inference.strategies.network import InferenceModel, check_network
from mrhdata.inference.strategies.patch_centre import PatchCentreStrategy
from mrhdata.inference.strategies.sliding_window import SlidingWindow, SlidingWindowStrategy
from mrhdata.io import fingerprint, formats, omezarr
from mrhdata.io.omezarr import resumable
from mrhdata.models.receptive_field import receptive_field_of
from mrhdata.models.spec import ModelSpec
from mrhdata.patching import sources
from mrhdata.patching.box_reader import BoxReader
from mrhdata.volume.assumptions import geometry_attrs
from mrhdata.volume.construct import SPATIAL, place

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

    from mrhdata.patching.tiles import TensorSource

MODES = ("sliding_window", "patch_centre", "dense")
Floats = NDArray[np.float32]

log = logging.getLogger("mrhdata")

#: Version of the algorithms, part of the fingerprint: raised when the same network gives other voxels.
_VERSION = 1
#: Shares of the memory budget: decoded chunks, the network's tensors, one block of predictions, and the writer. Two
#: blocks exist at a time, besides encoded shards of up to two more, a block of a coarser level, and freed memory that
#: the allocator still holds.
_TILES, _TENSORS, _BLOCK, _WRITING = 1 / 6, 1 / 3, 1 / 12, 3 / 8


def predict(  # noqa: PLR0913 (options of one call)
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
    force: bool = False,
    overwrite: bool = False,
    progress: Progress = True,
) -> xr.DataArray:
    """Run a trained network over volumes of any size.

    Parameters
    ----------
    model : torch.nn.Module
        Network trained by :func:`mrhdata.fit` or loaded, or any network that takes (B, C, z, y, x).
    inputs : volume or mapping of volumes
        Channels that the network was trained on, in the same order.
    out : path, optional
        OME-Zarr folder to write, or a file of any writable format. An interrupted run resumes when it is called
        again with the same network, inputs and parameters. Without a path the result is returned in memory, if it
        fits `memory`.
    mask : mask volume or "stored", optional
        Voxels to compute: those where the mask, on any grid, is not zero; the others are 0. ``"stored"``
        skips blocks for which the first input has no stored chunk.
    mode : {"sliding_window", "patch_centre", "dense"}, optional
        ``"sliding_window"`` runs the network on overlapping windows of its training size and blends them.
        ``"patch_centre"`` predicts each voxel as the centre of its own patch, as published for MRH-Net.
        ``"dense"`` runs large boxes with the exact margin of the receptive field; the result equals one pass over
        the whole volume. The default is the mode that the network was published with, or ``"sliding_window"``.
    windows : SlidingWindow
        Shape, overlap and blending of windows; a `blend` selects ``"sliding_window"``.
    grids : {"same", "resample"}
        Whether all inputs must lie on one grid, or are resampled to the grid of the first as they are read.
    output : Output
        Activation, threshold or argmax, and type of the stored values.
    memory : int or str
        Budget for voxels, tensors and predictions together, such as ``"500 MB"``.
    device : str, optional
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``; by default a GPU if there is one.
    precision : {"auto", "float32", "bfloat16"}
        Type in which the network computes. ``"auto"`` is the faster one on the device; a run that was interrupted on a
        machine with the other type does not resume.
    skip_corrupt : bool
        Whether unreadable chunks count as 0 and predictions that are not finite become 0; both are listed
        in ``attrs["provenance"]["skipped"]``.
    name : str
        Name of the result.
    preprocessed : bool
        Whether the inputs have gone through the network's own steps (``spec.prepare``), as in
        :func:`mrhdata.segment`.
    force : bool
        Whether to predict for volumes that are unlike those of the training, with a warning in place of an error.
    overwrite : bool
        Whether to replace an existing output.
    progress : bool or callable
        Whether to show a progress bar, or a function of (bytes done, total bytes).

    Returns
    -------
    volume : xarray.DataArray
        Result on the grid of the first input, or on a finer or coarser one if the network changes the resolution;
        lazily read from `out`, or in memory without `out`. ``attrs["unfamiliar"]`` is the share of sampled boxes that
        are unlike those of the training, if the network has a profile of them.

    Raises
    ------
    ParameterError
        If a parameter has a value that it cannot have, or what must be read at once of an input or the result without
        `out` exceeds `memory`.
    ModelError
        If channels differ from those of training, the network was not trained or needs preprocessed volumes, or it
        cannot run in this mode.
    DataError
        If predictions are not finite, or the mask is empty.
    FormatError
        If an input cannot be read (the message names the chunk), or the output cannot be written. Run it again to
        resume.
    GridError
        If grids differ, or the file of an input states no voxel size or unit, on which the network depends.

    Notes
    -----
    In mode ``"patch_centre"`` voxels beyond the volume repeat its border. If a ``dask.distributed`` client is active,
    its workers compute the blocks, each with the whole `memory`. Dask volumes are computed as they are read; a resumed
    run recognises only files and arrays in memory.

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
    check_network(model)
    if grids not in ("same", "resample"):
        raise ParameterError(f"grids must be 'same' or 'resample'; got {grids!r}")
    budget = parse_memory(memory)
    inputs = {key: omezarr.forward(volume) for key, volume in sources.volumes_by_name(inputs).items()}
    network = InferenceModel(model, device, precision)
    reference = next(iter(inputs.values()))
    source = sources.one_grid(inputs, (1, 1, 1), None, grids == "resample")
    budget = remaining_memory(source.smallest_bytes, budget, ", ".join(inputs))
    if grids == "resample":
        sources.warn_of_assumed_grids(inputs, "predict(grids='resample')")
    if output.argmax and not output.labels:
        output = replace(output, labels=network.spec.labels)
    _check_inputs_fit(network, source, preprocessed)
    attributes: dict[str, float] = {}
    if not preprocessed:
        check_geometry(network.spec, inputs)
        attributes = require_familiar(network.spec, source, int(_TILES * budget), force)
    region = RegionOfInterest(mask, reference, source)
    mode = mode or _published_mode(network, windows)
    strategy, used_windows = _choose_strategy(network, source, region, mode, windows, budget)
    template = _template(source, reference, strategy, output, name)
    if output.keeps_units and network.spec.units is not None:
        template = template.assign_attrs(units=network.spec.units)
    settings = {
        "model": network.spec.name,
        "layers": repr(model),
        "weights": _hash_weights(model),
        "spec": _as_json(network.spec),
        "mode": mode,
        "windows": None if used_windows is None else asdict(used_windows),
        "output": asdict(output),
        "precision": network.precision,
    }

    def identity() -> dict[str, Any]:
        content = [_VERSION, settings, _fingerprint(inputs), None if mask is None else _fingerprint(mask), name, grids]
        return {"digest": fingerprint.digest(content)}

    write = partial(
        _write_prediction,
        template=template,
        strategy=strategy,
        source=source,
        region=region,
        output=output,
        identity=identity,
        provenance=partial(_provenance, settings, inputs),
        budget=budget,
        skip_corrupt=skip_corrupt,
        progress=progress,
    )
    if out is not None:
        return write(Path(out), overwrite=overwrite).assign_attrs(attributes)
    if template.nbytes > budget:
        raise ParameterError(
            f"memory must be at least {template.nbytes / 1e6:.0f} MB to return the prediction without out; got "
            f"{memory!r}. Pass a larger memory=, or out= to write a store"
        )
    with tempfile.TemporaryDirectory() as folder:
        return write(Path(folder, "prediction.zarr"), overwrite=False).load().assign_attrs(attributes)


def _write_prediction(  # noqa: PLR0913 (everything that a run needs)
    target: Path,
    *,
    template: xr.DataArray,
    strategy: Strategy,
    source: TensorSource,
    region: RegionOfInterest,
    output: Output,
    identity: Callable[[], Mapping[str, Any]],
    provenance: Callable[[Path], dict[str, Any]],
    budget: int,
    skip_corrupt: bool,
    progress: Progress,
    overwrite: bool,
) -> xr.DataArray:
    """Compute the blocks of a prediction and write them to an OME-Zarr, or through one to a file of another format."""
    store = target if target.name.lower().endswith(".zarr") else target.with_name(f".{target.name}.zarr")
    if store != target:
        check_target(target, overwrite)
        formats.writer_of(target)
    notes, reader_memory = resumable.provenance_notes(store), int(_TILES * budget)
    skipped_file = notes if skip_corrupt else None
    result = resumable.write_resumable(
        store,
        template,
        lambda: BlockPredictor(strategy, BoxReader(source, reader_memory, skipped_file), output, region),
        identity,
        lambda: provenance(notes),
        memory=int(_WRITING * budget),
        limit=_block_bytes(budget, template, strategy),
        # A block has few shards, so threads encode it in parallel.
        encoders=os.cpu_count() or 1,
        overwrite=overwrite,
        progress=progress,
        label=ProgressLabel("predicting", template.dtype.itemsize, "voxel"),
    )
    skipped = result.attrs["provenance"].get("skipped", [])
    if skipped:
        log.warning("%d parts were skipped and are 0; the first is %s", len(skipped), skipped[0])
    if store == target:
        return result
    formats.write(result, target, overwrite=overwrite)
    remove(store)
    return formats.read(target)


def _check_inputs_fit(network: InferenceModel, source: TensorSource, preprocessed: bool) -> None:
    """Raise ModelError unless the network is trained and the inputs are those of training."""
    spec = network.spec
    if spec.prepare and not preprocessed:
        steps = ", ".join(name for name, _ in spec.prepare)
        raise ModelError(
            f"{spec.name} needs volumes that went through {steps}. Use mrhdata.segment (mrhdata segment), which does "
            "that, or prepare them with mrhdata.preprocessing.pipeline.prepare and pass preprocessed=True"
        )
    if hasattr(network.model, "spec") and (spec.inputs is None or spec.target is None):
        raise ModelError(
            f"{spec.name} was not trained or has no intensity scales. Use mrhdata.fit, load a trained network, or, "
            "for a published MRH-Net, pass maximum= (--maximum), the highest value of the scan, to mrhdata.models.load"
        )
    offsets = [f"{k:+d}" if k else "" for k in range(-spec.context_slices, spec.context_slices + 1)]
    channels = tuple(channel + offset for channel in source.channels for offset in offsets)
    if spec.channels and channels != spec.channels:
        raise ModelError(
            f"the network was trained on {spec.channels} but is given {channels}. Pass those channels, in that order"
        )


def _published_mode(network: InferenceModel, windows: SlidingWindow) -> str:
    """Return the mode that a network was published with, or sliding windows if a blend is requested."""
    if windows.blend is not None:
        return "sliding_window"
    return str(getattr(network.model, "inference_mode", "sliding_window"))


def _choose_strategy(
    network: InferenceModel,
    source: TensorSource,
    region: RegionOfInterest,
    mode: str,
    windows: SlidingWindow,
    budget: int,
) -> tuple[Strategy, SlidingWindow | None]:
    """Return the strategy of a mode, and the windows that it uses, if any."""
    shape, in_channels, memory = source.grid.shape, len(source.channels), int(_TENSORS * budget)
    if mode == "dense":
        receptive_field = receptive_field_of(network.model, in_channels * (2 * network.spec.context_slices + 1))
        return DenseStrategy(network, receptive_field, shape, in_channels, region, memory), None
    if mode not in MODES:
        raise ParameterError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    windows = windows.of(network)
    assert windows.shape is not None
    margins = [2 * network.spec.context_slices if axis == network.axis else 0 for axis in range(3)]
    padded = (n + m for n, m in zip(windows.shape, margins, strict=True))
    output = network.output_shape((1, in_channels, *padded))
    if output[2:] != windows.shape:
        raise ModelError(
            f"{network.spec.name} maps windows of {windows.shape} to {output[2:]} voxels; the shapes must be equal. "
            "Pass mode='dense'"
        )
    if mode == "patch_centre":
        return PatchCentreStrategy(network, shape, in_channels, output[1], region, windows, memory), windows
    return SlidingWindowStrategy(network, shape, output[1], region, windows), windows


def _template(
    source: TensorSource, reference: xr.DataArray, strategy: Strategy, output: Output, name: str
) -> xr.DataArray:
    """Return the result with its grid and attributes but without its voxels."""
    spacing, channels = source.grid.spacing, output.channels(strategy.channels)
    starts = np.array([float(np.atleast_1d(reference.coords[d])[0]) for d in SPATIAL])
    template = place(
        da.zeros((*((channels,) if channels > 1 else ()), *strategy.shape), dtype=output.written, chunks=-1),
        [*(["c"] if channels > 1 else []), *SPATIAL],
        spacing * strategy.stride,
        reference.attrs["affine"],
        start=starts + spacing * strategy.offset,
        space=reference.mrh.space,
        kind=output.kind,
        name=name,
        modality="virtual histology",
    )
    return template.assign_attrs(geometry_attrs(reference))


def _block_bytes(budget: int, template: xr.DataArray, strategy: Strategy) -> int:
    """Return the bytes of a block of the result; blended windows are summed as float32."""
    voxel_bytes = template.dtype.itemsize * template.sizes.get("c", 1)
    blended = isinstance(strategy, SlidingWindowStrategy)
    return int(_BLOCK * budget * (voxel_bytes / (4 * strategy.channels) if blended else 1))


def _provenance(settings: Mapping[str, Any], inputs: Any, notes: Path) -> dict[str, Any]:
    skipped = sorted(set(notes.read_text(encoding="utf-8").splitlines())) if notes.exists() else []
    origins = {key: volume.attrs.get("provenance", {}) for key, volume in sources.volumes_by_name(inputs).items()}
    provenance = {**settings, "inputs": origins, "mrhdata": version("mrhdata"), "torch": torch.__version__}
    return provenance | ({"skipped": skipped} if skipped else {})


def _hash_weights(model: nn.Module) -> str:
    """Return the SHA-256 of the names and values of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _as_json(spec: ModelSpec) -> Any:
    return json.loads(json.dumps(asdict(spec)))


def _fingerprint(volumes: Any) -> Any:
    """Return a fingerprint of inputs, or of a mask."""
    if isinstance(volumes, str):
        return volumes
    return [[name, fingerprint.fingerprint(volume)] for name, volume in sources.volumes_by_name(volumes).items()]
