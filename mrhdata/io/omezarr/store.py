"""OME-Zarr 0.5 on Zarr v3: sharded, multiscale, exact affine kept. OME-Zarr 0.4 is read too.

The levels lie at ``scale0/<name>``, ``scale1/<name>`` and so on, with dimension names, so that
``xarray.open_zarr(store, group="scale0")`` opens one too. OME-Zarr 0.5 has no affine: its scale and
translation give the axis-aligned part, the group's ``mrh`` attributes hold the exact geometry, and
``nifti`` the NIfTI-1 header as nifti-zarr stores it.
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

from mrhdata.errors import FormatError
from mrhdata.io.omezarr.chunks import ZarrReader
from mrhdata.io.omezarr.pyramid import Level, levels
from mrhdata.volume.construct import DIMS, SPATIAL, UNORIENTED, place
from mrhdata.volume.file_arrays import DAMAGE, FileArray, format_errors, in_chunks, source_of
from mrhdata.volume.overrides import TO_MM, UNITS

if TYPE_CHECKING:
    import xarray as xr

#: Bytes that writing holds at once, where the caller sets no other budget.
MEMORY = 1_000_000_000

_ATTRS = ("affine", "space", "kind", "units", "modality", "provenance", "source_axes", "spacing_stated")
_VERSIONS = ("0.4", "0.5")
OPTIONS = ("level", "dataset", "storage_options")


def codec(dtype: np.dtype[Any]) -> BloscCodec:
    """How voxels are compressed: Blosc with bit shuffle, of zstd for whole numbers and LZ4 for others.

    The low bits of real numbers are noise, which zstd makes little smaller (of MRI volumes 1 to 6 percent)
    and spends most of its time on.
    """
    whole = np.dtype(dtype).kind in "iub"
    return BloscCodec(cname="zstd" if whole else "lz4", clevel=3 if whole else 5, shuffle="bitshuffle")


def read(
    path: Path | str, *, level: int = 0, dataset: str | None = None, storage_options: dict[str, Any] | None = None
) -> xr.DataArray:
    """Read one level of an image; `dataset` names the image within a store that holds several."""
    group, version, image = _image(path, dataset, storage_options)
    level = len(image["datasets"]) - 1 if level == -1 else level
    place = {"path": path, "level": level, "dataset": dataset, "storage_options": storage_options}
    with format_errors(path):
        return _level(group, version, image, place)


def level_for(volume: xr.DataArray, spacing: np.ndarray) -> xr.DataArray:
    """The coarsest stored level of a volume that is still as fine as a spacing (z, y, x) in mm.

    The volume itself where there is none, and where it is no longer what its file says: another kind (labels are
    halved otherwise than images), or a header that was put right.
    """
    source = source_of(volume.data) if isinstance(volume.data, da.Array) else None
    place = source.part.place if source is not None and isinstance(source.part, ZarrReader) else None
    if place is None or not set(SPATIAL) <= set(volume.dims) or not _as_stored(volume, read(**place)):
        return volume
    image = _image(place["path"], place["dataset"], place["storage_options"])[2]
    found = volume
    for level in range(place["level"] + 1, len(image["datasets"])):
        half = read(**{**place, "level": level})
        if (half.mrh.grid.spacing > 1.01 * spacing).any():
            break
        found = half
    return found


def _as_stored(volume: xr.DataArray, stored: xr.DataArray) -> bool:
    return bool(volume.attrs["kind"] == stored.attrs["kind"] and volume.mrh.grid.same_as(stored.mrh.grid))


def image_metadata(path: Path | str) -> dict[str, Any]:
    """The multiscale metadata of an image."""
    return _image(path, None, None)[2]


def _image(
    path: Path | str, dataset: str | None, storage_options: dict[str, Any] | None
) -> tuple[zarr.Group, str, dict[str, Any]]:
    """The group of an image, its version and its multiscale metadata."""
    try:
        group = zarr.open_group(path, path=dataset, mode="r", storage_options=storage_options, use_consolidated=False)
        attrs = dict(group.attrs)
    except DAMAGE as error:
        where = f"{path} (image {dataset!r})" if dataset else path
        raise FormatError(
            f"{where} is no Zarr group that can be read; is it an OME-Zarr folder? ({_short(error)})"
        ) from error
    ome: Any = attrs.get("ome", attrs)
    found = ome.get("multiscales") if isinstance(ome, Mapping) else None
    if not isinstance(found, list) or not found or not isinstance(found[0], Mapping):
        listed = "" if "://" in str(path) else ", ".join(_groups(group)[:20])
        remedy = f"choose one of {listed} with dataset=" if listed else "give the folder of one image"
        raise FormatError(f"{path} is a Zarr group without OME-Zarr multiscales; {remedy}")
    version = str(ome.get("version") or found[0].get("version") or "0.4")
    if version not in _VERSIONS:
        raise FormatError(f"{path} is OME-Zarr {version}; versions {' and '.join(_VERSIONS)} can be read")
    return group, version, dict(found[0])


def _groups(group: zarr.Group) -> list[str]:
    with warnings.catch_warnings():
        # Whatever else lies in the folder is no group.
        warnings.simplefilter("ignore")
        return sorted(group.group_keys())


def _level(group: zarr.Group, version: str, image: dict[str, Any], asked: dict[str, Any]) -> xr.DataArray:
    path, level = asked["path"], asked["level"]
    if not 0 <= level < len(image["datasets"]):
        raise FormatError(f"{path} has the levels 0 to {len(image['datasets']) - 1}, not {level}")
    dataset = image["datasets"][level]
    array = _array(group, dataset["path"], path)
    dims = [str(axis["name"]) for axis in image["axes"]]
    if not set(dims) <= set(DIMS) or len(dims) != array.ndim or len(set(dims)) != len(dims):
        raise FormatError(f"{path} has axes {dims} over an array of shape {array.shape}; axes {DIMS} can be read")
    data = in_chunks(
        FileArray(array.shape, array.dtype, ZarrReader(array, asked), Path(str(path))), array.shards or array.chunks
    )
    attrs: Any = group.attrs.asdict()
    stored = attrs.get("mrh")
    if stored is not None:
        return _ours(data, dims, dict(stored), level, image)
    order = [dims.index(d) for d in DIMS if d in dims]
    steps, starts = _scale_and_translation(image, dataset)
    # Labels lie in a group of that name, whether they say what they are or not.
    named = "labels" in (*Path(str(path)).parts[-2:-1], *Path(group.path).parts[-2:-1]) and array.dtype.kind in "iu"
    kind = "labels" if named or "image-label" in attrs.get("ome", attrs) else "image"
    volume = place(
        # A Dask array that is transposed to itself no longer shows the file that it is.
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
        raise FormatError(f"{path}: level {level} has no scale; version {version} asks for one")
    return volume.assign_coords(c=names) if names and len(names) == volume.sizes.get("c") else volume


def _ours(data: da.Array, dims: list[str], stored: dict[str, Any], level: int, image: dict[str, Any]) -> xr.DataArray:
    at = stored.pop("levels")[level]
    channels = stored.pop("channels", None)
    affine = stored.pop("affine")
    volume = place(data, dims, at["spacing_mm"], affine, start=at["start_mm"], name=image["name"], **stored)
    return volume if channels is None else volume.assign_coords(c=channels)


def _array(group: zarr.Group, name: str, path: Path | str) -> zarr.Array[Any]:
    try:
        array = group[name]
    except KeyError as error:
        raise FormatError(f"{path} lists level {name!r} but does not hold it; write the store again") from error
    if not isinstance(array, zarr.Array):
        raise FormatError(f"{path}: {name!r} is a group, not an array; write the store again")
    return array


def _scale_and_translation(image: Mapping[str, Any], dataset: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Step and start of z, y, x in mm; an axis that is missing has the step of the finest other."""
    axes = image["axes"]
    scale, shift = np.ones(len(axes)), np.zeros(len(axes))
    # Those of the whole image come after those of the level.
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
    made, name = create(volume, path)
    paths = [path / level_path(n, name) for n in range(len(made))]
    Writer(VolumeBlocks(volume), made, paths, volume.attrs["kind"], memory).run({}, lambda *_: None)
    finish(volume, path)


