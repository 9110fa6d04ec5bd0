"""OME-Zarr 0.5 on Zarr v3: sharded, multiscale, with the exact affine and checksums.

The levels are stored at ``scale0/<name>``, ``scale1/<name>`` and so on, with dimension names, so that
``xarray.open_zarr(store, group="scale0")`` opens a level. OME-Zarr 0.5 has no affine: its scale and
translation give the axis-aligned part, the group's ``mrh`` attributes the exact geometry, and ``nifti``
is the NIfTI-1 header as nifti-zarr stores it. Every chunk has a CRC-32C.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from mrhdata.io.omezarr.integrity import METHOD, array_record, metadata_digest
from mrhdata.io.omezarr.pyramid import Level, levels
from mrhdata.io.omezarr.read_back import check_written
from mrhdata.volume.construct import SPATIAL

if TYPE_CHECKING:
    import xarray as xr

#: Default memory budget of writing, in bytes.
MEMORY = 1_000_000_000

_ATTRS = ("affine", "space", "kind", "units", "modality", "provenance", "source_axes", "assumed")
_NIFTI = "nifti"


def codec(dtype: np.dtype[Any]) -> BloscCodec:
    """Return the compressor: Blosc with bit shuffle, zstd for whole numbers and LZ4 for floating point.

    The low bits of floating-point values are noise. There zstd saves only 1 to 6 percent (MRI volumes) and
    spends most of its time.
    """
    whole = np.dtype(dtype).kind in "iub"
    return BloscCodec(cname="zstd" if whole else "lz4", clevel=3 if whole else 5, shuffle="bitshuffle")


def write(volume: xr.DataArray, path: Path, memory: int | None = None) -> None:
    """Write all levels; images by mean, labels and masks by mode.

    `memory` is a budget in bytes; without one it is 1 GB, and more if the smallest part of a source needs more.
    """
    from mrhdata.io.omezarr.write_blocks import VolumeBlocks
    from mrhdata.io.omezarr.writer import Writer

    volume = forward(volume)
    pyramid, name = create(volume, path)
    paths = [path / level_path(n, name) for n in range(len(pyramid))]
    budget = MEMORY if memory is None else memory
    Writer(VolumeBlocks(volume, budget), pyramid, paths, volume.attrs["kind"], budget).run({}, lambda *_: None)
    finish(volume, path)


def forward(volume: xr.DataArray) -> xr.DataArray:
    """Return the volume with all axes in the direction of increasing distance, since Zarr has no negative steps."""
    backwards = [d for d in SPATIAL if d in volume.dims and volume.sizes[d] > 1 and volume[d][1] < volume[d][0]]
    return volume.isel(dict.fromkeys(backwards, slice(None, None, -1)))


def level_path(level: int, name: str) -> str:
    """Return the path of a level's array within the store."""
    return f"scale{level}/{name}"


def plan(volume: xr.DataArray) -> tuple[list[Level], str]:
    """Return the levels of a volume whose axes run forward, and the name of their arrays."""
    starts = np.array([float(np.atleast_1d(volume.coords[d])[0]) for d in SPATIAL])
    dims = [str(d) for d in volume.dims]
    # The name becomes a folder, which must lie inside the store.
    name = re.sub(r"[^\w-]+", "_", "" if volume.name is None else str(volume.name)).strip("_") or "image"
    return levels(dims, volume.shape, volume.dtype.itemsize, volume.mrh.spacing, starts), name


def create(volume: xr.DataArray, path: Path) -> tuple[list[Level], str]:
    """Create the store with empty arrays; it opens as an image only after :func:`finish`."""
    pyramid, name = plan(volume)
    group = zarr.open_group(path, mode="w", zarr_format=3)
    for n, level in enumerate(pyramid):
        group.create_array(
            level_path(n, name),
            shape=level.shape,
            dtype=np.uint8 if volume.dtype == bool else volume.dtype,
            chunks=level.chunks,
            shards=level.shards,
            compressors=(codec(volume.dtype), Crc32cCodec()),
            dimension_names=level.dims,
        )
    return pyramid, name


