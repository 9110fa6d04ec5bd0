"""Labels that a file does not call so are noticed before they are interpolated."""

import numpy as np
import pytest

import mrhdata
from mrhdata.io.inspection import inspect
from mrhdata.volume.construct import from_array
from tests.conftest import command as run

LABELS = np.repeat(np.repeat(np.arange(24.0).reshape(2, 3, 4), 6, axis=1), 6, axis=2)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_unnamed_labels_are_suspicious(tmp_path, dtype):
    """Whatever their type; not once they are read as labels."""
    path = tmp_path / "atlas.nii"
    mrhdata.write(from_array(LABELS.astype(dtype), spacing=(1, 1, 1)), path)
    (sentence,) = inspect(path)["suspicious"]
    assert "as labels are" in sentence
    assert inspect(path, kind="labels")["suspicious"] == []


@pytest.mark.parametrize("change", [lambda x: x / 7, lambda x: np.arange(x.size, dtype=float).reshape(x.shape)])
def test_images_are_not_suspicious(tmp_path, change):
    """Fractions in regions, and whole numbers without regions."""
    mrhdata.write(from_array(change(LABELS), spacing=(1, 1, 1)), tmp_path / "image.nii")
    assert inspect(tmp_path / "image.nii")["suspicious"] == []


def test_resampled_labels_are_warned_of(tmp_path):
    """Interpolation would make values between two labels; the nearest voxel would not."""
    mrhdata.write(from_array(LABELS.astype(np.float32), spacing=(1, 1, 1)), tmp_path / "atlas.nii")
    words = ("resample", tmp_path / "atlas.nii", "--spacing-mm", "2", "--overwrite", "-o", tmp_path / "out.nii")
    assert "as labels are" in run(*words)[2]
    assert run(*words, "--order", "0")[2] == ""
    assert run(*words, "--kind", "labels")[2] == ""
    mrhdata.write(from_array(LABELS.astype(np.float32), spacing=(1, 1, 1)), tmp_path / "x_dseg.nii")
    assert run("resample", tmp_path / "x_dseg.nii", *words[2:])[2] == ""
    assert set(np.unique(mrhdata.read(tmp_path / "out.nii").values)) <= set(range(24))
