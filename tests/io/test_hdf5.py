"""HDF5: axes and types as programs name them, and arrays whose bytes lie in other files."""

import json

import h5py
import numpy as np
import pytest

import mrhdata
from mrhdata.errors import FormatError

VALUES = np.random.default_rng(0).random((6, 8, 10, 2)).astype(np.float32)  # z, y, x, c


def write(path, name, values, **attributes):
    """Write one array with attributes."""
    with h5py.File(path, "w") as file:
        array = file.create_dataset(name, data=values)
        array.attrs.update(attributes)
    return path


def axistags(keys):
    """Return the attribute by which ilastik names axes."""
    return json.dumps({"axes": [{"key": key, "typeFlags": 2, "resolution": 0, "description": ""} for key in keys]})


@pytest.mark.parametrize("keys", ["zyxc", "xyzc", "czyx", "tzyx", "yxc"])
def test_axes_of_ilastik_are_those_of_its_tags(tmp_path, keys):
    """Each axis has the name of its tag, in whatever order they are stored."""
    values = VALUES if len(keys) == 4 else VALUES[0]
    volume = mrhdata.read(write(tmp_path / "a.h5", "exported_data", values, axistags=axistags(keys)), spacing=1)
    named = dict(zip(keys, values.shape, strict=True))
    assert dict(volume.sizes) == {dim: named[dim] for dim in "tczyx" if dim in named}
    np.testing.assert_array_equal(volume.transpose(*keys).values, values)


@pytest.mark.parametrize("tags", ["zyx", "zzyx", "zyxn", "not json"])
def test_axes_that_a_volume_cannot_have_are_refused(tmp_path, tags):
    """Tags of another number, twice the same, unknown or unreadable raise."""
    text = tags if tags == "not json" else axistags(tags)
    with pytest.raises(FormatError, match=r"a\.h5.*axistags"):
        mrhdata.read(write(tmp_path / "a.h5", "data", VALUES, axistags=text))


def test_options_apply_to_the_order_of_the_tags(tmp_path):
    """Voxel sizes along x, y, z of the file belong to its x, y, z."""
    path = write(tmp_path / "a.h5", "data", VALUES[..., 0], axistags=axistags("xyz"))
    volume = mrhdata.read(path, spacing=(0.1, 0.2, 0.3), axes="RAS")
    np.testing.assert_allclose(volume.mrh.spacing, [0.3, 0.2, 0.1])
    assert volume.shape == (10, 8, 6)