def forward(volume: xr.DataArray) -> xr.DataArray:
    """Axes that were reversed are stored the way their distance grows: Zarr has no negative step."""
    backwards = [d for d in SPATIAL if d in volume.dims and volume.sizes[d] > 1 and volume[d][1] < volume[d][0]]
    return volume.isel(dict.fromkeys(backwards, slice(None, None, -1)))


def level_path(level: int, name: str) -> str:
    """Where the array of a level lies within the store."""
    return f"scale{level}/{name}"


def plan(volume: xr.DataArray) -> tuple[list[Level], str]:
    """Levels that a volume whose axes run forward gets, and the name of their arrays."""
    starts = np.array([float(np.atleast_1d(volume.coords[d])[0]) for d in SPATIAL])
    dims = [str(d) for d in volume.dims]
    # A name is a folder: it may not lead out of the store.
    name = re.sub(r"[^\w-]+", "_", "" if volume.name is None else str(volume.name)).strip("_") or "image"
    return levels(dims, volume.shape, volume.dtype.itemsize, volume.mrh.spacing, starts), name


def create(volume: xr.DataArray, path: Path) -> tuple[list[Level], str]:
    """Make the store with empty arrays; without :func:`finish` it does not open as an image."""
    made, name = plan(volume)
    group = zarr.open_group(path, mode="w", zarr_format=3)
    for n, level in enumerate(made):
        group.create_array(
            level_path(n, name),
            shape=level.shape,
            dtype=np.uint8 if volume.dtype == bool else volume.dtype,
            chunks=level.chunks,
            shards=level.shards,
            compressors=codec(volume.dtype),
            dimension_names=level.dims,
        )
    return made, name


def finish(volume: xr.DataArray, path: Path) -> None:
    """Write the metadata of a store whose arrays are complete."""
    made, name = plan(volume)
    group = zarr.open_group(path, mode="r+", zarr_format=3)
    _describe(group, volume, name, [{"spacing_mm": list(n.spacing_mm), "start_mm": list(n.start_mm)} for n in made])


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


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
        datasets.append({"path": level_path(level, name), "coordinateTransformations": transforms})
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
    group.create_array("nifti", data=raw, chunks=raw.shape, overwrite=True)
