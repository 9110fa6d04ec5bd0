"""One small valid source of every kind that the package reads, and how each is read to its end."""

from pathlib import Path

import h5py
import imagecodecs
import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK as sitk
import tifffile

import mrhdata
from mrhdata.datasets import catalog
from mrhdata.io.cell_tables import read_points, write_points
from mrhdata.registration import itk
from mrhdata.registration.transforms import Affine, Displacement, Transform
from mrhdata.volume.construct import from_array
from tests.io.dicom.files import enhanced, numbered, place

SHAPE = (9, 10, 11)


def _volume():
    values = np.random.default_rng(0).integers(0, 999, SHAPE).astype(np.int16)
    return from_array(values, affine=np.diag([1, 2, 3, 1]), name="a")


def _write(path: Path) -> None:
    mrhdata.write(_volume(), path)


def _save_nibabel(path: Path) -> None:
    kind = {".mgz": nib.MGHImage, ".mgh": nib.MGHImage}.get(path.suffix, nib.Nifti1Image)
    nib.save(kind(_volume().values.T.astype(np.int16 if kind is nib.Nifti1Image else np.int32), np.eye(4)), path)


def _save_itk(path: Path) -> None:
    compress = "compressed" in path.name
    sitk.WriteImage(sitk.GetImageFromArray(_volume().values), str(path), useCompression=compress)


def _save_tiff(path: Path) -> None:
    if "imagej" in path.name:
        tifffile.imwrite(path, _volume().values, photometric="minisblack", imagej=True)
    else:
        tifffile.imwrite(path, _volume().values, photometric="minisblack", compression="zlib", tile=(16, 16))


def _save_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_dataset("volume", data=_volume().values, chunks=(5, 5, 9), compression="gzip")
        data.attrs["element_size_um"] = [3.0, 2.0, 1.0]


def _save_planes(path: Path) -> None:
    path.mkdir()
    for number, plane in enumerate(_volume().values.astype(np.uint16)[:4]):
        (path / f"plane_{number:03}.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(plane)))


def _save_model(path: Path) -> None:
    mrhdata.models.save(mrhdata.models.create("mrhnet", in_channels=2, loop_blocks=1), path)


def _save_catalogue(path: Path) -> None:
    path.mkdir()
    mrhdata.write(_volume(), path / "a.nii")
    catalog.write(path / "catalog.yaml", "One", {"a": ("a.nii", {"subject": "1", "role": "t2w"})})


def _save_points(path: Path) -> None:
    table = pd.DataFrame(np.arange(12.0).reshape(4, 3), columns=["z", "y", "x"])
    write_points(table, path, from_array(np.zeros((12, 12, 12), np.uint8), spacing=(1, 1, 1)))


def _save_transform(path: Path) -> None:
    itk.write(Transform([Affine(np.diag([1.0, 2, 3, 1]))]), path)


def _save_field(path: Path) -> None:
    field = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
    itk.write(Transform([Displacement(field, np.diag([3.0, 2, 1, 1]))]), path)


def _save_frames(path: Path) -> None:
    enhanced(path, numbered(4), [place((0, 0, 3 * z)) for z in range(4)])


def _read_volume(path: Path) -> np.ndarray:
    volume = mrhdata.read(path)
    assert volume.mrh.grid
    # Only a corner of a volume that claims to be larger than memory is read.
    part = volume if volume.nbytes < 100_000_000 else volume.isel({d: slice(0, 2) for d in volume.dims})
    return np.asarray(part)


def _read_model(path: Path) -> np.ndarray:
    return np.concatenate([value.ravel().numpy() for value in mrhdata.models.load(path).state_dict().values()])


def _read_catalogue(path: Path) -> np.ndarray:
    entries = mrhdata.open_catalog(path / "catalog.yaml")
    return np.concatenate([_read_volume_of(entries[name]).ravel() for name in entries])


def _read_volume_of(source) -> np.ndarray:
    return np.asarray(source.read())


def _read_points(path: Path) -> np.ndarray:
    return read_points(path).select_dtypes("number").to_numpy()


def _read_transform(path: Path) -> np.ndarray:
    return itk.read(path).points(np.eye(3))


#: Name of a source -> how it is made and read.
SOURCES = {
    **dict.fromkeys(("a.nii.gz", "a.nrrd", "a.mnc", "a.ome.tif", "a.zarr"), (_write, _read_volume)),
    **dict.fromkeys(("b.nii", "b.mgz", "b.img"), (_save_nibabel, _read_volume)),
    **dict.fromkeys(("c.mha", "c.nrrd", "compressed.mha", "c.mhd"), (_save_itk, _read_volume)),
    **dict.fromkeys(("imagej.tif", "tiles.tif"), (_save_tiff, _read_volume)),
    "volume.h5": (_save_hdf5, _read_volume),
    "planes": (_save_planes, _read_volume),
    "network": (_save_model, _read_model),
    "catalogue": (_save_catalogue, _read_catalogue),
    **dict.fromkeys(("cells.xml", "cells.csv", "cells.parquet"), (_save_points, _read_points)),
    **dict.fromkeys(("affine.tfm", "affine.h5"), (_save_transform, _read_transform)),
    **dict.fromkeys(("field.nii.gz", "field.mha"), (_save_field, _read_transform)),
    "frames.dcm": (_save_frames, _read_volume),
}
#: Sources whose voxels have a checksum -> last bytes of their header, which has none. Damaged voxels must be refused.
WITH_CHECKSUM = {
    **dict.fromkeys(("a.nii.gz", "b.mgz", "a.zarr", "planes"), b""),
    **{"a.nrrd": b"\n\n", "compressed.mha": b"LOCAL\n"},
}
#: Sources that hold as many values as they say: a truncated one must be told.
WITH_COUNT = tuple(name for name in SOURCES if name not in ("cells.csv", "catalogue", "affine.tfm"))
