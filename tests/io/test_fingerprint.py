"""Nothing is taken for finished that was made from something else."""

import os

import dask.array as da
import h5py
import numpy as np
import pytest
import tifffile
import torch
import zarr

import mrhdata
from mrhdata.errors import FormatError
from mrhdata.io.fingerprint import file_state, fingerprint
from mrhdata.volume.construct import from_array


def cube(value, n=8):
    return from_array(np.full((n, n, n), value, np.float32), spacing=(1, 1, 1), name="cube")


def test_a_file_of_a_folder_that_changes_changes_the_folder(tmp_path):
    for name in ("a/b/1", "a/2"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    before = file_state(tmp_path / "a")
    assert file_state(tmp_path / "a") == before
    (tmp_path / "a/b/1").write_text("yy")
    after = file_state(tmp_path / "a")
    (tmp_path / "a/b/1").rename(tmp_path / "a/1")
    assert len({before, after, file_state(tmp_path / "a")}) == 3


def _zarr(path, value):
    mrhdata.write(cube(value), path / "a.zarr", overwrite=True)
    return mrhdata.read(path / "a.zarr")


def _edited(path, value):
    """One voxel of a store, changed in place."""
    if not (path / "a.zarr").exists():
        mrhdata.write(cube(1), path / "a.zarr")
    zarr.open_array(path / "a.zarr" / "scale0" / "cube", mode="r+")[0, 0, 0] = value
    return mrhdata.read(path / "a.zarr")


def _planes(path, value):
    for i in range(3):
        tifffile.imwrite(path / f"p{i}.tif", np.full((4, 4), value if i == 1 else 0, np.uint8))
    # Something else in the folder, such as what is made of the planes, is none of them.
    (path / f"other{value}.txt").write_text("x")
    return mrhdata.read(path / "p*.tif", spacing=1)


def _header_and_voxels(path, value):
    import nibabel as nib

    header = (path / "a.hdr").read_bytes() if (path / "a.hdr").exists() else None
    state = (path / "a.hdr").stat() if header else None
    nib.save(nib.Nifti1Pair(np.full((4, 4, 4), value, np.uint8), np.eye(4)), path / "a.img")
    if header:
        (path / "a.hdr").write_bytes(header)
        os.utime(path / "a.hdr", ns=(state.st_atime_ns, state.st_mtime_ns))
    return mrhdata.read(path / "a.hdr")


def _hdf5(path, value):
    if not (path / "a.h5").exists():
        with h5py.File(path / "a.h5", "w") as file:
            for i in (1, 7):
                file[f"d{i}"] = np.full((4, 4, 4), i, np.uint8)
    return mrhdata.read(path / "a.h5", dataset=f"d{value}", spacing=1)


def _dask(path, value):
    zarr.create_array(path / "d", shape=(4, 4, 4), dtype="u1", overwrite=True)[...] = value
    return from_array(da.from_zarr(path / "d"), spacing=(1, 1, 1)) + 1


def _arrays(path, value):
    return cube(value)


def test_what_lies_beside_planes_is_none_of_them(tmp_path):
    first = fingerprint(_planes(tmp_path, 1))
    (tmp_path / "map.zarr").mkdir()
    assert fingerprint(mrhdata.read(tmp_path / "p*.tif", spacing=1)) == first


@pytest.mark.parametrize("make", [_zarr, _edited, _planes, _header_and_voxels, _hdf5, _dask, _arrays])
def test_what_was_written_anew_is_another_volume(tmp_path, make):
    """And what was not is the same."""
    first = fingerprint(make(tmp_path, 1))
    assert fingerprint(make(tmp_path, 7)) != first
    if make in (_hdf5, _arrays):
        assert fingerprint(make(tmp_path, 1)) == first


def test_a_map_is_not_taken_for_one_of_new_voxels(tmp_path):
    """Of an input that was written anew, and of a mask that was edited where it lies."""
    network = torch.nn.Conv3d(1, 1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 1.0)

    def predicted(overwrite=False):
        volume, mask = (mrhdata.read(tmp_path / f"{name}.zarr") for name in ("in", "mask"))
        return mrhdata.predict(
            network, volume, tmp_path / "out.zarr", mask=mask, mode="dense", overwrite=overwrite, progress=False
        )

    mrhdata.write(cube(1), tmp_path / "in.zarr")
    mrhdata.write(cube(1).astype("uint8").assign_attrs(kind="mask"), tmp_path / "mask.zarr")
    assert float(predicted().sum()) == 512
    assert float(predicted().sum()) == 512
    mrhdata.write(cube(7), tmp_path / "in.zarr", overwrite=True)
    with pytest.raises(FormatError, match="exists"):
        predicted()
    assert float(predicted(overwrite=True).sum()) == 7 * 512
    zarr.open_array(tmp_path / "mask.zarr" / "scale0" / "cube", mode="r+")[:4] = 0
    with pytest.raises(FormatError, match="exists"):
        predicted()
    assert float(predicted(overwrite=True).sum()) == 7 * 256


def test_stores_of_one_name_are_converted_each(tmp_path):
    for who, value in (("s1", 1), ("s2", 2)):
        (tmp_path / who).mkdir()
        mrhdata.write(cube(value), tmp_path / who / "anat.zarr")
    mrhdata.convert(tmp_path / "s1" / "anat.zarr", tmp_path / "o.zarr")
    with pytest.raises(FormatError, match="exists"):
        mrhdata.convert(tmp_path / "s2" / "anat.zarr", tmp_path / "o.zarr")
    assert float(mrhdata.read(tmp_path / "o.zarr").max()) == 1


def test_classes_of_two_images_of_a_store_are_counted_each(tmp_path):
    """The index beside a store knows which of its images it counts."""
    from mrhdata.patching.samplers import ClassBalanced

    group = zarr.open_group(tmp_path / "img.zarr", mode="w", zarr_format=3)
    group.create_group("labels")
    for name, at in (("nuclei", 2), ("cells", 9)):
        values = np.zeros((16, 16, 16), np.uint8)
        values[at] = 1
        volume = from_array(values, spacing=(1, 1, 1), kind="labels", name=name)
        mrhdata.write(volume, tmp_path / f"{name}.zarr")
        (tmp_path / f"{name}.zarr").rename(tmp_path / "img.zarr" / "labels" / name)
        labels = mrhdata.read(tmp_path / "img.zarr", dataset=f"labels/{name}")
        p = mrhdata.patches(labels, shape=1, sampler=ClassBalanced(20, labels, {1: 1}))
        assert set(p.positions[:, 0]) == {at}
