"""Training on histology, prediction and scores, from files to files."""

import json
import re

import numpy as np
import pandas as pd
import pytest

import mrhdata
from mrhdata.volume.construct import from_array
from tests.conftest import command as run
from tests.conftest import oblique_affine


def test_sensitivity_scores_contrasts_of_files(files):
    words = ["sensitivity", files / "t2.nii", "--histology", files / "af.nii", "--threshold", "0.3"]
    code, out, _ = run(*words, "--mask", files / "mask.nii", "--json")
    assert code == 0
    rows = {row["contrast"]: row for row in json.loads(out)}
    assert 0.8 < rows["t2"]["auc_low"] < rows["t2"]["auc"] < 1
    code, out, _ = run(*words, "-o", files / "scores.csv")
    assert out.splitlines()[0].startswith("t2 has an AUC of 0.")
    assert pd.read_csv(files / "scores.csv").contrast.tolist()[0] in rows
    code, _, err = run(*words, "--reference", "t1")
    assert (code, "reference must be one of" in err) == (2, True)


def test_predict_equals_the_function(trained, tmp_path):
    """A saved network over named files equals `mrhdata.predict`; wrong names, modes and numbers are one sentence."""
    model, _, inputs, _ = trained
    mrhdata.models.save(model, tmp_path / "net")
    for name, volume in inputs.items():
        mrhdata.write(volume, tmp_path / f"{name}.nii")
    words = ["predict", tmp_path / "net"]
    volumes = [tmp_path / "a.nii", f"b={tmp_path / 'b.nii'}"]
    code, out, err = run(*words, *volumes, "-o", tmp_path / "m.zarr", "--json")
    assert code == 0, err
    assert json.loads(out)["dtype"] == "float32"
    expected = mrhdata.predict(model, inputs, tmp_path / "e.zarr", progress=False)
    np.testing.assert_allclose(mrhdata.read(tmp_path / "m.zarr"), expected, rtol=1e-5)
    assert run("diff", tmp_path / "m.zarr", tmp_path / "e.zarr")[0] == 0
    for more, sentence in [
        ([volumes[1], volumes[0]], "trained on ('a', 'b') but is given ('b', 'a')"),
        ([*volumes, "--mode", "fast"], "'fast'"),
        ([*volumes, "--argmax", "--threshold", 0.5], "--argmax and --threshold exclude each other"),
        ([*volumes, "--window", "3"], "--window must be three numbers with commas"),
        ([*volumes, "--window", "3,3,1.5"], "--window must be three whole numbers with commas; got '3,3,1.5'"),
        ([volumes[0], volumes[0]], "two inputs have one name"),
    ]:
        code, _, err = run(*words, *more, "-o", tmp_path / "n.zarr")
        assert (code, sentence in err) == (2, True), err
    assert not (tmp_path / "n.zarr").exists()


def test_threshold_writes_a_mask(trained, tmp_path):
    model, _, inputs, _ = trained
    mrhdata.models.save(model, tmp_path / "net")
    for name, volume in inputs.items():
        mrhdata.write(volume, tmp_path / f"{name}.nii")
    words = ["predict", tmp_path / "net", tmp_path / "a.nii", tmp_path / "b.nii", "--window", "3,1,3"]
    assert run(*words, "-o", tmp_path / "values.zarr")[0] == 0
    assert run(*words, "-o", tmp_path / "mask.zarr", "--threshold", 320)[0] == 0
    values, mask = (mrhdata.read(tmp_path / f"{name}.zarr").values for name in ("values", "mask"))
    np.testing.assert_array_equal(mask, values >= 320)
    assert 0 < mask.mean() < 1


