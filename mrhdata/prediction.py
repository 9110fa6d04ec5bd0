"""A network over a whole volume, written to OME-Zarr.

Two meanings, which differ for a network that pads with zeros. *Patch*: each voxel is the centre of a
patch of the training size, as published for MRH-Net, so the network meets exactly what it was trained
on. *Dense*: the network runs once over whole planes (or the whole volume); voxels deep inside see real
neighbours where training saw padding. Dense is cheaper, patch is what was trained.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import torch
from dask.delayed import delayed
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mrhdata import formats
from mrhdata.errors import DataError, ModelError
from mrhdata.models.storage import Spec, physical
from mrhdata.volume import SPATIAL, describe, mask_on, stack

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

Floats = NDArray[np.float32]

#: Planes that are read and run together.
SLAB_PLANES = 8


def predict(
    model: nn.Module,
    inputs: Mapping[str, xr.DataArray] | xr.DataArray,
    store: str | os.PathLike[str],
    *,
    where: xr.DataArray | None = None,
    mode: str = "patch",
    batch_size: int = 1024,
    name: str = "prediction",
    overwrite: bool = False,
    progress: bool = True,
) -> xr.DataArray:
    """Map a trained network over a volume.

    Parameters
    ----------
    model : torch.nn.Module
        Trained by :func:`mrhdata.fit` or loaded.
    inputs : volume or mapping of volumes
        The channels that the network was trained on, in the same order, on one grid.
    store : path
        OME-Zarr folder to write, or a file of any format that is written.
    where : mask volume, optional
        Only voxels where it is not zero are computed; the others are 0.
    mode : {"patch", "dense"}
        See above.
    batch_size : int
        Patches at once.
    name : str
        Of the result.
    overwrite, progress : bool

    Returns
    -------
    volume : xarray.DataArray
        float32, on the grid of the inputs, read back from `store`.

    Raises
    ------
    ModelError
        Channels differ from those of training, or the network was not trained.
    DataError
        Inputs hold values that are not finite, or the mask is empty.
    GridError
        Grids differ.

    Notes
    -----
    At the border of the volume patches are filled with the nearest voxel.
    """
    spec: Spec = model.spec  # type: ignore[assignment]
    if mode not in ("patch", "dense"):
        raise ModelError(f"mode is patch or dense, not {mode!r}")
    if spec.patch is None:
        raise ModelError(f"{spec.name} was not trained; use mrhdata.fit or load a trained one")
    stacked = stack(inputs)
    channels = tuple(str(c) for c in stacked.c.values)
    if channels != spec.channels:
        raise ModelError(
            f"the network was trained on {spec.channels} but is given {channels}; give those, in that order"
        )
    inside = mask_on(where, stacked)
    run = _Sweep(model.eval(), da.asarray(stacked.transpose("c", *SPATIAL).data), inside, mode, batch_size)
    with tqdm(total=inside.sum(), desc="predicting", unit="voxel", unit_scale=True, disable=not progress) as bar:
        run.done = bar.update
        template = stacked.isel(c=0, drop=True).transpose(*SPATIAL)
        volume = template.copy(data=run.lazy()).rename(name)
        volume = describe(
            volume, modality="virtual histology", kind="image", provenance={"model": spec.name, "mode": mode}
        )
        # PyTorch uses all cores itself: one slab at a time.
        with dask.config.set(scheduler="synchronous"):
            formats.write(volume, store, overwrite=overwrite)
    return formats.read(store)


class _Sweep:
    """Slabs of planes along one axis, each read, run and handed on by itself."""

    def __init__(self, model: nn.Module, data: da.Array, inside: NDArray[np.bool_], mode: str, batch_size: int) -> None:
        spec: Spec = model.spec  # type: ignore[assignment]
        self.model, self.data, self.inside, self.mode, self.batch_size = model, data, inside, mode, batch_size
        self.patch = spec.patch or (1, 1, 1)
        self.axis = spec.axis or 0
        self.done: Callable[[int], Any] = lambda voxels: None

    def lazy(self) -> da.Array:
        """The result as a Dask array, one task per slab."""
        length = self.inside.shape[self.axis]
        # A 3D network run densely needs the volume in one piece.
        thick = length if self.mode == "dense" and self.model.ndim == 3 else SLAB_PLANES
        parts = []
        for low in range(0, length, thick):
            shape = list(self.inside.shape)
            shape[self.axis] = min(thick, length - low)
            part = delayed(self.slab, pure=False)(low, low + shape[self.axis])
            parts.append(da.from_delayed(part, shape, np.float32))
        return da.concatenate(parts, axis=self.axis)

    def slab(self, low: int, high: int) -> Floats:
        """Prediction of planes `low` to `high`; 0 outside the mask."""
        inside = self.inside.take(range(low, high), axis=self.axis)
        result = np.zeros(inside.shape, dtype=np.float32)
        if inside.any():
            values = self._read(low, high)
            with torch.inference_mode():
                run = self._patches if self.mode == "patch" else self._dense
                result[inside] = run(values, inside)
        self.done(int(inside.sum()))
        return result

    def _read(self, low: int, high: int) -> Floats:
        """Voxels (C, z, y, x) of a slab; in patch mode with a margin of half a patch, edges repeated."""
        before = [(n - 1) // 2 if self.mode == "patch" else 0 for n in self.patch]
        after = [n // 2 if self.mode == "patch" else 0 for n in self.patch]
        length = self.inside.shape[self.axis]
        first, last = max(0, low - before[self.axis]), min(length, high + after[self.axis])
        key = [slice(None)] * 4
        key[self.axis + 1] = slice(first, last)
        values = np.asarray(self.data[tuple(key)], dtype=np.float32)
        if not np.isfinite(values).all():
            raise DataError(
                f"planes {low} to {high} hold values that are not finite; fill or mask them before predicting"
            )
        before[self.axis] -= low - first
        after[self.axis] -= last - high
        return np.pad(values, [(0, 0), *zip(before, after, strict=True)], mode="edge")

    def _patches(self, values: Floats, inside: NDArray[np.bool_]) -> Floats:
        """Each voxel from the patch around it."""
        windows = sliding_window_view(np.moveaxis(values, 0, -1), self.patch, axis=(0, 1, 2))
        centre = [(n - 1) // 2 for n in self.patch]
        places = np.argwhere(inside)
        found = []
        for start in range(0, len(places), self.batch_size):
            batch = windows[tuple(places[start : start + self.batch_size].T)]  # (n, C, z, y, x)
            predicted = physical(self.model, torch.from_numpy(batch)).numpy()
            found.append(predicted[:, 0, centre[0], centre[1], centre[2]])
        return np.concatenate(found)

    def _dense(self, values: Floats, inside: NDArray[np.bool_]) -> Floats:
        """Whole planes (2D network) or the whole volume (3D) at once."""
        if self.model.ndim == 3:
            return physical(self.model, torch.from_numpy(values[None])).numpy()[0, 0][inside]
        planes = [
            physical(self.model, torch.from_numpy(values.take([i], axis=self.axis + 1)[None])).numpy()[0, 0]
            for i in range(values.shape[self.axis + 1])
        ]
        return np.concatenate(planes, axis=self.axis)[inside]


def predict_rows(model: nn.Module, rows: Floats, batch_size: int = 8192) -> Floats:
    """Run a network trained on single voxels over a table: (n, C) to (n,), in the target's units."""
    values = torch.from_numpy(np.asarray(rows, dtype=np.float32))[:, :, None, None, None]
    with torch.inference_mode():
        found = [physical(model, values[i : i + batch_size]).flatten() for i in range(0, len(values), batch_size)]
    return torch.cat(found).numpy()
