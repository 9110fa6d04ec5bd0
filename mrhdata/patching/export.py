"""Patches for Dask and xarray, and frozen to Zarr."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from dask.delayed import delayed

from mrhdata._runtime.atomic import atomic_write
from mrhdata.errors import DataError
from mrhdata.io.omezarr import codec
from mrhdata.patching.patch_set import PatchSet

#: Bytes of a chunk of a frozen training set, about.
_CHUNK = 8_000_000


def as_torchio(patches: PatchSet, index: int) -> Any:
    """One patch as a torchio subject."""
    torchio = _library("torchio")
    images = {}
    for i, (name, tensor, affine) in enumerate(_tensors(patches, index)):
        kind = torchio.LabelMap if patches.sources[0][i].labels else torchio.ScalarImage
        images[name] = kind(tensor=tensor, affine=affine)
    return torchio.Subject(**images)


def as_monai(patches: PatchSet, index: int) -> dict[str, Any]:
    """One patch as MONAI tensors with their affines."""
    data = _library("monai.data")
    return {name: data.MetaTensor(tensor, affine=affine) for name, tensor, affine in _tensors(patches, index)}


def _tensors(patches: PatchSet, index: int) -> Iterator[tuple[str, Any, Any]]:
    import torch

    row = np.array([range(len(patches))[index]])
    for i, (name, part) in enumerate(zip(patches.tensor_shapes, patches.gather(row), strict=True)):
        yield name, torch.from_numpy(part[0]), patches.affine(row, i)[0]


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise DataError(f"{package} is not installed; pip install {package}") from error


def as_dask(patches: PatchSet) -> list[da.Array]:
    """One Dask array per tensor, a block for each run of rows of a chunk."""
    parts: list[list[da.Array]] = [[] for _ in patches.tensor_shapes]
    whole = delayed(patches, pure=False)
    for start, stop in patches.chunks:
        block = delayed(_gathered, pure=False)(whole, start, stop)
        for i, width in enumerate(patches.tensor_shapes.values()):
            parts[i].append(da.from_delayed(block[i], (stop - start, *width), np.float32))
    return [da.concatenate(arrays) for arrays in parts]


def _gathered(patches: PatchSet, start: int, stop: int) -> list[Any]:
    return patches.gather(np.arange(start, stop))


def as_dataset(patches: PatchSet) -> xr.Dataset:
    """One variable per tensor along ``patch``, and where each patch lies."""
    variables = {
        name: (("patch", *_dims(name, patches)), array)
        for name, array in zip(patches.tensor_shapes, as_dask(patches), strict=True)
    }
    return xr.Dataset(variables, coords=_where(patches, np.arange(len(patches))))


def _dims(name: str, patches: PatchSet) -> list[str]:
    """Dimensions of a tensor; inputs and targets of one length share theirs."""
    first = next(iter(patches.tensor_shapes.values()))
    lengths = zip(("c", "z", "y", "x"), patches.tensor_shapes[name], first, strict=True)
    return [dim if n == like and dim != "c" else f"{dim}_{name}" for dim, n, like in lengths]


def _where(patches: PatchSet, rows: Any) -> dict[str, Any]:
    positions = patches.positions[rows]
    affines = patches.affine(rows)
    # Neighbouring planes are channels, and the affine is that of the plane in the middle.
    lengths = next(iter(patches.tensor_shapes.values()))[1:]
    centre = np.append((np.array(lengths) - 1) / 2, 1.0)
    found = {
        "row": ("patch", rows),
        "subject": ("patch", patches.subject[rows]),
        "position": (("patch", "axis"), positions),
        "axis": ("axis", ["z", "y", "x"]),
        "centre_mm": (("patch", "world"), (affines @ centre)[:, :3]),
        "world": ("world", ["X", "Y", "Z"]),
    }
    return found if patches.classes is None else found | {"class": ("patch", patches.classes[rows])}


def write_patches(
    patches: PatchSet, store: str | os.PathLike[str], *, seed: int, shuffle: bool, overwrite: bool
) -> None:
    """Write all patches in the order of one epoch."""
    biggest = max(4 * int(np.prod(width)) for width in patches.tensor_shapes.values())
    length = max(1, min(len(patches), _CHUNK // biggest))
    with atomic_write(store, overwrite=overwrite) as draft:
        group = zarr.create_group(draft)
        arrays = [
            group.create_array(
                name,
                shape=(len(patches), *width),
                chunks=(length, *width),
                dtype="float32",
                compressors=codec(np.dtype(np.float32)),
                dimension_names=["patch", *_dims(name, patches)],
            )
            for name, width in patches.tensor_shapes.items()
        ]
        order, at = [], 0
        for rows, parts in patches.batches(length, shuffle=shuffle, seed=seed):
            for array, part in zip(arrays, parts, strict=True):
                array[at : at + len(rows)] = part
            order.append(rows)
            at += len(rows)
        # Names of axes are text, which Zarr 3 does not specify yet.
        where = xr.Dataset(coords=_where(patches, np.concatenate(order))).drop_vars(["axis", "world"])
        where.to_zarr(draft, mode="a", consolidated=False)
