"""Written drafts are compared with their volume before they get their name."""

import numpy as np
import pytest

import mrhdata
from mrhdata.errors import FormatError
from mrhdata.io import itk, nifti
from mrhdata.io.draft_check import check_draft
from mrhdata.volume.construct import from_array, place
from tests.conftest import oblique_affine

VALUES = np.random.default_rng(0).integers(0, 999, (4, 5, 6)).astype(np.int16)
ENDINGS = [".nii", ".nii.gz", ".mnc", ".nrrd", ".mha", ".ome.tif"]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("lazy", [False, True])
def test_good_drafts_pass(tmp_path, ending, lazy):
    """Oblique, reversed, cropped and lazy volumes, and axes that are not those nearest to the world's, are written."""
    volume = from_array(VALUES, affine=oblique_affine())
    turned = place(VALUES, "zyx", (1, 2, 3), np.diag([1.0, 1, 1, 1]), space="scanner")
    for i, variant in enumerate((volume, volume.isel(z=slice(None, None, -1)), volume.isel(y=2), turned)):
        variant = variant.chunk() if lazy else variant
        mrhdata.write(variant, tmp_path / f"{i}{ending}")
        assert (tmp_path / f"{i}{ending}").is_file()


@pytest.mark.parametrize("ending", ENDINGS)
def test_file_that_its_library_cut_does_not_appear(tmp_path, monkeypatch, ending):
    """If a library writes half a file and says nothing, writing raises, and an old file stays."""
    from mrhdata.io import formats

    writer = formats.writer_of(f"a{ending}")
    volume = from_array(np.random.default_rng(0).random((20, 20, 20), np.float32), spacing=(1, 1, 1))
    complete = writer.write

    def cut(volume, path):
        complete(volume, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    monkeypatch.setattr(writer, "write", cut)
    (tmp_path / f"a{ending}").write_bytes(b"old")
    with pytest.raises(FormatError, match=rf"a{ending} was not written completely"):
        mrhdata.write(volume, tmp_path / f"a{ending}", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{ending}"]
    assert (tmp_path / f"a{ending}").read_bytes() == b"old"


def test_drafts_with_other_content_are_found(tmp_path):
    """A changed voxel, another shape, spacing or origin raise; a flip in the file does not."""
    volume = from_array(VALUES, affine=np.diag([1.0, 2, 3, 1]), dims="zyx")
    path = tmp_path / "a.nii"

    def check(other):
        nifti.write(other, path)
        check_draft(volume, path, path, nifti)

    check(volume)
    changed = volume.copy(deep=True)
    changed[1, 2, 3] += 1
    shifted = volume.assign_coords(z=volume.z + 1)
    for other in (changed, volume.isel(z=slice(1, None)), shifted, from_array(VALUES, affine=np.diag([1.0, 2, 4, 1]))):
        with pytest.raises(FormatError, match=r"a\.nii was not written completely"):
            check(other)
    check(volume.isel(x=slice(None, None, -1)))


def test_full_disk_is_told_with_the_file(tmp_path, monkeypatch):
    """An error of the operating system while a file is written names the file."""

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nifti.nib, "save", fail)
    with pytest.raises(FormatError, match=r"a\.nii cannot be written: No space left on device"):
        mrhdata.write(from_array(VALUES, spacing=(1, 1, 1)), tmp_path / "a.nii")
    monkeypatch.setattr(itk.sitk, "WriteImage", lambda *_, **__: None)
    with pytest.raises(FormatError, match=r"a\.mnc was not written completely"):
        mrhdata.write(from_array(VALUES, spacing=(1, 1, 1)), tmp_path / "a.mnc")
    assert list(tmp_path.iterdir()) == []
