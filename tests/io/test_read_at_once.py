"""Bytes in memory while the smallest part of a file is read, as readers state them for budgets."""

import re
import tracemalloc

import h5py
import imagecodecs
import nibabel as nib
import numpy as np
import pytest
import tifffile
from scipy.io import netcdf_file

import mrhdata
from mrhdata.errors import ParameterError
from mrhdata.volume.box import Box
from mrhdata.volume.construct import from_array
from mrhdata.volume.file_arrays import bytes_at_once, file_of

PLANES = np.random.default_rng(0).integers(0, 3000, (4, 800, 900)).astype(np.uint16)
ONE_STRIP = {"compression": "zlib", "rowsperstrip": 800, "photometric": "minisblack"}


def tiff(folder):
    """Write one file, whose planes are one strip each."""
    tifffile.imwrite(folder / "a.tif", PLANES, **ONE_STRIP)
    return folder / "a.tif"


def tiff_planes(folder):
    """Write a file per plane, of one strip each."""
    for i, plane in enumerate(PLANES):
        tifffile.imwrite(folder / f"p{i}.tif", plane, **ONE_STRIP)
    return folder


def png_planes(folder):
    """Write a PNG per plane."""
    for i, plane in enumerate(PLANES):
        (folder / f"p{i}.png").write_bytes(imagecodecs.png_encode(plane))
    return folder


def text(folder):
    """Write an NRRD of hexadecimal text."""
    header = "NRRD0004\ntype: uint16\ndimension: 3\nsizes: 900 800 4\nencoding: hex\nendian: little\n\n"
    (folder / "a.nrrd").write_bytes(header.encode() + PLANES.tobytes().hex().encode())
    return folder / "a.nrrd"


@pytest.mark.parametrize("write", [tiff, tiff_planes, png_planes, text])
def test_peak_of_reading_a_voxel_is_at_most_the_stated_one(tmp_path, write):
    """The memory that Python and its libraries request while one voxel is read is at least a part of the statement."""
    path = write(tmp_path)
    stated = bytes_at_once(mrhdata.read(path).data)
    file = file_of(mrhdata.read(path).data)
    tracemalloc.start()
    try:
        file[Box((0, 0, 0), (1, 1, 1)).slices]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stated > PLANES[0].nbytes
    assert stated / 4 < peak <= 1.05 * stated


def test_compressed_chunks_of_hdf5_and_minc_are_counted(tmp_path):
    """HDF5 decodes a whole chunk for one voxel, and reads any part of an array without compression."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("packed", data=PLANES, chunks=PLANES.shape, compression="gzip")
        file.create_dataset("plain", data=PLANES, chunks=PLANES.shape)
        file.create_dataset("rows", data=PLANES, chunks=(1, 8, 900), compression="gzip")
    sizes = {name: bytes_at_once(mrhdata.read(tmp_path / "a.h5", dataset=name).data) for name in ("plain", "rows")}
    assert sizes == {"plain": 0, "rows": 2 * 8 * 900 * 2}
    assert bytes_at_once(mrhdata.read(tmp_path / "a.h5", dataset="packed").data) == 2 * PLANES.nbytes
    mrhdata.write(from_array(PLANES, spacing=(1, 1, 1)), tmp_path / "a.mnc")
    plane = PLANES[0].size
    assert plane * (2 + 2 * 8) < bytes_at_once(mrhdata.read(tmp_path / "a.mnc").data) < 2 * plane * (2 + 2 * 8)


def test_minc_1_is_read_as_a_whole(tmp_path):
    """Opening a file reads all of its stored values."""
    with netcdf_file(tmp_path / "a.mnc", "w") as file:
        for name, size in zip(("zspace", "yspace", "xspace"), PLANES.shape, strict=True):
            file.createDimension(name, size)
            axis = file.createVariable(name, "d", ())
            axis.step, axis.start, axis.spacing = 1.0, 0.0, b"regular__"
        image = file.createVariable("image", "h", ("zspace", "yspace", "xspace"))
        image[:] = PLANES.astype(np.int16)
        image.signtype, image.valid_range = b"signed__", np.array([0.0, 3000.0])
        for name, value in (("image-min", 0.0), ("image-max", 3000.0)):
            limit = file.createVariable(name, "d", ("zspace",))
            limit[:] = value
    assert type(nib.load(tmp_path / "a.mnc")) is nib.Minc1Image
    volume = mrhdata.read(tmp_path / "a.mnc")
    assert bytes_at_once(volume.data) == PLANES.nbytes + (2 + 2 * 8) * PLANES[0].size
    np.testing.assert_allclose(volume.transpose("z", "y", "x")[1], PLANES[1])


def test_volume_that_is_computed_from_a_file_needs_what_the_file_needs(tmp_path):
    """Slicing and arithmetic do not hide a file that is read as a whole; values in memory need nothing."""
    mrhdata.write(from_array(PLANES, spacing=(1, 1, 1)), tmp_path / "a.nii.gz")
    volume = mrhdata.read(tmp_path / "a.nii.gz")
    assert bytes_at_once((volume[:1] + 1).data) == bytes_at_once(volume.data) == PLANES.nbytes
    assert bytes_at_once(volume.compute().data) == bytes_at_once(volume.persist().data) == 0


@pytest.mark.parametrize(
    "name", ["b.nii.gz", *(pytest.param(n, marks=pytest.mark.full) for n in ("b.zarr", "b.ome.tif"))]
)
def test_write_refuses_a_budget_below_the_smallest_part(tmp_path, name):
    """The budget that the error names is enough; by default nothing is refused."""
    values = np.random.default_rng(0).integers(0, 3000, (24, 800, 900)).astype(np.uint16)
    mrhdata.write(from_array(values, spacing=(1, 1, 1)), tmp_path / "a.nii.gz")
    volume = mrhdata.read(tmp_path / "a.nii.gz")
    with pytest.raises(ParameterError, match=rf"memory must be at least .* for .*{re.escape(name)}") as caught:
        mrhdata.write(volume, tmp_path / name, memory="36 MB")
    assert not (tmp_path / name).exists()
    mrhdata.write(volume, tmp_path / name, memory=re.search(r"at least (\d+ MB)", str(caught.value))[1])
    stored = mrhdata.read(tmp_path / name).transpose("z", "y", "x")
    np.testing.assert_array_equal(stored[0], volume.transpose("z", "y", "x")[0])
