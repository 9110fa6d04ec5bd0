"""Patches in MATLAB files: axes, lazy reading, writing and errors."""

import h5py
import numpy as np
import pytest
import scipy.io

import mrhdata
from mrhdata.errors import FormatError, GridError
from mrhdata.io.matlab_patches import as_volume, read_patches, write_patches
from mrhdata.volume.construct import from_array

pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option")

H, W = 200, 128


@pytest.fixture
def matlab(tmp_path):
    """Path and arrays of a file as MATLAB writes it: data 3 x 3 x 4 x 6, label 3 x 3 x 1 x 6."""
    rng = np.random.default_rng(0)
    data, label = rng.random((3, 3, 4, 6)), rng.random((3, 3, 1, 6))
    with h5py.File(tmp_path / "traindata.mat", "w", userblock_size=512) as file:
        for name, values in (("data", data), ("label", label)):
            file[name] = values.transpose()
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
    return tmp_path / "traindata.mat", data, label


def test_matlab_axes_are_reordered(matlab):
    """The value data(h, w, c, n) is that of patch n, channel c, z = w, x = h."""
    path, data, label = matlab
    patches = read_patches(path)
    assert {name: a.shape for name, a in patches.items()} == {"data": (6, 4, 3, 1, 3), "label": (6, 1, 3, 1, 3)}
    values = patches["data"].compute()
    for h, w, c, n in np.ndindex(data.shape):
        assert values[n, c, w, 0, h] == data[h, w, c, n]
    np.testing.assert_array_equal(patches["label"][4, 0, 2, 0].compute(), label[:, 2, 0, 4])


def test_published_patches_are_coronal(shared):
    """Successive patches of the authors' test file move by one voxel along z, and columns by one along x."""
    patches = read_patches(shared / "mrhnet" / "YPred_auto.mat")
    assert {name: a.shape for name, a in patches.items()} == dict.fromkeys(("YPred", "fa"), (24948, 1, 3, 1, 3))
    fa = patches["fa"].compute().reshape(H - 2, W - 2, 3, 3)
    np.testing.assert_array_equal(fa[:, :-1, 1:], fa[:, 1:, :-1])
    np.testing.assert_array_equal(fa[:-1, :, :, 1:], fa[1:, :, :, :-1])
    assert not np.array_equal(fa[:, :-1, :, 1:], fa[:, 1:, :, :-1])


def test_patches_are_read_lazily(matlab, monkeypatch):
    """Nothing is read before values are computed, and then only the selected patches."""
    from mrhdata.io.hdf5 import Part
    from mrhdata.volume import file_arrays

    boxes = []
    read_box = Part.__call__
    monkeypatch.setattr(Part, "__call__", lambda self, box: boxes.append(box.slices[0]) or read_box(self, box))
    # Two patches of 4 channels, 3 x 3 doubles.
    monkeypatch.setattr(file_arrays, "SLAB_BYTES", 2 * 4 * 9 * 8)
    patches = read_patches(matlab[0])["data"]
    assert boxes == []
    patches[2:4].compute()
    assert boxes == [slice(2, 4)]


def test_written_patches_are_read_by_matio(tmp_path):
    """An independent reader finds 3 x 3 x channels x patches and the types; read_patches finds equal patches."""
    from matio import load_from_mat

    rng = np.random.default_rng(1)
    data = rng.random((1100, 5, 3, 1, 3)).astype(np.float32)
    label = rng.integers(0, 255, (1100, 1, 3, 1, 3)).astype(np.uint8)
    path = tmp_path / "set.mat"
    write_patches({"data": data, "label": label}, path)
    back = read_patches(path)
    np.testing.assert_array_equal(back["data"], data)
    np.testing.assert_array_equal(back["label"], label)
    assert (back["data"].dtype, back["label"].dtype) == (np.float32, np.uint8)
    other = load_from_mat(str(path))
    assert (other["data"].dtype, other["data"].shape, other["label"].shape) == ("f4", (3, 3, 5, 1100), (3, 3, 1, 1100))
    np.testing.assert_array_equal(other["data"][2, 0, 4, 1050], data[1050, 4, 0, 0, 2])
    with pytest.raises(FormatError, match="exists"):
        write_patches({"data": data}, path)
    write_patches(back, tmp_path / "again.mat")
    assert (tmp_path / "again.mat").read_bytes()[:128] == path.read_bytes()[:128]
    np.testing.assert_array_equal(read_patches(tmp_path / "again.mat")["data"], data)


