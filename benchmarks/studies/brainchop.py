"""Brainchop's MeshNet, a peer: networks of dilated convolutions in TensorFlow.js files, run in PyTorch.

Labels of ``model20chan3cls`` are 1 white matter and 2 grey matter.

A network gets a conformed head: 256 x 256 x 256 voxels of 1 mm whose axes point left, inferior and anterior, with the
5th and 95th percentile at 0 and 1, as the comment in its file says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from mrhdata.registration.resampling import resample
from mrhdata.volume.grid import Grid

#: Layers without weights that follow a convolution.
ACTIVATIONS: dict[str, type[nn.Module]] = {"elu": nn.ELU, "relu": nn.ReLU, "gelu": nn.GELU}
SIZE = 256


def read_network(folder: Path) -> nn.Sequential:
    """The layers of a model, with its weights."""
    content = json.loads((folder / "model.json").read_text())
    weights = _read_weights(folder, content["weightsManifest"])
    layers: list[nn.Module] = []
    for layer in content["modelTopology"]["model_config"]["config"]["layers"]:
        config = layer["config"]
        if layer["class_name"] == "Conv3D":
            layers.append(_convolution(config, weights))
        elif layer["class_name"] == "Activation":
            layers.append(ACTIVATIONS[config["activation"]]())
        elif layer["class_name"] != "InputLayer":
            raise ValueError(f"{folder} has a layer {layer['class_name']}, which is not known")
    # Channels of a voxel next to each other: a single volume convolves several times faster so.
    return nn.Sequential(*layers).eval().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def _convolution(config: dict[str, Any], weights: dict[str, np.ndarray]) -> nn.Conv3d:
    kernel = weights[f"{config['name']}/kernel"]
    size, dilation = config["kernel_size"][0], config["dilation_rate"][0]
    channels = kernel.shape[3:]
    layer = nn.Conv3d(*channels, size, padding=dilation * (size // 2), dilation=dilation)
    layer.weight.data = torch.from_numpy(np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2)))
    layer.bias.data = torch.from_numpy(weights[f"{config['name']}/bias"].copy())
    return layer


def _read_weights(folder: Path, manifest: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    weights = {}
    for group in manifest:
        content = b"".join((folder / path).read_bytes() for path in group["paths"])
        at = 0
        for entry in group["weights"]:
            count = int(np.prod(entry["shape"]))
            weights[entry["name"]] = np.frombuffer(content, "<f4", count, at).reshape(entry["shape"])
            at += 4 * count
    return weights


def conformed(volume: xr.DataArray) -> xr.DataArray:
    """A head on the grid of a network, its centre in the middle, as (left, inferior, anterior) in z, y, x."""
    grid = volume.mrh.grid
    middle = grid.world((np.array(grid.shape) - 1) / 2)
    affine = np.eye(4)
    affine[:3, :3] = [[-1, 0, 0], [0, 0, 1], [0, -1, 0]]
    affine[:3, 3] = middle - affine[:3, :3] @ np.full(3, (SIZE - 1) / 2)
    return resample(volume, Grid((SIZE,) * 3, affine), order=1).compute()


def segment(network: nn.Sequential, volume: xr.DataArray) -> xr.DataArray:
    """The labels of a head on its own grid."""
    head = conformed(volume)
    low, high = np.quantile(head.values, (0.05, 0.95))
    # The axes of a volume are ordered by anatomy, those of the network by its file.
    x = torch.from_numpy(((head.values - low) / (high - low)).astype(np.float32))[None, None]
    x = x.as_strided(x.shape, (x.stride(0), 1, *x.stride()[2:]))
    with torch.inference_mode():
        for layer in network:
            x = layer(x)
    labels = head.copy(data=x[0].argmax(0).numpy().astype(np.uint8)).assign_attrs(kind="labels")
    return resample(labels, volume, order=0).compute()
