"""Voxels of DICOM files compared with pydicom and ITK, and headers that claim more than there is."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom import encaps
from pydicom.data import get_testdata_file
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

import mrhdata
from mrhdata.errors import FormatError
from tests.io.dicom.files import elements, enhanced, numbered, place, plane, save, series

#: Compressed and unusual files of pydicom's wheel that ITK decodes too.
FILES = (
    "MR_small_bigendian.dcm",
    "MR_small_RLE.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "693_J2KI.dcm",
    "JPGExtended.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "SC_jpeg_no_color_transform.dcm",
    "SC_rgb_small_odd_big_endian.dcm",
    "SC_rgb_rle_2frame.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
    "examples_ybr_color.dcm",
)


@pytest.mark.parametrize("name", FILES)
def test_compressed_files_are_decoded_as_by_itk(name):
    """Scaled values, colours and frames equal ITK's."""
    path = get_testdata_file(name, download=False)
    volume = mrhdata.read(path)
    first = [d for d in ("t", "z") if volume.sizes.get(d, 1) > 1] or ["z"]
    values = volume.transpose(*first, "y", "x", *(["c"] if "c" in volume.dims else []), ...).values
    expected = sitk.GetArrayFromImage(sitk.ReadImage(path))
    np.testing.assert_array_equal(values.reshape(expected.shape), expected)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_monochrome1_keeps_the_stored_values(tmp_path, photometric, caplog):
    """Values are never inverted; a warning says that the largest ones are black."""
    series(tmp_path, [0, 3], PhotometricInterpretation=photometric)
    assert np.unique(mrhdata.read(tmp_path)).tolist() == [100, 101]
    assert ("MONOCHROME1" in caplog.text) == (photometric == "MONOCHROME1")


def test_slopes_of_slices_and_types(tmp_path):
    """Each slice has its slope; whole intercepts keep integers, as wide as the values need."""
    for i in range(3):
        values = np.full((8, 9), 1000)
        plane(tmp_path / "a" / f"{i}.dcm", values, (0, 0, 3 * i), number=i, RescaleSlope=0.5 + i, RescaleIntercept=-1)
    np.testing.assert_allclose(mrhdata.read(tmp_path / "a").values[:, 0, 0], 1000 * (0.5 + np.arange(3)) - 1)
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    plane(tmp_path / "b.dcm", np.full((8, 9), 24), BitsStored=12, HighBit=11, **tags)
    volume = mrhdata.read(tmp_path / "b.dcm")
    assert (volume.dtype, volume.values.max()) == (np.int16, -1000)
    plane(tmp_path / "c.dcm", np.full((8, 9), 65535), **tags)
    volume = mrhdata.read(tmp_path / "c.dcm")
    assert (volume.dtype, volume.values.max()) == (np.int32, 65535 - 1024)


def test_unused_bits_are_ignored(tmp_path):
    """Bits above BitsStored may hold an overlay; the sign is that of the highest used bit."""
    values = np.array([[0xF001, 0x0FFF]])
    plane(tmp_path / "a.dcm", values, BitsStored=12, HighBit=11)
    assert mrhdata.read(tmp_path / "a.dcm").values.ravel().tolist() == [1, 4095]
    plane(tmp_path / "b.dcm", values, BitsStored=12, HighBit=11, PixelRepresentation=1)
    assert mrhdata.read(tmp_path / "b.dcm").values.ravel().tolist() == [1, -1]


def test_single_bits_and_floating_point(tmp_path):
    """Frames of single bits begin within a byte; floating-point voxels have an element of their own."""
    bits = np.random.default_rng(0).integers(0, 2, (3, 5, 3)).astype(np.uint8)
    tags = elements(bits, NumberOfFrames=3, BitsAllocated=1, BitsStored=1, HighBit=0, PixelSpacing=[2, 2])
    tags.ImagePositionPatient, tags.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    tags.SpacingBetweenSlices = 3
    tags.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes()
    volume = mrhdata.read(save(tmp_path / "a.dcm", tags))
    np.testing.assert_array_equal(volume.values, bits)
    values = np.random.default_rng(0).random((5, 3)).astype(np.float32)
    tags = elements(values, BitsAllocated=32, BitsStored=None, HighBit=None, PixelRepresentation=None)
    del tags.PixelData
    tags.FloatPixelData = values.tobytes()
    np.testing.assert_array_equal(mrhdata.read(save(tmp_path / "b.dcm", tags)).values[0], values)


def test_colours_of_a_palette():
    """Indices become the red, green and blue of the file's table."""
    path = get_testdata_file("examples_palette.dcm", download=False)
    tags = pydicom.dcmread(path)
    volume = mrhdata.read(path)
    assert volume.sizes["c"] == 3
    expected = pydicom.pixels.apply_color_lut(tags.pixel_array, tags)
    np.testing.assert_array_equal(volume.isel(z=0).transpose("y", "x", "c"), expected)


