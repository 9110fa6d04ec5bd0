"""Export of patches to TorchIO, MONAI, Dask, xarray and Zarr."""

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

#: Approximate bytes of a chunk of an exported training set.
_CHUNK_BYTES = 8_000_000


def as_torchio(patches: PatchSet, index: int) -> Any:
    """Return one patch as a TorchIO subject."""
    torchio = _import_library("torchio")
    images = {}
    for i, (name, tensor, affine) in enumerate(_named_tensors(patches, index)):
        kind = torchio.LabelMap if patches.sources[0][i].labels else torchio.ScalarImage
        images[name] = kind(tensor=tensor, affine=affine)
    return torchio.Subject(**images)


def as_monai(patches: PatchSet, index: int) -> dict[str, Any]:
    """Return one patch as MONAI tensors with their affines."""
    data = _import_library("monai.data")
    return {name: data.MetaTensor(tensor, affine=affine) for name, tensor, affine in _named_tensors(patches, index)}


def _named_tensors(patches: PatchSet, index: int) -> Iterator[tuple[str, Any, Any]]:
    import torch

    indices = np.array([range(len(patches))[index]])
    for i, (name, array) in enumerate(zip(patches.tensor_shapes, patches.gather(indices), strict=True)):
        yield name, torch.from_numpy(array[0]), patches.affine(indices, i)[0]


def _import_library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise DataError(f"{package} is not installed; pip install {package}") from error


def as_dask(patches: PatchSet) -> list[da.Array]:
    """Return one Dask array per tensor, with a block for the patches of each stored chunk."""
    blocks: list[list[da.Array]] = [[] for _ in patches.tensor_shapes]
    whole = delayed(patches, pure=False)
    for start, stop in patches.chunks:
        block = delayed(_gather_range, pure=False)(whole, start, stop)
        for i, shape in enumerate(patches.tensor_shapes.values()):
            blocks[i].append(da.from_delayed(block[i], (stop - start, *shape), np.float32))
    return [da.concatenate(arrays) for arrays in blocks]


def _gather_range(patches: PatchSet, start: int, stop: int) -> list[Any]:
    return patches.gather(np.arange(start, stop))


def as_dataset(patches: PatchSet) -> xr.Dataset:
    """Return one variable per tensor along ``patch``, and the coordinates of each patch."""
    variables = {
        name: (("patch", *_dims(name, patches)), array)
        for name, array in zip(patches.tensor_shapes, as_dask(patches), strict=True)
    }
    return xr.Dataset(variables, coords=_patch_coordinates(patches, np.arange(len(patches))))


def _dims(name: str, patches: PatchSet) -> list[str]:
    """Return the dimensions of a tensor; inputs and targets share those of equal length."""
    first = next(iter(patches.tensor_shapes.values()))
    lengths = zip(("c", "z", "y", "x"), patches.tensor_shapes[name], first, strict=True)
    return [dim if n == like and dim != "c" else f"{dim}_{name}" for dim, n, like in lengths]


def _patch_coordinates(patches: PatchSet, indices: Any) -> dict[str, Any]:
    positions = patches.positions[indices]
    affines = patches.affine(indices)
    # Context slices are channels, and the affine is that of the middle slice.
    lengths = next(iter(patches.tensor_shapes.values()))[1:]
    centre = np.append((np.array(lengths) - 1) / 2, 1.0)
    coordinates = {
        "row": ("patch", indices),
        "subject": ("patch", patches.subject[indices]),
        "position": (("patch", "axis"), positions),
        "axis": ("axis", ["z", "y", "x"]),
        "centre_mm": (("patch", "world"), (affines @ centre)[:, :3]),
        "world": ("world", ["X", "Y", "Z"]),
    }
    if patches.classes is not None:
        coordinates["class"] = ("patch", patches.classes[indices])
    return coordinates


def write_patches(
    patches: PatchSet, store: str | os.PathLike[str], *, seed: int, shuffle: bool, overwrite: bool
) -> None:
    """Write all patches in the order of one epoch."""
    patch_bytes = max(4 * int(np.prod(shape)) for shape in patches.tensor_shapes.values())
    length = max(1, min(len(patches), _CHUNK_BYTES // patch_bytes))
    with atomic_write(store, overwrite=overwrite) as draft:
        group = zarr.create_group(draft)
        arrays = [
            group.create_array(
                name,
                shape=(len(patches), *shape),
                chunks=(length, *shape),
                dtype="float32",
                compressors=codec(np.dtype(np.float32)),
                dimension_names=["patch", *_dims(name, patches)],
            )
            for name, shape in patches.tensor_shapes.items()
        ]
        order, written = [], 0
        for indices, batch in patches.batches(length, shuffle=shuffle, seed=seed):
            for array, values in zip(arrays, batch, strict=True):
                array[written : written + len(indices)] = values
            order.append(indices)
            written += len(indices)
        # Zarr 3 does not specify text arrays yet, so the names of axes are left out.
        coordinates = xr.Dataset(coords=_patch_coordinates(patches, np.concatenate(order))).drop_vars(["axis", "world"])
        coordinates.to_zarr(draft, mode="a", consolidated=False)