@pytest.fixture
def folder_of_cases(trained, tmp_path):
    """A saved network, and a folder with the two channels of two cases named as nnU-Net names them."""
    model, _, inputs, _ = trained
    mrhdata.models.save(model, tmp_path / "net")
    (tmp_path / "cases").mkdir()
    for case in ("mouse_1", "mouse_2"):
        for number, volume in enumerate(inputs.values()):
            mrhdata.write(volume * (1.1 if case == "mouse_2" else 1), tmp_path / "cases" / f"{case}_{number:04}.nii.gz")
    return model, inputs, tmp_path


def test_predict_maps_each_case_of_a_folder(folder_of_cases):
    """Channels are joined in the order of their suffix; every case gives one map of its name and format."""
    model, inputs, folder = folder_of_cases
    code, out, err = run("predict", folder / "net", folder / "cases", "-o", folder / "maps", "--json")
    assert code == 0, err
    assert json.loads(out) == {"written": str(folder / "maps"), "cases": 2}
    assert sorted(p.name for p in (folder / "maps").iterdir()) == ["cases.json", "mouse_1.nii.gz", "mouse_2.nii.gz"]
    expected = mrhdata.predict(model, inputs, folder / "e.zarr", progress=False)
    np.testing.assert_allclose(mrhdata.read(folder / "maps" / "mouse_1.nii.gz"), expected, rtol=1e-5)


def test_predict_on_a_folder_resumes_and_keeps_other_files(folder_of_cases):
    """A second run makes what is missing or has other inputs; what another run wrote is refused without --overwrite."""
    _, _, folder = folder_of_cases
    words = ["predict", folder / "net", folder / "cases", "-o", folder / "maps"]
    assert run(*words)[0] == 0
    maps = {name: folder / "maps" / f"{name}.nii.gz" for name in ("mouse_1", "mouse_2")}
    times = {name: path.stat().st_mtime_ns for name, path in maps.items()}
    maps["mouse_2"].unlink()
    assert run(*words)[0] == 0
    assert maps["mouse_1"].stat().st_mtime_ns == times["mouse_1"]
    assert maps["mouse_2"].exists()
    code, _, err = run(*words, "--threshold", 300)
    assert (code, "mouse_1.nii.gz exists and is not of this run" in err) == (2, True), err
    assert run(*words, "--threshold", 300, "--overwrite")[0] == 0
    assert mrhdata.read(maps["mouse_1"]).dtype == np.uint8


def test_predict_names_the_case_of_a_folder_that_fails(folder_of_cases):
    _, _, folder = folder_of_cases
    (folder / "cases" / "mouse_2_0001.nii.gz").unlink()
    code, _, err = run("predict", folder / "net", folder / "cases", "-o", folder / "maps")
    assert (code, "case mouse_2: the network was trained on ('a', 'b')" in err) == (2, True), err
    assert (folder / "maps" / "mouse_1.nii.gz").exists()
    (folder / "cases" / "mouse_1_0002.nii.gz").write_bytes((folder / "cases" / "mouse_1_0001.nii.gz").read_bytes())
    code, _, err = run("predict", folder / "net", folder / "cases", "-o", folder / "more")
    assert (code, "case mouse_1 has 3 files; the network takes the channels ('a', 'b')" in err) == (2, True), err
    assert not (folder / "more").exists()


def test_outputs_do_not_replace_inputs_of_a_folder(trained, tmp_path):
    model, _, inputs, _ = trained
    mrhdata.models.save(model, tmp_path / "net")
    (tmp_path / "cases").mkdir()
    mrhdata.write(inputs["a"], tmp_path / "cases" / "one.nii")
    code, _, err = run("predict", tmp_path / "net", tmp_path / "cases", "-o", tmp_path / "cases", "--overwrite")
    assert (code, "one.nii is an input; choose another folder" in err) == (2, True), err


def check_files(text, at):
    """Check that a report lists its files with checksums, and the program."""
    for role, file in (("histology | AF", at["af.zarr"]), ("contrast | t2w", at["on.zarr"]), ("parts | parts", "")):
        assert re.search(rf"\| {re.escape(role)} \| {re.escape(str(file))}.* \| [0-9a-f]{{16}} \*? \|", text), role
    assert f"Made by mrhdata {mrhdata.__version__} with Python" in text


