"""Segment volumes and return labels on their own grid: prepare, train or predict, finish, score.

```
case --prepare.steps--> the network's grid and values --patches--> training
                                     |
labels on the input's grid <--finish-- most probable label <-- probabilities (prediction)
```

The folder of a trained network lists all steps, so segmentation needs only the input.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mrhdata._runtime.memory import parse_memory
from mrhdata._runtime.progress import Progress
from mrhdata.datasets.subjects import Subject
from mrhdata.errors import DataError, ModelError
from mrhdata.inference.contrast import View, best_view
from mrhdata.inference.input_check import check_geometry, require_familiar
from mrhdata.inference.labelling import most_probable
from mrhdata.inference.output import Output
from mrhdata.inference.predictor import predict
from mrhdata.inference.probabilities import StoredProbabilities, TrunkModel
from mrhdata.inference.quality import require_quality
from mrhdata.inference.strategies.network import check_network
from mrhdata.metrics import overlap
from mrhdata.models.spec import IGNORE_INDEX
from mrhdata.models.storage import load
from mrhdata.patching import sources
from mrhdata.preprocessing.pipeline import finish, prepare
from mrhdata.registration.resampling import resample
from mrhdata.volume.checks import check_volume

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from mrhdata.models.spec import ModelSpec


def on_network_grid(case: Subject, spec: ModelSpec) -> Subject:
    """Return a case as the network sees it, with labels resampled by nearest neighbour.

    Voxels beyond the label volume become `IGNORE_INDEX`, not background.
    """
    check_geometry(spec, case.inputs)
    inputs = prepare(case.inputs, spec.prepare)
    if case.target is None:
        return replace(case, inputs=inputs)
    first = next(iter(inputs.values()))
    # Wide enough for every label and for IGNORE_INDEX.
    dtype = np.int64 if case.target.dtype.itemsize > 2 else np.int32
    labels = resample(case.target.astype(dtype).assign_attrs(kind="labels"), first, fill=IGNORE_INDEX)
    return replace(case, inputs=inputs, target=labels)


def segment(
    model: nn.Module,
    inputs: Mapping[str, xr.DataArray] | xr.DataArray,
    *,
    memory: int | str = "4 GB",
    device: str | None = None,
    precision: str = "float32",
    force: bool = False,
    progress: Progress = True,
) -> xr.DataArray:
    """Label a volume with a trained network, on the volume's own grid.

    Parameters
    ----------
    model : torch.nn.Module
        Network trained on labels; ``model.spec`` lists the preparation steps.
    inputs : volume or mapping of volumes
        Volume of each training channel; the first gives the grid. A single volume needs no name.
    memory : int or str
        Memory budget of the prediction. A large receptive field needs a large budget, since boxes overlap by it.
    device, precision, force
        Options of :func:`mrhdata.predict`.
    progress : bool or callable
        Whether to show a progress bar, or a function of (bytes done, total bytes).

    Returns
    -------
    labels : (z, y, x) label volume
        Labels in memory, with the values of training. Voxels outside the extent that the network works on are
        background, the first of the labels. If the network has a quality model, ``attrs["quality"]`` has the predicted
        Dice of all labels and of each, and the contrast in which the network saw the volume; ``network`` names the
        alternative of the network that labelled it, if one did.

    Raises
    ------
    ModelError
        If the network was not trained on labels, or was trained on other channels.
    GridError
        If the file of an input states no voxel size or unit, on which the network depends.
    DataError
        If most of the volume is unlike those of the training, or the predicted Dice is low.

    Examples
    --------
    >>> from mrhdata import models
    >>> from mrhdata.models.spec import IntensityScale
    >>> from mrhdata.volume.construct import from_array
    >>> model = models.create("tissue2d", classes=2, widths=(1,)).eval()
    >>> one, two = (IntensityScale((0.0,) * n, (1.0,) * n) for n in (1, 2))
    >>> model.spec = replace(model.spec, channels=("t1w",), axis=0, inputs=one, target=two, labels=(0, 7))
    >>> volume = from_array(np.random.default_rng(0).random((3, 8, 8), np.float32), spacing=(1, 1, 1))
    >>> labels = segment(model, volume, progress=False)
    >>> labels.mrh.grid.same_as(volume.mrh.grid), set(np.unique(labels)) <= {0, 7}
    (True, True)
    """
    check_network(model)
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    if not spec.labels:
        raise ModelError(f"{spec.name} was not trained on labels. Use mrhdata.predict, or train it on a label volume")
    channels = _select_channels(inputs, spec)
    reference = next(iter(channels.values()))
    check_geometry(spec, channels)
    prepared = {name: volume.rename(name) for name, volume in _prepare(channels, spec).items()}
    options: dict[str, Any] = {"memory": parse_memory(memory), "device": device, "precision": precision}
    if getattr(model, "trunk_stride", None) is None:
        labels = _label_by_prediction(model, prepared, reference, force, progress, options)
    else:
        labels = _label_by_trunk(model, prepared, reference, force, options)
    attributes = labels.attrs
    image = reference.isel({d: 0 for d in reference.dims if d not in labels.dims})
    return finish(labels, spec.finish, image).assign_attrs(attributes).rename("labels")


def _prepare(channels: Mapping[str, xr.DataArray], spec: ModelSpec) -> dict[str, xr.DataArray]:
    """Return the inputs of a network in memory."""
    volumes = {name: volume.compute() for name, volume in prepare(channels, ()).items()}
    for step in spec.prepare:
        # Each step is computed once, although the next one may read its result several times.
        volumes = {name: volume.compute() for name, volume in prepare(volumes, [step]).items()}
    return volumes


def _label_by_prediction(
    model: nn.Module,
    prepared: Mapping[str, xr.DataArray],
    like: xr.DataArray,
    force: bool,
    progress: Progress,
    options: Mapping[str, Any],
) -> xr.DataArray:
    """Return labels from probabilities that are predicted and stored."""
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    attributes = _require_familiar(spec, prepared, options["memory"], force)
    with tempfile.TemporaryDirectory() as folder:
        probabilities = predict(
            model,
            prepared,
            Path(folder) / "probabilities.zarr",
            mode="dense",
            output=Output(activation="softmax"),
            preprocessed=True,
            progress=progress,
            **options,
        )
        return most_probable(StoredProbabilities(probabilities), like, spec.labels).assign_attrs(attributes)


def _label_by_trunk(
    model: nn.Module,
    prepared: Mapping[str, xr.DataArray],
    like: xr.DataArray,
    force: bool,
    options: Mapping[str, Any],
) -> xr.DataArray:
    """Return labels from probabilities that are computed as they are read, with their predicted Dice."""
    name, trunk, view = _best_network(model, prepared, options)
    spec = trunk.network.spec
    attributes = _require_familiar(spec, trunk.volumes(view.values), options["memory"], force)
    if view.quality is not None:
        require_quality(view.quality, spec.names, force)
    labels = most_probable(trunk.probabilities(view.values, view.features), like, spec.labels)
    labels.attrs |= attributes
    if view.quality is not None:
        choice = {"contrast": view.contrast, **({"network": name} if name else {})}
        labels.attrs["quality"] = view.quality.as_json(spec.names) | choice
    return labels


def _best_network(
    model: nn.Module, prepared: Mapping[str, xr.DataArray], options: Mapping[str, Any]
) -> tuple[str, TrunkModel, View]:
    """Return the name of the alternative that predicts the highest Dice, or "" for the network itself, and its view."""
    trunk = TrunkModel(model, prepared, **options)
    name, view = "", best_view(trunk)
    spec = trunk.network.spec
    for alternative in spec.alternatives:
        if view.is_good(len(spec.labels) - 1):
            break
        other = load(alternative)
        if (other.spec.labels, other.spec.prepare) != (spec.labels, spec.prepare):  # type: ignore[union-attr]
            raise ModelError(f"{alternative} must have the labels and preparation of {spec.name}. Save the model again")
        other_trunk = TrunkModel(other, prepared, **options)
        other_view = best_view(other_trunk)
        if other_view.total > view.total:
            name, trunk, view = alternative, other_trunk, other_view
    return name, trunk, view


def _require_familiar(
    spec: ModelSpec, volumes: Mapping[str, xr.DataArray], memory: int, force: bool
) -> dict[str, float]:
    return require_familiar(spec, sources.one_grid(volumes, (1, 1, 1), None, False), memory, force)


def _select_channels(inputs: Mapping[str, xr.DataArray] | xr.DataArray, spec: ModelSpec) -> dict[str, xr.DataArray]:
    """Return the volumes in the order of training, without channels that preparation steps add."""
    if not isinstance(inputs, Mapping):
        check_volume("inputs", inputs, "or a mapping of volumes")
        return {spec.channels[0]: inputs}
    for name, volume in inputs.items():
        check_volume(f"input {name!r}", volume)
    if len(inputs) == 1 and spec.channels[0] not in inputs:
        raise ModelError(
            f"the network was trained on {spec.channels} but is given {tuple(inputs)}. Pass a mapping with the names "
            "of training"
        )
    return {name: inputs[name] for name in spec.channels if name in inputs}


def score_labels(case: Subject, predicted: xr.DataArray, labels: Sequence[int]) -> pd.DataFrame:
    """Return the overlap of predicted labels with the case's own, one row per label without the background.

    ``accuracy`` counts all voxels, ``accuracy_inside`` those whose ground truth is not background, and
    ``accuracy_background`` is the accuracy of a prediction of only background. Voxels without ground truth,
    `IGNORE_INDEX`, do not count.
    """
    if case.target is None:
        raise DataError(f"{case.id} has no labels to score with")
    truth, answer = case.target.mrh.like(predicted).values, predicted.values
    known = truth != IGNORE_INDEX
    if not known.any():
        raise DataError(f"{case.id} has no voxel with ground truth to score with")
    # Voxels without ground truth count as background in both volumes.
    expected, got = (np.where(known, values, labels[0]) for values in (truth, answer))
    table = overlap.overlap(expected, got, labels[1:], predicted.mrh.spacing)
    table.insert(0, "subject", case.id)
    truth, answer = truth[known], answer[known]
    accuracy = overlap.accuracy(truth, answer)
    inside = overlap.accuracy(truth, answer, background=labels[0])
    background = overlap.accuracy(truth, np.full(truth.shape, labels[0]))
    return table.assign(accuracy=accuracy, accuracy_inside=inside, accuracy_background=background)
