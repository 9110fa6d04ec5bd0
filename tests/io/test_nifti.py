"""NIfTI and its relatives: checksums, times, spaces, voxel sizes, and types that other programs read."""

import bz2
import gzip
import logging
import struct

import nibabel as nib
import numpy as np
import pytest

import mrhdata
from mrhdata.errors import DataError, FormatError, MrhdataError
from mrhdata.volume.construct import from_array
from mrhdata.volume.file_arrays import bytes_at_once

VALUES = np.random.default_rng(0).integers(0, 1000, (4, 5, 6)).astype(np.int16)
AFFINE = np.array([[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1.0]])


def nifti(path, values=VALUES, codes=(0, 1), affine=AFFINE, **fields):
    """Write a NIfTI with codes of qform and sform, and fields of the header that nibabel would correct."""
    image = nib.Nifti1Image(values, affine)
    image.set_qform(affine, codes[0])
    image.set_sform(affine if codes[1] else None, codes[1])
    nib.save(image, path.with_name("whole.nii"))
    content = path.with_name("whole.nii").read_bytes()
    path.with_name("whole.nii").unlink()
    header = np.frombuffer(content, nib.nifti1.header_dtype, 1).copy()
    for name, value in fields.items():
        header[name][0] = value
    content = header.tobytes() + content[348:]
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.fixture
def series(tmp_path):
    """Path of a series with a repetition time of 2 s that begins at 0.5 s."""
    image = nib.Nifti1Image(np.zeros((4, 5, 6, 7), np.int16), np.diag([3, 3, 3, 1]))
    image.header.set_zooms((3, 3, 3, 2.0))
    image.header.set_xyzt_units("mm", "sec")
    image.header["toffset"] = 0.5
    nib.save(image, tmp_path / "bold.nii.gz")
    return tmp_path / "bold.nii.gz"


