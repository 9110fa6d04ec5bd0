"""The published MRH-Net weights: MATLAB files of one ``DAGNetwork`` (Liang et al. 2022, eLife 11:e72331).

A MATLAB network is an object whose properties are plain arrays. They are read as numbers and text alone,
by the library mat-io; what an object would do in MATLAB is never run. Layers are found by name, and their
wiring must be that of :class:`~mrhdata.models.mrhnet.MRHNet`.

The authors cut their planes as rows along the left-right axis and columns along the dorso-ventral one,
index growing dorsally, one coronal slice after another. Ours are z by x, so kernels are transposed here.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrhdata.errors import ModelError
from mrhdata.models.registry import create
from mrhdata.models.spec import Scale, Spec

if TYPE_CHECKING:
    from torch import Tensor, nn

Floats = NDArray[np.float32]

#: Inputs of the published networks in order: two shells of 2 b0 and 30 directions each, in the order of the
#: scanner's method files, then T2 and the MT pair. The authors' file is called t2MTONOFF, which gives the
#: order of the last two; their text lists the unsaturated image first, so it is not certain.
CHANNELS = (
    *(
        f"{shell}_{image}"
        for shell in ("b2000", "b5000")
        for image in ("b0_1", "b0_2", *(f"d{i:02}" for i in range(1, 31)))
    ),
    "t2",
    "mt_on",
    "mt_off",
)

#: mm, of the volumes that the authors trained on.
_SPACING = 0.0625

#: Layers at the ends of the network, and between the first and the last the loop blocks.
_HEAD = ("InputLayer", "Conv1", "ReLU1", "Conv2", "ReLU2", "Conv3", "ReLU3", "Conv3_1", "add11")
_BLOCK = ("ReLU_L1{}", "Conv_loop1{}", "ReLU_L2{}", "Conv_loop2{}", "add_loop{}")
_TAIL = ("ReLU3_5", "Conv4", "ReLU4", "Conv5", "FinalRegressionLayer")


def load_matlab(
    path: str | os.PathLike[str], *, maximum: float | None = None, target_maximum: float = 1.0
) -> nn.Module:
    """Read a published MRH-Net from the authors' MATLAB file.

    Parameters
    ----------
    path : path
        Such as ``net_10layerV3Res_HRJG_allMRIs_Fluo.mat``: a variable ``net`` of class ``DAGNetwork``.
    maximum : float, optional
        What input values are divided by: one number for all channels. The authors took the highest value
        of their training patches, which no published file holds, and when testing the highest value of
        each slice, so that one voxel got different inputs in different slices. Give the highest value of
        the whole scan, the same for all scans that are compared.
    target_maximum : float
        Value of the histology that an answer of 1 stands for; with 1, maps are fractions of the highest
        value of the authors' training targets.

    Returns
    -------
    model : torch.nn.Module
        MRH-Net in evaluation mode. ``model.spec`` has the 67 `CHANNELS` of the published protocol (renamed
        to ``c1``, ``c2``, ... where the file has another number), patches of (3, 1, 3) voxels and coronal
        planes. Without `maximum` it has no input scale, and :func:`mrhdata.predict` refuses it; it can
        still be called on values that were divided before.

    Raises
    ------
    ModelError
        mat-io is not installed, the file cannot be read, or it holds another network.

    Notes
    -----
    The index of z must grow dorsally, as it did for the authors; left and right they do not state. Volumes
    are never flipped when read: ``volume.mrh.grid.orientation`` then starts with ``S``.

    Examples
    --------
    >>> load_matlab("net.mat")
    Traceback (most recent call last):
    mrhdata.errors.ModelError: net.mat does not exist; check the path
    """
    for name, value in (("maximum", maximum), ("target_maximum", target_maximum)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ModelError(f"{name} is a positive number, not {value}; give the highest value of the scan")
    layers, wires = _read(Path(path))
    return _network(Path(path), layers, wires, maximum, target_maximum)


def _network(
    path: Path,
    layers: Mapping[str, Mapping[str, Any]],
    wires: set[tuple[str, str]],
    maximum: float | None,
    target_maximum: float,
) -> nn.Module:

    blocks = sum(re.fullmatch(r"add_loop\d+", name) is not None for name in layers)
    differing = sorted(wires ^ _wires(blocks))
    if differing:
        listed = ", ".join(f"{a} to {b}" for a, b in differing[:5])
        raise ModelError(f"{path} is no MRH-Net of {blocks} loop blocks: its wiring differs in {listed}")
    try:
        _check_input(layers["InputLayer"])
        state = {key: value for name in layers for key, value in _weights(name, layers[name]).items()}
        channels = state["conv1.weight"].shape[1]
        model = create("mrhnet", in_channels=channels, blocks=blocks)
        model.load_state_dict(state)
    except (KeyError, RuntimeError, TypeError, IndexError) as error:
        raise ModelError(f"{path}: the weights are not those of MRH-Net ({_short(error)})") from error
    spec: Spec = model.spec  # type: ignore[assignment]
    model.spec = dataclasses.replace(  # type: ignore[assignment]
        spec,
        channels=CHANNELS if channels == len(CHANNELS) else tuple(f"c{i + 1}" for i in range(channels)),
        patch=(3, 1, 3),
        axis=1,
        spacing_mm=(_SPACING,) * 3,
        inputs=None if maximum is None else Scale((0.0,) * channels, (float(maximum),) * channels),
        target=Scale((0.0,), (float(target_maximum),)),
    )
    return model.eval()


def _wires(blocks: int) -> set[tuple[str, str]]:
    """From layer to layer, as published: each skip begins behind a ReLU."""
    loops = [name.format(k) for k in range(1, blocks + 1) for name in _BLOCK]
    skips = {(f"ReLU_L1{k}", f"add_loop{k}") for k in range(1, blocks + 1)}
    return {*itertools.pairwise((*_HEAD, *loops, *_TAIL)), ("ReLU2", "add11"), *skips}


def _check_input(layer: Mapping[str, Any]) -> None:
    """Nothing is subtracted from the inputs; the saved networks have an empty normalisation."""
    given = np.asarray(layer["Normalization"]).ravel()
    if given.size and str(given[0]) != "none":
        raise ModelError(f"the input layer normalises by {str(given[0])[:50]!r}; MRH-Net has no normalisation")


def _weights(name: str, layer: Mapping[str, Any]) -> dict[str, Tensor]:
    """Parameters of one layer under our names; none for layers without."""
    import torch

    if not name.startswith("Conv"):
        return {}
    settings = {key: np.asarray(layer[key]).ravel().tolist() for key in ("Stride", "DilationFactor", "PaddingSize")}
    if any(set(map(float, values)) != {1.0} for values in settings.values()):
        raise ModelError(f"layer {name} has {settings}; MRH-Net has stride, dilation and padding 1 throughout")
    kernel = _learnt(layer["Weights"])  # (x, z, in, out)
    # MATLAB drops the last axis of length 1.
    kernel = kernel.reshape(*kernel.shape, *(1,) * (4 - kernel.ndim)).transpose(3, 2, 1, 0)  # (out, in, z, x)
    loop = re.fullmatch(r"Conv_(loop[12])(\d+)", name)
    ours = f"conv_{loop[1]}.{int(loop[2]) - 1}" if loop else name.lower()
    return {
        f"{ours}.weight": torch.from_numpy(np.ascontiguousarray(kernel)),
        f"{ours}.bias": torch.from_numpy(_learnt(layer["Bias"]).reshape(-1).copy()),
    }


def _learnt(parameter: Any) -> Floats:
    values = np.asarray(parameter.flat[0]["Value"])
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        raise TypeError(f"{values.dtype} values, or values that are not finite, where weights should be")
    return values.astype(np.float32)


def _read(path: Path) -> tuple[dict[str, Any], set[tuple[str, str]]]:
    """Layers by name, each a record of its properties, and the pairs of layers that are wired."""
    if not path.is_file():
        raise ModelError(f"{path} does not exist; check the path")
    with warnings.catch_warnings():
        # Importing it sets an option that pandas 3 calls out of date, and what it cannot read it warns of.
        warnings.simplefilter("ignore")
        try:
            from matio import load_from_mat
        except ImportError as error:
            raise ModelError("reading MATLAB networks takes mat-io; pip install 'mrhdata[matlab]'") from error
        try:
            # Raw, so that no property becomes more than arrays and text.
            found = load_from_mat(os.fspath(path), variable_names=["net"], raw_data=True)
            network = found["net"].properties["any"].flat[0]
            records = [layer.properties["any"].flat[0] for layer in network["Layers"].ravel()]
            columns = network["Connections"].properties["data"].flat
            wires = {(_text(a), _text(b)) for a, b in zip(columns[0].flat, columns[1].flat, strict=True)}
            layers = {_text(r["Name"]): {key: r[key] for key in r.dtype.names} for r in records}
        # A damaged file raises whatever its parts happen to raise.
        except Exception as error:
            raise ModelError(
                f"{path} holds no network that can be read: it takes a DAGNetwork called net ({_short(error)})"
            ) from error
    return layers, wires


def _text(value: Any) -> str:
    """A layer's name; of an input of an addition, such as ``add11/in2``, the layer alone."""
    return str(np.asarray(value).ravel()[0]).partition("/")[0]


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