def test_from_two_files_to_a_report(tmp_path):
    """Register, train, map and report; the network is scored on planes that it was not trained on."""
    brain = mrhdata.phantom.mouse_brain(spacing_mm=0.6)
    shifted = brain["t2w"].assign_coords(x=brain["t2w"].x + 0.6)
    for name, volume in {"t2w": shifted, "af": brain["af"], "mask": brain["mask"]}.items():
        mrhdata.write(volume, tmp_path / f"{name}.zarr")
    at = {name: tmp_path / name for name in ("t2w.zarr", "af.zarr", "mask.zarr", "on.zarr", "net", "map.zarr", "to.h5")}
    words = ["register", at["t2w.zarr"], at["af.zarr"], "-o", at["to.h5"], "--kind", "rigid", "--moved", at["on.zarr"]]
    code, out, err = run(*words)
    assert code == 0, err
    words = ["resample", at["t2w.zarr"], "-o", tmp_path / "same.nii", "--like", at["af.zarr"]]
    code, out, err = run(*words, "--transform", at["to.h5"])
    assert code == 0, err
    moved = mrhdata.read(at["on.zarr"])
    np.testing.assert_allclose(mrhdata.read(tmp_path / "same.nii"), moved, rtol=1e-3, atol=1)
    quick = [
        "--mask",
        at["mask.zarr"],
        "--epochs",
        1,
        "--loop-blocks",
        1,
        "--ensemble-size",
        2,
        "--split",
        "0.3,0.4,0.3",
    ]
    train = ["train", "histology", f"t2w={at['on.zarr']}", "--histology", at["af.zarr"], "-o", at["net"]]
    code, out, err = run(*train, *quick, "--json")
    assert code == 0, err
    assert json.loads(out)["epochs"] == 1
    assert set(np.unique(mrhdata.read(at["net"] / "parts.zarr"))) == {0, 1, 2, 3}
    words = ["predict", at["net"], f"t2w={at['on.zarr']}", "-o", at["map.zarr"], "--mask", at["mask.zarr"]]
    assert run(*words)[0] == 0
    words = ["report", f"t2w={at['on.zarr']}", "--histology", f"AF={at['af.zarr']}"]
    words += ["--prediction", f"virtual={at['map.zarr']}"]
    words += ["--mask", at["mask.zarr"], "--parts", at["net"] / "parts.zarr", "--model", at["net"]]
    code, out, err = run(*words, "-o", tmp_path / "page.html")
    assert code == 0, err
    text = (tmp_path / "page.md").read_text("utf-8")
    assert "| virtual | prediction |" in text
    assert "in-sample" not in text
    assert "## Volumes\n\nFigures in the HTML page:\n\n- AF, virtual" in text
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "virtual: uncertainty" in page
    check_files(text.partition("## Files and program")[2], at)
    assert "Partial correlation of each contrast" in page
    assert "Loss of AUC when the values of one input are shuffled" in page
    for more, sentence in [
        (["--train-mask", at["mask.zarr"]], "--train-mask and --parts both set the voxels to fit on"),
        (["--threshold", "mean"], "'otsu' or a percentile"),
        (
            ["--positive", "above", "--positive", "below"],
            "--positive must be passed once, or once for each histology: 1 times; got 2",
        ),
        ([], "page.html exists"),
    ]:
        target = tmp_path / ("page.html" if not more else "other.html")
        code, out, err = run(*words, "-o", target, *more)
        assert (code, sentence in err) == (2, True), err
    assert not (tmp_path / "other.html").exists()


