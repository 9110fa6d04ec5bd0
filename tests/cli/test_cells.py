"""Cells from marks to detections, and the review of detections."""

import json
import re

import numpy as np
import pandas as pd

import mrhdata
from mrhdata.io.cell_tables import read_points, write_points
from mrhdata.volume.construct import from_array
from tests.conftest import command as run


def test_detection_from_marks(tmp_path):
    """A detector that was trained on marked brains finds cells in another one; wrong words end in one sentence."""
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
    train = ("train", "detection")
    quick = ("--epochs", "3", "--patches-per-brain", "12")
    code, out, error = run(*train, *brains, "-o", tmp_path / "net", *quick, "--json")
    assert code == 0, error
    assert json.loads(out)["marks"] == [25, 25]
    words = ("detect", tmp_path / "net" / "network", tmp_path / "c.tif", "-o", tmp_path / "found", "--json")
    code, out, error = run(*words, "--points", tmp_path / "c.xml")
    assert code == 0, error
    assert json.loads(out)["cells"] == len(pd.read_parquet(tmp_path / "found" / "cells.parquet")) > 3
    assert (tmp_path / "c.xml").read_text("utf-8").count("<MarkerZ>") == json.loads(out)["cells"]
    for wrong, sentence in (
        ((brains[0], "-o", tmp_path / "n"), "--validation-brains must leave one of 1 brains or more"),
        (
            (*brains, "-o", tmp_path / "n", "--recipe", "best"),
            "--recipe must be one of corrected, published; got 'best'",
        ),
        ((tmp_path / "a.tif", brains[1], "-o", tmp_path / "n"), "VOLUME=MARKS"),
        ((*brains, "-o", tmp_path / "net", "--epochs", "3"), "holds another run"),
    ):
        code, _, error = run(*train, *wrong)
        assert code == 2
        assert sentence in error
        assert "Traceback" not in error


def test_decisions_of_a_review_become_marks(tmp_path):
    """Detections are shown on a page; decisions come back as marks, and count the false positives that remain."""
    rng = np.random.default_rng(0)
    volume = from_array(rng.integers(0, 900, (20, 60, 60)).astype(np.uint16), spacing=(0.005, 0.002, 0.002))
    mrhdata.write(volume, tmp_path / "brain.ome.tif")
    places = pd.DataFrame({"z": [5.0, 9, 14], "y": [10.0, 20, 50], "x": [10.0, 40, 30], "score": [0.6, 0.9, 0.8]})
    write_points(places, tmp_path / "cells.parquet", volume)
    write_points(pd.DataFrame({"z": [5, 3], "y": [11, 50], "x": [10, 7]}), tmp_path / "marks.xml", volume)
    brain, detections, marks, page = (tmp_path / n for n in ("brain.ome.tif", "cells.parquet", "marks.xml", "r.html"))
    words = ("review", detections, brain, "-o", page)
    code, out, err = run(*words, "--marks", marks, "--png", tmp_path / "r.png", "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["kinds"], answer["radius_um"]) == ({"false positive": 2, "miss": 1, "match": 1}, 12)
    assert (tmp_path / "r.png").stat().st_size > 10_000
    kinds = dict(re.findall(r'data-id="(\w+)"[^>]*data-kind="([\w ]+)"', page.read_text("utf-8")))
    assert sorted(kinds.values()) == ["false positive", "false positive", "match", "miss"]
    code, _, err = run(*words)
    assert (code, "exists" in err) == (2, True), err

    world = volume.mrh.world([[9, 20, 40], [14, 50, 30], [3, 50, 7]]).tolist()
    rows = [(*world[0], "false positive,0.9,all,cell"), (*world[1], "false positive,0.8,all,no cell")]
    rows = [*rows, (*world[2], "miss,,all,no cell")]
    lines = [f"X{i}," + ",".join(map(str, row)) for i, row in enumerate(rows)]
    (tmp_path / "v.csv").write_text("\n".join([HEADER, *lines]))
    words = ("review-apply", tmp_path / "v.csv", brain, "-o", tmp_path / "next.xml")
    code, out, err = run(*words, "--marks", marks, "--cells", detections, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert [answer[k] for k in ("judged", "marks_before", "marks", "false_positives", "remaining")] == [3, 2, 2, 2, 1]
    assert answer["share"] == [0.5, 0.5, 0.5]
    after = read_points(tmp_path / "next.xml", volume)
    assert after[["z", "y", "x"]].values.tolist() == [[5, 11, 10], [9, 20, 40]]
    code, _, err = run(*words, "--cells", detections)
    assert (code, "pass --marks" in err) == (2, True), err


#: Columns of the file that a review page saves.
HEADER = "id,X,Y,Z,kind,score,drawn,decision"
