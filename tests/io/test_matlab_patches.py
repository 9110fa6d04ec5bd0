"""Patches in MATLAB files: axes, laziness, and the way back."""

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
    """A file as MATLAB writes it, made of its own index: data 3 x 3 x 4 x 6, label 3 x 3 x 1 x 6."""
    rng = np.random.default_rng(0)
    data, label = rng.random((3, 3, 4, 6)), rng.random((3, 3, 1, 6))
    with h5py.File(tmp_path / "traindata.mat", "w", userblock_size=512) as file:
        for name, values in (("data", data), ("label", label)):
            file[name] = values.transpose()
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
    return tmp_path / "traindata.mat", data, label


def test_matlab_axes_become_ours(matlab):
    """data(h, w, c, n) is patch n, channel c, z = w, x = h."""
    path, data, label = matlab
    found = read_patches(path)
    assert {name: a.shape for name, a in found.items()} == {"data": (6, 4, 3, 1, 3), "label": (6, 1, 3, 1, 3)}
    values = found["data"].compute()
    for h, w, c, n in np.ndindex(data.shape):
        assert values[n, c, w, 0, h] == data[h, w, c, n]
    np.testing.assert_array_equal(found["label"][4, 0, 2, 0].compute(), label[:, 2, 0, 4])


def test_the_published_slice_is_coronal(shared):
    """Patches that follow each other in the authors' test file move by one voxel along z, columns by one along x."""
    found = read_patches(shared / "mrhnet" / "YPred_auto.mat")
    assert {name: a.shape for name, a in found.items()} == dict.fromkeys(("YPred", "fa"), (24948, 1, 3, 1, 3))
    fa = found["fa"].compute().reshape(H - 2, W - 2, 3, 3)
    np.testing.assert_array_equal(fa[:, :-1, 1:], fa[:, 1:, :-1])
    np.testing.assert_array_equal(fa[:-1, :, :, 1:], fa[1:, :, :, :-1])
    assert not np.array_equal(fa[:, :-1, :, 1:], fa[:, 1:, :, :-1])


def test_only_what_is_asked_for_is_read(matlab, monkeypatch):
    """Nothing is read before a value is needed, and then some patches are, not all."""
    from mrhdata.io.hdf5 import Part
    from mrhdata.volume import file_arrays

    boxes = []
    whole = Part.__call__
    monkeypatch.setattr(Part, "__call__", lambda self, box: boxes.append(box.slices[0]) or whole(self, box))
    # Two patches of 4 channels, 3 x 3 doubles.
    monkeypatch.setattr(file_arrays, "SLAB_BYTES", 2 * 4 * 9 * 8)
    found = read_patches(matlab[0])["data"]
    assert boxes == []
    found[2:4].compute()
    assert boxes == [slice(2, 4)]


def test_written_patches_are_what_matlab_would_hold(tmp_path):
    """An independent reader finds 3 x 3 x channels x patches and the types; ours finds the patches again."""
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


def test_a_single_patch_keeps_its_axes(tmp_path):
    """MATLAB drops last axes of length 1: one patch of four channels, one of a single channel."""
    with h5py.File(tmp_path / "one.mat", "w") as file:
        file["data"], file["label"] = np.zeros((4, 3, 3)), np.zeros((3, 3))
    found = read_patches(tmp_path / "one.mat")
    assert (found["data"].shape, found["label"].shape) == ((1, 4, 3, 1, 3), (1, 1, 3, 1, 3))
    scipy.io.savemat(tmp_path / "old.mat", {"data": np.zeros((3, 3, 4))})
    assert read_patches(tmp_path / "old.mat")["data"].shape == (1, 4, 3, 1, 3)


def test_patches_of_a_volume_go_to_matlab_and_into_training(tmp_path):
    """Patches cut by us, through a file, and cut again from a row of them are the same ones."""
    rng = np.random.default_rng(2)
    inputs = from_array(rng.random((3, 6, 4, 7)).astype(np.float32), spacing=(1, 1, 1))
    target = from_array(rng.random((6, 4, 7)).astype(np.float32), spacing=(1, 1, 1))
    p = mrhdata.patches(inputs, target, shape=3, plane="coronal")
    write_patches(dict(zip(("data", "label"), p.to_dask(), strict=True)), tmp_path / "p.mat")
    found = read_patches(tmp_path / "p.mat")
    again = mrhdata.patches(as_volume(found["data"], ["t2", "mt", "fa"]), as_volume(found["label"]), shape=(3, 1, 3))
    assert len(again) == len(p) == 4 * 2 * 3
    assert again.channels == ["t2", "mt", "fa"]
    for i in range(len(p)):
        n = int(again.positions[i][1])
        for ours, theirs in zip(again[i], p[n], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_what_is_no_patches_is_refused(tmp_path):
    """Missing, damaged and empty files, arrays of other numbers of patches, other shapes and types."""
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
        with pytest.raises(FormatError, match="holds no patches"):
            read_patches(tmp_path / f"{name}.mat")
    for bad, message in [
        ({"data": np.zeros((5, 4, 3, 3, 3))}, "plane='coronal'"),
        ({"data": np.zeros((5, 4, 3, 1, 3)), "label": np.zeros((4, 1, 3, 1, 3))}, "with one n"),
        ({"data": np.zeros((5, 4, 3, 1, 3), dtype=np.float16)}, "no float16 arrays"),
    ]:
        with pytest.raises(FormatError, match=message):
            write_patches(bad, tmp_path / "bad.mat")
    with pytest.raises(GridError, match="2 channels are named but patches have 4"):
        as_volume(np.zeros((5, 4, 3, 1, 3)), ["a", "b"])
    with pytest.raises(GridError, match="read them with read_patches"):
        as_volume(np.zeros((5, 4, 3, 3)))
