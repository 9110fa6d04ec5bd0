"""Read the published MRH-Net weights: MATLAB files of one ``DAGNetwork`` (Liang et al. 2022, eLife 11:e72331).

A MATLAB network is an object whose properties are plain arrays. The library mat-io reads them as numbers and text
only; no code of the object is run. Layers are identified by name, and their connections must be those of
:class:`~mrhdata.models.mrhnet.MRHNet`.

In the authors' coronal planes, rows run along the left-right axis and columns along the dorso-ventral axis, with the
index growing dorsally. Planes of mrhdata are z by x, so kernels are transposed.
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
from mrhdata.models.spec import IntensityScale, ModelSpec, with_maximum

if TYPE_CHECKING:
    from torch import Tensor, nn

Floats = NDArray[np.float32]

#: Inputs of the published networks in order: two shells of 2 b0 and 30 directions each, in the order of the
#: scanner's method files, then T2 and the MT pair. The order of the last two follows the authors' file name
#: (t2MTONOFF); it is uncertain, since their text lists the unsaturated image first.
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

#: Voxel spacing of the authors' training volumes in mm.
_SPACING = 0.0625

#: Layers before the loop blocks, of one loop block, and after them.
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
        Path of the file, such as ``net_10layerV3Res_HRJG_allMRIs_Fluo.mat``, with a variable ``net`` of class
        ``DAGNetwork``.
    maximum : float, optional
        Divisor of the input values of all channels. The authors divided by the highest value of their training
        patches, which they did not publish, and in tests by the highest value of each slice, so equal voxels had
        different inputs in different slices. Pass the highest value of the whole scan, the same one for all scans
        that are compared.
    target_maximum : float
        Histology value of a network output of 1. With 1, maps are fractions of the highest value of the authors'
        training targets.

    Returns
    -------
    model : torch.nn.Module
        MRH-Net in evaluation mode. ``model.spec`` has the 67 `CHANNELS` of the published protocol (``c1``,
        ``c2``, ... for any other number of channels), patches of (3, 1, 3) voxels and coronal planes. Without
        `maximum` it has no input scale, so :func:`mrhdata.predict` refuses it; it can still be called on values
        that are already divided.

    Raises
    ------
    ModelError
        If mat-io is not installed, if the file cannot be read, or if it contains another network.

    Notes
    -----
    The index of z must grow dorsally, as in the authors' data (``volume.mrh.grid.orientation`` starts with ``S``);
    reading never flips a volume. The authors do not state the direction of the left-right axis.

    Examples
    --------
    >>> load_matlab("net.mat")
    Traceback (most recent call last):
    mrhdata.errors.ModelError: net.mat does not exist; check the path
    """
    if not (math.isfinite(target_maximum) and target_maximum > 0):
        raise ModelError(f"target_maximum must be a positive number; got {target_maximum}. Pass that of the histology")
    layers, connections = _read_network(Path(path))
    model = _build_network(Path(path), layers, connections, target_maximum)
    if maximum is not None:
        model.spec = with_maximum(model.spec, maximum)  # type: ignore[arg-type, assignment]
    return model


def _build_network(
    path: Path,
    layers: Mapping[str, Mapping[str, Any]],
    connections: set[tuple[str, str]],
    target_maximum: float,
) -> nn.Module:
    blocks = sum(re.fullmatch(r"add_loop\d+", name) is not None for name in layers)
    differences = sorted(connections ^ _published_connections(blocks))
    if differences:
        listed = ", ".join(f"{a} to {b}" for a, b in differences[:5])
        raise ModelError(f"{path} is not an MRH-Net of {blocks} loop blocks: its connections differ in {listed}")
    try:
        _check_input(layers["InputLayer"])
        state = {key: value for name in layers for key, value in _weights(name, layers[name]).items()}
        channels = state["conv1.weight"].shape[1]
        model = create("mrhnet", in_channels=channels, loop_blocks=blocks)
        model.load_state_dict(state)
    except (KeyError, RuntimeError, TypeError, IndexError) as error:
        raise ModelError(f"{path}: the weights are not those of MRH-Net ({_shorten(error)})") from error
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    model.spec = dataclasses.replace(  # type: ignore[assignment]
        spec,
        channels=CHANNELS if channels == len(CHANNELS) else tuple(f"c{i + 1}" for i in range(channels)),
        patch=(3, 1, 3),
        axis=1,
        spacing_mm=(_SPACING,) * 3,
        target=IntensityScale((0.0,), (float(target_maximum),)),
    )
    return model.eval()