def test_dimension_labels_and_scales_name_axes_and_steps(tmp_path, caplog):
    """Labels give the axes, and scales with units the voxel size and the times."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = file.create_dataset("data", data=VALUES)
        steps = {"depth": (2.0, "um"), "height": (0.5, "um"), "width": (0.25, "um"), "time": (1500.0, "ms")}
        for i, (label, (step, unit)) in enumerate(steps.items()):
            scale = file.create_dataset(f"scales/{label}", data=step * np.arange(VALUES.shape[i]))
            scale.attrs["units"] = unit
            scale.make_scale(label)
            array.dims[i].label = label
            array.dims[i].attach_scale(scale)
    volume = mrhdata.read(tmp_path / "a.h5", dataset="data")
    assert dict(volume.sizes) == {"t": 2, "z": 6, "y": 8, "x": 10}
    np.testing.assert_allclose(volume.mrh.spacing, [2e-3, 5e-4, 2.5e-4])
    assert volume.t.values.tolist() == [0, 1.5]
    assert not caplog.records


def test_axes_without_names_give_a_warning(tmp_path, caplog):
    """Four axes without names are read as c, z, y, x, and a message says so."""
    assert mrhdata.read(write(tmp_path / "a.h5", "data", VALUES)).dims == ("c", "z", "y", "x")
    assert "does not name its 4 axes" in caplog.text


@pytest.mark.parametrize(("name", "mm"), [("element_size_um", 1e-3), ("resolution", 1e-6)])
def test_voxel_size_of_attributes(tmp_path, name, mm):
    """Both attributes are read; sizes of 0, which mean unknown, are not."""
    path = write(tmp_path / "a.h5", "data", VALUES[..., 0], **{name: (3.0, 2.0, 1.0), "offset": (30.0, 20.0, 10.0)})
    volume = mrhdata.read(path)
    np.testing.assert_allclose(volume.mrh.spacing, np.array([3, 2, 1]) * mm)
    start = [30 * mm, 20 * mm, 10 * mm] if name == "resolution" else [0, 0, 0]
    np.testing.assert_allclose(volume.mrh.world([0, 0, 0]), start[::-1])
    unknown = mrhdata.read(write(tmp_path / "b.h5", "data", VALUES[..., 0], **{name: (0.0, 0.0, 0.0)}))
    assert "spacing" in unknown.attrs["assumed"]


def test_numbers_of_bigdataviewer_are_unsigned(tmp_path, caplog):
    """The int16 of BigDataViewer is uint16; in an array of any other name it stays int16."""
    values = np.array([[[0, 1000, 32767], [32768, 50000, 65535]]], np.uint16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["t00000/s00/0/cells"] = values.view(np.int16)
        file["other"] = values.view(np.int16)
    volume = mrhdata.read(tmp_path / "a.h5", dataset="t00000/s00/0/cells")
    np.testing.assert_array_equal(volume.values, values)
    assert "read as uint16" in caplog.text
    assert mrhdata.read(tmp_path / "a.h5", dataset="other").dtype == np.int16


def test_imaris_is_read_without_its_padding(tmp_path):
    """Arrays of Imaris are cut to the size of the image, and its extents give the voxel size."""
    text = {key: np.array([c.encode() for c in value], "S1") for key, value in
            {"ImageSizeX": "9", "ImageSizeY": "7", "ImageSizeZ": "5"}.items()}  # fmt: skip
    extents = {"ExtMin0": "0", "ExtMax0": "18", "ExtMin1": "0", "ExtMax1": "14", "ExtMin2": "5", "ExtMax2": "20"}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("DataSet/ResolutionLevel 0/TimePoint 0/Channel 0")
        group["Data"] = VALUES[..., 0]
        group.attrs.update(text)
        image = file.create_group("DataSetInfo/Image")
        image.attrs.update({key: np.array([c.encode() for c in value], "S1") for key, value in extents.items()})
        image.attrs["Unit"] = np.array([b"u", b"m"], "S1")
    volume = mrhdata.read(tmp_path / "a.h5")
    np.testing.assert_array_equal(volume.values, VALUES[:5, :7, :9, 0])
    np.testing.assert_allclose(volume.mrh.spacing, [3e-3, 2e-3, 2e-3])


@pytest.mark.parametrize("name", ["../secret", "{folder}/secret", "below/../../secret"])
@pytest.mark.parametrize("way", ["external", "virtual"])
def test_bytes_of_other_folders_are_refused(tmp_path, name, way):
    """External storage and virtual arrays may take bytes from the folder of the file only."""
    (tmp_path / "download" / "below").mkdir(parents=True)
    write(tmp_path / "secret", "d", VALUES[..., 0])
    name = name.format(folder=tmp_path)
    with h5py.File(tmp_path / "download" / "a.h5", "w") as file:
        if way == "external":
            file.create_dataset("d", shape=(6, 8, 10), dtype="u1", external=[(name, 0, 480)])
        else:
            layout = h5py.VirtualLayout(shape=(6, 8, 10), dtype=np.float32)
            layout[:] = h5py.VirtualSource(name, "d", shape=(6, 8, 10))
            file.create_virtual_dataset("d", layout)
    with pytest.raises(FormatError, match=r"a\.h5.*folder of the HDF5 file"):
        mrhdata.read(tmp_path / "download" / "a.h5")


@pytest.mark.parametrize("there", [True, False])
def test_bytes_of_the_same_folder_are_read_or_missing(tmp_path, there):
    """Parts next to the file are read from any working directory; a missing part raises instead of being 0."""
    values = (100 * VALUES[..., 0]).astype(np.uint8)
    if there:
        (tmp_path / "part.raw").write_bytes(values.tobytes())
        write(tmp_path / "part.h5", "d", values)
    layout = h5py.VirtualLayout(shape=values.shape, dtype=np.uint8)
    layout[:] = h5py.VirtualSource("part.h5", "d", shape=values.shape)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", shape=values.shape, dtype="u1", external=[("part.raw", 0, values.nbytes)])
        file.create_virtual_dataset("virtual", layout)
    for name in ("raw", "virtual"):
        if there:
            np.testing.assert_array_equal(mrhdata.read(tmp_path / "a.h5", dataset=name), values)
        else:
            with pytest.raises(FormatError, match="keep both together"):
                mrhdata.read(tmp_path / "a.h5", dataset=name)


def test_virtual_arrays_through_links_and_circles_are_refused(tmp_path):
    """A virtual array whose source is a link to another file, or itself, raises."""
    write(tmp_path / "secret", "d", VALUES[..., 0])
    (tmp_path / "download").mkdir()
    for name, source in (("linked", "link"), ("circle", "d")):
        layout = h5py.VirtualLayout(shape=(6, 8, 10), dtype=np.float32)
        layout[:] = h5py.VirtualSource(".", source, shape=(6, 8, 10))
        path = tmp_path / "download" / f"{name}.h5"
        with h5py.File(path, "w") as file:
            file["link"] = h5py.ExternalLink("../secret", "d")
            file.create_virtual_dataset("d", layout)
        with pytest.raises(FormatError, match=rf"{name}\.h5.*(is a link|is deeper)"):
            mrhdata.read(path)


def test_values_that_were_never_written_are_told(tmp_path, caplog):
    """An array without any value raises, and one with missing chunks gives a warning, because HDF5 reads zeros."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("empty", shape=(8, 8, 8), dtype="f4", chunks=(4, 4, 4))
        file.create_dataset("contiguous", shape=(8, 8, 8), dtype="f4")
        file.create_dataset("partial", shape=(8, 8, 8), dtype="f4", chunks=(4, 4, 4))[:4] = 1
    for name in ("empty", "contiguous"):
        with pytest.raises(FormatError, match="no values were written"):
            mrhdata.read(tmp_path / "a.h5", dataset=name)
    mrhdata.read(tmp_path / "a.h5", dataset="partial")
    assert "4 of 8 chunks" in caplog.text
