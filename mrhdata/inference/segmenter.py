"""Volumes to labels, and back to where they came from: prepare, train or predict, finish, score.

```
case --prepare.steps--> the network's grid and values --patches--> training
                                     |
labels on the input's grid <--finish-- argmax <--resample-- probabilities (prediction)
```

Probabilities, not labels, are carried back, so a boundary between voxels of another size lies where they are
equal. A trained network's folder names all steps, so it needs no more than the input.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mrhdata._runtime.progress import Progress
from mrhdata.datasets.subjects import Subject
from mrhdata.errors import DataError, ModelError
from mrhdata.inference.output import Output
from mrhdata.inference.predictor import predict
from mrhdata.metrics import overlap
from mrhdata.models.spec import IGNORE_INDEX
from mrhdata.preprocessing.pipeline import finish, prepare
from mrhdata.registration.resampling import resample
from mrhdata.volume.construct import SPATIAL

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from mrhdata.models.spec import ModelSpec


def on_network_grid(case: Subject, spec: ModelSpec) -> Subject:
    """The case as the network sees it; labels are carried along by their nearest voxels.

    Voxels that the labels do not reach are `IGNORE_INDEX` in training, not background.
    """
    inputs = prepare(case.inputs, spec.prepare)
    if case.target is None:
        return replace(case, inputs=inputs)
    first = next(iter(inputs.values()))
    # Wide enough for every label and for what is ignored.
    wide = np.int64 if case.target.dtype.itemsize > 2 else np.int32
    carried = resample(case.target.astype(wide).assign_attrs(kind="labels"), first, fill=IGNORE_INDEX)
    return replace(case, inputs=inputs, target=carried)


def segment(
    model: nn.Module,
    inputs: Mapping[str, xr.DataArray] | xr.DataArray,
    *,
    memory: int | str = "4 GB",
    device: str | None = None,
    precision: str = "float32",
    progress: Progress = False,
) -> xr.DataArray:
    """Label a volume with a trained network, on the volume's own grid.

    Parameters
    ----------
    model : torch.nn.Module
        Trained to tell labels apart; ``model.spec`` says how volumes are prepared.
    inputs : volume or mapping of volumes
        By the channels of training, the first of which gives the grid. One volume alone needs no name.
    memory : int or str
        Of the prediction. Networks that see far want much: parts of a volume overlap by what they see.
    device, precision : str, optional
        As for :func:`mrhdata.predict`.
    progress : bool or callable

    Returns
    -------
    labels : (z, y, x) label volume
        In memory; values as in training. Voxels outside the extent that the network works on are
        background, the first of the labels.

    Raises
    ------
    ModelError
        The network was not trained on labels, or on other channels.

    Examples
    --------
    >>> from mrhdata import models
    >>> from mrhdata.models.spec import Scale
    >>> from mrhdata.volume.construct import from_array
    >>> model = models.create("tissue2d", classes=2, widths=(1,)).eval()
    >>> ones = Scale((0.0,), (1.0,)), Scale((0.0,) * 2, (1.0,) * 2)
    >>> model.spec = replace(model.spec, channels=("t1w",), axis=0, inputs=ones[0], target=ones[1], labels=(0, 7))
    >>> volume = from_array(np.random.default_rng(0).random((3, 8, 8), np.float32), spacing=(1, 1, 1))
    >>> found = segment(model, volume)
    >>> found.mrh.grid.same_as(volume.mrh.grid), set(np.unique(found)) <= {0, 7}
    (True, True)
    """
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    if not spec.labels:
        raise ModelError(f"{spec.name} was not trained on labels; use mrhdata.predict, or train it on a label volume")
    group = _channels(inputs, spec)
    first = next(iter(group.values()))
    ready = {name: volume.compute() for name, volume in prepare(group, spec.prepare).items()}
    with tempfile.TemporaryDirectory() as folder:
        shares = predict(
            model,
            {name: volume.rename(name) for name, volume in ready.items()},
            Path(folder) / "shares.zarr",
            mode="dense",
            output=Output(activation="softmax"),
            memory=memory,
            device=device,
            precision=precision,
            preprocessed=True,
            progress=progress,
        )
        labels = _decided(shares, first, spec.labels)
    return finish(labels, spec.finish).rename("labels")


def _channels(inputs: Mapping[str, xr.DataArray] | xr.DataArray, spec: ModelSpec) -> dict[str, xr.DataArray]:
    """The volumes in the order of training, without those that steps add."""
    if isinstance(inputs, xr.DataArray):
        return {spec.channels[0]: inputs}
    if len(inputs) == 1 and spec.channels[0] not in inputs:
        raise ModelError(f"the network was trained on {spec.channels} but is given {tuple(inputs)}; name it so")
    return {name: inputs[name] for name in spec.channels if name in inputs}


def _decided(shares: xr.DataArray, like: xr.DataArray, labels: Sequence[int]) -> xr.DataArray:
    """The label of the highest probability at each voxel of a volume; the first where the network did not look."""
    values = np.asarray(labels)
    goal = like.isel({d: 0 for d in like.dims if d not in SPATIAL}, drop=True)
    kind = np.dtype(np.min_scalar_type(int(values.max())) if values.min() >= 0 else np.int16)
    highest: Any = None
    for number in range(len(labels)):
        # Of the first label all lies outside.
        share = resample(shares.isel(c=number, drop=True), goal, fill=float(number == 0), antialias=False).data
        if highest is None:
            highest, winner = share, (share * 0).astype(kind) + kind.type(values[0])
            continue
        winner = np.where(share > highest, kind.type(values[number]), winner)
        highest = np.maximum(share, highest)
    found = goal.copy(data=np.asarray(winner).astype(kind))
    kept = {k: goal.attrs[k] for k in ("affine", "space", "source_axes") if k in goal.attrs}
    found.attrs = {**kept, "kind": "labels", "units": "1"}
    return found


def score_labels(case: Subject, found: xr.DataArray, labels: Sequence[int]) -> pd.DataFrame:
    """Overlap of each label but the first, the background, with the case's own, a row each.

    ``accuracy`` counts all voxels, ``accuracy_inside`` those whose truth is not background, and
    ``accuracy_background`` is what an answer of nothing but background has.
    """
    if case.target is None:
        raise DataError(f"{case.id} has no labels to score with")
    truth = case.target.mrh.like(found)
    table = overlap.overlap(truth.values, found.values, labels[1:], found.mrh.spacing)
    table.insert(0, "subject", case.id)
    right = overlap.accuracy(truth.values, found.values)
    inner = overlap.accuracy(truth.values, found.values, background=labels[0])
    nothing = overlap.accuracy(truth.values, np.full(truth.shape, labels[0]))
    return table.assign(accuracy=right, accuracy_inside=inner, accuracy_background=nothing)
