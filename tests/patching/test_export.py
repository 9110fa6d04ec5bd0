"""Patches in other libraries' clothes, where these are installed."""

import numpy as np
import pytest

import mrhdata
from mrhdata.errors import DataError
from mrhdata.volume.construct import from_array
from tests.conftest import oblique_affine


@pytest.fixture
def patches():
    """An oblique image and labels of half its extent, at twice the spacing."""
    affine = oblique_affine(spacing=(0.1, 0.2, 0.3))[:, [2, 1, 0, 3]]
    image = from_array(np.random.default_rng(0).random((12, 10, 8), dtype=np.float32), affine=affine)
    labels = (image > 0.5).astype(np.uint8).assign_attrs(kind="labels").isel(z=slice(None, None, 2))
    return mrhdata.patches(image, labels, shape=(4, 3, 2), target_shape=(2, 3, 2), grids="native")


def test_each_tensor_has_an_affine_of_its_own(patches):
    """The voxel (0, 0, 0) of each tensor lies where its volume says."""
    image, labels = (s.grid for s in patches.sources[0])
    np.testing.assert_allclose(patches.affine()[:, :3, 3], image.world(patches.positions))
    starts = patches.sources[0][1].starts(patches.positions)
    np.testing.assert_allclose(patches.affine(stream=1)[:, :3, 3], labels.world(starts))


def test_torchio_subjects_keep_values_kind_and_place(patches):
    """A ScalarImage and a LabelMap with the patch's voxels and affine."""
    torchio = pytest.importorskip("torchio")
    subject = patches.to_torchio(3)
    image, labels = patches[3]
    np.testing.assert_array_equal(subject["input"].data, image)
    np.testing.assert_array_equal(subject["target"].data, labels)
    assert isinstance(subject["target"], torchio.LabelMap)
    np.testing.assert_allclose(subject["target"].affine, patches.affine(np.array([3]), stream=1)[0])


def test_monai_tensors_keep_values_and_place(patches):
    """MetaTensors with the patch's voxels and affine."""
    pytest.importorskip("monai")
    found = patches.to_monai(-1)
    np.testing.assert_array_equal(found["input"], patches[-1][0])
    np.testing.assert_allclose(found["target"].affine, patches.affine(np.array([len(patches) - 1]), stream=1)[0])


def test_missing_libraries_are_named(patches, monkeypatch):
    """Not an ImportError from somewhere within."""
    monkeypatch.setitem(__import__("sys").modules, "torchio", None)
    with pytest.raises(DataError, match="torchio is not installed; pip install torchio"):
        patches.to_torchio(0)