def test_training_on_two_grids_needs_resampling(files):
    """The remedy that the error names is an option; the parts lie on the grid of the first contrast."""
    mrhdata.write(mrhdata.read(files / "af.nii").isel(x=slice(None, None, -2)), files / "coarse.nii")
    words = ["train", "histology", files / "t2.nii", "--histology", files / "coarse.nii", "-o", files / "net"]
    words += ["--epochs", 1, "--loop-blocks", 1]
    code, _, err = run(*words)
    assert (code, "grids='resample'" in err) == (2, True), err
    assert not (files / "net").exists()
    code, _, err = run(*words, "--grids", "resample")
    assert code == 0, err
    parts = mrhdata.read(files / "net" / "parts.zarr")
    assert parts.mrh.grid.same_as(mrhdata.read(files / "t2.nii").mrh.grid)
    assert set(np.unique(parts)) == {0, 1, 2, 3}


def test_training_refuses_a_wrong_split(files):
    words = ["train", "histology", files / "t2.nii", "--histology", files / "af.nii", "-o", files / "net"]
    for more, sentence in [
        (["--split", "0.6,0.4"], "--split must be shares of train, validation and test such as 0.6,0.2,0.2"),
        (["--split", "train=0.6,test=0.4"], "--split must have shares of train, validation and test"),
        (["--split-axis", "c"], "--split-axis must be z, y or x, the axes of mrhdata info; got 'c'"),
    ]:
        code, _, err = run(*words, *more)
        assert (code, sentence in err) == (2, True), err
    assert not (files / "net").exists()


def test_histology_study_trains_maps_and_scores_subjects(tmp_path):
    """Test subjects are mapped on grids of their own; the network then maps a file."""
    rng = np.random.default_rng(0)
    study, affine = tmp_path / "study", oblique_affine()
    for subject in range(4):
        t2w = rng.random((8, 10, 10)).astype(np.float32)
        coarse = np.diag([2.0, 2, 2, 1]) if subject == 0 else np.eye(4)
        coarse[:3, 3] = 0.5 if subject == 0 else 0
        histology = 300 - 50 * (t2w if subject else t2w.reshape(4, 2, 5, 2, 5, 2).mean(axis=(1, 3, 5)))
        volumes = {"T2w": (t2w, affine), "AF": (histology, affine @ coarse), "mask": ((t2w > 0.1).astype("u1"), affine)}
        (study / f"sub-{subject}").mkdir(parents=True)
        for name, (values, own_affine) in volumes.items():
            path = study / f"sub-{subject}" / f"sub-{subject}_{name}.nii.gz"
            mrhdata.write(from_array(values, affine=own_affine), path)
    words = ["train", "histology-study", study, "-o", tmp_path / "net", "--input", "t2w=T2w", "--histology", "AF"]
    words += ["--mask", "mask", "--loop-blocks", 1, "--epochs", 6]
    code, out, err = run(*words, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert sorted(f"{answer['training']}, {answer['validation']}, {answer['test']}".split(", ")) == list("0123")
    own = mrhdata.read(study / f"sub-{answer['test']}" / f"sub-{answer['test']}_T2w.nii.gz")
    virtual = mrhdata.read(tmp_path / "net" / "maps" / f"sub-{answer['test']}.nii.gz")
    assert virtual.mrh.grid.same_as(own.mrh.grid)
    (row,) = pd.read_csv(tmp_path / "net" / "scores.csv").itertuples()
    assert row.correlation > 0.3
    assert answer["R2"] == {answer["test"]: round(row.R2, 4)}
    t2w = f"t2w={study / 'sub-0' / 'sub-0_T2w.nii.gz'}"
    assert run("predict", tmp_path / "net" / "network", t2w, "-o", tmp_path / "m.nii.gz")[0] == 0
    for more, sentence in (
        (["--stride", 2], "holds another run"),
        (["--input", "mask=mask"], "must not have the names histology or mask"),
        (["--input", "flair=FLAIR"], "no file of"),
    ):
        code, _, err = run(*words, *more)
        assert (code, sentence in err) == (2, True), err
