"""The command line: what it prints, and that mistakes end in one sentence and exit code 2."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mrhdata
from mrhdata.io.cell_tables import read_points, write_points
from mrhdata.volume.construct import describe, from_array
from tests.conftest import command as run
from tests.conftest import oblique_affine


@pytest.fixture
def files(tmp_path):
    """A contrast that follows histology, the histology, and a mask, as files."""
    rng = np.random.default_rng(0)
    histology = rng.random((20, 20, 20))
    made = {"t2": 100 * histology + rng.normal(0, 20, histology.shape), "af": histology, "mask": histology > -1}
    for name, values in made.items():
        mrhdata.write(from_array(values.astype(np.float32), affine=oblique_affine()), tmp_path / f"{name}.nii")
    return tmp_path


def test_the_installed_command(files):
    """The command itself, in a process of its own: what it prints, and how it ends."""
    installed = Path(sys.executable).with_name("mrhdata")
    for words in (("info", files / "t2.nii", "--json"), ("info", files / "nothing.nii")):
        done = subprocess.run([installed, *words], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == run(*words)


def test_info_and_convert(files):
    """A file described, converted, and described again with the same geometry."""
    code, out, _ = run("info", files / "t2.nii", "--json")
    first = json.loads(out)
    assert code == 0
    assert first["shape"] == {"z": 20, "y": 20, "x": 20}
    assert first["orientation"] == "SAR"
    code, out, _ = run("convert", files / "t2.nii", files / "t2.zarr", "--space", "CCFv3", "--modality", "mri")
    assert code == 0
    second = json.loads(run("info", files / "t2.zarr", "--json")[1])
    assert second["space"] == "CCFv3"
    assert second["corner_mm"] == first["corner_mm"]
    assert run("convert", files / "t2.zarr", files / "back.mnc")[0] == 0
    assert "spacing_mm" in run("info", files / "back.mnc")[1]


def test_sensitivity(files):
    """Contrasts scored from files."""
    code, out, _ = run(
        "sensitivity", files / "af.nii", files / "t2.nii", "--threshold", "0.3", "--where", files / "mask.nii", "--json"
    )
    assert code == 0
    rows = {row["contrast"]: row for row in json.loads(out)}
    assert 0.8 < rows["t2"]["auc_low"] < rows["t2"]["auc"] < 1


def damaged(files, kind):
    """Words of a command that must fail, and what its sentence must say."""
    score = ["sensitivity", files / "af.nii", files / "t2.nii", "--threshold", "0.3"]
    t2 = mrhdata.read(files / "t2.nii").compute()
    bad = files / "bad.nii"
    if kind == "missing":
        return ["info", files / "gone.nii"], "does not exist"
    if kind == "truncated":
        bad.write_bytes((files / "t2.nii").read_bytes()[:1000])
        return ["convert", bad, files / "out.zarr"], "truncated"
    if kind == "unknown format":
        (files / "a.xyz").write_bytes(b"?")
        return ["info", files / "a.xyz"], "no ending that is known"
    if kind == "shapes":
        mrhdata.write(t2.isel(x=slice(5)), bad)
        return [*score, "--where", bad], "shapes differ"
    if kind == "spaces":
        mrhdata.write(describe(t2, space="MNI152"), bad)
        return ["sensitivity", files / "af.nii", bad, "--threshold", "0.3"], "lies in space"
    if kind == "NaN":
        mrhdata.write(t2.where(t2 > 10), bad)
        return ["sensitivity", files / "af.nii", bad, "--threshold", "0.3"], "not finite"
    if kind == "empty mask":
        mrhdata.write((t2 * 0).assign_attrs(t2.attrs), bad)
        return [*score, "--where", bad], "mask is empty"
    if kind == "no real data":
        return ["demo", "--data", files, "--out", files / "out.zarr"], "is missing; mouse-mri-histology"
    return ["catalog", "check", files / "gone.yaml"], "does not exist"


@pytest.mark.parametrize(
    "kind",
    ["missing", "truncated", "unknown format", "shapes", "spaces", "NaN", "empty mask", "catalogue"],
)
def test_mistakes_end_in_one_sentence(files, kind):
    """Exit code 2, one line on stderr, no traceback, nothing half-written."""
    words, sentence = damaged(files, kind)
    before = sorted(files.rglob("*"))
    code, out, err = run(*words)
    assert code == 2
    assert out == ""
    assert sentence in err
    lines = err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("mrhdata: ")
    assert sorted(files.rglob("*")) == before


def test_demo_says_where_missing_data_are(files):
    """Before anything is computed."""
    words, sentence = damaged(files, "no real data")
    code, _, err = run(*words)
    assert code == 2
    assert sentence in err


def test_predict_from_files(trained, tmp_path):
    """A saved network over named files equals the function; wrong names, modes and numbers are one sentence."""
    model, _, inputs, _ = trained
    mrhdata.models.save(model, tmp_path / "net")
    for name, volume in inputs.items():
        mrhdata.write(volume, tmp_path / f"{name}.nii")
    given = [tmp_path / "a.nii", f"b={tmp_path / 'b.nii'}"]
    code, out, err = run("predict", tmp_path / "net", tmp_path / "m.zarr", *given, "--json")
    assert code == 0, err
    assert json.loads(out)["dtype"] == "float32"
    expected = mrhdata.predict(model, inputs, tmp_path / "e.zarr", progress=False)
    np.testing.assert_allclose(mrhdata.read(tmp_path / "m.zarr"), expected, rtol=1e-5)
    assert run("diff", tmp_path / "m.zarr", tmp_path / "e.zarr")[0] == 0
    for words, sentence in [
        ([given[1], given[0]], "trained on ('a', 'b') but is given ('b', 'a')"),
        ([*given, "--mode", "fast"], "mode is patch or dense, not 'fast'"),
        ([*given, "--decide", "most"], "argmax or a number, not 'most'"),
        ([*given, "--window", "3"], "three lengths along z, y, x, not [3]"),
        ([given[0], given[0]], "two inputs have one name"),
    ]:
        code, _, err = run("predict", tmp_path / "net", tmp_path / "n.zarr", *words)
        assert (code, sentence in err) == (2, True), err
    assert not (tmp_path / "n.zarr").exists()


def test_from_two_files_to_a_report(tmp_path):
    """Register, train, map and report; the network is scored on planes that it did not learn from."""
    brain = mrhdata.phantom.mouse_brain(spacing_mm=0.6)
    shifted = brain["t2w"].assign_coords(x=brain["t2w"].x + 0.6)
    for name, volume in {"t2w": shifted, "af": brain["af"], "mask": brain["mask"]}.items():
        mrhdata.write(volume, tmp_path / f"{name}.zarr")
    at = {name: tmp_path / name for name in ("t2w.zarr", "af.zarr", "mask.zarr", "on.zarr", "net", "map.zarr", "to.h5")}
    code, out, err = run(
        "register", at["t2w.zarr"], at["af.zarr"], at["to.h5"], "--kind", "rigid", "--out", at["on.zarr"]
    )
    assert code == 0, err
    code, out, err = run(
        "resample", at["t2w.zarr"], tmp_path / "same.nii", "--like", at["af.zarr"], "--transform", at["to.h5"]
    )
    assert code == 0, err
    carried = mrhdata.read(at["on.zarr"])
    np.testing.assert_allclose(mrhdata.read(tmp_path / "same.nii"), carried, rtol=1e-3, atol=1)
    quick = ["--where", at["mask.zarr"], "--epochs", 1, "--blocks", 1, "--members", 2, "--shares", "0.3,0.4,0.3"]
    code, out, err = run("train", at["net"], at["af.zarr"], f"t2w={at['on.zarr']}", *quick, "--json")
    assert code == 0, err
    assert json.loads(out)["epochs"] == 1
    assert set(np.unique(mrhdata.read(at["net"] / "parts.zarr"))) == {0, 1, 2, 3}
    assert run("predict", at["net"], at["map.zarr"], f"t2w={at['on.zarr']}", "--where", at["mask.zarr"])[0] == 0
    words = [f"t2w={at['on.zarr']}", "--histology", f"AF={at['af.zarr']}", "--prediction", f"virtual={at['map.zarr']}"]
    scored = ["--where", at["mask.zarr"], "--parts", at["net"] / "parts.zarr", "--model", at["net"]]
    code, out, err = run("report", tmp_path / "page.html", *words, *scored)
    assert code == 0, err
    text = (tmp_path / "page.md").read_text("utf-8")
    assert "| virtual | prediction |" in text
    assert "in-sample" not in text
    assert "## Volumes\n\nPictures, in the HTML page:\n\n- AF, virtual" in text
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "virtual: uncertainty" in page
    assert "What each adds" in page
    assert "AUC lost where the values of one input are shuffled" in page
    for more, sentence in [
        (["--train", at["mask.zarr"]], "--train and --parts both say where to fit"),
        (["--threshold", "mean"], "'otsu' or a percentile"),
        (["--positive", "above", "--positive", "below"], "given 2 times for 1 volumes"),
        ([], "page.html exists"),
    ]:
        target = tmp_path / ("page.html" if not more else "other.html")
        code, out, err = run("report", target, *words, *scored, *more)
        assert (code, sentence in err) == (2, True), err
    assert not (tmp_path / "other.html").exists()


def test_training_on_two_grids(files):
    """Is refused, and the remedy that the sentence names is an option; the parts lie on the first input's grid."""
    mrhdata.write(mrhdata.read(files / "af.nii").isel(x=slice(None, None, -2)), files / "coarse.nii")
    words = ["train", files / "net", files / "coarse.nii", files / "t2.nii", "--epochs", 1, "--blocks", 1]
    code, _, err = run(*words)
    assert (code, "grids='resample'" in err) == (2, True), err
    assert not (files / "net").exists()
    code, _, err = run(*words, "--align", "first")
    assert code == 0, err
    parts = mrhdata.read(files / "net" / "parts.zarr")
    assert parts.mrh.grid.same_as(mrhdata.read(files / "t2.nii").mrh.grid)
    assert set(np.unique(parts)) == {0, 1, 2, 3}


