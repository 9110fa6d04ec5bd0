"""OME-Zarr of mrhdata and of other programs: one level of an image, as a volume.

The levels of mrhdata's own stores (:mod:`mrhdata.io.omezarr.layout`) are placed by the exact affine in their ``mrh``
attributes, those of other programs by their coordinate transformations.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from mrhdata.errors import FormatError, ParameterError
from mrhdata.io.omezarr import foreign
from mrhdata.io.omezarr.arrays import open_level
from mrhdata.io.omezarr.chunks import ZarrReader
from mrhdata.io.omezarr.images import Image, images_below, open_image
from mrhdata.io.omezarr.integrity import own_metadata, presence_of
from mrhdata.volume.construct import SPATIAL, place
from mrhdata.volume.file_arrays import FileArray, format_errors, in_chunks, source_of

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

OPTIONS = ("level", "dataset", "storage_options")


def read(
    path: Path | str, *, level: int = 0, dataset: str | None = None, storage_options: dict[str, Any] | None = None
) -> xr.DataArray:
    """Read one level of an image; `dataset` names the image in a store that contains several."""
    image = open_image(path, dataset, storage_options)
    last = len(image.metadata["datasets"]) - 1
    level = last if level == -1 else level
    if not 0 <= level <= last:
        raise ParameterError(f"level must be 0 to {last} for {path}; got {level}")
    request = {"path": path, "level": level, "dataset": dataset, "storage_options": storage_options}
    stored = own_metadata(image, path)
    if stored is None and (doubt := foreign.doubt_of_level(image, level, path)):
        log.warning("%s: %s. Read level 0, or pass spacing= and origin=", path, doubt)
    with format_errors(path):
        return _read_level(image, stored, request)


def contents(path: Path) -> list[str]:
    """Return a line for each image of a local store, with the option of :func:`mrhdata.read` that chooses it."""
    return [f"dataset={name!r}" for name in images_below(path)]


def level_for(volume: xr.DataArray, spacing: np.ndarray) -> xr.DataArray:
    """Return the coarsest stored level of a volume that is still as fine as a spacing (z, y, x) in mm.

    The volume itself is returned if no coarser level is fine enough, or if options replaced its kind (labels
    are downsampled differently from images) or its geometry. Levels of other programs whose position is in doubt
    are not used.
    """
    source = source_of(volume.data) if isinstance(volume.data, da.Array) else None
    request = source.part.place if source is not None and isinstance(source.part, ZarrReader) else None
    if request is None or not set(SPATIAL) <= set(volume.dims) or not _is_as_stored(volume, read(**request)):
        return volume
    image = open_image(request["path"], request["dataset"], request["storage_options"])
    own = own_metadata(image, request["path"]) is not None
    coarsest = volume
    for level in range(request["level"] + 1, len(image.metadata["datasets"])):
        if not own and foreign.doubt_of_level(image, level, request["path"]):
            break
        candidate = read(**{**request, "level": level})
        if (candidate.mrh.grid.spacing > 1.01 * spacing).any():
            break
        coarsest = candidate
    return coarsest


def _is_as_stored(volume: xr.DataArray, stored: xr.DataArray) -> bool:
    return bool(volume.attrs["kind"] == stored.attrs["kind"] and volume.mrh.grid.same_as(stored.mrh.grid))


def image_metadata(path: Path | str) -> dict[str, Any]:
    """Return the multiscale metadata of an image."""
    return open_image(path, None, None).metadata


def _read_level(image: Image, stored: dict[str, Any] | None, request: Mapping[str, Any]) -> xr.DataArray:
    path, level = request["path"], request["level"]
    name = str(image.metadata["datasets"][level]["path"])
    record = None if stored is None else stored.get("arrays", {}).get(name)
    array = open_level(image.group, name, path, complete=record is not None)
    if len(image.axes) != array.ndim:
        raise FormatError(f"{path} has the axes {image.axes} but an array of shape {list(array.shape)}")
    reader = ZarrReader(array, request, presence_of(array, record, path))
    data = in_chunks(FileArray(array.shape, array.dtype, reader, Path(str(path))), array.shards or array.chunks)
    if stored is None:
        return foreign.placed(data, image, level, path)
    return _own_volume(data, image, stored, level)


def _own_volume(data: da.Array, image: Image, stored: Mapping[str, Any], level: int) -> xr.DataArray:
    """Return a level of a store of mrhdata, placed by its exact affine."""
    attrs = {
        key: value for key, value in stored.items() if key not in ("digest", "arrays", "levels", "channels", "times_s")
    }
    geometry, affine = stored["levels"][level], attrs.pop("affine")
    volume = place(
        data,
        image.axes,
        geometry["spacing_mm"],
        affine,
        start=geometry["start_mm"],
        name=image.metadata["name"],
        **attrs,
    )
    if "channels" in stored:
        volume = volume.assign_coords(c=stored["channels"])
    if "times_s" in stored:
        volume = volume.assign_coords(t=("t", np.asarray(stored["times_s"], dtype=np.float64), {"units": "s"}))
    return volume