def test_boxes_of_a_volume_are_read_alone(tmp_path):
    """A part of a multi-frame file equals that part of the whole."""
    values = np.random.default_rng(0).integers(0, 999, (6, 8, 9)).astype(np.uint16)
    enhanced(tmp_path / "a.dcm", values, [place((0, 0, 3 * k)) for k in range(6)])
    part = mrhdata.read(tmp_path / "a.dcm")[2:5, 1:4, ::2]
    np.testing.assert_array_equal(part, values[2:5, 1:4, ::2])


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"Rows": 60_000, "Columns": 60_000}, r"must have 7200000000 bytes; got 144"),
        ({"NumberOfFrames": 90_000}, r"must have 12960000 bytes; got 144"),
        ({"NumberOfFrames": 10**9}, "at most 100000 pictures"),
        ({"Rows": 0}, "must have Rows and Columns"),
        ({"BitsAllocated": 12}, "must have 1, 8, 16, 32 or 64 bits"),
        ({"HighBit": 11}, "the lowest ones used"),
        ({"SamplesPerPixel": 3}, "3 samples of MONOCHROME2"),
    ],
)
def test_claims_of_a_header_are_compared_with_the_bytes(tmp_path, tags, message):
    """Nothing is allocated for voxels that the file does not have."""
    picture = elements(np.zeros((8, 9)))
    picture.update(pydicom.dataset.Dataset())
    for name, value in tags.items():
        setattr(picture, name, value)
    with pytest.raises(FormatError, match=rf"a\.dcm.*{message}"):
        mrhdata.read(save(tmp_path / "a.dcm", picture))


def test_compressed_pictures_are_compared_with_the_header(tmp_path):
    """The size within the picture, the number of pieces and the expansion are checked before decoding."""
    tags = pydicom.dcmread(get_testdata_file("693_J2KI.dcm", download=False))
    tags.Rows = 256
    tags.save_as(tmp_path / "a.dcm")
    with pytest.raises(FormatError, match=r"must have \(256, 512, 1\) rows, columns and samples; got \(512, 512, 1\)"):
        mrhdata.read(tmp_path / "a.dcm").compute()
    tags.NumberOfFrames = 9
    tags.save_as(tmp_path / "b.dcm")
    with pytest.raises(FormatError, match="claims 9 pictures"):
        mrhdata.read(tmp_path / "b.dcm")
    tags.NumberOfFrames, tags.Rows, tags.Columns = 1, 60_000, 60_000
    tags.save_as(tmp_path / "c.dcm")
    with pytest.raises(FormatError, match=r"claims 1 pictures of 60000 x 60000"):
        mrhdata.read(tmp_path / "c.dcm")


def test_unknown_compression_and_damage_are_refused(tmp_path):
    """The message names the transfer syntax, or the file."""
    path = plane(tmp_path / "a.dcm", np.zeros((8, 9)))
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"))
    with pytest.raises(FormatError, match=r"a\.dcm is compressed as 1\.2\.840\.10008\.1\.2\.9"):
        mrhdata.read(path)
    tags = pydicom.dcmread(get_testdata_file("MR_small_RLE.dcm", download=False))
    assert tags.file_meta.TransferSyntaxUID == RLELossless
    tags.PixelData = tags.PixelData[:100] + b"\xff" * (len(tags.PixelData) - 100)
    tags.save_as(tmp_path / "b.dcm")
    with pytest.raises(FormatError, match=r"b\.dcm"):
        mrhdata.read(tmp_path / "b.dcm").compute()


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_dcmtk.dcm", "MR_small_jpeg_ls_lossless.dcm", "693_J2KI.dcm"])
def test_pictures_that_are_cut_off_are_refused(tmp_path, name):
    """The end of a compressed picture is looked for, because a codec may fill what is missing."""
    tags = pydicom.dcmread(get_testdata_file(name, download=False))
    picture = encaps.get_frame(tags.PixelData, 0, number_of_frames=1)
    tags.PixelData = encaps.encapsulate([picture[: len(picture) // 2]])
    tags.save_as(tmp_path / "a.dcm")
    with pytest.raises(FormatError, match=r"a\.dcm: the compressed picture is truncated"):
        mrhdata.read(tmp_path / "a.dcm").compute()


def test_implicit_value_representations(tmp_path):
    """Files without value representations are read like others."""
    values = numbered(1)[0]
    save(tmp_path / "a.dcm", elements(values), ImplicitVRLittleEndian)
    np.testing.assert_array_equal(mrhdata.read(tmp_path / "a.dcm").values[0], values)