def test_maps_from_a_folder_of_subjects(tmp_path):
    """Train on brains, map and score those that were left out, on grids of their own; then map one with the network."""
    rng = np.random.default_rng(0)
    study, affine = tmp_path / "study", oblique_affine()
    for who in range(4):
        t2w = rng.random((8, 10, 10)).astype(np.float32)
        coarse = np.diag([2.0, 2, 2, 1]) if who == 0 else np.eye(4)
        coarse[:3, 3] = 0.5 if who == 0 else 0
        histology = 300 - 50 * (t2w if who else t2w.reshape(4, 2, 5, 2, 5, 2).mean(axis=(1, 3, 5)))
        volumes = {"T2w": (t2w, affine), "AF": (histology, affine @ coarse), "mask": ((t2w > 0.1).astype("u1"), affine)}
        (study / f"sub-{who}").mkdir(parents=True)
        for name, (values, where) in volumes.items():
            mrhdata.write(from_array(values, affine=where), study / f"sub-{who}" / f"sub-{who}_{name}.nii.gz")
    words = ["train-maps", tmp_path / "net", study, "--input", "t2w=T2w", "--histology", "AF", "--where", "mask"]
    code, out, err = run(*words, "--blocks", 1, "--epochs", 6, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert sorted(f"{found['training']}, {found['validation']}, {found['test']}".split(", ")) == list("0123")
    own = mrhdata.read(study / f"sub-{found['test']}" / f"sub-{found['test']}_T2w.nii.gz")
    made = mrhdata.read(tmp_path / "net" / "maps" / f"sub-{found['test']}.nii.gz")
    assert made.mrh.grid.same_as(own.mrh.grid)
    (row,) = pd.read_csv(tmp_path / "net" / "scores.csv").itertuples()
    assert row.correlation > 0.3
    assert found["R2"] == {found["test"]: round(row.R2, 4)}
    given = f"t2w={study / 'sub-0' / 'sub-0_T2w.nii.gz'}"
    assert run("predict", tmp_path / "net" / "network", tmp_path / "m.nii.gz", given)[0] == 0
    for more, sentence in (
        (["--stride", 2], "holds another run"),
        (["--input", "mask=mask"], "cannot be called so"),
        (["--input", "flair=FLAIR"], "no file of"),
    ):
        code, _, err = run(*words, "--blocks", 1, "--epochs", 6, *more)
        assert (code, sentence in err) == (2, True), err


def test_labels_put_right_are_not_scored_with_the_network_of_the_old_ones(tmp_path):
    for who in range(3):
        labels = np.zeros((6, 16, 16), np.uint8)
        labels[1:5, 4:12, 4 + who : 12] = 7
        for name in ("T1w", "seg"):
            (tmp_path / "study").mkdir(exist_ok=True)
            mrhdata.write(from_array(labels, spacing=(2, 1, 1)), tmp_path / "study" / f"sub-{who}_{name}.nii")
    words = ["train-labels", tmp_path / "net", tmp_path / "study", "--input", "t1w=T1w", "--labels", "seg"]
    words += ["--epochs", 1, "--recipe", "tissue2d_3_0"]
    assert run(*words)[0] == 0
    assert run(*words)[0] == 0
    mrhdata.write(from_array(labels[::-1], spacing=(2, 1, 1)), tmp_path / "study" / "sub-0_seg.nii", overwrite=True)
    code, _, err = run(*words)
    assert (code, "of other subjects, files or settings" in err) == (2, True), err


def test_labels_from_a_folder_of_subjects(tmp_path):
    """Train, score subjects that were left out, label one in another format; a second run is refused or goes on."""
    rng = np.random.default_rng(0)
    study = tmp_path / "study"
    for who in range(4):
        labels = np.zeros((6, 24, 24), np.uint8)
        labels[1:5, 6:18, 6 + who : 18] = 7
        image = (labels + rng.normal(0, 1, labels.shape)).astype(np.float32)
        (study / f"sub-{who}").mkdir(parents=True)
        mrhdata.write(from_array(image, spacing=(2, 1, 1)), study / f"sub-{who}" / f"sub-{who}_T1w.mnc")
        mrhdata.write(from_array(labels, spacing=(2, 1, 1)), study / f"sub-{who}" / f"sub-{who}_seg.mnc")
    words = ["train-labels", tmp_path / "net", study, "--input", "t1w=T1w", "--labels", "seg", "--epochs", 1]
    code, out, err = run(*words, "--recipe", "tissue2d_3_0", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["training"], found["validation"], found["test"]) == (2, 1, 1)
    assert found["labels"] == [0, 7]
    (written,) = (tmp_path / "net" / "labels").glob("*.mnc")
    own = mrhdata.read(study / written.name[:5] / f"{written.name[:5]}_T1w.mnc")
    assert mrhdata.read(written, kind="labels").mrh.grid.same_as(own.mrh.grid)
    assert written.with_suffix(".png").stat().st_size > 1000
    code, _, err = run(*words, "--recipe", "tissue2d_0_0")
    assert (code, "holds another run" in err) == (2, True)
    subject = study / "sub-1" / "sub-1_T1w.mnc"
    extra = [
        "--montage",
        tmp_path / "m.png",
        "--values",
        tmp_path / "r.csv",
        "--truth",
        study / "sub-1" / "sub-1_seg.mnc",
    ]
    code, out, err = run("segment", tmp_path / "net" / "network", tmp_path / "l.nii.gz", subject, *extra, "--json")
    assert code == 0, err
    assert set(json.loads(out)["dice"]) == {"7"}
    assert (tmp_path / "r.csv").read_text("utf-8").splitlines()[0] == "label,name,mean,sd,median,volume_mm3"
    code, _, err = run("segment", tmp_path / "net" / "network", tmp_path / "l.nii.gz", subject)
    assert (code, "exists" in err) == (2, True)
    # A truth of another grid is found before anything is computed.
    mrhdata.write(mrhdata.read(extra[-1], kind="labels").isel(z=slice(1, None)), tmp_path / "cut.nii")
    words_again = ["segment", tmp_path / "net" / "network", tmp_path / "again.nii", subject]
    code, _, err = run(*words_again, "--truth", tmp_path / "cut.nii")
    assert (code, "'truth' does not lie on the grid of 'sub-1_T1w': shapes differ" in err) == (2, True)
    assert not (tmp_path / "again.nii").exists()
    code, _, err = run("segment", tmp_path / "net" / "network", tmp_path / "l.mgz", subject)
    assert (code, "l.mgz cannot be written" in err) == (2, True)
    code, _, err = run(*words, "--recipe", "unet5")
    assert (code, "no recipe called" in err) == (2, True)


def test_restoration_from_a_stack_to_a_watched_folder(tmp_path):
    """Train on planes, restore a stack in its own range, and files of a folder; files that are none are named."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    planes = [np.cos(0.3 * x + 0.2 * y + 0.1 * z) * 60 + 128 + rng.normal(0, 2, x.shape) for z in range(20)]
    good = from_array(np.stack(planes).astype(np.uint8), spacing=(1e-5, 1e-5, 1e-5))
    mrhdata.write(good, tmp_path / "good.ome.tif")
    quick = ["--tile", 32, "--tiles", 8, "--epochs", 1, "--frames", 3]
    code, out, err = run("train-restoration", tmp_path / "net", tmp_path / "good.ome.tif", *quick, "--json")
    assert code == 0, err
    assert json.loads(out)["epochs"] == 1
    low = good.isel(y=slice(0, None, 4), x=slice(0, None, 4))
    (tmp_path / "scope").mkdir()
    mrhdata.write(low, tmp_path / "scope" / "tile-1.ome.tif")
    mrhdata.write(low, tmp_path / "scan.zarr")
    code, out, err = run("restore", tmp_path / "net", tmp_path / "r.zarr", tmp_path / "scan.zarr", "--json")
    assert code == 0, err
    made = mrhdata.read(tmp_path / "r.zarr")
    assert (made.dtype, made.shape) == (np.uint8, (20, 64, 64))
    np.testing.assert_allclose(made.mrh.spacing, (1e-5, 1e-5, 1e-5))
    (tmp_path / "scope" / "broken.tif").write_bytes(b"no picture")
    watch = ["--watch", tmp_path / "scope", "--idle", 1, "--settle", 0.2]
    code, out, err = run("restore", tmp_path / "net", tmp_path / "done", *watch)
    assert code == 0, err
    assert "left out" in err
    np.testing.assert_array_equal(mrhdata.read(tmp_path / "done" / "tile-1.ome.tif").values, made.values)
    code, _, err = run("restore", tmp_path / "net", tmp_path / "x.zarr")
    assert (code, "either a stack" in err) == (2, True)
    code, _, err = run("train-restoration", tmp_path / "n2", tmp_path / "good.ome.tif", "--crappifier", "jpeg")
    assert (code, "no degradation called" in err) == (2, True)


def test_cells_from_marks(tmp_path):
    """Trained on marked brains, a detector finds cells in another one; wrong words end in one sentence."""
    rng = np.random.default_rng(0)
    for name in "abc":
        image = rng.normal(100, 5, (40, 48, 48))
        places = rng.uniform(7, [32, 40, 40], (25, 3))
        index = np.indices(image.shape).reshape(3, -1).T
        for place in places:
            image.reshape(-1)[:] += 300 * np.exp(-((index - place) ** 2).sum(axis=1) / 8)
        volume = from_array(image.clip(0).astype(np.uint16), spacing=(0.002,) * 3)
        mrhdata.write(volume, tmp_path / f"{name}.tif")
        pd.DataFrame(places, columns=["z", "y", "x"]).to_csv(tmp_path / f"{name}.csv", index=False)
    brains = [f"{tmp_path / name}.tif={tmp_path / name}.csv" for name in "ab"]
    code, out, error = run("train-cells", tmp_path / "net", *brains, "--epochs", "3", "--boxes", "12", "--json")
    assert code == 0, error
    assert json.loads(out)["marks"] == [25, 25]
    words = ("detect", tmp_path / "net" / "network", tmp_path / "found", tmp_path / "c.tif", "--json")
    code, out, error = run(*words, "--points", tmp_path / "c.xml")
    assert code == 0, error
    assert json.loads(out)["cells"] == len(pd.read_parquet(tmp_path / "found" / "cells.parquet")) > 3
    assert (tmp_path / "c.xml").read_text("utf-8").count("<MarkerZ>") == json.loads(out)["cells"]
    for wrong, said in (
        (("train-cells", tmp_path / "n", brains[0]), "--validation 1 of 1"),
        (("train-cells", tmp_path / "n", *brains, "--recipe", "best"), "no recipe called 'best'"),
        (("train-cells", tmp_path / "n", tmp_path / "a.tif", brains[1]), "VOLUME=MARKS"),
        (("train-cells", tmp_path / "net", *brains, "--epochs", "3"), "holds another run"),
    ):
        code, _, error = run(*wrong)
        assert code == 2
        assert said in error
        assert "Traceback" not in error


def test_review_and_judge(tmp_path):
    """Detections shown on a page, verdicts read back as marks, and the false positives that remain."""
    rng = np.random.default_rng(0)
    volume = from_array(rng.integers(0, 900, (20, 60, 60)).astype(np.uint16), spacing=(0.005, 0.002, 0.002))
    mrhdata.write(volume, tmp_path / "brain.ome.tif")
    places = pd.DataFrame({"z": [5.0, 9, 14], "y": [10.0, 20, 50], "x": [10.0, 40, 30], "score": [0.6, 0.9, 0.8]})
    write_points(places, tmp_path / "cells.parquet", volume)
    write_points(pd.DataFrame({"z": [5, 3], "y": [11, 50], "x": [10, 7]}), tmp_path / "marks.xml", volume)
    brain, cells, marks, page = (tmp_path / n for n in ("brain.ome.tif", "cells.parquet", "marks.xml", "r.html"))
    code, out, err = run("review", page, cells, brain, "--marks", marks, "--png", tmp_path / "r.png", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["kinds"], told["radius_um"]) == ({"false positive": 2, "miss": 1, "match": 1}, 12)
    assert (tmp_path / "r.png").stat().st_size > 10_000
    found = dict(re.findall(r'data-id="(\w+)"[^>]*data-kind="([\w ]+)"', page.read_text("utf-8")))
    assert sorted(found.values()) == ["false positive", "false positive", "match", "miss"]

    world = volume.mrh.world([[9, 20, 40], [14, 50, 30], [3, 50, 7]]).tolist()
    rows = [(*world[0], "false positive,0.9,all,cell"), (*world[1], "false positive,0.8,all,no cell")]
    rows = [*rows, (*world[2], "miss,,all,no cell")]
    lines = [f"X{i}," + ",".join(map(str, row)) for i, row in enumerate(rows)]
    (tmp_path / "v.csv").write_text("\n".join(["id,X,Y,Z,kind,score,drawn,verdict", *lines]))
    words = ("judge", tmp_path / "next.xml", tmp_path / "v.csv", brain)
    code, out, err = run(*words, "--marks", marks, "--cells", cells, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert [told[k] for k in ("judged", "marks_before", "marks", "false_positives", "remaining")] == [3, 2, 2, 2, 1]
    assert told["share"] == [0.5, 0.5, 0.5]
    after = read_points(tmp_path / "next.xml", volume)
    assert after[["z", "y", "x"]].values.tolist() == [[5, 11, 10], [9, 20, 40]]
    for wrong, said in (
        ((*words, "--cells", cells), "give --marks"),
        (("review", page, cells, brain), "exists"),
    ):
        code, _, err = run(*wrong)
        assert (code, said in err) == (2, True), err


def test_one_time_of_a_series_is_converted(tmp_path):
    """What commands on single volumes ask for."""
    values = np.random.default_rng(0).random((3, 4, 5, 6), np.float32)
    mrhdata.write(from_array(values, spacing=(1, 1, 1), dims=("t", "z", "y", "x")), tmp_path / "a.nii")
    code, _, err = run(
        "sensitivity", tmp_path / "a.nii", tmp_path / "a.nii", "--threshold", "50%", "--positive", "above"
    )
    assert (code, "mrhdata convert --time 0" in err) == (2, True), err
    for ending in ("zarr", "nii.gz"):
        assert run("convert", tmp_path / "a.nii", tmp_path / f"one.{ending}", "--time", 1)[0] == 0
        found = mrhdata.read(tmp_path / f"one.{ending}")
        np.testing.assert_array_equal(found, values[1])
        assert found.mrh.grid.same_as(mrhdata.read(tmp_path / "a.nii").mrh.grid)
    code, _, err = run("convert", tmp_path / "a.nii", tmp_path / "b.zarr", "--time", 3)
    assert (code, "has the times 0 to 2, not 3" in err) == (2, True), err
