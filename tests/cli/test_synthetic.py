"""Training on a folder of label maps, and segmenting with the network."""

import functools
import json

import numpy as np
import pytest

import mrhdata
from mrhdata.recipes import synthetic
from mrhdata.volume.construct import from_array
from tests.conftest import command as run

SMALL = {
    "config": {"widths": (4, 6), "details": 2, "head": 4},
    "shape": (16, 16, 16),
    "patches": 8,
    "quality_volumes": 20,
}


@pytest.fixture
def label_maps(tmp_path, monkeypatch):
    """Folder of four small heads with FreeSurfer's labels; the recipe is as small."""
    folder = tmp_path / "maps"
    folder.mkdir()
    for number in range(4):
        labels = np.zeros((32, 32, 32), np.int16)
        labels[4:28, 4:28, 4:28] = 24
        labels[6:26, 6:26, 6:26] = 3
        labels[10:22, 10 + number : 22, 10:22] = 2
        mrhdata.write(from_array(labels, spacing=(1, 1, 1), kind="labels"), folder / f"head-{number}.nii.gz")
    monkeypatch.setattr(synthetic, "SyntheticRecipe", functools.partial(synthetic.SyntheticRecipe, **SMALL))
    return folder


def train(label_maps, *words):
    return run("train", "segmentation", "--synthetic", label_maps, "-o", label_maps.parent / "net", *words)


@pytest.mark.parametrize(("targets", "labels"), [("tissue", list(range(8))), ("labels", [0, 2, 3, 24])])
def test_network_of_label_maps_segments_a_head(label_maps, targets, labels, tmp_path):
    code, out, err = train(label_maps, "--targets", targets, "--epochs", 1, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["maps"], answer["labels"]) == (4, labels)
    image = from_array(np.random.default_rng(0).random((20, 24, 16), np.float32), spacing=(1, 2, 1))
    mrhdata.write(image, tmp_path / "head.nii.gz")
    words = ["segment", tmp_path / "net" / "network", tmp_path / "head.nii.gz", "-o", tmp_path / "labels.nii.gz"]
    # After one epoch the network predicts that its labels are wrong.
    code, _, err = run(*words)
    assert (code, "pass force=True (--force)" in err) == (2, True), err
    assert not (tmp_path / "labels.nii.gz").exists()
    code, _, err = run(*words, "--force")
    assert code == 0, err
    result = mrhdata.read(tmp_path / "labels.nii.gz", kind="labels")
    assert result.shape == image.shape
    assert set(np.unique(result.values).tolist()) <= set(labels)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--folds", 3], "--synthetic without STUDY excludes --input, --labels, --folds; got --folds"),
        (["--targets", "cortex"], "--targets must be tissue, structures or labels; got 'cortex'"),
    ],
)
def test_options_that_do_not_fit_are_refused(label_maps, words, sentence):
    code, _, err = train(label_maps, *words)
    assert code == 2
    assert sentence in err
    assert not (label_maps.parent / "net").exists()


def test_unknown_labels_have_no_tissue(label_maps):
    mrhdata.write(from_array(np.full((8, 8, 8), 999, np.int16), spacing=(1, 1, 1), kind="labels"), label_maps / "x.nii")
    code, _, err = train(label_maps)
    assert code == 2
    assert "--targets tissue needs the labels of FreeSurfer; got [999]. Pass --targets labels" in err


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_folder_without_label_maps_is_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    code, _, err = run("train", "segmentation", "--synthetic", tmp_path / folder, "-o", tmp_path / "net")
    assert code == 2
    assert str(tmp_path / folder) in err


def test_label_maps_are_mixed_with_a_study(label_maps, tmp_path):
    """Held-out subjects are scored; the first network is that of another training."""
    assert train(label_maps, "--epochs", 1)[0] == 0
    study = tmp_path / "study"
    study.mkdir()
    for number in range(3):
        labels = np.zeros((20, 24, 24), np.uint8)
        labels[2:18, 4:20, 4 + number : 20] = 2
        labels[6:14, 8:16, 8:16] = 3
        mrhdata.write(from_array(labels, spacing=(1, 1, 1), kind="labels"), study / f"sub-{number}_seg.nii")
        image = from_array(labels * np.float32(40) + number, spacing=(1, 1, 1))
        mrhdata.write(image, study / f"sub-{number}_T1w.nii")
    words = ["train", "segmentation", study, "--input", "t1w=*T1w*", "--labels", "*seg*", "--synthetic", label_maps]
    words += ["--start", label_maps.parent / "net" / "network", "--epochs", 1, "--split", "0.34,0.33,0.33", "--json"]
    code, out, err = run(*words, "-o", tmp_path / "mixed")
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["subjects"], answer["test"], answer["labels"]) == (3, 1, list(range(8)))
    assert (tmp_path / "mixed" / "scores.csv").exists()
    assert mrhdata.models.load(tmp_path / "mixed" / "network").spec.channels == ("t1w",)
    code, _, err = run(*words, "-o", tmp_path / "other", "--spacing-mm", "2")
    assert (code, "--spacing-mm must be left out with --synthetic" in err) == (2, True), err


def test_a_start_needs_label_maps(tmp_path):
    code, _, err = run("train", "segmentation", tmp_path, "--start", "synth-tissue", "-o", tmp_path / "net")
    assert (code, "--start needs --synthetic; got only --start synth-tissue" in err) == (2, True), err
