"""OME-Zarr 0.5 on Zarr v3: sharded, multiscale, exact affine kept.

The levels lie at ``scale0/<name>``, ``scale1/<name>`` and so on, with dimension names, so that
``xarray.open_zarr(store, group="scale0")`` opens one too. OME-Zarr 0.5 has no affine: its scale and
translation give the axis-aligned part, the group's ``mrh`` attributes hold the exact geometry, and
``nifti`` the NIfTI-1 header as nifti-zarr stores it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import zarr
from zarr.codecs import BloscCodec

from mrhdata.errors import FormatError
from mrhdata.volume import DIMS, SPATIAL, UNORIENTED, place

if TYPE_CHECKING:
    import xarray as xr

#: A chunk holds about this many bytes, with cubic edges from 16 to 64 voxels; a shard is up to 2 x 2 x 2 of them.
CHUNK_BYTES = 2_000_000
#: Halving stops when no axis is longer.
COARSEST = 64

_ATTRS = ("affine", "space", "kind", "units", "modality", "provenance", "source_axes")
_CODEC = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle")


def read(path: Path, level: int = 0) -> xr.DataArray:
    """Read one level of a store written by :func:`write`, or of another 0.5 image with scale and translation."""
    group, image = _image(path)
    if not 0 <= level < len(image["datasets"]):
        raise FormatError(f"{path} has the levels 0 to {len(image['datasets']) - 1}, not {level}")
    dataset = image["datasets"][level]
    array = _array(group, dataset["path"], path)
    dims = [axis["name"] for axis in image["axes"]]
    if not set(dims) <= set(DIMS) or len(dims) != array.ndim:
        raise FormatError(f"{path} has axes {dims} over an array of shape {array.shape}; axes {DIMS} can be read")
    data = da.from_zarr(array, chunks=array.shards or array.chunks)
    stored: Any = group.attrs.get("mrh")
    if stored is None:
        steps, starts = _scale_and_translation(dataset, image["axes"])
        return place(data, dims, steps, UNORIENTED, start=starts, space="scanner", name=image.get("name"))
    geometry = dict(stored)
    at = geometry.pop("levels")[level]
    channels = geometry.pop("channels", None)
    affine = geometry.pop("affine")
    volume = place(data, dims, at["spacing_mm"], affine, start=at["start_mm"], name=image["name"], **geometry)
    return volume if channels is None else volume.assign_coords(c=channels)


def _image(path: Path) -> tuple[zarr.Group, dict[str, Any]]:
    try:
        group = zarr.open_group(path, mode="r", zarr_format=3)
    except (FileNotFoundError, ValueError, KeyError, TypeError, OSError) as error:
        raise FormatError(f"{path} is no Zarr v3 group; is it an OME-Zarr 0.5 folder?") from error
    ome = group.attrs.get("ome")
    if not isinstance(ome, Mapping) or not ome.get("multiscales"):
        raise FormatError(f"{path} is a Zarr group without OME-Zarr 0.5 multiscales; give the folder of one image")
    image: Any = ome["multiscales"]
    return group, dict(image[0])


def _array(group: zarr.Group, name: str, path: Path) -> zarr.Array[Any]:
    try:
        array = group[name]
    except KeyError as error:
        raise FormatError(f"{path} lists level {name!r} but does not hold it; write the store again") from error
    if not isinstance(array, zarr.Array):
        raise FormatError(f"{path}: {name!r} is a group, not an array; write the store again")
    return array


def _scale_and_translation(dataset: Mapping[str, Any], axes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Step and start of z, y, x in mm; an axis that is missing has step 1."""
    to_mm = {"micrometer": 1e-3, "nanometer": 1e-6, "meter": 1e3, "centimeter": 10.0}
    found = {t["type"]: t[t["type"]] for t in dataset["coordinateTransformations"]}
    steps, starts = np.ones(3), np.zeros(3)
    for i, axis in enumerate(axes):
        if axis["name"] in SPATIAL:
            factor = to_mm.get(axis.get("unit", ""), 1.0)
            steps[SPATIAL.index(axis["name"])] = found["scale"][i] * factor
            starts[SPATIAL.index(axis["name"])] = found.get("translation", [0.0] * len(axes))[i] * factor
    return steps, starts


