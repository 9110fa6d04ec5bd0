"""OME-Zarr stores as other programs write them, for tests."""

import numpy as np
import zarr

SCALE = {"type": "scale", "scale": [2.0, 0.5, 0.5]}


def axes(unit="micrometer", names="zyx"):
    """Return spatial axes with one unit, or without any for None."""
    return [{"name": d, "type": "space", **({} if unit is None else {"unit": unit})} for d in names]


def image(levels, *, unit="micrometer", version="0.4", transforms=None, **entries):
    """Return the metadata of an image whose levels are arrays ``0``, ``1``, each with a list of transformations."""
    listed = transforms or [[SCALE]] * len(levels)
    datasets = [{"path": str(n), "coordinateTransformations": t} for n, t in enumerate(listed)]
    return {"version": version, "name": "brain", "axes": axes(unit), "datasets": datasets} | entries


def write_image(path, *levels, version="0.4", chunks=(2, 2, 2), array=None, attrs=None, **metadata):
    """Write arrays and the metadata of one image; return the path."""
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    for n, values in enumerate(levels):
        group.create_array(str(n), data=values, chunks=chunks, **(array or {}))
    listed = {"multiscales": [image(levels, version=version, **metadata)]}
    group.attrs.update((listed if version == "0.4" else {"ome": {"version": version, **listed}}) | (attrs or {}))
    return path


def numbered(shape=(3, 4, 5), dtype=np.uint16):
    """Return an array of distinct values."""
    return np.arange(1, 1 + np.prod(shape)).reshape(shape).astype(dtype)