def _published_connections(blocks: int) -> set[tuple[str, str]]:
    """Return pairs of connected layers, as published; each skip connection starts after a ReLU."""
    loops = [name.format(k) for k in range(1, blocks + 1) for name in _BLOCK]
    skips = {(f"ReLU_L1{k}", f"add_loop{k}") for k in range(1, blocks + 1)}
    return {*itertools.pairwise((*_HEAD, *loops, *_TAIL)), ("ReLU2", "add11"), *skips}


def _check_input(layer: Mapping[str, Any]) -> None:
    """Raise ModelError if the input layer normalises; the published networks have an empty normalisation."""
    normalization = np.asarray(layer["Normalization"]).ravel()
    if normalization.size and str(normalization[0]) != "none":
        raise ModelError(f"the input layer normalises by {str(normalization[0])[:50]!r}; MRH-Net has no normalisation")


def _weights(name: str, layer: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the parameters of one layer by their names in `MRHNet`, an empty dict for a layer without weights."""
    import torch

    if not name.startswith("Conv"):
        return {}
    settings = {key: np.asarray(layer[key]).ravel().tolist() for key in ("Stride", "DilationFactor", "PaddingSize")}
    if any(set(map(float, values)) != {1.0} for values in settings.values()):
        raise ModelError(f"layer {name} must have stride, dilation and padding 1, as in MRH-Net; got {settings}")
    kernel = _read_parameter(layer["Weights"])  # (x, z, in, out)
    # MATLAB drops the last axis if its length is 1.
    kernel = kernel.reshape(*kernel.shape, *(1,) * (4 - kernel.ndim)).transpose(3, 2, 1, 0)  # (out, in, z, x)
    loop = re.fullmatch(r"Conv_(loop[12])(\d+)", name)
    module_name = f"conv_{loop[1]}.{int(loop[2]) - 1}" if loop else name.lower()
    return {
        f"{module_name}.weight": torch.from_numpy(np.ascontiguousarray(kernel)),
        f"{module_name}.bias": torch.from_numpy(_read_parameter(layer["Bias"]).reshape(-1).copy()),
    }


def _read_parameter(parameter: Any) -> Floats:
    values = np.asarray(parameter.flat[0]["Value"])
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        raise TypeError(f"weights must be finite floating-point numbers; got {values.dtype}")
    return values.astype(np.float32)


def _read_network(path: Path) -> tuple[dict[str, Any], set[tuple[str, str]]]:
    """Return the properties of each layer by its name, and the pairs of connected layers."""
    if not path.is_file():
        raise ModelError(f"{path} does not exist; check the path")
    with warnings.catch_warnings():
        # mat-io sets an option that pandas 3 deprecates, and warns of objects that it cannot read.
        warnings.simplefilter("ignore")
        try:
            from matio import load_from_mat
        except ImportError as error:
            raise ModelError("reading MATLAB networks needs mat-io; pip install 'mrhdata[matlab]'") from error
        try:
            # With raw_data all properties stay arrays and text.
            variables = load_from_mat(os.fspath(path), variable_names=["net"], raw_data=True)
            network = variables["net"].properties["any"].flat[0]
            records = [layer.properties["any"].flat[0] for layer in network["Layers"].ravel()]
            columns = network["Connections"].properties["data"].flat
            connections = {
                (_layer_name(a), _layer_name(b)) for a, b in zip(columns[0].flat, columns[1].flat, strict=True)
            }
            layers = {_layer_name(r["Name"]): {key: r[key] for key in r.dtype.names} for r in records}
        # A damaged file can raise any exception.
        except Exception as error:
            raise ModelError(
                f"{path} must contain a DAGNetwork called net, which could not be read ({_shorten(error)})"
            ) from error
    return layers, connections


def _layer_name(value: Any) -> str:
    """Return the name of a layer without the number of its input: ``add11`` for ``add11/in2``."""
    return str(np.asarray(value).ravel()[0]).partition("/")[0]


def _shorten(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
