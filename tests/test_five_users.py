"""First lines that users of TorchIO, MONAI, xarray and BrainGlobe would type, in this package.

Those of a user of nnU-Net are in tests/cli/test_segmentation.py, next to the data set that they need.
"""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
import xarray as xr

import mrhdata
from mrhdata import samplers
from mrhdata.datasets import brainglobe
from mrhdata.inference import Output, SlidingWindow
from tests.conftest import command


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


@pytest.fixture
def installed_atlas(tmp_path, monkeypatch):
    """An atlas of BrainGlobe whose front half is region 1 and whose back half is region 2; axes begin at a, s, r."""
    folder = tmp_path / "atlases" / "tiny_mouse_100um_v1.0"
    folder.mkdir(parents=True)
    regions = np.broadcast_to(np.repeat([1, 2], 2).astype(np.uint32)[:, None, None], (4, 5, 6))
    tifffile.imwrite(folder / "annotation.tiff", regions, photometric="minisblack")
    (folder / "metadata.json").write_text(json.dumps({"resolution": [100, 100, 100], "orientation": "asr"}))
    structures = [
        {"id": 997, "name": "root", "structure_id_path": [997]},
        {"id": 1, "name": "front", "structure_id_path": [997, 1]},
        {"id": 2, "name": "back", "structure_id_path": [997, 2]},
    ]
    (folder / "structures.json").write_text(json.dumps(structures))
    monkeypatch.setattr(brainglobe, "HOME", tmp_path / "atlases")
    return brainglobe.read_atlas("tiny_mouse_100um")


def test_a_brainglobe_user_types_spacing_orientation_and_the_name_of_an_atlas(installed_atlas, tmp_path):
    """Voxels as 5,2,2 um, axes by their origins, points as XML, and a table of regions from an installed atlas."""
    tifffile.imwrite(tmp_path / "signal.tif", np.zeros((4, 6, 8), np.uint16), photometric="minisblack")
    read = ["--spacing", "5,2,2", "--unit", "um", "--orientation", "bg:asr"]
    code, _, error = command("convert", tmp_path / "signal.tif", "-o", tmp_path / "signal.zarr", *read)
    assert code == 0, error
    signal = mrhdata.read(tmp_path / "signal.zarr")
    assert signal.attrs["source_axes"] == ["y", "z", "x"]
    assert (signal.mrh.grid.orientation, signal.mrh.spacing.round(6).tolist()) == ("IPL", [0.002, 0.005, 0.002])
    voxels = pd.DataFrame({"z": 1, "y": [0, 1, 3, 3, 3], "x": 0}).astype(float)
    mrhdata.io.cell_tables.write_points(voxels, tmp_path / "points.xml", installed_atlas.annotation)
    mrhdata.write(installed_atlas.annotation, tmp_path / "annotation.nii.gz")
    words = ["count", tmp_path / "points.xml", "-o", tmp_path / "summary.csv", "--atlas", "tiny_mouse_100um"]
    code, _, error = command(*words, "--like", tmp_path / "annotation.nii.gz")
    assert code == 0, error
    table = pd.read_csv(tmp_path / "summary.csv").set_index("name")
    assert table["count"].to_dict() == {"outside": 0, "root": 5, "front": 2, "back": 3}
    refused = [*words, "--like", tmp_path / "annotation.nii.gz", "--overwrite"]
    for wrong, sentence in (
        ([*refused, "--spacing", "1"], "spacing must not be passed with --atlas"),
        ([*refused, tmp_path / "annotation.nii.gz"], "pass either REGIONS or --atlas"),
    ):
        code, _, error = command(*wrong)
        assert (code, sentence in error) == (2, True), error
