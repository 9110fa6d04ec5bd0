"""First lines that users of TorchIO, MONAI, xarray, nnU-Net and BrainGlobe would type, in this package."""

import numpy as np
import pytest
import torch
import xarray as xr

import mrhdata
from mrhdata import samplers
from mrhdata.inference import Output, SlidingWindow


def head(seed):
    """A small T1w volume and its labels, which follow the intensity."""
    values = np.random.default_rng(seed).random((12, 14, 16)).astype(np.float32)
    t1w = mrhdata.from_array(values, spacing=(1, 1, 1), name="t1w")
    seg = mrhdata.from_array((values > 0.8).astype(np.uint8), spacing=(1, 1, 1), kind="labels", name="seg")
    mask = mrhdata.from_array((values > 0.1).astype(np.uint8), spacing=(1, 1, 1), kind="mask", name="mask")
    return {"t1w": t1w, "seg": seg, "mask": mask}


def test_a_torchio_user_names_target_mask_and_labels_of_subjects():
    """One sequence of subjects; a sampler that balances classes takes the labels by name."""
    subjects = [head(0), head(1)]
    patches = mrhdata.patches(
        subjects,
        target="seg",
        mask="mask",
        shape=4,
        sampler=samplers.ClassBalanced(80, labels="seg", ratios={0: 1, 1: 3}),
    )
    image, label = patches[0]
    assert image.shape == label.shape == (1, 4, 4, 4)
    assert patches.channels == ["t1w"]
    assert np.bincount(patches.classes).tolist() == [20, 60]
    with pytest.raises(TypeError, match=r"patches\(\) has no argument 'patch_size'; use shape="):
        mrhdata.patches(subjects, target="seg", patch_size=4)


def test_a_monai_user_gets_dictionaries_and_sliding_windows():
    """Batches with image and label; windows blended by a Gaussian; classes by argmax; a volume in memory."""
    subject = head(2)
    loader = mrhdata.patches(subject["t1w"], subject["seg"], shape=4).loader(8, as_dict=True)
    batch = next(iter(loader))
    assert batch["image"].shape == batch["label"].shape == (8, 1, 4, 4, 4)
    model = torch.nn.Conv3d(1, 2, 3, padding=1)
    labels = mrhdata.predict(
        model,
        subject["t1w"],
        windows=SlidingWindow(shape=(8, 8, 8), overlap=0.5, blend="gaussian", batch_size=4),
        output=Output(argmax=True),
        progress=False,
    )
    assert isinstance(labels.data, np.ndarray)
    assert labels.attrs["kind"] == "labels"
    assert set(np.unique(labels)) <= {0, 1}


def test_an_xarray_user_opens_slices_resamples_writes_and_plots(tmp_path):
    """The engine by name, sizes by dimension, and five methods of the accessor."""
    volume = head(3)["t1w"]
    volume.mrh.write(tmp_path / "a.nii.gz")
    opened = xr.open_dataset(tmp_path / "a.nii.gz", engine="mrhdata")
    assert dict(next(iter(opened.data_vars.values())).sizes) == dict(volume.sizes)
    coarse = volume.isel(z=slice(None, None, 2))
    assert volume.mrh.resample(like=coarse).mrh.grid.same_as(coarse.mrh.grid)
    assert volume.mrh.like(volume).equals(volume)
    patches = volume.mrh.patches(shape={"z": 1, "y": 4, "x": 8}, stride={"z": 1, "y": 2, "x": 8})
    assert patches.shape == (1, 4, 8)
    assert len(volume.mrh.plot().axes) == 3