def finish(volume: xr.DataArray, path: Path) -> None:
    """Write the metadata of a store whose arrays are complete, and read a sample of it back."""
    pyramid, name = plan(volume)
    group = zarr.open_group(path, mode="r+", zarr_format=3)
    paths = [level_path(n, name) for n in range(len(pyramid))]
    if _write_nifti_header(group, volume):
        paths.append(_NIFTI)
    arrays = {name: array_record(zarr.open_array(path / name, mode="r")) for name in paths}
    # The metadata come last, because a store without them does not open.
    group.attrs.update(_ome_metadata(volume, pyramid, name) | {"mrh": _own_metadata(volume, pyramid, arrays)})
    stored: Any = dict(zarr.open_group(path, mode="r").attrs)
    group.attrs.update({"mrh": stored["mrh"] | {"digest": metadata_digest(stored)}})
    check_written(volume, path, pyramid, name)


def _own_metadata(volume: xr.DataArray, pyramid: list[Level], arrays: dict[str, Any]) -> dict[str, Any]:
    """Return the exact geometry and the attributes of a volume, and the records of its arrays."""
    geometries = [{"spacing_mm": list(level.spacing_mm), "start_mm": list(level.start_mm)} for level in pyramid]
    stored = {key: volume.attrs[key] for key in _ATTRS if key in volume.attrs}
    stored |= {"levels": geometries, "arrays": arrays}
    if "c" in volume.dims and "c" in volume.coords:
        stored["channels"] = [str(c) for c in volume.c.values]
    times = _times(volume)
    return stored if times is None else stored | {"times_s": times.tolist()}


def _ome_metadata(volume: xr.DataArray, pyramid: list[Level], name: str) -> dict[str, Any]:
    """Return the metadata of OME-Zarr 0.5."""
    affine = volume.mrh.affine
    # For each axis the world coordinate that it follows most, in the direction of the axis.
    nearest = np.argmax(np.abs(affine[:3, :3]), axis=0)
    origin = affine[nearest, 3] * np.sign(affine[nearest, range(3)])
    time, first, step = _time_axis(volume)
    kinds = {"t": time, "c": {"type": "channel"}}
    axes = [{"name": d, **kinds.get(str(d), {"type": "space", "unit": "millimeter"})} for d in volume.dims]
    datasets = []
    for n, level in enumerate(pyramid):
        scale = dict(zip(SPATIAL, level.spacing_mm, strict=True)) | {"t": step}
        shift = dict(zip(SPATIAL, (origin + level.start_mm).tolist(), strict=True)) | {"t": first}
        transforms = [
            {"type": "scale", "scale": [scale.get(str(d), 1.0) for d in volume.dims]},
            {"type": "translation", "translation": [shift.get(str(d), 0.0) for d in volume.dims]},
        ]
        datasets.append({"path": level_path(n, name), "coordinateTransformations": transforms})
    method = {"type": "mean" if volume.attrs["kind"] == "image" else "mode", "metadata": {"method": METHOD}}
    multiscale: dict[str, Any] = {"name": name, "axes": axes, "datasets": datasets, **method}
    return {"ome": {"version": "0.5", "multiscales": [multiscale]}}


def _times(volume: xr.DataArray) -> np.ndarray | None:
    """Return the times of a volume in seconds, or None if it has none."""
    known = "t" in volume.dims and "t" in volume.coords and volume.t.dtype.kind in "iuf"
    return np.asarray(volume.t.values, np.float64) if known and volume.t.attrs.get("units") == "s" else None


def _time_axis(volume: xr.DataArray) -> tuple[dict[str, str], float, float]:
    """Return type and unit of the axis of time, its first time and its step; without unit if it is not regular."""
    times = _times(volume)
    step = 0.0 if times is None or len(times) < 2 else float(times[-1] - times[0]) / (len(times) - 1)
    if times is None or step <= 0 or not np.allclose(np.diff(times), step, rtol=1e-6):
        return {"type": "time"}, 0.0, 1.0
    return {"type": "time", "unit": "second"}, float(times[0]), float(f"{step:.12g}")


def _write_nifti_header(group: zarr.Group, volume: xr.DataArray) -> bool:
    """Write the 348 bytes of a NIfTI-1 header of level 0 in x, y, z order, as nifti-zarr does, if it can hold them."""
    import nibabel as nib

    grid = volume.mrh.grid
    if max(grid.shape) > np.iinfo(np.int16).max:
        return False
    header = nib.Nifti1Header()
    header.set_data_shape(grid.shape[::-1])
    header.set_sform(grid.affine[:, [2, 1, 0, 3]], "scanner")
    header.set_zooms(grid.spacing[::-1])
    header.set_xyzt_units("mm")
    raw = np.frombuffer(header.binaryblock, dtype=np.uint8)
    group.create_array(_NIFTI, data=raw, chunks=raw.shape, compressors=(Crc32cCodec(),), overwrite=True)
    return True
