"""Volumes that several tests of the command line read."""

import numpy as np
import pytest

import mrhdata
from mrhdata.volume.construct import from_array
from tests.conftest import oblique_affine


@pytest.fixture
def files(tmp_path):
    """Folder of a contrast (t2.nii) that follows histology (af.nii), and of a mask, all on one oblique grid."""
    rng = np.random.default_rng(0)
    histology = rng.random((20, 20, 20))
    volumes = {"t2": 100 * histology + rng.normal(0, 20, histology.shape), "af": histology, "mask": histology > -1}
    for name, values in volumes.items():
        mrhdata.write(from_array(values.astype(np.float32), affine=oblique_affine()), tmp_path / f"{name}.nii")
    return tmp_path


@pytest.fixture
def labelled_study(tmp_path):
    """Folder of four subjects with a T1w image of anisotropic voxels and a cuboid of label 7, as MINC files."""
    rng = np.random.default_rng(0)
    study = tmp_path / "study"
    for subject in range(4):
        labels = np.zeros((6, 24, 24), np.uint8)
        labels[1:5, 6:18, 6 + subject : 18] = 7
        image = (labels + rng.normal(0, 1, labels.shape)).astype(np.float32)
        folder = study / f"sub-{subject}"
        folder.mkdir(parents=True)
        for name, values in {"T1w": image, "seg": labels}.items():
            mrhdata.write(from_array(values, spacing=(2, 1, 1)), folder / f"sub-{subject}_{name}.mnc")
    return study