def test_single_patch_or_channel_keeps_its_axes(tmp_path):
    """MATLAB drops trailing axes of length 1; they are restored for one patch with four channels or one."""
    with h5py.File(tmp_path / "one.mat", "w") as file:
        file["data"], file["label"] = np.zeros((4, 3, 3)), np.zeros((3, 3))
    patches = read_patches(tmp_path / "one.mat")
    assert (patches["data"].shape, patches["label"].shape) == ((1, 4, 3, 1, 3), (1, 1, 3, 1, 3))
    scipy.io.savemat(tmp_path / "old.mat", {"data": np.zeros((3, 3, 4))})
    assert read_patches(tmp_path / "old.mat")["data"].shape == (1, 4, 3, 1, 3)


def test_patches_written_to_matlab_are_cut_again_as_a_volume(tmp_path):
    """Patches written to a file, and cut again from the volume of them, are equal."""
    rng = np.random.default_rng(2)
    inputs = from_array(rng.random((3, 6, 4, 7)).astype(np.float32), spacing=(1, 1, 1))
    target = from_array(rng.random((6, 4, 7)).astype(np.float32), spacing=(1, 1, 1))
    p = mrhdata.patches(inputs, target, shape=3, plane="coronal")
    write_patches(dict(zip(("data", "label"), p.to_dask(), strict=True)), tmp_path / "p.mat")
    stored = read_patches(tmp_path / "p.mat")
    again = mrhdata.patches(as_volume(stored["data"], ["t2", "mt", "fa"]), as_volume(stored["label"]), shape=(3, 1, 3))
    assert len(again) == len(p) == 4 * 2 * 3
    assert again.channels == ["t2", "mt", "fa"]
    for i in range(len(p)):
        n = int(again.positions[i][1])
        for actual, expected in zip(again[i], p[n], strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_invalid_patch_files_and_arrays_raise(tmp_path):
    """Missing, damaged and empty files, unequal numbers of patches, and wrong shapes and types raise."""
    with pytest.raises(FormatError, match="does not exist"):
        read_patches(tmp_path / "none.mat")
    (tmp_path / "text.mat").write_bytes(b"text" * 100)
    with pytest.raises(FormatError, match="cannot be read"):
        read_patches(tmp_path / "text.mat")
    for name, arrays in [
        ("empty", {}),
        ("numbers", {"data": np.zeros((5, 4, 3, 3)), "label": np.zeros((6, 1, 3, 3))}),
        ("sizes", {"data": np.zeros((5, 4, 3, 3)), "label": np.zeros((5, 1, 5, 5))}),
        ("axes", {"data": np.zeros((2, 5, 4, 3, 3))}),
    ]:
        with h5py.File(tmp_path / f"{name}.mat", "w") as file:
            file.update(arrays)
        with pytest.raises(FormatError, match="must contain arrays with equal numbers of patches"):
            read_patches(tmp_path / f"{name}.mat")
    for bad, message in [
        ({"data": np.zeros((5, 4, 3, 3, 3))}, "plane='coronal'"),
        ({"data": np.zeros((5, 4, 3, 1, 3)), "label": np.zeros((4, 1, 3, 1, 3))}, "with equal n"),
        ({"data": np.zeros((5, 4, 3, 1, 3), dtype=np.float16)}, "no float16 arrays"),
    ]:
        with pytest.raises(FormatError, match=message):
            write_patches(bad, tmp_path / "bad.mat")
    with pytest.raises(GridError, match="one name for each of 4 channels; got 2"):
        as_volume(np.zeros((5, 4, 3, 1, 3)), ["a", "b"])
    with pytest.raises(GridError, match="Read them with read_patches"):
        as_volume(np.zeros((5, 4, 3, 3)))
