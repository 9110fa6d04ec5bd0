"""MINC: axes by the names of their dimensions, units, spaces and times."""

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

import mrhdata
from mrhdata.errors import FormatError
from mrhdata.volume.construct import from_array

VALUES = np.random.default_rng(0).integers(0, 255, (4, 5, 6)).astype(np.float32)


def written(path, **attributes):
    """Write a MINC 2 with attributes of its dimensions changed, or dropped if they are None."""
    mrhdata.write(from_array(VALUES, affine=np.diag([0.1, 0.2, 0.3, 1]), dims="xyz"[::-1]), path)
    with h5py.File(path, "r+") as file:
        for name in ("xspace", "yspace", "zspace"):
            dimension = file[f"minc-2.0/dimensions/{name}"]
            for key, value in attributes.items():
                dimension.attrs.pop(key, None)
                if value is not None:
                    dimension.attrs[key] = np.bytes_(value)
    return path


def with_axis(path, name, **attributes):
    """Write a MINC 2 with a fourth axis behind the others."""
    values = np.stack([VALUES, VALUES + 1, VALUES + 2], axis=-1)
    image = sitk.GetImageFromArray(values, isVector=True)
    image.SetSpacing((0.1, 0.2, 0.3))
    sitk.WriteImage(image, str(path))
    with h5py.File(path, "r+") as file:
        stored = file["minc-2.0/image/0/image"]
        stored.attrs["dimorder"] = np.bytes_(f"zspace,yspace,xspace,{name}")
        if name != "vector_dimension":
            file.copy("minc-2.0/dimensions/xspace", file["minc-2.0/dimensions"], name)
            dimension = file[f"minc-2.0/dimensions/{name}"]
            dimension.attrs.update(attributes)
    return path, values


def test_vectors_of_minc_are_channels(tmp_path):
    """`vector_dimension` is the axis of channels, wherever it is."""
    path, values = with_axis(tmp_path / "a.mnc", "vector_dimension")
    volume = mrhdata.read(path).compute()
    assert dict(volume.sizes) == {"c": 3, "z": 4, "y": 5, "x": 6}
    np.testing.assert_allclose(volume.values, np.moveaxis(values, -1, 0), atol=1e-3)
    np.testing.assert_allclose(volume.mrh.spacing, [0.3, 0.2, 0.1])


def test_times_of_minc_are_seconds(tmp_path):
    """`time` is the axis of times, and its step and unit give their seconds."""
    path, values = with_axis(
        tmp_path / "a.mnc", "time", step=2.5, start=1.0, units=np.bytes_("s"), spacing=np.bytes_("regular__")
    )
    volume = mrhdata.read(path)
    assert volume.t.values.tolist() == [1, 3.5, 6]
    np.testing.assert_allclose(volume.values, np.moveaxis(values, -1, 0), atol=1e-3)


def test_other_axes_of_minc_are_refused(tmp_path):
    """An axis that a volume does not have raises with its name."""
    with pytest.raises(FormatError, match=r"a\.mnc .*got .*xfrequency"):
        mrhdata.read(with_axis(tmp_path / "a.mnc", "xfrequency")[0])


@pytest.mark.parametrize(
    ("attributes", "factor", "assumed"),
    [
        ({"units": "mm", "spacetype": "native____"}, 1, None),
        ({"units": "um", "spacetype": "native____"}, 1e-3, None),
        ({"units": "furlong", "spacetype": "native____"}, 1, ["unit"]),
        ({"units": None, "spacetype": None}, 1, ["space"]),
    ],
)
def test_units_and_spaces_of_minc(tmp_path, attributes, factor, assumed):
    """Units of the dimensions scale lengths, an unknown one is assumed to be mm, and `spacetype` names the space."""
    volume = mrhdata.read(written(tmp_path / "a.mnc", **attributes))
    np.testing.assert_allclose(volume.mrh.spacing, np.array([0.3, 0.2, 0.1]) * factor)
    assert volume.attrs.get("assumed") == assumed


def test_talairach_and_irregular_spacing_of_minc(tmp_path):
    """A file in Talairach space keeps its space; one with irregular spacing raises."""
    assert mrhdata.read(written(tmp_path / "a.mnc", spacetype="talairach_")).mrh.space == "Talairach"
    with pytest.raises(FormatError, match="Irregular spacing"):
        mrhdata.read(written(tmp_path / "b.mnc", spacing="irregular"))
    missing = mrhdata.read(written(tmp_path / "c.mnc", step=None))
    assert "spacing" in missing.attrs["assumed"]


def test_wide_labels_of_minc_keep_their_numbers(tmp_path):
    """Labels of 64 bits are written as int32 if they fit, and refused with their range if not."""
    labels = from_array(np.array([[[0, 997, 614454277]]]), spacing=(1, 1, 1), kind="labels")
    mrhdata.write(labels, tmp_path / "a.mnc")
    np.testing.assert_array_equal(mrhdata.read(tmp_path / "a.mnc", kind="labels"), labels)
    with pytest.raises(FormatError, match="got values from 0 to 1099511627776"):
        mrhdata.write((labels * 0 + [0, 1, 2**40]).assign_attrs(labels.attrs), tmp_path / "b.mnc")


def test_volume_of_minc_does_not_keep_its_file_open(tmp_path):
    """A file that is replaced after it was opened is read anew, because each box opens it."""
    volume = mrhdata.read(written(tmp_path / "a.mnc"))
    path = tmp_path / "a.mnc"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(FormatError, match=r"a\.mnc"):
        volume.compute()