def write(volume: xr.DataArray, path: Path) -> None:
    """Write all levels; images by mean, labels and masks by mode.

    A voxel of any level lies in the middle of those it stands for.
    """
    name = "image" if volume.name is None else str(volume.name)
    volume = _forward(volume)
    data = da.asarray(volume.data)
    if data.dtype == bool:
        data = data.astype(np.uint8)
    group = zarr.open_group(path, mode="w", zarr_format=3)
    steps = volume.mrh.spacing
    starts = np.array([float(np.atleast_1d(volume.coords[d])[0]) for d in SPATIAL])
    levels: list[dict[str, list[float]]] = []
    while True:
        array = _store(group, f"scale{len(levels)}/{name}", data, volume.dims)
        levels.append({"spacing_mm": steps.tolist(), "start_mm": starts.tolist()})
        halved = _halved_axes(dict(zip(volume.dims, data.shape, strict=True)), steps)
        if not halved:
            break
        data = _coarsen(array, volume.dims, halved, volume.attrs["kind"])
        factors = np.array([2 if d in halved else 1 for d in SPATIAL])
        starts = starts + (factors - 1) * steps / 2
        steps = steps * factors
    _describe(group, volume, name, levels)


def _forward(volume: xr.DataArray) -> xr.DataArray:
    """Axes that were reversed are stored the way their distance grows: Zarr has no negative step."""
    backwards = [d for d in SPATIAL if d in volume.dims and volume.sizes[d] > 1 and volume[d][1] < volume[d][0]]
    return volume.isel(dict.fromkeys(backwards, slice(None, None, -1)))


def chunk_shape(sizes: Mapping[Any, int], itemsize: int) -> tuple[int, ...]:
    """Chunk for random patches: all channels, one time, and a cube of voxels.

    Examples
    --------
    >>> chunk_shape({"z": 500, "y": 500, "x": 30}, 2)
    (64, 64, 30)
    >>> chunk_shape({"c": 67, "z": 100, "y": 100, "x": 100}, 2)
    (67, 16, 16, 16)
    """
    channels = sizes.get("c", 1)
    edge = 64
    while edge > 16 and channels * edge**3 * itemsize > CHUNK_BYTES:
        edge //= 2
    limits = {"t": 1, "c": channels}
    return tuple(min(n, limits.get(str(d), edge)) for d, n in sizes.items())


def _store(group: zarr.Group, name: str, data: da.Array, dims: Any) -> zarr.Array[Any]:
    sizes = dict(zip(dims, data.shape, strict=True))
    chunks = chunk_shape(sizes, data.dtype.itemsize)
    shards = tuple(
        c if d in ("t", "c") else c * min(2, math.ceil(n / c)) for d, n, c in zip(dims, data.shape, chunks, strict=True)
    )
    array = group.create_array(
        name, shape=data.shape, dtype=data.dtype, chunks=chunks, shards=shards, compressors=_CODEC, dimension_names=dims
    )
    data = data.rechunk(shards)
    # Blocks that share a shard would overwrite each other's voxels without a word.
    for lengths, shard in zip(data.chunks, shards, strict=True):
        if any(length % shard for length in lengths[:-1]):
            raise FormatError(f"blocks of {data.chunksize} voxels are not whole shards of {shards}")
    target: Any = array
    da.store([data], [target], lock=False)
    return array


def _halved_axes(sizes: Mapping[Any, int], steps: np.ndarray) -> list[str]:
    """Axes to halve next: those not yet coarser than the finest one, once the volume is large enough."""
    lengths = [sizes.get(d, 1) for d in SPATIAL]
    if max(lengths) <= COARSEST:
        return []
    finest = min(s for s, n in zip(steps, lengths, strict=True) if n > 1)
    return [d for d, s, n in zip(SPATIAL, steps, lengths, strict=True) if n > 1 and s < 2 * finest]


