"""Export of patches to TorchIO and MONAI, if these are installed."""

import numpy as np
import pytest

import mrhdata
from mrhdata.errors import DataError
from mrhdata.volume.construct import from_array
from tests.conftest import oblique_affine


@pytest.fixture
def patches():
    """Return patches of an oblique image, and of labels at twice the spacing along z."""
    affine = oblique_affine(spacing=(0.1, 0.2, 0.3))[:, [2, 1, 0, 3]]
    image = from_array(np.random.default_rng(0).random((12, 10, 8), dtype=np.float32), affine=affine)
    labels = (image > 0.5).astype(np.uint8).assign_attrs(kind="labels").isel(z=slice(None, None, 2))
    return mrhdata.patches(image, labels, shape=(4, 3, 2), target_shape=(2, 3, 2), grids="native")


def test_each_tensor_has_its_own_affine(patches):
    """The voxel (0, 0, 0) of each tensor lies at the world point of its volume."""
    image, labels = (s.grid for s in patches.sources[0])
    np.testing.assert_allclose(patches.affine()[:, :3, 3], image.world(patches.positions))
    starts = patches.sources[0][1].starts(patches.positions)
    np.testing.assert_allclose(patches.affine(stream=1)[:, :3, 3], labels.world(starts))


def test_torchio_subject_has_values_kind_and_affine(patches):
    """A ScalarImage and a LabelMap have the voxels and the affine of the patch."""
    torchio = pytest.importorskip("torchio")
    subject = patches.to_torchio(3)
    image, labels = patches[3]
    np.testing.assert_array_equal(subject["input"].data, image)
    np.testing.assert_array_equal(subject["target"].data, labels)
    assert isinstance(subject["target"], torchio.LabelMap)
    np.testing.assert_allclose(subject["target"].affine, patches.affine(np.array([3]), stream=1)[0])


def test_monai_tensors_have_values_and_affine(patches):
    """MetaTensors have the voxels and the affine of the patch."""
    pytest.importorskip("monai")
    tensors = patches.to_monai(-1)
    np.testing.assert_array_equal(tensors["input"], patches[-1][0])
    np.testing.assert_allclose(tensors["target"].affine, patches.affine(np.array([len(patches) - 1]), stream=1)[0])


def test_missing_library_raises_data_error_with_its_name(patches, monkeypatch):
    """The error is a DataError, not an ImportError."""
    monkeypatch.setitem(__import__("sys").modules, "torchio", None)
    with pytest.raises(DataError, match="torchio is not installed; pip install torchio"):
        patches.to_torchio(0)
