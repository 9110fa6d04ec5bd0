"""Fingerprints: changed inputs are found, and results of old inputs are not reused."""

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
    """Return a cubic volume of one value."""
    return from_array(np.full((n, n, n), value, np.float32), spacing=(1, 1, 1), name="cube")


def test_folder_state_changes_with_a_file_of_a_subfolder(tmp_path):
    """Changing or moving a file of a subfolder changes the state of the folder."""
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
    """Change one voxel of a store in place."""
    if not (path / "a.zarr").exists():
        mrhdata.write(cube(1), path / "a.zarr")
    zarr.open_array(path / "a.zarr" / "scale0" / "cube", mode="r+")[0, 0, 0] = value
    return mrhdata.read(path / "a.zarr")


def _planes(path, value):
    for i in range(3):
        tifffile.imwrite(path / f"p{i}.tif", np.full((4, 4), value if i == 1 else 0, np.uint8))
    # Other files in the folder, such as results, do not count.
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


def test_fingerprint_of_planes_ignores_other_files(tmp_path):
    """A new store in the folder of the planes does not change their fingerprint."""
    first = fingerprint(_planes(tmp_path, 1))
    (tmp_path / "map.zarr").mkdir()
    assert fingerprint(mrhdata.read(tmp_path / "p*.tif", spacing=1)) == first


@pytest.mark.parametrize("make", [_zarr, _edited, _planes, _header_and_voxels, _hdf5, _dask, _arrays])
def test_fingerprint_changes_when_values_are_rewritten(tmp_path, make):
    """Rewritten values give another fingerprint, unchanged ones the same."""
    first = fingerprint(make(tmp_path, 1))
    assert fingerprint(make(tmp_path, 7)) != first
    if make in (_hdf5, _arrays):
        assert fingerprint(make(tmp_path, 1)) == first


def test_prediction_is_not_reused_for_changed_inputs(tmp_path):
    """A prediction is not reused after its input was rewritten or its mask edited in place."""
    network = torch.nn.Conv3d(1, 1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 1.0)

    def run_prediction(overwrite=False):
        volume, mask = (mrhdata.read(tmp_path / f"{name}.zarr") for name in ("in", "mask"))
        return mrhdata.predict(
            network, volume, tmp_path / "out.zarr", mask=mask, mode="dense", overwrite=overwrite, progress=False
        )

    mrhdata.write(cube(1), tmp_path / "in.zarr")
    mrhdata.write(cube(1).astype("uint8").assign_attrs(kind="mask"), tmp_path / "mask.zarr")
    assert float(run_prediction().sum()) == 512
    assert float(run_prediction().sum()) == 512
    mrhdata.write(cube(7), tmp_path / "in.zarr", overwrite=True)
    with pytest.raises(FormatError, match="exists"):
        run_prediction()
    assert float(run_prediction(overwrite=True).sum()) == 7 * 512
    zarr.open_array(tmp_path / "mask.zarr" / "scale0" / "cube", mode="r+")[:4] = 0
    with pytest.raises(FormatError, match="exists"):
        run_prediction()
    assert float(run_prediction(overwrite=True).sum()) == 7 * 256


def test_stores_with_equal_names_are_distinguished(tmp_path):
    """A conversion is not reused for another store with the same name."""
    for subject, value in (("s1", 1), ("s2", 2)):
        (tmp_path / subject).mkdir()
        mrhdata.write(cube(value), tmp_path / subject / "anat.zarr")
    mrhdata.convert(tmp_path / "s1" / "anat.zarr", tmp_path / "o.zarr")
    with pytest.raises(FormatError, match="exists"):
        mrhdata.convert(tmp_path / "s2" / "anat.zarr", tmp_path / "o.zarr")
    assert float(mrhdata.read(tmp_path / "o.zarr").max()) == 1


def test_class_index_distinguishes_images_of_one_store(tmp_path):
    """The class index of a store is kept per image."""
    from mrhdata.patching.samplers import ClassBalanced

    group = zarr.open_group(tmp_path / "img.zarr", mode="w", zarr_format=3)
    group.create_group("labels")
    for name, plane in (("nuclei", 2), ("cells", 9)):
        values = np.zeros((16, 16, 16), np.uint8)
        values[plane] = 1
        volume = from_array(values, spacing=(1, 1, 1), kind="labels", name=name)
        mrhdata.write(volume, tmp_path / f"{name}.zarr")
        (tmp_path / f"{name}.zarr").rename(tmp_path / "img.zarr" / "labels" / name)
        labels = mrhdata.read(tmp_path / "img.zarr", dataset=f"labels/{name}")
        p = mrhdata.patches(labels, shape=1, sampler=ClassBalanced(20, labels, {1: 1}))
        assert set(p.positions[:, 0]) == {plane}