def _coarsen(array: zarr.Array[Any], dims: Any, halved: list[str], kind: str) -> da.Array:
    axes = {dims.index(d): 2 for d in halved}
    shards = array.shards or array.chunks
    data = da.from_zarr(array, chunks=tuple(2 * s if i in axes else s for i, s in enumerate(shards)))
    if kind == "image":
        mean: da.Array = da.coarsen(np.mean, data, axes, trim_excess=True)
        return mean.round().astype(data.dtype) if data.dtype.kind in "iu" else mean.astype(data.dtype)
    frequent: da.Array = da.coarsen(_mode, data, axes, trim_excess=True)
    return frequent


def _mode(blocks: np.ndarray, axis: tuple[int, ...] | None = None) -> np.ndarray:
    """Most frequent value over `axis` (all, where None); of equally frequent ones the first in array order."""
    axis = tuple(range(blocks.ndim)) if axis is None else axis
    last = tuple(range(-len(axis), 0))
    values = np.moveaxis(blocks, axis, last).reshape(*(n for i, n in enumerate(blocks.shape) if i not in axis), -1)
    counts = sum((values[..., i : i + 1] == values).astype(np.uint8) for i in range(values.shape[-1]))
    return np.take_along_axis(values, np.argmax(counts, -1)[..., None], -1)[..., 0]


def _describe(group: zarr.Group, volume: xr.DataArray, name: str, levels: list[dict[str, list[float]]]) -> None:
    """Write the metadata, last: a store without it does not open."""
    kinds = {"t": {"type": "time"}, "c": {"type": "channel"}}
    axes = [{"name": d, **kinds.get(str(d), {"type": "space", "unit": "millimeter"})} for d in volume.dims]
    affine = volume.mrh.affine
    # Along each axis, the world coordinate it follows most, counted the way the axis runs.
    nearest = np.argmax(np.abs(affine[:3, :3]), axis=0)
    origin = affine[nearest, 3] * np.sign(affine[nearest, range(3)])
    datasets = []
    for level, at in enumerate(levels):
        scale = dict(zip(SPATIAL, at["spacing_mm"], strict=True))
        shift = dict(zip(SPATIAL, (origin + at["start_mm"]).tolist(), strict=True))
        transforms = [
            {"type": "scale", "scale": [scale.get(str(d), 1.0) for d in volume.dims]},
            {"type": "translation", "translation": [shift.get(str(d), 0.0) for d in volume.dims]},
        ]
        datasets.append({"path": f"scale{level}/{name}", "coordinateTransformations": transforms})
    kept = {key: volume.attrs[key] for key in _ATTRS if key in volume.attrs} | {"levels": levels}
    if "c" in volume.dims and "c" in volume.coords:
        kept["channels"] = [str(c) for c in volume.c.values]
    _nifti_header(group, volume)
    multiscale: Any = {"name": name, "axes": axes, "datasets": datasets}
    group.attrs.update({"ome": {"version": "0.5", "multiscales": [multiscale]}, "mrh": kept})


def _nifti_header(group: zarr.Group, volume: xr.DataArray) -> None:
    """The 348 bytes of a NIfTI-1 header of level 0 in x, y, z order, as nifti-zarr keeps them."""
    import nibabel as nib

    grid = volume.mrh.grid
    if max(grid.shape) > np.iinfo(np.int16).max:
        return
    header = nib.Nifti1Header()
    header.set_data_shape(grid.shape[::-1])
    header.set_sform(grid.affine[:, [2, 1, 0, 3]], "scanner")
    header.set_zooms(grid.spacing[::-1])
    header.set_xyzt_units("mm")
    raw = np.frombuffer(header.binaryblock, dtype=np.uint8)
    group.create_array("nifti", data=raw, chunks=raw.shape)
