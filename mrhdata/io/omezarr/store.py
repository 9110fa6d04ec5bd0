"""OME-Zarr 0.5 on Zarr v3: sharded, multiscale, with the exact affine. OME-Zarr 0.4 can be read.

The levels are stored at ``scale0/<name>``, ``scale1/<name>`` and so on, with dimension names, so that
``xarray.open_zarr(store, group="scale0")`` opens a level. OME-Zarr 0.5 has no affine: its scale and
translation give the axis-aligned part, the group's ``mrh`` attributes the exact geometry, and ``nifti``
is the NIfTI-1 header as nifti-zarr stores it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import zarr
from zarr.codecs import BloscCodec

from mrhdata.errors import FormatError, ParameterError
from mrhdata.io.omezarr.chunks import ZarrReader
from mrhdata.io.omezarr.pyramid import Level, levels
from mrhdata.volume.construct import DIMS, SPATIAL, UNORIENTED, place
from mrhdata.volume.file_arrays import DAMAGE, FileArray, format_errors, in_chunks, source_of
from mrhdata.volume.overrides import TO_MM, UNITS

if TYPE_CHECKING:
    import xarray as xr

#: Default memory budget of writing, in bytes.
MEMORY = 1_000_000_000

_ATTRS = ("affine", "space", "kind", "units", "modality", "provenance", "source_axes", "assumed")
_VERSIONS = ("0.4", "0.5")
OPTIONS = ("level", "dataset", "storage_options")


def codec(dtype: np.dtype[Any]) -> BloscCodec:
    """Return the compressor: Blosc with bit shuffle, zstd for whole numbers and LZ4 for floating point.

    The low bits of floating-point values are noise. There zstd saves only 1 to 6 percent (MRI volumes) and
    spends most of its time.
    """
    whole = np.dtype(dtype).kind in "iub"
    return BloscCodec(cname="zstd" if whole else "lz4", clevel=3 if whole else 5, shuffle="bitshuffle")


def read(
    path: Path | str, *, level: int = 0, dataset: str | None = None, storage_options: dict[str, Any] | None = None
) -> xr.DataArray:
    """Read one level of an image; `dataset` names the image in a store that contains several."""
    group, version, image = _open_image(path, dataset, storage_options)
    with format_errors(path):
        last = len(image["datasets"]) - 1
    level = last if level == -1 else level
    if not 0 <= level <= last:
        raise ParameterError(f"level must be 0 to {last} for {path}; got {level}")
    request = {"path": path, "level": level, "dataset": dataset, "storage_options": storage_options}
    with format_errors(path):
        return _read_level(group, version, image, request)


def level_for(volume: xr.DataArray, spacing: np.ndarray) -> xr.DataArray:
    """Return the coarsest stored level of a volume that is still as fine as a spacing (z, y, x) in mm.

    The volume itself is returned if no coarser level is fine enough, or if options replaced its kind (labels
    are downsampled differently from images) or its geometry.
    """
    source = source_of(volume.data) if isinstance(volume.data, da.Array) else None
    request = source.part.place if source is not None and isinstance(source.part, ZarrReader) else None
    if request is None or not set(SPATIAL) <= set(volume.dims) or not _is_as_stored(volume, read(**request)):
        return volume
    image = _open_image(request["path"], request["dataset"], request["storage_options"])[2]
    coarsest = volume
    for level in range(request["level"] + 1, len(image["datasets"])):
        candidate = read(**{**request, "level": level})
        if (candidate.mrh.grid.spacing > 1.01 * spacing).any():
            break
        coarsest = candidate
    return coarsest


def _is_as_stored(volume: xr.DataArray, stored: xr.DataArray) -> bool:
    return bool(volume.attrs["kind"] == stored.attrs["kind"] and volume.mrh.grid.same_as(stored.mrh.grid))


def image_metadata(path: Path | str) -> dict[str, Any]:
    """Return the multiscale metadata of an image."""
    return _open_image(path, None, None)[2]


def _open_image(
    path: Path | str, dataset: str | None, storage_options: dict[str, Any] | None
) -> tuple[zarr.Group, str, dict[str, Any]]:
    """Return the group of an image, its version and its multiscale metadata."""
    try:
        group = zarr.open_group(path, path=dataset, mode="r", storage_options=storage_options, use_consolidated=False)
        attrs = dict(group.attrs)
    except DAMAGE as error:
        label = f"{path} (image {dataset!r})" if dataset else path
        raise FormatError(
            f"{label} is not a readable Zarr group; is it an OME-Zarr folder? ({_first_words(error)})"
        ) from error
    ome: Any = attrs.get("ome", attrs)
    multiscales = ome.get("multiscales") if isinstance(ome, Mapping) else None
    if not isinstance(multiscales, list) or not multiscales or not isinstance(multiscales[0], Mapping):
        listed = "" if "://" in str(path) else ", ".join(_group_names(group)[:20])
        remedy = f"choose one of {listed} with dataset=" if listed else "pass the folder of one image"
        raise FormatError(f"{path} is a Zarr group without OME-Zarr multiscales; {remedy}")
    version = str(ome.get("version") or multiscales[0].get("version") or "0.4")
    if version not in _VERSIONS:
        raise FormatError(f"{path} is OME-Zarr {version}; versions {' and '.join(_VERSIONS)} can be read")
    return group, version, dict(multiscales[0])


def _group_names(group: zarr.Group) -> list[str]:
    with warnings.catch_warnings():
        # zarr-python warns about other files in the folder.
        warnings.simplefilter("ignore")
        return sorted(group.group_keys())


def _read_level(group: zarr.Group, version: str, image: dict[str, Any], request: dict[str, Any]) -> xr.DataArray:
    path, level = request["path"], request["level"]
    dataset = image["datasets"][level]
    array = _open_array(group, dataset["path"], path)
    dims = [str(axis["name"]) for axis in image["axes"]]
    if not set(dims) <= set(DIMS) or len(dims) != array.ndim or len(set(dims)) != len(dims):
        raise FormatError(f"{path} must have axes from {DIMS}; got {dims} for an array of shape {array.shape}")
    data = in_chunks(
        FileArray(array.shape, array.dtype, ZarrReader(array, request), Path(str(path))), array.shards or array.chunks
    )
    attrs: Any = group.attrs.asdict()
    stored = attrs.get("mrh")
    if stored is not None:
        return _from_own_metadata(data, dims, dict(stored), level, image)
    order = [dims.index(d) for d in DIMS if d in dims]
    steps, starts = _scale_and_translation(image, dataset)
    # Labels are stored in a group of that name, with or without metadata that says so.
    in_labels_group = (
        "labels" in (*Path(str(path)).parts[-2:-1], *Path(group.path).parts[-2:-1]) and array.dtype.kind in "iu"
    )
    kind = "labels" if in_labels_group or "image-label" in attrs.get("ome", attrs) else "image"
    volume = place(
        # Even an identity transpose would hide the file behind the Dask array.
        data if order == list(range(len(dims))) else data.transpose(order),
        [dims[i] for i in order],
        steps,
        UNORIENTED,
        start=starts,
        space="scanner",
        kind=kind,
        name=image.get("name") or None,
    )
    names = [str(c.get("label")) for c in attrs.get("ome", attrs).get("omero", {}).get("channels", [])]
    if all(t["type"] != "scale" for t in dataset["coordinateTransformations"]):
        raise FormatError(f"{path}: level {level} has no scale, which OME-Zarr {version} requires")
    return volume.assign_coords(c=names) if names and len(names) == volume.sizes.get("c") else volume


def _from_own_metadata(
    data: da.Array, dims: list[str], stored: dict[str, Any], level: int, image: dict[str, Any]
) -> xr.DataArray:
    geometry = stored.pop("levels")[level]
    channels = stored.pop("channels", None)
    affine = stored.pop("affine")
    volume = place(data, dims, geometry["spacing_mm"], affine, start=geometry["start_mm"], name=image["name"], **stored)
    return volume if channels is None else volume.assign_coords(c=channels)


def _open_array(group: zarr.Group, name: str, path: Path | str) -> zarr.Array[Any]:
    try:
        array = group[name]
    except KeyError as error:
        raise FormatError(f"{path} lists level {name!r} but does not contain it; write the store again") from error
    if not isinstance(array, zarr.Array):
        raise FormatError(f"{path}: {name!r} is a group, not an array; write the store again")
    return array


def _scale_and_translation(image: Mapping[str, Any], dataset: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return spacing and start of z, y, x in mm; a missing axis has the spacing of the finest other axis."""
    axes = image["axes"]
    scale, shift = np.ones(len(axes)), np.zeros(len(axes))
    # Transformations of the image follow those of the level.
    for transform in [*dataset["coordinateTransformations"], *image.get("coordinateTransformations", [])]:
        if transform["type"] == "scale":
            scale, shift = scale * transform["scale"], shift * transform["scale"]
        elif transform["type"] == "translation":
            shift = shift + transform["translation"]
    steps, starts = np.full(3, np.nan), np.zeros(3)
    for i, axis in enumerate(axes):
        if axis["name"] in SPATIAL:
            factor = TO_MM.get(UNITS.get(str(axis.get("unit", "")).lower(), ""), 1.0)
            steps[SPATIAL.index(axis["name"])] = scale[i] * factor
            starts[SPATIAL.index(axis["name"])] = shift[i] * factor
    return np.where(np.isnan(steps), np.nanmin(steps), steps), starts


