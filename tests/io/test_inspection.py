"""What is suspicious is said; what differs is counted."""

import nibabel as nib
import numpy as np
import pytest
import tifffile

import mrhdata
from mrhdata.datasets import build
from mrhdata.errors import GridError
from mrhdata.io import inspection
from mrhdata.volume.construct import from_array
from tests.conftest import oblique_affine


def suspicions(volume, path, **options):
    mrhdata.write(volume, path, overwrite=True)
    return " ".join(inspection.inspect(path, **options)["suspicious"])


def test_an_honest_file_is_not_suspicious(tmp_path, oblique):
    """Nothing is said of it, and the geometry is printed."""
    mrhdata.write(oblique, tmp_path / "a.nii")
    found = inspection.inspect(tmp_path / "a.nii")
    assert found["suspicious"] == []
    assert found["orientation"] == "SAR"
    assert found["spacing"] == {"z": "300 um", "y": "200 um", "x": "100 um"}
    assert found["range"] == {"low": float(oblique.min()), "high": float(oblique.max())}


def test_spacings_are_shown_as_people_write_them(tmp_path):
    """Headers hold them with seven digits; in what is printed and in catalogues that is noise."""
    made = from_array(np.random.default_rng(0).random((4, 5, 6), np.float32), spacing=(0.150000006, 0.1, 0.1))
    mrhdata.write(made, tmp_path / "a.nrrd")
    assert mrhdata.read(tmp_path / "a.nrrd").mrh.spacing[0] > 0.150000005
    assert inspection.inspect(tmp_path / "a.nrrd")["spacing_mm"] == {"z": 0.15, "y": 0.1, "x": 0.1}
    listed = mrhdata.open_catalog(build.build(tmp_path)).find()
    assert [held["spacing_mm"] for held, _ in listed.values()] == [[0.15, 0.1, 0.1]]


def test_suspicious_things(tmp_path):
    """NaN, constant planes, metres, ppm against ppb, a millimetre in a microscope."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(8, 9, 10)).astype(np.float32)
    broken = values.copy()
    broken[2, 3, 4] = np.nan
    broken[5] = 1
    path = tmp_path / "a.nii"
    said = suspicions(from_array(broken, spacing=(2, 2, 2)), path)
    assert "1 of 720 values are NaN" in said
    assert "1 planes between others" in said
    assert "m long" in suspicions(from_array(values, spacing=(500, 500, 500)), path)
    assert "looks like ppm" in suspicions(from_array(0.1 * values, spacing=(1, 1, 1), name="qsm"), tmp_path / "qsm.nii")
    stated = from_array(80 * values, spacing=(1, 1, 1), name="qsm", units="ppm")
    assert "stated in ppm but looks like ppb" in suspicions(stated, tmp_path / "qsm.nii")
    assert "unit um?" in suspicions(from_array(values, spacing=(1, 1, 1), modality="em"), path)
    tifffile.imwrite(tmp_path / "a.tif", rng.integers(0, 99, (4, 5, 6)).astype(np.uint8), photometric="minisblack")
    assert "no voxel size" in " ".join(inspection.inspect(tmp_path / "a.tif")["suspicious"])


def test_forms_that_disagree(tmp_path):
    """Qform and sform of one NIfTI lie in different places; without either the orientation is a guess."""
    image = nib.Nifti1Image(np.random.default_rng(0).random((4, 5, 6)).astype(np.float32), np.eye(4))
    image.set_qform(np.eye(4), 1)
    image.set_sform(np.diag([1, 1, 1, 1]) + np.array([[0, 0, 0, 5]] + [[0] * 4] * 3), 1)
    nib.save(image, tmp_path / "a.nii")
    assert "qform and sform disagree by up to 5 mm" in inspection.inspect(tmp_path / "a.nii")["suspicious"][0]
    image.set_qform(None, 0)
    image.set_sform(None, 0)
    nib.save(image, tmp_path / "b.nii")
    assert "guess" in inspection.inspect(tmp_path / "b.nii")["suspicious"][0]


def test_the_lying_atlas_is_caught(shared):
    """annotation_100.nrrd claims voxels of 100 mm; with its override it is quiet."""
    path = shared / "mouse-mri-histology" / "annotation_100.nrrd"
    assert "13.2 m long" in " ".join(inspection.inspect(path)["suspicious"])
    assert inspection.inspect(path, axes="PIR", unit="um", kind="labels")["suspicious"] == []


def test_difference_in_world_space(tmp_path, oblique):
    """Formats, flips and axis orders do not matter; voxels and places do."""
    for ending in (".nii", ".mnc", ".nrrd", ".zarr"):
        mrhdata.write(oblique, tmp_path / f"a{ending}")
        assert inspection.difference(oblique, mrhdata.read(tmp_path / f"a{ending}"))["same"], ending
    flipped = oblique.isel(y=slice(None, None, -1))
    assert inspection.difference(oblique, flipped)["same"]
    changed = oblique.copy()
    changed[2, 3, 1] += 5
    found = inspection.difference(oblique, changed)
    assert (found["same"], found["different"], found["max_difference"]) == (False, 1, 5.0)
    part = inspection.difference(oblique, oblique.isel(z=slice(2, 5)))
    assert (part["same"], part["different"]) == (False, 0)
    assert part["compared"] == pytest.approx(3 / 7)


def test_difference_on_another_grid():
    """A linear field is the same on a finer, turned grid, but for the interpolation's rounding."""
    coarse, fine = oblique_affine(spacing=(1, 1, 1)), oblique_affine(angles=(0, 0, 0), spacing=(0.3, 0.4, 0.5))
    volumes = []
    for affine, shape in ((coarse, (6, 6, 6)), (fine, (40, 40, 40))):
        places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
        volumes.append(from_array(places @ [1.0, 2.0, 3.0], affine=affine))
    found = inspection.difference(*volumes)
    assert not found["same_grid"]
    assert found["max_difference"] < 1e-9
    assert found["correlation"] == pytest.approx(1)


def test_differences_that_make_no_sense(oblique):
    """Other spaces, and volumes that do not meet."""
    from mrhdata.volume.construct import describe

    with pytest.raises(GridError, match="spaces differ"):
        inspection.difference(oblique, describe(oblique, space="MNI152"))
    far = from_array(oblique.values, affine=oblique_affine(origin=(900, 0, 0))[:, [2, 1, 0, 3]])
    with pytest.raises(GridError, match="do not overlap"):
        inspection.difference(oblique, far)