@pytest.mark.parametrize("ending", [".nii.gz", ".mgz", ".img.gz"])
def test_damaged_compressed_voxels_are_refused(tmp_path, ending):
    """No flipped bit changes a voxel in silence, and a damaged, cut or continued end of the stream raises."""
    path = tmp_path / f"a{ending}"
    image = {".mgz": nib.MGHImage, ".img.gz": nib.Nifti1Pair}.get(ending, nib.Nifti1Image)(VALUES, np.eye(4))
    nib.save(image, path)
    good, rng = path.read_bytes(), np.random.default_rng(0)
    right = mrhdata.read(path).values
    changed = [bytearray(good) for _ in range(40)]
    for content in changed:
        content[rng.integers(len(good) // 2, len(good) - 8)] ^= 1 << rng.integers(8)
    for content in changed:
        path.write_bytes(content)
        try:
            np.testing.assert_array_equal(mrhdata.read(path), right)
        except FormatError:
            continue
    for content in (good[:-8] + bytes(8), good[:-3], good + b"rest"):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=f"a{ending}"):
            mrhdata.read(path).compute()


def test_compressed_parts_are_those_of_the_whole(tmp_path):
    """A part of a compressed file, several members and bzip2 give the voxels of the plain file."""
    path = nifti(tmp_path / "a.nii")
    content, right = path.read_bytes(), mrhdata.read(path).values
    (tmp_path / "two.nii.gz").write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    volume = mrhdata.read(tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(volume, right)
    np.testing.assert_array_equal(volume.isel(z=slice(2, 4), x=1), right[2:4, :, 1])
    nib.save(nib.Nifti1Pair(VALUES, AFFINE), tmp_path / "pair.hdr")
    (tmp_path / "pair.img.bz2").write_bytes(bz2.compress((tmp_path / "pair.img").read_bytes()))
    assert (mrhdata.read(tmp_path / "pair.img").values == right).all()


def test_memory_of_compressed_files_is_stated(tmp_path):
    """The bytes that a compressed file needs are known before it is read: stored and scaled values."""
    image = nib.Nifti1Image(VALUES, AFFINE)
    nib.save(image, tmp_path / "a.nii.gz")
    assert bytes_at_once(mrhdata.read(tmp_path / "a.nii.gz").data) == VALUES.nbytes
    image.header.set_slope_inter(0.5, 1)
    nib.save(image, tmp_path / "b.nii.gz")
    assert bytes_at_once(mrhdata.read(tmp_path / "b.nii.gz").data) == 5 * VALUES.nbytes


def test_sizes_beyond_the_file_are_refused_before_allocation(tmp_path):
    """A compressed header that asks for 32 TB in a file of 1 kB raises."""
    path = nifti(tmp_path / "a.nii.gz", dim=[3, 32000, 32000, 32000, 1, 1, 1, 1])
    with pytest.raises(FormatError, match=r"a\.nii\.gz is damaged or truncated: its header asks for"):
        mrhdata.read(path)


@pytest.mark.parametrize(("codes", "space"), [((0, 4), "MNI152"), ((4, 0), "MNI152"), ((3, 0), "Talairach")])
def test_space_belongs_to_the_transform_that_is_used(tmp_path, codes, space):
    """The space is that of the sform, or of the qform if the code of the sform is 0."""
    volume = mrhdata.read(nifti(tmp_path / "a.nii", codes=codes))
    assert volume.mrh.space == space
    np.testing.assert_allclose(volume.mrh.in_order("xyz")[1], AFFINE)


def test_missing_orientation_is_told(tmp_path, caplog):
    """With both codes 0 the voxel size is the affine, a message says so, and options correct it."""
    path = nifti(tmp_path / "a.nii", sform_code=0, qform_code=0)
    volume = mrhdata.read(path)
    np.testing.assert_allclose(volume.mrh.in_order("xyz")[1], np.diag([2, 2, 2, 1]))
    assert volume.attrs["assumed"] == ["orientation", "space"]
    assert "a.nii: neither qform nor sform is set" in caplog.text
    assert "axes=" in caplog.text
    assert mrhdata.read(path, axes="LPS", space="scanner").attrs.get("assumed") is None


@pytest.mark.parametrize("codes", [(1, 0), (0, 0)])
@pytest.mark.parametrize(
    ("pixdim", "assumed"), [([1, 2, 2, 0, 0, 0, 0, 0], "spacing"), ([1, 2, -2, 2, 0, 0, 0, 0], "orientation")]
)
def test_voxel_sizes_of_zero_and_below_are_told(tmp_path, caplog, codes, pixdim, assumed):
    """A size of 0 is not stated, and a sign has no meaning in NIfTI; both give a warning."""
    path = nifti(tmp_path / "a.nii", sform_code=0, qform_code=codes[0], pixdim=pixdim)
    volume = mrhdata.read(path)
    assert assumed in volume.attrs["assumed"]
    assert "a.nii" in caplog.text
    assert "voxel size" in caplog.text


@pytest.mark.parametrize("fields", [{"srow_x": 0, "srow_y": 0, "srow_z": 0}, {"srow_x": [2, 0, 0, np.nan]}])
def test_affines_that_are_none_are_refused_with_the_file(tmp_path, fields):
    """An sform of zeros or with NaN raises, and the message names the file."""
    with pytest.raises(MrhdataError, match=r"a\.nii"):
        mrhdata.read(nifti(tmp_path / "a.nii", **fields))


def test_repetition_time_is_read_and_written(series, tmp_path):
    """The times are seconds from the offset on; a copy, and a copy with corrected axes, state the same step."""
    volume = mrhdata.read(series)
    np.testing.assert_allclose(volume.t, 0.5 + 2 * np.arange(7))
    assert volume.t.attrs["units"] == "s"
    mrhdata.write(volume, tmp_path / "copy.nii.gz")
    header = nib.load(tmp_path / "copy.nii.gz").header
    assert (header.get_zooms()[3], header.get_xyzt_units(), float(header["toffset"])) == (2.0, ("mm", "sec"), 0.5)
    assert mrhdata.read(series, axes="LPS").t.values.tolist() == volume.t.values.tolist()


@pytest.mark.parametrize(("unit", "seconds"), [("sec", 1.0), ("msec", 1e-3), ("usec", 1e-6)])
def test_units_of_time_become_seconds(tmp_path, unit, seconds):
    """Steps in milli- and microseconds are converted."""
    image = nib.Nifti1Image(np.zeros((2, 3, 4, 5), np.int16), np.eye(4))
    image.header.set_zooms((1, 1, 1, 1500))
    image.header.set_xyzt_units("mm", unit)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(np.diff(mrhdata.read(tmp_path / "a.nii").t), 1500 * seconds)


def test_time_steps_that_are_not_stated_are_not_invented(tmp_path, caplog):
    """A step without a unit gives a warning, the default step of 1 none, and neither gives times."""
    values = np.zeros((2, 3, 4, 5), np.int16)
    image = nib.Nifti1Image(values, np.eye(4))
    nib.save(image, tmp_path / "a.nii")
    assert "t" not in mrhdata.read(tmp_path / "a.nii").coords
    assert not caplog.records
    image.header.set_zooms((1, 1, 1, 2))
    nib.save(image, tmp_path / "b.nii")
    assert "t" not in mrhdata.read(tmp_path / "b.nii").coords
    assert "b.nii states a time step of 2 without a unit" in caplog.text


def test_times_that_nifti_cannot_hold_are_told(series, tmp_path, caplog):
    """Unequal steps are left out with a warning."""
    mrhdata.write(mrhdata.read(series).isel(t=[0, 1, 4]), tmp_path / "a.nii")
    assert "without times" in caplog.text
    assert "t" not in mrhdata.read(tmp_path / "a.nii").coords


@pytest.mark.parametrize(("name", "dim"), [("vector", "c"), ("symmetric matrix", "c"), ("none", "t"), ("f test", "t")])
def test_fourth_axis_follows_the_intent(tmp_path, name, dim):
    """Vectors and matrices on the fourth axis are channels, as the intent says."""
    image = nib.Nifti1Image(np.zeros((2, 3, 4, 6), np.float32), np.eye(4))
    image.header["intent_code"] = nib.nifti1.intent_codes.code[name]
    nib.save(image, tmp_path / "a.nii")
    assert mrhdata.read(tmp_path / "a.nii").dims[0] == dim


def test_frequencies_are_no_times(tmp_path):
    """A fourth axis in Hz or ppm holds channels."""
    image = nib.Nifti1Image(np.zeros((2, 3, 4, 6), np.float32), np.eye(4))
    image.header.set_xyzt_units("mm", "ppm")
    nib.save(image, tmp_path / "a.nii")
    assert mrhdata.read(tmp_path / "a.nii").dims[0] == "c"


def test_trailing_axes_of_one_are_dropped_and_others_refused(tmp_path):
    """Six axes are read if the last has length 1."""
    nib.save(nib.Nifti1Image(np.zeros((2, 3, 4, 5, 2, 1), np.int16), np.eye(4)), tmp_path / "a.nii")
    assert mrhdata.read(tmp_path / "a.nii").sizes == {"t": 5, "c": 2, "z": 4, "y": 3, "x": 2}
    nib.save(nib.Nifti1Image(np.zeros((2, 3, 4, 5, 2, 2), np.int16), np.eye(4)), tmp_path / "b.nii")
    with pytest.raises(FormatError, match=r"b\.nii must have 1 to 5 axes"):
        mrhdata.read(tmp_path / "b.nii")


@pytest.mark.parametrize(
    ("high", "stored", "dtype"),
    [
        *((7, np.int32, dtype) for dtype in (np.int64, np.uint64, np.uint32, np.float64)),
        *((2**31, np.uint32, dtype) for dtype in (np.int64, np.uint64, np.uint32, np.float64)),
        *((2**32, None, dtype) for dtype in (np.int64, np.uint64, np.float64)),
    ],
)
def test_labels_are_written_in_types_that_others_read(tmp_path, dtype, high, stored):
    """Wide labels become int32, uint32 only if they need it, and raise with their range if no type holds them."""
    labels = from_array(np.array([[[0, 5, high]]]).astype(dtype), spacing=(1, 1, 1), kind="labels")
    if stored is None:
        with pytest.raises(FormatError, match=f"got values from 0 to {high}"):
            mrhdata.write(labels, tmp_path / "a.nii.gz")
        return
    mrhdata.write(labels, tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == stored
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj).ravel(), [0, 5, high])


def test_labels_beyond_single_precision_raise(tmp_path):
    """Label 576073732 is stored as 576073728 in single precision: a whole number, but another region."""
    nib.save(nib.Nifti1Image(np.array([[[0, 2**24 - 1]]], np.float32), np.eye(4)), tmp_path / "a.nii")
    assert mrhdata.read(tmp_path / "a.nii", kind="labels").values.max() == 2**24 - 1
    nib.save(nib.Nifti1Image(np.array([[[0, 576073732]]], np.float32), np.eye(4)), tmp_path / "b.nii")
    with pytest.raises(DataError, match=r"b\.nii must lie below 16777216, because float32 rounds"):
        mrhdata.read(tmp_path / "b.nii", kind="labels").compute()


@pytest.mark.parametrize("change", ["space", "kind"])
def test_changed_header_overrides_the_note_of_mrhdata(tmp_path, change):
    """If another program changes the space or the kind, the stored attributes are those of the header."""
    volume = from_array(np.zeros((2, 3, 4), np.int16), affine=np.eye(4), kind="labels", units="ppm")
    mrhdata.write(volume, tmp_path / "a.nii")
    image = nib.load(tmp_path / "a.nii")
    if change == "space":
        image.set_sform(image.affine, 4)
    else:
        image.header.set_intent("none")
    nib.save(image, tmp_path / "b.nii")
    back = mrhdata.read(tmp_path / "b.nii")
    assert (back.mrh.space, back.attrs["kind"]) == {
        "space": ("MNI152", "labels"), "kind": ("scanner", "image")
    }[change]  # fmt: skip
    assert "units" not in back.attrs


def test_unknown_unit_of_length_is_told(tmp_path, caplog):
    """A code that NIfTI does not define gives a warning; without a code lengths are mm."""
    volume = mrhdata.read(nifti(tmp_path / "a.nii", xyzt_units=5))
    assert "unit" in volume.attrs["assumed"]
    assert "states no unit of length" in caplog.text
    assert "assumed" not in mrhdata.read(nifti(tmp_path / "b.nii", xyzt_units=0)).attrs


@pytest.mark.filterwarnings("ignore:.*mgh:pytest.PytestUnraisableExceptionWarning")  # nibabel leaves it open
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_mgh_states_its_repetition_time_and_whether_it_has_an_orientation(tmp_path, caplog):
    """The repetition time is in milliseconds; a flag of 0 means that voxel size and directions are not set."""
    image = nib.MGHImage(np.zeros((2, 3, 4, 5), np.float32), np.diag([2, 2, 2, 1]))
    image.header["tr"] = 2500
    nib.save(image, tmp_path / "a.mgz")
    assert mrhdata.read(tmp_path / "a.mgz").t.values.tolist() == [0, 2.5, 5, 7.5, 10]
    nib.save(image, tmp_path / "b.mgh")
    content = bytearray((tmp_path / "b.mgh").read_bytes())
    struct.pack_into(">h", content, 28, 0)
    (tmp_path / "b.mgh").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert mrhdata.read(tmp_path / "b.mgh").attrs["assumed"] == ["spacing", "orientation", "space"]
    assert "b.mgh: its flag says" in caplog.text


def test_analyze_states_no_orientation(tmp_path, caplog):
    """ANALYZE lists what is assumed, also a voxel size of 0."""
    nib.save(nib.AnalyzeImage(VALUES, np.diag([2, 2, 2, 1])), tmp_path / "a.hdr")
    content = bytearray((tmp_path / "a.hdr").read_bytes())
    struct.pack_into("<f", content, 76 + 4 * 3, 0)
    (tmp_path / "a.hdr").write_bytes(content)
    assert mrhdata.read(tmp_path / "a.hdr").attrs["assumed"] == ["spacing", "orientation", "space"]
    assert "ANALYZE has no orientation" in caplog.text