def write(volume: xr.DataArray, path: Path, memory: int = MEMORY) -> None:
    """Write all levels; images by mean, labels and masks by mode."""
    from mrhdata.io.omezarr.write_blocks import VolumeBlocks
    from mrhdata.io.omezarr.writer import Writer

    volume = forward(volume)
    pyramid, name = create(volume, path)
    paths = [path / level_path(n, name) for n in range(len(pyramid))]
    Writer(VolumeBlocks(volume), pyramid, paths, volume.attrs["kind"], memory).run({}, lambda *_: None)
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
            compressors=codec(volume.dtype),
            dimension_names=level.dims,
        )
    return pyramid, name


def finish(volume: xr.DataArray, path: Path) -> None:
    """Write the metadata of a store whose arrays are complete."""
    pyramid, name = plan(volume)
    group = zarr.open_group(path, mode="r+", zarr_format=3)
    geometries = [{"spacing_mm": list(level.spacing_mm), "start_mm": list(level.start_mm)} for level in pyramid]
    _write_metadata(group, volume, name, geometries)


def _first_words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _write_metadata(group: zarr.Group, volume: xr.DataArray, name: str, levels: list[dict[str, list[float]]]) -> None:
    """Write the metadata; it comes last, because a store without it does not open."""
    kinds = {"t": {"type": "time"}, "c": {"type": "channel"}}
    axes = [{"name": d, **kinds.get(str(d), {"type": "space", "unit": "millimeter"})} for d in volume.dims]
    affine = volume.mrh.affine
    # For each axis the world coordinate that it follows most, in the direction of the axis.
    nearest = np.argmax(np.abs(affine[:3, :3]), axis=0)
    origin = affine[nearest, 3] * np.sign(affine[nearest, range(3)])
    datasets = []
    for level, geometry in enumerate(levels):
        scale = dict(zip(SPATIAL, geometry["spacing_mm"], strict=True))
        shift = dict(zip(SPATIAL, (origin + geometry["start_mm"]).tolist(), strict=True))
        transforms = [
            {"type": "scale", "scale": [scale.get(str(d), 1.0) for d in volume.dims]},
            {"type": "translation", "translation": [shift.get(str(d), 0.0) for d in volume.dims]},
        ]
        datasets.append({"path": level_path(level, name), "coordinateTransformations": transforms})
    stored = {key: volume.attrs[key] for key in _ATTRS if key in volume.attrs} | {"levels": levels}
    if "c" in volume.dims and "c" in volume.coords:
        stored["channels"] = [str(c) for c in volume.c.values]
    _write_nifti_header(group, volume)
    multiscale: Any = {"name": name, "axes": axes, "datasets": datasets}
    group.attrs.update({"ome": {"version": "0.5", "multiscales": [multiscale]}, "mrh": stored})


def _write_nifti_header(group: zarr.Group, volume: xr.DataArray) -> None:
    """Write the 348 bytes of a NIfTI-1 header of level 0 in x, y, z order, as nifti-zarr does."""
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
    group.create_array("nifti", data=raw, chunks=raw.shape, overwrite=True)
