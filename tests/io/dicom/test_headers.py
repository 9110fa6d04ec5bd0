"""DICOM files among others: found without preamble, behind other files, next to pictures, or refused."""

import shutil
import warnings

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian

import mrhdata
from mrhdata.errors import FormatError
from mrhdata.io.dicom import deflated
from mrhdata.volume.file_arrays import bytes_at_once
from tests.io.dicom.files import dataset, elements, plane, save, series


def test_files_without_preamble(tmp_path):
    """Files that begin with their first element are DICOM too."""
    series(tmp_path, [0, 3, 6])
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        path.write_bytes(content[content.index(b"\x08\x00\x16\x00UI") :])
        path.rename(path.with_suffix(""))
    volume = mrhdata.read(tmp_path)
    assert volume.values[:, 0, 0].tolist() == [100, 101, 102]
    assert mrhdata.read(tmp_path / "IM0001").values.max() == 101


def test_series_behind_other_files(tmp_path):
    """Many annotations that come first by name do not hide a series, nor does a hidden file."""
    for i in range(25):
        (tmp_path / f"069_{i:02}.xml").write_text("<LidcReadMessage/>")
    (tmp_path / "._IM0001.dcm").write_bytes(b"Mac OS X")
    assert mrhdata.read(series(tmp_path, [0, 3, 6])).sizes["z"] == 3


def test_pictures_next_to_a_series(tmp_path, caplog):
    """A preview is left out with a warning; more pictures than DICOM files are refused."""
    series(tmp_path, [0, 3, 6])
    picture = imagecodecs.png_encode(np.zeros((8, 9), np.uint8))
    (tmp_path / "preview.png").write_bytes(picture)
    assert mrhdata.read(tmp_path).sizes["z"] == 3
    assert "3 DICOM files are read, without 1 pictures" in caplog.text
    for i in range(4):
        (tmp_path / f"plane{i}.png").write_bytes(picture)
    with pytest.raises(FormatError, match=r"got 3 and 5\. Pass a pattern such as .*\.png"):
        mrhdata.read(tmp_path)


def test_objects_without_voxels(tmp_path):
    """A list of files and a report next to a series are left out; on their own they are refused by name."""
    series(tmp_path / "IMAGES", [0, 3, 6])
    for folder in (tmp_path, tmp_path / "IMAGES"):
        save(folder / "DICOMDIR", dataset(SOPClassUID="1.2.840.10008.1.3.10", FileSetID="DISC"))
        save(folder / "REPORT.dcm", dataset(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR"))
    assert mrhdata.read(tmp_path / "IMAGES").sizes["z"] == 3
    with pytest.raises(FormatError, match=r"none with voxels; pass a folder of images, such as .*IMAGES"):
        mrhdata.read(tmp_path)
    with pytest.raises(FormatError, match="a list of files"):
        mrhdata.read(tmp_path / "DICOMDIR")
    with pytest.raises(FormatError, match="Basic Text SR Storage"):
        mrhdata.read(tmp_path / "REPORT.dcm")


@pytest.mark.parametrize("length", [0, 200, 500, -10])
def test_a_truncated_slice_is_refused(tmp_path, length):
    """A series with a damaged last file is never read as a shorter one."""
    series(tmp_path, [0, 3, 6])
    path = tmp_path / "IM0002.dcm"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FormatError, match=r"IM0002\.dcm"):
        mrhdata.read(tmp_path).compute()


def test_lengths_beyond_the_file_are_not_allocated(tmp_path):
    """An element that claims 4 GB is read as far as the file goes."""
    path = plane(tmp_path / "a.dcm", np.zeros((8, 9)), SeriesDescription="T1")
    content = path.read_bytes()
    at = content.index(b"\x08\x00\x3e\x10LO")
    claim = b"\x08\x00\x3e\x10UT\0\0" + (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(content[:at] + claim + content[at + 8 :])
    with pytest.raises(FormatError, match=r"a\.dcm"):
        mrhdata.read(path)


def deflate(path):
    """Rewrite a file with deflated elements."""
    tags = pydicom.dcmread(path)
    return save(path, tags, DeflatedExplicitVRLittleEndian)


def test_deflated_file_of_pydicom():
    """The voxels are those that pydicom reads, and all of the file counts towards a budget."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = get_testdata_file("image_dfl.dcm", download=False)
        expected = pydicom.dcmread(path).pixel_array
    volume = mrhdata.read(path)
    np.testing.assert_array_equal(volume.transpose("z", "y", "x").values[0], expected)
    assert bytes_at_once(volume.data) > 3 * expected.nbytes


def test_deflated_series_is_read_as_the_plain_one(tmp_path):
    """Positions and voxels are equal; a repeated file is left out."""
    plain = mrhdata.read(series(tmp_path / "plain", [0, 3, 6]))
    for path in series(tmp_path / "packed", [0, 3, 6]).iterdir():
        deflate(path)
    (tmp_path / "packed" / "copy.dcm").write_bytes((tmp_path / "packed" / "IM0001.dcm").read_bytes())
    packed = mrhdata.read(tmp_path / "packed")
    np.testing.assert_array_equal(packed, plain)
    assert packed.mrh.grid.same_as(plain.mrh.grid)


def test_pictures_of_one_deflated_file_are_inflated_once(tmp_path, monkeypatch):
    """Without a memory of the last file, the time would grow with the square of the number of pictures."""
    values = np.arange(6 * 4 * 5, dtype=np.uint16).reshape(6, 4, 5)
    path = save(tmp_path / "a.dcm", elements(values, NumberOfFrames=6), DeflatedExplicitVRLittleEndian)
    deflated._inflated.cache_clear()
    np.testing.assert_array_equal(np.sort(mrhdata.read(path).values, axis=None), values.ravel())
    assert deflated._inflated.cache_info().misses == 1


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damaged_deflated_file_is_refused(tmp_path, damage):
    """A stream without its end, or with other bytes, is an error of one sentence."""
    path = deflate(plane(tmp_path / "a.dcm", np.random.default_rng(0).integers(0, 999, (40, 50))))
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[-300:]
    else:
        content[400:420] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"a\.dcm is (truncated|damaged)"):
        mrhdata.read(path)


def test_deflated_file_that_claims_too_many_voxels_is_refused(tmp_path, monkeypatch):
    """Nothing is allocated for voxels that the stream cannot hold, nor inflated beyond the limit of a header."""
    path = plane(tmp_path / "a.dcm", np.zeros((40, 50)))
    tags = pydicom.dcmread(path)
    tags.Rows = tags.Columns = 60_000
    save(path, tags, DeflatedExplicitVRLittleEndian)
    with pytest.raises(FormatError, match=r"a\.dcm is truncated or damaged: 1 x 60000 x 60000 voxels"):
        mrhdata.read(path)
    monkeypatch.setattr(deflated, "HEADER_BYTES", 2000)
    deflated._inflated.cache_clear()
    with pytest.raises(FormatError, match=r"a\.dcm is truncated or damaged: .* got \d{4,5}\. Copy it again"):
        mrhdata.read(path)


def test_list_of_files_of_pydicom_next_to_images_is_left_out(tmp_path):
    """A DICOMDIR in the folder of a series does not disturb, whatever its name."""
    series(tmp_path, [0, 3, 6])
    for name in ("DICOMDIR", "dicomdir.dcm"):
        shutil.copyfile(get_testdata_file("DICOMDIR", download=False), tmp_path / name)
    assert mrhdata.read(tmp_path).sizes["z"] == 3
